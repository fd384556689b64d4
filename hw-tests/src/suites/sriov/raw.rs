//! What the kernel itself says of PFs and VFs, read with `ip` and from sysfs: the witness beside `ferrovia`.

use crate::lab::Context;
use crate::lab::facts::Nic;
use crate::lab::suite::{Outcome, Stop, check};
use serde_json::Value;
use std::time::Duration;

/// How long the agent may take to see and mend what the kernel tells it, in software emulation.
pub(super) const MENDS: Duration = Duration::from_secs(60);

/// What a PF has set for one of its VFs.
#[derive(Debug)]
pub(super) struct RawVf(Value);

impl RawVf {
    /// Of VF `index` of an interface.
    pub(super) fn read(lab: &Context, interface: &str, index: &str) -> Result<RawVf, Stop> {
        let printed = lab.ok(&["ip", "-json", "link", "show", "dev", interface])?;
        let links: Value = serde_json::from_str(&printed)
            .map_err(|error| Stop::fail(format!("`ip -json link` printed {printed}: {error}")))?;
        let found = links[0]["vfinfo_list"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|vf| vf["vf"].as_u64().is_some_and(|n| n.to_string() == index));
        found
            .map(|vf| RawVf(vf.clone()))
            .ok_or_else(|| Stop::fail(format!("The kernel shows no VF {index} of {interface}")))
    }

    pub(super) fn mac(&self) -> &str {
        let mac = self.0["address"].as_str().or(self.0["mac"].as_str());
        mac.unwrap_or_default()
    }

    pub(super) fn vlan(&self) -> u64 {
        self.0["vlan_list"][0]["vlan"].as_u64().unwrap_or(0)
    }

    pub(super) fn max_rate(&self) -> u64 {
        self.0["rate"]["max_tx"].as_u64().unwrap_or(0)
    }

    pub(super) fn trust(&self) -> bool {
        self.0["trust"].as_bool().unwrap_or(false)
    }

    /// As a VF that nobody has must be.
    pub(super) fn is_neutral(&self) -> Outcome {
        let neutral = self.vlan() == 0
            && self.max_rate() == 0
            && !self.trust()
            && self.0["spoofchk"].as_bool() != Some(false)
            && matches!(self.mac(), "" | "00:00:00:00:00:00");
        check(
            neutral,
            format!("The VF is not as one that nobody has: {}", self.0),
        )
    }
}

/// Of VF `index` of a PF.
pub(super) fn vf(lab: &Context, pf: &Nic, index: &str) -> Result<RawVf, Stop> {
    RawVf::read(lab, &interface(lab, pf)?, index)
}

/// A PF's interface, by the name that it has now.
pub(super) fn interface(lab: &Context, pf: &Nic) -> Result<String, Stop> {
    let done = lab.exec(&["ls", &format!("{}/net", pf.sysfs())])?;
    let name = done.stdout.lines().next().unwrap_or_default().to_owned();
    check(!name.is_empty(), format!("{} has no interface", pf.address))?;
    Ok(name)
}

/// How many VFs there are: by their links, since the count itself cannot be read while it is being changed.
pub(super) fn links(lab: &Context, pf: &Nic) -> Result<usize, Stop> {
    let found = lab.shell(&format!("ls -d {}/virtfn*", pf.sysfs()))?;
    Ok(found.stdout.lines().count())
}

/// Waits until a PF has so many VFs.
pub(super) fn links_become(lab: &Context, pf: &Nic, wanted: usize) -> Outcome {
    let what = format!("That {} has {wanted} VFs", pf.address);
    lab.wait_for(&what, MENDS, || {
        Ok((links(lab, pf)? == wanted).then_some(()))
    })
}

/// Sets the number of VFs behind `ferrovia`'s back.
pub(super) fn set_count(lab: &Context, pf: &Nic, count: u32) -> Outcome {
    let done = lab.write(&format!("{}/sriov_numvfs", pf.sysfs()), &count.to_string())?;
    check(
        done.ok(),
        format!("The kernel does not make {count} VFs: {}", done.said()),
    )
}

/// The driver of a function; empty: none.
pub(super) fn driver(lab: &Context, address: &str) -> Result<String, Stop> {
    let link = format!("/sys/bus/pci/devices/{address}/driver");
    let done = lab.exec(&["readlink", &link])?;
    let name = done.stdout.trim().rsplit('/').next().unwrap_or_default();
    Ok(name.to_owned())
}

/// The driver that is forced on a function; empty: none.
pub(super) fn driver_override(lab: &Context, address: &str) -> Result<String, Stop> {
    let forced = lab.read(&format!("/sys/bus/pci/devices/{address}/driver_override"))?;
    Ok(forced.replace("(null)", ""))
}

/// The number of a function's IOMMU group.
pub(super) fn iommu_group(lab: &Context, address: &str) -> Result<String, Stop> {
    let link = format!("/sys/bus/pci/devices/{address}/iommu_group");
    let group = lab.ok(&["readlink", &link])?;
    Ok(group
        .trim()
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .to_owned())
}

/// RXDCTL and TXDCTL of a VF's queue 0 in its BAR (Intel 82576, sections 8.10 and 8.12).
pub(super) const QUEUE_REGISTERS: [u64; 2] = [0x2828, 0x3828];
/// The bit in each of them that turns the queue on.
pub(super) const QUEUE_ON: u32 = 1 << 25;

/// The registers of an 82576's VF, by way of `busybox devmem`. Nobody else may have its BAR open.
pub(super) struct Registers<'a> {
    lab: &'a Context,
    start: u64,
}

impl<'a> Registers<'a> {
    /// Of a VF that answers.
    pub(super) fn of(lab: &'a Context, address: &str) -> Result<Registers<'a>, Stop> {
        const STATUS: u64 = 0x8;
        let device = format!("/sys/bus/pci/devices/{address}");
        let resource = lab.read(&format!("{device}/resource"))?;
        let start = resource.split_whitespace().next().unwrap_or_default();
        let start = u64::from_str_radix(start.trim_start_matches("0x"), 16)
            .map_err(|_| Stop::fail(format!("The VF has no registers: {resource}")))?;
        // Bit 1 of the command register: memory space. QEMU maps a VF's BAR at a write to it, and not before.
        lab.shell_ok(&format!(
            "printf '\\002' | dd of={device}/config bs=1 seek=4 conv=notrunc 2> /dev/null"
        ))?;
        let registers = Registers { lab, start };
        let status = registers.read(STATUS)?;
        check(
            ![0, u32::MAX].contains(&status),
            format!("The VF's registers do not answer: its status is {status:#x}"),
        )?;
        Ok(registers)
    }

    fn at(&self, register: u64) -> String {
        format!("{:#x}", self.start + register)
    }

    fn read(&self, register: u64) -> Result<u32, Stop> {
        let printed = self
            .lab
            .ok(&["busybox", "devmem", &self.at(register), "32"])?;
        u32::from_str_radix(printed.trim().trim_start_matches("0x"), 16)
            .map_err(|_| Stop::fail(format!("A register reads as {printed}")))
    }

    /// Writes a register.
    pub(super) fn write(&self, register: u64, value: u32) -> Outcome {
        let value = format!("{value:#x}");
        self.lab
            .ok(&["busybox", "devmem", &self.at(register), "32", &value])
            .map(drop)
    }

    /// How many of queue 0's two sides are on.
    pub(super) fn queues_on(&self) -> Result<usize, Stop> {
        let mut on = 0;
        for register in QUEUE_REGISTERS {
            on += usize::from(self.read(register)? & QUEUE_ON != 0);
        }
        Ok(on)
    }
}
