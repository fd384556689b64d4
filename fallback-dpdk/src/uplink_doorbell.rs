//! A doorbell for a kernel interface: an AF_PACKET socket that wakes a worker when a packet arrives
//! that the data plane may want. Nothing is read from it but to empty it.
//!
//! A poll-mode driver over a kernel interface has no interrupt to sleep on. This socket sees the same
//! packets; its filter lets only VXLAN, ARP and neighbour discovery ring, and keeps one byte of each.

use crate::Error;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike, bind, recv,
    setsockopt, socket, sockopt,
};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Packets forgotten in one go: a flood must not hold the worker here.
const DRAINED_AT_ONCE: usize = 64;

/// The doorbell of one interface.
#[derive(Debug)]
pub(crate) struct UplinkDoorbell {
    fd: OwnedFd,
}

impl UplinkDoorbell {
    /// A doorbell on the interface of this name in the caller's network namespace.
    pub(crate) fn new(interface: &str) -> Result<Self, Error> {
        let fail = |source: io::Error| Error::Doorbell {
            interface: interface.to_owned(),
            source,
        };
        let index = nix::net::if_::if_nametoindex(interface).map_err(|e| fail(e.into()))?;
        // Without a protocol the socket is deaf until it is bound, so the filter misses nothing.
        let fd = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            None::<SockProtocol>,
        )
        .map_err(|e| fail(e.into()))?;
        attach(&fd).map_err(fail)?;
        ignore_outgoing(&fd).map_err(fail)?;
        // The smallest the kernel allows: a few packets, and the rest costs nothing.
        setsockopt(&fd, sockopt::RcvBuf, &1).map_err(|e| fail(e.into()))?;
        bind(fd.as_raw_fd(), &address(index)).map_err(|e| fail(e.into()))?;
        Ok(UplinkDoorbell { fd })
    }

    /// Forgets what rang so far. False where it rings faster than this can listen: then it has not
    /// become quiet, would not wake, and the caller must not sleep.
    pub(crate) fn drain(&self) -> bool {
        let mut byte = [0];
        (0..DRAINED_AT_ONCE)
            .any(|_| recv(self.fd.as_raw_fd(), &mut byte, MsgFlags::MSG_DONTWAIT).is_err())
    }
}

impl AsFd for UplinkDoorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The link-layer address of all packets of an interface.
fn address(index: u32) -> LinkAddr {
    // SAFETY: sockaddr_ll is plain old data; zero is a value of each field.
    let mut raw: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    raw.sll_family = libc::AF_PACKET as u16;
    raw.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    raw.sll_ifindex = index as i32;
    let length = size_of::<libc::sockaddr_ll>() as u32;
    // SAFETY: the pointer is to a whole sockaddr_ll of that length, whose family is AF_PACKET.
    let address = unsafe { LinkAddr::from_raw((&raw const raw).cast(), Some(length)) };
    address.expect("a sockaddr_ll is a link address")
}

fn ignore_outgoing(fd: &OwnedFd) -> io::Result<()> {
    const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
    let on: libc::c_int = 1;
    // SAFETY: the option takes an int, and its length is given.
    let done = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_PACKET,
            PACKET_IGNORE_OUTGOING,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as u32,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

const fn load_half(at: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: 0x28,
        jt: 0,
        jf: 0,
        k: at,
    }
}

const fn load_byte(at: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: 0x30,
        jt: 0,
        jf: 0,
        k: at,
    }
}

const fn equal(value: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter {
        code: 0x15,
        jt,
        jf,
        k: value,
    }
}

const fn give(bytes: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: 0x06,
        jt: 0,
        jf: 0,
        k: bytes,
    }
}

/// Rings for ARP, for UDP to port 4789 over IPv4 or IPv6, and for neighbour solicitations and
/// advertisements. The comments number the instructions; jumps count from the one after the jump.
const FILTER: [libc::sock_filter; 19] = [
    /*  0 */ load_half(12),
    /*  1 */ equal(0x0806, 15, 0), // ARP: 17
    /*  2 */ equal(0x0800, 0, 5), // IPv4, or 8
    /*  3 */ load_byte(23),
    /*  4 */ equal(17, 0, 13), // UDP, or 18
    /*  5 */
    libc::sock_filter {
        code: 0xb1,
        jt: 0,
        jf: 0,
        k: 14,
    }, // X = bytes of the IPv4 header
    /*  6 */
    libc::sock_filter {
        code: 0x48,
        jt: 0,
        jf: 0,
        k: 16,
    }, // A = UDP destination port
    /*  7 */ equal(4789, 9, 10), // 17, or 18
    /*  8 */ equal(0x86dd, 0, 9), // IPv6, or 18
    /*  9 */ load_byte(20),
    /* 10 */ equal(17, 0, 2), // UDP, or 13
    /* 11 */ load_half(56),
    /* 12 */ equal(4789, 4, 5), // 17, or 18
    /* 13 */ equal(58, 0, 4), // ICMPv6, or 18
    /* 14 */ load_byte(54),
    /* 15 */ equal(135, 1, 0), // 17, or 16
    /* 16 */ equal(136, 0, 1), // 17, or 18
    /* 17 */ give(1),
    /* 18 */ give(0),
];

fn attach(fd: &OwnedFd) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: FILTER.len() as u16,
        filter: FILTER.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel copies `len` instructions from `filter` during the call and writes nothing.
    let done = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as u32,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
