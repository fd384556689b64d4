//! Root, by being it or through sudo.

use anyhow::{Result, bail};
use std::process::{Command, Stdio};

/// True when this process is root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A command that runs `program` as root.
///
/// # Errors
/// When this is not root and there is no sudo.
pub fn as_root(program: &str) -> Result<Command> {
    if is_root() {
        return Ok(Command::new(program));
    }
    check()?;
    let mut command = Command::new("sudo");
    // Without a terminal nobody can type a password: fail instead of waiting.
    if !crate::steps::interactive() {
        command.arg("-n");
    }
    command.arg("--").arg(program);
    Ok(command)
}

/// Fails when root cannot be had.
pub fn check() -> Result<()> {
    let there = Command::new("sudo")
        .arg("-V")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if is_root() || there.is_ok_and(|status| status.success()) {
        return Ok(());
    }
    bail!("This needs root, and sudo is not installed; run it as root")
}

/// Lets sudo ask for the password now, on a line of its own, and not in the middle of a step.
pub fn warm_up() -> Result<()> {
    if !is_root() {
        let status = as_root("true")?.status()?;
        if !status.success() {
            bail!("sudo refuses; run this as root, or as a user who may use sudo");
        }
    }
    Ok(())
}
