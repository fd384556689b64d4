//! The self-test on the device itself, by the library `vfio-ioctls` and, where that loses errors, by
//! [`super::ioctl`].
//!
//! What it shows: the kernel gives the device, its DMA can be bounded, it can be reset, interrupts can be
//! set up. The interrupt is raised by the kernel on our behalf, since only a driver of the device could make
//! the device itself raise one; likewise no DMA is done.

use super::check::{Step, StepName, StepResult};
use super::facts::{Facts, Group, Member};
use super::ioctl;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_RESET, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSI_IRQ_INDEX,
    VFIO_PCI_MSIX_IRQ_INDEX,
};
use vfio_ioctls::{VfioContainer, VfioDevice, VfioError};
use vm_memory::MmapRegion;

/// Page of the IOMMU: the smallest that all have.
const PAGE: usize = 4096;
/// BARs of a PCI function.
const BARS: u32 = 6;
/// How long an interrupt raised by the kernel may take to arrive.
const INTERRUPT_WAIT: Duration = Duration::from_secs(2);

/// What to do when a step fails for no known reason.
const LOOK_AT_KERNEL_LOG: &str = "look at the kernel's log (dmesg) for its reason";

/// Why a step failed.
struct Failure {
    why: String,
    advice: String,
}

impl Failure {
    fn new(why: impl Into<String>, advice: impl Into<String>) -> Failure {
        Failure {
            why: why.into(),
            advice: advice.into(),
        }
    }
}

/// Runs every step that can be run, and hands each on.
pub(super) fn run(facts: &Facts, done: &mut dyn FnMut(Step)) {
    let (Some(own), Some(group)) = (&facts.own, &facts.group) else {
        return;
    };
    if group.no_iommu {
        let why = "the self-test needs an IOMMU; nothing bounds this device's DMA".to_owned();
        done(Step::new(
            StepName::Container,
            StepResult::Skipped { why },
            Duration::ZERO,
        ));
        return;
    }
    let Some(container) = step(StepName::Container, done, open_container) else {
        return;
    };
    let Some(device) = step(StepName::Device, done, || open_device(&container, own)) else {
        return;
    };
    step(StepName::DmaMap, done, || map_and_unmap(&container, group));
    step(StepName::DmaLimits, done, || {
        bad_mappings_are_refused(&container, group)
    });
    step(StepName::Config, done, || config(&device, own));
    step(StepName::Reset, done, || reset(&device, own));
    interrupt_step(&device, done);
    step(StepName::Close, done, || close(device));
}

/// Times `work` and hands its result on; what it made, where it passed.
fn step<T>(
    name: StepName,
    done: &mut dyn FnMut(Step),
    work: impl FnOnce() -> Result<(T, String), Failure>,
) -> Option<T> {
    let started = Instant::now();
    let (made, result) = match work() {
        Ok((made, seen)) => (Some(made), StepResult::Passed { seen }),
        Err(Failure { why, advice }) => (None, StepResult::Failed { why, advice }),
    };
    done(Step::new(name, result, started.elapsed()));
    made
}

fn open_container() -> Result<(Arc<VfioContainer>, String), Failure> {
    match VfioContainer::new(None) {
        Ok(container) => Ok((Arc::new(container), "type 1 v2".to_owned())),
        Err(VfioError::OpenContainer(e)) => Err(Failure::new(
            format!("/dev/vfio/vfio cannot be opened: {e}"),
            "run as root, and load vfio",
        )),
        Err(e) => Err(Failure::new(
            e.to_string(),
            "load vfio_iommu_type1; without it this kernel's VFIO is of no use here",
        )),
    }
}

fn open_device(
    container: &Arc<VfioContainer>,
    own: &Member,
) -> Result<(VfioDevice, String), Failure> {
    let path = PathBuf::from(format!("/sys/bus/pci/devices/{}", own.address));
    let opened = VfioDevice::new(&path, container.clone(), false);
    // Some of the library's errors lose the error number; nothing was called since.
    let errno = io::Error::last_os_error();
    let device = opened.map_err(|e| open_failure(&e, &errno))?;
    let bars: Vec<String> = (0..BARS)
        .filter_map(|bar| ioctl::region(fd(&device), bar).ok())
        .filter(|region| region.size > 0)
        .map(|region| format!("BAR{} {} KiB", region.index, region.size >> 10))
        .collect();
    Ok((device, bars.join(", ")))
}

fn open_failure(error: &VfioError, errno: &io::Error) -> Failure {
    let why = |what: &str| format!("{what}: {errno}");
    match error {
        VfioError::OpenGroup(e, _) if e.raw_os_error() == Some(libc::EBUSY) => Failure::new(
            "Somebody has the IOMMU group open",
            "end the VM or program that uses a device of the group",
        ),
        VfioError::OpenGroup(e, group) => Failure::new(
            format!("/dev/vfio/{group} cannot be opened: {e}"),
            "bind the function to vfio-pci, and run as root",
        ),
        VfioError::GroupViable => Failure::new(
            "The kernel says that the group is not viable",
            "unbind all its devices from their drivers",
        ),
        VfioError::ContainerSetIOMMU(_) | VfioError::GroupSetContainer => Failure::new(
            why("The IOMMU does not take the group"),
            "EPERM means that interrupts are not remapped or that the firmware keeps memory mapped; dmesg says which",
        ),
        VfioError::GroupGetDeviceFD(_) => Failure::new(
            why("The device cannot be opened"),
            "a PF on vfio-pci asks for a VF token: bind the PF to its own driver",
        ),
        other => Failure::new(other.to_string(), LOOK_AT_KERNEL_LOG),
    }
}

fn fd(device: &VfioDevice) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is the device's own and stays open as long as the device is borrowed.
    unsafe { BorrowedFd::borrow_raw(device.as_raw_fd()) }
}

/// Memory of its own for the device, of two pages.
fn pages() -> Result<MmapRegion, Failure> {
    MmapRegion::new(2 * PAGE)
        .map_err(|e| Failure::new(format!("There is no memory: {e}"), "free some"))
}

/// An address for two pages that no reserved region of the group covers.
fn free_iova(group: &Group) -> Result<u64, Failure> {
    const FROM: u64 = 0x1000_0000;
    const BEYOND: u64 = 0x1_0000_0000;
    const STRIDE: usize = 0x100_0000;
    let len = 2 * PAGE as u64;
    (FROM..BEYOND)
        .step_by(STRIDE)
        .find(|first| {
            let taken = |region: &&super::ReservedRegion| {
                region.first < first + len && region.last >= *first
            };
            !group.reserved.iter().any(|region| taken(&region))
        })
        .ok_or_else(|| {
            Failure::new(
                "Reserved regions leave no free address below 4 GiB",
                "look at the group's reserved_regions",
            )
        })
}

fn map(container: &VfioContainer, iova: u64, memory: &MmapRegion) -> Result<(), VfioError> {
    // SAFETY: the first page of the region is ours alone, never referenced, and stays mapped until it is
    // taken out of the IOMMU or the container is closed, which is before the region is dropped: the
    // device does no DMA meanwhile, since nobody drives it.
    unsafe { container.vfio_dma_map(iova, PAGE, memory.as_ptr()) }
}

fn map_and_unmap(container: &VfioContainer, group: &Group) -> Result<((), String), Failure> {
    let memory = pages()?;
    let iova = free_iova(group)?;
    map(container, iova, &memory).map_err(|e| {
        Failure::new(
            format!("A page cannot be mapped for DMA: {e}"),
            "ENOMEM means that too little memory may be locked (ulimit -l); otherwise dmesg says why",
        )
    })?;
    container.vfio_dma_unmap(iova, PAGE).map_err(|e| {
        Failure::new(
            format!("A mapped page cannot be unmapped: {e}"),
            LOOK_AT_KERNEL_LOG,
        )
    })?;
    Ok(((), format!("one page at {iova:#x} and back")))
}

fn bad_mappings_are_refused(
    container: &VfioContainer,
    group: &Group,
) -> Result<((), String), Failure> {
    let memory = pages()?;
    let iova = free_iova(group)?;
    let failed = |e: VfioError| {
        Failure::new(
            format!("The page cannot be mapped again: {e}"),
            LOOK_AT_KERNEL_LOG,
        )
    };
    map(container, iova, &memory).map_err(failed)?;
    let overlapping = map(container, iova, &memory);
    let misaligned = map(container, iova + PAGE as u64 / 2, &memory);
    let beside = map(container, iova + PAGE as u64 + 1, &memory);
    container.vfio_dma_unmap(iova, PAGE).map_err(failed)?;
    for (tried, what) in [
        (overlapping, "over another one"),
        (misaligned, "across a page's border"),
        (beside, "at an odd address"),
    ] {
        if tried.is_ok() {
            return Err(Failure::new(
                format!("The kernel took a mapping {what}"),
                "do not trust this kernel's IOMMU driver; report it",
            ));
        }
    }
    Ok(((), "overlapping and misaligned ones are refused".to_owned()))
}

/// The function's identification and class as configuration space shows them.
fn identity(device: &VfioDevice) -> Result<(u16, u16, u32), Failure> {
    let failed = |e: io::Error| {
        Failure::new(
            format!("Configuration space cannot be read: {e}"),
            LOOK_AT_KERNEL_LOG,
        )
    };
    let region = ioctl::region(fd(device), VFIO_PCI_CONFIG_REGION_INDEX).map_err(failed)?;
    let owned: OwnedFd = fd(device).try_clone_to_owned().map_err(failed)?;
    let file = std::fs::File::from(owned);
    let word = |offset: u64| -> Result<u32, Failure> {
        let mut bytes = [0; size_of::<u32>()];
        file.read_exact_at(&mut bytes, region.offset + offset)
            .map_err(failed)?;
        Ok(u32::from_le_bytes(bytes))
    };
    let ids = word(0)?;
    // The class is the device's own word also for a VF, whose vendor the kernel fills in.
    Ok((ids as u16, (ids >> 16) as u16, word(8)?))
}

fn config(device: &VfioDevice, own: &Member) -> Result<((), String), Failure> {
    let (vendor, id, class) = identity(device)?;
    if class == u32::MAX {
        return Err(Failure::new(
            "The device does not answer: configuration space reads as all ones",
            "reset its PF, or power the host down: the link to it is gone",
        ));
    }
    if (vendor, id) != (own.vendor, own.device) {
        return Err(Failure::new(
            format!(
                "Configuration space says {vendor:04x}:{id:04x}, sysfs says {:04x}:{:04x}",
                own.vendor, own.device
            ),
            "another device took its place: rescan the bus",
        ));
    }
    Ok(((), format!("{vendor:04x}:{id:04x}")))
}

fn reset(device: &VfioDevice, own: &Member) -> Result<((), String), Failure> {
    let info = ioctl::device_info(fd(device))
        .map_err(|e| Failure::new(format!("The device tells nothing: {e}"), LOOK_AT_KERNEL_LOG))?;
    if info.flags & VFIO_DEVICE_FLAGS_RESET == 0 {
        return Err(Failure::new(
            "The kernel knows no way to reset it",
            "do not hand it to another owner: what the last one left stays in it",
        ));
    }
    ioctl::reset(fd(device)).map_err(|e| {
        Failure::new(
            format!("The reset failed: {e}"),
            "try again; if it stays so, take the VF out of use and re-create the VFs of its PF",
        )
    })?;
    config(device, own)?;
    let method = own.reset_methods.first().map_or("", String::as_str);
    Ok(((), format!("{method}, and it answers")))
}

fn interrupt_step(device: &VfioDevice, done: &mut dyn FnMut(Step)) {
    let vectors = |index| device.get_irq_info(index).map_or(0, |irq| irq.count);
    let kinds = [
        (VFIO_PCI_MSIX_IRQ_INDEX, "MSI-X"),
        (VFIO_PCI_MSI_IRQ_INDEX, "MSI"),
    ];
    match kinds.into_iter().find(|(index, _)| vectors(*index) > 0) {
        Some((index, kind)) => {
            let vectors = vectors(index);
            step(StepName::Interrupt, done, || {
                interrupt(fd(device), index)?;
                Ok(((), format!("{kind}, {vectors} vectors, raised and seen")))
            });
        }
        None => done(Step::new(
            StepName::Interrupt,
            StepResult::Skipped {
                why: "the device has neither MSI-X nor MSI".to_owned(),
            },
            Duration::ZERO,
        )),
    }
}

fn interrupt(device: BorrowedFd<'_>, index: u32) -> Result<(), Failure> {
    let failed = |what: &str, e: io::Error| {
        Failure::new(
            format!("{what}: {e}"),
            "ENOSPC means that the host has no interrupt vectors left; otherwise dmesg says why",
        )
    };
    let event = nix::sys::eventfd::EventFd::from_flags(nix::sys::eventfd::EfdFlags::EFD_CLOEXEC)
        .map_err(|e| failed("There is no eventfd", e.into()))?;
    ioctl::enable_interrupt(device, index, event.as_fd())
        .map_err(|e| failed("The interrupt cannot be set up", e))?;
    let arrived = ioctl::trigger_interrupt(device, index)
        .map_err(|e| failed("The interrupt cannot be raised", e))
        .and_then(|()| arrives(&event));
    let down = ioctl::disable_interrupts(device, index)
        .map_err(|e| failed("The interrupt cannot be taken down", e));
    arrived.and(down)
}

fn arrives(event: &nix::sys::eventfd::EventFd) -> Result<(), Failure> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let wait = PollTimeout::try_from(INTERRUPT_WAIT).unwrap_or(PollTimeout::MAX);
    let mut waited = [PollFd::new(event.as_fd(), PollFlags::POLLIN)];
    match poll(&mut waited, wait) {
        Ok(1..) => Ok(()),
        _ => Err(Failure::new(
            format!(
                "The interrupt was raised and did not arrive within {} s",
                INTERRUPT_WAIT.as_secs()
            ),
            LOOK_AT_KERNEL_LOG,
        )),
    }
}

/// The library panics when the device vanished meanwhile.
fn close(device: VfioDevice) -> Result<((), String), Failure> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(device)))
        .map(|()| ((), "given back".to_owned()))
        .map_err(|_| {
            Failure::new(
                "The device vanished while it was checked",
                "see what removed it (dmesg)",
            )
        })
}
