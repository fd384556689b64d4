//! The operators' page on drops explains every reason there is, and none that is not.

use flow::DropReason;
use std::collections::BTreeSet;

#[test]
fn every_drop_reason_is_explained() {
    let page = include_str!("../../docs/drops.md");
    let explained: BTreeSet<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(name, _)| name)
        .collect();
    let known: BTreeSet<&str> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
    assert_eq!(explained, known);
}
