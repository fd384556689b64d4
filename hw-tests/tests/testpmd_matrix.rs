//! DPDK's own virtio driver, unmodified, on every kind of ring: {split, packed} × {mergeable, not} ×
//! {in-order, not} × {vectorised, not} × {client, server} × {1, 2, 8 queue pairs} × {64 … 9000 bytes}.
//!
//! The device is in this process; testpmd forwards what it receives to where it came from (`io` mode), so
//! that each packet goes through both directions of a queue pair, and comes back byte for byte or fails the
//! test. Queue counts and sizes change inside one run of testpmd.

use anyhow::{Context, Result, bail, ensure};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use xvio::{Backend, BackendConfig, Offer, QueuePair, SocketMode, TxBurst};

const PROMPT: &str = "testpmd> ";
const QUEUES: [usize; 3] = [8, 2, 1];
const SIZES: [usize; 5] = [64, 128, 512, 1518, 9000];
/// Packets of each size on each queue pair: a ring of 256 holds as many of 9000 bytes in small buffers.
const PACKETS: usize = 32;
const LIMIT: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug)]
struct Kind {
    packed: bool,
    mergeable: bool,
    in_order: bool,
    vectorised: bool,
}

fn kinds(packed: bool) -> impl Iterator<Item = Kind> {
    (0..8).map(move |n| Kind {
        packed,
        mergeable: n & 1 != 0,
        in_order: n & 2 != 0,
        vectorised: n & 4 != 0,
    })
}

/// A testpmd that forwards; killed when dropped.
struct Testpmd {
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
}

impl Testpmd {
    fn start(socket: &Path, kind: Kind, server: bool) -> Result<Testpmd> {
        let flag = u8::from;
        let device = format!(
            "net_virtio_user0,path={},queues=8,queue_size=256,packed_vq={},mrg_rxbuf={},in_order={},vectorized={}{}",
            socket.display(),
            flag(kind.packed),
            flag(kind.mergeable),
            flag(kind.in_order),
            flag(kind.vectorised),
            if server { ",server=1" } else { "" }
        );
        // Mergeable: a packet of 9000 bytes takes several buffers. Otherwise it has to fit into one.
        let buffer = if kind.mergeable { "2176" } else { "9600" };
        let mut child = Command::new("stdbuf")
            .args([
                "-oL",
                "dpdk-testpmd",
                "--no-huge",
                "--no-shconf",
                "--no-telemetry",
                "--no-pci",
            ])
            .args([
                "--single-file-segments",
                "-m",
                "256",
                "--lcores",
                "0@(0-1),1@(0-1)",
            ])
            .args([
                "--vdev",
                &device,
                "--",
                "-i",
                "--no-mlockall",
                "--nb-cores=1",
                "--forward-mode=io",
            ])
            .args([
                "--rxq=8",
                "--txq=8",
                "--rxd=256",
                "--txd=256",
                "--max-pkt-len=9018",
            ])
            // Several segments a packet.
            .args(["--tx-offloads=0x8000", "--total-num-mbufs=8192"])
            .arg(format!("--mbuf-size={buffer}"))
            .args(kind.mergeable.then_some("--enable-scatter"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context(
                "\"stdbuf dpdk-testpmd\" could not be started; `cargo xtask deps` installs it",
            )?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("testpmd has no pipes");
        };
        let mut testpmd = Testpmd {
            child,
            stdin,
            stdout,
        };
        testpmd.answer().context("testpmd did not start")?;
        Ok(testpmd)
    }

    fn say(&mut self, line: &str) -> Result<String> {
        writeln!(self.stdin, "{line}")?;
        self.answer()
            .with_context(|| format!("testpmd did not answer \"{line}\""))
    }

    fn answer(&mut self) -> Result<String> {
        let (mut said, mut bytes) = (String::new(), [0; 4096]);
        while !said.ends_with(PROMPT) {
            match self.stdout.read(&mut bytes)? {
                0 => bail!("testpmd ended: {said}"),
                n => said.push_str(&String::from_utf8_lossy(&bytes[..n])),
            }
        }
        Ok(said)
    }

    fn queues(&mut self, queues: usize) -> Result<()> {
        for line in [
            "port stop all".to_owned(),
            format!("port config all rxq {queues}"),
            format!("port config all txq {queues}"),
            "port start all".to_owned(),
        ] {
            self.say(&line)?;
        }
        Ok(())
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A packet that no other is like.
fn packet(kind: usize, queue: usize, number: usize, size: usize) -> Vec<u8> {
    let mut state = (kind * 8 + queue) as u64 * 0x1_0000 + number as u64 + ((size as u64) << 40);
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ (mixed >> 27)) as u8
    };
    let mut bytes: Vec<u8> = (0..size).map(|_| next()).collect();
    // A unicast address, and a type that nothing in between looks into.
    bytes[0] &= 0xfe;
    bytes[12..14].copy_from_slice(&[0x88, 0xb5]);
    bytes
}

/// Sends packets of one size over `pairs`, and takes them back.
fn exchange(pairs: &mut [QueuePair], burst: &mut TxBurst, round: usize, size: usize) -> Result<()> {
    let mut sent = vec![0; pairs.len()];
    let mut back = vec![0; pairs.len()];
    let end = Instant::now() + LIMIT;
    while back.iter().any(|n| *n < PACKETS) {
        ensure!(
            Instant::now() < end,
            "of {PACKETS} packets of {size} bytes a queue were sent {sent:?} and came back {back:?}"
        );
        for (queue, pair) in pairs.iter_mut().enumerate() {
            while sent[queue] < PACKETS {
                let bytes = packet(round, queue, sent[queue], size);
                // In three parts, so that their borders are crossed too.
                let (head, rest) = bytes.split_at(13);
                let (middle, tail) = rest.split_at(rest.len() / 2);
                if pair.rx.send(&[head, middle, tail], None).is_err() {
                    break;
                }
                sent[queue] += 1;
            }
            pair.rx.flush();
            pair.tx.poll(burst);
            for taken in burst.iter() {
                let mut bytes = vec![0; taken.len()];
                taken.copy_to(&mut bytes)?;
                ensure!(back[queue] < PACKETS, "a packet more than were sent");
                ensure!(
                    bytes == packet(round, queue, back[queue], size),
                    "queue {queue}, packet {} of {size} bytes came back changed",
                    back[queue]
                );
                back[queue] += 1;
            }
            pair.tx.complete(burst);
        }
        std::thread::yield_now();
    }
    Ok(())
}

fn wait(port: &Backend, pairs: usize) -> Result<()> {
    let end = Instant::now() + LIMIT;
    while port.status().active_queue_pairs as usize != pairs {
        ensure!(
            Instant::now() < end,
            "{pairs} queue pairs: {:?}",
            port.status()
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// All queue counts and sizes with one testpmd.
fn one(kind: Kind, server: bool) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("port.sock");
    let mut port = Backend::start(BackendConfig {
        name: "matrix".to_owned(),
        socket: socket.clone(),
        mode: if server {
            SocketMode::Client
        } else {
            SocketMode::Server
        },
        owner: None,
        group: None,
        permissions: 0o600,
        max_queue_pairs: 8,
        max_queue_size: 256,
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 9000,
        features: Offer::default(),
    })?;
    let mut pairs = port.take_queues();
    let mut testpmd = Testpmd::start(&socket, kind, server)?;
    let mut burst = TxBurst::new();
    for (round, queues) in QUEUES.into_iter().enumerate() {
        if round > 0 {
            testpmd.queues(queues)?;
        }
        testpmd.say("start")?;
        wait(&port, queues)?;
        let features = port.status().features;
        ensure!(
            (features & 1 << 34 != 0, features & 1 << 15 != 0) == (kind.packed, kind.mergeable),
            "negotiated {features:#x}"
        );
        for size in SIZES {
            exchange(&mut pairs[..queues], &mut burst, round, size)
                .with_context(|| format!("{queues} queue pairs, {:?}", port.status()))?;
        }
        testpmd.say("stop")?;
    }
    let status = port.status();
    ensure!(status.broken_queues.is_empty(), "{status:?}");
    Ok(())
}

fn all(packed: bool, server: bool) -> Result<()> {
    // Each testpmd polls, and so does the test: more at a time would only wait for each other.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    for kind in kinds(packed) {
        one(kind, server).with_context(|| format!("{kind:?}"))?;
    }
    Ok(())
}

#[test]
fn split_rings_with_the_device_as_server() -> Result<()> {
    all(false, false)
}

#[test]
fn split_rings_with_the_device_as_client() -> Result<()> {
    all(false, true)
}

#[test]
fn packed_rings_with_the_device_as_server() -> Result<()> {
    all(true, false)
}

#[test]
fn packed_rings_with_the_device_as_client() -> Result<()> {
    all(true, true)
}
