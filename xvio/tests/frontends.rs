//! Frontends that misbehave on the socket: garbage, half messages, too many descriptors, floods. They
//! are cut off, nothing of theirs stays, and the next one is served.

mod guest;

use std::io::{IoSlice, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use guest::raw::*;
use guest::*;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use xvio::State;

#[test]
fn frontends_that_misbehave_are_cut_off_and_the_next_is_served() {
    let mut port = Port::new(1);
    let mut pairs = port.backend.take_queues();
    let header = |request: u32, flags: u32, size: u32| {
        let mut bytes = message(request, flags, &[]);
        bytes[8..].copy_from_slice(&size.to_ne_bytes());
        bytes
    };
    let cases: [(&str, Vec<u8>); 8] = [
        ("garbage", (0..32).map(|i| i * 7 + 1).collect()),
        ("zeros", vec![0; 64]),
        ("version 2", message(1, 2, &[])),
        ("a reply", message(1, 5, &[])),
        ("a huge body", header(1, 1, u32::MAX)),
        ("unknown request", message(999, 1, &[])),
        ("not negotiated", message(39, 1, &[0; 8])),
        ("wrong body", message(2, 1, &[0; 7])),
    ];
    for (name, bytes) in cases {
        let mut stream = UnixStream::connect(&port.socket).unwrap();
        stream.write_all(&bytes).unwrap();
        assert_closed(&mut stream);
        let status = port.wait(name, |s| !s.connected && s.last_error.is_some());
        assert_eq!(status.state, State::Listening, "{name}");
    }
    // Killed in the middle: of a header, of a body, of a handshake.
    for bytes in [
        &message(1, 1, &[])[..5],
        &header(2, 1, 8),
        &message(3, 1, &[]),
    ] {
        let mut stream = UnixStream::connect(&port.socket).unwrap();
        stream.write_all(bytes).unwrap();
        drop(stream);
    }
    assert_serves(&mut port, &mut pairs);
}

#[test]
fn half_a_message_and_silence_ends_after_the_deadline() {
    let mut port = Port::new(1);
    let mut pairs = port.backend.take_queues();
    let mut stream = UnixStream::connect(&port.socket).unwrap();
    stream.write_all(&message(1, 1, &[])[..7]).unwrap();
    assert_closed(&mut stream);
    let status = port.wait("cut off", |s| s.last_error.is_some());
    assert!(status.last_error.unwrap().contains("did not finish"));
    assert_serves(&mut port, &mut pairs);
}

#[test]
fn a_message_in_pieces_is_a_message() {
    let port = Port::new(1);
    let mut stream = UnixStream::connect(&port.socket).unwrap();
    for byte in message(1, 1, &[]) {
        stream.write_all(&[byte]).unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
    let (request, body) = answer(&mut stream);
    assert_eq!((request, body.len()), (1, 8));
}

#[test]
fn surplus_descriptors_are_closed_on_every_path() {
    let port = Port::new(1);
    // A file of its own: other tests of this process open theirs meanwhile.
    let path = port.dir.path().join("surplus");
    let file = std::fs::File::create(&path).unwrap();
    let fds = [file.as_raw_fd(); 200];
    let eventfd = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
    let round = || {
        let mut stream = UnixStream::connect(&port.socket).unwrap();
        // Where none belong, and with the answer.
        send_with_fds(&stream, &message(1, 1, &[]), &fds);
        assert_eq!(answer(&mut stream).1.len(), 8);
        // The same kick descriptor many times.
        for _ in 0..20 {
            send_with_fds(
                &stream,
                &message(12, 1, &1u64.to_ne_bytes()),
                &[eventfd.as_raw_fd()],
            );
        }
        // Too many for a kick: refused.
        send_with_fds(&stream, &message(12, 1, &0u64.to_ne_bytes()), &fds[..2]);
        assert_closed(&mut stream);
        // With a body, and with garbage.
        let stream = UnixStream::connect(&port.socket).unwrap();
        send_with_fds(&stream, &message(2, 1, &[0; 8])[..12], &fds[..1]);
        send_with_fds(&stream, &[0; 8], &fds);
        drop(stream);
        let mut stream = UnixStream::connect(&port.socket).unwrap();
        send_with_fds(&stream, &[0xff; 12], &fds);
        assert_closed(&mut stream);
        let mut stream = UnixStream::connect(&port.socket).unwrap();
        let regions = message(5, 1, &[3, 0, 0, 0, 0, 0, 0, 0]);
        send_with_fds(&stream, &regions, &fds[..3]);
        assert_closed(&mut stream);
        port.wait("idle", |s| !s.connected);
    };
    let mine = || {
        let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let same = |e: &std::fs::DirEntry| std::fs::read_link(e.path()).is_ok_and(|l| l == path);
        links.filter(same).count()
    };
    round();
    let before = mine();
    for _ in 0..50 {
        round();
    }
    assert_eq!(mine(), before);
}

#[test]
fn a_message_in_pieces_with_descriptors_each_does_not_eat_them_all() {
    let port = Port::new(1);
    let path = port.dir.path().join("many");
    let file = std::fs::File::create(&path).unwrap();
    let fds = [file.as_raw_fd(); 200];
    let mut stream = UnixStream::connect(&port.socket).unwrap();
    let header = message(2, 1, &[0; 8]);
    let mut most = 0;
    for byte in &header[..19] {
        let (bytes, rights) = ([*byte], [ControlMessage::ScmRights(&fds)]);
        let iov = [IoSlice::new(&bytes)];
        // Refused once the device has closed the connection.
        if sendmsg::<()>(
            stream.as_raw_fd(),
            &iov,
            &rights,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )
        .is_err()
        {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
        let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let open = links.filter(|e| std::fs::read_link(e.path()).is_ok_and(|l| l == path));
        most = most.max(open.count());
    }
    assert!(most < 600, "{most} descriptors held");
    assert_closed(&mut stream);
    port.wait("told", |s| {
        s.last_error
            .as_ref()
            .is_some_and(|e| e.contains("more than 253 file descriptors"))
    });
}

#[test]
fn kick_and_call_must_be_eventfds() {
    let port = Port::new(1);
    for request in [12u32, 13, 14] {
        let mut stream = UnixStream::connect(&port.socket).unwrap();
        let file = std::fs::File::open("/dev/zero").unwrap();
        send_with_fds(
            &stream,
            &message(request, 1, &0u64.to_ne_bytes()),
            &[file.as_raw_fd()],
        );
        assert_closed(&mut stream);
        port.wait("told", |s| {
            s.last_error
                .as_ref()
                .is_some_and(|e| e.contains("not an eventfd"))
                && !s.connected
        });
    }
}

#[test]
fn a_second_frontend_is_refused_and_the_first_goes_on() {
    let mut port = Port::new(1);
    let mut pairs = port.backend.take_queues();
    let guest = assert_serves(&mut port, &mut pairs);
    let mut second = UnixStream::connect(&port.socket).unwrap();
    assert_closed(&mut second);
    port.wait("told", |s| {
        s.last_error.as_ref().is_some_and(|e| e.contains("second"))
    });
    assert!(guest.frontend.get_features().is_ok());
    assert!(pairs[0].tx.ready());
}

#[test]
fn a_flood_of_messages_is_no_flood_of_calls() {
    let port = Port::new(1);
    let calls = Arc::new(AtomicUsize::new(0));
    let last = Arc::new(std::sync::Mutex::new(None));
    let (seen, keep) = (Arc::clone(&calls), Arc::clone(&last));
    port.backend.on_change(Box::new(move |status| {
        seen.fetch_add(1, Ordering::SeqCst);
        *keep.lock().unwrap() = Some(status.clone());
    }));
    let mut guest = Guest::connect(&port.socket, 0, 1, 64);
    guest.start();
    let start = std::time::Instant::now();
    for round in 0..3001 {
        let on = round % 2 == 0;
        guest.frontend.set_vring_enable(1, !on).unwrap();
    }
    // One call now, one for each pause, and one for the last state.
    let most = start.elapsed().as_millis() as usize / 10 + 10;
    let off = |s: &xvio::Status| s.active_queue_pairs == 0;
    port.wait("off", off);
    port.wait("told", |_| last.lock().unwrap().as_ref().is_some_and(off));
    assert!(calls.load(Ordering::SeqCst) < most, "{calls:?} of {most}");
}

/// Not a test: a port that is out of descriptors, in a process of its own, when started by the test
/// below. Prints the processor time, in ticks, that it used within half a second.
#[test]
fn exhausted_process() {
    if std::env::var_os("XVIO_TEST_EXHAUSTED").is_none() {
        return;
    }
    use std::os::unix::fs::FileExt;
    let port = Port::new(1);
    let mut first = UnixStream::connect(&port.socket).unwrap();
    first.write_all(&message(1, 1, &[])).unwrap();
    answer(&mut first);
    let stat = std::fs::File::open("/proc/self/stat").unwrap();
    let ticks = || {
        let mut text = [0; 1024];
        let n = stat.read_at(&mut text, 0).unwrap();
        let text = String::from_utf8_lossy(&text[..n]).into_owned();
        let fields: Vec<&str> = text.rsplit(')').next().unwrap().split(' ').collect();
        fields[12].parse::<u64>().unwrap() + fields[13].parse::<u64>().unwrap()
    };
    let resource = nix::sys::resource::Resource::RLIMIT_NOFILE;
    nix::sys::resource::setrlimit(resource, 64, 64).unwrap();
    let mut all = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        all.push(file);
    }
    // One for our end of the second connection, none for the port's.
    all.pop();
    let _second = UnixStream::connect(&port.socket).unwrap();
    let before = ticks();
    std::thread::sleep(Duration::from_millis(500));
    let used = ticks() - before;
    // The first one is served all the same.
    first.write_all(&message(1, 1, &[])).unwrap();
    answer(&mut first);
    all.clear();
    port.wait("the second one refused", |s| s.last_error.is_some());
    println!("used {used} ticks");
}

#[test]
fn a_second_frontend_that_cannot_be_accepted_is_not_asked_for_in_a_busy_loop() {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "exhausted_process", "--nocapture"])
        .env("XVIO_TEST_EXHAUSTED", "1");
    let done = command.output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    let used = said.split("used ").nth(1).and_then(|t| t.split(' ').next());
    let used = used.and_then(|ticks| ticks.parse::<u64>().ok());
    // Of 50, where a second has 100 ticks.
    assert!(
        used.is_some_and(|ticks| ticks < 10),
        "{said}{}",
        String::from_utf8_lossy(&done.stderr)
    );
}
