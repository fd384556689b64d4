//! Doing what was typed: one file for each kind of object.

mod agent;
mod host;
mod network;
mod nic;
mod port;
mod token;
mod vf;
mod vm;
mod xvio;

use crate::args::{Args, Command};
use crate::failure::Failure;
use clap::CommandFactory;

/// Items a list call asks for at once; the most that the API gives.
const PAGE: u32 = 1000;

/// Runs one command.
pub async fn run(args: Args) -> Result<(), Failure> {
    let Args { global, command } = args;
    match command {
        Command::Host(command) => host::run(&global, command).await,
        Command::Network(command) => network::run(&global, command).await,
        Command::Port(command) => port::run(&global, command).await,
        Command::Vm(command) => vm::run(&global, command).await,
        Command::Flow(command) => agent::flow(&global, command).await,
        Command::Counters => agent::counters(&global).await,
        Command::Drops => agent::drops(&global).await,
        Command::Status => agent::status(&global).await,
        Command::Nic(command) => nic::run(&global, command).await,
        Command::Vf(command) => vf::run(&global, command).await,
        Command::Xvio(command) => xvio::run(&global, command).await,
        Command::VfioCheck => Ok(sriov_mgr::vfio::serve_check()?),
        Command::Token(command) => token::run(&global, command).await,
        Command::Login { token } => token::login(&global, &token).await,
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "ferrovia", &mut script);
            crate::output::print(String::from_utf8_lossy(&script).trim_end())
        }
    }
}
