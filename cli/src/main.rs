//! The `ferrovia` command: virtual networks, ports, VMs, flows and NICs from a terminal.
//!
//! `args` says what can be typed, `commands/` does it, `output` prints it. Anything about networks,
//! ports and hosts goes to the controller; anything about what a host does right now (flows, counters,
//! drops) to the agent's unix socket; NICs are read from this machine directly.
#![forbid(unsafe_code)]

mod args;
mod commands;
mod connect;
mod failure;
mod libvirt;
mod output;
mod views;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args = args::Args::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: The asynchronous runtime cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(commands::run(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
