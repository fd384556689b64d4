//! What happens to NICs without the manager: the effects of operations, and what a test does from outside
//! (holders come and go, a NIC is removed, reset, the host rebooted).

use super::nic::{FakePf, FakeVf, Holder, Nic};
use super::{FakeKernel, World, refused};
use crate::device::Device;
use crate::kernel::{EswitchMode, KernelError, VfChange};

impl World {
    pub(super) fn vf_mut(&mut self, pf: &Device, index: Option<u32>) -> Option<&mut FakeVf> {
        self.nics.get_mut(pf)?.vfs.get_mut(index? as usize)
    }

    /// drivers/pci/pci-sysfs.c and iov.c, `sriov_numvfs_store`.
    pub(super) fn num_vfs(
        &mut self,
        pf: &Device,
        count: u32,
        most: Option<u32>,
    ) -> Result<(), KernelError> {
        let mut next_group = self.next_group;
        let nic = self.nic_mut(pf)?;
        let now = nic.vfs.len() as u32;
        let errno = if count > nic.is.total_vfs {
            libc::ERANGE
        } else if count == now {
            return Ok(());
        } else if nic.driver.is_none() {
            libc::ENOENT
        } else if now > 0 && count > 0 {
            libc::EBUSY
        } else {
            let given = count.min(nic.is.gives_at_most).min(most.unwrap_or(count));
            nic.make_vfs(given, &mut next_group);
            self.next_group = next_group;
            return Ok(());
        };
        Err(refused(
            pf,
            &format!("Setting the number of VFs to {count}"),
            errno,
        ))
    }

    pub(super) fn unbind(&mut self, pf: &Device, index: Option<u32>) {
        if let Some(vf) = self.vf_mut(pf, index) {
            vf.driver = None;
        } else if index.is_none()
            && let Some(nic) = self.nics.get_mut(pf)
        {
            // A PF's driver takes its VFs with it (R16).
            nic.driver = None;
            nic.vfs.clear();
            nic.holders.clear();
            nic.mode = EswitchMode::Legacy;
        }
    }

    pub(super) fn probe(&mut self, pf: &Device, index: Option<u32>) {
        let Some(nic) = self.nics.get_mut(pf) else {
            return;
        };
        match index {
            Some(index) => {
                let found = nic.driver_for(index);
                if let Some(vf) = nic.vfs.get_mut(index as usize)
                    && vf.driver.is_none()
                {
                    vf.driver = found;
                }
            }
            None if nic.driver.is_none() => nic.driver = Some(nic.is.driver.clone()),
            None => {}
        }
    }
}

impl FakeKernel {
    /// R9: a reset with the VF's own driver bound and the link down does not return.
    pub(super) fn resets_hang(&self, pf: &Device, index: Option<u32>) -> bool {
        let world = self.world();
        let Some(nic) = world.nics.get(pf) else {
            return false;
        };
        let vf = index.and_then(|index| nic.vfs.get(index as usize));
        vf.is_some_and(|vf| vf.driver.is_some() && vf.driver == nic.is.vf_driver && !nic.up)
    }

    fn outside<T>(&self, pf: &Device, change: impl FnOnce(&mut Nic) -> T) -> T {
        let mut world = self.world();
        let nic = world.nics.get_mut(pf);
        change(nic.unwrap_or_else(|| panic!("the fake kernel was given no {pf}")))
    }

    /// Somebody uses VF `index`. With `has_it_open`, as a VM on VFIO does, the VF cannot be removed or unbound
    /// until [`FakeKernel::let_go`] (R1).
    ///
    /// # Panics
    /// When there is no such PF: a mistake of the test. The same holds for the other calls from outside.
    pub fn hold(&self, pf: &Device, index: u32, name: &str, has_it_open: bool) {
        let name = name.to_owned();
        self.outside(pf, |nic| {
            nic.holders
                .entry(index)
                .or_default()
                .push(Holder { name, has_it_open });
        });
    }

    /// Nobody uses VF `index` any more. An operation that waited for it happens now.
    pub fn let_go(&self, pf: &Device, index: u32) {
        self.outside(pf, |nic| nic.holders.remove(&index));
        self.world().settle();
    }

    /// An operation that a fault blocked ends now, with its effect.
    pub fn unblock(&self, pf: &Device) {
        self.world().end_blocked(pf);
    }

    /// The PF's driver is bound or unbound by somebody else; unbound, it has no VFs (R4, R16).
    pub fn bind_pf(&self, pf: &Device, bound: bool) {
        let mut world = self.world();
        if bound {
            world.probe(pf, None);
        } else {
            world.unbind(pf, None);
        }
    }

    /// The PF is pulled out (with its VFs), or comes back as new.
    pub fn set_present(&self, pf: &Device, present: bool) {
        self.outside(pf, |nic| {
            *nic = Nic::new(nic.is.clone());
            nic.present = present;
        });
    }

    /// Another owner sets the number of VFs, in one go (R2).
    pub fn set_num_vfs_outside(&self, pf: &Device, count: u32) {
        let mut world = self.world();
        let mut next_group = world.next_group;
        if let Some(nic) = world.nics.get_mut(pf) {
            nic.make_vfs(count, &mut next_group);
        }
        world.next_group = next_group;
    }

    /// Another owner changes a VF's settings.
    pub fn set_vf_outside(&self, pf: &Device, index: u32, change: &VfChange) {
        self.outside(pf, |nic| nic.change_vf(index, change, u32::MAX))
            .unwrap_or_else(|errno| panic!("the fake NIC does not take it: errno {errno}"));
    }

    /// Another owner binds a VF to `driver`, or unbinds it.
    pub fn bind_vf_outside(&self, pf: &Device, index: u32, driver: Option<&str>) {
        let driver = driver.map(str::to_owned);
        self.outside(pf, |nic| {
            if let Some(vf) = nic.vfs.get_mut(index as usize) {
                vf.driver = driver;
            }
        });
    }

    /// Makes the NIC something else: its limits, refusals, or how late it shows links.
    pub fn change_pf(&self, pf: &Device, change: impl FnOnce(&mut FakePf)) {
        self.outside(pf, |nic| change(&mut nic.is));
    }

    /// The host starts again: no VFs, no holders, new IOMMU group numbers, another boot id (R11).
    pub fn reboot(&self) {
        let mut world = self.world();
        world.boot += 1;
        world.next_group += 100;
        world.blocked.clear();
        for nic in world.nics.values_mut() {
            *nic = Nic::new(nic.is.clone());
        }
    }
}
