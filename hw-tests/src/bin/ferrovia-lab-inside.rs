//! The first program inside the emulated NIC machine: takes commands from the host and runs them.
//!
//! It runs twice: the first process collects orphans, as every system's first process must; its child serves
//! the channel. When the host's end of the channel is closed, nobody needs the machine any more: it is
//! switched off.

use anyhow::{Context, Result, bail};
use hw_tests::machine::wire::{self, Ended, Hello, Kind, Start};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{PipeReader, Read, Write, pipe};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a killed process may take to be gone before it counts as stuck in the kernel.
const DYING: Duration = Duration::from_secs(3);
/// Bytes of output sent at once.
const PIECE: usize = 64 << 10;

fn main() {
    let result = match std::env::args().nth(1).as_deref() {
        Some("serve") => serve(),
        _ if std::process::id() == 1 => first(),
        _ => {
            eprintln!(
                "This is the first program inside the emulated machine; it is not run by hand."
            );
            std::process::exit(2);
        }
    };
    if let Err(e) = result {
        eprintln!("fv-fail {e:#}");
    }
    if std::process::id() == 1 {
        let _ = reboot(RebootMode::RB_POWER_OFF);
    }
}

/// The system's first process: starts the one that serves and collects whoever loses its parent.
fn first() -> Result<()> {
    let server = Command::new("/proc/self/exe")
        .arg("serve")
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("HOME", "/root")
        .env("LANG", "C.UTF-8")
        .stdin(Stdio::null())
        .spawn()
        .context("The agent inside could not be started")?;
    let server = Pid::from_raw(server.id() as i32);
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, 0)) if pid == server => return Ok(()),
            Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..)) if pid == server => {
                bail!("The agent inside ended by itself")
            }
            _ => {}
        }
    }
}

type Commands = Arc<Mutex<HashMap<u32, Sender<Event>>>>;

/// What may happen to a running command.
enum Event {
    Input(Vec<u8>),
    InputEnd,
    Kill,
    Exited(std::io::Result<ExitStatus>),
}

#[derive(Clone)]
struct Host(Arc<Mutex<File>>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Host {
    fn send(&self, kind: Kind, id: u32, body: &[u8]) {
        // Without the host there is nobody to tell; the reading end finds out and ends this program.
        let _ = wire::write(&mut *lock(&self.0), kind, id, body);
    }
}

fn serve() -> Result<()> {
    let mut from = port()?;
    let host = Host(Arc::new(Mutex::new(from.try_clone()?)));
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let hello = Hello {
        release: release.trim().to_owned(),
    };
    host.send(Kind::Hello, 0, &serde_json::to_vec(&hello)?);
    let commands = Commands::default();
    while let Some(frame) = wire::read(&mut from).context("The channel to the host is broken")? {
        let event = match frame.kind {
            Kind::Start => {
                let (to, events) = channel();
                lock(&commands).insert(frame.id, to.clone());
                let (host, commands) = (host.clone(), commands.clone());
                std::thread::spawn(move || {
                    let ended = match serde_json::from_slice(&frame.body) {
                        Ok(start) => run(&host, frame.id, &start, to, &events),
                        Err(e) => failed(format!("The command cannot be read: {e}")),
                    };
                    lock(&commands).remove(&frame.id);
                    let body = serde_json::to_vec(&ended).unwrap_or_default();
                    host.send(Kind::Ended, frame.id, &body);
                });
                continue;
            }
            Kind::Input => Event::Input(frame.body),
            Kind::InputEnd => Event::InputEnd,
            Kind::Kill => Event::Kill,
            _ => continue,
        };
        if let Some(to) = lock(&commands).get(&frame.id) {
            let _ = to.send(event);
        }
    }
    Ok(())
}

/// Opens the channel.
fn port() -> Result<File> {
    for entry in fs::read_dir("/sys/class/virtio-ports")?.flatten() {
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim() == wire::PORT {
            let path = std::path::Path::new("/dev").join(entry.file_name());
            return File::options()
                .read(true)
                .write(true)
                .open(&path)
                .with_context(|| format!("The channel \"{}\" cannot be opened", path.display()));
        }
    }
    bail!("There is no channel to the host")
}

fn failed(why: String) -> Ended {
    Ended {
        code: 127,
        failed: Some(why),
        ..Ended::default()
    }
}

/// Runs one command to its end.
fn run(host: &Host, id: u32, start: &Start, to: Sender<Event>, events: &Receiver<Event>) -> Ended {
    let Some((program, args)) = start.argv.split_first() else {
        return failed("No program was named".into());
    };
    let mut command;
    match start.terminal {
        None => {
            command = Command::new(program);
            command.process_group(0);
        }
        Some(_) => {
            // A session with this terminal; `setsid` waits and hands on the exit code.
            command = Command::new("setsid");
            command.args(["--ctty", "--wait", program]);
        }
    }
    let dir = if start.dir.is_empty() {
        "/"
    } else {
        &start.dir
    };
    command
        .args(args)
        .current_dir(dir)
        .envs(start.env.iter().map(|(name, value)| (name, value)));
    let (terminal, mut child) = match spawn(&mut command, start) {
        Ok(spawned) => spawned,
        Err(e) => return failed(format!("{e:#}")),
    };
    let pid = child.id();
    let mut input = terminal
        .as_ref()
        .and_then(|t| t.try_clone().ok())
        .map(Input::Terminal)
        .or_else(|| child.stdin.take().map(Input::Pipe));
    let mut pumps = Vec::new();
    let mut enders = Vec::new();
    let outputs = [
        (Kind::Output, terminal.map(OwnedFd::from)),
        (Kind::Output, child.stdout.take().map(OwnedFd::from)),
        (Kind::Errors, child.stderr.take().map(OwnedFd::from)),
    ];
    for (kind, from) in outputs {
        if let (Some(from), Ok((ended, ender))) = (from, pipe()) {
            let host = host.clone();
            let (finished, wait) = channel();
            std::thread::spawn(move || pump(&host, kind, id, from, &ended, &finished));
            pumps.push(wait);
            enders.push(ender);
        }
    }
    std::thread::spawn(move || {
        let status = child.wait();
        let _ = to.send(Event::Exited(status));
    });
    let ended = attend(pid, start.limit_ms, events, &mut input);
    drop(enders);
    if ended.stuck.is_none() {
        for pump in pumps {
            let _ = pump.recv();
        }
    }
    ended
}

enum Input {
    Pipe(ChildStdin),
    Terminal(File),
}

/// Starts it; with a terminal, returns our end of that.
fn spawn(command: &mut Command, start: &Start) -> Result<(Option<File>, Child)> {
    let Some((rows, columns)) = start.terminal else {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.stdin(if start.input {
            Stdio::piped()
        } else {
            Stdio::null()
        });
        return Ok((None, command.spawn()?));
    };
    let size = nix::pty::Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let pair = nix::pty::openpty(Some(&size), None).context("A terminal could not be made")?;
    command
        .stdin(pair.slave.try_clone()?)
        .stdout(pair.slave.try_clone()?)
        .stderr(pair.slave);
    Ok((Some(File::from(pair.master)), command.spawn()?))
}

/// Waits for the end of the command, feeds it, and kills it where it must be.
fn attend(
    pid: u32,
    limit_ms: Option<u64>,
    events: &Receiver<Event>,
    input: &mut Option<Input>,
) -> Ended {
    let group = Pid::from_raw(pid as i32);
    let mut until = limit_ms.map(|ms| std::time::Instant::now() + Duration::from_millis(ms));
    let mut ended = Ended::default();
    let mut killed = false;
    loop {
        let event = match until {
            None => events.recv().ok(),
            Some(until) => {
                let left = until.saturating_duration_since(std::time::Instant::now());
                events.recv_timeout(left).ok()
            }
        };
        match event {
            Some(Event::Exited(status)) => {
                ended.code = status.map_or(-1, |s| {
                    s.code().unwrap_or_else(|| 128 + s.signal().unwrap_or(0))
                });
                return ended;
            }
            Some(Event::Input(bytes)) => {
                let _ = match input {
                    Some(Input::Pipe(pipe)) => pipe.write_all(&bytes),
                    Some(Input::Terminal(terminal)) => terminal.write_all(&bytes),
                    None => Ok(()),
                };
            }
            Some(Event::InputEnd) => *input = None,
            Some(Event::Kill) | None if !killed => {
                ended.over_limit = event.is_none();
                killed = true;
                let _ = killpg(group, Signal::SIGKILL);
                until = Some(std::time::Instant::now() + DYING);
            }
            Some(Event::Kill) => {}
            None => {
                ended.code = 128 + Signal::SIGKILL as i32;
                ended.stuck = Some(whereabouts(pid));
                return ended;
            }
        }
    }
}

/// Where in the kernel a process waits.
fn whereabouts(pid: u32) -> String {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let stack: Vec<String> = read("stack")
        .lines()
        .take(6)
        .filter_map(|line| {
            Some(
                line.split_whitespace()
                    .nth(1)?
                    .split('+')
                    .next()?
                    .to_owned(),
            )
        })
        .collect();
    let place = if stack.is_empty() {
        read("wchan")
    } else {
        stack.join(" < ")
    };
    format!("it waits in the kernel in {place}")
}

/// Sends what comes out of `from` until its end, or until the command has ended and all that it wrote is
/// sent; what others write afterwards, who still have it open, is dropped.
fn pump(
    host: &Host,
    kind: Kind,
    id: u32,
    from: OwnedFd,
    ended: &PipeReader,
    finished: &Sender<()>,
) {
    let mut from = File::from(from);
    let mut bytes = vec![0; PIECE];
    loop {
        let mut fds = [
            PollFd::new(from.as_fd(), PollFlags::POLLIN),
            PollFd::new(ended.as_fd(), PollFlags::POLLIN),
        ];
        if poll(&mut fds, PollTimeout::NONE).is_err() {
            continue;
        }
        let [readable, over] = fds.map(|fd| fd.any() == Some(true));
        if readable {
            match from.read(&mut bytes) {
                Ok(0) | Err(_) => break,
                Ok(count) => host.send(kind, id, &bytes[..count]),
            }
        } else if over {
            let _ = finished.send(());
            while from.read(&mut bytes).is_ok_and(|count| count > 0) {}
            return;
        }
    }
    let _ = finished.send(());
}
