//! The protobuf API shared by the agent, the controller and the CLI.
//!
//! The definitions are in `proto/ferrovia/v1/`; their comments are the reference.
#![forbid(unsafe_code)]

/// Version 1 of the API, as generated from `proto/ferrovia/v1/`.
#[allow(missing_docs, clippy::all, rustdoc::all)]
pub mod v1 {
    tonic::include_proto!("ferrovia.v1");
}
