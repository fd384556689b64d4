//! The controller: what networks, hosts and ports there shall be, and what each host has to know of them.
//!
//! A request goes through three layers, each without knowledge of the next:
//!
//! ```text
//! gRPC ── service/, auth ──▶ plan/ : (&State, request) → changes or a refusal     pure
//!                               │
//!                            store: applies, commits many requests with one fsync, answers
//!                               │
//!                            live: tells the sessions of the hosts concerned ──▶ sync: differences to agents
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`records`] | hosts, networks, ports and tokens as kept in memory |
//! | [`rows`] | the same as bytes in the store |
//! | [`state`] | all records with their indexes; a change is applied in one place |
//! | [`ranges`], [`mac`] | allocation of numbers, addresses and MACs |
//! | [`plan`] | validation: what a request changes, or why it is refused |
//! | [`store`] | redb and group commit |
//! | [`compile`] | the resources that one host needs |
//! | [`live`], [`sync`] | connected agents, what they reported, and their streams |
//! | [`views`] | records as API messages |
//! | [`service`], [`auth`], [`join`], [`listener`], [`server`] | the gRPC side |
//! | [`pki`] | the CA and certificates |
//! | [`config`], [`commands`] | the program |
#![forbid(unsafe_code)]

pub mod auth;
pub mod commands;
pub mod compile;
pub mod config;
pub mod join;
pub mod listener;
pub mod live;
pub mod mac;
pub mod pki;
pub mod plan;
pub mod ranges;
pub mod records;
pub mod refusal;
pub mod rows;
pub mod server;
pub mod service;
pub mod state;
pub mod store;
pub mod sync;
pub mod views;
