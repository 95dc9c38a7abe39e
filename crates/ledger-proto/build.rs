//! Compiles `proto/` with protox: no protoc on the machine.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;
use prost_types::{FileDescriptorSet, field_descriptor_proto::Type};

const FILES: [&str; 5] = [
    "converge/context/v1/context.proto",
    "converge/ledger/v1/ledger.proto",
    "converge/ledger/v1/integrity.proto",
    "converge/ledger/v1/cluster.proto",
    "converge/ledger/v1/replica.proto",
];

/// The messages in which a server sends entries that it has encoded already, or takes items that it decodes one by one,
/// and the field.
const ENCODED: [(&str, &str); 4] =
    [("WatchEvent", "entry"), ("Page", "entries"), ("WatchBatch", "entries"), ("AppendBatch", "items")];

fn main() -> Result<(), Box<dyn Error>> {
    // Relative to the crate: checkouts share a target directory, so no path may be compiled in.
    let root = "../../proto";
    println!("cargo:rerun-if-changed={root}");
    let descriptors = protox::compile(FILES, [root])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").btree_map(".").compile_fds(descriptors.clone())?;
    encoded_entries(descriptors, out.join("wire"))
}

/// Generates services whose messages hold entries as bytes: on the wire a message field and a bytes field are
/// the same (Protocol Buffers, "Encoding", length-delimited records).
fn encoded_entries(mut descriptors: FileDescriptorSet, out: PathBuf) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(&out)?;
    descriptors.file.retain(|file| FILES[..2].contains(&file.name()));
    let mut build = tonic_prost_build::configure().bytes(".").out_dir(out);
    for file in &mut descriptors.file {
        let package = file.package().to_owned();
        let module = package.strip_prefix("converge.").unwrap_or(&package).replace('.', "::");
        let mut known = |name: &str| {
            build = std::mem::replace(&mut build, tonic_prost_build::configure())
                .extern_path(format!(".{package}.{name}"), format!("crate::{module}::{name}"));
        };
        for message in &mut file.message_type {
            match ENCODED.iter().find(|(name, _)| *name == message.name()) {
                None => known(message.name()),
                Some((_, name)) => {
                    for field in message.field.iter_mut().filter(|field| field.name() == *name) {
                        field.set_type(Type::Bytes);
                        field.type_name = None;
                    }
                }
            }
        }
        file.enum_type.iter().for_each(|known_enum| known(known_enum.name()));
    }
    build.compile_fds(descriptors)?;
    Ok(())
}
