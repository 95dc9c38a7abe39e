use super::*;

fn context(name: &str) -> ContextId {
    ContextId::new(name).unwrap()
}

fn writer(name: &str) -> Writer {
    Writer(name.into())
}

/// Other contexts in the slot of `c`.
fn neighbours(count: usize) -> Vec<String> {
    let slot = Slot::of(&context("c"));
    let names = (0..100 * u32::from(SLOTS)).map(|n| n.to_string());
    let names: Vec<_> = names.filter(|name| Slot::of(&context(name)) == slot).take(count).collect();
    assert_eq!(names.len(), count);
    names
}

/// How many of appends, one character for the writer of each, are counted: each on a stream of its writer.
fn counted(writers: &Writers, name: &str, appends: &str) -> usize {
    let context = context(name);
    let mut streams: HashMap<char, WriterCheck> = HashMap::new();
    let mut wrote = |name: char| {
        writers.wrote(&context, &writer(&name.to_string()), streams.entry(name).or_default()).is_some()
    };
    appends.chars().filter(|name| wrote(*name)).count()
}

#[test]
fn only_a_writer_that_comes_back_is_counted_and_once_for_each_time() {
    for (appends, expected) in [
        ("", 0),
        ("AAAA", 0),
        ("AB", 0),
        ("AAABBB", 0),
        ("ABCDEFG", 0),
        ("ABA", 1),
        ("ABAAAA", 1),
        ("ABAB", 2),
        ("AABBAABB", 2),
        ("ABABABAB", 6),
        ("ABBBC", 0),
        ("ABBBCA", 1),
        ("ABCABC", 3),
        ("ABCDABCD", 4),
    ] {
        assert_eq!(counted(&Writers::default(), "c", appends), expected, "{appends}");
    }
}

#[test]
fn the_writer_that_wrote_meanwhile_is_named() {
    let (writers, context) = (Writers::default(), context("c"));
    let wrote = |name| writers.wrote(&context, &writer(name), &mut WriterCheck::default());
    assert_eq!([wrote("a"), wrote("b"), wrote("c")], [None, None, None]);
    assert_eq!(wrote("a"), Some(writer("c")));
    assert_eq!(wrote("c"), Some(writer("a")));
}

#[test]
fn contexts_are_apart_even_in_one_slot() {
    let writers = Writers::default();
    let other = neighbours(1);
    let names = ["c", &other[0]];
    let mut seen = [WriterCheck::default(), WriterCheck::default()];
    for _ in 0..3 {
        for (name, seen) in names.into_iter().zip(&mut seen) {
            assert_eq!(writers.wrote(&context(name), &writer(name), seen), None);
        }
    }
    assert_eq!(counted(&writers, "c", "A"), 0);
    assert_eq!(writers.wrote(&context(names[1]), &writer(names[1]), &mut seen[1]), None);
    assert_eq!(writers.wrote(&context("c"), &writer("c"), &mut seen[0]), Some(writer("A")));
}

#[test]
fn a_stream_that_is_the_only_writer_takes_no_lock() {
    let (writers, context, mut seen) = (Writers::default(), context("c"), WriterCheck::default());
    writers.wrote(&context, &writer("a"), &mut seen);
    let held: Vec<_> = writers.slots.iter().map(|contexts| contexts.known.lock()).collect();
    for _ in 0..10 {
        assert_eq!(writers.wrote(&context, &writer("a"), &mut seen), None);
    }
    drop(held);
}

#[test]
fn contexts_are_bounded_and_what_was_forgotten_is_learned_again() {
    let writers = Writers::default();
    let slot = Slot::of(&context("c"));
    let names = neighbours(limits::WRITTEN_PER_SLOT);
    let mut stream = WriterCheck::default();
    assert_eq!(writers.wrote(&context("c"), &writer("a"), &mut stream), None);
    for name in &names {
        assert_eq!(counted(&writers, name, "ABA"), 1);
    }
    let known = |name: &str| {
        let known = writers.slots[usize::from(slot.number())].known.lock();
        (known.iter().any(|known| known.context.as_str() == name), known.len())
    };
    assert_eq!(known("c"), (false, limits::WRITTEN_PER_SLOT));
    assert_eq!(writers.wrote(&context("c"), &writer("a"), &mut stream), None);
    assert_eq!(known("c"), (true, limits::WRITTEN_PER_SLOT));
    assert_eq!(known(&names[0]), (false, limits::WRITTEN_PER_SLOT));
    assert_eq!(writers.wrote(&context("c"), &writer("b"), &mut WriterCheck::default()), None);
    assert_eq!(writers.wrote(&context("c"), &writer("a"), &mut stream), Some(writer("b")));
}

#[test]
fn a_context_is_reported_once_a_minute_and_so_many_contexts_at_most() {
    let (reports, begin) = (Reports::default(), Instant::now());
    let name = |number: usize| context(&number.to_string());
    for number in 0..limits::WRITER_REPORTS {
        assert!(reports.allow(&name(number), begin));
        assert!(!reports.allow(&name(number), begin + QUIET / 2));
    }
    let another = name(limits::WRITER_REPORTS);
    assert!(!reports.allow(&another, begin + QUIET / 2));
    assert!(reports.allow(&name(0), begin + QUIET));
    assert!(reports.allow(&another, begin + QUIET));
    assert_eq!(reports.0.lock().len(), 2);
}

#[test]
fn a_name_is_visible_ascii_of_bounded_length_and_is_passed_on() {
    let of = |value: &[u8]| {
        let mut metadata = tonic::metadata::MetadataMap::new();
        metadata.insert(METADATA, MetadataValue::try_from(value).unwrap());
        Writer::of(&metadata)
    };
    let longest = "x".repeat(limits::WRITER_NAME);
    for name in ["a", "engine-7/2f~!", &longest] {
        assert_eq!(of(name.as_bytes()), Some(writer(name)));
    }
    let too_long = "x".repeat(limits::WRITER_NAME + 1);
    for name in [b"".as_slice(), b" ", b"a b", b"a\tb", "\u{e9}".as_bytes(), b"\xff", too_long.as_bytes()] {
        assert_eq!(of(name), None, "{name:?}");
    }
    assert_eq!(Writer::of(&MetadataMap::new()), None);

    let mut metadata = MetadataMap::new();
    writer("a").write_to(&mut metadata);
    assert_eq!(Writer::of(&metadata), Some(writer("a")));
}
