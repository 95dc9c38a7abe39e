use futures::{FutureExt as _, StreamExt as _};
use http_body_util::StreamBody;
use tokio::time::Instant;

use super::*;
use crate::{memory::Memory, settings::config::Config, settings::units::ByteSize};

fn call() -> Arc<Call> {
    let memory =
        Arc::new(Memory::new(&Config { memory: ByteSize::mib(128), ..Config::default() }, Vec::new()));
    let (client, permit) = (Arc::new(memory.client()), memory.calls.charge(limits::CALL));
    Call::new(Instant::now() + limits::LONGEST_CALL, false, memory, Arc::default(), client, permit)
}

/// What passes of an answer that arrives in these parts, and never ends.
fn passing(call: &Arc<Call>, aside: Option<&Aside>, parts: &[&[u8]]) -> Passing {
    let frame = |part: &&[u8]| Ok::<_, Status>(Frame::data(Bytes::copy_from_slice(part)));
    let parts: Vec<_> = parts.iter().map(frame).collect();
    let body = StreamBody::new(futures::stream::iter(parts).chain(futures::stream::pending()));
    Passing {
        body: Body::new(body),
        call: Arc::clone(call),
        aside: aside.cloned(),
        header: [0; HEADER],
        header_len: 0,
        len: 0,
        left: 0,
        reserved: None,
        reserving: None,
        bytes: Bytes::new(),
        _window: call.memory().calls.charge(limits::UPSTREAM_WINDOW),
    }
}

fn message(len: u8) -> Vec<u8> {
    [&[0, 0, 0, 0, len][..], &vec![7; len.into()]].concat()
}

/// All that passes now.
fn taken(passing: &mut Passing) -> Vec<u8> {
    let mut taken = Vec::new();
    while let Some(Some(Ok(frame))) =
        std::future::poll_fn(|cx| http_body::Body::poll_frame(Pin::new(&mut *passing), cx)).now_or_never()
    {
        taken.extend(frame.into_data().unwrap());
    }
    taken
}

#[test]
fn messages_pass_as_they_are_however_they_arrive() {
    let all = [message(3), message(0), message(200)].concat();
    for size in [1, 4, 5, 6, 9, all.len()] {
        let call = call();
        let parts: Vec<&[u8]> = all.chunks(size).collect();
        assert_eq!(taken(&mut passing(&call, None, &parts)), all, "in parts of {size}");
        // They are the call's until it is answered.
        assert_eq!(call.memory().answers.used(), 2 * 203, "in parts of {size}");
        call.end();
        assert_eq!(call.memory().answers.used(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_that_there_is_no_memory_for_waits_and_costs_nothing() {
    let call = call();
    let held = call.memory().answers.charge(call.memory().answers.capacity());
    let all = [message(9), message(8)].concat();
    let mut passing = passing(&call, None, &[&all]);
    assert_eq!(taken(&mut passing), all[..HEADER], "its length is told");
    drop(held);
    assert_eq!(taken(&mut passing), all[HEADER..]);
    assert_eq!(call.memory().answers.used(), 2 * 17);
    drop(passing);
    call.end();
    assert_eq!((call.memory().answers.used(), call.memory().calls.used()), (0, limits::CALL));
}

#[test]
fn what_waits_beside_the_answer_is_held_for_each_message() {
    let (call, aside) = (call(), Aside::default());
    let mut passing = passing(&call, Some(&aside), &[&message(3), &message(4)]);
    taken(&mut passing);
    let used = || call.memory().answers.used();
    assert_eq!(used(), 14);
    drop(aside.lock().pop_front());
    assert_eq!(used(), 8);
    drop(aside.lock().pop_front());
    assert_eq!(used(), 0);
}
