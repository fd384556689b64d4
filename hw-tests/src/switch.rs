//! A small learning switch between vhost-user ports of this process and the kernel of a network namespace
//! (through a TAP interface): the least that two guests, or a guest and a program, need to talk. It shows what
//! `xvio` does, with nothing of the agent around it.

use crate::netns::Netns;
use anyhow::{Context, Result};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use xvio::{Backend, BackendConfig, Offer, PartialCsum, QueuePair, SocketMode, Status, TxBurst};

/// The TAP interface's name in its namespace.
pub const TAP: &str = "tap0";
/// Where a MAC address is: a vhost-user port, or the kernel.
const KERNEL: usize = usize::MAX;
/// Longest frame: 64 KiB and a tag.
const LONGEST: usize = 65_600;

type Table = Arc<Mutex<HashMap<[u8; 6], usize>>>;

/// The switch. Dropped, it ends.
#[derive(Debug)]
pub struct Switch {
    backends: Vec<Backend>,
    /// Frames from each port.
    seen: Arc<Vec<AtomicU64>>,
    /// Times that a guest was said to have moved to each port.
    moves: Arc<Vec<AtomicU64>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// One port of the switch.
#[derive(Clone, Debug)]
pub struct Port<'a> {
    /// Its socket.
    pub socket: &'a Path,
    /// The frontend makes the socket, and the port connects.
    pub client: bool,
    /// Queue pairs.
    pub queues: u16,
}

impl Switch {
    /// Starts it with a vhost-user port for each of `ports`, and `tap0` in the namespace, which is up and has
    /// `address` (with its prefix length).
    pub fn start(netns: &Netns, address: &str, mtu: u16, ports: &[Port<'_>]) -> Result<Switch> {
        let tap = netns.within(open_tap)?;
        netns.ip(&["addr", "add", address, "dev", TAP])?;
        netns.ip(&["link", "set", TAP, "mtu", &mtu.to_string(), "up"])?;
        let table = Table::default();
        let counters = || Arc::new(ports.iter().map(|_| AtomicU64::new(0)).collect::<Vec<_>>());
        let (seen, moves) = (counters(), counters());
        let (mut backends, mut queues) = (Vec::new(), Vec::new());
        for (number, port) in ports.iter().enumerate() {
            let mut backend = Backend::start(config(port, mtu))
                .with_context(|| format!("Port {number} of the switch does not start"))?;
            queues.push(backend.take_queues());
            let (table, moves) = (table.clone(), moves.clone());
            backend.on_move(Box::new(move |mac| {
                lock(&table).insert(mac, number);
                moves[number].fetch_add(1, Ordering::Relaxed);
            }));
            backends.push(backend);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let mut worker = Worker {
            queues,
            tap,
            table,
            seen: seen.clone(),
            buffer: vec![0; LONGEST],
        };
        let ending = stop.clone();
        let thread = std::thread::Builder::new()
            .name("switch".into())
            .spawn(move || {
                let mut burst = TxBurst::new();
                while !ending.load(Ordering::Relaxed) {
                    if worker.round(&mut burst) == 0 {
                        std::thread::sleep(Duration::from_micros(100));
                    }
                }
            })?;
        Ok(Switch {
            backends,
            seen,
            moves,
            stop,
            thread: Some(thread),
        })
    }

    /// A port's state.
    pub fn status(&self, port: usize) -> Status {
        self.backends[port].status()
    }

    /// Frames that came from a port.
    pub fn seen(&self, port: usize) -> u64 {
        self.seen[port].load(Ordering::Relaxed)
    }

    /// How often a guest was said to have moved to a port.
    pub fn moves(&self, port: usize) -> u64 {
        self.moves[port].load(Ordering::Relaxed)
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(table: &Table) -> std::sync::MutexGuard<'_, HashMap<[u8; 6], usize>> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

fn config(port: &Port<'_>, mtu: u16) -> BackendConfig {
    BackendConfig {
        name: format!("switch {}", port.socket.display()),
        socket: port.socket.to_owned(),
        mode: match port.client {
            true => SocketMode::Client,
            false => SocketMode::Server,
        },
        owner: None,
        group: None,
        permissions: 0o600,
        max_queue_pairs: port.queues,
        max_queue_size: 1024,
        mac: [0; 6],
        mtu,
        features: Offer::default(),
    }
}

/// The thread's own state.
struct Worker {
    queues: Vec<Vec<QueuePair>>,
    tap: File,
    table: Table,
    seen: Arc<Vec<AtomicU64>>,
    buffer: Vec<u8>,
}

impl Worker {
    /// Moves what there is; how many frames.
    fn round(&mut self, burst: &mut TxBurst) -> usize {
        let mut moved = 0;
        for port in 0..self.queues.len() {
            for pair in 0..self.queues[port].len() {
                let count = self.queues[port][pair].tx.poll(burst);
                for packet in burst.iter() {
                    let mut frame = std::mem::take(&mut self.buffer);
                    let bytes = &mut frame[..packet.len()];
                    if packet.copy_to(bytes).is_ok() {
                        self.forward(port, pair, bytes, packet.csum());
                    }
                    self.buffer = frame;
                }
                self.queues[port][pair].tx.complete(burst);
                self.seen[port].fetch_add(count as u64, Ordering::Relaxed);
                moved += count;
            }
        }
        for _ in 0..xvio::BURST {
            let mut frame = std::mem::take(&mut self.buffer);
            let read = self.tap.read(&mut frame);
            if let Ok(len) = read {
                self.forward(KERNEL, 0, &mut frame[..len], None);
                moved += 1;
            }
            self.buffer = frame;
            if read.is_err() {
                break;
            }
        }
        for pair in self.queues.iter_mut().flatten() {
            pair.rx.flush();
        }
        moved
    }

    fn forward(&mut self, from: usize, pair: usize, frame: &mut [u8], csum: Option<PartialCsum>) {
        let (Some(to), Some(source)) = (mac(frame, 0), mac(frame, 6)) else {
            return;
        };
        let place = {
            let mut table = lock(&self.table);
            table.insert(source, from);
            table.get(&to).copied()
        };
        for port in 0..self.queues.len() {
            if port != from && place.is_none_or(|at| at == port) {
                let pairs = self.queues[port].iter().filter(|pair| pair.rx.ready());
                let index = pair % pairs.count().max(1);
                // A full ring drops, as a switch does; the ring counts it.
                let _ = self.queues[port][index].rx.send(&[frame], csum);
            }
        }
        if from != KERNEL && place.is_none_or(|at| at == KERNEL) {
            if let Some(csum) = csum {
                fill_in(frame, csum);
            }
            let _ = self.tap.write(frame);
        }
    }
}

fn mac(frame: &[u8], at: usize) -> Option<[u8; 6]> {
    frame.get(at..at + 6)?.try_into().ok()
}

/// Fills in a checksum that the guest left to us (RFC 1071).
fn fill_in(frame: &mut [u8], csum: PartialCsum) {
    let start = usize::from(csum.start);
    let mut sum = 0u64;
    for word in frame[start..].chunks(2) {
        sum += u64::from(word[0]) << 8 | word.get(1).map_or(0, |low| u64::from(*low));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let value = match !(sum as u16) {
        0 => 0xffff,
        value => value,
    };
    let at = start + usize::from(csum.offset);
    frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// `tap0` of the namespace that this thread is in, made and opened.
fn open_tap() -> Result<File> {
    let tap = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .context("\"/dev/net/tun\" cannot be opened; the kernel needs the tun driver")?;
    // struct ifreq: the name, then the flags.
    let mut request = [0u8; 40];
    request[..TAP.len()].copy_from_slice(TAP.as_bytes());
    let flags = (libc::IFF_TAP | libc::IFF_NO_PI) as u16;
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `request` is as long as.
    let done = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF as _, request.as_mut_ptr()) };
    if done < 0 {
        return Err(std::io::Error::last_os_error()).context("The TAP interface cannot be made");
    }
    Ok(tap)
}
