//! `cargo xtask lab`: the guest of the tests, to look around in.

use crate::demo::run_undisturbed;
use crate::steps::Steps;
use crate::{deps, paths, workspace};
use anyhow::Result;
use std::process::{Command, ExitCode};

/// Options of `lab`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Boot the guest and give a prompt inside; `poweroff -f` or Ctrl-A X leaves it
    Shell,
    /// Boot several guests at once through libvirt and say how long each took
    Boot {
        /// How many
        #[arg(default_value_t = 3)]
        guests: u32,
    },
}

/// Runs the command.
pub fn command(args: &Args) -> Result<ExitCode> {
    let mut steps = Steps::new();
    let mut build = workspace::cargo(&["build", "--locked", "--workspace", "--bins"]);
    if !steps.work(
        "dependencies",
        "Fix what it says and try again.",
        deps::ensure,
    ) || !steps.run(
        "build",
        "The compiler's message says what is wrong.",
        &mut build,
        |_| String::new(),
    ) {
        return Ok(ExitCode::FAILURE);
    }
    let program = paths::target().join("debug/ferrovia-guest");
    let mut command = match args.what {
        What::Shell => Command::new(&program),
        What::Boot { .. } => {
            crate::sudo::warm_up()?;
            let mut command = crate::sudo::as_root("env")?;
            command
                .arg(format!("FERROVIA_LAB_CACHE={}", paths::cache().display()))
                .arg(&program);
            command
        }
    };
    command.env("FERROVIA_LAB_CACHE", paths::cache());
    match args.what {
        What::Shell => command.arg("shell"),
        What::Boot { guests } => command.arg("boot").arg(guests.to_string()),
    };
    run_undisturbed(&mut command)
}
