//! Power cuts: a file system of a node's own, in a file, that is shut down without flushing its log.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use ledger_tests::until;

use super::compile;
use crate::net::run;

/// Bytes of a volume; XFS takes no less than 300 MiB.
const SIZE: u64 = 384 << 20;

/// A file system that can lose its power.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileSystem {
    Ext4,
    Xfs,
}

/// A mounted file system. Whoever mounts it unmounts it.
#[derive(Debug)]
pub(crate) struct Volume {
    image: PathBuf,
    place: PathBuf,
    /// The program that shuts it down.
    cutter: PathBuf,
}

impl Volume {
    /// Makes a file system in a file of a directory, and mounts it at a place.
    ///
    /// # Errors
    /// In words, if a program or the kernel's file system is missing, or this process may not mount.
    pub(crate) fn mount(kind: FileSystem, dir: &Path, place: PathBuf) -> Result<Self, String> {
        let (make, flags, package) = match kind {
            FileSystem::Ext4 => ("mkfs.ext4", ["-q", "-F"], "e2fsprogs"),
            FileSystem::Xfs => ("mkfs.xfs", ["-q", "-f"], "xfsprogs"),
        };
        let cutter = compile(include_str!("power_cut.c"), &[], dir.join("power_cut"))?;
        let volume = Self { image: dir.join("volume"), place, cutter };
        File::create(&volume.image).and_then(|file| file.set_len(SIZE)).map_err(|error| error.to_string())?;
        let image = volume.image.to_string_lossy();
        run(make, &[flags[0], flags[1], &image]).map_err(|why| format!("{why} (package {package})"))?;
        volume.attach()?;
        Ok(volume)
    }

    fn attach(&self) -> Result<(), String> {
        run("mount", &["-o", "loop", &self.image.to_string_lossy(), &self.place.to_string_lossy()])?;
        Ok(())
    }

    /// The power goes: nothing more reaches the disk, and what was not synced is lost.
    pub(crate) fn cut(&self) {
        run(&self.cutter.to_string_lossy(), &[&self.place.to_string_lossy()]).unwrap();
    }

    /// The power is back, and the file system is mounted again. No process may use it.
    pub(crate) fn restore(&self) {
        // The kernel may still be closing files of the process that was killed.
        until("the volume is unmounted", || run("umount", &[&self.place.to_string_lossy()]).ok());
        self.attach().unwrap();
    }
}
