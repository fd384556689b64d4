//! The message side: handshakes, reconnection, sockets, and the life of a backend.

mod guest;

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use guest::raw::*;
use guest::*;
use nix::sys::socket::MsgFlags;
use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VringConfigData};
use xvio::{Backend, Error, SocketMode, State, TxBurst};

#[test]
fn a_frontend_negotiates_runs_and_comes_back() {
    let mut port = Port::new(2);
    let mut pairs = port.backend.take_queues();
    assert!(port.backend.take_queues().is_empty());
    assert_eq!(pairs.len(), 2);
    let changes = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&changes);
    port.backend.on_change(Box::new(move |_| {
        seen.fetch_add(1, Ordering::SeqCst);
    }));
    assert_eq!(changes.load(Ordering::SeqCst), 1);
    assert_eq!(port.backend.status().state, State::Listening);
    for round in 0..3 {
        let before = changes.load(Ordering::SeqCst);
        let mut guest = assert_serves(&mut port, &mut pairs);
        assert_eq!(guest.frontend.get_queue_num().unwrap(), 2);
        assert_eq!(guest.frontend.get_max_mem_slots().unwrap(), 64);
        let status = port.backend.status();
        assert!(status.connected && status.features & VERSION_1 != 0);
        assert_eq!(status.last_error, None, "round {round}");
        guest.frontend.set_owner().unwrap();
        drop(guest);
        port.wait("listening", |s| s.state == State::Listening && !s.connected);
        assert!(!pairs[0].tx.ready() && !pairs[0].rx.ready());
        assert!(pairs[0].tx.kick().is_none());
        port.wait("told", |_| changes.load(Ordering::SeqCst) > before);
    }
}

#[test]
fn stopping_a_ring_tells_where_it_was_and_it_goes_on_there() {
    let mut port = Port::new(1);
    let mut pairs = port.backend.take_queues();
    let mut guest = assert_serves(&mut port, &mut pairs);
    assert_eq!(guest.frontend.get_vring_base(1).unwrap(), 1);
    assert!(!pairs[0].tx.ready());
    guest.start_ring(1, 1);
    port.wait("running", |s| s.active_queue_pairs == 1);
    let (ring, memory) = guest.ring(1);
    ring.add(memory, &[(HIGH, 80)], false, false).unwrap();
    ring.expose(memory);
    let mut burst = TxBurst::new();
    assert_eq!(pairs[0].tx.poll(&mut burst), 1);
    assert_eq!(burst.packet(0).len(), 68);
    drop(burst);
    let (ring, memory) = guest.ring(1);
    assert_eq!(
        ring.take_used(memory).len(),
        2,
        "a dropped burst is given back"
    );
    // Disabled is not stopped: it goes on where it was.
    for _ in 0..3 {
        guest.frontend.set_vring_enable(1, false).unwrap();
        assert!(!pairs[0].tx.ready());
        guest.frontend.set_vring_enable(1, true).unwrap();
        guest.frontend.set_vring_enable(1, true).unwrap();
        assert!(pairs[0].tx.ready());
    }
    assert_eq!(guest.frontend.get_vring_base(1).unwrap(), 2);
}

#[test]
fn the_messages_of_a_ring_may_come_in_any_order() {
    let mut port = Port::new(1);
    let pairs = port.backend.take_queues();
    let mut guest = Guest::connect(&port.socket, 0, 1, 64);
    let ring = &guest.rings[1];
    let at = VringConfigData {
        queue_max_size: 64,
        queue_size: 64,
        flags: 0,
        desc_table_addr: ring.desc() + 0x7000_0000_0000,
        used_ring_addr: ring.used() + 0x7000_0000_0000,
        avail_ring_addr: ring.avail() + 0x7000_0000_0000,
        log_addr: None,
    };
    // The address before the memory table, the kick before the address.
    guest.frontend.set_vring_enable(1, true).unwrap();
    guest.frontend.set_vring_kick(1, &ring.kick).unwrap();
    guest.frontend.set_vring_addr(1, &at).unwrap();
    guest.frontend.set_vring_num(1, 64).unwrap();
    assert!(!pairs[0].tx.ready());
    guest
        .frontend
        .set_mem_table(&guest.memory.regions())
        .unwrap();
    assert!(pairs[0].tx.ready());
    // A table without the ring stops it, with a reason; the right table brings it back.
    guest
        .frontend
        .set_mem_table(&guest.memory.regions()[1..])
        .unwrap();
    assert!(!pairs[0].tx.ready());
    let status = port.wait("reason", |s| !s.broken_queues.is_empty());
    assert!(
        status.broken_queues[0].1.contains("descriptor table"),
        "{status:?}"
    );
    guest
        .frontend
        .add_mem_region(&guest.memory.regions()[0])
        .unwrap();
    assert!(pairs[0].tx.ready());
    port.wait("no reason", |s| s.broken_queues.is_empty());
    guest
        .frontend
        .remove_mem_region(&guest.memory.regions()[1])
        .unwrap();
    assert!(pairs[0].tx.ready(), "it needs the other region only");
    assert!(
        guest
            .frontend
            .remove_mem_region(&guest.memory.regions()[1])
            .is_err()
    );
    assert!(
        guest
            .frontend
            .add_mem_region(&guest.memory.regions()[0])
            .is_err(),
        "overlap"
    );
    guest.frontend.reset_device().unwrap();
    assert!(!pairs[0].tx.ready());
}

#[test]
fn refused_messages_are_acknowledged_as_failures_and_the_connection_goes_on() {
    let port = Port::new(1);
    let mut guest = Guest::connect(&port.socket, 0, 2, 64);
    let f = &mut guest.frontend;
    let refused = |result: Result<(), String>, reason: &str| {
        assert!(result.is_err(), "{reason}");
        port.wait(reason, |s| {
            s.last_error.as_ref().is_some_and(|e| e.contains(reason))
        });
    };
    fn text<T, E: std::fmt::Debug>(r: Result<T, E>) -> Result<(), String> {
        r.map(|_| ()).map_err(|e| format!("{e:?}"))
    }
    refused(text(f.set_features(1 << 33 | PROTOCOL)), "not offered");
    refused(text(f.set_vring_num(3, 64)), "Vring 3 does not exist");
    refused(text(f.set_vring_num(0, 63)), "power of two");
    refused(text(f.set_vring_num(0, 2048)), "power of two up to 1024");
    let file = guest.memory.file.try_clone().unwrap();
    let mut regions = guest.memory.regions();
    regions[0].memory_size = 1 << 30;
    refused(text(f.set_mem_table(&regions[..1])), "of a file of");
    regions[0].memory_size = 0x20_0000;
    refused(text(f.set_mem_table(&regions)), "overlap");
    let pipe = std::fs::File::open("/dev/null").unwrap();
    regions[0].mmap_handle = pipe.as_raw_fd();
    refused(text(f.set_mem_table(&regions[..1])), "no file");
    drop(file);
    assert!(f.get_features().is_ok(), "the connection goes on");
}

#[test]
fn a_frontend_without_kick_descriptor_is_polled() {
    let mut port = Port::new(1);
    let mut pairs = port.backend.take_queues();
    let mut guest = assert_serves(&mut port, &mut pairs);
    // Bit 8: no descriptor. Sent beside the crate, which cannot say that.
    let stream = guest.frontend.as_raw_fd();
    let bytes = message(12, 1, &0x101u64.to_ne_bytes());
    nix::sys::socket::send(stream, &bytes, MsgFlags::empty()).unwrap();
    guest.frontend.get_features().unwrap();
    assert!(pairs[0].tx.ready());
    assert!(pairs[0].tx.kick().is_none());
    let (ring, memory) = guest.ring(1);
    ring.add(memory, &[(HIGH, 72)], false, false).unwrap();
    ring.expose(memory);
    assert_eq!(pairs[0].tx.poll(&mut TxBurst::new()), 1);
}

#[test]
fn the_socket_has_owner_and_permissions_and_goes_with_its_port() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path(), 1);
    config.permissions = 0o640;
    if nix::unistd::geteuid().is_root() {
        (config.owner, config.group) = (Some(12), Some(34));
    }
    let backend = Backend::start(config.clone()).unwrap();
    let meta = std::fs::symlink_metadata(&config.socket).unwrap();
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.permissions().mode() & 0o7777, 0o640);
    if let (Some(owner), Some(group)) = (config.owner, config.group) {
        assert_eq!((meta.uid(), meta.gid()), (owner, group));
    }
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        1,
        "no temporary file left"
    );
    let second = Backend::start(config.clone());
    assert!(
        matches!(second, Err(Error::SocketInUse { .. })),
        "{second:?}"
    );
    // Somebody else's socket in our place is left alone.
    std::fs::remove_file(&config.socket).unwrap();
    let other = UnixListener::bind(&config.socket).unwrap();
    drop(backend);
    assert!(config.socket.exists());
    // A dead process's socket is replaced.
    drop(other);
    drop(Backend::start(config.clone()).unwrap());
    assert!(!config.socket.exists());
    std::fs::write(&config.socket, "precious").unwrap();
    let file = Backend::start(config.clone());
    assert!(matches!(file, Err(Error::NotASocket { .. })), "{file:?}");
    assert_eq!(std::fs::read(&config.socket).unwrap(), b"precious");
    config.socket = dir.path().join("x".repeat(108));
    assert!(matches!(
        Backend::start(config),
        Err(Error::PathTooLong { .. })
    ));
}

#[test]
fn a_backend_can_be_dropped_where_it_must_not_wait_for_ever() {
    // While its own thread holds a burst; the burst's memory stays.
    let mut port = Port::new(1);
    let mut pairs = port.backend.take_queues();
    let mut guest = assert_serves(&mut port, &mut pairs);
    let (ring, memory) = guest.ring(1);
    memory.write(HIGH + 12, &[0x5a; 1000]);
    ring.add(memory, &[(HIGH, 1012)], false, false).unwrap();
    ring.expose(memory);
    let mut burst = TxBurst::new();
    assert_eq!(pairs[0].tx.poll(&mut burst), 1);
    drop(port);
    let mut bytes = [0; 1000];
    burst.packet(0).copy_to(&mut bytes).unwrap();
    assert_eq!(bytes, [0x5a; 1000]);
    pairs[0].tx.complete(&mut burst);
    assert_eq!(pairs[0].tx.poll(&mut burst), 0);
    // In its own listener.
    let mut port = Port::new(1);
    let mut pairs = port.backend.take_queues();
    let own = Arc::new(std::sync::Mutex::new(None::<Backend>));
    let weak = Arc::downgrade(&own);
    port.backend.on_change(Box::new(move |status| {
        if let Some(own) = weak.upgrade()
            && status.connected
        {
            drop(own.lock().unwrap().take());
        }
    }));
    let dir = tempfile::tempdir().unwrap();
    let other = Backend::start(config(dir.path(), 1)).unwrap();
    *own.lock().unwrap() = Some(std::mem::replace(&mut port.backend, other));
    let mut stream = UnixStream::connect(&port.socket).unwrap();
    assert_closed(&mut stream);
    assert_eq!(pairs[0].tx.poll(&mut burst), 0);
    drop(own);
}

#[test]
fn a_client_waits_for_its_frontend_and_reconnects() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path(), 1);
    config.mode = SocketMode::Client;
    let backend = Backend::start(config.clone()).unwrap();
    let status = wait_for(&backend, "an attempt", |s| s.last_error.is_some());
    assert_eq!(status.state, State::Connecting);
    for _ in 0..2 {
        let listener = UnixListener::bind(&config.socket).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(&message(3, 1, &[])).unwrap();
        stream.write_all(&message(1, 1, &[])).unwrap();
        assert_eq!(answer(&mut stream).0, 1);
        wait_for(&backend, "connected", |s| s.state == State::Negotiating);
        drop((stream, listener));
        std::fs::remove_file(&config.socket).unwrap();
        wait_for(&backend, "gone", |s| s.state == State::Connecting);
    }
    // Dropping does not wait for the back-off.
    let start = std::time::Instant::now();
    drop(backend);
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[test]
fn dpdk_and_qemu_status_and_mtu_messages_are_answered() {
    let port = Port::new(1);
    let mut stream = UnixStream::connect(&port.socket).unwrap();
    let ask = |stream: &mut UnixStream, request: u32, body: &[u8], ack: bool| {
        let flags = if ack { 9 } else { 1 };
        stream.write_all(&message(request, flags, body)).unwrap();
        let (got, body) = answer(stream);
        assert_eq!(got, request);
        u64::from_ne_bytes(body.try_into().unwrap())
    };
    let offered = ask(&mut stream, 15, &[], false);
    // What virtio-user of DPDK 22.11 negotiates, and NET_MTU.
    let wanted = 0x10009u64 | 0x10;
    assert_eq!(wanted & !offered, 0, "{offered:#x}");
    stream
        .write_all(&message(16, 1, &wanted.to_ne_bytes()))
        .unwrap();
    assert_eq!(ask(&mut stream, 39, &11u64.to_ne_bytes(), true), 0);
    assert_eq!(ask(&mut stream, 40, &[], false), 11);
    assert_eq!(ask(&mut stream, 39, &0u64.to_ne_bytes(), true), 0);
    assert_eq!(ask(&mut stream, 40, &[], false), 0);
    assert_eq!(ask(&mut stream, 20, &1500u64.to_ne_bytes(), true), 0);
    assert_eq!(ask(&mut stream, 20, &9001u64.to_ne_bytes(), true), 1);
    // Enabling before SET_FEATURES, as QEMU does.
    assert_eq!(ask(&mut stream, 18, &[0, 0, 0, 0, 1, 0, 0, 0], true), 0);
}

#[test]
fn the_memory_table_may_change_while_a_worker_polls() {
    let mut port = Port::new(1);
    let mut pair = port.backend.take_queues().remove(0);
    let mut guest = Guest::connect(&port.socket, MRG_RXBUF, 1, 64);
    guest.start();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let worker = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            let mut burst = TxBurst::new();
            let (mut packets, mut bytes) = (0u64, vec![0; 2000]);
            while !stop.load(Ordering::Relaxed) {
                packets += pair.tx.poll(&mut burst) as u64;
                for packet in burst.iter() {
                    packet.copy_to(&mut bytes[..packet.len()]).unwrap();
                    assert_eq!(bytes[..packet.len()], [0x5a; 1000][..packet.len()]);
                    let _ = pair.rx.send(&[&bytes[..packet.len()]], None);
                }
                pair.tx.complete(&mut burst);
                pair.rx.flush();
            }
            packets
        })
    };
    let (mut sent, mut received) = (0u64, 0u64);
    for round in 0..300u64 {
        let (ring, memory) = guest.ring(0);
        received += ring.take_used(memory).len() as u64;
        while ring
            .add(memory, &[(HIGH + 0x8_0000, 1500)], true, false)
            .is_some()
        {}
        ring.expose(memory);
        let (ring, memory) = guest.ring(1);
        ring.take_used(memory);
        memory.write(HIGH, &[0; 12]);
        memory.write(HIGH + 12, &[0x5a; 1000]);
        while ring.add(memory, &[(HIGH, 1012)], false, false).is_some() {
            sent += 1;
        }
        ring.expose(memory);
        let regions = guest.memory.regions();
        if round % 2 == 0 {
            guest.frontend.set_mem_table(&regions).unwrap();
        } else {
            guest.frontend.set_vring_enable(1, false).unwrap();
            guest.frontend.set_vring_enable(1, true).unwrap();
        }
    }
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while port.backend.counters()[0].tx.snapshot().packets < sent {
        assert!(
            std::time::Instant::now() < deadline,
            "{:?}",
            port.backend.status()
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    stop.store(true, Ordering::Relaxed);
    assert_eq!(worker.join().unwrap(), sent, "none lost, none twice");
    let (ring, memory) = guest.ring(0);
    received += ring.take_used(memory).len() as u64;
    assert!(received > 0);
    assert_eq!(received, port.backend.counters()[0].rx.snapshot().packets);
    assert!(port.backend.status().broken_queues.is_empty());
}
