//! The order of steps that each driver wants, as data.
//!
//! A recipe is three lists of actions: to change the number of VFs, to go to switchdev, to go to legacy.
//! [`steps`] walks the list with the PF's state in hand and leaves out what has no effect. Another driver
//! with another order is another entry of [`RECIPES`].

use crate::journal::{Before, Target};
use crate::kernel::{EswitchMode, PfState, VfChange, VfState};
use serde::{Deserialize, Serialize};
use std::fmt;

/// One step of changing a PF.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Set the MTU of the interface, bytes.
    Mtu(u32),
    /// Take the interface up: VFs of a PF that is down have no carrier.
    Up,
    /// Whether new VFs are bound to their driver by themselves.
    Autoprobe(bool),
    /// Remove this many VFs, all of them.
    RemoveVfs(u32),
    /// Make this many VFs.
    MakeVfs(u32),
    /// Wait until sysfs shows this many VFs.
    AwaitVfs(u32),
    /// Unbind every VF from its driver.
    UnbindVfs,
    /// Switch the eswitch.
    Eswitch(EswitchMode),
    /// Let the kernel bind these VFs, which are in no pool.
    BindVfs(Vec<u32>),
    /// Set what policies want of a VF that is in no pool.
    Settings {
        /// The VF.
        index: u32,
        /// Its settings.
        change: VfChange,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Mtu(mtu) => write!(f, "Set the MTU to {mtu}"),
            Step::Up => f.write_str("Take the interface up"),
            Step::Autoprobe(true) => f.write_str("Let new VFs be bound by themselves"),
            Step::Autoprobe(false) => f.write_str("Keep new VFs without a driver"),
            Step::RemoveVfs(1) => f.write_str("Remove its VF"),
            Step::RemoveVfs(count) => write!(f, "Remove its {count} VFs"),
            Step::MakeVfs(1) => f.write_str("Make 1 VF"),
            Step::MakeVfs(count) => write!(f, "Make {count} VFs"),
            Step::AwaitVfs(count) => write!(f, "Wait for {count} VFs to appear"),
            Step::UnbindVfs => f.write_str("Unbind its VFs from their drivers"),
            Step::Eswitch(EswitchMode::Legacy) => f.write_str("Switch the eswitch to legacy"),
            Step::Eswitch(EswitchMode::Switchdev) => f.write_str("Switch the eswitch to switchdev"),
            Step::BindVfs(vfs) => write!(f, "Bind {} VFs to their driver", vfs.len()),
            Step::Settings { index, .. } => write!(f, "Set what the policies want of VF {index}"),
        }
    }
}

impl Step {
    /// Whether whoever uses a VF of the PF feels it.
    pub(crate) fn disturbs(&self) -> bool {
        matches!(
            self,
            Step::RemoveVfs(_) | Step::UnbindVfs | Step::Eswitch(_)
        )
    }
}

/// A place in a recipe. It becomes a step where it has an effect.
#[derive(Clone, Copy, Debug)]
enum Action {
    /// MTU and link of the PF.
    Interface,
    /// Remove the VFs, if there are any.
    Remove,
    /// Remove the VFs, if their number is wrong.
    RemoveIfWrong,
    /// Switch to legacy, whatever is wanted at the end.
    Legacy,
    /// Switch to what is wanted.
    Eswitch,
    /// Make the VFs and wait for them; those of pools get no driver.
    Make,
    /// Unbind the VFs.
    Unbind,
    /// Bind those that are in no pool and have no driver.
    Bind,
    /// Settings of those that are in no pool.
    Settings,
}

/// The orders of one driver.
#[derive(Debug)]
struct Recipe {
    /// The drivers of the PF; empty: every other.
    drivers: &'static [&'static str],
    /// Another number of VFs in legacy mode, or where there is no mode.
    count: &'static [Action],
    /// Another number of VFs in switchdev mode.
    count_in_switchdev: &'static [Action],
    /// From legacy to switchdev.
    to_switchdev: &'static [Action],
    /// From switchdev to legacy.
    to_legacy: &'static [Action],
}

use Action::{Bind, Eswitch, Interface, Legacy, Make, Remove, RemoveIfWrong, Settings, Unbind};

/// The first that fits is taken.
const RECIPES: &[Recipe] = &[
    // Switchdev is entered from legacy, with the VFs there and unbound: the representors are made from
    // them (Documentation/networking/devlink/mlx5.rst).
    Recipe {
        drivers: &["mlx5_core"],
        count: &[Interface, RemoveIfWrong, Make, Bind, Settings],
        count_in_switchdev: &[
            Interface, Remove, Legacy, Make, Unbind, Eswitch, Bind, Settings,
        ],
        to_switchdev: &[
            Interface,
            RemoveIfWrong,
            Make,
            Unbind,
            Eswitch,
            Bind,
            Settings,
        ],
        to_legacy: &[
            Interface,
            Unbind,
            Eswitch,
            RemoveIfWrong,
            Make,
            Bind,
            Settings,
        ],
    },
    // Every other: the mode is changed without VFs, which no driver refuses and ice demands.
    Recipe {
        drivers: &[],
        count: &[Interface, RemoveIfWrong, Make, Bind, Settings],
        count_in_switchdev: &[Interface, RemoveIfWrong, Make, Bind, Settings],
        to_switchdev: &[Interface, Remove, Eswitch, Make, Bind, Settings],
        to_legacy: &[Interface, Remove, Eswitch, Make, Bind, Settings],
    },
];

/// How the PF would be after the steps so far.
struct Walk<'a> {
    state: PfState,
    vfs: &'a [VfState],
    target: &'a Target,
    from: &'a Before,
    resuming: bool,
    /// VFs are made anew in this walk.
    anew: bool,
    /// All VFs are without a driver.
    unbound: bool,
    steps: Vec<Step>,
}

/// The steps that make a PF in `state`, with these `vfs`, what `target` says. `from` is how it was when the
/// change began; `resuming`: a change was cut off, and VFs that it made may still lack their drivers.
pub(crate) fn steps(
    state: &PfState,
    vfs: &[VfState],
    target: &Target,
    from: &Before,
    resuming: bool,
) -> Vec<Step> {
    let driver = state.driver.as_deref().unwrap_or_default();
    let fits = |recipe: &&Recipe| recipe.drivers.is_empty() || recipe.drivers.contains(&driver);
    let Some(recipe) = RECIPES.iter().find(fits) else {
        return Vec::new();
    };
    let now = state.eswitch.unwrap_or(EswitchMode::Legacy);
    let wanted = target.eswitch.unwrap_or(now);
    let actions = match (now, wanted) {
        (EswitchMode::Legacy, EswitchMode::Switchdev) => recipe.to_switchdev,
        (EswitchMode::Switchdev, EswitchMode::Legacy) => recipe.to_legacy,
        (EswitchMode::Switchdev, EswitchMode::Switchdev) if state.num_vfs != target.num_vfs => {
            recipe.count_in_switchdev
        }
        _ => recipe.count,
    };
    let mut walk = Walk {
        state: state.clone(),
        vfs,
        target,
        from,
        resuming,
        anew: false,
        unbound: false,
        steps: Vec::new(),
    };
    for action in actions {
        walk.take(*action, wanted);
    }
    if walk.state.autoprobe != from.autoprobe {
        walk.steps.push(Step::Autoprobe(from.autoprobe));
    }
    walk.steps
}

impl Walk<'_> {
    fn take(&mut self, action: Action, wanted: EswitchMode) {
        let wrong = self.state.num_vfs != self.target.num_vfs;
        match action {
            Interface => self.interface(),
            RemoveIfWrong if !wrong => {}
            Remove | RemoveIfWrong => {
                if self.state.num_vfs > 0 {
                    self.steps.push(Step::RemoveVfs(self.state.num_vfs));
                    self.state.num_vfs = 0;
                }
            }
            Legacy => self.eswitch(EswitchMode::Legacy),
            Eswitch => self.eswitch(wanted),
            Make if wrong => self.make(),
            Make => {}
            Unbind => self.unbind(),
            Bind => self.bind(),
            Settings => self.settings(),
        }
    }

    fn interface(&mut self) {
        if let Some(mtu) = self.target.mtu
            && self.state.mtu != Some(mtu)
        {
            self.steps.push(Step::Mtu(mtu));
        }
        if self.target.up && !self.state.up && self.state.interface.is_some() {
            self.steps.push(Step::Up);
        }
    }

    fn eswitch(&mut self, mode: EswitchMode) {
        if self.state.eswitch.is_some_and(|now| now != mode) {
            self.steps.push(Step::Eswitch(mode));
            self.state.eswitch = Some(mode);
        }
    }

    fn make(&mut self) {
        let count = self.target.num_vfs;
        if count == 0 {
            return;
        }
        let quiet = !self.target.pooled.is_empty();
        if self.state.autoprobe && quiet {
            self.steps.push(Step::Autoprobe(false));
            self.state.autoprobe = false;
        }
        self.steps.push(Step::MakeVfs(count));
        self.steps.push(Step::AwaitVfs(count));
        self.state.num_vfs = count;
        self.anew = true;
        self.unbound = !self.state.autoprobe;
    }

    fn unbind(&mut self) {
        let bound = if self.anew {
            !self.unbound
        } else {
            self.vfs.iter().any(|vf| vf.driver.is_some())
        };
        if bound && self.state.num_vfs > 0 {
            self.steps.push(Step::UnbindVfs);
        }
        self.unbound = true;
    }

    fn bind(&mut self) {
        // The kernel binds nothing while autoprobe is off (drivers/pci/pci-driver.c, pci_device_can_probe).
        if self.state.autoprobe != self.from.autoprobe {
            self.steps.push(Step::Autoprobe(self.from.autoprobe));
            self.state.autoprobe = self.from.autoprobe;
        }
        if !self.from.autoprobe {
            return;
        }
        let lacks = |index: &u32| {
            if self.anew || self.unbound {
                return self.unbound;
            }
            let vf = self.vfs.iter().find(|vf| vf.index == *index);
            self.resuming && vf.is_some_and(|vf| vf.address.is_some() && vf.driver.is_none())
        };
        let vfs: Vec<u32> = (0..self.state.num_vfs)
            .filter(|index| !self.target.pooled.contains(index))
            .filter(lacks)
            .collect();
        if !vfs.is_empty() && self.state.device.pci().is_some() {
            self.steps.push(Step::BindVfs(vfs));
        }
    }

    fn settings(&mut self) {
        for (index, change) in &self.target.settings {
            let vf = self.vfs.iter().find(|vf| vf.index == *index);
            let differs = vf.is_none_or(|vf| !holds(vf, change));
            if *index < self.state.num_vfs && (self.anew || differs) {
                self.steps.push(Step::Settings {
                    index: *index,
                    change: change.clone(),
                });
            }
        }
    }
}

/// Whether `vf` is as `change` wants it, as far as its driver says.
fn holds(vf: &VfState, change: &VfChange) -> bool {
    fn same<T: PartialEq>(wanted: &Option<T>, now: &Option<T>) -> bool {
        wanted.is_none() || now.is_none() || wanted == now
    }
    let now = &vf.settings;
    same(&change.mac, &now.mac)
        && change.vlan.is_none_or(|vlan| vlan == now.vlan)
        && change.rate.is_none_or(|rate| rate == now.rate)
        && same(&change.spoofchk, &now.spoofchk)
        && same(&change.trust, &now.trust)
        && same(&change.link_state, &now.link_state)
}
