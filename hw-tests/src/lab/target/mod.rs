//! A target: a machine that tests run on, whatever it is and however it is reached.
//!
//! [`Target::open`] makes or reaches it and reads its [`Facts`]. Commands find our programs by their names: the
//! folder with them is first in `PATH`. Every command carries a mark in its environment, by which the clean-up
//! finds what a test started and left ([`super::snapshot`]).

mod emulated;
mod link;
mod local;
mod spawned;
mod ssh;

pub use link::{Done, Link, LinkError, quoted};
pub use spawned::Spawned;

use super::facts::{self, Facts};
use super::inventory::{Kind, Platform, Programs, TargetSpec};
use anyhow::{Context, Result, anyhow, bail};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The environment variable that marks what runs for us on a target.
pub const MARK: &str = "FERROVIA_LAB";
/// Programs of ours that a host gets.
const COPIED: [&str; 3] = ["ferrovia", "ferrovia-agent", "ferrovia-controller"];
/// How long the small things of the tool's own may take: software emulation is slow.
const SHORT: Duration = Duration::from_secs(60);

static COUNTER: AtomicU32 = AtomicU32::new(1);

/// A target that answers.
#[derive(Debug)]
pub struct Target {
    name: String,
    link: Box<dyn Link>,
    facts: Facts,
    mark: String,
    path: String,
    scratch: String,
    ready: Duration,
    given_up: AtomicBool,
    ours: bool,
}

impl Target {
    /// Makes or reaches the target that `spec` describes. `dir` is a folder of this machine for its files.
    ///
    /// # Errors
    /// Within the target's limit: it does not boot, cannot be reached, or lacks a NIC of the inventory.
    pub fn open(spec: &TargetSpec, dir: &Path) -> Result<Arc<Target>> {
        let started = Instant::now();
        let limit = spec.limits.ready;
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let mark = format!("{}-{number}", std::process::id());
        let scratch = format!("/var/tmp/ferrovia-lab-{mark}");
        let beside = beside()?;
        let mut programs = beside.display().to_string();
        let mut platform = spec.platform;
        let mut only = None;
        let mut copy = false;
        let link: Box<dyn Link> = match &spec.kind {
            Kind::Emulated(machine) => {
                platform = platform.or(Some(Platform::Emulated));
                Box::new(emulated::EmulatedLink::boot(machine, dir, limit)?)
            }
            Kind::Ssh(ssh) => {
                only = Some(ssh.nics.as_slice());
                match &ssh.programs {
                    Programs::Folder(folder) => programs = folder.clone(),
                    Programs::Copy => {
                        copy = true;
                        programs = format!("{scratch}/bin");
                    }
                }
                Box::new(ssh::SshLink::connect(ssh, dir, limit)?)
            }
            Kind::Local(here) => {
                only = Some(here.nics.as_slice());
                if let Some(folder) = &here.programs {
                    programs = folder.display().to_string();
                }
                Box::new(local::LocalLink::new(here.sudo))
            }
        };
        let path =
            format!("{programs}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        let mut target = Target {
            name: spec.name.clone(),
            link,
            facts: Facts::default(),
            mark,
            path,
            scratch,
            ready: Duration::ZERO,
            given_up: AtomicBool::new(false),
            ours: matches!(spec.kind, Kind::Emulated(_)),
        };
        let left = limit
            .saturating_sub(started.elapsed())
            .max(Duration::from_secs(5));
        if let Err(error) = target.get_ready(platform, only, copy.then_some(beside.as_path()), left)
        {
            target.close();
            return Err(error);
        }
        target.ready = started.elapsed();
        Ok(Arc::new(target))
    }

    fn get_ready(
        &mut self,
        platform: Option<Platform>,
        only: Option<&[String]>,
        copy_from: Option<&Path>,
        limit: Duration,
    ) -> Result<()> {
        let end = Instant::now() + limit;
        let left = || end.saturating_duration_since(Instant::now());
        let made = self.quiet(&format!("umask 022; mkdir -p {}/bin", self.scratch), left())?;
        if !made.ok() {
            bail!(
                "A folder below /var/tmp could not be made on the target: {}",
                made.said()
            );
        }
        for name in copy_from.map_or(&[][..], |_| &COPIED[..]) {
            let from = copy_from.unwrap_or(Path::new("")).join(name);
            if from.exists() {
                let to = format!("{}/bin/{name}", self.scratch);
                self.link.put(&from, &to, left())?;
                self.quiet(&format!("chmod 755 {to}"), left())?;
            }
        }
        let printed = self.quiet(facts::SCRIPT, left())?;
        if !printed.ok() {
            bail!("What the target is cannot be read: {}", printed.said());
        }
        self.facts = Facts::read(&printed.stdout, platform, &self.link.machine(), only)
            .map_err(|why| anyhow!(why))?;
        Ok(())
    }

    /// Its name in the inventory.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// True for a machine that was made for this run; a host also has other work.
    pub fn is_ours(&self) -> bool {
        self.ours
    }

    /// What it is.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// How long it took until it answered.
    pub fn ready(&self) -> Duration {
        self.ready
    }

    /// A folder of its own for this run, on the target.
    pub fn scratch(&self) -> &str {
        &self.scratch
    }

    /// The value of [`MARK`] in the environment of everything that runs on it for us.
    pub fn mark(&self) -> &str {
        &self.mark
    }

    /// Runs a command to its end, at most `limit`. An exit code other than 0 is no error.
    ///
    /// # Errors
    /// When it does not end in time, or the target does not answer.
    pub fn exec<S: AsRef<str>>(&self, argv: &[S], limit: Duration) -> Result<Done, LinkError> {
        let mark = format!("{MARK}={}", self.mark);
        let path = format!("PATH={}", self.path);
        let mut words = vec!["env".to_owned(), mark, path];
        words.extend(argv.iter().map(|word| word.as_ref().to_owned()));
        if self.given_up.load(Ordering::SeqCst) {
            return Err(LinkError::Broken(format!(
                "The target \"{}\" was given up",
                self.name
            )));
        }
        self.link.run(&words, limit).map_err(|error| match error {
            // Named as the test wrote it.
            LinkError::Hung { limit, .. } => LinkError::Hung {
                command: quoted(argv),
                limit,
            },
            broken => broken,
        })
    }

    /// Runs a script of `sh` to its end.
    ///
    /// # Errors
    /// As [`exec`](Target::exec).
    pub fn shell(&self, script: &str, limit: Duration) -> Result<Done, LinkError> {
        self.exec(&["sh", "-c", script], limit)
    }

    /// A script of the tool's own: without the mark, so that it is not found by itself.
    pub(super) fn quiet(&self, script: &str, limit: Duration) -> Result<Done, LinkError> {
        let words = ["env", &format!("PATH={}", self.path), "sh", "-c", script].map(str::to_owned);
        self.link.run(&words, limit)
    }

    /// Makes a file of this machine a file of the target.
    ///
    /// # Errors
    /// When either side refuses.
    pub fn put_file(&self, from: &Path, to: &str, limit: Duration) -> Result<(), LinkError> {
        self.link.put(from, to, limit)
    }

    /// Makes a file of the target a file of this machine.
    ///
    /// # Errors
    /// When either side refuses.
    pub fn get_file(&self, from: &str, to: &Path, limit: Duration) -> Result<(), LinkError> {
        self.link.get(from, to, limit)
    }

    /// Starts a command that goes on; see [`Spawned`].
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn<S: AsRef<str>>(self: &Arc<Self>, name: &str, argv: &[S]) -> Result<Spawned> {
        Spawned::start(self.clone(), name, argv)
    }

    /// True when it answers within a short time.
    pub fn answers(&self) -> bool {
        self.quiet("exit 0", Duration::from_secs(20))
            .is_ok_and(|done| done.ok())
    }

    /// What it said by itself, for the report of a loss.
    pub fn last_words(&self) -> String {
        self.link.last_words()
    }

    /// Tests run nothing on it any more from now on; what is running is left to its limit.
    pub(super) fn give_up(&self) {
        self.given_up.store(true, Ordering::SeqCst);
    }

    /// Removes the folder of this run, and ends it.
    pub(super) fn close(&self) {
        if !self.ours {
            let _ = self.quiet(&format!("rm -rf {}", self.scratch), SHORT);
        }
        self.link.close();
    }
}

/// The folder of the programs that were built with this one.
pub fn beside() -> Result<PathBuf> {
    let mut dir = std::env::current_exe().context("The folder of this program is not known")?;
    dir.pop();
    if dir.ends_with("deps") || dir.ends_with("examples") {
        dir.pop();
    }
    Ok(dir)
}
