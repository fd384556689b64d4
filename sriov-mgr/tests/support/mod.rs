//! A host for the tests of the manager: the fake kernel, a folder for the journal, and short patience.

#![allow(dead_code, reason = "each test program uses its part")]

use sriov_mgr::kernel::fake::{FakeKernel, FakePf, Killed};
use sriov_mgr::kernel::{Kernel, PfState, VfSettings, VfState, Vlan};
use sriov_mgr::manager::{Applied, Error, Recovered};
use sriov_mgr::policy::{Policy, Selector, VfDriver};
use sriov_mgr::{
    Allocation, CrashPoints, Device, Manager, Options, Patience, Released, Request, VfId,
};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

/// The PF of most tests.
pub const PF: &str = "0000:01:00.0";

/// The other PF of [`Host::two_igbs`].
pub const OTHER: &str = "0000:02:00.0";

pub struct Host {
    pub kernel: Arc<FakeKernel>,
    dir: tempfile::TempDir,
}

impl Host {
    pub fn new(pfs: impl IntoIterator<Item = FakePf>) -> Host {
        let builder = pfs
            .into_iter()
            .fold(FakeKernel::builder(), |builder, pf| builder.pf(pf));
        Host {
            kernel: builder.build(),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// One igb with 7 VFs at most.
    pub fn igb() -> Host {
        Host::new([FakePf::igb(PF, "eth0")])
    }

    /// Two of them; the other is at [`OTHER`].
    pub fn two_igbs() -> Host {
        Host::new([FakePf::igb(PF, "eth0"), FakePf::igb(OTHER, "eth1")])
    }

    pub fn options(&self) -> Options {
        let patience = Patience {
            links: Duration::from_millis(100),
            driver: Duration::from_millis(10),
            holders: Duration::from_millis(5),
            busy: Duration::from_millis(30),
            settings: Duration::from_millis(5),
        };
        Options {
            root: self.dir.path().join("root"),
            patience,
            crash: CrashPoints::never(),
            ..Options::new(self.dir.path().join("journal"), self.kernel.clone())
        }
    }

    pub fn open(&self) -> Manager {
        self.reopen().0
    }

    pub fn reopen(&self) -> (Manager, Recovered) {
        Manager::open(self.options()).unwrap_or_else(|error| panic!("{}", chain(&error)))
    }

    pub fn try_open(&self) -> Result<Manager, Error> {
        Manager::open(self.options()).map(|(manager, _)| manager)
    }

    /// A manager that has made `count` VFs on every PF, all of pool "net".
    pub fn partitioned(&self, count: u32) -> Manager {
        let manager = self.open();
        set(&manager, [pool("net", "net", count)]);
        applied(&manager, false);
        manager
    }

    /// A manager that waits as long as a driver needs to come back.
    pub fn patient(&self) -> Manager {
        let mut options = self.options();
        options.patience.driver = Duration::from_secs(10);
        Manager::open(options).unwrap().0
    }

    pub fn journal(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("journal/journal")).unwrap()
    }

    /// A file of the host's file system, as second owners are looked for in.
    pub fn file(&self, path: &str, text: &str) {
        let path = self.dir.path().join("root").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub fn pf(&self, device: &Device) -> PfState {
        self.kernel.pf(device).unwrap()
    }

    pub fn vf(&self, vf: &VfId) -> VfState {
        self.kernel.vf(&vf.pf, vf.index).unwrap()
    }

    /// The settings of a VF that nobody ever had.
    pub fn clean(&self, vf: &VfId) -> VfSettings {
        let link = self.vf(vf).settings.link_state;
        VfSettings {
            mac: Some([0; 6]),
            spoofchk: Some(true),
            trust: Some(false),
            link_state: link.map(|_| sriov_mgr::kernel::VfLinkState::Auto),
            ..VfSettings::default()
        }
    }
}

pub fn device(text: &str) -> Device {
    text.parse().unwrap()
}

pub fn vf(index: u32) -> VfId {
    VfId {
        pf: device(PF),
        index,
    }
}

/// A policy for every PF: `count` VFs, handed out on vfio-pci.
pub fn pool(name: &str, pool: &str, count: u32) -> Policy {
    Policy {
        name: name.into(),
        priority: 50,
        num_vfs: Some(count),
        pool: Some(pool.into()),
        driver: Some(VfDriver::Vfio),
        ..Policy::default()
    }
}

pub fn select(pf: &str) -> Selector {
    Selector {
        pf: vec![pf.parse().unwrap()],
        ..Selector::default()
    }
}

pub fn set(manager: &Manager, policies: impl IntoIterator<Item = Policy>) {
    if let Err(problems) = manager.set_policies(policies.into_iter().collect()) {
        panic!("{problems:?}");
    }
}

pub fn apply(manager: &Manager, force: bool) -> Applied {
    manager.apply(force, &|_| {}).unwrap()
}

/// Applies, and wants it complete.
pub fn applied(manager: &Manager, force: bool) -> Applied {
    let applied = apply(manager, force);
    assert!(applied.complete(), "{applied:#?}");
    applied
}

pub fn request(owner: &str) -> Request {
    Request {
        owner: owner.into(),
        pool: Some("net".into()),
        ..Request::default()
    }
}

pub fn allocate(manager: &Manager, request: &Request) -> Allocation {
    manager
        .allocate(request)
        .unwrap_or_else(|error| panic!("{}", chain(&error)))
}

pub fn release(manager: &Manager, owner: &str) -> Released {
    manager
        .release(owner, false)
        .unwrap_or_else(|error| panic!("{}", chain(&error)))
}

pub fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}

/// Runs `work` until it ends or is killed; whether it was killed.
pub fn killed(work: impl FnOnce()) -> bool {
    static QUIET: std::sync::Once = std::sync::Once::new();
    QUIET.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !info.payload().is::<Killed>() {
                loud(info);
            }
        }));
    });
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(()) => false,
        Err(payload) if payload.is::<Killed>() => true,
        Err(payload) => std::panic::resume_unwind(payload),
    }
}

pub fn vlan(id: u16) -> Vlan {
    Vlan {
        id,
        ..Vlan::default()
    }
}

/// Where in the kernel's record of writes a write begins with `text`.
pub fn at(writes: &[String], text: &str) -> usize {
    let found = writes.iter().position(|write| write.starts_with(text));
    found.unwrap_or_else(|| panic!("no {text} in {writes:#?}"))
}
