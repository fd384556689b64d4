//! VFs of relays: asked for by address under the relay's name, refused when somebody has them, given back when
//! nobody wants the relay any more. The real manager, over a kernel of the tests.

use agent::nics::vf_ports::{Done, State, VfPorts, Wanted};
use agent::nics::{self, Nics, Start};
use flow::MacAddr;
use sriov_mgr::kernel::fake::{FakeKernel, FakePf};
use sriov_mgr::policy::{Policy, Selector};
use sriov_mgr::{Manager, Options, PciAddress, Request};
use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);

/// Two VFs of one PF.
struct Lab {
    manager: Manager,
    ports: VfPorts,
    done: mpsc::Receiver<Done>,
    vfs: Vec<PciAddress>,
    nics: Nics,
    _dir: TempDir,
}

impl Lab {
    fn new() -> Lab {
        let dir = tempfile::tempdir().unwrap();
        let kernel = FakeKernel::builder()
            .pf(FakePf::igb("0000:01:00.0", "eth0"))
            .build();
        let nics = Nics::new(dir.path().join("nic-policies.json"));
        let mut options = Options::new(dir.path().join("sriov"), kernel);
        options.root = dir.path().into();
        let policy = Policy {
            name: "tenants".into(),
            select: Selector {
                pf: vec!["eth0".parse().unwrap()],
                ..Selector::default()
            },
            num_vfs: Some(2),
            pool: Some("tenants".into()),
            ..Policy::default()
        };
        let (moved, opened) = mpsc::channel();
        let start = Start {
            options,
            file: vec![policy],
            watch: None,
            moved: Box::new(move |_| {
                let _ = moved.send(());
            }),
        };
        nics::start(&nics, start).unwrap();
        opened.recv_timeout(PATIENCE).unwrap();
        let manager = nics.manager().unwrap();
        let vfs = manager.vfs().unwrap().into_iter();
        let vfs: Vec<_> = vfs.filter_map(|vf| vf.state.address).collect();
        assert_eq!(vfs.len(), 2);
        let (ended, done) = mpsc::channel();
        let ports = VfPorts::new(nics.clone(), Arc::new(move |one| drop(ended.send(one))));
        Lab {
            manager,
            ports,
            done,
            vfs,
            nics,
            _dir: dir,
        }
    }

    fn want(&mut self, wanted: &[(&str, Option<PciAddress>)]) {
        let one = |(index, (id, device)): (usize, &(&str, Option<PciAddress>))| {
            let wanted = Wanted {
                mac: MacAddr([2, 0, 0, 0, 0, index as u8 + 1]),
                vlan: 42,
                pool: None,
                device: *device,
                guest: String::new(),
            };
            ((*id).to_owned(), wanted)
        };
        let wanted: BTreeMap<_, _> = wanted.iter().enumerate().map(one).collect();
        self.ports.want(&wanted, Instant::now());
    }

    /// Takes what ends until `ready`.
    fn until(&mut self, what: &str, ready: impl Fn(&Lab) -> bool) {
        while !ready(self) {
            let done = self.done.recv_timeout(PATIENCE);
            let done = done.unwrap_or_else(|_| panic!("waited for {what}"));
            self.ports.take(done, Instant::now());
        }
    }

    fn owners(&self) -> Vec<String> {
        let all = self.manager.allocations().into_iter();
        let mut owners: Vec<String> = all.map(|one| one.owner).collect();
        owners.sort();
        owners
    }
}

#[test]
fn a_relay_has_its_vf_and_no_other_and_gives_it_back() {
    let mut lab = Lab::new();
    let second = lab.vfs[1];
    lab.want(&[("xvio/vm-1", Some(second))]);
    lab.until("the VF", |lab| {
        matches!(lab.ports.state("xvio/vm-1"), State::Ready(_))
    });
    let State::Ready(given) = lab.ports.state("xvio/vm-1") else {
        panic!("it was ready")
    };
    assert_eq!((given.vf, given.vlan), (second.to_string(), 42));
    assert_eq!(lab.owners(), ["xvio/vm-1"]);
    // Another relay wants the same.
    lab.want(&[("xvio/vm-1", Some(second)), ("xvio/vm-2", Some(second))]);
    lab.until("the refusal", |lab| {
        matches!(lab.ports.state("xvio/vm-2"), State::Failed(_))
    });
    let State::Failed(reason) = lab.ports.state("xvio/vm-2") else {
        panic!("it was refused")
    };
    assert!(reason.contains("in use by xvio/vm-1"), "{reason}");
    // The other VF, and a port beside.
    let first = lab.vfs[0];
    lab.want(&[("xvio/vm-1", Some(second)), ("xvio/vm-2", Some(first))]);
    lab.ports.retry_all();
    lab.ports.go_on(Instant::now());
    lab.until("the other VF", |lab| {
        matches!(lab.ports.state("xvio/vm-2"), State::Ready(_))
    });
    lab.want(&[]);
    lab.until("both to be free", |lab| lab.owners().is_empty());
    lab.nics.stop();
}

#[test]
fn vfs_of_relays_that_are_gone_are_found_and_given_back() {
    let mut lab = Lab::new();
    for (owner, vf) in [("xvio/old", 0), ("cli/mine", 1)] {
        let request = Request {
            owner: owner.into(),
            device: Some(sriov_mgr::VfChoice::Address(lab.vfs[vf])),
            ..Request::default()
        };
        lab.manager.allocate(&request).unwrap();
    }
    let owners = lab.owners();
    lab.ports.find_leftovers(&owners, Instant::now());
    lab.until("the relay's to be free", |lab| lab.owners() == ["cli/mine"]);
    lab.nics.stop();
}
