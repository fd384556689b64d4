//! Which home a flow gets.

use crate::home::{Home, HomeKind, KernelHome, NicHome, SoftwareHome};
use flow::{Action, FlowKey};

/// The homes of this host, as they were when it was asked.
#[derive(Clone, Debug)]
pub struct Placement {
    availability: Vec<(HomeKind, Result<(), String>)>,
    home: HomeKind,
    why: String,
}

/// Each home of this host, and why it cannot take flows if it cannot, as an operator can act on it.
///
/// Blocks for some milliseconds. `uplink` is the uplink's kernel network interface, if it has one.
pub fn availability(uplink: Option<&str>) -> Vec<(HomeKind, Result<(), String>)> {
    Placement::probe(uplink).availability
}

/// Where a flow goes, and why there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Choice<'a> {
    /// The home.
    pub home: HomeKind,
    /// One line for whoever asks.
    pub why: &'a str,
}

impl Placement {
    /// Asks the host. `uplink` is the uplink's kernel network interface, if it has one.
    ///
    /// Blocks for some milliseconds: ask once at start and where the uplink changes.
    pub fn probe(uplink: Option<&str>) -> Placement {
        let nic = NicHome {
            uplink: uplink.map(str::to_owned),
        };
        Placement::of(&[&SoftwareHome, &KernelHome, &nic])
    }

    /// The choice between these homes. Later ones are better where they are available.
    pub fn of(homes: &[&dyn Home]) -> Placement {
        let availability: Vec<_> = homes
            .iter()
            .map(|home| {
                (
                    home.kind(),
                    home.probe().map_err(|reason| reason.to_string()),
                )
            })
            .collect();
        let best = availability.iter().rev().find(|(_, answer)| answer.is_ok());
        let home = best.map_or(HomeKind::Software, |(kind, _)| *kind);
        let reasons: Vec<String> = availability
            .iter()
            .filter_map(|(kind, answer)| Some(format!("{kind}: {}", answer.as_ref().err()?)))
            .collect();
        let why = if reasons.is_empty() {
            format!("{home} is the best home and can take flows")
        } else {
            format!(
                "{home} is the best home that can take flows ({})",
                reasons.join("; ")
            )
        };
        tracing::debug!(%home, why, "flows are placed");
        Placement {
            availability,
            home,
            why,
        }
    }

    /// Each home of this host, and why it cannot take flows if it cannot.
    pub fn availability(&self) -> &[(HomeKind, Result<(), String>)] {
        &self.availability
    }

    /// Where this flow goes. In this version every flow goes to the same home.
    pub fn choose(&self, _key: &FlowKey, _actions: &[Action]) -> Choice<'_> {
        Choice {
            home: self.home,
            why: &self.why,
        }
    }
}
