//! What is shown of relays, and the rates of two looks.

use crate::output::{Row, or_dash};
use crate::views::Drop;
use api::v1;
use serde::Serialize;

/// A relay, or a port of binding xvio.
#[derive(Serialize)]
pub struct Relay {
    name: String,
    /// file, api or port.
    origin: &'static str,
    state: &'static str,
    reason: String,
    socket: String,
    /// agent-listens or agent-connects.
    socket_mode: &'static str,
    queue_pairs: u32,
    queue_size: u32,
    active_queue_pairs: u32,
    mtu: u32,
    mac: String,
    vlan: u32,
    /// PCI address; empty where it has another device.
    vf: String,
    /// Device string; empty where it has a VF.
    device: String,
    network: String,
    guest_connected: bool,
    features: String,
    worker: Option<u32>,
    core: Option<u32>,
    running: Option<Device>,
    queues: Vec<Queue>,
    drops: Vec<Drop>,
}

/// The device that runs behind a relay.
#[derive(Serialize)]
pub struct Device {
    name: String,
    driver: String,
    queues: u32,
    link_up: bool,
    link_mbps: u32,
    rx_packets: u64,
    rx_bytes: u64,
    tx_packets: u64,
    tx_bytes: u64,
}

/// A queue pair of the guest.
#[derive(Serialize)]
pub struct Queue {
    index: u32,
    from_guest: Ring,
    to_guest: Ring,
}

/// One ring.
#[derive(Serialize, Clone, Default)]
pub struct Ring {
    packets: u64,
    bytes: u64,
    bursts: u64,
    kicks: u64,
    kicks_suppressed: u64,
    drops: Vec<RingDrop>,
}

/// Packets that a ring lost for one reason.
#[derive(Serialize, Clone)]
pub struct RingDrop {
    reason: String,
    packets: u64,
}

/// A relay's state as it is written everywhere.
pub fn state_name(state: v1::RelayState) -> &'static str {
    match state {
        v1::RelayState::Unspecified => "pending",
        v1::RelayState::RelayFailed => "failed",
        v1::RelayState::RelayWaitingForVf => "waiting-for-vf",
        v1::RelayState::RelayWaitingForGuest => "waiting-for-guest",
        v1::RelayState::RelayStarting => "starting",
        v1::RelayState::RelayRelaying => "relaying",
        v1::RelayState::RelayWaitingForDevice => "waiting-for-device",
        v1::RelayState::RelayOnSoftwarePath => "software-path",
    }
}

impl From<v1::RingCounters> for Ring {
    fn from(ring: v1::RingCounters) -> Ring {
        let drops = ring.drops.into_iter().map(|drop| RingDrop {
            reason: drop.reason,
            packets: drop.packets,
        });
        Ring {
            packets: ring.packets,
            bytes: ring.bytes,
            bursts: ring.bursts,
            kicks: ring.kicks,
            kicks_suppressed: ring.kicks_suppressed,
            drops: drops.collect(),
        }
    }
}

impl Ring {
    fn dropped(&self) -> u64 {
        self.drops.iter().map(|drop| drop.packets).sum()
    }

    fn line(&self) -> String {
        let mut text = format!(
            "{} packets, {} bytes in {} bursts, {} kicks, {} suppressed",
            self.packets, self.bytes, self.bursts, self.kicks, self.kicks_suppressed
        );
        for drop in &self.drops {
            text.push_str(&format!(", {} {}", drop.packets, drop.reason));
        }
        text
    }
}

impl From<v1::Relay> for Relay {
    fn from(relay: v1::Relay) -> Relay {
        let (state, origin) = (state_name(relay.state()), relay.origin());
        let spec = relay.spec.unwrap_or_default();
        let socket_mode = match spec.mode() {
            v1::SocketMode::AgentConnects => "agent-connects",
            v1::SocketMode::AgentListens | v1::SocketMode::Unspecified => "agent-listens",
        };
        let (vf, device) = match spec.far {
            Some(v1::relay_spec::Far::Vf(vf)) => (vf, String::new()),
            Some(v1::relay_spec::Far::Device(device)) => (String::new(), device),
            None => (String::new(), String::new()),
        };
        let drops = relay.drops.into_iter().map(|drop| Drop {
            port: spec.name.clone(),
            reason: drop.reason,
            packets: drop.packets,
        });
        Relay {
            origin: match origin {
                v1::RelayOrigin::RelayOfPort => "port",
                v1::RelayOrigin::RelayFromApi => "api",
                v1::RelayOrigin::RelayFromFile | v1::RelayOrigin::Unspecified => "file",
            },
            state,
            reason: relay.reason,
            socket_mode,
            vf,
            device,
            drops: drops.collect(),
            name: spec.name,
            socket: spec.socket,
            queue_pairs: spec.queue_pairs,
            queue_size: spec.queue_size,
            active_queue_pairs: relay.active_queue_pairs,
            mtu: spec.mtu,
            mac: spec.mac,
            vlan: spec.vlan,
            network: relay.network,
            guest_connected: relay.guest_connected,
            features: relay.features,
            worker: u32::try_from(relay.worker).ok(),
            core: u32::try_from(relay.core).ok(),
            running: relay.device.map(|device| Device {
                name: device.name,
                driver: device.driver,
                queues: device.queues,
                link_up: device.link_up,
                link_mbps: device.link_mbps,
                rx_packets: device.rx_packets,
                rx_bytes: device.rx_bytes,
                tx_packets: device.tx_packets,
                tx_bytes: device.tx_bytes,
            }),
            queues: relay
                .queues
                .into_iter()
                .map(|queue| Queue {
                    index: queue.index,
                    from_guest: queue.from_guest.unwrap_or_default().into(),
                    to_guest: queue.to_guest.unwrap_or_default().into(),
                })
                .collect(),
        }
    }
}

impl Relay {
    fn far(&self) -> String {
        match (self.vf.as_str(), self.device.as_str()) {
            ("", "") => String::new(),
            ("", device) => device.to_owned(),
            (vf, _) => format!("VF {vf}"),
        }
    }

    fn worker(&self) -> String {
        match (self.worker, self.core) {
            (None, _) => String::new(),
            (Some(worker), None) => worker.to_string(),
            (Some(worker), Some(core)) => format!("{worker} (core {core})"),
        }
    }
}

impl Row for Relay {
    const TITLES: &'static [&'static str] = &[
        "NAME", "FROM", "STATE", "FAR SIDE", "MAC", "VLAN", "MTU", "QUEUES", "WORKER",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.origin.to_owned(),
            self.state.to_owned(),
            or_dash(self.far()),
            self.mac.clone(),
            or_dash(match self.vlan {
                0 => String::new(),
                vlan => vlan.to_string(),
            }),
            self.mtu.to_string(),
            format!("{}/{}", self.active_queue_pairs, self.queue_pairs),
            or_dash(self.worker()),
        ]
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let state = match self.reason.as_str() {
            "" => self.state.to_owned(),
            reason => format!("{}: {reason}", self.state),
        };
        let running = self.running.as_ref().map(|device| {
            let link = match (device.link_up, device.link_mbps) {
                (false, _) => "no link".to_owned(),
                (true, 0) => "link".to_owned(),
                (true, mbps) => format!("{mbps} Mbit/s"),
            };
            format!(
                "{} ({}), {} queues each way, {link}\nin: {} packets, {} bytes\nout: {} packets, {} bytes",
                device.name,
                device.driver,
                device.queues,
                device.rx_packets,
                device.rx_bytes,
                device.tx_packets,
                device.tx_bytes
            )
        });
        let queues = self.queues.iter().map(|queue| {
            format!(
                "{} from the guest: {}\n{} to the guest: {}",
                queue.index,
                queue.from_guest.line(),
                queue.index,
                queue.to_guest.line()
            )
        });
        let drops = self.drops.iter();
        let drops = drops.map(|drop| format!("{} {}", drop.packets, drop.reason));
        vec![
            ("NAME", self.name.clone()),
            ("FROM", self.origin.to_owned()),
            ("STATE", state),
            ("NETWORK", self.network.clone()),
            ("FAR SIDE", or_dash(self.far())),
            ("DEVICE", running.unwrap_or_default()),
            ("MAC", self.mac.clone()),
            (
                "VLAN",
                match self.vlan {
                    0 => "none".to_owned(),
                    vlan => vlan.to_string(),
                },
            ),
            ("MTU", self.mtu.to_string()),
            ("SOCKET", format!("{} ({})", self.socket, self.socket_mode)),
            (
                "GUEST",
                match self.guest_connected {
                    true => "connected",
                    false => "not connected",
                }
                .to_owned(),
            ),
            ("FEATURES", self.features.clone()),
            (
                "QUEUE PAIRS",
                format!(
                    "{} of {} run, of {} descriptors",
                    self.active_queue_pairs, self.queue_pairs, self.queue_size
                ),
            ),
            ("WORKER", self.worker()),
            ("QUEUES", queues.collect::<Vec<_>>().join("\n")),
            ("DROPS", drops.collect::<Vec<_>>().join("\n")),
        ]
    }
}

/// What went through a relay or one of its queues, a second.
#[derive(Serialize)]
pub struct Rate {
    name: String,
    /// The queue pair; absent: all of them.
    queue: Option<u32>,
    state: &'static str,
    seconds: f64,
    from_guest: Direction,
    to_guest: Direction,
}

/// One direction.
#[derive(Serialize, Default)]
pub struct Direction {
    packets: f64,
    bits: f64,
    bursts: f64,
    kicks: f64,
    dropped: f64,
}

/// The rates between two looks that are `seconds` apart; of each queue too, where asked.
pub fn rates(before: &[v1::Relay], now: &[v1::Relay], seconds: f64, queues: bool) -> Vec<Rate> {
    let name = |relay: &v1::Relay| relay.spec.as_ref().map(|s| s.name.clone());
    let mut rows = Vec::new();
    for relay in now {
        // Another of the same name has counters of its own.
        let same = |other: &&v1::Relay| name(other) == name(relay) && other.origin == relay.origin;
        let old = before.iter().find(same);
        let row = |queue: Option<u32>| {
            let sum = |relay: &v1::Relay, from: bool| total(relay, queue, from);
            let rate = |from: bool| {
                let old = old.map(|old| sum(old, from)).unwrap_or_default();
                direction(&old, &sum(relay, from), seconds)
            };
            Rate {
                name: name(relay).unwrap_or_default(),
                queue,
                state: state_name(relay.state()),
                seconds,
                from_guest: rate(true),
                to_guest: rate(false),
            }
        };
        rows.push(row(None));
        if queues {
            rows.extend(relay.queues.iter().map(|queue| row(Some(queue.index))));
        }
    }
    rows
}

/// The counters of one ring, or of all in that direction.
fn total(relay: &v1::Relay, queue: Option<u32>, from: bool) -> Ring {
    let mut sum = Ring::default();
    let wanted = relay.queues.iter();
    for one in wanted.filter(|one| queue.is_none_or(|queue| one.index == queue)) {
        let ring = if from { &one.from_guest } else { &one.to_guest };
        let ring = Ring::from(ring.clone().unwrap_or_default());
        sum.packets += ring.packets;
        sum.bytes += ring.bytes;
        sum.bursts += ring.bursts;
        sum.kicks += ring.kicks;
        sum.drops.extend(ring.drops);
    }
    sum
}

fn direction(old: &Ring, new: &Ring, seconds: f64) -> Direction {
    // Counters that began anew count from nothing.
    let per_second = |old: u64, new: u64| {
        let since = new.checked_sub(old).unwrap_or(new);
        since as f64 / seconds.max(1e-3)
    };
    Direction {
        packets: per_second(old.packets, new.packets),
        bits: per_second(old.bytes, new.bytes) * 8.0,
        bursts: per_second(old.bursts, new.bursts),
        kicks: per_second(old.kicks, new.kicks),
        dropped: per_second(old.dropped(), new.dropped()),
    }
}

/// A rate as people read it: 1.2k, 3.4M.
fn short(rate: f64) -> String {
    match rate {
        r if r >= 1e9 => format!("{:.2}G", r / 1e9),
        r if r >= 1e6 => format!("{:.2}M", r / 1e6),
        r if r >= 1e3 => format!("{:.1}k", r / 1e3),
        r => format!("{r:.0}"),
    }
}

impl Row for Rate {
    const TITLES: &'static [&'static str] = &[
        "NAME",
        "QUEUE",
        "STATE",
        "OUT pps",
        "OUT bit/s",
        "PER BURST",
        "IN pps",
        "IN bit/s",
        "KICKS/s",
        "DROPS/s",
    ];

    fn cells(&self) -> Vec<String> {
        let (out, into) = (&self.from_guest, &self.to_guest);
        let burst = match out.bursts {
            bursts if bursts > 0.0 => format!("{:.1}", out.packets / bursts),
            _ => "-".to_owned(),
        };
        vec![
            self.name.clone(),
            or_dash(
                self.queue
                    .map(|queue| queue.to_string())
                    .unwrap_or_default(),
            ),
            self.state.to_owned(),
            short(out.packets),
            short(out.bits),
            burst,
            short(into.packets),
            short(into.bits),
            short(out.kicks + into.kicks),
            short(out.dropped + into.dropped),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relay(packets: [u64; 2]) -> v1::Relay {
        let queue = |index: u32| v1::RelayQueue {
            index,
            from_guest: Some(v1::RingCounters {
                packets: packets[index as usize],
                bytes: 100 * packets[index as usize],
                ..Default::default()
            }),
            to_guest: None,
        };
        v1::Relay {
            spec: Some(v1::RelaySpec {
                name: "vm-1".into(),
                ..Default::default()
            }),
            queues: vec![queue(0), queue(1)],
            ..Default::default()
        }
    }

    #[test]
    fn rates_are_differences_by_time_and_a_counter_that_began_anew_is_no_wrap() {
        let rows = rates(&[relay([100, 50])], &[relay([300, 20])], 2.0, true);
        let out: Vec<_> = rows.iter().map(|row| row.from_guest.packets).collect();
        // 150 to 320 together; queue 1 began anew.
        assert_eq!(out, [85.0, 100.0, 10.0]);
        assert_eq!(rows[1].from_guest.bits, 80_000.0);
        assert_eq!(rows[0].queue, None);
        let fresh = rates(&[], &[relay([10, 0])], 1.0, false);
        assert_eq!((fresh.len(), fresh[0].from_guest.packets), (1, 10.0));
    }

    #[test]
    fn rates_are_short() {
        assert_eq!(short(999.4), "999");
        assert_eq!(short(1_234_567.0), "1.23M");
        assert_eq!(short(0.0), "0");
    }
}
