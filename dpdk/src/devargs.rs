//! Device strings ("devargs"): what [`crate::Port::attach`] takes.
//!
//! | device | string |
//! |---|---|
//! | a network interface of the kernel | [`af_packet_devargs`], or `net_af_xdp0,iface=eth1` |
//! | a new TAP interface | `net_tap0,iface=tap7` |
//! | shared memory to another program | `net_memif0,socket=/run/x.sock,role=server` |
//! | capture files | `net_pcap0,rx_pcap=in.pcap,tx_pcap=out.pcap` |
//! | nothing, for measuring | `net_null0` |
//! | a loop | `net_ring0` |
//! | a PCI device | `0000:3b:00.2` |

/// Ethernet header and one VLAN tag.
const FRAME_OVERHEAD: u32 = 14 + 4;

/// Where a frame starts in a slot of a packet socket's ring at most: `TPACKET2_HDRLEN` (52) and 16
/// bytes for the link header, rounded up to `TPACKET_ALIGNMENT` (16).
const RING_HEADER: u32 = 80;

/// Slots of each of the two rings.
const RING_FRAMES: u32 = 512;

const PAGE: u32 = 4096;

/// The device string of an af_packet port named `net_af_packet<name>` on the kernel's interface
/// `iface`, with ring slots that hold frames of the MTU (the driver's own are 2048 bytes). `name` is
/// usually a number; it has to be unique in the process. The pool's buffers need
/// [`af_packet_data_room`] bytes.
pub fn af_packet_devargs(name: &str, iface: &str, mtu: u16) -> String {
    let slot = af_packet_slot(mtu);
    // The kernel starts every block of the ring at a page, the driver counts slots without gaps:
    // a block has to be a whole number of both. Slots are multiples of 1 KiB, so 1, 2 or 4 will do.
    let in_block = [1, 2, 4]
        .into_iter()
        .find(|count| (slot * count).is_multiple_of(PAGE))
        .unwrap_or(4);
    let block = slot * in_block;
    format!(
        "net_af_packet{name},iface={iface},blocksz={block},framesz={slot},framecnt={RING_FRAMES},qpairs=1"
    )
}

fn af_packet_slot(mtu: u16) -> u32 {
    (RING_HEADER + FRAME_OVERHEAD + u32::from(mtu)).next_multiple_of(1024)
}

/// Payload bytes that a pool's buffers need for frames of the MTU on a driver.
pub(crate) fn frame_room(driver: &str, mtu: u16) -> u32 {
    let frame = u32::from(mtu) + FRAME_OVERHEAD;
    if driver == "net_af_packet" {
        af_packet_data_room(mtu)
    } else {
        frame
    }
}

/// Payload bytes that a pool's buffers need for an af_packet port of the MTU: the driver wants a
/// whole ring slot, without its 32 bytes of header, to fit.
pub fn af_packet_data_room(mtu: u16) -> u32 {
    af_packet_slot(mtu) - 32
}

/// Mistakes that DPDK would answer with a riddle.
pub(crate) fn check(devargs: &str) -> Result<(), String> {
    // DPDK looks for these anywhere in the string, and takes what follows for the device.
    let other = ["bus=", "class=", "driver="];
    if other
        .iter()
        .any(|key| devargs.starts_with(key) || devargs.contains(&format!("/{key}")))
    {
        return Err(
            "a device is named by what stands before the first comma, not by bus=, class= or driver=".to_owned(),
        );
    }
    if let Some(iface) = interface(devargs) {
        // IFNAMSIZ with its NUL.
        if iface.is_empty() || iface.len() > 15 {
            return Err(format!(
                "\"{iface}\" cannot be an interface's name, which has 1 to 15 characters"
            ));
        }
    }
    Ok(())
}

/// What the operator can do about a device that did not attach.
pub(crate) fn hint(devargs: &str) -> Option<String> {
    if let Some(iface) = interface(devargs) {
        // `/sys` may show another namespace than this thread's, so the kernel is asked.
        let there = std::ffi::CString::new(iface).ok().is_some_and(|name| {
            // SAFETY: the name is NUL-terminated.
            unsafe { libc::if_nametoindex(name.as_ptr()) != 0 }
        });
        let creates = devargs.starts_with("net_tap");
        return (!there && !creates).then(|| {
            format!(
                "there is no network interface \"{iface}\" in this network namespace, see `ip link`"
            )
        });
    }
    if is_pci(devargs) {
        return Some("it has to be in the EAL's PCI list unless PCI devices may come later, and bound to vfio-pci unless its driver works beside the kernel's".to_owned());
    }
    None
}

fn interface(devargs: &str) -> Option<&str> {
    devargs
        .split(',')
        .skip(1)
        .find_map(|part| part.strip_prefix("iface="))
}

/// The PCI address of a device string, if it is one: what goes into [`crate::EalConfig::pci`].
pub fn pci_address(devargs: &str) -> Option<&str> {
    let address = devargs.split(',').next()?;
    is_pci(devargs).then_some(address)
}

fn is_pci(devargs: &str) -> bool {
    let address = devargs.split(',').next().unwrap_or_default();
    // [domain:]bus:device.function
    let Some((rest, function)) = address.rsplit_once('.') else {
        return false;
    };
    let parts: Vec<&str> = rest.split(':').collect();
    let hex = |part: &&str, most: usize| {
        !part.is_empty() && part.len() <= most && part.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let (lens, function_ok) = (
        &[8, 2, 2][3_usize.saturating_sub(parts.len())..],
        matches!(function.as_bytes(), [b'0'..=b'7']),
    );
    (2..=3).contains(&parts.len())
        && function_ok
        && parts.iter().zip(lens).all(|(part, most)| hex(part, *most))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(devargs: &str, key: &str) -> u32 {
        devargs
            .split(',')
            .find_map(|part| part.strip_prefix(key)?.strip_prefix('='))
            .unwrap()
            .parse()
            .unwrap()
    }

    #[test]
    fn ring_geometry_is_what_the_kernel_accepts_for_every_mtu() {
        for mtu in 68..=u16::MAX - 200 {
            let text = af_packet_devargs("0", "eth1", mtu);
            let (block, frame, count) = (
                number(&text, "blocksz"),
                number(&text, "framesz"),
                number(&text, "framecnt"),
            );
            assert_eq!(block % 4096, 0, "{text}");
            assert_eq!(block % frame, 0, "{text}");
            assert_eq!(count % (block / frame), 0, "{text}");
            assert!(
                frame - RING_HEADER >= u32::from(mtu) + FRAME_OVERHEAD,
                "{text}"
            );
            assert_eq!(af_packet_data_room(mtu), frame - 32);
        }
    }

    #[test]
    fn pci_addresses_are_told_from_names() {
        for text in [
            "0000:3b:00.2",
            "3b:00.0",
            "0000:3b:00.2,representor=[0-3]",
            "10000:01:00.7",
        ] {
            assert!(is_pci(text), "{text}");
        }
        for text in [
            "net_null0",
            "net_af_packet0,iface=eth1.2",
            "0000:3b:00.8",
            "3b.1",
            "0:0:0:0.0",
            "",
        ] {
            assert!(!is_pci(text), "{text}");
        }
        assert_eq!(pci_address("0000:3b:00.2,a=b"), Some("0000:3b:00.2"));
        assert_eq!(pci_address("net_null0"), None);
    }

    #[test]
    fn a_name_that_no_interface_can_have_is_refused() {
        assert!(check("net_af_packet0,iface=an-interface-name").is_err());
        assert!(check("net_af_packet0,iface=").is_err());
        assert!(check("net_af_packet0,iface=eth1").is_ok());
    }
}
