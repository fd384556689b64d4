//! The outer source port of a tunnel: one port a flow, so that the underlay's ECMP and the
//! receiver's RSS spread flows and keep each in order (RFC 7348 section 5).

use crate::key::{FlowKey, Fragment};

/// The outer UDP source port for this flow, 49152 to 65535.
///
/// Made of what identifies the inner packet, never of where it came in. Fragments of one packet
/// agree: they take no part of the transport header into account.
pub fn entropy_port(key: &FlowKey) -> u16 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut add = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3); // FNV-1a
        }
    };
    add(&key.eth_src.0);
    add(&key.eth_dst.0);
    add(&key.ethertype.to_be_bytes());
    add(&key.vlan.to_be_bytes());
    add(&key.ip_src.0);
    add(&key.ip_dst.0);
    if key.fragment == Fragment::No {
        add(&[key.protocol]);
        add(&key.src_port.to_be_bytes());
        add(&key.dst_port.to_be_bytes());
    }
    // FNV's low bits are its weakest: fold the whole hash into the 14 that are used.
    let folded = hash ^ hash >> 14 ^ hash >> 28 ^ hash >> 42 ^ hash >> 56;
    0xc000 | (folded & 0x3fff) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn ports_of_neighbouring_flows_spread_over_the_range() {
        let ports: HashSet<u16> = (0..4096u16)
            .map(|src_port| {
                entropy_port(&FlowKey {
                    src_port,
                    ..FlowKey::default()
                })
            })
            .collect();
        assert!(ports.iter().all(|port| *port >= 49152));
        // 4096 balls into 16384 bins hit 3624 of them on average.
        assert!(ports.len() > 3300, "only {} different ports", ports.len());
    }

    #[test]
    fn all_fragments_of_a_packet_take_one_port() {
        let first = FlowKey {
            fragment: Fragment::First,
            src_port: 7,
            ..FlowKey::default()
        };
        let later = FlowKey {
            fragment: Fragment::Later,
            protocol: 60,
            ..FlowKey::default()
        };
        assert_eq!(entropy_port(&first), entropy_port(&later));
    }
}
