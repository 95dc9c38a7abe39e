//! What disks and people do to the files of a data directory.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use rand::{RngExt as _, rngs::SmallRng, seq::SliceRandom as _};

#[cfg(test)]
mod tests;

/// Files that are damaged at most at once.
const FILES: usize = 3;
/// What names of files begin with that no node reads: locks, RocksDB's log for people, space that is kept.
const UNREAD: [&str; 3] = ["LOCK", "LOG", "RESERVE"];

/// What happens to files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Damage {
    /// Some bits are not what was written.
    Flipped,
    /// Files end early.
    Truncated,
    /// Files have in them what they had some time before, or what an older one of their kind had.
    Older,
    /// Files are gone.
    Deleted,
}

/// Damages a few files of a data directory, in place, so that a process that has them open meets it too. `older` is a copy
/// of the directory. Says what was done; nothing only if the directory is empty.
pub(crate) fn damage(kind: Damage, data: &Path, older: &Path, random: &mut SmallRng) -> Vec<String> {
    let mut files = files(data);
    let is_unread = |name: &str| UNREAD.iter().any(|unread| name.starts_with(unread));
    files.retain(|file| {
        size(file) > 0 && !file.file_name().is_some_and(|name| is_unread(&name.to_string_lossy()))
    });
    files.shuffle(random);
    let count = random.random_range(1..=FILES);
    files
        .iter()
        .filter_map(|file| spoil(kind, file, older_than(file, data, older), random))
        .take(count)
        .collect()
}

/// What a file had in it before, if it is something else than now: the file of that name in the copy, or else one of its kind.
fn older_than(file: &Path, data: &Path, copy: &Path) -> Option<Vec<u8>> {
    let same = in_copy(file, data, copy);
    let now = fs::read(file).ok()?;
    let mut others = files(same.parent()?)
        .into_iter()
        .filter(|other| other.extension().is_some() && other.extension() == file.extension());
    let read = |path: PathBuf| fs::read(path).ok().filter(|bytes| *bytes != now);
    if same.exists() { read(same) } else { others.find_map(read) }
}

fn in_copy(file: &Path, data: &Path, copy: &Path) -> PathBuf {
    copy.join(file.strip_prefix(data).unwrap())
}

/// Damages one file; nothing if it is gone by now: the node removes files too.
fn spoil(kind: Damage, path: &Path, older: Option<Vec<u8>>, random: &mut SmallRng) -> Option<String> {
    let name = path.file_name()?.to_string_lossy().into_owned();
    let size = size(path);
    let file = File::options().read(true).write(true).open(path).ok()?;
    match kind {
        Damage::Flipped => {
            let at = random.random_range(0..size);
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).ok()?;
            byte[0] ^= 1 << random.random_range(0..8);
            file.write_all_at(&byte, at).ok()?;
            Some(format!("byte {at} of {size} of {name} flipped"))
        }
        Damage::Truncated => {
            let left = random.random_range(0..size);
            file.set_len(left).ok()?;
            Some(format!("{name} cut from {size} to {left}"))
        }
        Damage::Older => {
            let older = older?;
            file.set_len(0).ok()?;
            file.write_all_at(&older, 0).ok()?;
            Some(format!("{name} of {size} swapped for an older one of {}", older.len()))
        }
        Damage::Deleted => {
            fs::remove_file(path).ok()?;
            Some(format!("{name} of {size} deleted"))
        }
    }
}

/// All files of a directory and of those in it, in order.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn size(file: &Path) -> u64 {
    fs::metadata(file).map_or(0, |metadata| metadata.len())
}

/// Copies a data directory that nobody writes.
pub(crate) fn copy_all(from: &Path, to: &Path) {
    for file in files(from) {
        let target = in_copy(&file, from, to);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(file, target).unwrap();
    }
}
