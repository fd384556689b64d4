//! `cargo xtask lab`: the emulated NIC machine, and the small guest of the tests, to look around in.

use crate::demo::{build, run_undisturbed};
use crate::steps::Steps;
use crate::{deps, paths, sudo};
use anyhow::Result;
use std::ffi::OsString;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  cargo xtask lab run -- ferrovia nic list
  cargo xtask lab run --pfs 1 -- sh -c 'echo 7 > /sys/class/net/eth0/device/sriov_numvfs; ferrovia nic list'
  cargo xtask lab run --get /tmp/out.txt:out.txt -- sh -c 'lspci -vv > /tmp/out.txt'
  cargo xtask lab run --flavour netdevsim -- sh -c 'echo \"1 4 1\" > /sys/bus/netdevsim/new_device; devlink port'
  cargo xtask lab shell --numa
  cargo xtask lab boot

The machine sees the host's files, read-only: what it writes stays in its memory and ends with it.
docs/lab.md says what it emulates.";

/// The programs that do it, of the package hw-tests.
const MACHINE: &str = "ferrovia-machine";
const GUEST: &str = "ferrovia-guest";

/// Options of `lab`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// A prompt inside the emulated NIC machine
    Shell {
        #[command(flatten)]
        shape: Shape,
    },
    /// Run one command inside: its output, its exit code, its files
    #[command(after_help = EXAMPLES)]
    Run {
        #[command(flatten)]
        shape: Shape,
        /// Copy a file or folder out afterwards, whatever the exit code; may be given several times
        #[arg(long, value_name = "INSIDE:OUTSIDE")]
        get: Vec<OsString>,
        /// Kill the command after so many seconds
        #[arg(long, value_name = "SECONDS")]
        limit: Option<u64>,
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Boot it a few times and say how long each stage took
    Boot {
        #[command(flatten)]
        shape: Shape,
        /// How many times
        #[arg(default_value_t = 3)]
        times: u32,
    },
    /// The small guest of the tests, without a NIC
    Guest {
        #[command(subcommand)]
        what: Guest,
    },
}

/// What the machine is made of. The program that boots it has the same options and judges their values.
#[derive(clap::Args)]
struct Shape {
    /// What it has: emulated Intel 82576 NICs (igb), or the kernel's netdevsim
    #[arg(long, default_value = "igb", value_parser = ["igb", "netdevsim"])]
    flavour: String,
    /// How many igb NICs (PFs), 1 to 16
    #[arg(long, default_value_t = 2, value_name = "N")]
    pfs: u8,
    /// MiB of memory
    #[arg(long, default_value_t = 1024, value_name = "MIB")]
    memory: u32,
    /// MiB of it in huge pages
    #[arg(long, default_value_t = 0, value_name = "MIB")]
    hugepages: u32,
    /// Virtual processors
    #[arg(long, default_value_t = 2, value_name = "N")]
    cpus: u8,
    /// Two NUMA nodes, each with half of the processors, memory and NICs
    #[arg(long)]
    numa: bool,
}

impl Shape {
    fn words(&self, what: &str) -> Vec<OsString> {
        let mut words = vec![
            what.into(),
            format!("--flavour={}", self.flavour).into(),
            format!("--pfs={}", self.pfs).into(),
            format!("--memory={}", self.memory).into(),
            format!("--hugepages={}", self.hugepages).into(),
            format!("--cpus={}", self.cpus).into(),
        ];
        if self.numa {
            words.push("--numa".into());
        }
        words
    }
}

#[derive(clap::Subcommand)]
enum Guest {
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
    let (program, root, words) = match &args.what {
        What::Shell { shape } => (MACHINE, true, shape.words("shell")),
        What::Run {
            shape,
            get,
            limit,
            command,
        } => {
            let mut words = shape.words("run");
            words.extend(get.iter().map(|get| assigned("--get", get)));
            words.extend(limit.map(|limit| format!("--limit={limit}").into()));
            words.push("--".into());
            words.extend(command.iter().cloned());
            (MACHINE, true, words)
        }
        What::Boot { shape, times } => {
            let mut words = shape.words("boot");
            words.push(times.to_string().into());
            (MACHINE, true, words)
        }
        What::Guest { what: Guest::Shell } => (GUEST, false, vec!["shell".into()]),
        What::Guest {
            what: Guest::Boot { guests },
        } => {
            let words = vec!["boot".into(), guests.to_string().into()];
            (GUEST, true, words)
        }
    };
    let mut steps = Steps::new();
    if !steps.work(
        "dependencies",
        "Fix what it says and try again.",
        deps::ensure,
    ) || !build(&mut steps)
    {
        return Ok(ExitCode::FAILURE);
    }
    let mut command = if root {
        sudo::warm_up()?;
        sudo::as_root("env")?
    } else {
        std::process::Command::new("env")
    };
    for name in ["CI", "NO_COLOR", "TERM", "RUST_BACKTRACE", "RUST_LOG"] {
        if let Some(value) = std::env::var_os(name) {
            command.arg(assigned(name, &value));
        }
    }
    command
        .arg(assigned("FERROVIA_LAB_CACHE", paths::cache().as_os_str()))
        .arg(paths::target().join("debug").join(program))
        .args(words);
    run_undisturbed(&mut command)
}

fn assigned(name: &str, value: &std::ffi::OsStr) -> OsString {
    let mut word = OsString::from(format!("{name}="));
    word.push(value);
    word
}
