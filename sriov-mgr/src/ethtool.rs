//! Driver and firmware versions through the ethtool ioctl (kernel: `include/uapi/linux/ethtool.h`).
//! The netlink flavour of ethtool does not carry them.

use serde::{Deserialize, Serialize};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const ETHTOOL_GDRVINFO: u32 = 3;

/// `struct ethtool_drvinfo`.
#[repr(C)]
struct RawDriverInfo {
    cmd: u32,
    driver: [u8; 32],
    version: [u8; 32],
    fw_version: [u8; 32],
    bus_info: [u8; 32],
    erom_version: [u8; 32],
    reserved2: [u8; 12],
    n_priv_flags: u32,
    n_stats: u32,
    testinfo_len: u32,
    eedump_len: u32,
    regdump_len: u32,
}

const _: () = assert!(std::mem::size_of::<RawDriverInfo>() == 196);

/// What the driver says of itself and of the NIC's firmware.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverInfo {
    /// The driver's name.
    pub driver: String,
    /// The driver's version; most in-tree drivers give the kernel's.
    pub version: String,
    /// The firmware's version, as the vendor writes it; empty where the driver does not say.
    pub firmware: String,
}

/// Asks the driver of `interface`. `None` where there is no such interface or it does not answer.
pub(crate) fn driver_info(interface: &str) -> Option<DriverInfo> {
    let mut info = RawDriverInfo {
        cmd: ETHTOOL_GDRVINFO,
        driver: [0; 32],
        version: [0; 32],
        fw_version: [0; 32],
        bus_info: [0; 32],
        erom_version: [0; 32],
        reserved2: [0; 12],
        n_priv_flags: 0,
        n_stats: 0,
        testinfo_len: 0,
        eedump_len: 0,
        regdump_len: 0,
    };
    // SAFETY: `ifreq` is plain data for which all zero is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return None;
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut info).cast();
    // SAFETY: socket() takes no pointers; the result is checked before it becomes an OwnedFd.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return None;
    }
    // SAFETY: `fd` was just opened and belongs to nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: SIOCETHTOOL with ETHTOOL_GDRVINFO reads `request` and writes one ethtool_drvinfo where
    // `ifru_data` points; `info` has that layout (size asserted above) and outlives the call.
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    (answer == 0).then(|| DriverInfo {
        driver: text(&info.driver),
        version: text(&info.version),
        firmware: text(&info.fw_version),
    })
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    let text = String::from_utf8_lossy(&bytes[..end]).trim().to_owned();
    if text == "N/A" { String::new() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_not_there_gives_nothing() {
        assert_eq!(driver_info("fvnosuch0"), None);
        assert_eq!(driver_info("a-name-longer-than-ifnamsiz"), None);
    }
}
