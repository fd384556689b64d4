//! What the virtual router says about a packet.

use flow::{Action, DropReason, FlowKey, MacAddr, PortId};
use std::net::IpAddr;

/// What is to be done with a packet that no flow matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Install this flow, and execute it on the packet. Every packet with this key would get the
    /// same verdict from this router. A list that is one `Drop` is a drop flow.
    Flow {
        /// The packet's key, unchanged.
        key: FlowKey,
        /// Never empty.
        actions: Vec<Action>,
    },
    /// Execute on this packet only: the next one may be treated otherwise.
    Once {
        /// Never empty.
        actions: Vec<Action>,
    },
    /// Packets made by the router. The packet that led to them is consumed. Empty where it is
    /// rightly taken note of and needs no answer, such as a gratuitous ARP.
    Answer(Vec<Answer>),
    /// A neighbour in the underlay answered: for the agent's resolver, which puts it into the
    /// next topology. Only addresses of [`underlay_next_hops`](crate::VRouter::underlay_next_hops).
    Learned {
        /// The next hop.
        ip: IpAddr,
        /// Its MAC address.
        mac: MacAddr,
    },
    /// Drop this packet; nothing is installed.
    Drop(DropReason),
}

impl Verdict {
    /// The packet is consumed and nothing is sent.
    pub(crate) const CONSUMED: Verdict = Verdict::Answer(Vec::new());

    /// One packet out of the port that asked.
    pub(crate) fn answer(port: PortId, packet: Vec<u8>) -> Verdict {
        Verdict::Answer(vec![Answer { port, packet }])
    }
}

/// A packet made by the router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Where it leaves.
    pub port: PortId,
    /// The whole Ethernet frame, without padding or frame check sequence, checksums filled in.
    pub packet: Vec<u8>,
}
