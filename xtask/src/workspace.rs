//! What cargo knows about the workspace.

use crate::paths;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::process::Command;

/// cargo, in the repository's root.
pub fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(paths::root()).args(args);
    command
}

/// `cargo metadata`; with dependencies only where `deps` asks.
pub fn metadata(deps: bool) -> Result<Value> {
    let mut command = cargo(&["metadata", "--format-version", "1", "--locked"]);
    if !deps {
        command.arg("--no-deps");
    }
    let output = command.output().context("cargo could not be started")?;
    if !output.status.success() {
        bail!(
            "`cargo metadata` failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    serde_json::from_slice(&output.stdout).context("What `cargo metadata` printed is no JSON")
}

/// A target of a package.
pub struct Target {
    /// The package it is in.
    pub package: String,
    /// Its name.
    pub name: String,
    /// `lib`, `bin`, `test`, `example` …
    pub kind: String,
}

/// Every target of the workspace.
pub fn targets() -> Result<Vec<Target>> {
    let metadata = metadata(false)?;
    let mut all = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        for target in package["targets"].as_array().into_iter().flatten() {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            all.push(Target {
                package: text(&package["name"]),
                name: text(&target["name"]),
                kind: text(&target["kind"][0]),
            });
        }
    }
    Ok(all)
}
