//! The emulated NIC machine, by itself: one command in it, a prompt in it, or how long its boot takes.

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand, ValueEnum};
use hw_tests::cleanup;
use hw_tests::machine::{Flavour, Machine, MachineConfig, Start};
use hw_tests::run::Run;
use nix::sys::termios::{self, SetArg};
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// The emulated NIC machine.
#[derive(Parser)]
#[command(name = "ferrovia-machine")]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Args)]
struct Shape {
    /// What the machine has: emulated Intel 82576 NICs, or the kernel's netdevsim
    #[arg(long, value_enum, default_value_t = Kind::Igb)]
    flavour: Kind,
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

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Igb,
    Netdevsim,
}

#[derive(Subcommand)]
enum What {
    /// A prompt inside
    Shell {
        #[command(flatten)]
        shape: Shape,
    },
    /// Runs one command inside and ends with its exit code
    Run {
        #[command(flatten)]
        shape: Shape,
        /// Copy a file or folder out afterwards, whatever the exit code
        #[arg(long, value_name = "INSIDE:OUTSIDE")]
        get: Vec<String>,
        /// Seconds after which the command is killed
        #[arg(long, value_name = "SECONDS")]
        limit: Option<u64>,
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Boots it a few times and says how long each stage took
    Boot {
        #[command(flatten)]
        shape: Shape,
        /// How many times
        #[arg(default_value_t = 3)]
        times: u32,
    },
}

impl Shape {
    fn config(&self) -> Result<MachineConfig> {
        Ok(MachineConfig {
            flavour: match self.flavour {
                Kind::Igb => Flavour::Igb { pfs: self.pfs },
                Kind::Netdevsim => Flavour::Netdevsim,
            },
            memory_mb: self.memory,
            hugepages_mb: self.hugepages,
            cpus: self.cpus,
            numa: self.numa,
            keep: vec![std::env::current_dir()?],
            ..MachineConfig::default()
        })
    }

    fn boot(&self, home: &Home) -> Result<Machine> {
        let machine = Machine::boot(&home.dir(), &self.config()?)?;
        if let Home::Run(run) = home {
            run.note_process(machine.pid());
        }
        let facts = machine.facts();
        eprintln!(
            "Linux {} with {}, run by {}, up after {:.1} s",
            facts.release,
            facts.flavour,
            facts.accel,
            facts.boot.as_secs_f32()
        );
        Ok(machine)
    }
}

/// Where the machine's files lie: in a run's folder, which is swept when we are killed; a run takes root.
enum Home {
    Run(Run),
    Own {
        dir: tempfile::TempDir,
        _undo: cleanup::Guard,
    },
}

impl Home {
    fn make() -> Result<Home> {
        if nix::unistd::geteuid().is_root() {
            return Ok(Home::Run(Run::start()?));
        }
        let dir = tempfile::tempdir()?;
        let gone = dir.path().to_owned();
        let undo = cleanup::on_exit(move || {
            let _ = std::fs::remove_dir_all(gone);
        });
        Ok(Home::Own { dir, _undo: undo })
    }

    fn dir(&self) -> PathBuf {
        match self {
            Home::Run(run) => run.dir().join("machine"),
            Home::Own { dir, .. } => dir.path().join("machine"),
        }
    }
}

fn main() -> ExitCode {
    let result = cleanup::undo_on_signals().and_then(|()| act(&Args::parse().what));
    match result {
        Ok(code) => code,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn act(what: &What) -> Result<ExitCode> {
    let home = Home::make()?;
    match what {
        What::Shell { shape } => shell(shape, &home),
        What::Run {
            shape,
            get,
            limit,
            command,
        } => {
            let get = get.iter().map(|g| pair(g)).collect::<Result<Vec<_>>>()?;
            let machine = shape.boot(&home)?;
            let ended = run(&machine, command, limit.map(Duration::from_secs));
            for (inside, outside) in get {
                machine
                    .copy_out(&inside, &outside)
                    .with_context(|| format!("\"{}\" was not copied out", inside.display()))?;
                give_back(&outside);
            }
            Ok(exit_code(ended?))
        }
        What::Boot { shape, times } => {
            for _ in 0..*times {
                let machine = shape.boot(&home)?;
                for (stage, when) in machine.stages() {
                    println!("  {stage:<10} from {when:>5.2} s of the machine's own clock");
                }
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn pair(text: &str) -> Result<(PathBuf, PathBuf)> {
    match text.split_once(':') {
        Some((inside, outside)) if !inside.is_empty() && !outside.is_empty() => {
            Ok((inside.into(), std::path::absolute(outside)?))
        }
        _ => bail!("\"{text}\" is not of the form INSIDE:OUTSIDE"),
    }
}

/// Files that root wrote for a user of sudo become the user's.
fn give_back(path: &Path) {
    let id = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    if let (Some(user), Some(group)) = (id("SUDO_UID"), id("SUDO_GID")) {
        let owner = format!("{user}:{group}");
        let _ = std::process::Command::new("chown")
            .args(["-R", "-h", &owner])
            .arg(path)
            .status();
    }
}

fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// The command as it is to run inside: with the workspace's programs on its path, in this folder.
fn start(argv: &[String]) -> Result<Start> {
    let mut programs = std::env::current_exe()?;
    programs.pop();
    let path = format!(
        "{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        programs.display()
    );
    let mut env = vec![("PATH".to_owned(), path)];
    for name in ["TERM", "RUST_BACKTRACE", "RUST_LOG", "NO_COLOR"] {
        if let Ok(value) = std::env::var(name) {
            env.push((name.to_owned(), value));
        }
    }
    Ok(Start {
        argv: argv.to_vec(),
        env,
        dir: std::env::current_dir()?.display().to_string(),
        ..Start::default()
    })
}

fn run(machine: &Machine, argv: &[String], limit: Option<Duration>) -> Result<i32> {
    let mut start = start(argv)?;
    start.limit_ms = limit.map(|l| u64::try_from(l.as_millis()).unwrap_or(u64::MAX));
    let ended = machine.start(&start)?.wait(|is_error, bytes| {
        // Whoever reads our output may have gone; the command runs on.
        let _ = if is_error {
            std::io::stderr().write_all(bytes)
        } else {
            let mut out = std::io::stdout();
            out.write_all(bytes).and_then(|()| out.flush())
        };
    })?;
    if let Some(why) = ended.failed {
        bail!("\"{}\" could not be started inside: {why}", argv.join(" "));
    }
    if let Some(at) = ended.stuck {
        bail!("\"{}\" cannot be killed: {at}", argv.join(" "));
    }
    if ended.over_limit {
        bail!(
            "\"{}\" was killed inside, because it was over its limit of {} s",
            argv.join(" "),
            limit.unwrap_or_default().as_secs()
        );
    }
    Ok(ended.code)
}

/// A terminal without echo and line editing; as it was before when dropped or when the process is told to stop.
struct Raw {
    _undo: cleanup::Guard,
}

impl Raw {
    fn set() -> Result<Raw> {
        let before = termios::tcgetattr(std::io::stdin())?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(std::io::stdin(), SetArg::TCSADRAIN, &raw)?;
        let undo = cleanup::on_exit(move || {
            let _ = termios::tcsetattr(std::io::stdin(), SetArg::TCSADRAIN, &before);
        });
        Ok(Raw { _undo: undo })
    }
}

fn shell(shape: &Shape, home: &Home) -> Result<ExitCode> {
    if !std::io::stdin().is_terminal() {
        bail!("A prompt needs a terminal; `cargo xtask lab run -- COMMAND` works without one");
    }
    let machine = shape.boot(home)?;
    eprintln!("`exit` leaves it; nothing that is changed inside stays.");
    let mut start = start(&["bash".into(), "-l".into()])?;
    start.terminal = Some(size());
    let code = {
        let _raw = Raw::set()?;
        attended(&machine, &start)?
    };
    Ok(exit_code(code))
}

/// Rows and columns of our own terminal.
fn size() -> (u16, u16) {
    terminal_size::terminal_size().map_or((24, 80), |(columns, rows)| (rows.0, columns.0))
}

fn attended(machine: &Machine, start: &Start) -> Result<i32> {
    let running = machine.start(start)?;
    let keys = running.keys();
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = std::io::stdin().read(&mut bytes) {
            if keys.input(&bytes[..count]).is_err() {
                return;
            }
        }
    });
    let ended = running.wait(|_, bytes| {
        let mut out = std::io::stdout();
        let _ = out.write_all(bytes).and_then(|()| out.flush());
    })?;
    Ok(ended.code)
}
