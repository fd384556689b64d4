//! The kernel's network interface under an af_packet or af_xdp port: these drivers do not follow its
//! state themselves.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// An interface, and a socket of the network namespace that it is in: questions asked through it
/// are right whatever namespace the asking thread is in.
#[derive(Debug)]
pub(crate) struct KernelInterface {
    socket: OwnedFd,
    index: u32,
}

impl KernelInterface {
    /// The interface of this index in the calling thread's namespace; `None` for 0.
    pub(crate) fn of(index: u32) -> Option<KernelInterface> {
        if index == 0 {
            return None;
        }
        // SAFETY: a plain system call.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return None;
        }
        // SAFETY: the descriptor is new and belongs to nobody else.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        Some(KernelInterface { socket, index })
    }

    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// Whether it exists, is up, and has a carrier.
    pub(crate) fn running(&self) -> bool {
        // SAFETY: all-zero is a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_ifru.ifru_ifindex = self.index as i32;
        // SAFETY: both calls read and write the ifreq they are given; the first fills in the name
        // that the second reads, and the second the flags.
        let flags = unsafe {
            if libc::ioctl(
                self.socket.as_raw_fd(),
                libc::SIOCGIFNAME as _,
                &raw mut request,
            ) != 0
                || libc::ioctl(
                    self.socket.as_raw_fd(),
                    libc::SIOCGIFFLAGS as _,
                    &raw mut request,
                ) != 0
            {
                return false;
            }
            i32::from(request.ifr_ifru.ifru_flags)
        };
        flags & libc::IFF_UP != 0 && flags & libc::IFF_RUNNING != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_not_there_is_down() {
        assert!(KernelInterface::of(0).is_none());
        assert!(!KernelInterface::of(i32::MAX as u32).unwrap().running());
    }
}
