//! A command that goes on on the target, such as an agent: its process id, its log, kill -9, and its end.

use super::{LinkError, Target, quoted};
use anyhow::{Context, Result, bail};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

static COUNTER: AtomicU32 = AtomicU32::new(1);
const SHORT: Duration = Duration::from_secs(30);

/// A running command. When the test ends before it does, the clean-up kills it and counts it as left behind.
#[derive(Debug)]
pub struct Spawned {
    target: Arc<Target>,
    name: String,
    pid: u32,
    dir: String,
}

impl Spawned {
    pub(super) fn start<S: AsRef<str>>(
        target: Arc<Target>,
        name: &str,
        argv: &[S],
    ) -> Result<Spawned> {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let dir = format!("{}/spawned-{number}", target.scratch());
        // The shell in between is there to note the exit code.
        let script = format!(
            "mkdir -p {dir} && {{ setsid sh -c '\"$@\" & echo $! > {dir}/new && mv {dir}/new {dir}/pid; \
             wait $!; echo $? > {dir}/code' sh {} > {dir}/log 2>&1 < /dev/null & \
             n=0; until [ -e {dir}/pid ]; do n=$((n+1)); [ $n -lt 400 ] || exit 1; sleep 0.05; done; cat {dir}/pid; }}",
            quoted(argv)
        );
        let done = target.shell(&script, SHORT)?;
        let pid = done.stdout.trim().parse().ok().filter(|_| done.ok());
        let pid = pid.with_context(|| format!("{name} could not be started: {}", done.said()))?;
        Ok(Spawned {
            target,
            name: name.to_owned(),
            pid,
            dir,
        })
    }

    /// Its process id on the target.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What it wrote so far, standard output and error together.
    ///
    /// # Errors
    /// When the target does not answer.
    pub fn log(&self) -> Result<String, LinkError> {
        let script = format!("tail -c 65536 {}/log", self.dir);
        Ok(self.target.quiet(&script, SHORT)?.stdout)
    }

    /// Its exit code, when it has ended; 128 and the signal's number when a signal ended it.
    ///
    /// # Errors
    /// When the target does not answer.
    pub fn code(&self) -> Result<Option<i32>, LinkError> {
        let script = format!("cat {}/code 2>/dev/null; true", self.dir);
        Ok(self
            .target
            .quiet(&script, SHORT)?
            .stdout
            .trim()
            .parse()
            .ok())
    }

    /// Sends a signal, such as `TERM`.
    ///
    /// # Errors
    /// When it has ended before.
    pub fn signal(&self, signal: &str) -> Result<()> {
        let script = format!("kill -{signal} {}", self.pid);
        let done = self.target.quiet(&script, SHORT)?;
        if !done.ok() {
            bail!("{} cannot be sent SIG{signal}: {}", self.name, done.said());
        }
        Ok(())
    }

    /// Waits for its end and gives its exit code.
    ///
    /// # Errors
    /// When it is still running after `limit`; it goes on then.
    pub fn wait(&self, limit: Duration) -> Result<i32> {
        let end = Instant::now() + limit;
        loop {
            if let Some(code) = self.code()? {
                return Ok(code);
            }
            if Instant::now() >= end {
                bail!(
                    "{} was still running after {} s; its last words:\n{}",
                    self.name,
                    limit.as_secs(),
                    self.log()?
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// kill -9, and waits until it is gone.
    ///
    /// # Errors
    /// When it has ended before.
    pub fn kill(&self) -> Result<()> {
        self.signal("KILL")?;
        self.wait(SHORT)?;
        Ok(())
    }
}
