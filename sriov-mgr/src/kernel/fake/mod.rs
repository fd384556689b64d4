//! A fake kernel: a whole model of PFs and VFs that does what the real one does, and fails where a test
//! wants it to. It proves orders of operations, crashes and faults that no emulated NIC can show;
//! what the real kernel does is proven on the real kernel.
//!
//! ```
//! use sriov_mgr::kernel::{Kernel, fake::{FakeKernel, FakePf, Fault, Op}};
//!
//! let kernel = FakeKernel::builder().pf(FakePf::igb("0000:01:00.0", "eth0")).build();
//! let pf = "0000:01:00.0".parse().unwrap();
//! kernel.fail(Op::SetNumVfs, "0000:01:00.0", 0, Fault::Partial(3));
//! kernel.set_num_vfs(&pf, 4).unwrap();
//! assert_eq!(kernel.pf(&pf).unwrap().num_vfs, 3);
//! assert_eq!(kernel.writes(), ["set_num_vfs 0000:01:00.0 4"]);
//! ```

mod faults;
mod nic;
mod operations;
mod outside;
#[cfg(test)]
mod tests;

pub use faults::{Call, Fault, Killed, Op};
pub use nic::{EswitchRule, FakePf};

use super::KernelError;
use crate::address::PciAddress;
use crate::device::Device;
use faults::Faults;
use nic::Nic;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a blocked call says it has waited for.
const DEADLINE: Duration = Duration::from_secs(30);

/// The fake kernel. All that a test does to it takes `&self`, so that it can be shared with the manager.
pub struct FakeKernel {
    world: Mutex<World>,
}

struct World {
    nics: BTreeMap<Device, Nic>,
    next_group: u32,
    boot: u32,
    faults: Faults,
    calls: Vec<Call>,
    blocked: BTreeMap<Device, Blocked>,
}

/// An operation that has not returned.
struct Blocked {
    what: String,
    /// It ends by itself when nobody has the VF (all VFs: `None`) open any more; without this, when the
    /// test says so.
    until_free: Option<Option<u32>>,
    then: Change,
}

/// The effect of an operation.
type Change = Box<dyn FnOnce(&mut World) -> Result<(), KernelError> + Send>;

/// Collects the NICs of a [`FakeKernel`].
#[derive(Default)]
pub struct Builder {
    pfs: Vec<FakePf>,
}

impl Builder {
    /// Adds a PF.
    #[must_use]
    pub fn pf(mut self, pf: FakePf) -> Builder {
        self.pfs.push(pf);
        self
    }

    /// The kernel with these NICs, no VFs yet.
    pub fn build(self) -> Arc<FakeKernel> {
        let nics = self
            .pfs
            .into_iter()
            .map(|pf| (pf.device.clone(), Nic::new(pf)));
        Arc::new(FakeKernel {
            world: Mutex::new(World {
                nics: nics.collect(),
                next_group: 20,
                boot: 1,
                faults: Faults::default(),
                calls: Vec::new(),
                blocked: BTreeMap::new(),
            }),
        })
    }
}

impl FakeKernel {
    /// To put NICs in.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// A simulated death panics out of an operation: the model itself is whole then.
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes one call of `op` on `target` (a device `0000:3b:00.0`, a VF `0000:3b:00.0#2`, or a PCI
    /// function; as in [`Call::target`]) go wrong: the first from now on after `skip` others.
    pub fn fail(&self, op: Op, target: &str, skip: u32, fault: Fault) {
        self.fail_times(op, target, skip, 1, fault);
    }

    /// As [`FakeKernel::fail`], for `times` calls in a row.
    pub fn fail_times(&self, op: Op, target: &str, skip: u32, times: u32, fault: Fault) {
        let target = Some(target.to_owned());
        self.world().faults.arm(op, target, skip, times, fault);
    }

    /// As [`FakeKernel::fail`], whatever the target.
    pub fn fail_any(&self, op: Op, skip: u32, fault: Fault) {
        self.world().faults.arm(op, None, skip, 1, fault);
    }

    /// Disarms every fault that has not struck.
    pub fn clear_faults(&self) {
        self.world().faults.clear();
    }

    /// Everything asked for so far, reads and writes.
    pub fn calls(&self) -> Vec<Call> {
        self.world().calls.clone()
    }

    /// The writes asked for so far, as text, in order.
    pub fn writes(&self) -> Vec<String> {
        let world = self.world();
        let writes = world.calls.iter().filter(|call| call.op.writes());
        writes.map(Call::to_string).collect()
    }

    /// Forgets what was asked for so far.
    pub fn forget_calls(&self) {
        self.world().calls.clear();
    }
}

impl World {
    fn nic(&self, pf: &Device) -> Result<&Nic, KernelError> {
        self.nics
            .get(pf)
            .filter(|nic| nic.present)
            .ok_or_else(|| gone(pf, "no such device"))
    }

    fn nic_mut(&mut self, pf: &Device) -> Result<&mut Nic, KernelError> {
        let nic = self.nics.get_mut(pf).filter(|nic| nic.present);
        nic.ok_or_else(|| gone(pf, "no such device"))
    }

    /// The PF that `function` is, or is a VF of, and the VF's number.
    fn owner_of(&self, function: PciAddress) -> Result<(Device, Option<u32>), KernelError> {
        for (device, nic) in self.nics.iter().filter(|(_, nic)| nic.present) {
            if device.pci() == Some(function) {
                return Ok((device.clone(), None));
            }
            let vf = (0..nic.vfs.len() as u32).find(|i| nic.vf_address(*i) == Some(function));
            if vf.is_some() {
                return Ok((device.clone(), vf));
            }
        }
        Err(gone(&Device::Pci(function), "no such PCI function"))
    }
}

fn gone(device: &Device, what: &str) -> KernelError {
    KernelError::Gone {
        device: device.to_string(),
        what: what.to_owned(),
    }
}

fn refused(device: &Device, what: &str, errno: i32) -> KernelError {
    KernelError::Refused {
        device: device.to_string(),
        what: what.to_owned(),
        errno,
        hint: None,
    }
}
