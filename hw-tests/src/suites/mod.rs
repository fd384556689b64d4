//! The suites that `ferrovia-lab` runs. [`crate::lab`] says how to write a test; a new one is a function in a
//! file of its suite, and a line in the suite's list. A new suite is a folder here, and a line in [`ALL`].

pub mod smoke;
pub mod sriov;

use crate::lab::suite::Suite;

/// Every suite.
pub const ALL: &[Suite] = &[smoke::SUITE, sriov::SUITE];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_fit_every_report() {
        let mut seen = std::collections::BTreeSet::new();
        for suite in ALL {
            assert!(!suite.tests.is_empty(), "{} has no test", suite.name);
            for name in suite.tests.iter().map(|test| test.name) {
                let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
                assert!(name.chars().all(plain), "{name}");
                assert!(seen.insert((suite.name, name)), "{name} is there twice");
            }
        }
    }
}
