//! Runs on a target of the lab, for tests whose steps are too many for a command each: see
//! [`hw_tests::sriov_inside`].

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use hw_tests::sriov_inside::clients;
use hw_tests::sriov_inside::sweep::{Bench, HELPER, ONCE, Operation};
use sriov_mgr::Device;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// The part of the lab's SR-IOV tests that runs on the target.
#[derive(Parser)]
#[command(name = "ferrovia-lab-vfs")]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Changes NICs for the manager: requests on standard input, answers on standard output
    #[command(name = HELPER)]
    Helper,
    /// Does one operation; FERROVIA_CRASH_AT may kill it
    #[command(name = ONCE)]
    Once {
        /// Folder of the journal
        dir: PathBuf,
        /// Device of the PF
        pf: Device,
        /// What
        operation: Operation,
    },
    /// Kills operations after each journal record, and looks what the next start makes of it
    Sweep {
        /// Folder of the journal
        dir: PathBuf,
        /// Device of the PF
        pf: Device,
        /// What
        #[arg(required = true)]
        operations: Vec<Operation>,
    },
    /// Clients that allocate and release at the same time
    Clients {
        /// The agent's socket
        socket: PathBuf,
        /// How many
        count: usize,
        /// For how many seconds
        seconds: u64,
    },
}

fn main() -> ExitCode {
    match act(Args::parse().what) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ferrovia-lab-vfs: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn act(what: What) -> Result<()> {
    match what {
        What::Helper => sriov_mgr::helper::serve(std::io::stdin().lock(), std::io::stdout().lock())
            .context("The manager is gone"),
        What::Once { dir, pf, operation } => Bench::new(&dir, pf).once(operation),
        What::Sweep {
            dir,
            pf,
            operations,
        } => {
            let bench = Bench::new(&dir, pf);
            for operation in operations {
                let deaths = bench.sweep(operation, &|death| {
                    let death = serde_json::to_string(death).unwrap_or_default();
                    println!("{operation:?} {death}");
                })?;
                println!("{operation:?} deaths {deaths}");
            }
            Ok(())
        }
        What::Clients {
            socket,
            count,
            seconds,
        } => {
            let report = clients::run(&socket, count, Duration::from_secs(seconds))?;
            println!("{}", serde_json::to_string(&report)?);
            Ok(())
        }
    }
}
