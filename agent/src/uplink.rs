//! The uplink: DPDK's port towards the other hosts, and what DPDK is started with.

use crate::config::{self, Config};
use crate::control::Handle;
use crate::underlay::Place;
use fallback_dpdk::{Dataplane, Event, Wake};
use flow::{MacAddr, PortId};
use std::sync::Arc;
use vrouter::Underlay;

/// Frames of guests that have no underlay between them may be this long.
const LOCAL_FRAME: u16 = 9216;
/// The MTU of a device that does not say.
const DEVICE_MTU: u16 = 1500;

/// The uplink as it runs.
#[derive(Clone, Debug)]
pub struct Uplink {
    /// DPDK's device string.
    pub device: String,
    /// For the topology.
    pub underlay: Underlay,
}

/// The uplink cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    /// DPDK refuses the device.
    #[error("The uplink \"{device}\" cannot be used")]
    Device {
        /// DPDK's device string.
        device: String,
        /// Why.
        #[source]
        source: dpdk::Error,
    },
    /// The data plane refuses it.
    #[error("The uplink \"{device}\" cannot join the data plane")]
    Join {
        /// DPDK's device string.
        device: String,
        /// Why.
        #[source]
        source: fallback_dpdk::Error,
    },
}

/// What the EAL is started with.
pub fn eal_config(config: &Config) -> dpdk::EalConfig {
    let pci = match config.underlay.as_ref().map(|underlay| &underlay.uplink) {
        Some(config::Uplink::Device(device)) if dpdk::pci_address(device).is_some() => {
            vec![device.clone()]
        }
        _ => Vec::new(),
    };
    dpdk::EalConfig {
        program: "ferrovia-agent".to_owned(),
        memory_mb: config.dataplane.memory_mb,
        hugepages: match config.dataplane.hugepages {
            config::Hugepages::Auto => dpdk::Hugepages::Auto,
            config::Hugepages::Never => dpdk::Hugepages::Never,
            config::Hugepages::Require => dpdk::Hugepages::Require,
        },
        pci,
        // VFs of relays come when their guests do.
        pci_later: true,
        ..dpdk::EalConfig::default()
    }
}

/// What the data plane is started with, over an underlay of this MTU.
pub fn dataplane_config(config: &Config, underlay_mtu: Option<u16>) -> fallback_dpdk::Config {
    let mtu = underlay_mtu.unwrap_or(DEVICE_MTU);
    let frame = dpdk::af_packet_data_room(mtu).min(u32::from(u16::MAX - 256)) as u16;
    fallback_dpdk::Config {
        workers: config.dataplane.workers.into(),
        cores: config.dataplane.cores.clone(),
        flow_capacity: config.dataplane.flow_capacity as usize,
        buffers: config.dataplane.buffers,
        max_frame: frame.max(LOCAL_FRAME),
        ..fallback_dpdk::Config::default()
    }
}

/// Attaches the device, starts it and gives it to the data plane.
pub fn attach(
    eal: &dpdk::Eal,
    dataplane: &Dataplane,
    wanted: &config::Uplink,
    place: &Place,
) -> Result<Uplink, UplinkError> {
    let mtu = place.mtu.unwrap_or(DEVICE_MTU);
    let device = match wanted {
        config::Uplink::Interface(name) => dpdk::af_packet_devargs("0", name, mtu),
        config::Uplink::Device(device) => device.clone(),
    };
    let refused = |source| UplinkError::Device {
        device: device.clone(),
        source,
    };
    let port = dpdk::Port::attach(eal, &device).map_err(refused)?;
    let mac = place.mac.unwrap_or(MacAddr(port.mac()));
    let underlay = Underlay {
        address: place.address.addr(),
        prefix_len: place.address.prefix_len(),
        gateway: place.gateway,
        mac,
        mtu,
        neighbours: Vec::new(),
        answer_arp: !place.kernel_owns,
    };
    // A kernel interface has no receive interrupt, but a doorbell of its own.
    let wake = match &place.interface {
        Some(name) => Wake::Interface(name.clone()),
        None => Wake::Interrupt,
    };
    let polled = dpdk::PortConfig {
        mtu,
        ..dpdk::PortConfig::new(dataplane.mempool().clone())
    };
    let interrupts = dpdk::PortConfig {
        rx_interrupts: true,
        ..polled.clone()
    };
    let up = |config: &dpdk::PortConfig| port.configure(config).and_then(|()| port.start());
    if place.interface.is_some() || up(&interrupts).is_err() {
        up(&polled).map_err(refused)?;
    }
    let join = |source| UplinkError::Join {
        device: device.clone(),
        source,
    };
    dataplane
        .add_ethdev(PortId::UPLINK, port, Some(wake))
        .map_err(join)?;
    tracing::info!(device, address = %underlay.address, %mac, mtu, "uplink ready");
    Ok(Uplink { device, underlay })
}

/// Passes the data plane's events on to the control thread, from a thread of its own that sleeps
/// until there is one.
pub fn forward_events(dataplane: &Arc<Dataplane>, handle: Handle) -> std::io::Result<()> {
    let Some(events) = dataplane.events() else {
        return Ok(());
    };
    std::thread::Builder::new()
        .name("events".into())
        .spawn(move || {
            while let Ok(event) = events.recv() {
                match event {
                    Event::Learned { ip, mac } => handle.learned(ip, mac),
                    Event::Unresolved { ip } => handle.wanted(ip),
                }
            }
        })?;
    Ok(())
}
