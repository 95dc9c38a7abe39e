//! Compiles the echo service.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Relative to the crate: checkouts share a target directory, so no path may be compiled in.
    let root = "proto";
    println!("cargo:rerun-if-changed={root}");
    let descriptors = protox::compile(["echo.proto"], [root])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
