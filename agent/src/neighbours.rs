//! Who is who in the underlay: the MAC address of each next hop.
//!
//! The agent asks by itself (ARP, or neighbour solicitation for IPv6) through the uplink, whether the
//! kernel owns the address or DPDK does, so that both work alike: with af_packet the answer reaches
//! the kernel and the data plane, each for itself. The kernel's table is not looked at.
//!
//! A known neighbour is asked again every [`REFRESH`]; one that stops answering keeps its last MAC
//! (its packets are lost either way) and is asked ever more rarely, up to every [`SLOWEST`]. Time is
//! given in, never read, so that every test replays.

use flow::MacAddr;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How often a known neighbour is asked again.
pub const REFRESH: Duration = Duration::from_secs(30);
/// How often a silent one is asked in the end.
pub const SLOWEST: Duration = Duration::from_secs(30);
/// The first retries.
const RETRY: Duration = Duration::from_secs(1);
/// How many of them before it gets rarer.
const QUICK_RETRIES: u32 = 4;
/// No request is sent sooner than this after the last one, however many packets wait.
const HOLD_OFF: Duration = Duration::from_millis(200);

#[derive(Debug)]
struct Neighbour {
    mac: Option<MacAddr>,
    ask_at: Instant,
    asked_at: Option<Instant>,
    unanswered: u32,
}

/// The resolver's state.
#[derive(Debug, Default)]
pub struct Neighbours {
    table: BTreeMap<IpAddr, Neighbour>,
}

impl Neighbours {
    /// Sets whom to know. New ones are due at once, others keep what is known of them.
    pub fn set_targets(&mut self, targets: &[IpAddr], now: Instant) {
        self.table.retain(|ip, _| targets.contains(ip));
        for ip in targets {
            self.table.entry(*ip).or_insert(Neighbour {
                mac: None,
                ask_at: now,
                asked_at: None,
                unanswered: 0,
            });
        }
    }

    /// Somebody said what MAC this address has. True where that is news: the topology changes. Others
    /// than the targets are not remembered.
    pub fn learned(&mut self, ip: IpAddr, mac: MacAddr, now: Instant) -> bool {
        let Some(neighbour) = self.table.get_mut(&ip) else {
            return false;
        };
        if !mac.is_station() {
            return false;
        }
        neighbour.unanswered = 0;
        neighbour.ask_at = now + REFRESH;
        neighbour.mac.replace(mac) != Some(mac)
    }

    /// A packet waits for this neighbour: asks soon, unless that has just been done.
    pub fn wanted(&mut self, ip: IpAddr, now: Instant) {
        let Some(neighbour) = self.table.get_mut(&ip) else {
            return;
        };
        if neighbour.mac.is_none() {
            let earliest = neighbour.asked_at.map_or(now, |asked| asked + HOLD_OFF);
            neighbour.ask_at = neighbour.ask_at.min(earliest.max(now));
        }
    }

    /// Whom to ask now. Each is due again later, sooner the fewer answers are missing.
    pub fn due(&mut self, now: Instant) -> Vec<IpAddr> {
        let mut ask = Vec::new();
        for (ip, neighbour) in &mut self.table {
            if neighbour.ask_at > now {
                continue;
            }
            ask.push(*ip);
            neighbour.asked_at = Some(now);
            let slower = neighbour
                .unanswered
                .saturating_sub(QUICK_RETRIES - 1)
                .min(5);
            neighbour.ask_at = now + (RETRY * (1 << slower)).min(SLOWEST);
            neighbour.unanswered = neighbour.unanswered.saturating_add(1);
        }
        ask
    }

    /// When [`due`](Neighbours::due) has something to say.
    pub fn next_due(&self) -> Option<Instant> {
        self.table.values().map(|neighbour| neighbour.ask_at).min()
    }

    /// All that are known.
    pub fn known(&self) -> Vec<(IpAddr, MacAddr)> {
        self.table
            .iter()
            .filter_map(|(ip, n)| n.mac.map(|mac| (*ip, mac)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 3));
    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_new_target_is_asked_at_once_and_again_until_it_answers() {
        let start = Instant::now();
        let mut table = Neighbours::default();
        table.set_targets(&[A, B], start);
        assert_eq!(table.due(start), [A, B]);
        assert!(table.due(start).is_empty());
        assert_eq!(table.due(start + seconds(1)), [A, B]);
        assert!(table.learned(A, MAC, start + seconds(1)));
        assert_eq!(table.known(), [(A, MAC)]);
        assert_eq!(table.due(start + seconds(2)), [B]);
        assert_eq!(table.next_due(), Some(start + seconds(3)));
    }

    #[test]
    fn the_same_answer_is_no_news_and_another_mac_is() {
        let start = Instant::now();
        let mut table = Neighbours::default();
        table.set_targets(&[A], start);
        assert!(table.learned(A, MAC, start));
        assert!(!table.learned(A, MAC, start));
        assert!(table.learned(A, MacAddr([2, 0, 0, 0, 0, 9]), start));
        assert!(!table.learned(B, MAC, start), "nobody asked for B");
        assert!(!table.learned(A, MacAddr::BROADCAST, start));
        assert!(!table.learned(A, MacAddr::ZERO, start));
    }

    #[test]
    fn a_known_neighbour_is_refreshed_and_kept_when_silent() {
        let start = Instant::now();
        let mut table = Neighbours::default();
        table.set_targets(&[A], start);
        table.learned(A, MAC, start);
        assert!(table.due(start + seconds(29)).is_empty());
        assert_eq!(table.due(start + seconds(30)), [A]);
        table.set_targets(&[A], start + seconds(31));
        assert_eq!(table.known(), [(A, MAC)]);
    }

    #[test]
    fn a_silent_one_is_asked_ever_more_rarely() {
        let start = Instant::now();
        let mut table = Neighbours::default();
        table.set_targets(&[A], start);
        let mut asked = 0;
        for second in 0..600 {
            asked += table.due(start + seconds(second)).len();
        }
        // 4 at one second, then 2, 4, 8, 16 and every 30 seconds.
        assert!(
            (20..=30).contains(&asked),
            "{asked} requests in ten minutes"
        );
        // A waiting packet asks at once, but not more than once within the hold-off.
        let now = start + seconds(601);
        table.wanted(A, now);
        assert_eq!(table.due(now), [A]);
        table.wanted(A, now);
        assert!(table.due(now).is_empty());
        assert_eq!(table.due(now + HOLD_OFF), [A]);
    }
}
