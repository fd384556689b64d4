//! What a relay is: checked once, whether it comes from agent.toml, the API or the file of kept relays.

use crate::desired::{SocketMode, valid_name};
use api::v1;
use flow::MacAddr;
use sriov_mgr::PciAddress;
use std::ops::RangeInclusive;
use std::path::{Component, Path, PathBuf};

/// MTUs of a relay: from the least of IPv4 to the longest frame that fits the data plane's buffers.
pub const MTU: RangeInclusive<u64> = 68..=9000;
/// The MTU where none is given.
pub const DEFAULT_MTU: u16 = 1500;
/// Descriptors a ring where nobody says.
pub const DEFAULT_QUEUE_SIZE: u16 = 1024;
/// What a name of ours looks like.
pub const NAME_RULE: &str = "A relay's name is 1 to 63 of a-z, 0-9 and -, and starts with a letter";
/// Drivers that whoever may use the local API can ask for, with their arguments: they reach interfaces and nothing
/// else. The others also reach files with the agent's rights, or memory beyond a packet (`size` of net_null;
/// net_memif, which trusts its peer), so they are for agent.toml, which is root's.
const API_DRIVERS: [(&str, &[&str]); 4] = [
    ("net_tap", &["iface"]),
    (
        "net_af_xdp",
        &[
            "iface",
            "start_queue",
            "queue_count",
            "force_copy",
            "busy_budget",
        ],
    ),
    (
        "net_af_packet",
        &[
            "iface",
            "qpairs",
            "blocksz",
            "framesz",
            "framecnt",
            "qdisc_bypass",
        ],
    ),
    ("net_null", &["no-rx"]),
];
/// Longest device string.
const LONGEST: usize = 512;

/// A relay: a vhost-user socket and what is behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Unique among relays.
    pub name: String,
    /// The socket; `None`: NAME.sock in the directory of the vhost-user sockets.
    pub socket: Option<PathBuf>,
    /// Who makes it.
    pub mode: SocketMode,
    /// 1 to 64.
    pub queue_pairs: u16,
    /// Descriptors a ring.
    pub queue_size: u16,
    /// Bytes of IP packet.
    pub mtu: u16,
    /// The guest's MAC, and its VF's.
    pub mac: MacAddr,
    /// VLAN that the PF puts the VF's frames into; 0: none.
    pub vlan: u16,
    /// What the packets go to and come from.
    pub far: Far,
}

/// The far side of a relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Far {
    /// A VF, asked of the SR-IOV manager.
    Vf(PciAddress),
    /// A virtual device of DPDK, by its device string.
    Device(String),
}

/// Who asked for a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// agent.toml.
    File,
    /// The local API.
    Api,
}

impl Far {
    /// The name of a virtual device: what stands before the first comma.
    pub fn device_name(&self) -> Option<&str> {
        match self {
            Far::Vf(_) => None,
            Far::Device(device) => device.split(',').next(),
        }
    }

    /// As people write it.
    pub fn shown(&self) -> String {
        match self {
            Far::Vf(address) => format!("VF {address}"),
            Far::Device(device) => device.clone(),
        }
    }
}

/// The value of an argument in a device string.
pub fn argument<'d>(device: &'d str, key: &str) -> Option<&'d str> {
    device
        .split(',')
        .skip(1)
        .find_map(|part| part.strip_prefix(key)?.strip_prefix('='))
}

/// Whether a device string may be the far side of a relay.
pub fn check_device(device: &str, origin: Origin) -> Result<(), String> {
    let shown: String = device.chars().take(64).collect();
    if dpdk::pci_address(device).is_some() {
        return Err(format!(
            "\"{shown}\" is a PCI function; a VF is given as vf, so that it is handed out to nobody else"
        ));
    }
    let name = device.split(',').next().unwrap_or_default();
    let plain = device.len() <= LONGEST
        && device.bytes().all(|b| b.is_ascii_graphic())
        && name.len() <= 60
        && name.strip_prefix("net_").is_some_and(|rest| {
            let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
            !rest.is_empty() && rest.bytes().all(word)
        });
    if !plain {
        return Err(format!(
            "\"{shown}\" is not a virtual device of DPDK, such as net_tap0,iface=tap0 or net_af_xdp0,iface=eth1"
        ));
    }
    if origin == Origin::File {
        return Ok(());
    }
    // The driver is the name without its number.
    let takes = |keys: &[&str]| {
        let mut parts = device.split(',').skip(1);
        parts.all(|part| {
            part.split_once('=')
                .is_some_and(|(key, _)| keys.contains(&key))
        })
    };
    let known = API_DRIVERS.iter().any(|(driver, keys)| {
        let number = name.strip_prefix(driver);
        number.is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit())) && takes(keys)
    });
    if !known {
        let drivers: Vec<String> = API_DRIVERS
            .iter()
            .map(|(driver, keys)| format!("{driver} ({})", keys.join(", ")))
            .collect();
        return Err(format!(
            "\"{shown}\" can reach more of this host than the API's users may; the API takes {}, agent.toml takes \
             every driver",
            drivers.join(", ")
        ));
    }
    Ok(())
}

/// Whether there is somebody who puts frames into a VLAN.
pub fn check_vlan(far: &Far, vlan: u16) -> Result<(), String> {
    match far {
        Far::Device(device) if vlan != 0 => Err(format!(
            "VLAN {vlan} needs a VF, whose PF tags its frames; of {} give the VLAN's own interface",
            device.split(',').next().unwrap_or_default()
        )),
        _ => Ok(()),
    }
}

impl Spec {
    /// A relay as a caller of the API asks for it, checked.
    ///
    /// # Errors
    /// A sentence for the first mistake.
    pub fn from_api(asked: &v1::RelaySpec, origin: Origin) -> Result<Spec, String> {
        let shown: String = asked.name.chars().take(64).collect();
        if !valid_name(&asked.name) {
            return Err(format!("\"{shown}\" cannot be a name: {NAME_RULE}"));
        }
        let of = format!("of relay \"{shown}\"");
        let number = |value: u32, default: u16, range: RangeInclusive<u64>, what: &str| match value
        {
            0 => Ok(default),
            n if range.contains(&n.into()) => Ok(n as u16),
            n => Err(format!(
                "{n} {what} {of} is not within {} to {}",
                range.start(),
                range.end()
            )),
        };
        let queue_pairs = number(asked.queue_pairs, 1, 1..=64, "queue pairs")?;
        let queue_size = number(
            asked.queue_size,
            DEFAULT_QUEUE_SIZE,
            64..=32_768,
            "descriptors a ring",
        )?;
        if !queue_size.is_power_of_two() {
            return Err(format!(
                "The queue size {queue_size} {of} is not a power of two, such as 1024"
            ));
        }
        let mtu = number(asked.mtu, DEFAULT_MTU, MTU, "bytes as the MTU")?;
        let vlan = number(asked.vlan, 0, 1..=4094, "as the VLAN")?;
        let mac: Option<MacAddr> = asked.mac.parse().ok();
        let mac = mac.filter(|mac| mac.is_station()).ok_or_else(|| {
            let text: String = asked.mac.chars().take(32).collect();
            format!("\"{text}\" {of} is not the MAC address of a station")
        })?;
        let far = match &asked.far {
            Some(v1::relay_spec::Far::Vf(address)) => {
                let address = address.parse();
                Far::Vf(address.map_err(|error| format!("{error} ({of})"))?)
            }
            Some(v1::relay_spec::Far::Device(device)) => {
                check_device(device, origin)?;
                Far::Device(device.clone())
            }
            None => {
                return Err(format!(
                    "The far side {of} is missing; give a VF or a device string"
                ));
            }
        };
        check_vlan(&far, vlan)?;
        let socket = match asked.socket.as_str() {
            "" => None,
            path => {
                check_place(path, origin)?;
                Some(check_socket(path).map(PathBuf::from)?)
            }
        };
        Ok(Spec {
            name: asked.name.clone(),
            socket,
            mode: match asked.mode() {
                v1::SocketMode::AgentConnects => SocketMode::Client,
                v1::SocketMode::AgentListens | v1::SocketMode::Unspecified => SocketMode::Server,
            },
            queue_pairs,
            queue_size,
            mtu,
            mac,
            vlan,
            far,
        })
    }

    /// As the API shows it.
    pub fn to_api(&self) -> v1::RelaySpec {
        let mode = match self.mode {
            SocketMode::Server => v1::SocketMode::AgentListens,
            SocketMode::Client => v1::SocketMode::AgentConnects,
        };
        v1::RelaySpec {
            name: self.name.clone(),
            socket: self
                .socket
                .as_ref()
                .map(|path| path.display().to_string())
                .unwrap_or_default(),
            mode: mode.into(),
            queue_pairs: self.queue_pairs.into(),
            queue_size: self.queue_size.into(),
            mtu: self.mtu.into(),
            mac: self.mac.to_string(),
            vlan: self.vlan.into(),
            far: Some(match &self.far {
                Far::Vf(address) => v1::relay_spec::Far::Vf(address.to_string()),
                Far::Device(device) => v1::relay_spec::Far::Device(device.clone()),
            }),
        }
    }
}

/// A socket's path as somebody wrote it.
pub fn check_socket(path: &str) -> Result<&str, String> {
    let shown: String = path.chars().take(128).collect();
    if !path.starts_with('/') || path.chars().any(char::is_control) {
        return Err(format!("The socket \"{shown}\" must be an absolute path"));
    }
    if path.len() > 107 {
        return Err(format!(
            "The socket \"{shown}\" is longer than 107 bytes, which is all that fits"
        ));
    }
    Ok(path)
}

/// Whoever may use the API makes no files among those of the host and of the agent.
fn check_place(path: &str, origin: Origin) -> Result<(), String> {
    const NOT_HERE: [&str; 8] = [
        "/etc",
        "/usr",
        "/boot",
        "/root",
        "/dev",
        "/proc",
        "/sys",
        "/var/lib/ferrovia",
    ];
    let path = Path::new(path);
    let up = path.components().any(|part| part == Component::ParentDir);
    if origin == Origin::Api && (up || NOT_HERE.iter().any(|root| path.starts_with(root))) {
        let shown: String = path.display().to_string().chars().take(128).collect();
        return Err(format!(
            "The socket \"{shown}\" would lie among files of this host; put it below /run, or name none"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> v1::RelaySpec {
        v1::RelaySpec {
            name: "vm-1".into(),
            socket: "/run/vm-1.sock".into(),
            mode: v1::SocketMode::AgentConnects.into(),
            queue_pairs: 2,
            queue_size: 256,
            mtu: 9000,
            mac: "02:00:00:00:00:01".into(),
            vlan: 42,
            far: Some(v1::relay_spec::Far::Vf("0000:3b:02.1".into())),
        }
    }

    #[test]
    fn a_relay_comes_back_as_it_was_asked() {
        let spec = Spec::from_api(&asked(), Origin::Api).unwrap();
        assert_eq!(spec.to_api(), asked());
        let least = v1::RelaySpec {
            name: "a".into(),
            mac: "02:00:00:00:00:01".into(),
            far: Some(v1::relay_spec::Far::Device("net_tap0,iface=tap0".into())),
            ..Default::default()
        };
        let spec = Spec::from_api(&least, Origin::Api).unwrap();
        assert_eq!(
            (spec.queue_pairs, spec.queue_size, spec.mtu, spec.vlan),
            (1, 1024, 1500, 0)
        );
        assert_eq!(spec.far.device_name(), Some("net_tap0"));
    }

    #[test]
    fn what_cannot_be_is_a_sentence() {
        let wrong = |change: &dyn Fn(&mut v1::RelaySpec)| {
            let mut spec = asked();
            change(&mut spec);
            Spec::from_api(&spec, Origin::Api).unwrap_err()
        };
        let device = |text: &str| {
            let text = text.to_owned();
            wrong(&move |s| {
                s.vlan = 0;
                s.far = Some(v1::relay_spec::Far::Device(text.clone()));
            })
        };
        for (said, part) in [
            (wrong(&|s| s.name = "No".into()), "\"No\""),
            (wrong(&|s| s.queue_pairs = 65), "1 to 64"),
            (wrong(&|s| s.queue_size = 100), "power of two"),
            (wrong(&|s| s.queue_size = 65_536), "32768"),
            (wrong(&|s| s.mtu = 20_000), "68 to 9000"),
            (wrong(&|s| s.vlan = 4095), "4094"),
            (wrong(&|s| s.mac = "01:00:5e:00:00:01".into()), "station"),
            (wrong(&|s| s.far = None), "missing"),
            (
                wrong(&|s| s.far = Some(v1::relay_spec::Far::Vf("eth0".into()))),
                "PCI address",
            ),
            (
                wrong(&|s| s.far = Some(v1::relay_spec::Far::Device("net_tap0".into()))),
                "needs a VF",
            ),
            (wrong(&|s| s.socket = "vm.sock".into()), "absolute"),
            (wrong(&|s| s.socket = "/etc/cron.d/x".into()), "below /run"),
            (
                wrong(&|s| s.socket = "/run/../var/lib/ferrovia/x".into()),
                "below /run",
            ),
            (
                wrong(&|s| s.socket = format!("/{}", "x".repeat(107))),
                "107",
            ),
            (device("0000:3b:02.1"), "given as vf"),
            (device("tap0"), "net_tap0,iface=tap0"),
            (device("net_tap0,iface=a b"), "not a virtual device"),
            (device("net_pcap0,tx_pcap=/etc/passwd"), "agent.toml"),
            (device("net_af_xdp0,iface=a,xdp_prog=/x"), "agent.toml"),
            (device("net_null0/class=eth"), "not a virtual device"),
            (
                device("net_null0/bus=pci,addr=0000:3b:02.1"),
                "not a virtual device",
            ),
            (device("net_null0,size=60000"), "agent.toml"),
            (device("net_tap0,remote=eth0"), "agent.toml"),
            (
                device("net_memif0,socket-abstract=no,socket=/x/y"),
                "agent.toml",
            ),
        ] {
            assert!(said.contains(part), "{part} in {said}");
        }
        let file = |text: &str| check_device(text, Origin::File);
        assert!(file("net_pcap0,rx_pcap=a.pcap").is_ok());
        assert!(file("0000:3b:02.1").is_err());
    }

    #[test]
    fn arguments_are_found_by_their_whole_name() {
        assert_eq!(argument("net_tap0,iface=t,mac=x", "iface"), Some("t"));
        assert_eq!(argument("net_tap0,xiface=t", "iface"), None);
        assert_eq!(argument("net_tap0", "iface"), None);
    }
}
