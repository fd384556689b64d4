//! One operation of the manager, killed by SIGKILL after its first journal record, then after its second, and so on
//! until it gets through; after each death, what the next start makes of it is compared with the kernel's own word.
//!
//! The operation runs in a process of its own (`ferrovia-lab-vfs once`) with the real kernel, the real helper
//! processes and the real journal, as in the agent; `FERROVIA_CRASH_AT` says after how many records it dies. Only
//! the agent around the manager is left out, because its start takes longer than everything else here.

use super::truth::{self, Truth};
use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde::Serialize;
use sriov_mgr::helper::HelperCommand;
use sriov_mgr::kernel::real::RealKernel;
use sriov_mgr::kernel::{EswitchMode, Vlan};
use sriov_mgr::policy::{Policy, Selector, VfDriver};
use sriov_mgr::{Allocation, CrashPoints, Device, Manager, Options, Phase, Request};
use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// The verb of the program that is the kernel's helper process.
pub const HELPER: &str = "helper";
/// The verb of the program that does one operation.
pub const ONCE: &str = "once";
/// How long one change of the kernel may take, in software emulation.
const DEADLINE: Duration = Duration::from_secs(120);
/// VLAN of every VF that is handed out here.
const VLAN: u16 = 42;
/// More records than any operation writes.
const MOST: u32 = 60;

/// What is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Operation {
    /// A PF without VFs gets three.
    Partition,
    /// A PF with two VFs, one of them handed out, gets three.
    Recount,
    /// A PF with VFs, one of them handed out, is put back to how it was.
    Reset,
    /// A VF is handed out.
    Allocate,
    /// A VF is taken back.
    Release,
    /// A PF with three VFs, one of them handed out, goes from legacy to switchdev.
    Switchdev,
    /// And back.
    Legacy,
}

impl Operation {
    /// VFs and eswitch mode before and after, and who has a VF before.
    fn course(self) -> Course {
        use EswitchMode::{Legacy, Switchdev};
        let course = |from, to, modes, owners| Course {
            from,
            to,
            modes,
            owners,
        };
        match self {
            Operation::Partition => course(0, 3, None, &[]),
            Operation::Recount => course(2, 3, None, &["cli/a"]),
            Operation::Reset => course(2, 0, None, &["cli/a"]),
            Operation::Allocate => course(2, 2, None, &["cli/a"]),
            Operation::Release => course(2, 2, None, &["cli/a", "cli/b"]),
            Operation::Switchdev => course(3, 3, Some([Legacy, Switchdev]), &["cli/a"]),
            Operation::Legacy => course(3, 3, Some([Switchdev, Legacy]), &["cli/a"]),
        }
    }
}

struct Course {
    from: u32,
    to: u32,
    modes: Option<[EswitchMode; 2]>,
    owners: &'static [&'static str],
}

/// One death, and what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Death {
    /// After how many records.
    pub records: u32,
    /// What the next start did about it.
    pub recovered: Vec<String>,
    /// VFs there were then.
    pub vfs: usize,
    /// Who had one.
    pub owners: Vec<String>,
}

/// The manager, with its journal, on one PF.
pub struct Bench {
    dir: PathBuf,
    pf: Device,
}

impl Bench {
    /// With the journal in `dir`.
    pub fn new(dir: &Path, pf: Device) -> Bench {
        let dir = dir.to_owned();
        Bench { dir, pf }
    }

    fn open(&self, crash: CrashPoints) -> Result<(Manager, Vec<String>, Vec<String>)> {
        let helper = HelperCommand {
            program: "/proc/self/exe".into(),
            args: vec![HELPER.into()],
        };
        let kernel = Arc::new(RealKernel::new(helper, DEADLINE));
        let mut options = Options::new(&self.dir, kernel);
        options.crash = crash;
        let (manager, recovered) = Manager::open(options)?;
        Ok((manager, recovered.done, recovered.open))
    }

    fn policy(&self, count: u32, mode: Option<EswitchMode>) -> Policy {
        Policy {
            name: "sweep".into(),
            select: Selector {
                address: vec![self.pf.clone()],
                ..Selector::default()
            },
            num_vfs: Some(count),
            eswitch: mode,
            pool: Some("sweep".into()),
            ..Policy::default()
        }
    }

    fn request(&self, owner: &str) -> Request {
        Request {
            owner: owner.into(),
            pool: Some("sweep".into()),
            vlan: Some(Vlan {
                id: VLAN,
                ..Vlan::default()
            }),
            trust: Some(true),
            driver: self.pf.pci().map(|_| VfDriver::Vfio),
            ..Request::default()
        }
    }

    fn set(&self, manager: &Manager, count: u32, mode: Option<EswitchMode>) -> Result<()> {
        let set = manager.set_policies(vec![self.policy(count, mode)]);
        set.map_err(|problems| anyhow::anyhow!("The policy was refused: {problems:?}"))
    }

    /// The operation, once. `FERROVIA_CRASH_AT` may end the process in it.
    ///
    /// # Errors
    /// When it is refused or fails.
    pub fn once(&self, operation: Operation) -> Result<()> {
        let (manager, _, open) = self.open(CrashPoints::from_env())?;
        ensure!(open.is_empty(), "Not finished at the start: {open:?}");
        self.carry_out(&manager, operation)
    }

    fn carry_out(&self, manager: &Manager, operation: Operation) -> Result<()> {
        let course = operation.course();
        self.set(manager, course.to, course.modes.map(|[_, to]| to))?;
        match operation {
            Operation::Allocate => drop(manager.allocate(&self.request("cli/new"))?),
            Operation::Release => drop(manager.release("cli/b", false)?),
            Operation::Reset if manager.pfs()?.iter().all(|pf| pf.state.num_vfs == 0) => {}
            Operation::Reset => drop(manager.reset(&self.pf, true)?),
            _ => {
                let applied = manager.apply(true, &|_| {})?;
                ensure!(
                    applied.complete(),
                    "It could not be applied: {:?} {:?}",
                    applied.refused,
                    applied.failed
                );
            }
        }
        Ok(())
    }

    /// How it is before the operation.
    fn prepare(&self, operation: Operation) -> Result<()> {
        let course = operation.course();
        let (manager, _, open) = self.open(CrashPoints::never())?;
        ensure!(open.is_empty(), "Not finished at the start: {open:?}");
        for allocation in manager.allocations() {
            manager.release(&allocation.owner, true)?;
        }
        self.set(&manager, course.from, course.modes.map(|[from, _]| from))?;
        let applied = manager.apply(true, &|_| {})?;
        ensure!(applied.complete(), "It could not be prepared: {applied:?}");
        for owner in course.owners {
            manager.allocate(&self.request(owner))?;
        }
        Ok(())
    }

    /// Dies after each record; `tell` hears of each death. Leaves the PF as it was found.
    ///
    /// # Errors
    /// At the first thing that is not right after a death.
    pub fn sweep(&self, operation: Operation, tell: &dyn Fn(&Death)) -> Result<u32> {
        for records in 1..=MOST {
            self.prepare(operation)?;
            if !self.killed(operation, records)? {
                let (manager, _, _) = self.open(CrashPoints::never())?;
                self.put_back(&manager)?;
                return Ok(records - 1);
            }
            let death = self
                .check(operation, records)
                .with_context(|| format!("{operation:?}, killed after {records} records"))?;
            tell(&death);
        }
        bail!("{operation:?} was still killed after {MOST} records")
    }

    /// Whether a process that does it was killed after so many records.
    fn killed(&self, operation: Operation, records: u32) -> Result<bool> {
        let name = operation.to_possible_value();
        let ended = Command::new("/proc/self/exe")
            .arg(ONCE)
            .arg(&self.dir)
            .arg(self.pf.to_string())
            .arg(name.as_ref().map_or("", |name| name.get_name()))
            .env("FERROVIA_CRASH_AT", records.to_string())
            .output()?;
        match (ended.status.signal(), ended.status.success()) {
            (Some(libc::SIGKILL), _) => Ok(true),
            (None, true) => Ok(false),
            _ => bail!(
                "{operation:?} ended with {}: {}",
                ended.status,
                String::from_utf8_lossy(&ended.stderr).trim()
            ),
        }
    }

    /// What there is after the next start.
    fn check(&self, operation: Operation, records: u32) -> Result<Death> {
        let course = operation.course();
        let (manager, recovered, open) = self.open(CrashPoints::never())?;
        ensure!(open.is_empty(), "Not finished after the start: {open:?}");
        let truth = truth::read(&self.pf)?;
        let allocations = manager.allocations();
        self.compare(&truth, &allocations)?;
        let counts = [course.from as usize, course.to as usize];
        ensure!(
            counts.contains(&truth.vfs.len()),
            "There are {} VFs, which is neither the old nor the new number",
            truth.vfs.len()
        );
        if let Some(modes) = course.modes {
            let words = modes.map(|mode| format!("{mode:?}").to_lowercase());
            ensure!(
                words.contains(&truth.eswitch),
                "The eswitch is \"{}\"",
                truth.eswitch
            );
            let expected = match truth.eswitch.as_str() {
                "switchdev" => truth.vfs.len(),
                _ => 0,
            };
            ensure!(
                truth.representors == expected,
                "There are {} representors of {} VFs in {} mode",
                truth.representors,
                truth.vfs.len(),
                truth.eswitch
            );
        }
        let owners: Vec<String> = allocations.iter().map(|a| a.owner.clone()).collect();
        for owner in course.owners {
            let may_be_gone = operation == Operation::Reset
                || operation == Operation::Release && *owner == "cli/b";
            ensure!(
                may_be_gone || owners.iter().any(|has| has == owner),
                "{owner} has lost its VF: {owners:?}"
            );
        }
        self.nothing_leaked(&manager, operation)?;
        Ok(Death {
            records,
            recovered,
            vfs: truth.vfs.len(),
            owners,
        })
    }

    /// Every VF that is handed out is as its owner was told, and every other is clean.
    fn compare(&self, truth: &Truth, allocations: &[Allocation]) -> Result<()> {
        ensure!(truth.autoprobe, "sriov_drivers_autoprobe is left off");
        let mut taken = BTreeSet::new();
        for allocation in allocations {
            let index = allocation.vf.index as usize;
            ensure!(
                taken.insert(index),
                "VF {index} is handed out twice: {allocations:?}"
            );
            ensure!(
                allocation.phase == Phase::InUse,
                "{} is still {}",
                allocation.vf,
                allocation.phase
            );
            let vf = truth.vfs.get(index);
            let vf = vf.with_context(|| format!("{} is not there", allocation.vf))?;
            let driver = match allocation.driver {
                Some(VfDriver::Vfio) => "vfio-pci",
                _ => "",
            };
            let mac = mac_text(&allocation.settings.mac);
            let right = vf.mac == mac
                && vf.vlan == u64::from(VLAN)
                && vf.trust
                && vf.driver == driver
                && vf.driver_override == driver;
            ensure!(right, "{allocation:?} is {vf:?} in the kernel");
        }
        let macs: BTreeSet<String> = allocations
            .iter()
            .map(|allocation| mac_text(&allocation.settings.mac))
            .collect();
        for (index, vf) in truth.vfs.iter().enumerate() {
            let clean = vf.vlan == 0
                && !vf.trust
                && vf.driver.is_empty()
                && vf.driver_override.is_empty()
                && !macs.contains(&vf.mac);
            ensure!(
                clean || taken.contains(&index),
                "VF {index} is nobody's and not clean: {vf:?}"
            );
        }
        Ok(())
    }

    /// The operation can be done now, and every VF that nobody has can be handed out, once.
    fn nothing_leaked(&self, manager: &Manager, operation: Operation) -> Result<()> {
        self.carry_out(manager, operation)?;
        let truth = truth::read(&self.pf)?;
        ensure!(
            truth.vfs.len() == operation.course().to as usize,
            "The operation was repeated, and there are {} VFs",
            truth.vfs.len()
        );
        self.compare(&truth, &manager.allocations())?;
        for number in manager.allocations().len()..truth.vfs.len() {
            let request = Request {
                driver: None,
                ..self.request(&format!("cli/rest-{number}"))
            };
            let given = manager.allocate(&request);
            given.with_context(|| format!("A VF leaked: {:?}", manager.allocations()))?;
        }
        self.compare(&truth::read(&self.pf)?, &manager.allocations())?;
        if !truth.vfs.is_empty() {
            let more = manager.allocate(&self.request("cli/more"));
            ensure!(more.is_err(), "One VF more than there are: {more:?}");
        }
        Ok(())
    }

    fn put_back(&self, manager: &Manager) -> Result<()> {
        for allocation in manager.allocations() {
            manager.release(&allocation.owner, true)?;
        }
        if manager.pfs()?.iter().any(|pf| pf.state.num_vfs > 0) {
            manager.reset(&self.pf, true)?;
        }
        Ok(())
    }
}

fn mac_text(mac: &[u8; 6]) -> String {
    let bytes: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(":")
}
