//! The driver of a VF, and its reset.

use super::{Life, retry_busy, wait_for};
use crate::address::PciAddress;
use crate::device::VfId;
use crate::kernel::{KernelError, VfState};
use crate::manager::Error;
use crate::policy::VfDriver;

/// The driver that gives a function to user space.
const VFIO: &str = "vfio-pci";

impl VfDriver {
    /// Whether the driver that is bound is this one. Which the kernel's own is only the kernel knows, and libvirt
    /// gives a VF to vfio-pci by itself while a VM has it.
    pub(crate) fn is_that(self, bound: Option<&str>) -> bool {
        match self {
            VfDriver::Kernel => bound.is_some(),
            VfDriver::Vfio => bound == Some(VFIO),
        }
    }
}

impl Life<'_> {
    /// Takes the driver from a VF, and the mark that a cut-off change of drivers leaves (R12).
    pub(crate) fn unbind(&self, vf: &VfId) -> Result<(), KernelError> {
        let state = self.kernel.vf(&vf.pf, vf.index)?;
        let Some(address) = state.address else {
            return Ok(());
        };
        if state.driver.is_some() {
            self.kernel.unbind(address)?;
            let gone = wait_for(self.patience.driver, || {
                let state = self.kernel.vf(&vf.pf, vf.index)?;
                Ok(state.driver.is_none().then_some(()))
            })?;
            if gone.is_none() {
                return Err(KernelError::Failed {
                    device: vf.to_string(),
                    what: "Unbinding".into(),
                    why: "its driver is still bound; somebody binds it again, look for driverctl or udev rules".into(),
                });
            }
        }
        if state.driver_override.is_some() {
            self.kernel.set_driver_override(address, None)?;
        }
        Ok(())
    }

    /// Resets a VF, whose driver is unbound (R8, R9). A VF that is no function has nothing to reset.
    pub(crate) fn reset(&self, vf: &VfId) -> Result<(), KernelError> {
        let state = self.kernel.vf(&vf.pf, vf.index)?;
        match state.address {
            Some(address) => retry_busy(self.patience.busy, || self.kernel.reset(address)),
            None => Ok(()),
        }
    }

    /// Gives a VF, which has no driver, the one it is to have.
    pub(crate) fn bind(&self, vf: &VfId, driver: Option<VfDriver>) -> Result<(), Error> {
        let Some(driver) = driver else {
            return Ok(());
        };
        let state = self.kernel.vf(&vf.pf, vf.index)?;
        let Some(address) = state.address else {
            return match driver {
                VfDriver::Kernel => Ok(()),
                VfDriver::Vfio => Err(Error::Unsupported(format!(
                    "{vf} is no PCI function and cannot be given to vfio-pci; ask for no driver"
                ))),
            };
        };
        match driver {
            VfDriver::Vfio => self.bind_vfio(vf, address),
            VfDriver::Kernel => self.bind_kernel(vf, address, &state),
        }
    }

    /// Why a VF must not be given to vfio-pci, all of it in one text; `None`: it may.
    pub(crate) fn vfio_refusal(&self, address: PciAddress) -> Result<Option<String>, KernelError> {
        let obstacles = self.kernel.vfio_obstacles(address)?;
        Ok((!obstacles.is_empty()).then(|| obstacles.join("; ")))
    }

    fn bind_vfio(&self, vf: &VfId, address: PciAddress) -> Result<(), Error> {
        // Asked at each binding: a VF that was made anew can be in another group, with others.
        if let Some(why) = self.vfio_refusal(address)? {
            return Err(Error::Unsupported(format!(
                "{vf} ({address}) cannot be given to vfio-pci: {why}"
            )));
        }
        self.kernel.set_driver_override(address, Some(VFIO))?;
        self.kernel.probe(address)?;
        if self.driver_comes(vf, |driver| driver == VFIO)? {
            return Ok(());
        }
        Err(Error::Unsupported(format!(
            "{vf} ({address}) is not bound to vfio-pci although the kernel was asked to; load the module \
             (modprobe vfio-pci) and see that the IOMMU is on"
        )))
    }

    fn bind_kernel(&self, vf: &VfId, address: PciAddress, state: &VfState) -> Result<(), Error> {
        if state.driver_override.is_some() {
            self.kernel.set_driver_override(address, None)?;
        }
        // The kernel binds nothing to a VF while its PF says so (drivers/pci/pci-driver.c).
        let quiet = !self.kernel.pf(&vf.pf)?.autoprobe;
        if quiet {
            self.kernel.set_autoprobe(&vf.pf, true)?;
        }
        let probed = self.kernel.probe(address);
        if quiet {
            self.kernel.set_autoprobe(&vf.pf, false)?;
        }
        probed?;
        if self.driver_comes(vf, |_| true)? {
            return Ok(());
        }
        Err(Error::Unsupported(format!(
            "The kernel finds no driver for {vf} ({address}); load the module of its VF driver"
        )))
    }

    fn driver_comes(&self, vf: &VfId, right: impl Fn(&str) -> bool) -> Result<bool, KernelError> {
        let found = wait_for(self.patience.driver, || {
            let state = self.kernel.vf(&vf.pf, vf.index)?;
            Ok(state
                .driver
                .is_some_and(|driver| right(&driver))
                .then_some(()))
        })?;
        Ok(found.is_some())
    }
}
