//! The NICs of an agent over a kernel that fails where a test wants it.

#![allow(dead_code, reason = "each test program uses its part")]

use agent::nics::{self, Nics, Start};
use sriov_mgr::kernel::fake::{FakeKernel, FakePf};
use sriov_mgr::policy::{Policy, Selector};
use sriov_mgr::{Device, Options};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

pub const PATIENCE: Duration = Duration::from_secs(30);
pub const PF: &str = "0000:01:00.0";

/// A PF with seven VFs at most, and another.
pub fn kernel() -> Arc<FakeKernel> {
    FakeKernel::builder()
        .pf(FakePf::igb(PF, "eth0"))
        .pf(FakePf::igb("0000:02:00.0", "eth1"))
        .build()
}

pub fn pf() -> Device {
    PF.parse().unwrap()
}

/// So many VFs of eth0, in the pool of that name.
pub fn policy(name: &str, num_vfs: u32) -> Policy {
    Policy {
        name: name.into(),
        select: Selector {
            pf: vec!["eth0".parse().unwrap()],
            ..Selector::default()
        },
        num_vfs: Some(num_vfs),
        pool: Some(name.into()),
        ..Policy::default()
    }
}

/// The NICs of an agent that has just started, when it has done what it does then.
pub fn begin(dir: &Path, kernel: &Arc<FakeKernel>, file: Vec<Policy>) -> (Nics, Vec<String>) {
    let nics = Nics::new(dir.join("nic-policies.json"));
    let owners = start(&nics, dir, kernel, file);
    (nics, owners.recv_timeout(PATIENCE).unwrap())
}

/// Starts them; what comes back are the owners of VFs each time when they may have moved.
pub fn start(
    nics: &Nics,
    dir: &Path,
    kernel: &Arc<FakeKernel>,
    file: Vec<Policy>,
) -> mpsc::Receiver<Vec<String>> {
    let (moved, told) = mpsc::channel();
    let mut options = Options::new(dir.join("sriov"), kernel.clone());
    // Whatever else is on this machine is no part of the test.
    options.root = dir.into();
    let start = Start {
        options,
        file,
        watch: None,
        moved: Box::new(move |owners| {
            let _ = moved.send(owners);
        }),
    };
    nics::start(nics, start).unwrap();
    told
}

/// Ends them: the folder is free again when this returns.
pub fn end(nics: &Nics, dir: &Path, kernel: &Arc<FakeKernel>) {
    nics.stop();
    let until = Instant::now() + PATIENCE;
    loop {
        let mut options = Options::new(dir.join("sriov"), kernel.clone());
        options.root = dir.into();
        match sriov_mgr::Manager::open(options) {
            Ok(_) => return,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
