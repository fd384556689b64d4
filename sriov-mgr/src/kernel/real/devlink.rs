//! Eswitch mode, ports, rate objects and health reporters through devlink (kernel:
//! `Documentation/networking/devlink/`, `include/uapi/linux/devlink.h`).

use super::wire::{Body, Netlink, Refusal, attributes, text, u16_at, u32_at, u64_at};
use crate::device::Device;
use crate::kernel::{EswitchMode, Rate};
use netlink_sys::protocols::NETLINK_GENERIC;

const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

const CMD_PORT_GET: u8 = 5;
const CMD_ESWITCH_GET: u8 = 29;
const CMD_ESWITCH_SET: u8 = 30;
const CMD_HEALTH_REPORTER_GET: u8 = 52;
const CMD_RATE_GET: u8 = 74;
const CMD_RATE_SET: u8 = 75;

const ATTR_BUS_NAME: u16 = 1;
const ATTR_DEV_NAME: u16 = 2;
const ATTR_PORT_INDEX: u16 = 3;
const ATTR_PORT_NETDEV_NAME: u16 = 7;
const ATTR_ESWITCH_MODE: u16 = 25;
const ATTR_PORT_FLAVOUR: u16 = 77;
const ATTR_HEALTH_REPORTER: u16 = 114;
const ATTR_REPORTER_NAME: u16 = 115;
const ATTR_REPORTER_STATE: u16 = 116;
const ATTR_REPORTER_ERRORS: u16 = 117;
const ATTR_REPORTER_RECOVERIES: u16 = 118;
const ATTR_PORT_PCI_VF_NUMBER: u16 = 128;
const ATTR_PORT_EXTERNAL: u16 = 149;
const ATTR_RATE_TX_SHARE: u16 = 166;
const ATTR_RATE_TX_MAX: u16 = 167;
const FLAVOUR_PCI_VF: u16 = 4;
/// devlink counts bytes a second, VF attributes Mbit/s.
const BYTES_PER_MBIT: u64 = 125_000;

/// The eswitch port of a VF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VfPort {
    pub(crate) vf: u32,
    pub(crate) port: u32,
    /// Its representor, in this network namespace.
    pub(crate) interface: Option<String>,
}

/// A health reporter of a driver.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Reporter {
    /// What it watches, such as "fw_fatal" or "tx".
    pub name: String,
    /// Whether it says that all is well now.
    pub healthy: bool,
    /// Errors so far.
    pub errors: u64,
    /// Recoveries so far.
    pub recoveries: u64,
}

/// A devlink socket.
pub(crate) struct Devlink {
    netlink: Netlink,
    family: u16,
}

impl Devlink {
    /// ENOENT where the kernel has no devlink (no driver that uses it is loaded).
    pub(crate) fn open() -> Result<Devlink, Refusal> {
        let mut netlink = Netlink::open(NETLINK_GENERIC)?;
        let mut body = Body(vec![CTRL_CMD_GETFAMILY, 1, 0, 0]);
        body.put_text(CTRL_ATTR_FAMILY_NAME, "devlink");
        let answers = netlink.request(GENL_ID_CTRL, &body.0)?;
        let family = answers.iter().find_map(|answer| {
            let found = fields(answer).find(|(kind, _)| *kind == CTRL_ATTR_FAMILY_ID)?;
            u16_at(found.1, 0)
        });
        match family {
            Some(family) => Ok(Devlink { netlink, family }),
            None => Err(Refusal {
                errno: libc::ENOENT,
                words: None,
            }),
        }
    }

    /// The eswitch's mode; `None` where the device has none to choose.
    pub(crate) fn eswitch(&mut self, device: &Device) -> Result<Option<EswitchMode>, Refusal> {
        let request = of_device(CMD_ESWITCH_GET, device);
        let answers = match self.netlink.request(self.family, &request.0) {
            Ok(answers) => answers,
            // No devlink instance, or one without an eswitch.
            Err(refusal) if matches!(refusal.errno, libc::ENODEV | libc::EOPNOTSUPP) => {
                return Ok(None);
            }
            Err(refusal) => return Err(refusal),
        };
        let mode = answers.iter().flat_map(|answer| fields(answer));
        let mode = mode.filter(|(kind, _)| *kind == ATTR_ESWITCH_MODE);
        Ok(mode
            .filter_map(|(_, value)| u16_at(value, 0))
            .find_map(|mode| match mode {
                0 => Some(EswitchMode::Legacy),
                1 => Some(EswitchMode::Switchdev),
                _ => None,
            }))
    }

    /// Switches the eswitch's mode.
    pub(crate) fn set_eswitch(
        &mut self,
        device: &Device,
        mode: EswitchMode,
    ) -> Result<(), Refusal> {
        let mut request = of_device(CMD_ESWITCH_SET, device);
        let mode: u16 = match mode {
            EswitchMode::Legacy => 0,
            EswitchMode::Switchdev => 1,
        };
        request.put(ATTR_ESWITCH_MODE, &mode.to_ne_bytes());
        self.netlink.request(self.family, &request.0)?;
        Ok(())
    }

    /// The eswitch ports of the VFs of `device` that are on this host.
    pub(crate) fn vf_ports(&mut self, device: &Device) -> Result<Vec<VfPort>, Refusal> {
        let answers = self.dump(CMD_PORT_GET, device)?;
        Ok(answers
            .iter()
            .filter_map(|answer| vf_port(answer))
            .collect())
    }

    /// Rates of the VFs' ports, by port index.
    pub(crate) fn rates(&mut self, device: &Device) -> Result<Vec<(u32, Rate)>, Refusal> {
        let answers = self.dump(CMD_RATE_GET, device)?;
        let rate = |answer: &Vec<u8>| {
            let (mut port, mut rate) = (None, Rate::default());
            for (kind, value) in fields(answer) {
                let mbit = || u64_at(value, 0).map_or(0, |b| (b / BYTES_PER_MBIT) as u32);
                match kind {
                    ATTR_PORT_INDEX => port = u32_at(value, 0),
                    ATTR_RATE_TX_SHARE => rate.min = mbit(),
                    ATTR_RATE_TX_MAX => rate.max = mbit(),
                    _ => {}
                }
            }
            Some((port?, rate))
        };
        Ok(answers.iter().filter_map(rate).collect())
    }

    /// Sets the rate object of a VF's port (switchdev mode).
    pub(crate) fn set_rate(
        &mut self,
        device: &Device,
        port: u32,
        rate: Rate,
    ) -> Result<(), Refusal> {
        let mut request = of_device(CMD_RATE_SET, device);
        request.put_u32(ATTR_PORT_INDEX, port);
        for (kind, mbit) in [(ATTR_RATE_TX_SHARE, rate.min), (ATTR_RATE_TX_MAX, rate.max)] {
            request.put(kind, &(u64::from(mbit) * BYTES_PER_MBIT).to_ne_bytes());
        }
        self.netlink.request(self.family, &request.0)?;
        Ok(())
    }

    /// The device's health reporters, those of its ports among them.
    pub(crate) fn health(&mut self, device: &Device) -> Result<Vec<Reporter>, Refusal> {
        let answers = self.dump(CMD_HEALTH_REPORTER_GET, device)?;
        let nested = answers.iter().flat_map(|answer| fields(answer));
        let nested = nested.filter(|(kind, _)| *kind == ATTR_HEALTH_REPORTER);
        Ok(nested.map(|(_, value)| reporter(value)).collect())
    }

    /// A dump, of which older kernels give every device's part.
    fn dump(&mut self, command: u8, device: &Device) -> Result<Vec<Vec<u8>>, Refusal> {
        let mut answers = match self
            .netlink
            .dump(self.family, &of_device(command, device).0)
        {
            Ok(answers) => answers,
            Err(refusal) if matches!(refusal.errno, libc::ENODEV | libc::EOPNOTSUPP) => Vec::new(),
            Err(refusal) => return Err(refusal),
        };
        answers.retain(|answer| {
            let named = |wanted: u16, name: &str| {
                fields(answer).any(|(kind, value)| kind == wanted && text(value) == name)
            };
            named(ATTR_BUS_NAME, device.bus()) && named(ATTR_DEV_NAME, &device.name())
        });
        Ok(answers)
    }
}

/// The attributes behind the generic netlink header.
fn fields(answer: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    attributes(answer.get(4..).unwrap_or_default())
}

fn of_device(command: u8, device: &Device) -> Body {
    let mut body = Body(vec![command, 1, 0, 0]);
    body.put_text(ATTR_BUS_NAME, device.bus());
    body.put_text(ATTR_DEV_NAME, &device.name());
    body
}

fn vf_port(answer: &[u8]) -> Option<VfPort> {
    let (mut flavour, mut vf, mut port, mut interface, mut external) =
        (None, None, None, None, false);
    for (kind, value) in fields(answer) {
        match kind {
            ATTR_PORT_FLAVOUR => flavour = u16_at(value, 0),
            ATTR_PORT_PCI_VF_NUMBER => vf = u16_at(value, 0).map(u32::from),
            ATTR_PORT_INDEX => port = u32_at(value, 0),
            ATTR_PORT_NETDEV_NAME => interface = Some(text(value)),
            // On a DPU: a VF of the host it sits in, not of ours.
            ATTR_PORT_EXTERNAL => external = value.first() == Some(&1),
            _ => {}
        }
    }
    (flavour == Some(FLAVOUR_PCI_VF) && !external)
        .then_some(())
        .and(vf.zip(port))
        .map(|(vf, port)| VfPort {
            vf,
            port,
            interface,
        })
}

fn reporter(nested: &[u8]) -> Reporter {
    let mut reporter = Reporter {
        name: String::new(),
        healthy: true,
        errors: 0,
        recoveries: 0,
    };
    for (kind, value) in attributes(nested) {
        match kind {
            ATTR_REPORTER_NAME => reporter.name = text(value),
            ATTR_REPORTER_STATE => reporter.healthy = value.first() == Some(&0),
            ATTR_REPORTER_ERRORS => reporter.errors = u64_at(value, 0).unwrap_or(0),
            ATTR_REPORTER_RECOVERIES => reporter.recoveries = u64_at(value, 0).unwrap_or(0),
            _ => {}
        }
    }
    reporter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vfs_port_is_read_and_others_are_not() {
        let port = |flavour: u16, external: u8| {
            let mut body = of_device(CMD_PORT_GET, &Device::Netdevsim(1));
            body.put_u32(ATTR_PORT_INDEX, 131);
            body.put(ATTR_PORT_FLAVOUR, &flavour.to_ne_bytes());
            body.put(ATTR_PORT_PCI_VF_NUMBER, &3u16.to_ne_bytes());
            body.put(ATTR_PORT_EXTERNAL, &[external]);
            body.put_text(ATTR_PORT_NETDEV_NAME, "eni1npf0vf3");
            vf_port(&body.0)
        };
        let expected = VfPort {
            vf: 3,
            port: 131,
            interface: Some("eni1npf0vf3".into()),
        };
        assert_eq!(port(FLAVOUR_PCI_VF, 0), Some(expected));
        assert_eq!(port(FLAVOUR_PCI_VF, 1), None);
        assert_eq!(port(0, 0), None);
    }

    #[test]
    fn a_device_without_devlink_has_no_eswitch() {
        // Kernels without any devlink driver have no such family at all.
        if let Ok(mut devlink) = Devlink::open() {
            assert_eq!(
                devlink.eswitch(&Device::Netdevsim(4_000_000)).unwrap(),
                None
            );
            assert_eq!(devlink.vf_ports(&Device::Netdevsim(4_000_000)).unwrap(), []);
        }
    }
}
