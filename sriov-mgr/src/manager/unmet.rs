//! What the policies in force select and cannot be had: NICs without SR-IOV, and NICs that are not there.

use super::Error;
use super::shared::Shared;
use crate::plan::Refusal;
use crate::policy::{absent, without_sriov};

/// Of all policies together.
pub(super) struct Unmet {
    /// NICs that are there and cannot have VFs.
    pub(super) refused: Vec<Refusal>,
    /// What is not there, and may come.
    pub(super) warnings: Vec<Refusal>,
}

impl Shared {
    pub(super) fn unmet(&self) -> Result<Unmet, Error> {
        let (pfs, plain) = (self.pf_states()?, self.kernel.without_sriov()?);
        let policies = self.policies();
        let refused = policies
            .iter()
            .flat_map(|policy| without_sriov(policy, &plain));
        // A PF that does not answer now may be the one that is meant.
        let all = pfs.len() >= self.kernel.pfs()?.len();
        let warnings = policies.iter().filter(|_| all);
        let warnings = warnings.filter_map(|policy| absent(policy, &pfs, &plain));
        Ok(Unmet {
            refused: refused
                .map(|(device, problem)| Refusal {
                    device: Some(device),
                    why: problem.to_string(),
                })
                .collect(),
            warnings: warnings
                .map(|problem| Refusal {
                    device: None,
                    why: problem.to_string(),
                })
                .collect(),
        })
    }
}
