//! The order of steps that each driver wants, as data.

use crate::kernel::{EswitchMode, VfChange};
use serde::{Deserialize, Serialize};

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
