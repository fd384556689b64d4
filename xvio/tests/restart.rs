//! A backend that is killed with SIGKILL under load and started again: what the guest gave is given
//! back once, what it sent arrives, whoever listens, and with or without an in-flight table.
//!
//! The backend is this program once more ([`backend_process`]): it reflects every packet.

mod guest;

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use guest::*;
use vhost::vhost_user::message::VhostUserInflight;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use xvio::{Backend, SocketMode, TxBurst};

const SIZE: u16 = 64;
/// Bytes of a packet: an Ethernet header and a number.
const LEN: usize = 64;
const SOCKET: &str = "XVIO_TEST_SOCKET";
const CLIENT: &str = "XVIO_TEST_CLIENT";

/// Not a test: the backend, when started by one. It reflects until it is killed.
#[test]
fn backend_process() {
    let Some(socket) = std::env::var_os(SOCKET) else {
        return;
    };
    let mut config = config(Path::new("/"), 1);
    config.socket = PathBuf::from(socket);
    if std::env::var_os(CLIENT).is_some() {
        config.mode = SocketMode::Client;
    }
    let mut backend = Backend::start(config).unwrap();
    let mut pair = backend.take_queues().remove(0);
    let mut burst = TxBurst::new();
    loop {
        if pair.tx.poll(&mut burst) == 0 {
            std::thread::sleep(Duration::from_micros(20));
        }
        for packet in burst.iter() {
            let mut bytes = vec![0; packet.len()];
            packet.copy_to(&mut bytes).unwrap();
            // Dropped when the ring is full, as on a wire; the test counts.
            let _ = pair.rx.send(&[&bytes], None);
        }
        pair.tx.complete(&mut burst);
        pair.rx.flush();
    }
}

/// A backend process; killed when dropped.
struct Process(Child);

impl Process {
    fn start(socket: &Path, mode: SocketMode) -> Process {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "backend_process", "--nocapture"])
            .env(SOCKET, socket)
            .stdout(Stdio::null());
        if mode == SocketMode::Client {
            command.env(CLIENT, "1");
        }
        Process(command.spawn().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SIGKILL.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A driver under load: it keeps both rings as full as it can, and follows every packet.
struct Load {
    guest: Guest,
    table: Option<(VhostUserInflight, File)>,
    /// The number in the next packet.
    next: u64,
    /// The number in each chain of the transmit ring that is with the device.
    sent: HashMap<u16, u64>,
    /// Where each receive buffer is, by head.
    buffers: HashMap<u16, u64>,
    free: Vec<u64>,
    /// How often each number came back.
    back: HashMap<u64, u32>,
    given_back: u64,
}

impl Load {
    fn new(guest: Guest) -> Load {
        Load {
            guest,
            table: None,
            next: 0,
            sent: HashMap::new(),
            buffers: HashMap::new(),
            free: (0..u64::from(SIZE))
                .map(|i| HIGH + 0x8_0000 + 0x800 * i)
                .collect(),
            back: HashMap::new(),
            given_back: 0,
        }
    }

    /// Sends a little, and takes what there is. `most` packets are left out at one time.
    fn turn(&mut self, most: usize) {
        let (ring, memory) = self.guest.ring(1);
        for (head, _) in ring.take_used(memory) {
            assert!(self.sent.remove(&head).is_some(), "{head} came back twice");
            self.given_back += 1;
        }
        while self.sent.len() < most {
            let at = HIGH + 0x800 * (self.next % 256);
            let mut packet = vec![0; 12 + LEN];
            packet[12 + 14..12 + 22].copy_from_slice(&self.next.to_le_bytes());
            memory.write(at, &packet);
            let Some(head) = ring.add(memory, &[(at, packet.len() as u32)], false, false) else {
                break;
            };
            self.sent.insert(head, self.next);
            self.next += 1;
        }
        ring.expose(memory);
        let _ = ring.kick.write(1);
        let (ring, memory) = self.guest.ring(0);
        for (head, len) in ring.take_used(memory) {
            let at = self
                .buffers
                .remove(&head)
                .expect("a buffer came back twice");
            assert_eq!(len as usize, 12 + LEN);
            let packet = memory.read(at, len as usize);
            let number = u64::from_le_bytes(packet[26..34].try_into().unwrap());
            *self.back.entry(number).or_default() += 1;
            self.free.push(at);
        }
        while let Some(at) = self.free.pop() {
            match ring.add(memory, &[(at, 0x800)], true, false) {
                Some(head) => self.buffers.insert(head, at),
                None => {
                    self.free.push(at);
                    break;
                }
            };
        }
        ring.expose(memory);
    }

    /// Works until so many chains more were given back.
    fn run(&mut self, more: u64) {
        let (until, start) = (self.given_back + more, Instant::now());
        while self.given_back < until {
            self.turn(48);
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "{} given back, {} with the device",
                self.given_back,
                self.sent.len()
            );
        }
    }

    /// Sends nothing more, and waits for everything.
    fn drain(&mut self) {
        let start = Instant::now();
        while !self.sent.is_empty() {
            self.turn(0);
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "lost: {:?}",
                self.sent
            );
        }
        std::thread::sleep(Duration::from_millis(20));
        self.turn(0);
    }

    /// Introduces itself to a backend with the rings as they are.
    fn introduce(&mut self, tracked: bool) {
        self.guest.negotiate(0);
        if tracked {
            let f = &mut self.guest.frontend;
            let (table, file) = self.table.get_or_insert_with(|| {
                let asked = VhostUserInflight::new(0, 0, 2, SIZE);
                f.get_inflight_fd(&asked).unwrap()
            });
            f.set_inflight_fd(table, file.as_raw_fd()).unwrap();
        }
        let f = &self.guest.frontend;
        vhost::VhostBackend::set_mem_table(f, &self.guest.memory.regions()).unwrap();
        for index in 0..2 {
            // As QEMU does when the backend died: where the ring's used index is.
            let used = self.guest.rings[index].used();
            let base = self.guest.memory.u16(used + 2);
            self.guest.start_ring(index, base);
        }
    }
}

/// Where the two meet.
struct Meeting {
    dir: tempfile::TempDir,
    mode: SocketMode,
    listener: Option<UnixListener>,
}

impl Meeting {
    fn new(mode: SocketMode) -> Meeting {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("port.sock");
        let listener = (mode == SocketMode::Client).then(|| UnixListener::bind(path).unwrap());
        Meeting {
            dir,
            mode,
            listener,
        }
    }

    fn backend(&self) -> Process {
        Process::start(&self.dir.path().join("port.sock"), self.mode)
    }

    fn frontend(&self) -> Frontend {
        let stream = match &self.listener {
            Some(listener) => listener.accept().unwrap().0,
            None => {
                let (path, start) = (self.dir.path().join("port.sock"), Instant::now());
                loop {
                    match UnixStream::connect(&path) {
                        Ok(stream) => break stream,
                        Err(e) => assert!(start.elapsed() < Duration::from_secs(10), "{e}"),
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        };
        Frontend::from_stream(stream, 2)
    }
}

fn killed_under_load(mode: SocketMode, tracked: bool) {
    let meeting = Meeting::new(mode);
    let mut backend = meeting.backend();
    let mut load = Load::new(Guest::with_frontend(meeting.frontend(), 1, SIZE));
    load.introduce(tracked);
    const KILLS: u64 = 8;
    for round in 0..KILLS {
        load.run(2000 + 177 * round);
        drop(backend);
        // While nobody is there the driver goes on.
        for _ in 0..10 {
            load.turn(60);
        }
        backend = meeting.backend();
        load.guest.frontend = meeting.frontend();
        load.introduce(tracked);
    }
    load.run(2000);
    load.drain();
    // Lost is only what the receive ring had no room for, or what was on its way to it when the
    // backend was killed. Seen twice is only what was with the device at that moment.
    let twice = load.back.values().filter(|times| **times > 1).count() as u64;
    assert!(load.back.values().all(|times| *times as u64 <= 1 + KILLS));
    assert!(twice <= KILLS * u64::from(SIZE), "{twice}");
    assert!(
        load.back.len() as u64 > load.next / 4,
        "{} of {}",
        load.back.len(),
        load.next
    );
    assert!(load.back.keys().all(|number| *number < load.next));
    load.guest.memory.assert_untouched_outside();
    drop(backend);
}

#[test]
fn killed_under_load_as_server_with_in_flight_table() {
    killed_under_load(SocketMode::Server, true);
}

#[test]
fn killed_under_load_as_server_without_in_flight_table() {
    killed_under_load(SocketMode::Server, false);
}

#[test]
fn killed_under_load_as_client_with_in_flight_table() {
    killed_under_load(SocketMode::Client, true);
}

#[test]
fn killed_under_load_as_client_without_in_flight_table() {
    killed_under_load(SocketMode::Client, false);
}
