//! Faults of what a node stands on: its disk, its clock, its files.

pub(crate) mod clock;
pub(crate) mod damage;
pub(crate) mod power;
pub(crate) mod sync;

use std::path::{Path, PathBuf};

use crate::net::run;

/// Compiles a C source into a directory; an error says what is missing.
fn compile(source: &str, flags: &[&str], output: PathBuf) -> Result<PathBuf, String> {
    // The compiled file is named for its source, and the source lies beside it.
    let file = output.with_extension("c");
    std::fs::write(&file, source).map_err(|error| format!("{}: {error}", file.display()))?;
    let [file, made] = [&file, &output].map(|path| path.to_string_lossy().into_owned());
    let line = [&["-O2", "-Wall", "-Wextra", "-Werror", "-o", &made, &file], flags].concat();
    run("cc", &line).map_err(|why| format!("a C compiler is needed (package gcc): {why}"))?;
    Ok(output)
}

/// What a command needs in its environment so that a library is loaded into it.
fn preload(library: &Path) -> String {
    format!("LD_PRELOAD={}", library.display())
}
