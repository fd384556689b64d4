//! The limit: two cores and a ring that does nothing but move cache lines. The producer writes two lines a
//! packet, as a driver with a virtio-net header and 64 bytes does, and shows 32 packets at a time; the
//! consumer reads both lines. What it costs the consumer is what no device can go below on this machine
//! while the lines come from the other core.

use crate::meter::{self, Moved};
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const SLOTS: usize = 256;
const BURST: u64 = 32;

/// A cache line.
#[repr(align(64))]
#[derive(Default)]
struct Line([AtomicU64; 8]);

struct Ring {
    lines: Vec<[Line; 2]>,
    made: Line,
    taken: Line,
    stop: AtomicBool,
}

/// Cycles a packet of the consumer on `cpu`; the producer is on the next one.
pub fn measure(cpu: usize, time: Duration) -> Result<Moved, Box<dyn Error>> {
    let ring = Arc::new(Ring {
        lines: (0..SLOTS).map(|_| Default::default()).collect(),
        made: Line::default(),
        taken: Line::default(),
        stop: AtomicBool::new(false),
    });
    let other = ring.clone();
    let producer = std::thread::spawn(move || {
        let _ = meter::bind(cpu + 1);
        let mut made = 0;
        while !other.stop.load(Ordering::Relaxed) {
            if made + BURST - other.taken.0[0].load(Ordering::Acquire) > SLOTS as u64 {
                std::hint::spin_loop();
                continue;
            }
            for n in made..made + BURST {
                for line in &other.lines[n as usize % SLOTS] {
                    line.0
                        .iter()
                        .for_each(|word| word.store(n, Ordering::Relaxed));
                }
            }
            made += BURST;
            other.made.0[0].store(made, Ordering::Release);
        }
    });
    meter::bind(cpu)?;
    let (mut taken, mut sum) = (0, 0u64);
    let moved = meter::turns(time, || {
        let count = (ring.made.0[0].load(Ordering::Acquire) - taken).min(BURST);
        for n in taken..taken + count {
            for line in &ring.lines[n as usize % SLOTS] {
                let words = line.0.iter().map(|word| word.load(Ordering::Relaxed));
                sum = words.fold(sum, u64::wrapping_add);
            }
        }
        if count > 0 {
            taken += count;
            ring.taken.0[0].store(taken, Ordering::Release);
        }
        count as usize
    });
    std::hint::black_box(sum);
    ring.stop.store(true, Ordering::Relaxed);
    let _ = producer.join();
    Ok(moved)
}
