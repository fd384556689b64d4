//! IPv6 neighbour discovery (RFC 4861): solicitations, advertisements and their options.

use super::icmp::{HEADER_LEN, IcmpPacket, Icmpv6Repr, v6};
use super::{array, view};
use crate::ids::MacAddr;
use crate::reason::DropReason;
use std::net::Ipv6Addr;

/// Option: the sender's link-layer address.
pub const SOURCE_LINK_ADDRESS: u8 = 1;
/// Option: the target's link-layer address.
pub const TARGET_LINK_ADDRESS: u8 = 2;
/// Option: a prefix of the link.
pub const PREFIX_INFORMATION: u8 = 3;
/// Option: the link's MTU.
pub const MTU: u8 = 5;
/// Option: recursive DNS servers (RFC 8106).
pub const RDNSS: u8 = 25;

/// Flag of an advertisement: the sender is a router.
pub const ROUTER: u8 = 0x80;
/// Flag of an advertisement: it answers a solicitation.
pub const SOLICITED: u8 = 0x40;
/// Flag of an advertisement: it replaces what is known.
pub const OVERRIDE: u8 = 0x20;

view! {
    /// A neighbour solicitation or advertisement, or a router solicitation: an ICMPv6 message whose
    /// fixed part and options are whole. The bytes end with the message.
    NdMessage
}

fn fixed_len(kind: u8) -> Option<usize> {
    match kind {
        v6::NEIGHBOUR_SOLICIT | v6::NEIGHBOUR_ADVERT => Some(HEADER_LEN + 16),
        v6::ROUTER_SOLICIT => Some(HEADER_LEN),
        _ => None,
    }
}

fn check(bytes: &[u8]) -> Result<(), DropReason> {
    let icmp = IcmpPacket::new_checked(bytes)?;
    let fixed = fixed_len(icmp.kind()).ok_or(DropReason::UnsupportedProtocol)?;
    let mut options = bytes.get(fixed..).ok_or(DropReason::Malformed)?;
    // RFC 4861 section 4.6: an option of length zero makes the packet invalid.
    while !options.is_empty() {
        let length = options.get(1).map_or(0, |units| usize::from(*units) * 8);
        if length == 0 || length > options.len() {
            return Err(DropReason::Malformed);
        }
        options = &options[length..];
    }
    Ok(())
}

impl<T: AsRef<[u8]>> NdMessage<T> {
    /// The ICMPv6 type.
    pub fn kind(&self) -> u8 {
        self.as_bytes()[0]
    }

    /// The address asked for or advertised; none in a router solicitation.
    pub fn target(&self) -> Option<Ipv6Addr> {
        (self.kind() != v6::ROUTER_SOLICIT).then(|| array::<16>(self.as_bytes(), 8).into())
    }

    /// The options: type and whole option, the two bytes of type and length included.
    pub fn options(&self) -> impl Iterator<Item = (u8, &[u8])> {
        let mut rest = fixed_len(self.kind()).map_or(&[][..], |fixed| &self.as_bytes()[fixed..]);
        std::iter::from_fn(move || {
            let (kind, units) = (*rest.first()?, *rest.get(1)?);
            let (option, after) = rest.split_at_checked(usize::from(units) * 8)?;
            rest = after;
            Some((kind, option))
        })
    }

    /// The MAC in the first option of this type, [`SOURCE_LINK_ADDRESS`] or [`TARGET_LINK_ADDRESS`].
    pub fn link_address(&self, option: u8) -> Option<MacAddr> {
        let (_, bytes) = self
            .options()
            .find(|(kind, bytes)| *kind == option && bytes.len() == 8)?;
        Some(MacAddr(array(bytes, 2)))
    }
}

/// A neighbour solicitation or advertisement to send. It goes in IPv6 with hop limit 255.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NdRepr {
    /// Who has `target`? `link` is the asker's MAC; none where its address is not decided yet.
    Solicit {
        /// The address asked for.
        target: Ipv6Addr,
        /// The asker's MAC.
        link: Option<MacAddr>,
    },
    /// `link` has `target`.
    Advert {
        /// The address advertised.
        target: Ipv6Addr,
        /// Its MAC.
        link: MacAddr,
        /// [`ROUTER`], [`SOLICITED`] and [`OVERRIDE`].
        flags: u8,
    },
}

impl NdRepr {
    /// The ICMPv6 message, checksum computed for these addresses.
    pub fn emit(&self, src: Ipv6Addr, dst: Ipv6Addr) -> Vec<u8> {
        let (kind, rest, target, option) = match *self {
            NdRepr::Solicit { target, link } => (
                v6::NEIGHBOUR_SOLICIT,
                0,
                target,
                link.map(|mac| (SOURCE_LINK_ADDRESS, mac)),
            ),
            NdRepr::Advert {
                target,
                link,
                flags,
            } => (
                v6::NEIGHBOUR_ADVERT,
                flags,
                target,
                Some((TARGET_LINK_ADDRESS, link)),
            ),
        };
        let mut body = target.octets().to_vec();
        if let Some((option, mac)) = option {
            body.extend_from_slice(&link_option(option, mac));
        }
        Icmpv6Repr {
            src,
            dst,
            kind,
            code: 0,
            rest: [rest, 0, 0, 0],
        }
        .emit(&body)
    }
}

fn link_option(kind: u8, mac: MacAddr) -> [u8; 8] {
    let [a, b, c, d, e, f] = mac.0;
    [kind, 1, a, b, c, d, e, f]
}

/// The multicast address that the owner of `ip` listens to for solicitations (RFC 4291, 2.7.1).
pub fn solicited_node(ip: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = ip.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

/// The MAC of an IPv6 multicast address (RFC 2464 section 7).
pub fn multicast_mac(ip: Ipv6Addr) -> MacAddr {
    let [.., a, b, c, d] = ip.octets();
    MacAddr([0x33, 0x33, a, b, c, d])
}

/// A prefix in a [`RouterAdvert`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AdvertisedPrefix {
    /// The prefix. Bits beyond its length are sent as they are; the receiver ignores them.
    pub prefix: Ipv6Addr,
    /// Its length, 0 to 128.
    pub prefix_len: u8,
    /// Addresses of the prefix are on the link.
    pub on_link: bool,
    /// Hosts may make addresses of it (SLAAC, RFC 4862).
    pub autonomous: bool,
    /// Seconds the prefix is valid.
    pub valid: u32,
    /// Seconds its addresses are preferred.
    pub preferred: u32,
}

/// A router advertisement to send (RFC 4861 section 4.2). It goes in IPv6 with hop limit 255.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RouterAdvert {
    /// Hop limit that hosts should use.
    pub hop_limit: u8,
    /// Addresses come from DHCPv6 (M flag).
    pub managed: bool,
    /// Other configuration comes from DHCPv6 (O flag).
    pub other: bool,
    /// Seconds the sender is a default router; 0 if it is none.
    pub lifetime: u16,
    /// The sender's MAC.
    pub link: MacAddr,
    /// The link's MTU.
    pub mtu: Option<u32>,
    /// The link's prefixes.
    pub prefixes: Vec<AdvertisedPrefix>,
    /// DNS servers, with `dns_lifetime`; at most 127.
    pub dns: Vec<Ipv6Addr>,
    /// Seconds the DNS servers may be used.
    pub dns_lifetime: u32,
}

impl RouterAdvert {
    /// The ICMPv6 message, checksum computed for these addresses.
    pub fn emit(&self, src: Ipv6Addr, dst: Ipv6Addr) -> Vec<u8> {
        let flags = u8::from(self.managed) << 7 | u8::from(self.other) << 6;
        let [high, low] = self.lifetime.to_be_bytes();
        let mut body = vec![0; 8]; // Reachable time and retransmission timer: not specified.
        body.extend_from_slice(&link_option(SOURCE_LINK_ADDRESS, self.link));
        if let Some(mtu) = self.mtu {
            body.extend_from_slice(&[MTU, 1, 0, 0]);
            body.extend_from_slice(&mtu.to_be_bytes());
        }
        for p in &self.prefixes {
            let flags = u8::from(p.on_link) << 7 | u8::from(p.autonomous) << 6;
            body.extend_from_slice(&[PREFIX_INFORMATION, 4, p.prefix_len, flags]);
            body.extend_from_slice(&p.valid.to_be_bytes());
            body.extend_from_slice(&p.preferred.to_be_bytes());
            body.extend_from_slice(&[0; 4]);
            body.extend_from_slice(&p.prefix.octets());
        }
        let servers = &self.dns[..self.dns.len().min(127)];
        if !servers.is_empty() {
            body.extend_from_slice(&[RDNSS, 1 + 2 * servers.len() as u8, 0, 0]);
            body.extend_from_slice(&self.dns_lifetime.to_be_bytes());
            servers
                .iter()
                .for_each(|ip| body.extend_from_slice(&ip.octets()));
        }
        let rest = [self.hop_limit, flags, high, low];
        Icmpv6Repr {
            src,
            dst,
            kind: v6::ROUTER_ADVERT,
            code: 0,
            rest,
        }
        .emit(&body)
    }
}
