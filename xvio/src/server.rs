//! The message thread of a port: it gets connections, serves one at a time, and gets the next when
//! the frontend goes, for ever. Everything a connection brought is let go of with it.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;

use crate::backend::Shared;
use crate::device::Device;
use crate::messages::{self, MessageError, Reply};
use crate::quiet::Quiet;
use crate::socket::{self, Listener};
use crate::wire::{Message, Wake, Wire, WireError};
use crate::{BackendConfig, SocketMode, State};

/// First and longest pause between attempts to connect.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(400));
/// Shortest time between two announcements of changes, so that a frontend cannot flood those who
/// listen; the last state is always announced.
const ANNOUNCE: Duration = Duration::from_millis(10);
/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);
/// The same while another frontend is served, whose messages wait as long.
const REFUSE_PAUSE: Duration = Duration::from_millis(20);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Message(#[from] MessageError),
}

/// What a wait ended with.
#[derive(Clone, Copy, Debug, Default)]
struct Events {
    /// The connection can be read, or has ended.
    connection: bool,
    /// The other side of the connection is gone.
    hung_up: bool,
    /// Somebody wants to connect.
    listener: bool,
}

/// The message thread's own state.
#[derive(Debug)]
pub(crate) struct Server {
    config: BackendConfig,
    shared: Arc<Shared>,
    listener: Option<Listener>,
    device: Device,
    connected: bool,
    last_error: Option<String>,
    /// Changes of the device that were told.
    told: u64,
    /// When listeners were called last.
    announced: Option<Instant>,
    /// The status was set, but listeners were not called yet.
    unannounced: bool,
    /// When the guest was last said to have moved here.
    moved: Option<Instant>,
    quiet: Quiet,
}

impl Server {
    pub(crate) fn new(
        config: BackendConfig,
        shared: Arc<Shared>,
        listener: Option<Listener>,
        device: Device,
    ) -> Self {
        Server {
            config,
            shared,
            listener,
            device,
            connected: false,
            last_error: None,
            told: 0,
            announced: None,
            unannounced: false,
            moved: None,
            quiet: Quiet::new(Instant::now()),
        }
    }

    /// The thread's life.
    pub(crate) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        while let Some(stream) = self.next_connection() {
            if self.may_log() {
                tracing::info!(port = self.config.name, "a frontend has connected");
            }
            self.connected = true;
            self.tell();
            let end = match Wire::new(stream, &*shared) {
                Ok(wire) => self.serve(&wire),
                Err(e) => End::Wire(WireError::Io(e)),
            };
            match end {
                End::Wire(WireError::Closed) => {
                    if self.may_log() {
                        tracing::info!(port = self.config.name, "the frontend has disconnected");
                    }
                }
                End::Wire(WireError::Stopped) => {}
                end => {
                    let why = chain(&end);
                    if self.may_log() {
                        tracing::warn!(port = self.config.name, why, "the connection has ended");
                    }
                    self.last_error = Some(why);
                }
            }
            self.connected = false;
            self.device.disconnect();
            if shared.stopping() {
                break;
            }
            self.tell();
            if self.config.mode == SocketMode::Client {
                // Whoever accepts and closes at once is not asked in a busy loop.
                self.pause(BACK_OFF.0);
            }
        }
        self.device.disconnect();
        self.connected = false;
        self.announced = None;
        self.tell();
    }

    /// The next connection; `None` when the port is to stop.
    fn next_connection(&mut self) -> Option<UnixStream> {
        match self.config.mode {
            SocketMode::Server => self.accept(),
            SocketMode::Client => self.connect(),
        }
    }

    fn accept(&mut self) -> Option<UnixStream> {
        loop {
            let mut pause = None;
            if let Some(listener) = &self.listener {
                match listener.accept() {
                    Ok(Some(stream)) => return Some(stream),
                    Ok(None) => {}
                    Err(e) => {
                        let why = format!("Cannot accept a connection: {e}");
                        tracing::warn!(port = self.config.name, why);
                        self.last_error = Some(why);
                        pause = Some(ACCEPT_PAUSE);
                    }
                }
            }
            if pause.is_some() {
                self.pause(ACCEPT_PAUSE);
            } else {
                self.wait(None);
            }
            if self.shared.stopping() {
                return None;
            }
        }
    }

    fn connect(&mut self) -> Option<UnixStream> {
        let (mut pause, longest) = BACK_OFF;
        while !self.shared.stopping() {
            match socket::connect_to(&self.config.socket) {
                Ok(stream) => {
                    self.last_error = None;
                    return Some(stream);
                }
                Err(e) => {
                    let path = self.config.socket.display();
                    let why = format!("Cannot connect to {path}: {e}");
                    if self.last_error.as_ref() != Some(&why) {
                        tracing::info!(port = self.config.name, why, "retrying");
                        self.last_error = Some(why);
                        self.tell();
                    }
                }
            }
            self.pause(pause);
            pause = (pause * 2).min(longest);
        }
        None
    }

    /// Serves one connection until it ends.
    fn serve(&mut self, wire: &Wire<'_>) -> End {
        loop {
            let events = self.wait(Some(wire.socket()));
            if self.shared.stopping() {
                return WireError::Stopped.into();
            }
            if events.connection {
                let result = match wire.receive() {
                    Ok(message) => self.answer(wire, message),
                    Err(e) => Err(e.into()),
                };
                if let Err(end) = result {
                    return end;
                }
            } else if events.listener && !events.hung_up {
                self.refuse_second();
            }
            self.tell_changes();
        }
    }

    /// Handles one message and answers it.
    fn answer(&mut self, wire: &Wire<'_>, message: Message) -> Result<(), End> {
        let (request, need_reply) = (message.request, message.need_reply);
        tracing::trace!(port = self.config.name, request, "message");
        let result = messages::handle(&mut self.device, &self.config, message);
        let ack = need_reply && self.device.protocol & Protocol::REPLY_ACK.bits() != 0;
        match result {
            Ok(Reply::U64(value)) => wire.reply(request, &value.to_ne_bytes())?,
            Ok(Reply::VringState(index, num)) => {
                let mut body = [0; 8];
                body[..4].copy_from_slice(&index.to_ne_bytes());
                body[4..].copy_from_slice(&num.to_ne_bytes());
                wire.reply(request, &body)?;
            }
            Ok(Reply::Body(body)) => wire.reply(request, &body)?,
            Ok(Reply::WithFd(body, fd)) => wire.reply_with(request, &body, fd.as_fd())?,
            Ok(Reply::Ack) if ack => wire.reply(request, &0u64.to_ne_bytes())?,
            Ok(Reply::Ack) => {}
            Err(e) if ack => {
                self.complain(chain(&e));
                wire.reply(request, &1u64.to_ne_bytes())?;
            }
            Err(e) => return Err(e.into()),
        }
        if let Some(mac) = self.device.announce.take() {
            self.moved(mac);
        }
        Ok(())
    }

    /// The guest has moved here and does not tell its network so itself (SEND_RARP). More of them
    /// than one in [`ANNOUNCE`] are a flood.
    fn moved(&mut self, mac: [u8; 6]) {
        if self.moved.is_none_or(|at| at.elapsed() >= ANNOUNCE) {
            self.moved = Some(Instant::now());
            self.shared.moved(mac);
        }
    }

    /// A port has one frontend. Who comes second is told by closing, not by waiting for ever.
    fn refuse_second(&mut self) {
        match self.listener.as_ref().map(Listener::accept) {
            Some(Ok(Some(_second))) => {
                self.complain("A second frontend tried to connect and was refused".to_owned());
            }
            // Out of descriptors or memory: it still waits, and would be found again at once.
            Some(Err(_)) => self.pause(REFUSE_PAUSE),
            Some(Ok(None)) | None => {}
        }
    }

    /// Notes what went wrong while the connection goes on; logged once when it repeats.
    fn complain(&mut self, why: String) {
        if self.last_error.as_ref() != Some(&why) {
            if self.may_log() {
                tracing::warn!(port = self.config.name, why, "the frontend was refused");
            }
            self.last_error = Some(why);
        }
        self.device.changes += 1;
    }

    /// Whether what the frontend has done may be logged, or it has done too much lately.
    fn may_log(&mut self) -> bool {
        let line = self.quiet.line(Instant::now());
        if let Some(left_out @ 1..) = line {
            let port = &self.config.name;
            tracing::warn!(port, left_out, "the frontend caused more lines than these");
        }
        line.is_some()
    }

    /// Waits for the connection, the listener and the alarm.
    fn wait(&mut self, connection: Option<&UnixStream>) -> Events {
        let timeout = self.announce();
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = vec![readable(self.shared.fd())];
        let listener = self.listener.as_ref().map(|l| l.as_fd());
        fds.extend(listener.map(readable));
        fds.extend(connection.map(|c| readable(c.as_fd())));
        let timeout = timeout.map_or(PollTimeout::NONE, |t| {
            PollTimeout::try_from(t).unwrap_or(PollTimeout::MAX)
        });
        if poll(&mut fds, timeout).is_err() {
            return Events::default();
        }
        let state = |fd: &PollFd<'_>| fd.revents().unwrap_or(PollFlags::empty());
        let mut events = Events::default();
        if !state(&fds[0]).is_empty() {
            self.shared.quiet();
        }
        if listener.is_some() {
            events.listener = !state(&fds[1]).is_empty();
        }
        if let Some(last) = fds.last().filter(|_| connection.is_some()) {
            events.connection = !state(last).is_empty();
            events.hung_up = state(last).contains(PollFlags::POLLHUP);
        }
        events
    }

    /// Waits, but not when the port is to stop.
    fn pause(&mut self, mut time: Duration) {
        if let Some(first) = self.announce() {
            std::thread::sleep(first);
            self.announce();
            time = time.saturating_sub(first);
        }
        let mut fds = [PollFd::new(self.shared.fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
        if poll(&mut fds, timeout).is_ok_and(|n| n > 0) {
            self.shared.quiet();
        }
    }

    /// Tells the status if the device, or a worker, has changed something.
    fn tell_changes(&mut self) {
        let broken = |(index, ring): (usize, &crate::device::Ring)| {
            ring.queue.reason().map(|reason| (index as u16, reason))
        };
        let broken: Vec<_> = self
            .device
            .rings
            .iter()
            .enumerate()
            .filter_map(broken)
            .collect();
        if self.device.changes != self.told || broken != self.shared.status().broken_queues {
            self.tell();
        }
    }

    /// Makes the status from the device and tells it.
    fn tell(&mut self) {
        self.told = self.device.changes;
        let mut status = self.shared.status();
        let rings = self.device.rings.len();
        let ready = |index: &usize| self.device.ready(*index);
        let pairs = (0..rings / 2).filter(|i| ready(&(2 * i)) && ready(&(2 * i + 1)));
        status.active_queue_pairs = pairs.count() as u16;
        status.state = match (self.connected, self.config.mode) {
            (true, _) if (0..rings).any(|i| ready(&i)) => State::Running,
            (true, _) => State::Negotiating,
            (false, SocketMode::Server) => State::Listening,
            (false, SocketMode::Client) => State::Connecting,
        };
        status.connected = self.connected;
        status.features = self.device.features().unwrap_or(0);
        status.protocol_features = self.device.protocol;
        status.last_error.clone_from(&self.last_error);
        status.broken_queues.clear();
        for (index, ring) in self.device.rings.iter().enumerate() {
            if let Some(reason) = ring.queue.reason() {
                status.broken_queues.push((index as u16, reason));
            }
        }
        if let Some((ring, reason)) = status.broken_queues.first() {
            let text = format!("Vring {ring}: {reason}");
            if self.last_error.as_ref() != Some(&text) && self.may_log() {
                tracing::warn!(port = self.config.name, text, "a ring cannot run");
            }
            self.last_error = Some(text.clone());
            status.last_error = Some(text);
        }
        self.shared.set_status(status);
        self.unannounced = true;
        self.announce();
    }

    /// Calls the listeners, unless they were called just now: then, how long to wait with it.
    fn announce(&mut self) -> Option<Duration> {
        if !self.unannounced {
            return None;
        }
        let since = self.announced.map_or(ANNOUNCE, |at| at.elapsed());
        match ANNOUNCE.checked_sub(since) {
            None | Some(Duration::ZERO) => {
                self.unannounced = false;
                self.shared.announce();
                self.announced = Some(Instant::now());
                None
            }
            // Rounded up to what poll can wait.
            Some(rest) => Some(rest + Duration::from_millis(1)),
        }
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
