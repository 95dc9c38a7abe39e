use super::*;

fn present(size: u64) -> ContextStatus {
    ContextStatus::Present(summary(&context(1), size))
}

fn wanted(number: u32, after: u64, to: u64) -> WantedRange {
    WantedRange { context: context(number), after: Size(after), to: Size(to) }
}

#[test]
fn a_source_tells_what_it_lacks_from_what_it_cannot_read() {
    let of = |status: &ContextStatus| RangeRead::of(status, None, Size(2), Size(5));
    assert_eq!(of(&ContextStatus::Absent), Err(Missing::Shorter));
    assert_eq!(of(&present(4)), Err(Missing::Shorter));
    assert_eq!(of(&ContextStatus::Unreadable), Err(Missing::Unreadable));
    assert_eq!(of(&present(5)), Ok(RangeRead { after: Size(2), to: Size(5), together_to: None }));
}

#[test]
fn a_range_does_not_mix_what_a_load_brought_with_what_was_before() {
    let load = Some(LoadSpan { after: Size(4), to: Size(9) });
    let of = |after, to| RangeRead::of(&present(12), load, Size(after), Size(to)).unwrap();
    assert_eq!(of(1, 6), RangeRead { after: Size(1), to: Size(4), together_to: None });
    assert_eq!(of(4, 6), RangeRead { after: Size(4), to: Size(9), together_to: Some(Size(9)) });
    assert_eq!(of(9, 12), RangeRead { after: Size(9), to: Size(12), together_to: None });
}

#[test]
fn a_source_goes_on_with_the_next_context_after_one_that_it_cannot_read() {
    let mut answer = FetchAnswer::new(vec![wanted(1, 0, 10), wanted(2, 0, 5), wanted(3, 0, 5)]);
    let end = |end, together_to: Option<u64>| RangeEnd { end: Size(end), together_to: together_to.map(Size) };
    assert!(!answer.on_range(end(6, None)));
    assert_eq!(answer.wanted(), Some(&wanted(1, 6, 10)));
    assert!(answer.on_range(end(10, None)));
    answer.on_missing();
    assert_eq!(answer.wanted(), Some(&wanted(3, 0, 5)));
    assert!(!answer.on_range(end(5, Some(8))), "a load is sent up to its end");
    assert_eq!(answer.wanted(), Some(&wanted(3, 5, 8)));
    assert!(answer.on_range(end(8, Some(8))));
    assert_eq!(answer.wanted(), None);
}

#[test]
fn a_range_that_does_not_go_on_ends_its_context() {
    let mut answer = FetchAnswer::new(vec![wanted(1, 3, 10)]);
    assert!(answer.on_range(RangeEnd { end: Size(3), together_to: None }));
    assert_eq!(answer.wanted(), None);
}

/// A range of a context, up to a size.
fn arrived(context: &ContextId, after: u64, end: u64) -> ArrivedRange<'_> {
    ArrivedRange { context, after: Size(after), end: head(end), together_to: None, whole: None }
}

#[test]
fn what_did_not_come_whole_is_named_at_the_end() {
    let mut fetch =
        fetch_progress::FetchProgress::begin(&[wanted(1, 0, 10), wanted(2, 0, 5), wanted(3, 0, 5)]);
    fetch.take(&arrived(&context(1), 0, 10)).unwrap();
    fetch.take(&arrived(&context(2), 0, 4)).unwrap();
    assert!(fetch.forget(&context(3)));
    assert_eq!(fetch.end(), [context(2)]);
    assert_eq!(fetch.end(), [], "once");
}

#[test]
fn ranges_come_in_order_and_give_what_was_announced() {
    let begin = || fetch_progress::FetchProgress::begin(&[wanted(1, 2, 10)]);
    let name = context(1);
    assert!(begin().take(&arrived(&context(2), 0, 4)).is_err(), "it was not asked for");
    assert!(begin().take(&arrived(&name, 3, 4)).is_err(), "a gap");
    assert!(begin().take(&arrived(&name, 2, 2)).is_err(), "nothing");
    let first = ArrivedRange { whole: Some(head(10)), ..arrived(&name, 2, 4) };
    let mut fetch = begin();
    fetch.take(&first).unwrap();
    let other = ArrivedRange { end: TreeHead { root: root(99), ..head(10) }, ..arrived(&name, 4, 10) };
    assert!(fetch.take(&other).is_err(), "another root than was announced");
    let mut fetch = begin();
    fetch.take(&first).unwrap();
    fetch.take(&arrived(&name, 4, 10)).unwrap();
    assert_eq!(fetch.end(), []);
}

#[test]
fn a_load_is_staged_up_to_its_end_and_one_that_is_cut_short_did_not_come() {
    use fetch_progress::{FetchProgress, Fit};
    let name = context(1);
    let part = |after, end| ArrivedRange { together_to: Some(Size(9)), ..arrived(&name, after, end) };
    let mut fetch = FetchProgress::begin(&[wanted(1, 2, 4), wanted(2, 0, 1)]);
    let stage = |is_first, is_last| Fit::Stage { to: Size(9), is_first, is_last };
    assert_eq!(fetch.take(&part(2, 4)), Ok(stage(true, false)));
    assert_eq!(fetch.take(&part(4, 6)), Ok(stage(false, false)));
    assert_eq!(fetch.take(&part(6, 9)), Ok(stage(false, true)));
    assert_eq!(fetch.end(), [context(2)]);

    let mut fetch = FetchProgress::begin(&[wanted(1, 2, 4), wanted(2, 0, 1)]);
    fetch.take(&part(2, 4)).unwrap();
    assert_eq!(fetch.take(&arrived(&context(2), 0, 1)), Ok(Fit::Write { is_load: false }));
    assert_eq!(
        fetch.end(),
        std::slice::from_ref(&name),
        "the size that was asked for came, and the load did not"
    );

    let mut fetch = FetchProgress::begin(&[wanted(1, 2, 4)]);
    assert_eq!(fetch.take(&part(2, 9)), Ok(Fit::Write { is_load: true }), "whole in one range");
    assert_eq!(fetch.end(), []);
}
