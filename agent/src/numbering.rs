//! Numbers of ports in the data plane.

use flow::PortId;
use std::collections::HashMap;

/// Gives each port id a [`PortId`] that stays the same as long as the agent lives, and that no other
/// port ever gets: a flow of a port that is gone can never mean another port.
#[derive(Debug)]
pub struct Numbers {
    by_id: HashMap<String, PortId>,
    next: u32,
}

impl Default for Numbers {
    fn default() -> Self {
        Numbers {
            by_id: HashMap::new(),
            next: PortId::UPLINK.0 + 1,
        }
    }
}

impl Numbers {
    /// The number of the port with this id, a new one the first time. `None` once all 2³² are used.
    pub fn of(&mut self, id: &str) -> Option<PortId> {
        if let Some(number) = self.by_id.get(id) {
            return Some(*number);
        }
        let number = PortId(self.next);
        self.next = self.next.checked_add(1)?;
        self.by_id.insert(id.to_owned(), number);
        Some(number)
    }

    /// The number, where the port has been seen.
    pub fn get(&self, id: &str) -> Option<PortId> {
        self.by_id.get(id).copied()
    }

    /// Forgets ports that are gone for good. Their numbers are not used again.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.by_id.retain(|id, _| keep(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_stable_and_never_anothers() {
        let mut numbers = Numbers::default();
        let a = numbers.of("a").unwrap();
        let b = numbers.of("b").unwrap();
        assert_ne!(a, PortId::UPLINK);
        assert_ne!(a, b);
        assert_eq!(numbers.of("a"), Some(a));
        numbers.retain(|id| id != "a");
        assert_eq!(numbers.get("a"), None);
        let again = numbers.of("a").unwrap();
        assert!(again != a && again != b);
    }

    #[test]
    fn the_last_number_is_an_error_and_not_a_wrap() {
        let mut numbers = Numbers {
            by_id: HashMap::new(),
            next: u32::MAX,
        };
        assert_eq!(numbers.of("a"), None);
    }
}
