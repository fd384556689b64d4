//! The NICs as the agent shows and uses them: the real manager and the real API, over a kernel whose NICs fail
//! where a test wants it. What a real kernel does is proven in the emulated machine.

use agent::nics::service::NicApi;
use agent::nics::vf_ports::{Done, State, VfPorts, Wanted};
use agent::nics::{self, Nics, Start};
use api::client::{self, Target};
use api::v1::{self, sriov_client::SriovClient, sriov_server::SriovServer};
use flow::MacAddr;
use sriov_mgr::kernel::fake::{FakeKernel, FakePf, Fault, Op};
use sriov_mgr::policy::{Policy, Selector};
use sriov_mgr::{Device, Options};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

const PATIENCE: Duration = Duration::from_secs(30);
const PF: &str = "0000:01:00.0";

/// A PF with seven VFs at most, and another.
fn kernel() -> Arc<FakeKernel> {
    FakeKernel::builder()
        .pf(FakePf::igb(PF, "eth0"))
        .pf(FakePf::igb("0000:02:00.0", "eth1"))
        .build()
}

fn pf() -> Device {
    PF.parse().unwrap()
}

/// So many VFs of eth0, in the pool of that name.
fn policy(name: &str, num_vfs: u32) -> Policy {
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
fn begin(dir: &Path, kernel: &Arc<FakeKernel>, file: Vec<Policy>) -> (Nics, Vec<String>) {
    let nics = Nics::new(dir.join("nic-policies.json"));
    let owners = start(&nics, dir, kernel, file);
    (nics, owners.recv_timeout(PATIENCE).unwrap())
}

/// Starts them; what comes back are the owners of VFs each time when they may have moved.
fn start(
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
fn end(nics: &Nics, dir: &Path, kernel: &Arc<FakeKernel>) {
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

struct Lab {
    dir: TempDir,
    kernel: Arc<FakeKernel>,
    nics: Nics,
    client: SriovClient<Channel>,
    server: tokio::task::JoinHandle<()>,
}

impl Lab {
    async fn start(file: Vec<Policy>) -> Lab {
        let (dir, kernel) = (tempfile::tempdir().unwrap(), kernel());
        Lab::over(dir, kernel, file).await
    }

    async fn over(dir: TempDir, kernel: Arc<FakeKernel>, file: Vec<Policy>) -> Lab {
        let (nics, _) = begin(dir.path(), &kernel, file);
        let socket = dir.path().join("agent.sock");
        let listener = agent::local_api::listen(&socket, None).unwrap();
        let server = tonic::transport::Server::builder()
            .add_service(SriovServer::new(NicApi::new(nics.clone())))
            .serve_with_incoming(UnixListenerStream::new(listener));
        let server = tokio::spawn(async move { server.await.unwrap() });
        let channel = client::connect(&Target::Unix(socket)).await.unwrap();
        Lab {
            dir,
            kernel,
            nics,
            client: client::nic_client(channel),
            server,
        }
    }

    /// The same files and NICs under an agent that was started anew.
    async fn restart(self, file: Vec<Policy>) -> Lab {
        self.server.abort();
        end(&self.nics, self.dir.path(), &self.kernel);
        Lab::over(self.dir, self.kernel, file).await
    }

    async fn nic(&mut self) -> v1::ManagedNic {
        let nic = v1::NicRequest { nic: "eth0".into() };
        self.client.get_nic(nic).await.unwrap().into_inner()
    }

    async fn plan(&mut self) -> v1::NicPlan {
        self.client.plan(v1::Empty {}).await.unwrap().into_inner()
    }

    async fn apply(&mut self, force: bool) -> (Vec<v1::ApplyNicsProgress>, v1::ApplyNicsResult) {
        let request = v1::ApplyNicsRequest { force };
        let mut events = self.client.apply(request).await.unwrap().into_inner();
        let mut steps = Vec::new();
        while let Some(event) = events.message().await.unwrap() {
            match event.event.unwrap() {
                v1::apply_nics_event::Event::Progress(step) => steps.push(step),
                v1::apply_nics_event::Event::Result(result) => return (steps, result),
            }
        }
        panic!("no result after {steps:?}")
    }

    async fn set(&mut self, policies: Vec<v1::NicPolicy>) -> Result<v1::NicPolicies, Status> {
        let policies = v1::NicPolicies { policies };
        Ok(self.client.set_policies(policies).await?.into_inner())
    }
}

fn asked(name: &str, num_vfs: u32) -> v1::NicPolicy {
    v1::NicPolicy {
        name: name.into(),
        priority: 99,
        select: Some(v1::NicSelector {
            pf: vec!["eth0".into()],
            ..Default::default()
        }),
        num_vfs: Some(num_vfs),
        pool: name.into(),
        ..Default::default()
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T, Status>, code: Code, words: &[&str]) {
    let status = outcome.unwrap_err();
    assert_eq!(status.code(), code, "{}", status.message());
    for word in words {
        assert!(
            status.message().contains(word),
            "{word} in {}",
            status.message()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_start_does_what_disturbs_nobody_and_leaves_the_rest() {
    let mut lab = Lab::start(vec![policy("tenants", 4)]).await;
    let nic = lab.nic().await;
    assert_eq!((nic.num_vfs, nic.ownership.as_str()), (4, "ours"));
    assert_eq!(
        (&nic.policies[..], &nic.pools[..]),
        (&["tenants".to_owned()][..], &["tenants".to_owned()][..])
    );
    assert!(lab.plan().await.steps.is_empty());

    lab.kernel
        .hold(&pf(), 2, "QEMU (pid 4711, guest=web-1)", true);
    let mut lab = lab.restart(vec![policy("tenants", 2)]).await;
    assert_eq!(lab.nic().await.num_vfs, 4, "a VM has one of them");
    let plan = lab.plan().await;
    let hurt: Vec<_> = plan.steps.iter().flat_map(|step| &step.disturbs).collect();
    assert!(
        hurt.iter().any(|one| one.holder.contains("guest=web-1")),
        "{plan:#?}"
    );
    let (_, result) = lab.apply(false).await;
    assert!(
        result.done.is_empty() && result.failed.is_empty(),
        "{result:#?}"
    );
    assert!(result.refused[0].why.contains("guest=web-1"), "{result:#?}");
    lab.kernel.let_go(&pf(), 2);
    let (steps, result) = lab.apply(false).await;
    assert_eq!(result.done[0].num_vfs, 2);
    assert_eq!(steps.first().map(|step| step.step), Some(1));
    assert_eq!(steps.last().map(|step| step.step), Some(steps[0].of));
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_of_the_api_are_kept_beside_those_of_the_file() {
    let file = vec![policy("tenants", 4)];
    let mut lab = Lab::start(file.clone()).await;
    let clash = lab.set(vec![asked("tenants", 2)]).await;
    refused(clash, Code::AlreadyExists, &["\"tenants\"", "agent.toml"]);
    let mut many = asked("more", 8);
    many.priority = 5;
    refused(
        lab.set(vec![many]).await,
        Code::InvalidArgument,
        &["\"more\"", "7", PF],
    );
    let mut stronger = asked("more", 6);
    stronger.priority = 5;
    let both = lab.set(vec![stronger.clone()]).await.unwrap().policies;
    let names: Vec<_> = both
        .iter()
        .map(|p| (p.name.as_str(), p.from_file))
        .collect();
    assert_eq!(names, [("tenants", true), ("more", false)]);
    assert_eq!(
        lab.nic().await.num_vfs,
        4,
        "nothing is changed before it is applied"
    );

    let mut lab = lab.restart(file).await;
    let (nic, plan) = (lab.nic().await, lab.plan().await);
    assert_eq!(
        nic.num_vfs, 6,
        "the stronger one, which was kept: {nic:#?} {plan:#?}"
    );
    // What was read can be written back: the file's are passed over.
    let all = lab
        .client
        .get_policies(v1::Empty {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        lab.set(all.policies.clone()).await.unwrap().policies,
        all.policies
    );

    // A file that takes the kept one's name wins, and the operator is told.
    let mut lab = lab.restart(vec![policy("more", 3)]).await;
    let plan = lab.plan().await;
    assert!(
        plan.refused
            .iter()
            .any(|note| note.why.contains("\"more\"")),
        "{plan:#?}"
    );
    assert_eq!(lab.nic().await.num_vfs, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vf_is_handed_out_once_shown_and_taken_back() {
    let mut lab = Lab::start(vec![policy("tenants", 2)]).await;
    let mut events = lab.client.watch(v1::Empty {}).await.unwrap().into_inner();
    let request = |owner: &str| v1::AllocateVfRequest {
        owner: owner.into(),
        pool: "tenants".into(),
        mac: "02:00:00:00:00:07".into(),
        settings: Some(v1::VfDefaults {
            vlan: Some(42),
            ..Default::default()
        }),
        driver: "vfio".into(),
        ..Default::default()
    };
    let given = lab
        .client
        .allocate_vf(request("cli/a"))
        .await
        .unwrap()
        .into_inner();
    let again = lab
        .client
        .allocate_vf(request("cli/a"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (&given.vf, given.vlan, given.driver.as_str()),
        (&again.vf, 42, "vfio")
    );
    let name = v1::VfRequest {
        vf: given.address.clone(),
    };
    let vf = lab.client.get_vf(name).await.unwrap().into_inner();
    let settings = vf.settings.clone().unwrap();
    assert_eq!(
        (vf.owner.as_str(), vf.driver.as_str()),
        ("cli/a", "vfio-pci")
    );
    assert_eq!(
        (settings.mac.as_str(), settings.vlan),
        ("02:00:00:00:00:07", 42)
    );
    let twin = lab.client.allocate_vf(request("cli/b")).await;
    assert!(twin.is_err_and(|status| status.message().contains("02:00:00:00:00:07")));

    let agents = lab.client.allocate_vf(request("port/1")).await;
    refused(agents, Code::InvalidArgument, &["port/1", "agent's own"]);
    let mut none = request("cli/b");
    (none.pool, none.mac) = ("nowhere".into(), String::new());
    let none = lab.client.allocate_vf(none).await;
    assert!(none.is_err_and(|status| status.message().contains("nowhere")));

    let release = |owner: &str| v1::ReleaseVfRequest {
        owner: owner.into(),
        force: false,
    };
    refused(
        lab.client.release_vf(release("cli/b")).await,
        Code::NotFound,
        &["cli/b"],
    );
    // By its VF, as the list shows it.
    let released = lab
        .client
        .release_vf(release(&given.vf))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (released.owner.as_str(), &released.vf),
        ("cli/a", &given.vf)
    );
    let mut seen = Vec::new();
    while seen.last().map(String::as_str) != Some("freed") {
        let event = tokio::time::timeout(PATIENCE, events.message()).await;
        seen.push(event.unwrap().unwrap().unwrap().kind);
    }
    assert_eq!(seen, ["allocated", "freed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wedged_nic_is_named_and_the_others_go_on() {
    let mut lab = Lab::start(Vec::new()).await;
    lab.kernel.fail(Op::SetNumVfs, PF, 0, Fault::Block);
    let mut other = asked("other", 2);
    other.select.as_mut().unwrap().pf = vec!["eth1".into()];
    lab.set(vec![asked("tenants", 4), other]).await.unwrap();
    let (_, result) = lab.apply(false).await;
    assert!(
        result.failed.iter().any(|note| note.device == PF),
        "{result:#?}"
    );
    let nic = lab.nic().await;
    assert!(!nic.wedged.is_empty(), "{nic:#?}");
    assert_eq!(
        result
            .done
            .iter()
            .map(|done| done.num_vfs)
            .collect::<Vec<_>>(),
        [2]
    );
}

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
