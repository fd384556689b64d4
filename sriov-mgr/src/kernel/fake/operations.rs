//! The operations of the fake kernel, with the real one's refusals.

use super::nic::{EswitchRule, Nic};
use super::{Blocked, Call, Change, DEADLINE, FakeKernel, Fault, Killed, Op, World, gone, refused};
use crate::address::PciAddress;
use crate::device::Device;
use crate::kernel::{EswitchMode, Kernel, KernelError, PfHealth, PfState, VfChange, VfState};

/// A write: what, to whom, on which PF it is serialised, and what it does.
struct Write<'a> {
    op: Op,
    /// As in [`Call::target`].
    target: String,
    argument: String,
    pf: Device,
    /// It does not return while somebody has this VF (all: `None`) open.
    waits_for: Option<Option<u32>>,
    change: &'a dyn Fn(Option<u32>) -> Change,
}

impl FakeKernel {
    fn read<T>(
        &self,
        op: Op,
        target: String,
        look: impl FnOnce(&mut World) -> Result<T, KernelError>,
    ) -> Result<T, KernelError> {
        let mut world = self.world();
        let result = match world.faults.due(op, &target) {
            Some(Fault::Errno(errno)) => Err(KernelError::Refused {
                device: target.clone(),
                what: "Reading".into(),
                errno,
                hint: None,
            }),
            Some(Fault::KillBefore | Fault::KillAfter) => {
                drop(world);
                std::panic::panic_any(Killed);
            }
            _ => look(&mut world),
        };
        world.calls.push(Call {
            op,
            target,
            argument: String::new(),
            ok: result.is_ok(),
        });
        result
    }

    fn write(&self, write: Write<'_>) -> Result<(), KernelError> {
        let mut world = self.world();
        let (op, target) = (write.op, write.target.clone());
        world.calls.push(Call {
            op,
            target: target.clone(),
            argument: write.argument.clone(),
            ok: false,
        });
        let call = world.calls.len() - 1;
        world.settle();
        if let Some(blocked) = world.blocked.get(&write.pf) {
            return Err(wedged(&write.pf, &blocked.what));
        }
        let fault = world.faults.due(op, &target);
        let done = match fault {
            Some(Fault::Errno(errno)) => {
                let call = world.calls[call].to_string();
                return Err(refused(&write.pf, &call, errno));
            }
            Some(Fault::KillBefore) => {
                drop(world);
                std::panic::panic_any(Killed);
            }
            Some(Fault::Block) => return Err(world.block(call, write, None)),
            Some(Fault::Partial(most)) => (write.change)(Some(most))(&mut world),
            Some(Fault::KillAfter) | None => {
                if let Some(vf) = write.waits_for
                    && world
                        .nics
                        .get(&write.pf)
                        .is_some_and(|nic| nic.kept_open(vf).is_some())
                {
                    return Err(world.block(call, write, Some(vf)));
                }
                (write.change)(None)(&mut world)
            }
        };
        if let Some(call) = world.calls.get_mut(call) {
            call.ok = done.is_ok();
        }
        if fault == Some(Fault::KillAfter) {
            drop(world);
            std::panic::panic_any(Killed);
        }
        done
    }

    /// A write to a PCI function, serialised with those to its PF.
    fn write_function(
        &self,
        op: Op,
        function: PciAddress,
        argument: &str,
        waits: bool,
        change: &dyn Fn(Device, Option<u32>) -> Change,
    ) -> Result<(), KernelError> {
        let (pf, index) = self.world().owner_of(function)?;
        self.write(Write {
            op,
            target: function.to_string(),
            argument: argument.to_owned(),
            pf: pf.clone(),
            waits_for: waits.then_some(index),
            change: &|partial| match partial {
                Some(_) => Box::new(|_| Ok(())),
                None => change(pf.clone(), index),
            },
        })
    }

    /// A write to a PF that has no partial success: all, or silently nothing.
    fn write_pf(
        &self,
        op: Op,
        pf: &Device,
        argument: String,
        change: impl Fn(&mut World, &Device) -> Result<(), KernelError> + Clone + Send + 'static,
    ) -> Result<(), KernelError> {
        self.write(Write {
            op,
            target: pf.to_string(),
            argument,
            pf: pf.clone(),
            waits_for: None,
            change: &|partial| {
                let (pf, change) = (pf.clone(), change.clone());
                match partial {
                    Some(_) => Box::new(|_| Ok(())),
                    None => Box::new(move |world| change(world, &pf)),
                }
            },
        })
    }
}

impl World {
    fn block(
        &mut self,
        call: usize,
        write: Write<'_>,
        until_free: Option<Option<u32>>,
    ) -> KernelError {
        let what = self.calls[call].to_string();
        let error = wedged(&write.pf, &what);
        let then = (write.change)(None);
        let blocked = Blocked {
            what,
            until_free,
            then,
        };
        self.blocked.insert(write.pf, blocked);
        error
    }

    /// Ends what waited for holders that are gone.
    pub(super) fn settle(&mut self) {
        let ended: Vec<Device> = self
            .blocked
            .iter()
            .filter(|(pf, blocked)| {
                blocked.until_free.is_some_and(|vf| {
                    self.nics
                        .get(pf)
                        .is_none_or(|nic| nic.kept_open(vf).is_none())
                })
            })
            .map(|(pf, _)| pf.clone())
            .collect();
        for pf in ended {
            self.end_blocked(&pf);
        }
    }

    /// What was blocked happens. Nobody waits for its result any more.
    pub(super) fn end_blocked(&mut self, pf: &Device) {
        if let Some(blocked) = self.blocked.remove(pf) {
            let _nobody_hears_it = (blocked.then)(self);
        }
    }
}

fn wedged(pf: &Device, what: &str) -> KernelError {
    KernelError::Wedged {
        device: pf.to_string(),
        what: what.to_owned(),
        after: DEADLINE,
    }
}

impl Kernel for FakeKernel {
    fn boot_id(&self) -> Result<String, KernelError> {
        Ok(format!("00000000-0000-4000-8000-{:012}", self.world().boot))
    }

    fn pfs(&self) -> Result<Vec<Device>, KernelError> {
        self.read(Op::Pfs, String::new(), |world| {
            let present = world.nics.iter().filter(|(_, nic)| nic.present);
            let pfs = present.filter(|(_, nic)| nic.is.total_vfs > 0);
            Ok(pfs.map(|(device, _)| device.clone()).collect())
        })
    }

    fn without_sriov(&self) -> Result<Vec<PfState>, KernelError> {
        let world = self.world();
        let present = world.nics.values().filter(|nic| nic.present);
        let plain = present.filter(|nic| nic.is.total_vfs == 0);
        Ok(plain.map(Nic::state).collect())
    }

    fn pf(&self, pf: &Device) -> Result<PfState, KernelError> {
        self.read(Op::Pf, pf.to_string(), |world| {
            world.settle();
            Ok(world.nic(pf)?.state())
        })
    }

    fn health(&self, pf: &Device) -> Result<PfHealth, KernelError> {
        self.read(Op::Health, pf.to_string(), |world| {
            Ok(world.nic(pf)?.is.health.clone())
        })
    }

    fn vfs(&self, pf: &Device) -> Result<Vec<VfState>, KernelError> {
        self.read(Op::Vfs, pf.to_string(), |world| {
            world.settle();
            let nic = world.nic_mut(pf)?;
            let vfs = (0..nic.vfs.len() as u32).filter_map(|index| nic.vf_state(index));
            let vfs = vfs.collect();
            nic.late = nic.late.saturating_sub(1);
            Ok(vfs)
        })
    }

    fn vf(&self, pf: &Device, index: u32) -> Result<VfState, KernelError> {
        self.read(Op::Vf, format!("{pf}#{index}"), |world| {
            world.settle();
            let nic = world.nic_mut(pf)?;
            let vf = nic.vf_state(index);
            nic.late = nic.late.saturating_sub(1);
            vf.ok_or_else(|| gone(pf, &format!("VF {index}")))
        })
    }

    fn set_autoprobe(&self, pf: &Device, on: bool) -> Result<(), KernelError> {
        self.write_pf(Op::SetAutoprobe, pf, on.to_string(), move |world, pf| {
            world.nic_mut(pf)?.autoprobe = on;
            Ok(())
        })
    }

    fn set_num_vfs(&self, pf: &Device, count: u32) -> Result<(), KernelError> {
        self.write(Write {
            op: Op::SetNumVfs,
            target: pf.to_string(),
            argument: count.to_string(),
            pf: pf.clone(),
            waits_for: (count == 0).then_some(None),
            change: &|most| {
                let pf = pf.clone();
                Box::new(move |world| world.num_vfs(&pf, count, most))
            },
        })
    }

    fn set_eswitch(&self, pf: &Device, mode: EswitchMode) -> Result<(), KernelError> {
        let name = format!("{mode:?}").to_lowercase();
        self.write_pf(Op::SetEswitch, pf, name.clone(), move |world, pf| {
            let nic = world.nic_mut(pf)?;
            let errno = match nic.is.eswitch {
                _ if nic.driver.is_none() => libc::ENODEV,
                EswitchRule::None => libc::EOPNOTSUPP,
                EswitchRule::WithoutVfs if !nic.vfs.is_empty() => libc::EOPNOTSUPP,
                EswitchRule::VfsUnbound if nic.vfs.iter().any(|vf| vf.driver.is_some()) => {
                    libc::EBUSY
                }
                _ => {
                    nic.mode = mode;
                    return Ok(());
                }
            };
            Err(refused(
                pf,
                &format!("Setting the eswitch to {name}"),
                errno,
            ))
        })
    }

    fn set_mtu(&self, pf: &Device, mtu: u32) -> Result<(), KernelError> {
        self.write_pf(Op::SetMtu, pf, mtu.to_string(), move |world, pf| {
            let nic = world.nic_mut(pf)?;
            if nic.driver.is_none() {
                return Err(gone(pf, "its interface"));
            }
            if !(68..=nic.is.max_mtu).contains(&mtu) {
                return Err(refused(
                    pf,
                    &format!("Setting the MTU to {mtu}"),
                    libc::EINVAL,
                ));
            }
            nic.mtu = mtu;
            Ok(())
        })
    }

    fn set_up(&self, pf: &Device, up: bool) -> Result<(), KernelError> {
        self.write_pf(Op::SetUp, pf, up.to_string(), move |world, pf| {
            let nic = world.nic_mut(pf)?;
            if nic.driver.is_none() {
                return Err(gone(pf, "its interface"));
            }
            nic.up = up;
            Ok(())
        })
    }

    fn set_vf(&self, pf: &Device, index: u32, change: &VfChange) -> Result<(), KernelError> {
        self.write(Write {
            op: Op::SetVf,
            target: format!("{pf}#{index}"),
            argument: describe(change),
            pf: pf.clone(),
            waits_for: None,
            change: &|most| {
                let (pf, change) = (pf.clone(), change.clone());
                Box::new(move |world| {
                    let nic = world.nic_mut(&pf)?;
                    if nic.driver.is_none() {
                        return Err(gone(&pf, "its interface"));
                    }
                    nic.change_vf(index, &change, most.unwrap_or(u32::MAX))
                        .map_err(|errno| {
                            refused(
                                &pf,
                                &format!("Setting {} of VF {index}", describe(&change)),
                                errno,
                            )
                        })
                })
            },
        })
    }

    fn unbind(&self, function: PciAddress) -> Result<(), KernelError> {
        self.write_function(Op::Unbind, function, "", true, &|pf, index| {
            Box::new(move |world| {
                world.unbind(&pf, index);
                Ok(())
            })
        })
    }

    fn set_driver_override(
        &self,
        function: PciAddress,
        driver: Option<&str>,
    ) -> Result<(), KernelError> {
        let name = driver.unwrap_or("none");
        let change = |pf: Device, index: Option<u32>| -> Change {
            let driver = driver.map(str::to_owned);
            Box::new(move |world| {
                if let Some(vf) = world.vf_mut(&pf, index) {
                    vf.driver_override = driver;
                }
                Ok(())
            })
        };
        self.write_function(Op::SetDriverOverride, function, name, false, &change)
    }

    fn probe(&self, function: PciAddress) -> Result<(), KernelError> {
        self.write_function(Op::Probe, function, "", false, &|pf, index| {
            Box::new(move |world| {
                world.probe(&pf, index);
                Ok(())
            })
        })
    }

    fn reset(&self, function: PciAddress) -> Result<(), KernelError> {
        let (pf, index) = self.world().owner_of(function)?;
        if self.resets_hang(&pf, index) {
            // R9: the writer hangs until the test lets it go.
            self.fail(Op::Reset, &function.to_string(), 0, Fault::Block);
        }
        self.write_function(Op::Reset, function, "", false, &|_, _| Box::new(|_| Ok(())))
    }

    fn vfio_obstacles(&self, function: PciAddress) -> Result<Vec<String>, KernelError> {
        self.read(Op::VfioObstacles, function.to_string(), |world| {
            let (pf, _) = world.owner_of(function)?;
            Ok(world.nic(&pf)?.is.vfio_obstacles.clone())
        })
    }

    fn holders(&self, pf: &Device, index: u32) -> Result<Vec<String>, KernelError> {
        self.read(Op::Holders, format!("{pf}#{index}"), |world| {
            let nic = world.nic(pf)?;
            if index as usize >= nic.vfs.len() {
                return Err(gone(pf, &format!("VF {index}")));
            }
            let holders = nic.holders.get(&index).into_iter().flatten();
            Ok(holders.map(|holder| holder.name.clone()).collect())
        })
    }

    fn wedged(&self, pf: &Device) -> Option<String> {
        let mut world = self.world();
        world.settle();
        let blocked = world.blocked.get(pf)?;
        Some(wedged(pf, &blocked.what).to_string())
    }
}

/// A change as text, such as `mac=02:00:00:00:00:01 vlan=42`.
fn describe(change: &VfChange) -> String {
    let mut parts = Vec::new();
    if let Some(mac) = change.mac {
        let hex: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
        parts.push(format!("mac={}", hex.join(":")));
    }
    if let Some(vlan) = change.vlan {
        let qos = if vlan.qos > 0 {
            format!("/{}", vlan.qos)
        } else {
            String::new()
        };
        parts.push(format!("vlan={}{qos}", vlan.id));
    }
    if let Some(rate) = change.rate {
        parts.push(format!("rate={}-{}", rate.min, rate.max));
    }
    if let Some(on) = change.spoofchk {
        parts.push(format!("spoofchk={on}"));
    }
    if let Some(link) = change.link_state {
        parts.push(format!("link={}", format!("{link:?}").to_lowercase()));
    }
    if let Some(on) = change.trust {
        parts.push(format!("trust={on}"));
    }
    parts.join(" ")
}
