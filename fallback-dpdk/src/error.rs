//! What can go wrong on the control side, in sentences for the operator.

use flow::PortId;

/// Why the data plane could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A number in the configuration that cannot work.
    #[error("The data plane's {field} is {value}; {rule}")]
    Config {
        /// The field of [`Config`](crate::Config).
        field: &'static str,
        /// What it was set to.
        value: String,
        /// What it may be.
        rule: &'static str,
    },
    /// DPDK refused.
    #[error("DPDK could not {what}")]
    Dpdk {
        /// What was attempted.
        what: String,
        /// Its answer.
        #[source]
        source: dpdk::Error,
    },
    /// A worker thread could not be made or set up.
    #[error("Worker {worker} could not {step}")]
    Worker {
        /// Its number.
        worker: usize,
        /// What was attempted.
        step: &'static str,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A worker thread is gone.
    #[error("Worker {worker} has ended; the log says why, and the program has to be started again")]
    WorkerGone {
        /// Its number.
        worker: usize,
    },
    /// The port number is taken.
    #[error("Port {0} is in the data plane already; remove it first")]
    PortExists(PortId),
    /// There is no such port.
    #[error("Port {0} is not in the data plane; add it first")]
    NoSuchPort(PortId),
    /// The queues of this backend were taken before.
    #[error(
        "Port {0} has no queues left to serve: they were taken by an earlier port; start a new vhost-user backend for it"
    )]
    NoQueues(PortId),
    /// The doorbell of a kernel interface could not be made.
    #[error(
        "Interface \"{interface}\" cannot be watched for packets; it has to exist in this network namespace, and the program needs CAP_NET_RAW"
    )]
    Doorbell {
        /// The interface.
        interface: String,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// Only guests' ports are relayed.
    #[error("Port {0} is a device and no guest's port: only a guest's port can be relayed")]
    NotAGuest(PortId),
    /// The port has a device already.
    #[error("Port {port} is relayed to {device}; end that first")]
    Relayed {
        /// The port.
        port: PortId,
        /// Its device.
        device: String,
    },
    /// The devices of all relays would hold too many of the buffers.
    #[error(
        "Port {port} cannot be relayed to {device}: a queue of it may hold {queue} packet buffers, and the other relays hold so many that less than half of the {all} would be left for everybody else; raise buffers"
    )]
    Buffers {
        /// The port.
        port: PortId,
        /// The device.
        device: String,
        /// Buffers of one queue pair of it.
        queue: u32,
        /// Buffers there are.
        all: u32,
    },
    /// A device with shorter packets than asked for.
    #[error(
        "{device} cannot have an MTU of {wanted}, {most} is the most; ask for less, or raise its PF's where it is a VF"
    )]
    Mtu {
        /// The device.
        device: String,
        /// What was asked for.
        wanted: u16,
        /// What it can have.
        most: u16,
    },
    /// There is no such worker.
    #[error("There is no worker {worker}; they are numbered 0 to {last}")]
    NoSuchWorker {
        /// What was asked for.
        worker: usize,
        /// The last that there is.
        last: usize,
    },
    /// A packet that fits no buffer.
    #[error(
        "A packet of {length} bytes does not fit the data plane's buffers of {max} bytes; raise max_frame"
    )]
    TooLong {
        /// The packet's length.
        length: usize,
        /// What fits.
        max: usize,
    },
}
