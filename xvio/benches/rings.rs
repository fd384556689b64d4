//! What a packet costs in the rings alone, with a driver in this process and without DPDK, so that a
//! slow-down shows in review: time by criterion, and instructions a packet where the processor's counter can
//! be read (they do not depend on how busy the machine is).
//!
//! ```text
//! cargo bench -p xvio --bench rings
//! ```
//!
//! The driver fills the ring, the device empties it; only the device's part is counted. Both run on one
//! core, so there is no traffic between caches: that is what `cargo xtask bench xvio` is for.

mod driver;

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use driver::{Driver, IN_ORDER, PACKED};
use perf_event::events::Hardware;
use xvio::{BURST, TxBurst};

const LAYOUTS: [(&str, u64); 4] = [
    ("split", 0),
    ("split in-order", IN_ORDER),
    ("packed", PACKED),
    ("packed in-order", PACKED | IN_ORDER),
];
const SIZES: [usize; 2] = [64, 1518];

/// The device's part of one burst.
enum Way {
    Out,
    In,
    Across,
}

struct Bench {
    from: Driver,
    to: Driver,
    burst: TxBurst,
    copy: Vec<u8>,
}

impl Bench {
    fn new(features: u64) -> Bench {
        Bench {
            from: Driver::new(features),
            to: Driver::new(features),
            burst: TxBurst::new(),
            copy: vec![0x5a; 2048],
        }
    }

    /// The driver's part: packets to be taken, buffers to be filled.
    fn prepare(&mut self, way: &Way, size: usize) {
        if !matches!(way, Way::In) {
            self.from.transmit(BURST, size);
        }
        if !matches!(way, Way::Out) {
            self.to.receive(BURST);
        }
    }

    fn run(&mut self, way: &Way, size: usize) -> usize {
        match way {
            Way::Out => {
                let count = self.from.poll(&mut self.burst);
                for packet in self.burst.iter() {
                    let to = &mut self.copy[..packet.len()];
                    packet.copy_to(to).expect("the length is right");
                }
                self.from.pair.tx.complete(&mut self.burst);
                count
            }
            Way::In => {
                let sent = (0..BURST)
                    .filter(|_| self.to.pair.rx.send(&[&self.copy[..size]], None).is_ok());
                let count = sent.count();
                self.to.pair.rx.flush();
                count
            }
            Way::Across => {
                let count = self.from.poll(&mut self.burst);
                for packet in self.burst.iter() {
                    let mut head = [0; 128];
                    let head = packet.head(&mut head);
                    let sent = self.to.pair.rx.forward(head, packet, head.len(), None);
                    sent.expect("there are buffers");
                }
                self.to.pair.rx.flush();
                self.from.pair.tx.complete(&mut self.burst);
                count
            }
        }
    }
}

/// Instructions of this thread in user space, if they can be counted.
fn counter() -> Option<perf_event::Counter> {
    // Of this thread, in user space only.
    let counter = perf_event::Builder::new()
        .kind(Hardware::INSTRUCTIONS)
        .build();
    counter.ok()
}

fn rings(c: &mut Criterion) {
    let mut counter = counter();
    if counter.is_none() {
        eprintln!(
            "This machine has no counter of instructions (perf_event_open); only times are measured."
        );
    }
    for (way_name, way) in [
        ("from guest", Way::Out),
        ("to guest", Way::In),
        ("guest to guest", Way::Across),
    ] {
        let mut group = c.benchmark_group(way_name);
        group.warm_up_time(Duration::from_millis(300));
        group.measurement_time(Duration::from_secs(1));
        for (layout, features) in LAYOUTS {
            for size in SIZES {
                let mut bench = Bench::new(features);
                let turn = |bench: &mut Bench, counter: &mut Option<perf_event::Counter>| {
                    bench.prepare(&way, size);
                    if let Some(counter) = counter {
                        let _ = counter.enable();
                    }
                    let start = Instant::now();
                    let count = bench.run(&way, size);
                    let time = start.elapsed();
                    if let Some(counter) = counter {
                        let _ = counter.disable();
                    }
                    assert_eq!(count, BURST);
                    time
                };
                group.throughput(Throughput::Elements(BURST as u64));
                group.bench_function(BenchmarkId::new(layout, size), |b| {
                    b.iter_custom(|times| (0..times).map(|_| turn(&mut bench, &mut None)).sum());
                });
                if counter.is_some() {
                    let before = counter.as_mut().and_then(|c| c.read().ok()).unwrap_or(0);
                    for _ in 0..1000 {
                        turn(&mut bench, &mut counter);
                    }
                    let after = counter.as_mut().and_then(|c| c.read().ok()).unwrap_or(0);
                    let each = (after - before) as f64 / (1000 * BURST) as f64;
                    println!("{way_name}/{layout}/{size}: {each:.1} instructions a packet");
                }
            }
        }
        group.finish();
    }
}

mod group {
    #![allow(missing_docs)]
    super::criterion_group!(benches, super::rings);
}
use group::benches;
criterion_main!(benches);
