//! Arbitrary messages on a vhost-user socket, with and without descriptors: whatever they say, the port
//! goes on, its worker is never held up, and nothing of a connection stays when it has ended.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::cell::RefCell;
use std::fs::File;
use std::io::{IoSlice, Read};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use xvio::{Backend, BackendConfig, Offer, QueuePair, SocketMode, TxBurst};

/// Descriptors of this process at one time: the fixed ones, and those of a connection being taken apart.
const MOST_OPEN: usize = 64;

struct World {
    socket: PathBuf,
    _port: Backend,
    pairs: Vec<QueuePair>,
    burst: TxBurst,
    memory: File,
    bell: EventFd,
    rounds: u64,
}

thread_local! {
    static WORLD: RefCell<World> = RefCell::new(World::new());
}

impl World {
    fn new() -> World {
        let folder = std::env::temp_dir().join(format!("fuzz-messages-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let socket = folder.join("port.sock");
        let mut port = Backend::start(BackendConfig {
            name: "fuzz".to_owned(),
            socket: socket.clone(),
            mode: SocketMode::Server,
            owner: None,
            group: None,
            permissions: 0o600,
            max_queue_pairs: 2,
            max_queue_size: 1024,
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 9000,
            features: Offer::default(),
        })
        .expect("a port");
        let memory = File::from(memfd_create(c"fuzz", MFdFlags::MFD_CLOEXEC).expect("a memfd"));
        memory.set_len(1 << 20).expect("a size");
        World {
            socket,
            pairs: port.take_queues(),
            _port: port,
            burst: TxBurst::new(),
            memory,
            bell: EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("an eventfd"),
            rounds: 0,
        }
    }

    /// Sends the messages that `data` describes: request, descriptors, length, body, and so on.
    fn round(&mut self, mut data: &[u8]) {
        let mut stream = UnixStream::connect(&self.socket).expect("the port listens");
        while let [request, fds, len, rest @ ..] = data {
            let len = usize::from(*len).min(rest.len());
            let (body, after) = rest.split_at(len);
            data = after;
            let flags = 1 | if fds & 0x80 != 0 { 8u32 } else { 0 };
            let mut bytes = Vec::new();
            for word in [u32::from(*request), flags, len as u32] {
                bytes.extend(word.to_ne_bytes());
            }
            bytes.extend(body);
            self.send(&stream, &bytes, *fds);
            self.poll();
        }
        // The end of it, once the port has read all and closed.
        let _ = stream.shutdown(Shutdown::Write);
        let mut answers = Vec::new();
        let _ = stream.read_to_end(&mut answers);
        self.rounds += 1;
        if self.rounds.is_multiple_of(512) {
            let open = std::fs::read_dir("/proc/self/fd").expect("/proc").count();
            assert!(open < MOST_OPEN, "{open} descriptors are open");
        }
    }

    fn send(&self, stream: &UnixStream, bytes: &[u8], kind: u8) {
        let (memory, bell) = (self.memory.as_raw_fd(), self.bell.as_raw_fd());
        let own: RawFd = stream.as_raw_fd();
        let all = [memory, bell, own, memory, memory];
        let fds = match kind & 7 {
            0 => &all[..0],
            1 => &all[..1],
            2 => &all[1..2],
            3 => &all[2..3],
            4 => &all[3..5],
            _ => &all[..],
        };
        let rights = [ControlMessage::ScmRights(fds)];
        let rights = if fds.is_empty() { &[] } else { &rights[..] };
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        let _ = sendmsg::<()>(own, &[IoSlice::new(bytes)], rights, flags, None);
    }

    /// What a worker does meanwhile.
    fn poll(&mut self) {
        for pair in &mut self.pairs {
            pair.tx.poll(&mut self.burst);
            pair.tx.complete(&mut self.burst);
            let _ = pair.rx.send(&[&[0; 60]], None);
            pair.rx.flush();
        }
    }
}

fuzz_target!(|data: &[u8]| {
    WORLD.with_borrow_mut(|world| world.round(data));
});
