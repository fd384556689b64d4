//! The protobuf API shared by the agent, the controller and the CLI, and what a client of it needs.
//!
//! | module | holds |
//! |---|---|
//! | [`v1`] | the generated messages, clients and servers; the comments in `proto/ferrovia/v1/` are the reference |
//! | [`client`] | connecting: plain TCP, mutual TLS, unix socket |
//! | [`identity`] | the key, certificate and CA that a program keeps, and how it gets them with a token |
//! | [`token`] | the text form of a join token |
#![forbid(unsafe_code)]

pub mod client;
pub mod identity;
pub mod token;

/// Version 1 of the API, as generated from `proto/ferrovia/v1/`.
#[allow(missing_docs, clippy::all, rustdoc::all)]
pub mod v1 {
    tonic::include_proto!("ferrovia.v1");
}

/// Where the controller listens, and where clients look for it, unless told otherwise.
pub const DEFAULT_CONTROLLER: &str = "127.0.0.1:6640";
