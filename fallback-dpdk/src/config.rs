//! What the data plane is started with.

use std::time::Duration;

/// How many workers there are, what they may hold, and when they age it.
#[derive(Clone, Debug)]
pub struct Config {
    /// Worker threads, at least one.
    pub workers: usize,
    /// The processors the workers are pinned to, in order, wrapping around; `None` leaves them to the
    /// scheduler.
    pub cores: Option<Vec<usize>>,
    /// Flows of all workers together.
    pub flow_capacity: usize,
    /// A flow that no packet used for this long is removed.
    pub flow_idle: Duration,
    /// Packet buffers.
    pub buffers: u32,
    /// The longest frame a buffer holds, Ethernet header included; encapsulation has its own room.
    pub max_frame: u16,
    /// First packets a second that one port may send through the router. The uplink, which brings the
    /// first packets of all other hosts, may send eight times as many. The guests of one worker may
    /// send four times as many together, half of it in equal shares that are certain.
    pub slow_path_rate: u32,
    /// Packets in flight from one worker to another; fewer where all of them together would hold more
    /// than half of the buffers.
    pub handoff: usize,
    /// Events that wait for the control side; more are counted and lost.
    pub events: usize,
    /// The NUMA node of the buffers; `None` leaves it to DPDK.
    pub numa: Option<i32>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            workers: 1,
            cores: None,
            flow_capacity: 65_536,
            flow_idle: Duration::from_secs(60),
            buffers: 8192,
            max_frame: 9216,
            slow_path_rate: 20_000,
            handoff: 1024,
            events: 1024,
            numa: None,
        }
    }
}
