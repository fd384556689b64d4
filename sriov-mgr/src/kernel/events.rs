//! What changes in the kernel while we look elsewhere, as one channel: devices that come, go and change
//! drivers (uevents), and network interfaces (rtnetlink).

use super::real::links;
use crate::device::Device;
use netlink_sys::protocols::{NETLINK_KOBJECT_UEVENT, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

/// Multicast group of the kernel's own uevents; udev's are another.
const UEVENT_KERNEL: u32 = 1;
const RTNLGRP_LINK: u32 = 1;
const NLMSG_HEADER: usize = 16;
/// Room for what happens while 1,024 VFs are made.
const QUEUE: usize = 8 << 20;

/// A change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelEvent {
    /// A NIC function or simulated NIC is there.
    Added(Device),
    /// It is gone.
    Removed(Device),
    /// A driver was bound to it.
    Bound(Device),
    /// Its driver was unbound.
    Unbound(Device),
    /// A network interface of this namespace is new or has changed.
    Link {
        /// Its name.
        name: String,
        /// Its device, where it has one of a kind that can have VFs.
        device: Option<Device>,
        /// Whether it is up (administratively).
        up: bool,
    },
    /// A network interface is gone.
    LinkGone {
        /// Its name.
        name: String,
        /// Its device, as in [`KernelEvent::Link`].
        device: Option<Device>,
    },
    /// More happened than could be kept: look at everything again.
    Lost,
}

/// The channel. Dropped, its thread ends.
pub struct Watch {
    /// Changes, in the order in which the kernel told them.
    pub events: Receiver<KernelEvent>,
    _stop: OwnedFd,
}

/// Begins to watch the calling thread's network namespace.
///
/// # Errors
/// When the sockets cannot be had.
pub fn watch() -> io::Result<Watch> {
    let uevents = subscribe(NETLINK_KOBJECT_UEVENT, UEVENT_KERNEL)?;
    let links = subscribe(NETLINK_ROUTE, RTNLGRP_LINK)?;
    let (stopped, stop) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let (sender, events) = mpsc::channel();
    thread::Builder::new()
        .name("nic-events".into())
        .spawn(move || run(&uevents, &links, &stopped, &sender))?;
    Ok(Watch {
        events,
        _stop: stop,
    })
}

fn subscribe(protocol: isize, group: u32) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    socket.add_membership(group)?;
    socket.set_non_blocking(true)?;
    // The default is enough for most hosts; more may be refused.
    let _optional = socket.set_rx_buf_sz(QUEUE);
    Ok(socket)
}

/// Sends until nobody listens any more.
fn run(uevents: &Socket, links: &Socket, stopped: &OwnedFd, sender: &Sender<KernelEvent>) {
    loop {
        let mut ready = [
            PollFd::new(borrowed(uevents), PollFlags::POLLIN),
            PollFd::new(borrowed(links), PollFlags::POLLIN),
            PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut ready, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            Err(_) => return,
            Ok(_) => {}
        }
        if ready[2].any() == Some(true) {
            return;
        }
        for (socket, read) in [
            (uevents, uevent as fn(&[u8]) -> Vec<KernelEvent>),
            (links, link),
        ] {
            for event in drain(socket, read) {
                if sender.send(event).is_err() {
                    return;
                }
            }
        }
    }
}

fn borrowed(socket: &Socket) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is the socket's own, which lives for as long as the borrow.
    unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) }
}

/// What waits on a socket, from the kernel itself: any process may send to it.
fn drain(socket: &Socket, read: fn(&[u8]) -> Vec<KernelEvent>) -> Vec<KernelEvent> {
    let mut found = Vec::new();
    loop {
        let mut buffer = Vec::with_capacity(64 * 1024);
        match socket.recv_from(&mut buffer, 0) {
            Ok((_, from)) if from.port_number() == 0 => found.extend(read(&buffer)),
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                found.push(KernelEvent::Lost)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return found,
        }
    }
}

/// `action@path`, then `KEY=value`, each ended by a zero (lib/kobject_uevent.c).
fn uevent(bytes: &[u8]) -> Vec<KernelEvent> {
    let text = String::from_utf8_lossy(bytes);
    let value = |key: &str| {
        text.split('\0')
            .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    };
    let (Some(action), Some(path)) = (value("ACTION"), value("DEVPATH")) else {
        return Vec::new();
    };
    let name = path.rsplit('/').next().unwrap_or_default();
    let device = match value("SUBSYSTEM") {
        // Class 2 is network controllers, of whatever kind.
        Some("pci")
            if value("PCI_CLASS")
                .is_some_and(|class| class.len() == 5 && class.starts_with('2')) =>
        {
            name.parse::<Device>().ok()
        }
        Some("netdevsim") => format!("netdevsim/{name}").parse().ok(),
        _ => None,
    };
    let event = device.and_then(|device| match action {
        "add" => Some(KernelEvent::Added(device)),
        "remove" => Some(KernelEvent::Removed(device)),
        "bind" => Some(KernelEvent::Bound(device)),
        "unbind" => Some(KernelEvent::Unbound(device)),
        _ => None,
    });
    event.into_iter().collect()
}

/// Link messages, one after the other.
fn link(mut bytes: &[u8]) -> Vec<KernelEvent> {
    let mut found = Vec::new();
    while let Some(head) = bytes.get(..NLMSG_HEADER) {
        let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let kind = u16::from_ne_bytes([head[4], head[5]]);
        let Some(body) = bytes.get(NLMSG_HEADER..length) else {
            break;
        };
        if let (libc::RTM_NEWLINK | libc::RTM_DELLINK, Some(link)) = (kind, links::parse(body)) {
            let device = link
                .parent
                .and_then(|(bus, name)| format!("{bus}/{name}").parse().ok());
            found.push(match kind {
                libc::RTM_DELLINK => KernelEvent::LinkGone {
                    name: link.name,
                    device,
                },
                _ => KernelEvent::Link {
                    name: link.name,
                    device,
                    up: link.up,
                },
            });
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    #[test]
    fn uevents_of_nics_are_told_and_others_are_not() {
        let told = |action: &str, class: &str| {
            uevent(
                format!(
                    "{action}@/devices/pci0000:00/0000:01:10.0\0ACTION={action}\0DEVPATH=/devices/pci0000:00/0000:01:10.0\0SUBSYSTEM=pci\0PCI_CLASS={class}\0"
                )
                .as_bytes(),
            )
        };
        let vf: Device = "0000:01:10.0".parse().unwrap();
        assert_eq!(told("add", "20000"), [KernelEvent::Added(vf.clone())]);
        assert_eq!(told("unbind", "28000"), [KernelEvent::Unbound(vf)]);
        assert_eq!(told("add", "10802"), []);
        assert_eq!(told("change", "20000"), []);
        let simulated =
            "remove@x\0ACTION=remove\0DEVPATH=/devices/netdevsim2\0SUBSYSTEM=netdevsim\0";
        assert_eq!(
            uevent(simulated.as_bytes()),
            [KernelEvent::Removed(Device::Netdevsim(2))]
        );
    }

    /// In a namespace of its own, whose loopback is taken up.
    #[test]
    fn a_link_that_comes_up_is_told() {
        let told = thread::spawn(|| {
            if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_err() {
                // Only root may make a namespace; the messages' form is tested below all the same.
                return Some(());
            }
            let watch = watch().unwrap();
            links::set_up(1, true).unwrap();
            loop {
                match watch.events.recv_timeout(Duration::from_secs(60)) {
                    Ok(KernelEvent::Link {
                        name,
                        up: true,
                        device: None,
                    }) if name == "lo" => return Some(()),
                    Ok(_) => {}
                    Err(_) => return None,
                }
            }
        });
        assert_eq!(told.join().unwrap(), Some(()), "no event for lo");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _any = (uevent(&bytes), link(&bytes));
        }
    }
}
