//! `cargo xtask`: everything one does with this repository that is not plain cargo.
//!
//! `deps` installs what Debian must provide, `demo` shows the product on real guests, `test` runs all tests
//! as CI does, `lint` checks the source, `lab` boots the emulated NIC machine and the guest of the tests, `bench` measures, `fuzz` runs
//! the fuzz targets. Each command is a file here; `steps` runs the steps that they are made of.

mod apt;
mod bench;
mod demo;
mod deps;
mod fuzz;
mod kernel;
mod lab;
mod licences;
mod lint;
mod netdevsim;
mod paths;
mod rules;
mod steps;
mod sudo;
mod test;
mod workspace;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "What one does with this repository"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what the build, the tests and the demo need from Debian
    Deps(deps::Args),
    /// Show it: a controller, two hosts, three virtual machines
    Demo(demo::Args),
    /// Run every test, as CI does
    Test(test::Args),
    /// Check format, lints, licences and the house rules
    Lint,
    /// Boot the emulated NIC machine: a prompt in it, or one command
    Lab(lab::Args),
    /// Measure
    Bench(bench::Args),
    /// Run the fuzz targets
    Fuzz(fuzz::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Deps(args) => deps::command(&args),
        Command::Demo(args) => demo::command(&args),
        Command::Test(args) => test::command(&args),
        Command::Lint => lint::command(),
        Command::Lab(args) => lab::command(&args),
        Command::Bench(args) => bench::command(&args),
        Command::Fuzz(args) => fuzz::command(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
