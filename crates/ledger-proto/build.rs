//! Compiles `proto/` with protox: no protoc on the machine.

use std::{error::Error, path::Path};

const FILES: [&str; 4] = [
    "converge/context/v1/context.proto",
    "converge/ledger/v1/ledger.proto",
    "converge/ledger/v1/integrity.proto",
    "converge/ledger/v1/cluster.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let descriptors = protox::compile(FILES, [&root])?;
    let out = std::env::var("OUT_DIR")?;
    std::fs::write(Path::new(&out).join("descriptors.bin"), prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure().bytes(".").btree_map(".").compile_fds(descriptors)?;
    Ok(())
}
