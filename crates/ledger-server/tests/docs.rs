//! What the documentation lists is what there is: keys with their defaults, metrics, exit codes, commands, files that links name.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use ledger_server::Config;

/// Names in the documentation that begin as a metric does, and are crates.
const CRATES: [&str; 3] = ["ledger_cluster", "ledger_core", "ledger_server"];

/// Tests run in the folder of their crate.
fn root() -> PathBuf {
    Path::new("../..").to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A chapter of a page: from its heading to the next one of the same rank.
fn chapter<'a>(page: &'a str, heading: &str) -> &'a str {
    let start = page.find(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no heading `{heading}`")) + 1;
    let rest = &page[start + heading.len()..];
    let rank = heading.chars().take_while(|c| *c == '#').count();
    let next = format!("\n{} ", "#".repeat(rank));
    &rest[..rest.find(&next).unwrap_or(rest.len())]
}

/// The cells of the rows of tables, trimmed. An escaped bar is part of a cell.
fn rows(text: &str) -> Vec<Vec<String>> {
    let rows = text.lines().filter_map(|line| line.strip_prefix('|')?.strip_suffix('|'));
    let cells = |row: &str| -> Vec<String> {
        row.replace("\\|", "\u{0}").split('|').map(|cell| cell.trim().replace('\u{0}', "|")).collect()
    };
    rows.map(cells).collect()
}

/// What stands between backticks.
fn quoted(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The words of a text that begin so.
fn names(text: &str, prefix: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let words = text.split(|c: char| !is_part(c) && !c.is_ascii_uppercase());
    words.filter(|word| word.starts_with(prefix)).map(str::to_owned).collect()
}

/// String literals of a source that begin with `ledger_`, and whether a text follows at once that describes it.
fn metrics_in(source: &str) -> BTreeMap<String, bool> {
    let mut found = BTreeMap::new();
    for part in source.split("\"ledger_").skip(1) {
        let Some((name, rest)) = part.split_once('"') else { continue };
        if !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') {
            continue;
        }
        let is_described = rest.strip_prefix(',').is_some_and(|rest| rest.trim_start().starts_with('"'));
        *found.entry(format!("ledger_{name}")).or_default() |= is_described;
    }
    found
}

#[test]
fn every_key_is_documented_with_its_default() {
    let defaults = toml::Table::try_from(Config::default()).unwrap();
    let page = read("docs/operations.md");
    let mut documented = BTreeSet::new();
    for row in rows(chapter(&page, "## Configuration")) {
        let keys = quoted(&row[0]);
        let default = quoted(&row[1]);
        for (at, key) in keys.iter().enumerate() {
            assert!(documented.insert(key.clone()), "{key} is documented twice");
            let Some(value) = defaults.get(key) else { continue };
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            // Of the machine, not of the program.
            if key == "memory" {
                continue;
            }
            let is_same = if row[1].contains("part") {
                default.contains(&value)
            } else {
                default.get(at).is_some_and(|text| *text == value)
            };
            assert!(is_same, "{key} is {value} unless it is set, and {} in docs/operations.md", row[1]);
        }
    }
    // That the example has all of them is tested elsewhere.
    let example = read("deploy/ledgerd.example.toml");
    let settings = example.lines().filter_map(|line| line.strip_prefix('#')?.split_once(" = "));
    let keys: BTreeSet<String> =
        settings.map(|(key, _)| key.to_owned()).filter(|key| !key.contains(' ')).collect();
    assert_eq!(documented, keys, "in docs/operations.md, and in deploy/ledgerd.example.toml");
}

#[test]
fn metrics_that_are_documented_exist_and_the_others_describe_themselves() {
    let mut known = BTreeMap::<String, bool>::new();
    for source in [
        include_str!("../src/metrics.rs"),
        include_str!("../src/metrics/descriptions.rs"),
        include_str!("../src/http/cluster_metrics.rs"),
    ] {
        for (name, is_described) in metrics_in(source) {
            *known.entry(name).or_default() |= is_described;
        }
    }
    assert!(known.len() > 60, "the sources are read: {known:?}");
    let mut documented = BTreeSet::new();
    for page in ["docs/operations.md", "docs/cluster.md"] {
        documented.extend(names(&read(page), "ledger_"));
    }
    for name in CRATES {
        documented.remove(name);
    }
    for name in &documented {
        assert!(known.contains_key(name), "the documentation has {name}, which is no metric");
    }
    for (name, is_described) in &known {
        assert!(
            *is_described || documented.contains(name),
            "{name} neither describes itself nor is in docs/operations.md"
        );
    }
}

#[test]
fn exit_codes_are_documented() {
    let page = read("docs/operations.md");
    let codes = |heading: &str| -> BTreeMap<String, Vec<String>> {
        let rows = rows(chapter(&page, heading)).into_iter();
        rows.filter(|row| row[0].parse::<u8>().is_ok()).map(|row| (row[0].clone(), quoted(&row[1]))).collect()
    };

    let source = include_str!("../src/settings/args.rs");
    let constants = source.lines().filter_map(|line| line.strip_prefix("pub const EXIT_")?.split_once(" = "));
    let known: BTreeSet<String> = constants.map(|(_, code)| code.trim_end_matches(';').to_owned()).collect();
    assert!(known.len() > 6, "the source is read: {known:?}");
    let documented = codes("## Start, stop, exit codes");
    assert_eq!(documented.keys().cloned().collect::<BTreeSet<_>>(), known, "of ledgerd");

    // Pairs as `(7, "absent")`, and the one of usage.
    let source = read("crates/ledger-cli/src/exit.rs");
    let mut known = BTreeSet::from([("2".to_owned(), "usage".to_owned())]);
    assert!(source.contains("\"usage\", 2"), "the code of usage is 2");
    for part in source.split('(') {
        let Some((code, rest)) = part.split_once(", \"") else { continue };
        if let (Ok(_), Some((kind, _))) = (code.parse::<u8>(), rest.split_once("\")")) {
            known.insert((code.to_owned(), kind.to_owned()));
        }
    }
    assert!(known.len() > 12, "the source is read: {known:?}");
    let documented = codes("### ledgerctl in scripts");
    let pairs = documented
        .iter()
        .flat_map(|(code, kinds)| kinds.iter().map(move |kind| (code.clone(), kind.clone())));
    assert_eq!(pairs.collect::<BTreeSet<_>>(), known, "of ledgerctl");
}

/// The names of a command line's commands: variants of an enumeration, as clap writes them.
fn commands(source: &str, name: &str) -> Vec<String> {
    let (_, rest) = source.split_once(&format!("enum {name} {{\n")).unwrap_or_else(|| panic!("no {name}"));
    let (body, _) = rest.split_once("\n}").unwrap();
    let variants = body.lines().filter_map(|line| line.strip_prefix("    "));
    let variants = variants.filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()));
    let word = |line: &str| -> String { line.chars().take_while(char::is_ascii_alphanumeric).collect() };
    let kebab = |word: String| {
        let mut text = String::new();
        for c in word.chars() {
            if c.is_ascii_uppercase() && !text.is_empty() {
                text.push('-');
            }
            text.push(c.to_ascii_lowercase());
        }
        text
    };
    variants.map(word).map(kebab).collect()
}

#[test]
fn every_command_of_ledgerctl_is_documented() {
    let page = read("docs/operations.md");
    for (file, of, before) in [
        ("crates/ledger-cli/src/args.rs", "Command", "ledgerctl"),
        ("crates/ledger-cli/src/args/cluster.rs", "Cluster", "ledgerctl cluster"),
    ] {
        let commands = commands(&read(file), of);
        assert!(commands.len() > 6, "{file} is read: {commands:?}");
        for command in commands {
            assert!(page.contains(&format!("{before} {command}")), "`{before} {command}`");
        }
    }
}

/// A heading as a link names it.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

/// The headings of a page, as links name them.
fn anchors(page: &str) -> Vec<String> {
    let headings = page.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#'));
    headings.filter_map(|heading| heading.strip_prefix(' ')).map(anchor).collect()
}

#[test]
fn links_lead_somewhere() {
    let mut pages = vec![root().join("README.md"), root().join("CHANGELOG.md")];
    for dir in ["docs", "docs/adr"] {
        let files = fs::read_dir(root().join(dir)).unwrap().map(|file| file.unwrap().path());
        pages.extend(files.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    }
    let mut seen = 0;
    for path in pages {
        let page = fs::read_to_string(&path).unwrap();
        for part in page.split("](").skip(1) {
            let Some((link, _)) = part.split_once(')') else { continue };
            // Code may look like a link.
            if link.contains("://") || link.contains(char::is_whitespace) {
                continue;
            }
            seen += 1;
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: there is no {link}", path.display());
            if !heading.is_empty() {
                let found = anchors(&fs::read_to_string(&target).unwrap());
                assert!(found.iter().any(|found| found == heading), "{}: no heading {link}", path.display());
            }
        }
    }
    assert!(seen > 30, "links are found: {seen}");
}
