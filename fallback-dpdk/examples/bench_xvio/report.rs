//! The table for people, and `target/bench/xvio.json` for programs.

use crate::meter::{Moved, Way};
use crate::{Case, Kind, Results};
use serde_json::json;
use std::path::PathBuf;

/// The version of the file's schema: raise it when a field changes its meaning or goes.
const SCHEMA: u32 = 1;

/// The median of the rounds.
fn median(moved: &[Moved], of: impl Fn(&Moved) -> f64) -> f64 {
    let mut values: Vec<f64> = moved.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// From the lowest to the highest round, as a part of the median.
fn spread(moved: &[Moved]) -> f64 {
    let cycles = moved.iter().map(|m| m.cycles);
    let (low, high) = cycles.fold((f64::MAX, f64::MIN), |(low, high), c| {
        (low.min(c), high.max(c))
    });
    (high - low) / median(moved, |m| m.cycles)
}

fn name((way, layout, _): &Case) -> String {
    format!("{} {}", way.name(), layout.name())
}

/// What a case has to reach against DPDK's vhost library.
fn target((way, _, size): &Case) -> Option<f64> {
    match (way, size) {
        (Way::Across, _) => Some(1.5),
        (_, 64) => Some(1.25),
        (_, 1518) => Some(1.0),
        _ => None,
    }
}

/// Prints all cases.
pub fn print(results: &Results, limit: &[Moved]) {
    println!(
        "A bare ring between two cores, two cache lines a packet: {:.1} cycles a packet ({:.0}% spread).",
        median(limit, |m| m.cycles),
        100.0 * spread(limit)
    );
    println!(
        "Busy cycles a packet on the backend's core; ratio = peer / xvio, above 1 xvio is faster."
    );
    println!(
        "{:<42}{:>5}  {:<12}{:>8}{:>8}{:>7}{:>8}{:>9}{:>9}{:>7}{:>7}{:>7}{:>7}",
        "case",
        "size",
        "peer",
        "xvio",
        "peer",
        "ratio",
        "wanted",
        "Mpps",
        "peer",
        "spread",
        "peer",
        "burst",
        "peer"
    );
    for (case, kinds) in results {
        let Some(ours) = kinds.get(&Kind::Ours) else {
            continue;
        };
        for (kind, theirs) in kinds.iter().filter(|(kind, _)| **kind != Kind::Ours) {
            let (own, peer) = (median(ours, |m| m.cycles), median(theirs, |m| m.cycles));
            let mpps = |moved: &[Moved]| median(moved, |m| m.pps) / 1e6;
            println!(
                "{:<42}{:>5}  {:<12}{own:>8.1}{peer:>8.1}{:>7.2}{:>8}{:>9.2}{:>9.2}{:>6.0}%{:>6.0}%{:>7.1}{:>7.1}",
                name(case),
                case.2,
                kind.name(),
                peer / own,
                target(case).map_or(String::new(), |t| format!("{t:.2}")),
                mpps(ours),
                mpps(theirs),
                100.0 * spread(ours),
                100.0 * spread(theirs),
                median(ours, |m| m.burst),
                median(theirs, |m| m.burst),
            );
        }
    }
}

/// Writes the file.
pub fn write(
    results: &Results,
    limit: &[Moved],
    rounds: usize,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut cases = Vec::new();
    for (case, kinds) in results {
        let Some(ours) = kinds.get(&Kind::Ours) else {
            continue;
        };
        for (kind, theirs) in kinds.iter().filter(|(kind, _)| **kind != Kind::Ours) {
            let (own, peer) = (median(ours, |m| m.cycles), median(theirs, |m| m.cycles));
            cases.push(json!({
                "case": name(case),
                "size": case.2,
                "peer": kind.name(),
                "cycles_per_packet": own,
                "peer_cycles_per_packet": peer,
                "ratio": peer / own,
                "wanted_ratio": target(case),
                "pps": median(ours, |m| m.pps),
                "peer_pps": median(theirs, |m| m.pps),
                "burst": median(ours, |m| m.burst),
                "peer_burst": median(theirs, |m| m.burst),
                "spread": spread(ours),
                "peer_spread": spread(theirs),
            }));
        }
    }
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let folder = target.join("bench");
    std::fs::create_dir_all(&folder)?;
    let file = folder.join("xvio.json");
    let text = json!({ "schema": SCHEMA, "benchmark": "xvio", "rounds": rounds, "bare_ring_cycles_per_packet": median(limit, |m| m.cycles), "cases": cases });
    std::fs::write(&file, serde_json::to_string_pretty(&text)? + "\n")?;
    println!("All figures: {}", file.display());
    Ok(())
}
