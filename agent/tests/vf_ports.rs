//! Ports with a VF, without the control thread, over a kernel whose NICs fail where a test wants it.

#[path = "support/nics.rs"]
mod host;

use agent::nics::Nics;
use agent::nics::vf_ports::{Done, State, VfPorts, Wanted};
use flow::MacAddr;
use host::*;
use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// The control thread's part without the control thread: takes what ended until all is quiet.
struct Ports {
    ports: VfPorts,
    done: mpsc::Receiver<Done>,
}

impl Ports {
    fn of(nics: &Nics) -> Ports {
        let (out, done) = mpsc::channel();
        let out = std::sync::Mutex::new(out);
        let tell = move |ended| {
            let _ = out.lock().unwrap().send(ended);
        };
        Ports {
            ports: VfPorts::new(nics.clone(), Arc::new(tell)),
            done,
        }
    }

    fn want(&mut self, wanted: &[(&str, Wanted)]) {
        let wanted: BTreeMap<_, _> = wanted
            .iter()
            .map(|(id, wanted)| ((*id).to_owned(), wanted.clone()))
            .collect();
        self.ports.retry_all();
        self.ports.want(&wanted, Instant::now());
    }

    /// Goes on until `id` is as wanted.
    fn until(&mut self, id: &str, wanted: impl Fn(&State) -> bool) -> State {
        loop {
            let state = self.ports.state(id);
            if wanted(&state) {
                return state;
            }
            let done = self.done.recv_timeout(PATIENCE);
            self.ports.take(
                done.unwrap_or_else(|_| panic!("{id} stays {state:?}")),
                Instant::now(),
            );
        }
    }

    fn vf(&mut self, id: &str) -> String {
        match self.until(id, |state| *state != State::Pending) {
            State::Ready(given) => given.vf,
            other => panic!("{id}: {other:?}"),
        }
    }
}

fn wanted(mac: u8, vlan: u16) -> Wanted {
    Wanted {
        mac: MacAddr([2, 0, 0, 0, 0, mac]),
        vlan,
        pool: Some("tenants".into()),
        device: None,
        guest: String::new(),
    }
}

fn owners(nics: &Nics) -> Vec<String> {
    let all = nics.manager().unwrap().allocations().into_iter();
    all.map(|allocation| allocation.owner).collect()
}

fn until_owners(nics: &Nics, ports: &mut Ports, wanted: &[&str]) {
    let until = Instant::now() + PATIENCE;
    while owners(nics) != wanted {
        assert!(Instant::now() < until, "{:?}", owners(nics));
        if let Ok(done) = ports.done.recv_timeout(Duration::from_millis(20)) {
            ports.ports.take(done, Instant::now());
        }
    }
}

#[test]
fn a_port_keeps_its_vf_over_a_restart_and_a_deleted_one_gives_it_back() {
    let (dir, kernel) = (tempfile::tempdir().unwrap(), kernel());
    let file = vec![policy("tenants", 3)];
    let (nics, _) = begin(dir.path(), &kernel, file.clone());
    let mut ports = Ports::of(&nics);
    ports.want(&[("a", wanted(1, 42)), ("b", wanted(2, 42))]);
    let (a, b) = (ports.vf("a"), ports.vf("b"));
    assert_ne!(a, b);
    end(&nics, dir.path(), &kernel);

    // Port b was deleted while the agent was away.
    let (nics, had) = begin(dir.path(), &kernel, file);
    assert_eq!(had, ["port/a", "port/b"]);
    let mut ports = Ports::of(&nics);
    ports.want(&[("a", wanted(1, 42))]);
    ports.ports.find_leftovers(&had, Instant::now());
    assert_eq!(ports.vf("a"), a, "the same VF");
    until_owners(&nics, &mut ports, &["port/a"]);

    // Another VLAN is set on a clean VF.
    ports.want(&[("a", wanted(1, 43))]);
    let vlan = |state: &State| matches!(state, State::Ready(given) if given.vlan == 43);
    ports.until("a", vlan);
    ports.want(&[]);
    until_owners(&nics, &mut ports, &[]);
    nics.stop();
}

/// The second of a guest's VFs was to be on another PF than the first; when all are asked for again, that holds
/// for the first too.
#[test]
fn two_vfs_of_one_guest_stay_when_nics_have_moved() {
    let (dir, kernel) = (tempfile::tempdir().unwrap(), kernel());
    let (nics, _) = begin(dir.path(), &kernel, vec![policy("tenants", 2)]);
    let of = |mac| Wanted {
        guest: "vm/web-1".into(),
        ..wanted(mac, 0)
    };
    let mut ports = Ports::of(&nics);
    ports.want(&[("a", of(1))]);
    let a = ports.vf("a");
    ports.want(&[("a", of(1)), ("b", of(2))]);
    let b = ports.vf("b");
    ports.ports.look_again(Instant::now());
    for _ in 0..2 {
        let done = ports.done.recv_timeout(PATIENCE).unwrap();
        ports.ports.take(done, Instant::now());
    }
    assert_eq!((ports.vf("a"), ports.vf("b")), (a, b));
    nics.stop();
}

/// An operator forces fewer VFs: the port that has lost its VF must not go on saying that it is ready.
#[test]
fn a_port_whose_vf_an_operator_took_away_is_told() {
    let (dir, kernel) = (tempfile::tempdir().unwrap(), kernel());
    let nics = Nics::new(dir.path().join("nic-policies.json"));
    let told = start(&nics, dir.path(), &kernel, vec![policy("tenants", 2)]);
    told.recv_timeout(PATIENCE).unwrap();
    let mut ports = Ports::of(&nics);
    ports.want(&[("a", wanted(1, 0)), ("b", wanted(2, 0))]);
    ports.vf("a");
    ports.vf("b");
    while told.recv_timeout(Duration::from_secs(1)).is_ok() {}
    nics.set_file_policies(vec![policy("tenants", 1)]).unwrap();
    let manager = nics.manager().unwrap();
    let applied = manager.apply(true, &|_| {}).unwrap();
    assert_eq!(applied.done[0].lost.len(), 1, "{applied:?}");
    let left = told.recv_timeout(PATIENCE).unwrap();
    assert_eq!(left.len(), 1, "{left:?}");
    ports.ports.look_again(Instant::now());
    let lost = if left[0] == "port/a" { "b" } else { "a" };
    ports.until(lost, |state| matches!(state, State::Failed(_)));
    nics.stop();
}

#[test]
fn ports_wait_for_the_vfs_that_the_start_makes() {
    let (dir, kernel) = (tempfile::tempdir().unwrap(), kernel());
    let nics = Nics::new(dir.path().join("nic-policies.json"));
    // Wanted before the manager is even open.
    let mut ports = Ports::of(&nics);
    ports.want(&[("a", wanted(1, 0)), ("b", wanted(2, 0))]);
    let _told = start(&nics, dir.path(), &kernel, vec![policy("tenants", 2)]);
    assert_ne!(ports.vf("a"), ports.vf("b"), "neither has failed before");
    nics.stop();
}

#[test]
fn an_agent_that_ends_early_answers_those_who_wait() {
    let nics = Nics::new("nic-policies.json".into());
    let mut ports = Ports::of(&nics);
    ports.want(&[("a", wanted(1, 0))]);
    nics.stop();
    let failed = ports.until("a", |state| *state != State::Pending);
    assert_eq!(failed, State::Failed("The agent is stopping".into()));
}

#[test]
fn a_nic_that_comes_later_becomes_what_the_policies_want() {
    let (dir, kernel) = (tempfile::tempdir().unwrap(), kernel());
    kernel.set_present(&pf(), false);
    let (nics, _) = begin(dir.path(), &kernel, vec![policy("tenants", 2)]);
    let mut ports = Ports::of(&nics);
    ports.want(&[("a", wanted(1, 0))]);
    ports.until("a", |state| matches!(state, State::Failed(_)));

    let mut events = nics.events();
    kernel.set_present(&pf(), true);
    assert!(nics.look());
    while events.blocking_recv().unwrap().kind != "vfs-made" {}
    ports.want(&[("a", wanted(1, 0))]);
    ports.until("a", |state| matches!(state, State::Ready(_)));
    nics.stop();
}

#[test]
fn a_port_without_a_vf_says_why_and_gets_one_later() {
    let (dir, kernel) = (tempfile::tempdir().unwrap(), kernel());
    let (nics, _) = begin(dir.path(), &kernel, vec![policy("tenants", 1)]);
    let mut ports = Ports::of(&nics);
    ports.want(&[("a", wanted(1, 0))]);
    ports.vf("a");
    ports.want(&[("a", wanted(1, 0)), ("b", wanted(2, 0))]);
    let failed = ports.until("b", |state| matches!(state, State::Failed(_)));
    let State::Failed(reason) = failed else {
        panic!()
    };
    assert!(reason.contains("tenants"), "{reason}");
    assert!(ports.ports.next_retry().is_some());

    // The one that is in use is not taken away; when the guest is gone it is, and b gets it.
    kernel.hold(&pf(), 0, "QEMU (pid 4711, guest=web-1)", true);
    ports.want(&[("b", wanted(2, 0))]);
    ports.until("b", |state| matches!(state, State::Failed(_)));
    assert_eq!(owners(&nics), ["port/a"]);
    kernel.let_go(&pf(), 0);
    ports.want(&[("b", wanted(2, 0))]);
    until_owners(&nics, &mut ports, &[]);
    ports.want(&[("b", wanted(2, 0))]);
    until_owners(&nics, &mut ports, &["port/b"]);
    nics.stop();
}
