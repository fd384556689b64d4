//! The measuring loop, the same for each backend.

use std::error::Error;
use std::time::{Duration, Instant};

/// Polls that moved packets, in one window. The figure is the median of the windows, so that those in which
/// the kernel took the core away do not count.
const WINDOW: usize = 64;
/// What is not measured at first: the guest's ring fills, caches warm up.
const WARM_UP: Duration = Duration::from_millis(50);

/// Which way packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// The guest sends; packets end in device buffers (mbufs), which are freed.
    Out,
    /// The guest receives packets that lie in device buffers.
    In,
    /// Two guests send to each other through this one thread.
    Across,
}

impl Way {
    pub const ALL: [Way; 3] = [Way::Out, Way::In, Way::Across];

    pub fn name(self) -> &'static str {
        match self {
            Way::Out => "from-guest",
            Way::In => "to-guest",
            Way::Across => "guest-to-guest",
        }
    }

    pub fn parse(name: &str) -> Option<Way> {
        Way::ALL.into_iter().find(|way| way.name() == name)
    }
}

/// One poll each; how many packets it moved.
pub trait Backend {
    fn take(&mut self) -> usize;
    fn give(&mut self) -> usize;
    fn pass(&mut self, from: usize, to: usize) -> usize;
    /// Prepares packets of this size to be sent to the guest; none when it is 0.
    fn prepare(&mut self, size: usize);
}

/// What one measurement found.
#[derive(Clone, Copy, Debug)]
pub struct Moved {
    /// Cycles of polls that moved packets, a packet: the median of the windows.
    pub cycles: f64,
    /// Packets a second, of all polls and idle times.
    pub pps: f64,
    /// Packets a poll that moved any.
    pub burst: f64,
}

impl std::fmt::Display for Moved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.cycles, self.pps, self.burst)
    }
}

impl Moved {
    pub fn parse(text: &str) -> Option<Moved> {
        let numbers: Vec<f64> = text.split(' ').filter_map(|w| w.parse().ok()).collect();
        let [cycles, pps, burst] = numbers[..] else {
            return None;
        };
        Some(Moved { cycles, pps, burst })
    }
}

/// Binds the calling thread to a CPU.
pub fn bind(cpu: usize) -> Result<(), Box<dyn Error>> {
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)?;
    Ok(())
}

/// Polls for so many milliseconds.
pub fn measure(backend: &mut dyn Backend, way: Way, size: usize, milliseconds: u64) -> Moved {
    backend.prepare(if way == Way::In { size } else { 0 });
    let time = Duration::from_millis(milliseconds);
    match way {
        Way::Out => {
            turns(WARM_UP, || backend.take());
            turns(time, || backend.take())
        }
        Way::In => {
            turns(WARM_UP, || backend.give());
            turns(time, || backend.give())
        }
        Way::Across => {
            let mut from = 0;
            let mut turn = || {
                from = 1 - from;
                backend.pass(from, 1 - from)
            };
            turns(WARM_UP, &mut turn);
            turns(time, turn)
        }
    }
}

/// Polls for so long.
pub fn turns(time: Duration, mut poll: impl FnMut() -> usize) -> Moved {
    let mut windows: Vec<f64> = Vec::with_capacity(1 << 16);
    let (mut all, mut polls) = (0, 0usize);
    let (mut cycles, mut packets, mut moving) = (0u64, 0usize, 0);
    let start = Instant::now();
    let mut before = dpdk::cycles();
    for turn in 0u32.. {
        let moved = poll();
        let now = dpdk::cycles();
        if moved > 0 {
            cycles += now - before;
            packets += moved;
            moving += 1;
            if moving == WINDOW {
                if windows.len() < windows.capacity() {
                    windows.push(cycles as f64 / packets as f64);
                }
                (all, polls) = (all + packets, polls + moving);
                (cycles, packets, moving) = (0, 0, 0);
            }
        }
        before = now;
        if turn % 1024 == 0 && start.elapsed() >= time {
            break;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    windows.sort_by(f64::total_cmp);
    Moved {
        cycles: windows.get(windows.len() / 2).copied().unwrap_or(f64::NAN),
        pps: all as f64 / seconds,
        burst: all as f64 / polls.max(1) as f64,
    }
}
