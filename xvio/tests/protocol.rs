//! Nothing is offered that has no handler: each protocol feature with the message that it is for, with
//! and without having been negotiated; and as many queues as there can be.

mod guest;

use std::fs::File;
use std::io::{IoSlice, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use guest::raw::message;
use guest::*;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use vhost::VhostBackend;
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;
use xvio::{Backend, TxBurst};

const NEED_REPLY: u32 = 8;

struct Connection(UnixStream);

impl Connection {
    fn new(port: &Port, features: Protocol) -> Connection {
        let stream = UnixStream::connect(&port.socket).unwrap();
        let time = Some(Duration::from_secs(10));
        stream.set_read_timeout(time).unwrap();
        let mut connection = Connection(stream);
        connection.send(16, 1, &features.bits().to_ne_bytes(), &[]);
        connection
    }

    fn send(&mut self, request: u32, flags: u32, body: &[u8], fds: &[RawFd]) {
        let bytes = message(request, flags, body);
        let rights = [ControlMessage::ScmRights(fds)];
        let rights = if fds.is_empty() { &[] } else { &rights[..] };
        let piece = [IoSlice::new(&bytes)];
        sendmsg::<()>(
            self.0.as_raw_fd(),
            &piece,
            rights,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )
        .unwrap();
    }

    /// The answer to a message: its body; `None` when the connection was closed.
    fn ask(&mut self, request: u32, body: &[u8], fds: &[RawFd]) -> Option<Vec<u8>> {
        self.send(request, 1 | NEED_REPLY, body, fds);
        let mut header = [0; 12];
        self.0.read_exact(&mut header).ok()?;
        let size = u32::from_ne_bytes(header[8..].try_into().unwrap());
        let mut body = vec![0; size as usize];
        self.0.read_exact(&mut body).unwrap();
        Some(body)
    }
}

fn memfd(len: u64) -> File {
    let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
    let file = File::from(nix::sys::memfd::memfd_create(c"xvio-test", flags).unwrap());
    file.set_len(len).unwrap();
    file
}

fn words(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_ne_bytes()).collect()
}

#[test]
fn each_protocol_feature_that_is_offered_has_its_handler_and_needs_to_be_negotiated() {
    let port = Port::new(2);
    let (memory, log) = (memfd(0x1000), memfd(0x1000));
    let (channel, _other) = UnixStream::pair().unwrap();
    let table = memfd(1 << 16);
    let region = words(&[0, 0x10_0000, 0x1000, 0x7000_0000_0000, 0]);
    let inflight = [words(&[1 << 16, 0]), words(&[64 << 16 | 2])].concat();
    let number = |n: u64| n.to_ne_bytes().to_vec();
    // The feature; the message, its body and descriptor; what is answered (0: it is done).
    type Case = (Protocol, u32, Vec<u8>, Option<RawFd>, Vec<u8>);
    let cases: Vec<Case> = vec![
        (Protocol::MQ, 17, vec![], None, number(2)),
        (
            Protocol::LOG_SHMFD,
            6,
            words(&[0x1000, 0]),
            Some(log.as_raw_fd()),
            words(&[0x1000, 0]),
        ),
        (
            Protocol::RARP,
            19,
            number(0x0102_0304_0506),
            None,
            number(0),
        ),
        (Protocol::MTU, 20, number(1500), None, number(0)),
        (
            Protocol::BACKEND_REQ,
            21,
            vec![],
            Some(channel.as_raw_fd()),
            number(0),
        ),
        (
            Protocol::INFLIGHT_SHMFD,
            32,
            inflight,
            Some(table.as_raw_fd()),
            number(0),
        ),
        (Protocol::RESET_DEVICE, 34, vec![], None, number(0)),
        (Protocol::CONFIGURE_MEM_SLOTS, 36, vec![], None, number(64)),
        (
            Protocol::CONFIGURE_MEM_SLOTS,
            37,
            region.clone(),
            Some(memory.as_raw_fd()),
            number(0),
        ),
        (Protocol::STATUS, 40, vec![], None, number(0)),
        (Protocol::STATUS, 39, number(1), None, number(0)),
    ];
    let mut plain = Connection::new(&port, Protocol::REPLY_ACK);
    let offered = plain.ask(15, &[], &[]).unwrap();
    let offered = u64::from_ne_bytes(offered.try_into().unwrap());
    let mut handled = Protocol::REPLY_ACK.bits();
    for (feature, request, body, fd, _) in &cases {
        handled |= feature.bits();
        let fds: Vec<RawFd> = fd.iter().copied().collect();
        let answer = plain.ask(*request, body, &fds).unwrap();
        assert_eq!(answer, number(1), "{request} without {feature:?}");
    }
    assert_eq!(offered, handled, "offered and handled");
    drop(plain);
    port.wait("idle", |s| !s.connected);
    let mut full = Connection::new(&port, Protocol::from_bits_retain(offered));
    for (feature, request, body, fd, wanted) in cases {
        let fds: Vec<RawFd> = fd.into_iter().collect();
        let answer = full.ask(request, &body, &fds).unwrap();
        assert_eq!(answer, wanted, "{request} with {feature:?}");
    }
    assert_eq!(
        full.ask(40, &[], &[]).unwrap(),
        number(1),
        "the status that was set"
    );
    assert_eq!(
        full.ask(38, &region, &[]).unwrap(),
        number(0),
        "REM_MEM_REG"
    );
    // What was not offered is refused, and the connection of who does not ask for answers ends.
    assert_eq!(
        full.ask(24, &[0; 12], &[]).unwrap(),
        number(1),
        "GET_CONFIG"
    );
    full.send(24, 1, &[0; 12], &[]);
    assert_eq!(full.0.read(&mut [0]).unwrap_or(0), 0);
}

#[test]
fn the_channel_for_our_requests_is_kept_until_the_connection_ends() {
    let port = Port::new(1);
    let (channel, mut other) = UnixStream::pair().unwrap();
    let mut connection = Connection::new(&port, Protocol::REPLY_ACK | Protocol::BACKEND_REQ);
    let done = connection.ask(21, &[], &[channel.as_raw_fd()]).unwrap();
    assert_eq!(done, [0; 8]);
    let file = memfd(1);
    let refused = connection.ask(21, &[], &[file.as_raw_fd()]).unwrap();
    assert_eq!(refused[0], 1, "a file is no socket");
    drop(channel);
    other.set_nonblocking(true).unwrap();
    let open = other.read(&mut [0]).unwrap_err();
    assert_eq!(open.kind(), std::io::ErrorKind::WouldBlock);
    drop(connection);
    other.set_nonblocking(false).unwrap();
    other
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    assert_eq!(
        other.read(&mut [0]).unwrap(),
        0,
        "closed with the connection"
    );
}

#[test]
fn sixty_four_queue_pairs_run() {
    const PAIRS: usize = 64;
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), PAIRS as u16);
    let mut port = Port {
        socket: config.socket.clone(),
        backend: Backend::start(config).unwrap(),
        dir,
    };
    let mut pairs = port.backend.take_queues();
    let mut guest = Guest::connect(&port.socket, MQ, PAIRS, 64);
    let regions = guest.memory.regions();
    guest.frontend.set_mem_table(&regions).unwrap();
    // The fixture's memory has no room for all of them: the first and the last pair.
    for (place, ring) in [0, 1, 2 * PAIRS - 2, 2 * PAIRS - 1].into_iter().enumerate() {
        guest.rings[ring] = Ring::new(place, 64);
        guest.start_ring(ring, 0);
    }
    port.wait("running", |s| s.active_queue_pairs == 2);
    for pair in [0, PAIRS - 1] {
        let (ring, memory) = guest.ring(2 * pair + 1);
        memory.write(HIGH, &[0; 72]);
        ring.add(memory, &[(HIGH, 72)], false, false).unwrap();
        ring.expose(memory);
        let mut burst = TxBurst::new();
        assert_eq!(pairs[pair].tx.poll(&mut burst), 1, "pair {pair}");
    }
}
