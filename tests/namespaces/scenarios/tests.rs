//! The recipe: its help lists what there is, and it refuses what it does not understand.

use std::{
    env,
    process::{Command, Output},
};

use ledger_tests::repository;

fn recipe(arguments: &[&str]) -> Output {
    Command::new(repository().join(".ci/namespaces")).args(arguments).output().unwrap()
}

#[test]
fn the_help_of_the_recipe_lists_every_scenario() {
    let help = recipe(&["--help"]);
    assert!(help.status.success());
    let help = String::from_utf8(help.stdout).unwrap();
    let listed: Vec<_> = help.lines().filter_map(|line| line.strip_prefix("  ")?.split_once("  ")).collect();
    let tests = Command::new(env::current_exe().unwrap()).arg("--list").output().unwrap();
    let tests = String::from_utf8(tests.stdout).unwrap();
    let scenarios = tests.lines().filter_map(|line| line.strip_prefix("scenarios::")?.strip_suffix(": test"));
    let scenarios: Vec<_> = scenarios.filter(|name| !name.starts_with("tests::")).collect();
    assert!(scenarios.len() > 30, "{scenarios:?}");
    for scenario in scenarios {
        let name = scenario.rsplit("::").next().unwrap();
        let described = listed.iter().find(|(listed, _)| *listed == name).map(|(_, text)| text.trim());
        assert!(described.is_some_and(|text| text.ends_with('.')), "{name}: {described:?} in\n{help}");
    }
}

#[test]
fn the_recipe_refuses_what_it_does_not_understand() {
    for (arguments, said) in [
        (&["--rounds"][..], "--rounds needs a number"),
        (&["--rounds", "many"], "--rounds many: it must be a number"),
        (&["--seed", "-1"], "--seed -1: it must be a number"),
        (&["--other"], "--other needs the path of a ledgerd"),
        (&["--other", "/nowhere/ledgerd"], "/nowhere/ledgerd: it must be a program"),
        (&["--fast"], "--fast: there is no such flag"),
        (&["the_moon_is_cut_off"], "the_moon_is_cut_off: there is no such scenario"),
        (&["the_owner_is_killed", "a_disk_is_full"], "a_disk_is_full: it takes one scenario"),
    ] {
        let refused = recipe(arguments);
        let text = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(1) && text.contains(said), "{arguments:?}: {text}");
    }
}
