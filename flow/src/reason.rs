//! Why a packet was dropped, and why one left the fast path. Each has a name and a counter.

use std::fmt;

macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl $name {
            /// Every value, in the order of its number.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];

            /// How many there are: the length of a counter array indexed by this type.
            pub const COUNT: usize = Self::ALL.len();

            /// The stable name, as the CLI, the API and metrics show it.
            pub const fn name(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(self.name()) }
        }
    };
}

reasons! {
    /// Why a packet was dropped.
    DropReason {
        /// The packet ends before its headers do, or a length field is impossible.
        Malformed = "malformed",
        /// An IPv4 header whose checksum is wrong.
        BadIpChecksum = "bad-ip-checksum",
        /// The source MAC is not the port's.
        SpoofedMac = "spoofed-mac",
        /// The source IP address is not one of the port's.
        SpoofedIp = "spoofed-ip",
        /// An ARP or ND message claims an address that is not the port's.
        SpoofedNeighbour = "spoofed-neighbour",
        /// The port is of no network (yet).
        UnknownPort = "unknown-port",
        /// A tunnel packet for a VNI that no local port is in.
        UnknownVni = "unknown-vni",
        /// A tunnel packet from an address that is no host of the network.
        UnknownTunnelSource = "unknown-tunnel-source",
        /// A packet on the uplink that is not for the virtual router.
        NotForUs = "not-for-us",
        /// No route to the destination.
        NoRoute = "no-route",
        /// Nobody in the network has this MAC or address.
        UnknownDestination = "unknown-destination",
        /// The sender is also the receiver.
        Hairpin = "hairpin",
        /// The next hop in the underlay has no known MAC yet.
        UnderlayUnresolved = "underlay-unresolved",
        /// An EtherType or protocol that the virtual router does not carry.
        UnsupportedProtocol = "unsupported-protocol",
        /// The hop limit ran out (an ICMP error was sent where one is due).
        TtlExceeded = "ttl-exceeded",
        /// The packet is larger than the next link's MTU (an ICMP error was sent where one is due).
        TooBig = "too-big",
        /// The receiving port's ring has no room.
        RingFull = "ring-full",
        /// The receiving port's guest is not connected.
        PortDown = "port-down",
        /// The output port does not exist.
        NoSuchPort = "no-such-port",
        /// No packet buffer was free.
        NoBuffer = "no-buffer",
        /// The NIC or PMD did not take the packet.
        TxRejected = "tx-rejected",
        /// The path to another worker was full.
        HandoffFull = "handoff-full",
        /// A slow-path answer would have gone over the rate limit.
        RateLimited = "rate-limited",
        /// A flow with an empty action list, or one that asks the impossible of this packet.
        BadAction = "bad-action",
        /// A link-local or otherwise scoped address that must not leave its link.
        NotForwardable = "not-forwardable",
    }
}

reasons! {
    /// Why the executor hands a packet back to the virtual router in the middle of a list.
    Punt {
        /// TTL or hop limit would reach zero.
        TtlExceeded = "ttl-exceeded",
        /// Larger than [`Action::CheckMtu`](crate::action::Action::CheckMtu) allows.
        TooBig = "too-big",
    }
}
