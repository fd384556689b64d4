//! Handing out a VF: choose → write down → unbind → configure → read back → bind → in use.

use super::Error;
use super::shared::{Claim, Shared};
use crate::allocation::{Allocation, Phase, Request, Settings, VfChoice};
use crate::device::VfId;
use crate::health::Event;
use crate::journal::{Hold, Record};
use crate::kernel::{KernelError, PfState, VfChange, VfState};
use crate::life::choose::{Candidate, Source, candidates};
use crate::life::settings::mac_text;
use crate::policy::{VfDriver, WantedVf};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::PoisonError;

/// VFs that would fit and cannot be had, with the reason.
type PassedOver = BTreeMap<VfId, Passed>;

/// Why a VF that would fit cannot be had.
enum Passed {
    /// Somebody has it, or it is not there any more.
    Taken(String),
    /// It cannot be given to vfio-pci.
    Unfit(String),
}

impl Shared {
    pub(crate) fn allocate(&self, request: &Request) -> Result<Allocation, Error> {
        check(request)?;
        let _turn = self.turn(&request.owner);
        let existing = self
            .store
            .read(|ledger| ledger.allocations.get(&request.owner).cloned());
        if let Some(existing) = existing
            && let Some(allocation) = self.again(existing, request)?
        {
            return Ok(allocation);
        }
        let named = &self.with_vf_named(request)?;
        let sources = self.sources()?;
        let mut passed = PassedOver::new();
        loop {
            let Some((candidate, _claim)) = self.choose(&sources, named, &passed) else {
                return Err(self.exhausted(&sources, named, &passed));
            };
            let lock = self.pf_lock(&candidate.vf.pf);
            let _reading = lock.read().unwrap_or_else(PoisonError::into_inner);
            match self.try_vf(&candidate, request)? {
                Ok(allocation) => return Ok(allocation),
                Err(why) => passed.insert(candidate.vf, why),
            };
        }
    }

    /// The same owner asks again. `None`: what it had is given back now.
    fn again(&self, existing: Allocation, request: &Request) -> Result<Option<Allocation>, Error> {
        let lock = self.pf_lock(&existing.vf.pf);
        let _reading = lock.read().unwrap_or_else(PoisonError::into_inner);
        if !self.still(&existing) {
            return Ok(None);
        }
        if existing.phase != Phase::InUse {
            self.take_back(&existing)?;
            return Ok(None);
        }
        // Which PFs were to be avoided is of no importance any more: it has its VF.
        let same = Request {
            avoid_pfs: existing.request.avoid_pfs.clone(),
            ..request.clone()
        };
        if existing.request != same {
            return Err(Error::Invalid(format!(
                "{} already has {} with other settings; release it first",
                existing.owner, existing.vf
            )));
        }
        match self.kernel.vf(&existing.vf.pf, existing.vf.index) {
            Ok(_) => Ok(Some(existing)),
            Err(KernelError::Gone { .. }) => Err(Error::NotFound(format!(
                "{} has {}, which is not there now; it is made again when its PF is back, or release it",
                existing.owner, existing.vf
            ))),
            Err(error) => Err(error.into()),
        }
    }

    /// The request with its VF by PF and number instead of by address.
    fn with_vf_named(&self, request: &Request) -> Result<Request, Error> {
        let Some(VfChoice::Address(address)) = request.device else {
            return Ok(request.clone());
        };
        for state in self.pf_states()? {
            // It may be another PF's: one that fails is passed over.
            let vfs = self.vf_states(&state.device).unwrap_or_default();
            if let Some(vf) = vfs.iter().find(|vf| vf.address == Some(address)) {
                let vf = VfId {
                    pf: state.device,
                    index: vf.index,
                };
                return Ok(Request {
                    device: Some(VfChoice::Vf(vf)),
                    ..request.clone()
                });
            }
        }
        Err(Error::NotFound(format!(
            "No VF at {address} on this host; `ferrovia nic list` shows what there is"
        )))
    }

    fn choose(
        &self,
        sources: &[Source],
        request: &Request,
        passed: &PassedOver,
    ) -> Option<(Candidate, Claim<'_>)> {
        let allocations = self.allocations();
        candidates(sources, request, &allocations)
            .into_iter()
            .filter(|candidate| !passed.contains_key(&candidate.vf))
            .find_map(|candidate| {
                let claim = self.claim(&candidate.vf)?;
                Some((candidate, claim))
            })
    }

    /// The allocation, or why this VF cannot be had.
    fn try_vf(
        &self,
        candidate: &Candidate,
        request: &Request,
    ) -> Result<Result<Allocation, Passed>, Error> {
        let vf = &candidate.vf;
        let state = match self.kernel.vf(&vf.pf, vf.index) {
            Ok(state) => state,
            Err(error @ KernelError::Gone { .. }) => {
                return Ok(Err(Passed::Taken(error.to_string())));
            }
            Err(error) => return Err(error.into()),
        };
        let holders = self.kernel.holders(&vf.pf, vf.index)?;
        if !holders.is_empty() {
            let why = format!("{vf} is in use by {}", holders.join(", "));
            return Ok(Err(Passed::Taken(why)));
        }
        // Before anything is done to it: another VF may be in a better group.
        if let (Some(VfDriver::Vfio), Some(address)) =
            (request.driver.or(candidate.wanted.driver), state.address)
            && let Some(why) = self.life().vfio_refusal(address)?
        {
            return Ok(Err(Passed::Unfit(format!("{vf} ({address}): {why}"))));
        }
        if let Some(mac) = &request.mac {
            self.free_mac(mac, vf)?;
        }
        let pf = self.kernel.pf(&vf.pf)?;
        let allocation = self.write_down(candidate, request, &state, &pf)?;
        let Some(allocation) = allocation else {
            let why = format!("{vf} was taken at the same moment");
            return Ok(Err(Passed::Taken(why)));
        };
        let hold = self.store.read(|ledger| ledger.pf(&vf.pf).hold);
        // A VF that others may have used can have stale queues (R8); ours were reset when given back.
        let reset = hold != Hold::Made || state.driver.is_some();
        self.make_ready(allocation, reset).map(Ok)
    }

    fn write_down(
        &self,
        candidate: &Candidate,
        request: &Request,
        state: &VfState,
        pf: &PfState,
    ) -> Result<Option<Allocation>, Error> {
        let vf = &candidate.vf;
        self.store.decide(|ledger| {
            if ledger.owner_of(vf).is_some() {
                return Ok((None, None));
            }
            let serial = ledger.serial + 1;
            let mac = match request.mac {
                Some(mac) => mac,
                None => made_up_mac(&ledger.boot, serial, &request.owner),
            };
            if let Some(other) = ledger
                .allocations
                .values()
                .find(|other| other.settings.mac == mac)
            {
                return Err(duplicate(&mac, &format!("{} ({})", other.vf, other.owner)));
            }
            let mut notes = candidate.notes.clone();
            if !pf.up {
                let interface = pf.interface.as_deref().unwrap_or("its interface");
                notes.push(format!(
                    "{interface} of {} is down: its VFs have no carrier",
                    vf.pf
                ));
            }
            let allocation = Allocation {
                owner: request.owner.clone(),
                serial,
                vf: vf.clone(),
                address: state.address,
                pool: candidate.wanted.pool.clone(),
                identity: ledger.identity(&vf.pf),
                request: request.clone(),
                settings: settings(request, &candidate.wanted, mac),
                driver: request.driver.or(candidate.wanted.driver),
                was_bound: state.driver.is_some()
                    && state.driver_override.is_none()
                    && (candidate.wanted.pool.is_none() || ledger.pf(&vf.pf).hold != Hold::Made),
                phase: Phase::Configuring,
                notes,
            };
            let record = Record::Allocate {
                allocation: Box::new(allocation.clone()),
            };
            Ok((Some(record), Some(allocation)))
        })
    }

    fn make_ready(&self, mut allocation: Allocation, reset: bool) -> Result<Allocation, Error> {
        match self.ready_steps(&allocation, reset) {
            Ok(mut notes) => {
                allocation.notes.append(&mut notes);
                allocation.phase = Phase::InUse;
                self.tell(&Event::Allocated {
                    vf: allocation.vf.clone(),
                    owner: allocation.owner.clone(),
                });
                Ok(allocation)
            }
            Err(Error::Journal(error)) => Err(error.into()),
            Err(error) => {
                // Nobody has it yet. What cannot be undone now is kept back and tried again.
                if let Err(undo) = self.take_back(&allocation) {
                    self.tell(&Event::Failed {
                        pf: allocation.vf.pf.clone(),
                        why: undo.to_string(),
                    });
                }
                Err(error)
            }
        }
    }

    fn ready_steps(&self, allocation: &Allocation, reset: bool) -> Result<Vec<String>, Error> {
        let (life, vf) = (self.life(), &allocation.vf);
        // Settings are made while it has no driver: a driver that is up would have to take down its link
        // for a MAC, and complains about VLANs (R17, R20).
        life.unbind(vf)?;
        if reset {
            life.reset(vf)?;
        }
        let notes = life.configure(vf, &allocation.settings)?;
        if allocation.driver.is_some() {
            self.phase(allocation, Phase::Binding)?;
            life.bind(vf, allocation.driver)?;
        }
        self.phase(allocation, Phase::InUse)?;
        Ok(notes)
    }

    pub(crate) fn phase(&self, allocation: &Allocation, phase: Phase) -> Result<(), Error> {
        let owner = allocation.owner.clone();
        Ok(self.write(Record::Phase { owner, phase })?)
    }

    /// Sees that no VF of this host has `mac` but `but`. A free VF of ours that still has it, from a
    /// teardown that was missed, loses it (R7).
    fn free_mac(&self, mac: &[u8; 6], but: &VfId) -> Result<(), Error> {
        for state in self.pf_states()? {
            let pf = &state.device;
            if state.num_vfs == 0 || self.kernel.wedged(pf).is_some() {
                continue;
            }
            let vfs = match self.vf_states(pf) {
                // It went meanwhile, and its VFs with it.
                Err(KernelError::Gone { .. } | KernelError::Wedged { .. }) => continue,
                vfs => vfs?,
            };
            for vf in vfs {
                let id = VfId {
                    pf: pf.clone(),
                    index: vf.index,
                };
                if vf.settings.mac.as_ref() != Some(mac) || id == *but {
                    continue;
                }
                // Before its owner is looked up: a call that has chosen it would be left without its MAC.
                let Some(_claim) = self.claim(&id) else {
                    let who = format!("{id}, which is being handed out at this moment");
                    return Err(duplicate(mac, &who));
                };
                let (ours, owner) = self.store.read(|ledger| {
                    let owner = ledger.owner_of(&id).map(|a| a.owner.clone());
                    (ledger.pf(pf).ours(state.num_vfs), owner)
                });
                let holders = self.kernel.holders(pf, vf.index)?;
                if !ours || owner.is_some() || !holders.is_empty() {
                    let who = owner.into_iter().chain(holders).collect::<Vec<_>>();
                    let who = if who.is_empty() {
                        "whose VFs are not Ferrovia's".into()
                    } else {
                        who.join(", ")
                    };
                    return Err(duplicate(mac, &format!("{id} ({who})")));
                }
                let change = VfChange {
                    mac: Some([0; 6]),
                    ..VfChange::default()
                };
                self.kernel.set_vf(pf, vf.index, &change)?;
            }
        }
        Ok(())
    }

    fn exhausted(&self, sources: &[Source], request: &Request, passed: &PassedOver) -> Error {
        let unfit = passed.values().find_map(|passed| match passed {
            Passed::Unfit(why) => Some(why),
            Passed::Taken(_) => None,
        });
        if let Some(why) = unfit {
            return Error::Unsupported(format!("No free VF can be given to vfio-pci: {why}"));
        }
        let reasons: Vec<String> = passed
            .values()
            .map(|(Passed::Taken(why) | Passed::Unfit(why))| why.clone())
            .collect();
        if let Some(VfChoice::Vf(vf)) = &request.device {
            return self.vf_not_to_be_had(sources, request, vf, &reasons);
        }
        let pool = match &request.pool {
            Some(pool) => format!("pool \"{pool}\""),
            None => "any pool".into(),
        };
        let in_pool = |source: &Source, index: u32| {
            let wanted = source.wanted.as_ref().map(|wanted| wanted.vf(index));
            let of = wanted.and_then(|wanted| wanted.pool);
            of.is_some() && (request.pool.is_none() || of == request.pool)
        };
        let total: usize = sources
            .iter()
            .map(|s| (0..s.state.num_vfs).filter(|i| in_pool(s, *i)).count())
            .sum();
        if total == 0 {
            return Error::Exhausted(format!(
                "No VF in {pool}: no NIC has VFs for it now; see `ferrovia nic plan` and the policies"
            ));
        }
        let mut owners: Vec<String> = self
            .allocations()
            .iter()
            .filter(|a| a.pool.is_some() && (request.pool.is_none() || a.pool == request.pool))
            .map(|a| format!("{} has {}", a.owner, a.vf))
            .chain(reasons)
            .collect();
        let more = owners.len().saturating_sub(8);
        owners.truncate(8);
        if more > 0 {
            owners.push(format!("and {more} more"));
        }
        Error::Exhausted(format!(
            "No VF is free in {pool}: none of its {total} ({}); release one, or raise num_vfs",
            owners.join(", ")
        ))
    }

    fn vf_not_to_be_had(
        &self,
        sources: &[Source],
        request: &Request,
        vf: &VfId,
        reasons: &[String],
    ) -> Error {
        let owner = self
            .store
            .read(|ledger| ledger.owner_of(vf).map(|a| a.owner.clone()));
        if let Some(owner) = owner {
            return Error::Exhausted(format!("{vf} is in use by {owner}; release it first"));
        }
        if !reasons.is_empty() {
            return Error::Exhausted(format!("{}; end that use first", reasons.join(", ")));
        }
        let Some(source) = sources.iter().find(|source| source.state.device == vf.pf) else {
            return match self.kernel.pf(&vf.pf) {
                Ok(state) if state.num_vfs > 0 => Error::NotOurs {
                    device: vf.pf.clone(),
                    why: format!(
                        "its {} VFs were made by somebody else, or its change is not finished; adopt it \
                         (`ferrovia nic adopt {}`), or call it external in a policy",
                        state.num_vfs, vf.pf
                    ),
                },
                Ok(_) => Error::NotFound(format!("{} has no VFs", vf.pf)),
                Err(error) => error.into(),
            };
        };
        if vf.index >= source.state.num_vfs {
            return Error::NotFound(format!(
                "{vf} does not exist: {} has {} VFs, counted from 0",
                vf.pf, source.state.num_vfs
            ));
        }
        let pool = request.pool.as_deref().unwrap_or_default();
        Error::Invalid(format!("{vf} is not in pool \"{pool}\""))
    }
}

fn settings(request: &Request, wanted: &WantedVf, mac: [u8; 6]) -> Settings {
    let defaults = &wanted.defaults;
    Settings {
        mac,
        vlan: request.vlan.or(defaults.tag()),
        rate: request.rate.or(defaults.rate),
        spoofchk: request.spoofchk.or(defaults.spoofchk),
        trust: request.trust.or(defaults.trust),
        link_state: request.link_state.or(defaults.link_state),
    }
}

fn duplicate(mac: &[u8; 6], holder: &str) -> Error {
    Error::Invalid(format!(
        "MAC {} is already that of {holder}; each VF of a host needs its own",
        mac_text(mac)
    ))
}

/// A locally administered address. The boot's name is in it, so that two hosts do not make the same.
fn made_up_mac(boot: &str, serial: u64, owner: &str) -> [u8; 6] {
    let digest = Sha256::digest(format!("{boot} {serial} {owner}").as_bytes());
    let mut mac = [0; 6];
    mac.copy_from_slice(&digest[..6]);
    mac[0] = mac[0] & 0xfc | 0x02;
    mac
}

fn check(request: &Request) -> Result<(), Error> {
    let invalid = |why: String| Err(Error::Invalid(why));
    let owner = &request.owner;
    if owner.trim().is_empty() || owner.len() > 256 || owner.chars().any(char::is_control) {
        return invalid(
            "A VF is asked for by an owner of 1 to 256 printable bytes, such as cli/test".into(),
        );
    }
    if let Some(mac) = request.mac
        && (mac[0] & 1 == 1 || mac == [0; 6])
    {
        return invalid(format!(
            "MAC {} is no unicast address; take one whose first byte is even, such as 02:00:00:00:00:01",
            mac_text(&mac)
        ));
    }
    if let Some(vlan) = request.vlan
        && (vlan.id > 4094 || vlan.qos > 7)
    {
        return invalid(format!(
            "VLAN {} with priority {} does not exist; take 1 to 4094 and 0 to 7",
            vlan.id, vlan.qos
        ));
    }
    if let Some(rate) = request.rate
        && rate.max > 0
        && rate.min > rate.max
    {
        return invalid(format!(
            "The smallest rate, {} Mbit/s, is above the largest, {} Mbit/s",
            rate.min, rate.max
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Kernel;
    use crate::kernel::fake::{FakeKernel, FakePf};
    use crate::manager::{Manager, Options};
    use crate::policy::Policy;

    /// A MAC that a teardown left on a VF is taken off it (R7), but not under a call that has just chosen that VF.
    #[test]
    fn a_vf_that_is_being_handed_out_keeps_its_mac() {
        let pf = "0000:01:00.0";
        let kernel = FakeKernel::builder().pf(FakePf::igb(pf, "eth0")).build();
        let dir = tempfile::tempdir().unwrap();
        let (manager, _) = Manager::open(Options {
            root: dir.path().into(),
            ..Options::new(dir.path(), kernel.clone())
        })
        .unwrap();
        let policy = Policy {
            name: "p".into(),
            num_vfs: Some(2),
            pool: Some("net".into()),
            ..Policy::default()
        };
        manager.set_policies(vec![policy]).unwrap();
        manager.apply(false, &|_| {}).unwrap();
        let vf = |index| VfId {
            pf: pf.parse().unwrap(),
            index,
        };
        let mac = [2, 0, 0, 0, 0, 7];
        let change = VfChange {
            mac: Some(mac),
            ..VfChange::default()
        };
        kernel.set_vf_outside(&vf(1).pf, 1, &change);
        let request = Request {
            owner: "a".into(),
            device: Some(VfChoice::Vf(vf(0))),
            mac: Some(mac),
            ..Request::default()
        };
        let chosen = manager.0.claim(&vf(1));
        let error = manager.allocate(&request).unwrap_err().to_string();
        assert!(error.contains("being handed out"), "{error}");
        let now = || kernel.vf(&vf(1).pf, 1).unwrap().settings.mac;
        assert_eq!(now(), Some(mac));
        drop(chosen);
        manager.allocate(&request).unwrap();
        assert_eq!(now(), Some([0; 6]));
    }
}
