//! The emulated NIC machine: a PC with SR-IOV NICs and an IOMMU that boots in seconds, without a disk image.
//!
//! QEMU runs Debian's kernel with the [`initial`] file system, which mounts the host's whole root over 9p,
//! read-only, under an overlay in memory: what is built or installed on the host runs inside, and nothing
//! that is written inside reaches the host. The first program inside is `ferrovia-lab-inside`; commands go to
//! it through a [`channel`](wire) of frames, any number at once. [`MachineConfig`] says which devices there are.

mod channel;
mod config;
mod initial;
mod qemu;
pub mod wire;

pub use channel::{Keys, Running};
pub use config::{Done, Facts, Flavour, MOST_PFS, MachineConfig};
pub use qemu::pf_mac;
pub use wire::{Ended, Start};

use crate::{cleanup, cluster, process};
use anyhow::{Context, Result, bail};
use channel::Channel;
use initial::{Kernel, STAGE};
use qemu::Boot;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The agent inside.
const INSIDE: &str = "ferrovia-lab-inside";
/// How many of the console's lines an error shows.
const TAIL: usize = 15;

/// A running machine. It may be shared between threads. Dropped, it is switched off and its files are removed.
#[derive(Debug)]
pub struct Machine {
    channel: Arc<Channel>,
    console: PathBuf,
    child: Arc<Mutex<Child>>,
    facts: Facts,
    _undo: cleanup::Guard,
}

impl Machine {
    /// Boots a machine; its files lie in `dir`, which is made when it is not there. When QEMU ends itself at an
    /// assertion of its own, which its software emulation does now and then, it is booted once more.
    ///
    /// # Errors
    /// When the machine cannot be made, does not come up within [`MachineConfig::boot_limit`], or lacks a
    /// device that `config` asks for: says at which stage, with the end of the console. Nothing is left then.
    pub fn boot(dir: &Path, config: &MachineConfig) -> Result<Machine> {
        match Machine::boot_once(dir, config) {
            Err(error) if format!("{error:#}").contains(": Assertion `") => {
                Machine::boot_once(dir, config)
            }
            result => result,
        }
    }

    fn boot_once(dir: &Path, config: &MachineConfig) -> Result<Machine> {
        let _making = cleanup::making();
        qemu::check(config)?;
        let files = Files::make(dir)?;
        let inside = cluster::program(INSIDE)?.canonicalize()?;
        let kernel = Kernel::find()?;
        let initrd = files.dir.join("initrd");
        fs::write(&initrd, initial::archive(&kernel, config, &inside)?)?;
        let boot = Boot { kernel, initrd };
        let accel = qemu::accel(&boot);
        let start = Instant::now();
        let mut command = qemu::command(&boot, config, &accel);
        qemu::attach(&mut command, &files.console());
        let (ours, theirs) = UnixStream::pair()?;
        let child = command
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(File::create(files.said())?)
            .process_group(0)
            .spawn()
            .context("QEMU could not be started; `cargo xtask deps` installs it")?;
        // Its copy of the stream's other end would keep the stream open.
        drop(command);
        let child = Arc::new(Mutex::new(child));
        let (gone, console) = (child.clone(), files.console());
        let undone = files.clone();
        let undo = cleanup::on_exit(move || {
            end(&gone);
            undone.remove();
        });
        let mut machine = Machine {
            channel: Channel::new(ours)?,
            console,
            child,
            facts: Facts {
                release: boot.kernel.release,
                accel,
                flavour: config.flavour,
                boot: Duration::ZERO,
            },
            _undo: undo,
        };
        let until = start + config.boot_limit;
        machine.come_up(&files, until)?;
        machine.facts.boot = start.elapsed();
        Ok(machine)
    }

    /// Waits for the agent inside, and for the devices.
    fn come_up(&self, files: &Files, until: Instant) -> Result<()> {
        loop {
            let hello = self.channel.hello(Duration::from_millis(100));
            let why = match hello {
                Ok(Some(_)) => break,
                Ok(None) if Instant::now() < until => continue,
                Ok(None) => "The machine was not up within its time limit".to_owned(),
                Err(_) => {
                    end(&self.child);
                    match files.complaint().as_str() {
                        "" => "The machine ended while it booted".to_owned(),
                        said => format!("QEMU ended: {said}"),
                    }
                }
            };
            bail!("{why}; {}", files.story());
        }
        if let Flavour::Igb { pfs } = self.facts.flavour {
            // The driver was loaded before the agent started, and probes while it loads: they are there or not.
            let until = until.min(Instant::now() + Duration::from_secs(3));
            let count = "ls -d /sys/bus/pci/drivers/igb/0*/net/* 2>/dev/null | wc -l";
            loop {
                let done = self.shell(count, Duration::from_secs(10))?;
                let there: u32 = done.stdout.trim().parse().unwrap_or(0);
                if there == u32::from(pfs) {
                    break;
                }
                if Instant::now() >= until || there > u32::from(pfs) || done.code != 0 {
                    bail!(
                        "The machine is up, but its igb driver has {there} of {pfs} NICs; {}",
                        files.story()
                    );
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(())
    }

    /// What is known of it.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The process id of its QEMU.
    pub fn pid(&self) -> u32 {
        self.child
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .id()
    }

    /// Starts a command; the caller takes its output as it comes.
    pub fn start(&self, start: &Start) -> Result<Running> {
        self.channel.start(start).map_err(|e| self.explained(e))
    }

    /// Runs a program. An exit code other than zero is no error.
    ///
    /// # Errors
    /// When it cannot be started, is still running after `limit` (it and its process group are killed then), or
    /// when the machine ends meanwhile.
    pub fn exec(&self, argv: &[&str], limit: Duration) -> Result<Done> {
        self.done(argv, None, limit).map(|(code, out, err)| Done {
            code,
            stdout: String::from_utf8_lossy(&out).into_owned(),
            stderr: String::from_utf8_lossy(&err).into_owned(),
        })
    }

    /// Runs a shell script, as [`exec`](Self::exec) does.
    pub fn shell(&self, script: &str, limit: Duration) -> Result<Done> {
        self.exec(&["sh", "-c", script], limit)
    }

    /// A file's content. The path is one of the machine.
    pub fn read_file(&self, inside: &Path) -> Result<Vec<u8>> {
        let path = inside.display().to_string();
        let (code, content, err) =
            self.done(&["cat", "--", &path], None, Duration::from_secs(60))?;
        if code != 0 {
            bail!("{}", String::from_utf8_lossy(&err).trim());
        }
        Ok(content)
    }

    /// Writes a file inside; its folder must be there.
    pub fn write_file(&self, inside: &Path, content: &[u8]) -> Result<()> {
        let path = inside.display().to_string();
        let argv = ["sh", "-c", "exec cat > \"$0\"", &path];
        let (code, _, err) = self.done(&argv, Some(content), Duration::from_secs(60))?;
        if code != 0 {
            bail!("{}", String::from_utf8_lossy(&err).trim());
        }
        Ok(())
    }

    /// Copies a file or a folder of the machine to the host: `to` is its new name there.
    pub fn copy_out(&self, inside: &Path, to: &Path) -> Result<()> {
        let path = inside.display().to_string();
        if !self
            .exec(&["test", "-d", &path], Duration::from_secs(20))?
            .ok()
        {
            let content = self.read_file(inside)?;
            return fs::write(to, content)
                .with_context(|| format!("\"{}\" could not be written", to.display()));
        }
        let argv = ["tar", "-C", &path, "-cf", "-", "."];
        let (code, archive, err) = self.done(&argv, None, Duration::from_secs(120))?;
        if code != 0 {
            bail!("{}", String::from_utf8_lossy(&err).trim());
        }
        fs::create_dir_all(to)?;
        let mut unpack = std::process::Command::new("tar")
            .arg("-C")
            .arg(to)
            .args(["--no-same-owner", "-xf", "-"])
            .stdin(Stdio::piped())
            .spawn()?;
        let fed = unpack
            .stdin
            .take()
            .map(|mut stdin| std::io::Write::write_all(&mut stdin, &archive));
        let status = unpack.wait()?;
        if !status.success() || !matches!(fed, Some(Ok(()))) {
            bail!("\"{}\" could not be unpacked ({status})", to.display());
        }
        Ok(())
    }

    /// The last lines of the console.
    pub fn console_tail(&self) -> String {
        process::tail(&self.console, TAIL)
    }

    /// When each stage of the boot began, in seconds of the machine's own clock since its kernel started.
    pub fn stages(&self) -> Vec<(String, f32)> {
        let text =
            String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned();
        text.lines().filter_map(stage).collect()
    }

    fn done(
        &self,
        argv: &[&str],
        input: Option<&[u8]>,
        limit: Duration,
    ) -> Result<(i32, Vec<u8>, Vec<u8>)> {
        let line = argv.join(" ");
        let running = self.start(&Start {
            argv: argv.iter().map(|&word| word.to_owned()).collect(),
            limit_ms: Some(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)),
            input: input.is_some(),
            ..Start::default()
        })?;
        if let Some(bytes) = input {
            running.keys().input(bytes)?;
            running.keys().end()?;
        }
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let ended = running
            .wait(|is_error, bytes| {
                if is_error { &mut err } else { &mut out }.extend_from_slice(bytes)
            })
            .map_err(|e| self.explained(e))
            .with_context(|| format!("\"{line}\" was running inside the machine"))?;
        if let Some(why) = ended.failed {
            bail!("\"{line}\" could not be started inside the machine: {why}");
        }
        if ended.over_limit || ended.stuck.is_some() {
            let fate = match ended.stuck {
                None => "and was killed".to_owned(),
                Some(at) => format!("and cannot be killed: {at}"),
            };
            bail!(
                "\"{line}\" was still running inside the machine after {:.1} s {fate}",
                limit.as_secs_f32()
            );
        }
        Ok((ended.code, out, err))
    }

    /// An error of the channel, with what the machine said last.
    fn explained(&self, error: anyhow::Error) -> anyhow::Error {
        error.context(format!(
            "The machine's console ends with:\n{}",
            self.console_tail()
        ))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.channel.close();
    }
}

/// A stage's line of the console: its name, and when it began.
fn stage(line: &str) -> Option<(String, f32)> {
    let (_, rest) = line.split_once(STAGE)?;
    let (name, when) = rest.trim().split_once(' ')?;
    Some((name.to_owned(), when.parse().ok()?))
}

fn end(child: &Mutex<Child>) {
    let mut child = child.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = child.kill();
    let _ = child.wait();
}

/// The machine's files.
#[derive(Clone, Debug)]
struct Files {
    dir: PathBuf,
    made: bool,
}

impl Files {
    fn make(dir: &Path) -> Result<Files> {
        let made = !dir.exists();
        fs::create_dir_all(dir)
            .with_context(|| format!("The folder \"{}\" could not be made", dir.display()))?;
        Ok(Files {
            dir: dir.canonicalize()?,
            made,
        })
    }

    fn console(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    fn said(&self) -> PathBuf {
        self.dir.join("qemu.log")
    }

    /// What QEMU said; its warnings are not why it ended.
    fn complaint(&self) -> String {
        let text = process::tail(&self.said(), TAIL);
        let lines: Vec<&str> = text.lines().filter(|l| !l.contains("warning:")).collect();
        lines.join("\n")
    }

    /// How far the boot came, for an error.
    fn story(&self) -> String {
        let text =
            String::from_utf8_lossy(&fs::read(self.console()).unwrap_or_default()).into_owned();
        let stage = match text.lines().filter_map(stage).next_back() {
            None => "the kernel had not started its first program".to_owned(),
            Some((name, when)) => format!("it had come to the stage \"{name}\" after {when} s"),
        };
        let all: Vec<&str> = text.lines().map(str::trim_end).collect();
        // What follows it, the registers and the call trace, is longer than the tail.
        let panic = all
            .iter()
            .find_map(|line| Some(line.split_once("Kernel panic")?.1));
        let stage = match panic {
            Some(why) => format!("{stage}, and its kernel panicked{why}"),
            None => stage,
        };
        let tail = all[all.len().saturating_sub(TAIL)..].join("\n");
        match tail.trim() {
            "" => format!("{stage}, and its console is empty"),
            tail => format!("{stage}; its console ends with:\n{tail}"),
        }
    }

    fn remove(&self) {
        for file in [self.console(), self.said(), self.dir.join("initrd")] {
            let _ = fs::remove_file(file);
        }
        if self.made {
            // Only when nobody else has put something there.
            let _ = fs::remove_dir(&self.dir);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_found_among_other_lines() {
        assert_eq!(stage("fv-stage root 1.25\r"), Some(("root".into(), 1.25)));
        assert_eq!(stage("[    1.0] fv-stage: no"), None);
    }
}
