//! The measurement itself, in the machine.
//!
//! In each round both sides make all VFs, list them and remove them; who begins changes from round to round.
//!
//! | | the kernel alone | Ferrovia |
//! |---|---|---|
//! | create | `sriov_numvfs` written, and waited until sysfs shows the VFs | [`Manager::apply`], with its journal and its check of what the kernel did |
//! | list | `ip -json -details link show`, and the driver of each VF from sysfs | [`Manager::vfs`], with who uses each |
//! | destroy | 0 written | [`Manager::apply`] |

use super::{Case, Times};
use sriov_mgr::helper::HelperCommand;
use sriov_mgr::kernel::real::RealKernel;
use sriov_mgr::policy::{Policy, Selector};
use sriov_mgr::{Device, Manager, Options};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long one change of the kernel may take.
const DEADLINE: Duration = Duration::from_secs(120);
/// VFs of the simulated NIC.
const MANY: u32 = 1024;

struct Sides {
    pf: Device,
    dir: PathBuf,
    link: String,
    count: u32,
    manager: Manager,
}

/// Milliseconds of create, list and destroy.
type Round = [f64; 3];

pub(crate) fn run(nic: &str, rounds: usize) -> Result<Vec<Case>, String> {
    let sides = Sides::of(nic)?;
    let (mut raw, mut ours) = (Vec::new(), Vec::new());
    // The first round warms up: helper processes, modules, caches.
    sides.raw()?;
    sides.ours()?;
    for round in 0..rounds {
        if round % 2 == 0 {
            raw.push(sides.raw()?);
            ours.push(sides.ours()?);
        } else {
            ours.push(sides.ours()?);
            raw.push(sides.raw()?);
        }
    }
    let column = |all: &[Round], at: usize| Times::of(all.iter().map(|round| round[at]).collect());
    let operations = ["create", "list", "destroy"].iter().enumerate();
    let cases = operations.map(|(at, operation)| Case {
        nic: nic.to_owned(),
        operation: (*operation).to_owned(),
        vfs: sides.count,
        raw: column(&raw, at),
        ours: column(&ours, at),
    });
    Ok(cases.collect())
}

fn text<E: std::fmt::Display>(error: E) -> String {
    error.to_string()
}

fn timed(what: impl FnOnce() -> Result<(), String>) -> Result<f64, String> {
    let began = Instant::now();
    what()?;
    Ok(began.elapsed().as_secs_f64() * 1e3)
}

impl Sides {
    fn of(nic: &str) -> Result<Sides, String> {
        if nic == "netdevsim" {
            fs::write("/sys/bus/netdevsim/new_device", "1 1").map_err(text)?;
            let most = "/sys/kernel/debug/netdevsim/netdevsim1/max_vfs";
            fs::write(most, MANY.to_string()).map_err(text)?;
        }
        let helper = HelperCommand {
            program: "/proc/self/exe".into(),
            args: vec!["helper".into()],
        };
        let kernel = Arc::new(RealKernel::new(helper, DEADLINE));
        let options = Options::new("/var/lib/ferrovia/bench", kernel);
        let (manager, _) = Manager::open(options).map_err(text)?;
        let pf = manager.pfs().map_err(text)?.into_iter().next();
        let state = pf.ok_or("The machine has no PF")?.state;
        let link = state.interface.ok_or("The PF has no interface")?;
        let pf = state.device;
        let dir = PathBuf::from(format!("/sys/bus/{}/devices/{}", pf.bus(), pf.name()));
        let up = Command::new("ip")
            .args(["link", "set", &link, "up"])
            .status();
        up.map_err(text)?;
        let count = if nic == "netdevsim" {
            MANY
        } else {
            state.total_vfs
        };
        Ok(Sides {
            pf,
            dir,
            link,
            count,
            manager,
        })
    }

    fn raw(&self) -> Result<Round, String> {
        let create = timed(|| {
            self.write(self.count)?;
            let last = self.dir.join(format!("virtfn{}", self.count - 1));
            while self.pf.pci().is_some() && !last.exists() {
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        })?;
        let list = timed(|| self.raw_list())?;
        let destroy = timed(|| self.write(0))?;
        Ok([create, list, destroy])
    }

    fn write(&self, count: u32) -> Result<(), String> {
        fs::write(self.dir.join("sriov_numvfs"), count.to_string()).map_err(text)
    }

    fn raw_list(&self) -> Result<(), String> {
        let shown = Command::new("ip")
            .args(["-json", "-details", "link", "show", "dev", &self.link])
            .output()
            .map_err(text)?;
        let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).map_err(text)?;
        // A list of more than 64 KiB is cut by `ip`; what it shows is what it costs.
        if !shown[0]["vfinfo_list"].is_array() {
            return Err("`ip` shows no VFs".into());
        }
        if self.pf.pci().is_some() {
            for index in 0..self.count {
                let function = self.dir.join(format!("virtfn{index}"));
                fs::read_link(&function).map_err(text)?;
                let _none = fs::read_link(function.join("driver"));
            }
        }
        Ok(())
    }

    fn ours(&self) -> Result<Round, String> {
        self.want(self.count)?;
        let create = timed(|| self.apply())?;
        let list = timed(|| {
            let vfs = self.manager.vfs().map_err(text)?;
            let enough = vfs.len() == self.count as usize;
            enough
                .then_some(())
                .ok_or_else(|| format!("{} VFs are listed", vfs.len()))
        })?;
        self.want(0)?;
        let destroy = timed(|| self.apply())?;
        Ok([create, list, destroy])
    }

    fn want(&self, count: u32) -> Result<(), String> {
        let policy = Policy {
            name: "bench".into(),
            select: Selector {
                address: vec![self.pf.clone()],
                ..Selector::default()
            },
            num_vfs: Some(count),
            ..Policy::default()
        };
        let set = self.manager.set_policies(vec![policy]);
        set.map_err(|problems| format!("{problems:?}"))
    }

    fn apply(&self) -> Result<(), String> {
        let applied = self.manager.apply(false, &|_| {}).map_err(text)?;
        if applied.complete() {
            return Ok(());
        }
        Err(format!("{:?} {:?}", applied.refused, applied.failed))
    }
}
