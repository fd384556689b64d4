//! A machine under QEMU, booted for this run, as a target.

use super::link::{Done, Link, LinkError, quoted};
use crate::lab::inventory::{self, Emulated};
use crate::machine::{Flavour, Machine, MachineConfig, Start};
use anyhow::{Context, Result};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A running machine.
#[derive(Debug)]
pub struct EmulatedLink {
    /// None once it was closed.
    machine: Mutex<Option<Arc<Machine>>>,
    about: String,
}

impl EmulatedLink {
    /// Boots it. `dir` is a folder of this machine for its files.
    ///
    /// # Errors
    /// When it is not up within `limit`.
    pub fn boot(spec: &Emulated, dir: &Path, limit: Duration) -> Result<EmulatedLink> {
        let config = MachineConfig {
            flavour: match spec.flavour {
                inventory::Flavour::Igb { pfs } => Flavour::Igb { pfs },
                inventory::Flavour::Netdevsim => Flavour::Netdevsim,
            },
            memory_mb: spec.memory_mb,
            cpus: u8::try_from(spec.cpus).unwrap_or(u8::MAX),
            boot_limit: limit,
            ..MachineConfig::default()
        };
        let machine = Machine::boot(&dir.join("machine"), &config)
            .context("The emulated machine did not boot")?;
        let about = format!(
            "QEMU with {}, by {}",
            machine.facts().flavour,
            machine.facts().accel
        );
        Ok(EmulatedLink {
            machine: Mutex::new(Some(Arc::new(machine))),
            about,
        })
    }

    fn machine(&self) -> Result<Arc<Machine>, LinkError> {
        let machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
        machine
            .clone()
            .ok_or_else(|| LinkError::Broken("The emulated machine was ended".into()))
    }
}

fn broken(error: anyhow::Error) -> LinkError {
    LinkError::Broken(format!("{error:#}"))
}

impl Link for EmulatedLink {
    fn run(&self, argv: &[String], limit: Duration) -> Result<Done, LinkError> {
        let machine = self.machine()?;
        let running = machine
            .start(&Start {
                argv: argv.to_vec(),
                limit_ms: Some(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)),
                ..Start::default()
            })
            .map_err(broken)?;
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let ended = running
            .wait(|is_error, bytes| {
                crate::command::keep(if is_error { &mut err } else { &mut out }, bytes);
            })
            .map_err(broken)?;
        if let Some(why) = ended.failed {
            return Err(LinkError::Broken(format!(
                "`{}` could not be started inside the machine: {why}",
                quoted(argv)
            )));
        }
        if ended.over_limit || ended.stuck.is_some() {
            return Err(LinkError::Hung {
                command: quoted(argv),
                limit,
            });
        }
        Ok(Done {
            code: ended.code,
            stdout: String::from_utf8_lossy(&out).into_owned(),
            stderr: String::from_utf8_lossy(&err).into_owned(),
        })
    }

    fn put(&self, from: &Path, to: &str, _limit: Duration) -> Result<(), LinkError> {
        let content = std::fs::read(from).map_err(|e| {
            LinkError::Broken(format!("\"{}\" cannot be read: {e}", from.display()))
        })?;
        self.machine()?
            .write_file(Path::new(to), &content)
            .map_err(broken)
    }

    fn get(&self, from: &str, to: &Path, _limit: Duration) -> Result<(), LinkError> {
        self.machine()?
            .copy_out(Path::new(from), to)
            .map_err(broken)
    }

    fn machine(&self) -> String {
        self.about.clone()
    }

    fn last_words(&self) -> String {
        self.machine()
            .map_or_else(|_| String::new(), |machine| machine.console_tail())
    }

    fn close(&self) {
        let machine = self
            .machine
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop(machine);
    }
}
