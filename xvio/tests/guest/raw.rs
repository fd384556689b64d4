//! A frontend without manners: messages as bytes.

use std::io::{IoSlice, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use xvio::{State, TxBurst};

use super::{Guest, HIGH, Port};

/// A message as bytes.
pub fn message(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for value in [request, flags, body.len() as u32] {
        bytes.extend(value.to_ne_bytes());
    }
    bytes.extend(body);
    bytes
}

pub fn send_with_fds(stream: &UnixStream, bytes: &[u8], fds: &[RawFd]) {
    let rights = [ControlMessage::ScmRights(fds)];
    let iov = [IoSlice::new(bytes)];
    let n = sendmsg::<()>(stream.as_raw_fd(), &iov, &rights, MsgFlags::empty(), None).unwrap();
    assert_eq!(n, bytes.len());
}

/// The next answer: request and body.
pub fn answer(stream: &mut UnixStream) -> (u32, Vec<u8>) {
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let mut header = [0; 12];
    stream.read_exact(&mut header).unwrap();
    let size = u32::from_ne_bytes(header[8..].try_into().unwrap());
    assert_eq!(
        u32::from_ne_bytes(header[4..8].try_into().unwrap()),
        5,
        "version 1, reply"
    );
    let mut body = vec![0; size as usize];
    stream.read_exact(&mut body).unwrap();
    (u32::from_ne_bytes(header[..4].try_into().unwrap()), body)
}

/// The device has closed the connection.
pub fn assert_closed(stream: &mut UnixStream) {
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    match stream.read(&mut [0; 64]) {
        Ok(0) => {}
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => {}
        other => panic!("{other:?}"),
    }
}

/// A guest can connect, and one packet from it arrives.
pub fn assert_serves(port: &mut Port, pairs: &mut [xvio::QueuePair]) -> Guest {
    let mut guest = Guest::connect(&port.socket, 0, 1, 64);
    guest.start();
    port.wait("running", |s| {
        s.active_queue_pairs == 1 && s.state == State::Running
    });
    let (ring, memory) = guest.ring(1);
    memory.write(HIGH, &[0; 72]);
    ring.add(memory, &[(HIGH, 72)], false, false).unwrap();
    ring.expose(memory);
    let mut burst = TxBurst::new();
    assert_eq!(pairs[0].tx.poll(&mut burst), 1);
    pairs[0].tx.complete(&mut burst);
    guest
}
