//! Settings of VFs through their PF's interface: `IFLA_VFINFO_LIST` read and written
//! (kernel: net/core/rtnetlink.c, `include/uapi/linux/if_link.h`).

use super::links::{IFINFOMSG, change as set_link, header};
use super::wire::{Body, Netlink, Refusal, attributes, u16_at, u32_at};
use crate::kernel::{Rate, VfLinkState, VfSettings, Vlan, VlanProtocol};
use netlink_sys::protocols::NETLINK_ROUTE;

const IFLA_NUM_VF: u16 = 21;
const IFLA_VFINFO_LIST: u16 = 22;
const IFLA_EXT_MASK: u16 = 29;
const RTEXT_FILTER_VF: u32 = 1;
/// Without it each VF's counters come too, and a third fewer VFs fit.
const RTEXT_FILTER_SKIP_STATS: u32 = 8;
const IFLA_VF_INFO: u16 = 1;
const IFLA_VF_MAC: u16 = 1;
const IFLA_VF_VLAN: u16 = 2;
const IFLA_VF_SPOOFCHK: u16 = 4;
const IFLA_VF_LINK_STATE: u16 = 5;
const IFLA_VF_RATE: u16 = 6;
const IFLA_VF_RSS_QUERY_EN: u16 = 7;
const IFLA_VF_TRUST: u16 = 9;
const IFLA_VF_VLAN_LIST: u16 = 12;
const IFLA_VF_VLAN_INFO: u16 = 1;
const ETH_P_8021AD: u16 = 0x88a8;

/// One setting of a VF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setting {
    Mac([u8; 6]),
    Vlan(Vlan),
    Rate(Rate),
    Spoofchk(bool),
    LinkState(VfLinkState),
    Trust(bool),
}

/// The settings of every VF of the PF whose interface is `index`, by VF number.
pub(crate) fn read(index: u32) -> Result<Vec<(u32, VfSettings)>, Refusal> {
    let mut netlink = Netlink::open(NETLINK_ROUTE)?;
    let mut body = Body(header(index, 0, 0));
    body.put_u32(IFLA_EXT_MASK, RTEXT_FILTER_VF | RTEXT_FILTER_SKIP_STATS);
    let answers = netlink.request(libc::RTM_GETLINK, &body.0)?;
    Ok(answers.first().map(|body| parse(body)).unwrap_or_default())
}

/// Sets one setting of one VF.
pub(crate) fn write(index: u32, vf: u32, setting: Setting) -> Result<(), Refusal> {
    let mut list = Body::default();
    list.nest(IFLA_VF_INFO, &encode(vf, setting));
    let mut body = Body(header(index, 0, 0));
    body.nest(IFLA_VFINFO_LIST, &list);
    set_link(&body)
}

fn encode(vf: u32, setting: Setting) -> Body {
    let words = |words: &[u32]| -> Vec<u8> {
        let all = std::iter::once(&vf).chain(words);
        all.flat_map(|word| word.to_ne_bytes()).collect()
    };
    let mut body = Body::default();
    match setting {
        Setting::Mac(mac) => {
            // struct ifla_vf_mac has room for the longest hardware address, 32 bytes.
            let mut value = words(&[]);
            value.extend_from_slice(&mac);
            value.resize(36, 0);
            body.put(IFLA_VF_MAC, &value);
        }
        Setting::Vlan(vlan) if vlan.protocol == VlanProtocol::Dot1ad => {
            let mut value = words(&[u32::from(vlan.id), u32::from(vlan.qos)]);
            value.extend_from_slice(&ETH_P_8021AD.to_be_bytes());
            value.resize(16, 0);
            let mut list = Body::default();
            list.put(IFLA_VF_VLAN_INFO, &value);
            body.nest(IFLA_VF_VLAN_LIST, &list);
        }
        Setting::Vlan(vlan) => {
            body.put(
                IFLA_VF_VLAN,
                &words(&[u32::from(vlan.id), u32::from(vlan.qos)]),
            );
        }
        Setting::Rate(rate) => {
            body.put(IFLA_VF_RATE, &words(&[rate.min, rate.max]));
        }
        Setting::Spoofchk(on) => {
            body.put(IFLA_VF_SPOOFCHK, &words(&[u32::from(on)]));
        }
        Setting::LinkState(state) => {
            let state = match state {
                VfLinkState::Auto => 0,
                VfLinkState::Enable => 1,
                VfLinkState::Disable => 2,
            };
            body.put(IFLA_VF_LINK_STATE, &words(&[state]));
        }
        Setting::Trust(on) => {
            body.put(IFLA_VF_TRUST, &words(&[u32::from(on)]));
        }
    }
    body
}

/// Reads the VF list out of a link message.
///
/// A list of more than some 330 VFs is longer than the 16 bits of its own length field can say, and
/// kernels send it all the same with a length that has wrapped. What is inside is whole; `IFLA_NUM_VF`,
/// which comes before the list, says how many entries there are. So the list is walked entry by entry
/// and its own length is not believed.
pub(crate) fn parse(message: &[u8]) -> Vec<(u32, VfSettings)> {
    let mut rest = message.get(IFINFOMSG..).unwrap_or_default();
    let mut expected = 0;
    while let (Some(length), Some(kind)) = (u16_at(rest, 0), u16_at(rest, 2)) {
        match kind & 0x3fff {
            IFLA_NUM_VF => expected = u32_at(rest, 4).unwrap_or(0),
            IFLA_VFINFO_LIST => {
                let entries = attributes(rest.get(4..).unwrap_or_default());
                return entries
                    .take(expected as usize)
                    .take_while(|(kind, _)| *kind == IFLA_VF_INFO)
                    .filter_map(|(_, entry)| vf(entry))
                    .collect();
            }
            _ => {}
        }
        if length < 4 {
            break;
        }
        rest = rest
            .get(usize::from(length).next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Vec::new()
}

fn vf(entry: &[u8]) -> Option<(u32, VfSettings)> {
    let mut settings = VfSettings::default();
    let mut number = None;
    for (kind, value) in attributes(entry) {
        let flag = || u32_at(value, 4).filter(|v| *v <= 1).map(|v| v == 1);
        match kind {
            IFLA_VF_MAC => {
                number = u32_at(value, 0);
                settings.mac = value.get(4..10).and_then(|mac| mac.try_into().ok());
            }
            IFLA_VF_VLAN => {
                settings.vlan.id = u32_at(value, 4)
                    .and_then(|v| v.try_into().ok())
                    .unwrap_or(0);
                settings.vlan.qos = u32_at(value, 8)
                    .and_then(|v| v.try_into().ok())
                    .unwrap_or(0);
            }
            IFLA_VF_VLAN_LIST => settings.vlan.protocol = protocol(value),
            IFLA_VF_RATE => {
                settings.rate = Rate {
                    min: u32_at(value, 4).unwrap_or(0),
                    max: u32_at(value, 8).unwrap_or(0),
                };
            }
            IFLA_VF_SPOOFCHK => settings.spoofchk = flag(),
            IFLA_VF_TRUST => settings.trust = flag(),
            IFLA_VF_RSS_QUERY_EN => settings.query_rss = flag(),
            IFLA_VF_LINK_STATE => {
                settings.link_state = match u32_at(value, 4) {
                    Some(0) => Some(VfLinkState::Auto),
                    Some(1) => Some(VfLinkState::Enable),
                    Some(2) => Some(VfLinkState::Disable),
                    _ => None,
                };
            }
            _ => {}
        }
    }
    Some((number?, settings))
}

fn protocol(list: &[u8]) -> VlanProtocol {
    let first = attributes(list).next();
    let tag = first
        .and_then(|(_, info)| info.get(12..14))
        .map(|b| [b[0], b[1]]);
    if tag == Some(ETH_P_8021AD.to_be_bytes()) {
        VlanProtocol::Dot1ad
    } else {
        VlanProtocol::Dot1q
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A link message as the kernel makes it, list length modulo 65,536.
    fn message(vfs: u32, mac: impl Fn(u32) -> [u8; 6]) -> Vec<u8> {
        let mut list = Vec::new();
        for number in 0..vfs {
            let mut entry = Body::default();
            for setting in [
                Setting::Mac(mac(number)),
                Setting::Vlan(Vlan {
                    id: 7,
                    qos: 3,
                    protocol: VlanProtocol::Dot1q,
                }),
                Setting::Rate(Rate { min: 0, max: 100 }),
                Setting::Spoofchk(true),
                Setting::LinkState(VfLinkState::Enable),
                Setting::Trust(false),
            ] {
                entry.0.extend_from_slice(&encode(number, setting).0);
            }
            let mut attribute = Body::default();
            attribute.put(IFLA_VF_INFO, &entry.0);
            list.extend_from_slice(&attribute.0);
        }
        let mut body = Body(header(3, 0, 0));
        body.put_u32(IFLA_NUM_VF, vfs);
        body.0
            .extend_from_slice(&((list.len() + 4) as u16).to_ne_bytes());
        body.0.extend_from_slice(&IFLA_VFINFO_LIST.to_ne_bytes());
        body.0.extend_from_slice(&list);
        body.put_u32(13, 1);
        body.0
    }

    #[test]
    fn a_list_longer_than_its_length_field_is_read_whole() {
        for count in [0, 1, 16, 333, 1024] {
            let bytes = message(count, |n| [2, 0, 0, 0, (n >> 8) as u8, n as u8]);
            let vfs = parse(&bytes);
            assert_eq!(vfs.len(), count as usize);
            for (at, (number, settings)) in vfs.iter().enumerate() {
                assert_eq!(*number as usize, at);
                assert_eq!(settings.mac, Some([2, 0, 0, 0, (at >> 8) as u8, at as u8]));
            }
        }
    }

    #[test]
    fn settings_read_as_written() {
        let (_, settings) = parse(&message(1, |_| [2, 0, 0, 0, 0, 9])).remove(0);
        assert_eq!((settings.vlan.id, settings.vlan.qos), (7, 3));
        assert_eq!(settings.rate, Rate { min: 0, max: 100 });
        assert_eq!(
            (settings.spoofchk, settings.trust),
            (Some(true), Some(false))
        );
        assert_eq!(settings.link_state, Some(VfLinkState::Enable));
        assert_eq!(settings.query_rss, None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(parse(&bytes).len() <= bytes.len() / 4);
        }

        #[test]
        fn a_cut_message_gives_no_more_than_it_holds(cut in 0usize..3000) {
            let bytes = message(16, |_| [0; 6]);
            prop_assert!(parse(&bytes[..cut.min(bytes.len())]).len() <= 16);
        }
    }
}
