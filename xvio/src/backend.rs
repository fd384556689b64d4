//! [`Backend`]: one vhost-user port as its owner sees it. Its message thread is in `server.rs`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use crate::device::Device;
use crate::ring::MAX_SIZE;
use crate::server::Server;
use crate::socket::{Listener, check_length};
use crate::wire::Wake;
use crate::{Counters, Error, GuestRx, GuestTx, Offer};

/// Queue pairs of one port, at most: vring numbers in messages have eight bits.
const MAX_PAIRS: u16 = 64;

/// How long dropping a [`Backend`] waits for its message thread.
const DROP_WAIT: Duration = Duration::from_secs(5);

/// Who opens the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketMode {
    /// We listen, the frontend connects (and may come back).
    Server,
    /// The frontend listens; we connect and retry for ever.
    Client,
}

/// What a port is.
#[derive(Clone, Debug)]
pub struct BackendConfig {
    /// The port's name, for messages.
    pub name: String,
    /// Path of the unix socket.
    pub socket: PathBuf,
    /// Who listens on it.
    pub mode: SocketMode,
    /// Owner of the socket file (server mode).
    pub owner: Option<u32>,
    /// Group of the socket file (server mode).
    pub group: Option<u32>,
    /// Permission bits of the socket file (server mode).
    pub permissions: u32,
    /// Queue pairs the frontend may use: 1 to 64.
    pub max_queue_pairs: u16,
    /// Largest ring the frontend may set: a power of two up to 32768.
    pub max_queue_size: u16,
    /// The guest's MAC address. Told to the frontend by its own configuration, kept for status.
    pub mac: [u8; 6],
    /// The guest's MTU: the longest packet it can be sent is this plus the Ethernet header.
    pub mtu: u16,
    /// Optional features to offer.
    pub features: Offer,
}

/// Where a port is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Server mode, no frontend.
    Listening,
    /// Client mode, no frontend yet.
    Connecting,
    /// A frontend is connected; no ring runs.
    Negotiating,
    /// At least one ring runs.
    Running,
    /// The port cannot go on; the text says why.
    Failed(String),
}

/// A port's state, for people and for the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Where it is in its life.
    pub state: State,
    /// Virtio features the frontend has accepted.
    pub features: u64,
    /// Protocol features the frontend has accepted.
    pub protocol_features: u64,
    /// Queue pairs whose two rings run.
    pub active_queue_pairs: u16,
    /// What went wrong last, if anything did; kept over reconnection.
    pub last_error: Option<String>,
    /// A frontend is connected.
    pub connected: bool,
    /// Rings stopped for what they contained: vring index and reason.
    pub broken_queues: Vec<(u16, String)>,
}

/// Two rings of a guest, for one worker.
#[derive(Debug)]
pub struct QueuePair {
    /// Its number, from 0.
    pub index: u16,
    /// From the guest.
    pub tx: GuestTx,
    /// To the guest.
    pub rx: GuestRx,
}

/// One vhost-user port. Dropping it ends its thread, closes the connection, stops the rings and
/// removes its own socket file.
///
/// The drop waits for workers to leave the rings, which takes microseconds, but not for ever: after
/// five seconds, and on the message thread itself (in [`Backend::on_change`]), it returns and
/// leaves the rest to the message thread. A worker that is still in a ring then keeps the guest's
/// memory mapped for as long as it needs.
#[derive(Debug)]
pub struct Backend {
    shared: Arc<Shared>,
    queues: Vec<QueuePair>,
    counters: Vec<PairCounters>,
    thread: Option<JoinHandle<()>>,
    /// Disconnected when the thread has ended.
    ended: mpsc::Receiver<()>,
}

/// The counters of one queue pair's rings, from the guest and to the guest.
#[derive(Clone, Debug)]
pub struct PairCounters {
    /// From the guest.
    pub tx: Arc<Counters>,
    /// To the guest.
    pub rx: Arc<Counters>,
}

type Listeners = Vec<Arc<dyn Fn(&Status) + Send + Sync>>;
type MoveListeners = Vec<Arc<dyn Fn([u8; 6]) + Send + Sync>>;

/// What the port's owner and its message thread share.
pub(crate) struct Shared {
    status: Mutex<Status>,
    listeners: Mutex<Listeners>,
    move_listeners: Mutex<MoveListeners>,
    stop: AtomicBool,
    /// Wakes the message thread: to stop, or because a worker stopped a ring.
    alarm: Arc<EventFd>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn status(&self) -> Status {
        lock(&self.status).clone()
    }

    /// Takes the alarm back.
    pub(crate) fn quiet(&self) {
        let _ = self.alarm.read();
    }

    pub(crate) fn set_status(&self, status: Status) {
        *lock(&self.status) = status;
    }

    /// Tells the listeners the status, outside of the locks.
    pub(crate) fn announce(&self) {
        let status = self.status();
        let listeners = lock(&self.listeners).clone();
        for listener in listeners {
            listener(&status);
        }
    }
}

impl Shared {
    /// Tells that a guest has moved here, outside of the locks.
    pub(crate) fn moved(&self, mac: [u8; 6]) {
        let listeners = lock(&self.move_listeners).clone();
        for listener in listeners {
            listener(mac);
        }
    }
}

impl Wake for Shared {
    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the eventfd is open as long as `self` is, and the borrow is no longer.
        unsafe { BorrowedFd::borrow_raw(self.alarm.as_raw_fd()) }
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Backend {
    /// Starts the port and returns at once; its message thread serves the socket. In server mode
    /// the socket exists, with its owner and permissions, when this returns.
    pub fn start(config: BackendConfig) -> Result<Backend, Error> {
        config.check()?;
        let system = |step: &'static str| {
            let name = config.name.clone();
            move |source: io::Error| Error::System { name, step, source }
        };
        let alarm = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
            .map_err(system("make an eventfd"))?;
        let alarm = Arc::new(alarm);
        let listener = match config.mode {
            SocketMode::Server => Some(Listener::bind(&config)?),
            SocketMode::Client => None,
        };
        let state = match config.mode {
            SocketMode::Server => State::Listening,
            SocketMode::Client => State::Connecting,
        };
        let device = Device::new(2 * config.max_queue_pairs, &alarm);
        let pair = |index: u16| {
            let ring = |n: u16| Arc::clone(&device.rings[usize::from(n)].queue);
            QueuePair {
                index,
                rx: GuestRx::new(ring(2 * index)),
                tx: GuestTx::new(ring(2 * index + 1)),
            }
        };
        let queues: Vec<QueuePair> = (0..config.max_queue_pairs).map(pair).collect();
        let counters = queues.iter().map(|q| PairCounters {
            tx: q.tx.counters(),
            rx: q.rx.counters(),
        });
        let shared = Arc::new(Shared {
            status: Mutex::new(Status::new(state)),
            listeners: Mutex::default(),
            move_listeners: Mutex::default(),
            stop: AtomicBool::new(false),
            alarm,
        });
        let server = Server::new(config.clone(), Arc::clone(&shared), listener, device);
        let (running, ended) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name(format!("vhost {}", config.name))
            .spawn(move || {
                let _ended = running;
                server.run();
            })
            .map_err(system("start its message thread"))?;
        Ok(Backend {
            shared,
            counters: counters.collect(),
            queues,
            thread: Some(thread),
            ended,
        })
    }

    /// The queue pairs, `max_queue_pairs` of them; empty from the second call on.
    pub fn take_queues(&mut self) -> Vec<QueuePair> {
        std::mem::take(&mut self.queues)
    }

    /// The port's state now.
    pub fn status(&self) -> Status {
        self.shared.status()
    }

    /// Counters of every queue pair, also after [`Backend::take_queues`].
    pub fn counters(&self) -> &[PairCounters] {
        &self.counters
    }

    /// Calls `f` on the message thread after each change of the status (rings started or stopped,
    /// connections, new kick descriptors), and once now, on this thread. Changes within a few
    /// milliseconds are told together. Wake parked workers from here.
    pub fn on_change(&self, f: Box<dyn Fn(&Status) + Send + Sync>) {
        let f: Arc<dyn Fn(&Status) + Send + Sync> = Arc::from(f);
        lock(&self.shared.listeners).push(Arc::clone(&f));
        f(&self.status());
    }

    /// Calls `f` on the message thread when the guest has been moved here by a live migration and
    /// cannot tell its network so itself (vhost-user SEND_RARP; a driver with GUEST_ANNOUNCE sends
    /// gratuitous ARP of its own, and this is not called). The argument is the guest's MAC address
    /// as the frontend says it: compare it with the port's. [`crate::rarp`] makes the frame that a
    /// switch which learns addresses should be sent. At most one call in 10 ms.
    pub fn on_move(&self, f: Box<dyn Fn([u8; 6]) + Send + Sync>) {
        lock(&self.shared.move_listeners).push(Arc::from(f));
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        let _ = self.shared.alarm.write(1);
        // Queues that were never taken hold no gate; drop them first all the same.
        self.queues.clear();
        let Some(thread) = self.thread.take() else {
            return;
        };
        if thread.thread().id() == std::thread::current().id() {
            return;
        }
        match self.ended.recv_timeout(DROP_WAIT) {
            Err(mpsc::RecvTimeoutError::Disconnected) => drop(thread.join()),
            _ => tracing::warn!("a worker holds a ring of a port that was dropped"),
        }
    }
}

impl BackendConfig {
    fn check(&self) -> Result<(), Error> {
        let fail = |reason: String| {
            Err(Error::Config {
                name: self.name.clone(),
                reason,
            })
        };
        let (pairs, size) = (self.max_queue_pairs, self.max_queue_size);
        if pairs == 0 || pairs > MAX_PAIRS {
            return fail(format!("{pairs} queue pairs; use 1 to {MAX_PAIRS}"));
        }
        if pairs > 1 && !self.features.multiqueue {
            return fail(format!("{pairs} queue pairs need the multiqueue feature"));
        }
        if !size.is_power_of_two() || size > MAX_SIZE {
            return fail(format!(
                "queue size {size}; use a power of two up to {MAX_SIZE}"
            ));
        }
        if self.mtu < 68 {
            return fail(format!("MTU {}; the smallest is 68", self.mtu));
        }
        check_length(&self.socket)
    }
}

impl Status {
    fn new(state: State) -> Self {
        Status {
            state,
            features: 0,
            protocol_features: 0,
            active_queue_pairs: 0,
            last_error: None,
            connected: false,
            broken_queues: Vec::new(),
        }
    }
}
