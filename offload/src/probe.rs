//! What the kernel and the NIC of this host can do, asked through netlink.
//!
//! - The flower classifier and the actions that flows need: tried for real, on the loopback of a
//!   network namespace that only the probing thread is in and that ends with it.
//! - The uplink's NIC: what rtnetlink tells of the link (`IFLA_PARENT_DEV_NAME`,
//!   `IFLA_PHYS_SWITCH_ID`) and ethtool netlink of its features (`hw-tc-offload`). Both answer for the
//!   caller's own network namespace, which sysfs need not.
//!
//! Nothing is changed on any interface. Like any use of TC, asking for the classifier makes the
//! kernel load its module where there is one.

use crate::home::HomeKind;
use crate::netlink::{Attributes, CREATE, Netlink, attributes, find, text};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::SockProtocol;
use std::time::Duration;
use thiserror::Error;

/// How long the kernel may take to answer one request.
pub const DEADLINE: Duration = Duration::from_secs(2);

/// The actions that Ferrovia's action lists become, and the kernel option of each.
const ACTIONS: [(&str, &str); 6] = [
    ("gact", "NET_ACT_GACT"),
    ("mirred", "NET_ACT_MIRRED"),
    ("vlan", "NET_ACT_VLAN"),
    ("tunnel_key", "NET_ACT_TUNNEL_KEY"),
    ("pedit", "NET_ACT_PEDIT"),
    ("csum", "NET_ACT_CSUM"),
];

const RTM_GETLINK: u16 = 18;
const RTM_NEWQDISC: u16 = 36;
const RTM_NEWTFILTER: u16 = 44;
const RTM_NEWACTION: u16 = 48;
/// Loopback, in every network namespace.
const LO: i32 = 1;

/// Why a home cannot take flows on this host. Each text says what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unavailable {
    /// The probe itself needs rights that the program lacks.
    #[error(
        "It was not tried whether the kernel takes TC flower rules, because making a network \
         namespace to try it in was refused ({0}); run the agent as root or with CAP_SYS_ADMIN and \
         CAP_NET_ADMIN"
    )]
    NotPermitted(Errno),
    /// The kernel has no clsact qdisc.
    #[error(
        "The kernel does not know the clsact qdisc that flower rules hang on ({0}); load it with \
         \"modprobe sch_ingress\" or use a kernel with CONFIG_NET_SCH_INGRESS, such as Debian's"
    )]
    NoClsact(Errno),
    /// The kernel has no flower classifier.
    #[error(
        "The kernel does not know the TC classifier flower ({0}); load it with \"modprobe \
         cls_flower\" or use a kernel with CONFIG_NET_CLS_FLOWER, such as Debian's"
    )]
    NoFlower(Errno),
    /// The kernel lacks an action.
    #[error(
        "The kernel does not know the TC action {action} ({errno}); load it with \"modprobe \
         act_{action}\" or use a kernel with CONFIG_{option}, such as Debian's"
    )]
    NoAction {
        /// The action's name for `tc`.
        action: &'static str,
        /// Its kernel option.
        option: &'static str,
        /// What the kernel answered.
        errno: Errno,
    },
    /// The uplink is not a kernel network interface.
    #[error(
        "The uplink is no kernel network interface, and flows reach a NIC only through one; name a \
         NIC's interface in [underlay] of agent.toml"
    )]
    NoUplinkInterface,
    /// There is no such interface.
    #[error("The uplink \"{0}\" does not exist in the agent's network namespace; see \"ip link\"")]
    NoSuchInterface(String),
    /// The interface has no hardware.
    #[error(
        "The uplink \"{interface}\" has no NIC behind it: it is {}; name a NIC's interface in \
         [underlay] of agent.toml",
        .kind.as_deref().map_or_else(|| "virtual".to_owned(), |kind| format!("of kind {kind}"))
    )]
    NotHardware {
        /// The interface.
        interface: String,
        /// What rtnetlink calls its kind, such as `veth`.
        kind: Option<String>,
    },
    /// The driver offloads nothing.
    #[error(
        "The driver of the uplink \"{interface}\" ({device}) does not offer hw-tc-offload; a NIC \
         that takes TC flower rules is needed, such as a ConnectX, an E810 or an Agilio"
    )]
    NoTcOffload {
        /// The interface.
        interface: String,
        /// Its device, such as `0000:3b:00.0`.
        device: String,
    },
    /// The driver could, but it is switched off.
    #[error(
        "The uplink \"{interface}\" has hw-tc-offload switched off; run \"ethtool -K {interface} \
         hw-tc-offload on\""
    )]
    TcOffloadOff {
        /// The interface.
        interface: String,
    },
    /// The NIC's switch is not under the kernel's control.
    #[error(
        "The NIC of the uplink \"{interface}\" is not in switchdev mode (it has no phys_switch_id); \
         run \"devlink dev eswitch set {bus}/{device} mode switchdev\""
    )]
    NotSwitchdev {
        /// The interface.
        interface: String,
        /// The device's bus, such as `pci`.
        bus: String,
        /// The device, such as `0000:3b:00.0`.
        device: String,
    },
    /// The kernel did not answer as it should.
    #[error(
        "Asking the kernel {question} failed ({errno}); check that the kernel is 5.14 or later and \
         that the agent may open netlink sockets"
    )]
    Failed {
        /// What was asked, as the end of a sentence.
        question: &'static str,
        /// What it answered.
        errno: Errno,
    },
    /// All is there, but Ferrovia does not use it yet.
    #[error(
        "This host could take flows in its {home} home, but this version of Ferrovia installs none \
         there yet; nothing needs to be done"
    )]
    NotInThisVersion {
        /// The home.
        home: HomeKind,
    },
}

/// Whether the kernel takes flower rules with the actions that flows need.
///
/// # Errors
/// What is missing, or why it could not be tried.
pub fn flower() -> Result<(), Unavailable> {
    let spawned = std::thread::Builder::new()
        .name("probe-flower".into())
        .spawn(|| {
            // Only this thread moves; the namespace goes when it ends.
            unshare(CloneFlags::CLONE_NEWNET).map_err(Unavailable::NotPermitted)?;
            flower_here()
        });
    let failed = |errno| Unavailable::Failed {
        question: "for the flower classifier",
        errno,
    };
    let thread = spawned.map_err(|e| failed(Errno::from_raw(e.raw_os_error().unwrap_or(0))))?;
    thread.join().unwrap_or(Err(failed(Errno::UnknownErrno)))
}

/// Tries it on the loopback of the calling thread's namespace, and leaves it there.
fn flower_here() -> Result<(), Unavailable> {
    let mut netlink = Netlink::open(SockProtocol::NetlinkRoute, DEADLINE).map_err(|errno| {
        Unavailable::Failed {
            question: "for TC",
            errno,
        }
    })?;
    let clsact = tc_message(0xffff_0000, 0xffff_fff1, 0).with_text(1, "clsact");
    netlink
        .request(RTM_NEWQDISC, CREATE, clsact.bytes())
        .map_err(Unavailable::NoClsact)?;

    // Drop IPv4 at ingress, in software: match, flag and action are of the kind flows use.
    let gact = [0u32, 0, 2, 0, 0]; // struct tc_gact: action is TC_ACT_SHOT
    let gact: Vec<u8> = gact.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let action = Attributes::default()
        .with_text(1, "gact")
        .with_nested(2, Attributes::default().with(2, &gact));
    let options = Attributes::default()
        .with_nested(3, Attributes::default().with_nested(1, action))
        .with(8, &0x0800u16.to_be_bytes()) // TCA_FLOWER_KEY_ETH_TYPE
        .with(22, &1u32.to_ne_bytes()); // TCA_FLOWER_FLAGS: skip_hw
    let priority_and_protocol = 1 << 16 | u32::from(0x0800u16.to_be());
    let filter = tc_message(0, 0xffff_fff2, priority_and_protocol)
        .with_text(1, "flower")
        .with_nested(2, options);
    let added = netlink.request(RTM_NEWTFILTER, CREATE, filter.bytes());

    // The kernel looks for the action's kind before it misses the action's parameters.
    let missing = ACTIONS.into_iter().find_map(|(action, option)| {
        let kind = Attributes::default().with_text(1, action);
        let tab = Attributes::default().with_nested(1, kind);
        let message = Attributes::after(&[0; 4]).with_nested(1, tab);
        match netlink.request(RTM_NEWACTION, CREATE, message.bytes()) {
            Err(errno @ (Errno::ENOENT | Errno::EOPNOTSUPP)) => Some(Unavailable::NoAction {
                action,
                option,
                errno,
            }),
            _ => None,
        }
    });
    match (added, missing) {
        (Ok(_), None) => Ok(()),
        // The filter is refused for its action as well as for its own kind: try it without.
        (Err(errno), Some(missing)) if flower_without_action(&mut netlink).is_ok() => {
            tracing::debug!(%errno, "flower is there, an action is not");
            Err(missing)
        }
        (Ok(_), Some(missing)) => Err(missing),
        (Err(errno), _) => Err(Unavailable::NoFlower(errno)),
    }
}

fn flower_without_action(netlink: &mut Netlink) -> Result<(), Errno> {
    let options = Attributes::default().with(8, &0x0800u16.to_be_bytes());
    let filter = tc_message(0, 0xffff_fff2, 2 << 16 | u32::from(0x0800u16.to_be()))
        .with_text(1, "flower")
        .with_nested(2, options);
    netlink
        .request(RTM_NEWTFILTER, CREATE, filter.bytes())
        .map(drop)
}

/// `struct tcmsg` for the loopback.
fn tc_message(handle: u32, parent: u32, info: u32) -> Attributes {
    let words = [0, LO as u32, handle, parent, info];
    let fixed: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    Attributes::after(&fixed)
}

/// What rtnetlink and ethtool tell of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// The kind of a virtual link, such as `veth`.
    pub kind: Option<String>,
    /// Bus and name of the device behind it, such as `pci` and `0000:3b:00.0`.
    pub device: Option<(String, String)>,
    /// The identity of the switch that its ports belong to, in switchdev mode.
    pub switch_id: Option<Vec<u8>>,
    /// Whether the driver lets `hw-tc-offload` be switched.
    pub tc_offload_offered: bool,
    /// Whether `hw-tc-offload` is on.
    pub tc_offload_on: bool,
}

impl Interface {
    /// Asks the kernel, in the calling thread's network namespace.
    ///
    /// # Errors
    /// Where there is no such interface or the kernel does not answer.
    pub fn look_up(name: &str) -> Result<Interface, Unavailable> {
        let failed = |errno| Unavailable::Failed {
            question: "for the uplink's link",
            errno,
        };
        // A longer name would be another question to the kernel (IFNAMSIZ is 16 with its end).
        if name.is_empty() || name.len() > 15 || name.contains('\0') {
            return Err(Unavailable::NoSuchInterface(name.to_owned()));
        }
        let mut netlink = Netlink::open(SockProtocol::NetlinkRoute, DEADLINE).map_err(failed)?;
        let question = Attributes::after(&[0; 16]).with_text(3, name); // struct ifinfomsg
        let answers = match netlink.request(RTM_GETLINK, 0, question.bytes()) {
            Ok(answers) => answers,
            Err(Errno::ENODEV) => return Err(Unavailable::NoSuchInterface(name.to_owned())),
            Err(errno) => return Err(failed(errno)),
        };
        let answer = answers
            .first()
            .and_then(|a| a.get(16..))
            .ok_or(failed(Errno::EBADMSG))?;
        let mut interface = Interface {
            kind: find(answer, 18).and_then(|info| find(info, 1)).map(text),
            device: find(answer, 57).map(text).zip(find(answer, 56).map(text)),
            switch_id: find(answer, 36)
                .filter(|id| !id.is_empty())
                .map(<[u8]>::to_vec),
            ..Interface::default()
        };
        let features = features(name).map_err(|errno| Unavailable::Failed {
            question: "for the uplink's features",
            errno,
        })?;
        // ETHTOOL_A_FEATURES_HW: what can be switched; ETHTOOL_A_FEATURES_ACTIVE: what is on.
        interface.tc_offload_offered = has_feature(&features, 2, "hw-tc-offload");
        interface.tc_offload_on = has_feature(&features, 4, "hw-tc-offload");
        Ok(interface)
    }

    /// Whether this can be the uplink of a NIC home.
    ///
    /// # Errors
    /// What is missing.
    pub fn judge(&self, name: &str) -> Result<(), Unavailable> {
        let interface = name.to_owned();
        let Some((bus, device)) = self.device.clone() else {
            return Err(Unavailable::NotHardware {
                interface,
                kind: self.kind.clone(),
            });
        };
        if !self.tc_offload_on {
            return Err(match self.tc_offload_offered {
                true => Unavailable::TcOffloadOff { interface },
                false => Unavailable::NoTcOffload { interface, device },
            });
        }
        if self.switch_id.is_none() {
            return Err(Unavailable::NotSwitchdev {
                interface,
                bus,
                device,
            });
        }
        Ok(())
    }
}

/// Whether the uplink's NIC can take flows.
///
/// # Errors
/// What is missing.
pub fn nic(uplink: &str) -> Result<(), Unavailable> {
    Interface::look_up(uplink)?.judge(uplink)
}

/// The attributes of ETHTOOL_MSG_FEATURES_GET's answer.
fn features(interface: &str) -> Result<Vec<u8>, Errno> {
    let mut netlink = Netlink::open(SockProtocol::NetlinkGeneric, DEADLINE)?;
    // struct genlmsghdr: CTRL_CMD_GETFAMILY, version 1.
    let family = Attributes::after(&[3, 1, 0, 0]).with_text(2, "ethtool");
    let answers = netlink.request(16, 0, family.bytes())?;
    let id = answers
        .first()
        .and_then(|answer| find(answer.get(4..)?, 1)?.first_chunk::<2>().copied())
        .map(u16::from_ne_bytes)
        .ok_or(Errno::EBADMSG)?;
    let header = Attributes::default().with_text(2, interface);
    let question = Attributes::after(&[11, 1, 0, 0]).with_nested(1, header);
    let answers = netlink.request(id, 0, question.bytes())?;
    let answer = answers.into_iter().next().ok_or(Errno::EBADMSG)?;
    answer.get(4..).map(<[u8]>::to_vec).ok_or(Errno::EBADMSG)
}

/// True where the bit set of this type names the feature.
fn has_feature(features: &[u8], set: u16, name: &str) -> bool {
    let bits = find(features, set)
        .and_then(|set| find(set, 3))
        .unwrap_or(&[]);
    attributes(bits).any(|(_, bit)| {
        // In a set without a mask only set bits are listed; with one, flag 3 says "set".
        let listed = find(bit, 2).is_some_and(|found| text(found) == name);
        let masked = find(features, set).is_some_and(|set| find(set, 1).is_none());
        listed && (!masked || find(bit, 3).is_some())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A NIC in switchdev mode with everything on, as rtnetlink and ethtool would tell.
    fn ready() -> Interface {
        Interface {
            kind: None,
            device: Some(("pci".into(), "0000:3b:00.0".into())),
            switch_id: Some(vec![1, 2, 3]),
            tc_offload_offered: true,
            tc_offload_on: true,
        }
    }

    #[test]
    fn each_thing_that_a_nic_lacks_has_its_own_remedy() {
        assert_eq!(ready().judge("eth1"), Ok(()));
        let cases = [
            (
                Interface {
                    device: None,
                    kind: Some("bond".into()),
                    ..ready()
                },
                "of kind bond",
            ),
            (
                Interface {
                    device: None,
                    ..ready()
                },
                "it is virtual",
            ),
            (
                Interface {
                    tc_offload_offered: false,
                    tc_offload_on: false,
                    ..ready()
                },
                "(0000:3b:00.0) does not offer hw-tc-offload",
            ),
            (
                Interface {
                    tc_offload_on: false,
                    ..ready()
                },
                "run \"ethtool -K eth1 hw-tc-offload on\"",
            ),
            (
                Interface {
                    switch_id: None,
                    ..ready()
                },
                "run \"devlink dev eswitch set pci/0000:3b:00.0 mode switchdev\"",
            ),
        ];
        for (interface, remedy) in cases {
            let text = interface.judge("eth1").unwrap_err().to_string();
            assert!(text.contains(remedy), "{text}");
            assert!(text.contains("\"eth1\""), "{text}");
        }
    }

    #[test]
    fn features_of_the_loopback_are_understood() {
        let features = features("lo").unwrap();
        // net/core and drivers/net/loopback.c: always on, and not to be switched.
        assert!(has_feature(&features, 4, "loopback"));
        assert!(!has_feature(&features, 2, "loopback"));
        // Can be switched.
        assert!(has_feature(&features, 2, "tx-generic-segmentation"));
        assert!(!has_feature(&features, 4, "hw-tc-offload"));
        assert!(!has_feature(&features, 4, "loop"));
    }

    #[test]
    fn a_bit_set_with_a_mask_counts_only_bits_that_are_set() {
        let bit = |name, set| {
            let bit = Attributes::default().with(1, &[0; 4]).with_text(2, name);
            if set { bit.with(3, &[]) } else { bit }
        };
        let bits = Attributes::default()
            .with_nested(1, bit("hw-tc-offload", false))
            .with_nested(1, bit("rx-gro", true));
        let set = Attributes::default().with_nested(3, bits);
        let features = Attributes::default().with_nested(2, set);
        assert!(!has_feature(features.bytes(), 2, "hw-tc-offload"));
        assert!(has_feature(features.bytes(), 2, "rx-gro"));
    }
}
