//! Bulk TCP between a guest and this process, both ways, where every byte is checked: what the guest sends as
//! it comes, what it receives by a checksum at the end. How long nothing came is the gap of an interruption.

use crate::netns::Netns;
use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What the guest sends again and again, with the newline that `yes` adds.
const LINE: &str = "ferrovia carries every byte, in order and once";
/// Ports of this process.
const UP: u16 = 5001;
const DOWN: u16 = 5002;
/// Bytes sent at a time, and the pause after them: a load that an emulated guest can bear.
const PIECE: usize = 16 << 10;
const PAUSE: Duration = Duration::from_millis(5);

/// Two connections with a guest, one for each direction. Dropped, they end.
#[derive(Debug)]
pub struct Streams {
    shared: Arc<Shared>,
    up: Option<JoinHandle<Result<()>>>,
    down: Option<JoinHandle<Result<String>>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// Bytes from the guest, all of them right.
    received: AtomicU64,
    sent: AtomicU64,
    gap: Mutex<Gap>,
}

/// The longest time without a byte from the guest.
#[derive(Debug, Default)]
struct Gap {
    last: Option<Instant>,
    longest: Duration,
}

impl Gap {
    fn heard(&mut self) {
        let now = Instant::now();
        if let Some(last) = self.last.replace(now) {
            self.longest = self.longest.max(now - last);
        }
    }
}

impl Streams {
    /// Listens in the namespace; the guest begins with [`Streams::command`].
    pub fn listen(netns: &Netns) -> Result<Streams> {
        let (up, down) = netns.within(|| {
            Ok((
                TcpListener::bind(("0.0.0.0", UP))?,
                TcpListener::bind(("0.0.0.0", DOWN))?,
            ))
        })?;
        let shared = Arc::<Shared>::default();
        let (one, two) = (shared.clone(), shared.clone());
        Ok(Streams {
            shared,
            up: Some(std::thread::spawn(move || receive(&up, &one))),
            down: Some(std::thread::spawn(move || send(&down, &two))),
        })
    }

    /// What the guest runs, with the address of the namespace. It goes on in the background.
    pub fn command(address: &str) -> String {
        format!(
            "(yes '{LINE}' | nc {address} {UP} >/dev/null 2>&1 &) ; \
             (nc {address} {DOWN} 2>/dev/null | sha256sum > /tmp/down.sum &)"
        )
    }

    /// Waits until so many bytes more came from the guest.
    pub fn wait(&self, more: u64, limit: Duration) -> Result<()> {
        let until = self.received() + more;
        let start = Instant::now();
        while self.received() < until {
            if self.up.as_ref().is_some_and(JoinHandle::is_finished) {
                bail!("The guest's connection has ended");
            }
            if start.elapsed() > limit {
                bail!(
                    "{} of {more} bytes came from the guest in {limit:?}",
                    more - (until - self.received())
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Bytes that came from the guest.
    pub fn received(&self) -> u64 {
        self.shared.received.load(Ordering::Relaxed)
    }

    /// Bytes sent to the guest.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// The longest time without a byte from the guest since the last call.
    pub fn gap(&self) -> Duration {
        let gap = &self.shared.gap;
        let mut gap = gap.lock().unwrap_or_else(PoisonError::into_inner);
        let open = gap.last.map_or(Duration::ZERO, |last| last.elapsed());
        std::mem::take(&mut gap.longest).max(open)
    }

    /// Ends both; the SHA-256 of what was sent to the guest, which has its own in `/tmp/down.sum`.
    pub fn end(mut self) -> Result<String> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let (up, down) = (self.up.take(), self.down.take());
        join(up).context("From the guest")?;
        join(down).context("To the guest")
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

fn join<T>(thread: Option<JoinHandle<Result<T>>>) -> Result<T> {
    let thread = thread.context("It was ended before")?;
    thread
        .join()
        .unwrap_or_else(|_| bail!("The thread panicked"))
}

/// The guest's connection, unless this is to end first.
fn accept(listener: &TcpListener, shared: &Shared) -> Result<TcpStream> {
    listener.set_nonblocking(true)?;
    while !shared.stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(Duration::from_millis(100)))?;
                stream.set_write_timeout(Some(Duration::from_millis(100)))?;
                return Ok(stream);
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(PAUSE),
            Err(e) => return Err(e.into()),
        }
    }
    bail!("The guest did not connect")
}

fn again(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}

fn receive(listener: &TcpListener, shared: &Shared) -> Result<()> {
    let mut stream = accept(listener, shared)?;
    let line = format!("{LINE}\n").into_bytes();
    let mut buffer = vec![0; 4 * PIECE];
    while !shared.stop.load(Ordering::Relaxed) {
        let count = match stream.read(&mut buffer) {
            Ok(0) => bail!("The guest closed the connection"),
            Ok(count) => count,
            Err(e) if again(e.kind()) => continue,
            Err(e) => return Err(e).context("The connection broke"),
        };
        let at = shared.received.load(Ordering::Relaxed);
        let right = |(i, byte): (usize, &u8)| *byte == line[(at as usize + i) % line.len()];
        if let Some(wrong) = buffer[..count]
            .iter()
            .enumerate()
            .position(|pair| !right(pair))
        {
            bail!("Byte {} of the stream is wrong", at + wrong as u64);
        }
        shared.received.fetch_add(count as u64, Ordering::Relaxed);
        let gap = shared.gap.lock();
        gap.unwrap_or_else(PoisonError::into_inner).heard();
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

fn send(listener: &TcpListener, shared: &Shared) -> Result<String> {
    let mut stream = accept(listener, shared)?;
    let mut sum = Sha256::new();
    let mut state = 1u64;
    let mut piece = vec![0; PIECE];
    while !shared.stop.load(Ordering::Relaxed) {
        // xorshift64: bytes that no two packets have alike.
        for word in piece.chunks_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        let mut rest = &piece[..];
        while !rest.is_empty() {
            match stream.write(rest) {
                Ok(count) => {
                    sum.update(&rest[..count]);
                    rest = &rest[count..];
                    shared.sent.fetch_add(count as u64, Ordering::Relaxed);
                }
                Err(e) if again(e.kind()) && !shared.stop.load(Ordering::Relaxed) => {}
                Err(e) if again(e.kind()) => break,
                Err(e) => return Err(e).context("The connection broke"),
            }
        }
        std::thread::sleep(PAUSE);
    }
    Ok(sum
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}
