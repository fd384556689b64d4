//! Compiles the protobuf definitions.
use std::io::{Error, ErrorKind};

fn main() -> Result<(), Error> {
    println!("cargo:rerun-if-changed=proto");
    tonic_prost_build::configure()
        .compile_protos(
            &[
                "proto/ferrovia/v1/controller.proto",
                "proto/ferrovia/v1/agent.proto",
                "proto/ferrovia/v1/sriov.proto",
                "proto/ferrovia/v1/xvio.proto",
            ],
            &["proto"],
        )
        .map_err(|error| match error.kind() {
            ErrorKind::NotFound => Error::new(
                ErrorKind::NotFound,
                "protoc is not installed; run `cargo xtask deps`, which installs Debian's protobuf-compiler",
            ),
            _ => error,
        })
}
