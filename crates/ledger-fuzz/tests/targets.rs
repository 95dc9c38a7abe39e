//! Every target, for a fixed number of inputs.

use ledger_fuzz::{Budget, Outcome, Target, fuzz, targets};

#[test]
fn no_target_breaks() {
    for target in targets::ALL {
        let report = fuzz(target, Budget::Runs(3000), 1);
        assert!(report.finding.is_none(), "{}: {:?}", target.name, report.finding);
        assert_eq!(report.runs, 3000);
        assert!(report.outcomes > 8, "{}: only {} outcomes", target.name, report.outcomes);
    }
}

#[test]
fn every_target_has_a_name_and_seeds_of_its_own() {
    for target in targets::ALL {
        assert_eq!(targets::ALL.iter().filter(|other| other.name == target.name).count(), 1);
        assert!(!(target.seeds)().is_empty());
    }
}

#[test]
fn a_broken_target_is_found_and_one_seed_repeats_it() {
    let target = Target {
        name: "broken",
        seeds: || vec![b"a valid input".to_vec()],
        run: |input| {
            assert!(input.len() < 30, "too long");
            Outcome::of(&"*".repeat(input.len()))
        },
    };
    let [first, second] = [1, 1].map(|seed| fuzz(&target, Budget::Runs(100_000), seed).finding.unwrap());
    assert_eq!(first.what, "too long");
    assert_eq!(first.input, second.input);
}
