//! The operations themselves, as a helper process carries them out. Any of them may never return.

use super::devlink::Devlink;
use super::holders;
use super::links;
use super::look::{self, View};
use super::tree::{Tree, hinted, refused};
use super::vf_attributes::{self, Setting};
use super::wire::Refusal;
use crate::address::PciAddress;
use crate::device::Device;
use crate::kernel::{
    EswitchMode, KernelError, PfHealth, PfState, VfChange, VfLinkState, VfState, VlanProtocol,
};
use crate::vfio;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long VF links may come after the VFs themselves (R3).
const LINKS_COME: Duration = Duration::from_secs(5);
/// EBUSY on a MAC or on link up passes soon (R20): tries, and the pause between them.
const BUSY_TRIES: u32 = 20;
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// What a helper is asked to do to a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Read the PF; cautious: an operation on it hangs.
    Pf {
        /// Read nothing that would hang too.
        cautious: bool,
    },
    /// Read what it says of its errors.
    Health,
    /// Read every VF.
    Vfs,
    /// Read one VF.
    Vf(u32),
    /// Find who has a VF in use.
    Holders(u32),
    /// Find who has which VF in use.
    AllHolders,
    /// Judge whether a function may be given to vfio-pci.
    VfioObstacles {
        /// The function.
        function: PciAddress,
        /// Dangers that the operator accepts.
        accepted: Vec<vfio::Force>,
    },
    /// `sriov_drivers_autoprobe`.
    Autoprobe(bool),
    /// `sriov_numvfs`.
    NumVfs(u32),
    /// devlink eswitch mode.
    Eswitch(EswitchMode),
    /// The interface's MTU, bytes.
    Mtu(u32),
    /// The interface up or down.
    Up(bool),
    /// A VF's settings.
    SetVf(u32, VfChange),
    /// Unbind a function from its driver.
    Unbind(PciAddress),
    /// `driver_override`.
    DriverOverride(PciAddress, Option<String>),
    /// `drivers_probe`.
    Probe(PciAddress),
    /// `reset`.
    Reset(PciAddress),
}

impl Action {
    /// Whether it only looks.
    pub fn reads(&self) -> bool {
        matches!(
            self,
            Action::Pf { .. }
                | Action::Health
                | Action::Vfs
                | Action::Vf(_)
                | Action::Holders(_)
                | Action::AllHolders
                | Action::VfioObstacles { .. }
        )
    }

    /// In words, as they begin a sentence.
    pub fn words(&self) -> String {
        match self {
            Action::Pf { .. } => "Reading its state".into(),
            Action::Health => "Reading its errors".into(),
            Action::Vfs => "Reading its VFs".into(),
            Action::Vf(index) => format!("Reading VF {index}"),
            Action::Holders(index) => format!("Looking who uses VF {index}"),
            Action::AllHolders => "Looking who uses its VFs".into(),
            Action::VfioObstacles { function, .. } => {
                format!("Looking whether {function} may go to vfio-pci")
            }
            Action::Autoprobe(on) => {
                format!("Setting sriov_drivers_autoprobe to {}", u8::from(*on))
            }
            Action::NumVfs(0) => "Removing its VFs (sriov_numvfs=0)".into(),
            Action::NumVfs(count) => format!("Making {count} VFs (sriov_numvfs)"),
            Action::Eswitch(EswitchMode::Legacy) => "Switching the eswitch to legacy".into(),
            Action::Eswitch(EswitchMode::Switchdev) => "Switching the eswitch to switchdev".into(),
            Action::Mtu(mtu) => format!("Setting the MTU to {mtu}"),
            Action::Up(true) => "Taking the link up".into(),
            Action::Up(false) => "Taking the link down".into(),
            Action::SetVf(index, _) => format!("Setting up VF {index}"),
            Action::Unbind(function) => format!("Unbinding {function}"),
            Action::DriverOverride(function, Some(driver)) => {
                format!("Setting driver_override of {function} to {driver}")
            }
            Action::DriverOverride(function, None) => {
                format!("Clearing driver_override of {function}")
            }
            Action::Probe(function) => format!("Binding {function}"),
            Action::Reset(function) => format!("Resetting {function}"),
        }
    }
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It is done.
    Done,
    /// The PF.
    Pf(PfState),
    /// What it says of its errors.
    Health(PfHealth),
    /// VFs.
    Vfs(Vec<VfState>),
    /// Who uses a VF.
    Holders(Vec<String>),
    /// Who uses which VF.
    AllHolders(BTreeMap<u32, Vec<String>>),
    /// What stands against vfio-pci.
    VfioObstacles(Vec<String>),
}

/// Does it, here and now. A change waits up to `patience` for one that another process is making.
pub(crate) fn act(
    tree: &Tree,
    device: &Device,
    action: &Action,
    patience: Duration,
) -> Result<Answer, KernelError> {
    let _lock = if action.reads() {
        None
    } else {
        Some(lock(tree, device, action, patience)?)
    };
    match action {
        Action::Pf { cautious } => {
            let view = if *cautious {
                View::cautious(device)?
            } else {
                View::whole(device)?
            };
            return Ok(Answer::Pf(look::pf(tree, device, &view, *cautious)?));
        }
        Action::Health => return Ok(Answer::Health(look::health(tree, device)?)),
        Action::Vfs => {
            let view = View::whole(device)?;
            return Ok(Answer::Vfs(look::vfs(tree, device, &view, None)?));
        }
        Action::Vf(index) => {
            let view = View::whole(device)?;
            return Ok(Answer::Vfs(vec![look::one_vf(
                tree, device, &view, *index,
            )?]));
        }
        Action::Holders(index) => {
            return Ok(Answer::Holders(holders::of_vf(tree, device, *index)?));
        }
        Action::AllHolders => {
            return Ok(Answer::AllHolders(holders::of_all_vfs(tree, device)?));
        }
        Action::VfioObstacles { function, accepted } => {
            let facts = vfio::Facts::read(&tree.0, *function);
            let verdict = vfio::Verdict::of(&facts, vfio::Purpose::Bind, accepted);
            let obstacles = verdict.obstacles.iter().map(ToString::to_string);
            return Ok(Answer::VfioObstacles(obstacles.collect()));
        }
        Action::Autoprobe(on) => autoprobe(tree, device, *on)?,
        Action::NumVfs(count) => num_vfs(tree, device, *count)?,
        Action::Eswitch(mode) => eswitch(tree, device, *mode)?,
        Action::Mtu(mtu) => {
            let index = uplink(tree, device)?;
            links::set_mtu(index, *mtu).map_err(|r| refused(device, &action.words(), &r))?;
        }
        Action::Up(up) => {
            let index = uplink(tree, device)?;
            busy_retried(|| links::set_up(index, *up))
                .map_err(|r| refused(device, &action.words(), &r))?;
        }
        Action::SetVf(index, change) => set_vf(tree, device, *index, change)?,
        Action::Unbind(function) => unbind(tree, *function)?,
        Action::DriverOverride(function, driver) => {
            let file = tree.function(*function).0.join("driver_override");
            let value = format!("{}\n", driver.as_deref().unwrap_or_default());
            tree.write(&Device::Pci(*function), &file, &value, &action.words())?;
        }
        Action::Probe(function) => {
            look::present(tree, &Device::Pci(*function))?;
            let file = tree.0.join("sys/bus/pci/drivers_probe");
            tree.write(
                &Device::Pci(*function),
                &file,
                &function.to_string(),
                &action.words(),
            )?;
        }
        Action::Reset(function) => {
            let failed = |e: vfio::ResetError| e.of_kernel(*function, &action.words());
            vfio::reset(&tree.0, *function).map_err(failed)?;
        }
    }
    Ok(Answer::Done)
}

/// One change to a device at a time, on the whole host: the helper of an agent that was killed may still be at
/// work. The lock is on the device's own directory, so it leaves nothing behind and needs no path of ours.
fn lock(
    tree: &Tree,
    device: &Device,
    action: &Action,
    patience: Duration,
) -> Result<Flock<File>, KernelError> {
    let failed = |why: String| KernelError::Failed {
        device: device.to_string(),
        what: action.words(),
        why,
    };
    let began = Instant::now();
    let dir = look::present(tree, device)?;
    let mut file = File::open(&dir.0).map_err(|e| failed(e.to_string()))?;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((again, nix::errno::Errno::EWOULDBLOCK)) if began.elapsed() < patience => {
                file = again;
                sleep(Duration::from_millis(20));
            }
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                return Err(KernelError::Wedged {
                    device: device.to_string(),
                    what: BUSY_ELSEWHERE.into(),
                    after: began.elapsed(),
                });
            }
            Err((_, errno)) => {
                return Err(failed(format!("its directory cannot be locked: {errno}")));
            }
        }
    }
}

/// Says that the lock is held.
pub(crate) const BUSY_ELSEWHERE: &str =
    "a change that another process makes (perhaps the helper of an agent that was killed)";

/// Whether some process is changing the device now. Those who look do not keep each other from looking.
pub(crate) fn is_being_changed(tree: &Tree, device: &Device) -> bool {
    File::open(&tree.dir(device).0).is_ok_and(|file| {
        let locked = Flock::lock(file, FlockArg::LockSharedNonblock);
        matches!(locked, Err((_, nix::errno::Errno::EWOULDBLOCK)))
    })
}

fn autoprobe(tree: &Tree, device: &Device, on: bool) -> Result<(), KernelError> {
    let words = Action::Autoprobe(on).words();
    match device {
        // Its VFs are no functions: there is no driver to bind.
        Device::Netdevsim(_) => Ok(()),
        Device::Pci(_) => {
            let file = look::present(tree, device)?
                .0
                .join("sriov_drivers_autoprobe");
            tree.write(device, &file, if on { "1" } else { "0" }, &words)
        }
    }
}

fn num_vfs(tree: &Tree, device: &Device, count: u32) -> Result<(), KernelError> {
    let dir = look::present(tree, device)?;
    let words = Action::NumVfs(count).words();
    let written = tree.write(
        device,
        &dir.0.join("sriov_numvfs"),
        &count.to_string(),
        &words,
    );
    written.map_err(|error| {
        hinted(error, |errno| match errno {
            libc::ERANGE | libc::ENOMEM => Some(format!("it can have {}", tree.total_vfs(device))),
            libc::EBUSY => {
                let now = tree.num_vfs(device).unwrap_or(0);
                Some(format!("it has {now}, which must be removed first"))
            }
            libc::ENOENT => Some("no driver is bound to the PF".into()),
            libc::EPERM => Some("a VF is assigned to a virtual machine".into()),
            _ => None,
        })
    })?;
    let given = tree.num_vfs(device).unwrap_or(0) as usize;
    let began = Instant::now();
    while device.pci().is_some()
        && tree.vf_functions(device).len() != given
        && began.elapsed() < LINKS_COME
    {
        sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn eswitch(tree: &Tree, device: &Device, mode: EswitchMode) -> Result<(), KernelError> {
    look::present(tree, device)?;
    let set = || Devlink::open()?.set_eswitch(device, mode);
    set().map_err(|mut refusal| {
        // The device is there: it is devlink that does not know it, or no driver with devlink is loaded.
        if matches!(refusal.errno, libc::ENODEV | libc::ENOENT) {
            refusal.errno = libc::EOPNOTSUPP;
        }
        let error = refused(device, &Action::Eswitch(mode).words(), &refusal);
        hinted(error, |errno| match errno {
            libc::EOPNOTSUPP => {
                Some("its driver has no eswitch mode to choose, or not with VFs present".into())
            }
            _ => None,
        })
    })
}

/// The index of the PF's interface.
fn uplink(tree: &Tree, device: &Device) -> Result<u32, KernelError> {
    look::present(tree, device)?;
    let view = View::cautious(device)?;
    view.uplink(tree, device)
        .map(|link| link.index)
        .ok_or_else(|| KernelError::Gone {
            device: device.to_string(),
            what: "its interface: no driver is bound, or it is in another network namespace".into(),
        })
}

/// Sets what is asked for one by one, so that a refusal names what was refused. The order is the kernel's own.
fn set_vf(tree: &Tree, device: &Device, index: u32, change: &VfChange) -> Result<(), KernelError> {
    let link = uplink(tree, device)?;
    let settings = [
        change.mac.map(Setting::Mac),
        change.vlan.map(Setting::Vlan),
        change.rate.map(Setting::Rate),
        change.spoofchk.map(Setting::Spoofchk),
        change.link_state.map(Setting::LinkState),
        change.trust.map(Setting::Trust),
    ];
    for setting in settings.into_iter().flatten() {
        let written = busy_retried(|| match setting {
            Setting::Rate(rate) => set_rate(device, link, index, rate),
            other => vf_attributes::write(link, index, other),
        });
        written.map_err(|refusal| {
            let what = format!("Setting {} of VF {index}", setting_words(setting));
            hinted(refused(device, &what, &refusal), |errno| {
                setting_hint(setting, errno)
            })
        })?;
    }
    Ok(())
}

/// In switchdev mode rates are objects of devlink; the VF attribute is refused then.
fn set_rate(
    device: &Device,
    link: u32,
    index: u32,
    rate: crate::kernel::Rate,
) -> Result<(), Refusal> {
    let attribute = || vf_attributes::write(link, index, Setting::Rate(rate));
    let Ok(mut devlink) = Devlink::open() else {
        return attribute();
    };
    if devlink.eswitch(device)? != Some(EswitchMode::Switchdev) {
        return attribute();
    }
    match devlink
        .vf_ports(device)?
        .iter()
        .find(|port| port.vf == index)
    {
        Some(port) => devlink.set_rate(device, port.port, rate),
        None => attribute(),
    }
}

fn busy_retried(mut change: impl FnMut() -> Result<(), Refusal>) -> Result<(), Refusal> {
    let mut tries = 0;
    loop {
        let result = change();
        tries += 1;
        match &result {
            Err(refusal)
                if matches!(refusal.errno, libc::EBUSY | libc::EAGAIN) && tries < BUSY_TRIES =>
            {
                sleep(BUSY_PAUSE);
            }
            _ => return result,
        }
    }
}

fn setting_words(setting: Setting) -> String {
    match setting {
        Setting::Mac(mac) => {
            let hex: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("the MAC {}", hex.join(":"))
        }
        Setting::Vlan(vlan) => match vlan.protocol {
            VlanProtocol::Dot1q => format!("VLAN {} (priority {})", vlan.id, vlan.qos),
            VlanProtocol::Dot1ad => format!("VLAN {} (priority {}, 802.1ad)", vlan.id, vlan.qos),
        },
        Setting::Rate(rate) => format!("the rates {} to {} Mbit/s", rate.min, rate.max),
        Setting::Spoofchk(on) => format!("spoof checking {}", on_off(on)),
        Setting::Trust(on) => format!("trust {}", on_off(on)),
        Setting::LinkState(VfLinkState::Auto) => "the link state auto".into(),
        Setting::LinkState(VfLinkState::Enable) => "the link state enable".into(),
        Setting::LinkState(VfLinkState::Disable) => "the link state disable".into(),
    }
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// What these refusals are known to mean.
fn setting_hint(setting: Setting, errno: i32) -> Option<String> {
    let text = match (setting, errno) {
        (Setting::Vlan(vlan), libc::EPROTONOSUPPORT) if vlan.protocol == VlanProtocol::Dot1ad => {
            "this hardware takes only 802.1Q"
        }
        (Setting::Rate(rate), libc::EINVAL) if rate.min > 0 => {
            "this hardware may have no minimum rate, or the rate is above the link's speed"
        }
        (Setting::Rate(_), libc::EINVAL) => {
            "the rate may be above the link's speed, or there is no link"
        }
        (_, libc::EOPNOTSUPP) => "this hardware or driver has no such setting",
        (_, libc::EINVAL) => "the PF has no such VF, or the hardware does not take the value",
        _ => return None,
    };
    Some(text.into())
}

fn unbind(tree: &Tree, function: PciAddress) -> Result<(), KernelError> {
    let device = Device::Pci(function);
    let dir = look::present(tree, &device)?;
    if dir.link_name("driver").is_none() {
        return Ok(());
    }
    let words = Action::Unbind(function).words();
    let written = tree.write(
        &device,
        &dir.0.join("driver/unbind"),
        &function.to_string(),
        &words,
    );
    match written {
        // Somebody else was faster: it has no driver, as was asked.
        Err(KernelError::Gone { .. }) if dir.link_name("driver").is_none() => Ok(()),
        Err(error) if error.errno() == Some(libc::ENODEV) && dir.link_name("driver").is_none() => {
            Ok(())
        }
        other => other,
    }
}
