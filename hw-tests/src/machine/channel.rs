//! The host's end of the channel into the machine: many commands at once over one stream.

use super::wire::{self, Ended, Frame, Hello, Kind, Start};
use anyhow::{Context, Result, bail};
use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long the agent inside may take to report a command that it killed. A busy emulated machine is slow.
const GRACE: Duration = Duration::from_secs(20);

type Waiting = Arc<Mutex<Option<HashMap<u32, Sender<Frame>>>>>;

/// The channel. Commands may be run from several threads at once.
#[derive(Debug)]
pub(super) struct Channel {
    writer: Mutex<UnixStream>,
    /// Who waits for the frames of which command; none once the stream ended.
    waiting: Waiting,
    hello: Mutex<Receiver<Frame>>,
    next: AtomicU32,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Channel {
    /// Takes the host's end of the stream.
    pub(super) fn new(stream: UnixStream) -> Result<Arc<Channel>> {
        let mut from = stream.try_clone()?;
        let (to_hello, hello) = mpsc::channel();
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::from([(0, to_hello)]))));
        let readers = waiting.clone();
        std::thread::Builder::new()
            .name("lab-channel".into())
            .spawn(move || {
                while let Ok(Some(frame)) = wire::read(&mut from) {
                    if let Some(to) = lock(&readers).as_ref().and_then(|all| all.get(&frame.id)) {
                        let _ = to.send(frame);
                    }
                }
                // Dropping the senders wakes everybody who waits.
                *lock(&readers) = None;
            })
            .context("The thread that reads from the machine could not start")?;
        Ok(Arc::new(Channel {
            writer: Mutex::new(stream),
            waiting,
            hello: Mutex::new(hello),
            next: AtomicU32::new(1),
        }))
    }

    /// The agent's first words, if they come within `limit`. None when the stream ended.
    pub(super) fn hello(&self, limit: Duration) -> Result<Option<Hello>> {
        match lock(&self.hello).recv_timeout(limit) {
            Ok(frame) => Ok(Some(
                serde_json::from_slice(&frame.body)
                    .context("The agent inside said something else than hello")?,
            )),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => bail!("The machine's channel is closed"),
        }
    }

    /// Starts a command.
    pub(super) fn start(self: &Arc<Self>, start: &Start) -> Result<Running> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (to, frames) = mpsc::channel();
        lock(&self.waiting)
            .as_mut()
            .context("The machine is not running any more")?
            .insert(id, to);
        let running = Running {
            keys: Keys {
                channel: self.clone(),
                id,
            },
            frames,
            limit: start.limit_ms.map(Duration::from_millis),
        };
        self.send(Kind::Start, id, &serde_json::to_vec(start)?)?;
        Ok(running)
    }

    fn send(&self, kind: Kind, id: u32, body: &[u8]) -> Result<()> {
        wire::write(&mut *lock(&self.writer), kind, id, body)
            .context("The machine takes no more commands")
    }

    /// Closes the stream; the reading thread ends.
    pub(super) fn close(&self) {
        let _ = lock(&self.writer).shutdown(std::net::Shutdown::Both);
    }
}

/// A command that runs inside. Dropped before its end, it is killed.
#[derive(Debug)]
pub struct Running {
    keys: Keys,
    frames: Receiver<Frame>,
    limit: Option<Duration>,
}

impl Running {
    /// Its standard input, and the means to kill it, for another thread.
    pub fn keys(&self) -> Keys {
        self.keys.clone()
    }

    /// Hands on its output (`true` for standard error) until it ends.
    ///
    /// # Errors
    /// When the machine ends first, or does not answer any more.
    pub fn wait(self, mut output: impl FnMut(bool, &[u8])) -> Result<Ended> {
        let until = self.limit.map(|limit| Instant::now() + limit + GRACE);
        loop {
            let frame = match until {
                None => self
                    .frames
                    .recv()
                    .map_err(|_| RecvTimeoutError::Disconnected),
                Some(until) => self
                    .frames
                    .recv_timeout(until.saturating_duration_since(Instant::now())),
            };
            match frame {
                Ok(frame) => match frame.kind {
                    Kind::Output => output(false, &frame.body),
                    Kind::Errors => output(true, &frame.body),
                    Kind::Ended => {
                        return serde_json::from_slice(&frame.body)
                            .context("The agent inside did not say how the command ended");
                    }
                    _ => {}
                },
                Err(RecvTimeoutError::Timeout) => bail!("The machine does not answer any more"),
                Err(RecvTimeoutError::Disconnected) => bail!("The machine ended meanwhile"),
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let removed = lock(&self.keys.channel.waiting)
            .as_mut()
            .and_then(|all| all.remove(&self.keys.id));
        if removed.is_some() {
            // Of no effect when it has ended.
            let _ = self.keys.kill();
        }
    }
}

/// The standard input of a command that runs inside.
#[derive(Clone, Debug)]
pub struct Keys {
    channel: Arc<Channel>,
    id: u32,
}

impl Keys {
    /// Gives it bytes (when it was started with an input).
    pub fn input(&self, bytes: &[u8]) -> Result<()> {
        bytes
            .chunks(wire::LONGEST)
            .try_for_each(|part| self.channel.send(Kind::Input, self.id, part))
    }

    /// Ends its standard input.
    pub fn end(&self) -> Result<()> {
        self.channel.send(Kind::InputEnd, self.id, &[])
    }

    /// Kills the command.
    pub fn kill(&self) -> Result<()> {
        self.channel.send(Kind::Kill, self.id, &[])
    }
}
