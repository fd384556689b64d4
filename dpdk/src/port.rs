//! Ethernet devices.
//!
//! ```text
//! attach ──▶ attached ──configure──▶ configured ──start──▶ started ──rx_queue/tx_queue──▶ polled
//!                ▲                        ▲                  │  ▲                            │
//!                │                        └───────stop───────┘  └──────queues dropped────────┘
//!            Port dropped, and the last queue: stopped, closed, detached
//! ```
//!
//! Queues exist only while the port is started, and it cannot be stopped while a queue is out: DPDK
//! swaps the burst functions of a port when it stops, which must not happen under a polling worker.
//! Each queue keeps the port alive, so the order in which they are dropped does not matter.
//!
//! Drivers load as plug-ins from the distribution's folder; see [`crate::devargs`] for device
//! strings. Virtual devices act in the network namespace of the **calling thread** (af_packet, tap
//! and af_xdp open sockets by interface name), in `attach` as well as in `start` and `link`.

use std::collections::HashSet;
use std::ffi::CString;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::descriptors::closing_on_exec;
use crate::kernel::KernelInterface;
use crate::queue::{Direction, RxQueue, TxQueue};
use crate::{Eal, Error, Mempool, devargs, ffi, log};

/// Ports that a [`Port`] of this process stands for. Also serialises attach and detach, which
/// DPDK's buses do not do everywhere.
static ATTACHED: Mutex<Option<HashSet<u16>>> = Mutex::new(None);

/// How a port is configured.
#[derive(Debug, Clone)]
pub struct PortConfig {
    /// Receive queues; 1 unless the device can spread packets (RSS).
    pub rx_queues: u16,
    /// Transmit queues; each belongs to one worker.
    pub tx_queues: u16,
    /// Descriptors of each queue; brought to what the device can do.
    pub ring_size: u16,
    /// Longest L3 packet. The pool's buffers have to hold it with its Ethernet and VLAN headers.
    pub mtu: u16,
    /// Where received packets are put.
    pub mempool: Mempool,
    /// Whether frames for other MAC addresses are received as well. Otherwise those to groups still are:
    /// a guest that knows its neighbours by IPv6 needs them.
    pub promiscuous: bool,
    /// Whether queues are set up for interrupts, see [`RxQueue::event_fd`]. Devices that have none
    /// refuse it.
    pub rx_interrupts: bool,
}

impl PortConfig {
    /// One queue each way, 512 descriptors, MTU 1500, promiscuous, polled.
    pub fn new(mempool: Mempool) -> PortConfig {
        PortConfig {
            rx_queues: 1,
            tx_queues: 1,
            ring_size: 512,
            mtu: 1500,
            mempool,
            promiscuous: true,
            rx_interrupts: false,
        }
    }
}

/// What a port counted since it was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortStats {
    /// Packets received.
    pub rx_packets: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets that the device dropped because its ring was full.
    pub rx_missed: u64,
    /// Packets received in error.
    pub rx_errors: u64,
    /// Packets that could not be sent.
    pub tx_errors: u64,
    /// Receive attempts that found the mempool empty.
    pub rx_no_buffer: u64,
    /// Packets that came in several buffers and were copied together into one.
    pub rx_linearised: u64,
    /// Packets that came in several buffers, did not fit one, and were dropped.
    pub rx_segments_dropped: u64,
}

/// A port's link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Whether there is one.
    pub up: bool,
    /// Speed; 0 when it is not known.
    pub mbps: u32,
    /// Full duplex.
    pub full_duplex: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Attached,
    Configured,
    Started,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    rx_taken: Vec<bool>,
    tx_taken: Vec<bool>,
    promiscuous: bool,
    // The receive rings hold buffers of it.
    mempool: Option<Mempool>,
}

/// What a port and its queues share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) id: u16,
    name: String,
    driver: String,
    devargs: String,
    max_rx_queues: u16,
    max_tx_queues: u16,
    numa: Option<i32>,
    kernel: Option<KernelInterface>,
    state: Mutex<State>,
    pub(crate) linearised: AtomicU64,
    pub(crate) segments_dropped: AtomicU64,
    _eal: Eal,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A queue was dropped.
    pub(crate) fn give_back(&self, direction: Direction, queue: u16) {
        let mut state = self.state();
        let taken = match direction {
            Direction::Rx => &mut state.rx_taken,
            Direction::Tx => &mut state.tx_taken,
        };
        if let Some(taken) = taken.get_mut(usize::from(queue)) {
            *taken = false;
        }
    }

    /// `call`'s status as a result, with the reason that DPDK logged.
    fn checked(&self, action: &'static str, call: impl FnOnce() -> i32) -> Result<(), Error> {
        let (status, lines) = log::capture(|| closing_on_exec(call));
        if status == 0 {
            return Ok(());
        }
        Err(Error::Port {
            port: self.name.clone(),
            action,
            why: log::reason(status, &lines),
        })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let mut attached = ATTACHED.lock().unwrap_or_else(PoisonError::into_inner);
        let phase = self.state().phase;
        let (status, lines) = log::capture(|| {
            // SAFETY: the port is ours, and no queue of it exists: each holds an Arc of this.
            unsafe {
                if phase == Phase::Started {
                    let status = ffi::fv_port_stop(self.id);
                    if status != 0 {
                        tracing::warn!(port = %self.name, "the port could not be stopped before it is closed: {}", ffi::strerror(status));
                    }
                }
                ffi::fv_port_remove(self.id)
            }
        });
        if status != 0 {
            tracing::warn!(port = %self.name, "the port could not be detached: {}", log::reason(status, &lines));
        }
        if let Some(attached) = attached.as_mut() {
            attached.remove(&self.id);
        }
    }
}

/// An Ethernet device of DPDK. Dropping it, and all its queues, stops, closes and detaches it.
#[derive(Debug)]
pub struct Port {
    shared: Arc<Shared>,
}

impl Port {
    /// Attaches a device by its string: `net_af_packet0,iface=eth1`, `net_tap0`, `0000:3b:00.2`, …
    /// (of the PCI ones, those in [`crate::EalConfig::pci`], or any with [`crate::EalConfig::pci_later`]). Virtual devices need a name of their
    /// own each. Start no program from another thread meanwhile: it would inherit what the driver
    /// opens.
    pub fn attach(eal: &Eal, devargs: &str) -> Result<Port, Error> {
        let text = CString::new(devargs)
            .ok()
            .filter(|text| !text.is_empty())
            .ok_or_else(|| Error::BadText(devargs.to_owned()))?;
        let fail = |why: String| Error::Attach {
            devargs: devargs.to_owned(),
            why,
        };
        devargs::check(devargs).map_err(fail)?;

        let mut attached = ATTACHED.lock().unwrap_or_else(PoisonError::into_inner);
        let attached = attached.get_or_insert_default();
        // SAFETY: the EAL runs; the string is NUL-terminated and copied by DPDK.
        let (status, lines) =
            log::capture(|| closing_on_exec(|| unsafe { ffi::fv_device_probe(text.as_ptr()) }));
        // A PCI device that was probed at start is there already.
        if status != 0 && status != -libc::EEXIST {
            return Err(fail(explain(devargs, status, &lines)));
        }
        let mut ids = [0_u16; 64];
        // SAFETY: writes at most the capacity given.
        let found =
            unsafe { ffi::fv_port_matching(text.as_ptr(), ids.as_mut_ptr(), ids.len() as u32) };
        let found = usize::try_from(found).unwrap_or(0).min(ids.len());
        let Some(id) = ids[..found]
            .iter()
            .copied()
            .find(|id| !attached.contains(id))
        else {
            return Err(if found > 0 {
                Error::Attached(devargs.to_owned())
            } else {
                fail(
                    "it was found, but it is no Ethernet device that a driver of DPDK serves"
                        .to_owned(),
                )
            });
        };
        // SAFETY: all fields of PortInfo are plain numbers.
        let mut info: ffi::PortInfo = unsafe { std::mem::zeroed() };
        // SAFETY: `id` is an attached port, `info` is written.
        let status = unsafe { ffi::fv_port_info(id, &raw mut info) };
        if status != 0 {
            return Err(fail(ffi::strerror(status)));
        }
        attached.insert(id);
        Ok(Port {
            shared: Arc::new(Shared {
                id,
                name: ffi::text(&info.name),
                driver: ffi::text(&info.driver),
                devargs: devargs.to_owned(),
                max_rx_queues: info.max_rx_queues,
                max_tx_queues: info.max_tx_queues,
                numa: Some(info.numa).filter(|numa| *numa >= 0),
                kernel: KernelInterface::of(info.if_index),
                state: Mutex::new(State {
                    phase: Phase::Attached,
                    rx_taken: Vec::new(),
                    tx_taken: Vec::new(),
                    promiscuous: false,
                    mempool: None,
                }),
                linearised: AtomicU64::new(0),
                segments_dropped: AtomicU64::new(0),
                _eal: eal.clone(),
            }),
        })
    }

    /// Sets queues and MTU. The port is stopped, and none of its queues is out.
    pub fn configure(&self, config: &PortConfig) -> Result<(), Error> {
        let mut state = self.shared.state();
        if state.phase == Phase::Started {
            return Err(Error::State {
                port: self.shared.name.clone(),
                needed: "stopped",
            });
        }
        let fail = |why: String| Error::Configure {
            port: self.shared.name.clone(),
            why,
        };
        for (direction, wanted, most) in [
            ("rx", config.rx_queues, self.shared.max_rx_queues),
            ("tx", config.tx_queues, self.shared.max_tx_queues),
        ] {
            if wanted == 0 || wanted > most {
                return Err(fail(format!(
                    "it can have 1 to {most} {direction} queues, {wanted} are asked for"
                )));
            }
        }
        let needed = devargs::frame_room(&self.shared.driver, config.mtu);
        if u32::from(config.mempool.data_room()) < needed {
            return Err(fail(format!(
                "MTU {} needs buffers of {needed} bytes, mempool \"{}\" has {}",
                config.mtu,
                config.mempool.name(),
                config.mempool.data_room()
            )));
        }
        let raw = ffi::RawPortConfig {
            rx_queues: config.rx_queues,
            tx_queues: config.tx_queues,
            ring_size: config.ring_size.max(1),
            mtu: config.mtu,
            rx_interrupts: u8::from(config.rx_interrupts),
        };
        let id = self.shared.id;
        let (status, lines) = log::capture(|| {
            closing_on_exec(|| {
                // SAFETY: the port is ours and stopped; pool and configuration are valid, and the
                // pool outlives the port (pools are never freed).
                unsafe { ffi::fv_port_configure(id, &raw const raw, config.mempool.as_ptr()) }
            })
        });
        if status != 0 {
            state.phase = Phase::Attached;
            return Err(fail(log::reason(status, &lines)));
        }
        state.phase = Phase::Configured;
        state.rx_taken = vec![false; usize::from(config.rx_queues)];
        state.tx_taken = vec![false; usize::from(config.tx_queues)];
        state.promiscuous = config.promiscuous;
        state.mempool = Some(config.mempool.clone());
        Ok(())
    }

    /// Starts a configured port; afterwards its queues can be taken.
    pub fn start(&self) -> Result<(), Error> {
        let mut state = self.shared.state();
        match state.phase {
            Phase::Attached => {
                return Err(Error::State {
                    port: self.shared.name.clone(),
                    needed: "configured",
                });
            }
            Phase::Started => return Ok(()),
            Phase::Configured => {}
        }
        let id = self.shared.id;
        self.shared.checked("start", || {
            // SAFETY: the port is ours, configured and stopped.
            unsafe { ffi::fv_port_start(id) }
        })?;
        state.phase = Phase::Started;
        let on = i32::from(state.promiscuous);
        let promiscuous = self.shared.checked("become promiscuous", || {
            // SAFETY: the port is ours.
            let status = unsafe { ffi::fv_port_promiscuous(id, on) };
            // Devices without the notion (null, ring) hand over everything anyway.
            if status == -libc::ENOTSUP { 0 } else { status }
        });
        if promiscuous.is_err() && state.promiscuous {
            // SAFETY: the port is ours, and no queue was handed out since it was started.
            if unsafe { ffi::fv_port_stop(self.shared.id) } == 0 {
                state.phase = Phase::Configured;
            }
            return promiscuous;
        }
        Ok(())
    }

    /// Stops the port. Fails while a queue is out. (af_packet and af_xdp close their sockets here: such
    /// a port has to be dropped and attached again, it does not come back with `start`.)
    pub fn stop(&self) -> Result<(), Error> {
        let mut state = self.shared.state();
        if state.phase != Phase::Started {
            return Ok(());
        }
        let held = state
            .rx_taken
            .iter()
            .chain(&state.tx_taken)
            .filter(|taken| **taken)
            .count();
        if held > 0 {
            return Err(Error::QueuesInUse {
                port: self.shared.name.clone(),
                held,
            });
        }
        // SAFETY: the port is ours, started, and nobody polls it: no queue is out, and none can be
        // taken while the lock is held.
        self.shared.checked("be stopped", || unsafe {
            ffi::fv_port_stop(self.shared.id)
        })?;
        state.phase = Phase::Configured;
        Ok(())
    }

    /// Takes receive queue `queue` of a started port; it comes back when it is dropped.
    pub fn rx_queue(&self, queue: u16) -> Result<RxQueue, Error> {
        self.take(Direction::Rx, queue)?;
        Ok(RxQueue::new(Arc::clone(&self.shared), queue))
    }

    /// Takes transmit queue `queue` of a started port; it comes back when it is dropped.
    pub fn tx_queue(&self, queue: u16) -> Result<TxQueue, Error> {
        self.take(Direction::Tx, queue)?;
        Ok(TxQueue::new(Arc::clone(&self.shared), queue))
    }

    fn take(&self, direction: Direction, queue: u16) -> Result<(), Error> {
        let mut state = self.shared.state();
        if state.phase != Phase::Started {
            return Err(Error::State {
                port: self.shared.name.clone(),
                needed: "started",
            });
        }
        let (name, taken) = match direction {
            Direction::Rx => ("rx", &mut state.rx_taken),
            Direction::Tx => ("tx", &mut state.tx_taken),
        };
        let queues = taken.len();
        match taken.get_mut(usize::from(queue)) {
            Some(taken) if !*taken => {
                *taken = true;
                Ok(())
            }
            _ => Err(Error::Queue {
                port: self.shared.name.clone(),
                direction: name,
                queue,
                queues,
            }),
        }
    }

    /// What the port counted.
    pub fn stats(&self) -> PortStats {
        let mut raw = ffi::RawPortStats::default();
        // SAFETY: the port is ours; statistics may be read while it is polled.
        let (_, _) = log::capture(|| unsafe { ffi::fv_port_stats(self.shared.id, &raw mut raw) });
        PortStats {
            rx_packets: raw.rx_packets,
            tx_packets: raw.tx_packets,
            rx_bytes: raw.rx_bytes,
            tx_bytes: raw.tx_bytes,
            rx_missed: raw.rx_missed,
            rx_errors: raw.rx_errors,
            tx_errors: raw.tx_errors,
            rx_no_buffer: raw.rx_no_buffer,
            rx_linearised: self.shared.linearised.load(Ordering::Relaxed),
            rx_segments_dropped: self.shared.segments_dropped.load(Ordering::Relaxed),
        }
    }

    /// Sets the device's counters to zero, where it can.
    pub fn reset_stats(&self) -> Result<(), Error> {
        // SAFETY: the port is ours.
        self.shared.checked("reset its statistics", || unsafe {
            ffi::fv_port_stats_reset(self.shared.id)
        })?;
        self.shared.linearised.store(0, Ordering::Relaxed);
        self.shared.segments_dropped.store(0, Ordering::Relaxed);
        Ok(())
    }

    /// The link as the device sees it now; down when it cannot say.
    pub fn link(&self) -> Link {
        let mut raw = ffi::RawLink::default();
        // SAFETY: the port is ours.
        let (_, _) = log::capture(|| unsafe { ffi::fv_port_link(self.shared.id, &raw mut raw) });
        let mut link = Link {
            up: raw.up != 0,
            mbps: raw.mbps,
            full_duplex: raw.full_duplex != 0,
        };
        // These drivers say "up" whatever happens to the interface.
        if matches!(self.driver(), "net_af_packet" | "net_af_xdp")
            && let Some(kernel) = &self.shared.kernel
        {
            link.up &= kernel.running();
        }
        link
    }

    /// The MAC address.
    pub fn mac(&self) -> [u8; 6] {
        let mut mac = [0; 6];
        // SAFETY: the port is ours, and six bytes are written.
        let (_, _) = log::capture(|| unsafe { ffi::fv_port_mac(self.shared.id, mac.as_mut_ptr()) });
        mac
    }

    /// The MTU that the driver has. Some virtual drivers move longer packets than they say.
    pub fn mtu(&self) -> u16 {
        let mut mtu = 0;
        // SAFETY: the port is ours.
        let (_, _) = log::capture(|| unsafe { ffi::fv_port_mtu(self.shared.id, &raw mut mtu) });
        mtu
    }

    /// DPDK's name of the port: the PCI address, or the virtual device's name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// The driver, like `net_af_packet`.
    pub fn driver(&self) -> &str {
        &self.shared.driver
    }

    /// The device string it was attached with.
    pub fn devargs(&self) -> &str {
        &self.shared.devargs
    }

    /// The NUMA node of the device.
    pub fn numa(&self) -> Option<i32> {
        self.shared.numa
    }

    /// Most receive and transmit queues that the device can have.
    pub fn max_queues(&self) -> (u16, u16) {
        (self.shared.max_rx_queues, self.shared.max_tx_queues)
    }

    /// Index of the kernel's network interface that the device works on, for drivers that tell.
    pub fn if_index(&self) -> Option<u32> {
        self.shared.kernel.as_ref().map(KernelInterface::index)
    }
}

/// Why a device did not attach. What the EAL itself says about that is little and its error number
/// means nothing ("not permitted" for whatever a driver refused): the driver's own words count.
fn explain(devargs: &str, status: i32, lines: &[String]) -> String {
    let said: Vec<String> = lines
        .iter()
        .filter(|line| {
            !line.contains("Failed to attach device") && !line.contains("Driver cannot attach")
        })
        .cloned()
        .collect();
    let refused = lines
        .iter()
        .any(|line| line.contains("Driver cannot attach"));
    let mut why = if !said.is_empty() {
        log::joined(&said)
    } else if refused {
        "its driver refused it; check the arguments in the device string".to_owned()
    } else {
        log::reason(status, lines)
    };
    if said
        .iter()
        .any(|line| line.contains("failed to parse device"))
    {
        why = "no driver of DPDK answers to this name; see the drivers in the distribution's DPDK folder (librte_net_*)".to_owned();
    }
    if let Some(hint) = devargs::hint(devargs) {
        why = format!("{why}; {hint}");
    }
    why
}
