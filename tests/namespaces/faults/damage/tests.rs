//! Each kind of damage does what it says, and only to the directory that it is meant for.

use std::collections::BTreeMap;

use rand::SeedableRng as _;
use tempfile::TempDir;

use super::*;

fn write(dir: &Path, text: &str) {
    fs::create_dir_all(dir.join("db")).unwrap();
    for number in 0..5 {
        fs::write(dir.join(format!("db/00000{number}.sst")), format!("{text} {number}").repeat(20)).unwrap();
    }
    fs::write(dir.join("LOCK"), "").unwrap();
}

fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let name = |file: &Path| file.strip_prefix(dir).unwrap().to_owned();
    files(dir).into_iter().map(|file| (name(&file), fs::read(&file).unwrap())).collect()
}

#[test]
fn each_kind_of_damage_does_what_it_says() {
    for (seed, kind) in
        (1..).zip([Damage::Flipped, Damage::Truncated, Damage::Older, Damage::Deleted].repeat(5))
    {
        let (data, older) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        write(data.path(), "before");
        copy_all(data.path(), older.path());
        write(data.path(), "meanwhile");
        let (before, good) = (contents(older.path()), contents(data.path()));
        let done = damage(kind, data.path(), older.path(), &mut SmallRng::seed_from_u64(seed));
        let bad = contents(data.path());
        assert_eq!(contents(older.path()), before, "the copy stays as it is");
        let changed: Vec<_> = good.keys().filter(|file| good.get(*file) != bad.get(*file)).collect();
        assert!(!done.is_empty() && done.len() == changed.len(), "{done:?}: {changed:?}");
        for file in changed {
            let (good, bad) = (&good[file], bad.get(file));
            let is_as_said = match kind {
                Damage::Flipped => {
                    let differ =
                        |bad: &Vec<u8>| bad.iter().zip(good).filter(|(bad, good)| bad != good).count();
                    bad.is_some_and(|bad| bad.len() == good.len() && differ(bad) == 1)
                }
                Damage::Truncated => bad.is_some_and(|bad| good.starts_with(bad) && bad.len() < good.len()),
                Damage::Older => bad == before.get(file),
                Damage::Deleted => bad.is_none(),
            };
            assert!(is_as_said, "{kind:?} of {}: {done:?}", file.display());
        }
    }
}
