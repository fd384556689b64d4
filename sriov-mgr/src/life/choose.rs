//! Which free VF a request gets.

use crate::allocation::{Allocation, Request, VfChoice};
use crate::device::VfId;
use crate::kernel::PfState;
use crate::policy::{Wanted, WantedVf};

/// A PF with VFs that may be handed out.
pub(crate) struct Source {
    pub(crate) state: PfState,
    pub(crate) wanted: Option<Wanted>,
}

/// A VF that fits, and how well.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) vf: VfId,
    pub(crate) wanted: WantedVf,
    pub(crate) notes: Vec<String>,
    /// Worse first criterion first: avoided PF, far NUMA node, VFs in use there.
    rank: (bool, bool, usize, u32),
}

/// The free VFs of `sources` that fit `request`, best first. A VF at an address is found by whoever calls,
/// for only the kernel knows addresses.
pub(crate) fn candidates(
    sources: &[Source],
    request: &Request,
    allocations: &[Allocation],
) -> Vec<Candidate> {
    let mut found: Vec<Candidate> = sources
        .iter()
        .flat_map(|source| on_pf(source, request, allocations))
        .collect();
    found.sort_by(|a, b| (a.rank, &a.vf).cmp(&(b.rank, &b.vf)));
    found
}

fn on_pf(source: &Source, request: &Request, allocations: &[Allocation]) -> Vec<Candidate> {
    let pf = &source.state.device;
    let used: Vec<u32> = allocations
        .iter()
        .filter(|a| a.vf.pf == *pf)
        .map(|a| a.vf.index)
        .collect();
    let avoided = request.avoid_pfs.contains(pf);
    let far = request
        .numa_node
        .is_some_and(|node| source.state.numa_node.is_some_and(|at| at != node));
    let mut notes = Vec::new();
    if avoided {
        notes.push(format!(
            "{pf} was to be avoided, and no other PF has a free VF that fits"
        ));
    }
    if let (true, Some(at), Some(node)) = (far, source.state.numa_node, request.numa_node) {
        notes.push(format!("{pf} is on NUMA node {at}, not {node}"));
    }
    (0..source.state.num_vfs)
        .filter(|index| !used.contains(index))
        .map(|index| VfId {
            pf: pf.clone(),
            index,
        })
        .filter(|vf| match &request.device {
            Some(VfChoice::Vf(asked)) => asked == vf,
            _ => true,
        })
        .filter_map(|vf| {
            let wanted = source.wanted.as_ref().map(|w| w.vf(vf.index));
            let wanted = wanted.unwrap_or_default();
            let named = request.device.is_some();
            let fits = match &request.pool {
                Some(pool) => wanted.pool.as_ref() == Some(pool),
                None => named || wanted.pool.is_some(),
            };
            fits.then(|| Candidate {
                rank: (avoided, far, used.len(), vf.index),
                vf,
                wanted,
                notes: notes.clone(),
            })
        })
        .collect()
}
