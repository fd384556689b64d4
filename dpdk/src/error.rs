//! What can go wrong, in sentences for the operator.

/// Every error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A second `Eal::init` in one process.
    #[error(
        "DPDK's EAL runs once in a process and was already started (or failed to start) in this one; share the first Eal, or start the process again"
    )]
    AlreadyStarted,
    /// A name or device string with a NUL byte, or an empty one.
    #[error("\"{0}\" cannot be given to DPDK: it is empty or has a NUL character in it")]
    BadText(String),
    /// `Hugepages::Require`, and there are not enough.
    #[error(
        "{wanted_mb} MB of hugepages are required and {free_mb} MB are free; reserve them (for example `echo {pages} > /proc/sys/vm/nr_hugepages`) or set hugepages to \"auto\""
    )]
    Hugepages {
        /// What was asked for.
        wanted_mb: u64,
        /// What is free.
        free_mb: u64,
        /// 2 MB pages that would do.
        pages: u64,
    },
    /// An EAL core list that names no usable CPU.
    #[error(
        "None of the cores {0:?} can be used by this process; see `taskset -p` and the [dataplane] cores of the configuration"
    )]
    Cores(Vec<usize>),
    /// `rte_eal_init` failed.
    #[error("DPDK's EAL did not start: {0}")]
    Eal(String),
    /// The operating system refused a thread.
    #[error("The thread that starts DPDK's EAL could not be made")]
    Thread(#[source] std::io::Error),
    /// `rte_thread_register` failed.
    #[error(
        "This thread could not be registered with DPDK ({0}); at most 127 threads of a process can be"
    )]
    Register(String),
    /// A mempool could not be made.
    #[error("Mempool \"{name}\" of {count} buffers of {data_room} bytes could not be made: {why}")]
    Mempool {
        /// The name given.
        name: String,
        /// Buffers asked for.
        count: u32,
        /// Payload bytes of each.
        data_room: u16,
        /// What DPDK said, and the way out.
        why: String,
    },
    /// A device could not be attached.
    #[error("Device \"{devargs}\" could not be attached: {why}")]
    Attach {
        /// The device string.
        devargs: String,
        /// What DPDK and its driver said.
        why: String,
    },
    /// A device that this process already has as a `Port`.
    #[error(
        "Device \"{0}\" is attached already; drop its other Port first, or give this one another name"
    )]
    Attached(String),
    /// The port refused its configuration.
    #[error("Port {port} could not be configured: {why}")]
    Configure {
        /// The port's name.
        port: String,
        /// What was refused, and the way out.
        why: String,
    },
    /// An operation of the port failed.
    #[error("Port {port} could not {action}: {why}")]
    Port {
        /// The port's name.
        port: String,
        /// "start", "be stopped", …
        action: &'static str,
        /// What DPDK said.
        why: String,
    },
    /// An operation that the port's state does not allow.
    #[error("Port {port} has to be {needed} for this")]
    State {
        /// The port's name.
        port: String,
        /// "configured", "started", "stopped".
        needed: &'static str,
    },
    /// stop or configure while a queue is out.
    #[error(
        "Port {port} has {held} queues in use; they have to be given back (dropped) before it can be stopped or configured"
    )]
    QueuesInUse {
        /// The port's name.
        port: String,
        /// Queues in use.
        held: usize,
    },
    /// A queue that is taken, or that does not exist.
    #[error(
        "Port {port} has no free {direction} queue {queue}: it is taken already or beyond the {queues} that are configured"
    )]
    Queue {
        /// The port's name.
        port: String,
        /// "rx" or "tx".
        direction: &'static str,
        /// The index asked for.
        queue: u16,
        /// How many there are.
        queues: usize,
    },
}
