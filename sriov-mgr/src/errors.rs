//! What PFs say of their own errors: PCI errors (AER) and health reporters (devlink), compared with the last look.
//! Nobody is told of old errors, only of new ones and of a reporter that is not well.

use crate::device::Device;
use crate::health::Event;
use crate::inventory::AerCounts;
use crate::kernel::real::devlink::Reporter;
use crate::kernel::{KernelError, PfHealth};
use crate::manager::shared::{Shared, lock};

impl Shared {
    /// Asks every PF, and tells what is new. One that does not answer is passed over: that is told elsewhere.
    pub(crate) fn look_at_errors(&self, events: &mut Vec<Event>) -> Result<(), KernelError> {
        for pf in self.kernel.pfs()? {
            // Its health is behind the same locks as what hangs.
            if self.kernel.wedged(&pf).is_some() {
                continue;
            }
            let Ok(now) = self.kernel.health(&pf) else {
                continue;
            };
            let before = lock(&self.errors).insert(pf.clone(), now.clone());
            let new = now.since(before.as_ref(), &pf);
            if !new.is_empty() {
                let what = new.join("; ");
                let event = Event::Health { pf, what };
                self.tell(&event);
                events.push(event);
            }
        }
        Ok(())
    }
}

impl PfHealth {
    /// What is new since `before`, in words.
    fn since(&self, before: Option<&PfHealth>, pf: &Device) -> Vec<String> {
        let counted = before.and_then(|before| self.aer?.since(&before.aer?));
        let mut new: Vec<String> = counted.into_iter().collect();
        for (at, reporter) in self.reporters.iter().enumerate() {
            // Each port may have one of the same name.
            let same = |other: &&Reporter| other.name == reporter.name;
            let nth = self.reporters[..at].iter().filter(same).count();
            let then = before.and_then(|before| before.reporters.iter().filter(same).nth(nth));
            new.extend(reporter.since(then, pf));
        }
        new
    }
}

impl AerCounts {
    /// A count that has become smaller is that of a device which was found anew.
    fn since(&self, before: &AerCounts) -> Option<String> {
        let new: Vec<String> = [
            (self.correctable, before.correctable, "corrected"),
            (self.nonfatal, before.nonfatal, "not corrected"),
            (self.fatal, before.fatal, "fatal"),
        ]
        .iter()
        .filter(|(now, then, _)| now > then)
        .map(|(now, then, what)| format!("{} {what}", now - then))
        .collect();
        (!new.is_empty()).then(|| {
            format!(
                "new PCI errors: {} (so far {} corrected, {} not corrected, {} fatal); the kernel's log says of what kind, \
                 look at the card's seat, its slot and its cooling",
                new.join(", "),
                self.correctable,
                self.nonfatal,
                self.fatal
            )
        })
    }
}

impl Reporter {
    fn since(&self, before: Option<&Reporter>, pf: &Device) -> Option<String> {
        let was_healthy = before.is_none_or(|before| before.healthy);
        let more = before.is_some_and(|before| self.errors > before.errors);
        let state = match (self.healthy, was_healthy) {
            (false, true) => "not well",
            (false, false) if more => "still not well",
            (true, false) => "well again",
            (true, true) if more => "well again after an error",
            _ => return None,
        };
        Some(format!(
            "its health reporter {} is {state} (errors so far: {}, recoveries: {}); `devlink health show {}/{}` says more",
            self.name,
            self.errors,
            self.recoveries,
            pf.bus(),
            pf.name()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(correctable: u64, nonfatal: u64, fatal: u64) -> PfHealth {
        PfHealth {
            aer: Some(AerCounts {
                correctable,
                nonfatal,
                fatal,
            }),
            reporters: Vec::new(),
        }
    }

    fn reported(reporters: &[(&str, bool, u64)]) -> PfHealth {
        let one = |(name, healthy, errors): &(&str, bool, u64)| Reporter {
            name: (*name).to_owned(),
            healthy: *healthy,
            errors: *errors,
            recoveries: *errors,
        };
        PfHealth {
            aer: None,
            reporters: reporters.iter().map(one).collect(),
        }
    }

    fn new(before: Option<&PfHealth>, now: &PfHealth) -> String {
        now.since(before, &"0000:3b:00.0".parse().unwrap())
            .join("; ")
    }

    #[test]
    fn only_new_pci_errors_are_told() {
        let before = counted(5, 1, 0);
        assert_eq!(new(None, &before), "");
        assert_eq!(new(Some(&before), &before), "");
        let more = new(Some(&before), &counted(7, 1, 1));
        assert!(
            more.starts_with("new PCI errors: 2 corrected, 1 fatal (so far 7 corrected, 1 not corrected, 1 fatal)"),
            "{more}"
        );
        // The card was pulled and came back.
        assert_eq!(new(Some(&before), &counted(0, 0, 0)), "");
        assert_eq!(new(Some(&PfHealth::default()), &before), "");
    }

    #[test]
    fn a_reporter_is_told_when_it_falls_ill_and_when_it_is_well_again() {
        let well = reported(&[("fw", true, 0), ("tx", true, 3), ("tx", true, 0)]);
        assert_eq!(new(None, &well), "");
        let ill = reported(&[("fw", false, 1), ("tx", true, 3), ("tx", true, 1)]);
        let said = new(Some(&well), &ill);
        assert_eq!(
            said,
            "its health reporter fw is not well (errors so far: 1, recoveries: 1); `devlink health show \
             pci/0000:3b:00.0` says more; its health reporter tx is well again after an error (errors so far: 1, \
             recoveries: 1); `devlink health show pci/0000:3b:00.0` says more"
        );
        assert_eq!(new(Some(&ill), &ill), "");
        assert!(
            new(None, &ill).contains("fw is not well"),
            "at the first look too"
        );
        assert!(new(Some(&ill), &well).contains("fw is well again"));
    }
}
