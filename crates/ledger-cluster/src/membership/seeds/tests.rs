use super::*;

fn at(last: u8) -> SocketAddr {
    ([10, 0, 0, last], 7946).into()
}

fn resolver() -> Resolver {
    Resolver::new(&Seeds::parse(&["ledger:7946"]).unwrap(), at(9))
}

#[test]
fn seeds_are_sorted_into_addresses_and_names() {
    let seeds = Seeds::parse(&["10.0.0.1:7946", " ledger-0.ledger:7946 ", "[fd00::1]:7946"]).unwrap();
    assert_eq!(seeds.addresses().count(), 2);
    assert_eq!(seeds.names.iter().collect::<Vec<_>>(), ["ledger-0.ledger:7946"]);
    assert!(seeds.has_names());
}

#[test]
fn a_bad_seed_is_shown_in_the_error() {
    let long = format!("{}:1", "x".repeat(254));
    for bad in [
        "",
        "ledger",
        "ledger:",
        "ledger:0",
        "10.0.0.1:0",
        "10.0.0.1",
        ":7946",
        "a b:1",
        "http://x:1",
        "fd00::1:x",
        &long,
    ] {
        let error = Seeds::parse(&[bad]).unwrap_err();
        assert!(matches!(&error, SeedError::NotHostPort { seed } if seed == bad), "{bad}: {error}");
    }
    let error = Seeds::parse(&["x:1"; MAX_SEEDS + 1]).unwrap_err();
    assert_eq!(error, SeedError::TooMany { count: 65 });
}

#[test]
fn a_failing_name_is_news_once_per_change_and_keeps_its_addresses() {
    let mut resolver = resolver();
    let failed = || Err("no such name".to_owned());
    assert_eq!(resolver.note("ledger:7946", failed()), Some(News::Failed("no such name".into())));
    assert_eq!(resolver.note("ledger:7946", failed()), None);
    assert_eq!(resolver.note("ledger:7946", Ok(vec![at(1), at(2)])), Some(News::Found));
    assert_eq!(resolver.note("ledger:7946", Ok(vec![at(2), at(1)])), None);
    assert!(matches!(resolver.note("ledger:7946", failed()), Some(News::Failed(_))));
    assert_eq!(resolver.names["ledger:7946"].addresses.len(), 2);
    assert_eq!(resolver.note("ledger:7946", failed()), None);
    assert_eq!(resolver.note("ledger:7946", Ok(vec![at(1), at(2)])), Some(News::Found));
}

#[test]
fn addresses_out_of_reach_or_beyond_the_bound_are_left_out() {
    let mut resolver = resolver();
    assert!(matches!(
        resolver.note("ledger:7946", Ok(vec!["[::1]:1".parse().unwrap()])),
        Some(News::Failed(_))
    ));
    resolver.note("ledger:7946", Ok((0..=255).map(at).collect()));
    assert_eq!(resolver.names["ledger:7946"].addresses.len(), MAX_ADDRESSES);
    assert_eq!(resolver.note("another:1", Ok(vec![at(1)])), None);
}

#[tokio::test]
async fn a_name_resolves_to_the_addresses_its_host_has() {
    let mut resolver = Resolver::new(&Seeds::parse(&["localhost:7946"]).unwrap(), at(9));
    assert_eq!(resolver.resolve().await, HashSet::from([([127, 0, 0, 1], 7946).into()]));
}
