//! What a guest sees of a device: the same traffic on ours and on the reference device, compared in
//! everything the guest can observe. A disagreement is a bug in one of them.

mod guest;
mod reference;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use guest::*;
use proptest::prelude::*;
use vhost::VhostBackend;
use xvio::{Backend, TxBurst};

const SIZE: u16 = 64;
const PAIRS: usize = 2;

/// A device that reflects packets with their MAC addresses swapped.
struct Device {
    socket: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

impl Device {
    fn ours() -> Device {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), PAIRS as u16);
        let socket = config.socket.clone();
        let mut backend = Backend::start(config).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let ending = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut pairs = backend.take_queues();
            let mut burst = TxBurst::new();
            while !ending.load(Ordering::Relaxed) {
                for pair in &mut pairs {
                    pair.tx.poll(&mut burst);
                    for packet in burst.iter() {
                        let mut bytes = vec![0; packet.len()];
                        packet.copy_to(&mut bytes).unwrap();
                        let (destination, rest) = bytes.split_at_mut(6);
                        destination.swap_with_slice(&mut rest[..6]);
                        let _ = pair.rx.send(&[&bytes], None);
                    }
                    pair.rx.flush();
                    pair.tx.complete(&mut burst);
                }
                std::thread::sleep(Duration::from_micros(50));
            }
        });
        Device {
            socket,
            stop,
            thread: Some(thread),
            _dir: dir,
        }
    }

    fn reference() -> Device {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("reference.sock");
        let path = socket.clone();
        // It serves for ever, and ends with the process.
        std::thread::spawn(move || reference::serve(&path, PAIRS).unwrap());
        let start = Instant::now();
        while !socket.exists() {
            assert!(start.elapsed() < Duration::from_secs(10));
            std::thread::sleep(Duration::from_millis(1));
        }
        Device {
            socket,
            stop: Arc::default(),
            thread: None,
            _dir: dir,
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A packet, and how it lies in memory.
#[derive(Clone, Debug)]
struct Frame {
    len: usize,
    cuts: Vec<usize>,
    indirect: bool,
    pair: usize,
}

/// What the guest does.
#[derive(Clone, Debug)]
struct Script {
    features: u64,
    frames: Vec<Frame>,
    /// Bytes of each receive buffer.
    buffer: u32,
    /// After so many frames the rings are stopped and started again.
    pause: usize,
}

fn script() -> impl Strategy<Value = Script> {
    let cuts = prop::collection::vec(1usize..2012, 0..5);
    let frame = (14usize..2000, cuts, any::<bool>(), 0..PAIRS);
    let frame = frame.prop_map(|(len, cuts, indirect, pair)| Frame {
        len,
        cuts,
        indirect,
        pair,
    });
    let frames = prop::collection::vec(frame, 1..40);
    (
        frames,
        any::<bool>(),
        any::<bool>(),
        300u32..2100,
        0usize..40,
    )
        .prop_map(|(frames, mergeable, event_idx, buffer, pause)| Script {
            features: MQ
                | INDIRECT
                | if mergeable { MRG_RXBUF } else { 0 }
                | if event_idx { EVENT_IDX } else { 0 },
            frames,
            // Without merging a buffer holds any packet.
            buffer: if mergeable { buffer } else { 2100 },
            pause,
        })
}

/// What the guest has seen.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    /// For each frame: lengths of the used entries, and the bytes received, header included.
    frames: Vec<(Vec<u32>, Vec<u8>)>,
    /// Where the rings stopped.
    bases: Vec<u32>,
    /// Interrupts came for what was received.
    woken: bool,
}

fn play(device: &Device, script: &Script) -> Seen {
    let mut guest = Guest::connect(&device.socket, script.features, PAIRS, SIZE);
    guest.start();
    let mut seen = Seen {
        woken: true,
        ..Seen::default()
    };
    for (number, frame) in script.frames.iter().enumerate() {
        if number == script.pause {
            for ring in 0..2 * PAIRS {
                let base = guest.frontend.get_vring_base(ring).unwrap();
                seen.bases.push(base);
                guest.start_ring(ring, base as u16);
            }
        }
        seen.frames
            .push(one(&mut guest, number, frame, script.buffer));
        seen.woken &= guest.rings[2 * frame.pair].interrupts() > 0;
    }
    for ring in 0..2 * PAIRS {
        seen.bases
            .push(guest.frontend.get_vring_base(ring).unwrap());
    }
    guest.memory.assert_untouched_outside();
    seen
}

/// Sends one frame and waits until it is back.
fn one(guest: &mut Guest, number: usize, frame: &Frame, buffer: u32) -> (Vec<u32>, Vec<u8>) {
    let payload: Vec<u8> = (0..frame.len).map(|i| (i * 31 + number) as u8).collect();
    let whole = [vec![0; 12], payload].concat();
    let mut points: Vec<usize> = frame.cuts.iter().map(|cut| cut % whole.len()).collect();
    points.extend([0, whole.len()]);
    points.sort_unstable();
    points.dedup();
    let chain: Vec<Buffer> = points
        .windows(2)
        .map(|w| (HIGH + w[0] as u64, (w[1] - w[0]) as u32))
        .collect();
    let count = whole.len().div_ceil(buffer as usize);
    let (ring, memory) = guest.ring(2 * frame.pair);
    let at = |i: usize| HIGH + 0x1_0000 + 0x1000 * i as u64;
    for i in 0..count {
        ring.add(memory, &[(at(i), buffer)], true, false).unwrap();
    }
    ring.expose(memory);
    ring.interrupts();
    let (ring, memory) = guest.ring(2 * frame.pair + 1);
    memory.write(HIGH, &whole);
    ring.add(memory, &chain, false, frame.indirect).unwrap();
    ring.expose(memory);
    ring.kick.write(1).unwrap();
    let start = Instant::now();
    while ring.take_used(memory).is_empty() {
        assert!(start.elapsed() < Duration::from_secs(10), "{frame:?}");
        std::thread::sleep(Duration::from_micros(50));
    }
    let (ring, memory) = guest.ring(2 * frame.pair);
    let used = ring.take_used(memory);
    let mut bytes = Vec::new();
    for (i, (_, len)) in used.iter().enumerate() {
        bytes.extend(memory.read(at(i), *len as usize));
    }
    assert_eq!(bytes.len(), whole.len(), "{frame:?}");
    assert_eq!(bytes[12 + 12..], whole[12 + 12..], "{frame:?}");
    (used.into_iter().map(|(_, len)| len).collect(), bytes)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_guest_sees_the_same_on_ours_and_on_the_reference_device(script in script()) {
        let ours = play(&Device::ours(), &script);
        let theirs = play(&Device::reference(), &script);
        prop_assert_eq!(ours.frames.len(), script.frames.len());
        prop_assert_eq!(ours, theirs);
    }
}
