//! The few VFIO calls whose errors the library keeps to itself, made directly (kernel:
//! `include/uapi/linux/vfio.h`).
//!
//! `vfio-ioctls` resets without saying whether that worked, and loses the error number of interrupt
//! set-up. Everything else goes through it.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE,
    VFIO_TYPE, vfio_device_info, vfio_region_info,
};

const GET_INFO: u32 = 7;
const GET_REGION_INFO: u32 = 8;
const SET_IRQS: u32 = 10;
const RESET: u32 = 11;

/// Words of `struct vfio_irq_set` with one descriptor: size, flags, index, start, count, descriptor.
const IRQ_SET_WORDS: usize = 6;

/// `_IO(VFIO_TYPE, VFIO_BASE + number)`: VFIO encodes no sizes.
fn request(number: u32) -> libc::Ioctl {
    (u32::from(VFIO_TYPE) << 8 | (VFIO_BASE + number)) as libc::Ioctl
}

fn checked(status: libc::c_int) -> io::Result<()> {
    if status < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Flags, numbers of regions and of interrupt kinds.
pub(super) fn device_info(device: BorrowedFd<'_>) -> io::Result<vfio_device_info> {
    let mut info = vfio_device_info {
        argsz: size_of::<vfio_device_info>() as u32,
        ..Default::default()
    };
    // SAFETY: the kernel writes at most `argsz` bytes, which is the size of `info`.
    checked(unsafe { libc::ioctl(device.as_raw_fd(), request(GET_INFO), &raw mut info) })?;
    Ok(info)
}

/// Where region `index` lies in the device's file, and how long it is.
pub(super) fn region(device: BorrowedFd<'_>, index: u32) -> io::Result<vfio_region_info> {
    let mut info = vfio_region_info {
        argsz: size_of::<vfio_region_info>() as u32,
        index,
        ..Default::default()
    };
    // SAFETY: the kernel writes at most `argsz` bytes, which is the size of `info`.
    checked(unsafe { libc::ioctl(device.as_raw_fd(), request(GET_REGION_INFO), &raw mut info) })?;
    Ok(info)
}

/// Resets the device.
pub(super) fn reset(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the call takes no argument.
    checked(unsafe { libc::ioctl(device.as_raw_fd(), request(RESET)) })
}

/// Lets vector 0 of interrupt kind `index` write to `event`.
pub(super) fn enable_interrupt(
    device: BorrowedFd<'_>,
    index: u32,
    event: BorrowedFd<'_>,
) -> io::Result<()> {
    let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
    // A descriptor is never negative.
    set_irqs(device, flags, index, 1, Some(event.as_raw_fd() as u32))
}

/// Raises vector 0 of interrupt kind `index` from software: the kernel writes to its event.
pub(super) fn trigger_interrupt(device: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
    set_irqs(device, flags, index, 1, None)
}

/// Takes all vectors of interrupt kind `index` down.
pub(super) fn disable_interrupts(device: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
    set_irqs(device, flags, index, 0, None)
}

fn set_irqs(
    device: BorrowedFd<'_>,
    flags: u32,
    index: u32,
    count: u32,
    event: Option<u32>,
) -> io::Result<()> {
    let words = IRQ_SET_WORDS - usize::from(event.is_none());
    let size = (words * size_of::<u32>()) as u32;
    let set: [u32; IRQ_SET_WORDS] = [size, flags, index, 0, count, event.unwrap_or(0)];
    // SAFETY: `set` has the layout of `struct vfio_irq_set` (five 32-bit fields, then the data), is
    // as long as its first field says, and is only read.
    checked(unsafe { libc::ioctl(device.as_raw_fd(), request(SET_IRQS), set.as_ptr()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn requests_are_numbered_as_in_the_kernels_header() {
        assert_eq!(request(RESET), 0x3b6f);
        assert_eq!(request(SET_IRQS), 0x3b6e);
        assert_eq!(request(GET_INFO), 0x3b6b);
    }

    #[test]
    fn errors_of_the_kernel_come_through() {
        let other = std::fs::File::open("/dev/null").unwrap();
        let device = other.as_fd();
        for result in [
            device_info(device).map(drop),
            region(device, 0).map(drop),
            reset(device),
            trigger_interrupt(device, 2),
            enable_interrupt(device, 2, device),
        ] {
            assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::ENOTTY));
        }
    }
}
