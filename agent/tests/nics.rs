//! The NICs as the agent shows and uses them: the real manager and the real API, over a kernel whose NICs fail
//! where a test wants it. What a real kernel does is proven in the emulated machine.

#[path = "support/nics.rs"]
mod host;

use agent::nics::Nics;
use agent::nics::service::NicApi;
use api::client::{self, Target};
use api::v1::{self, sriov_client::SriovClient, sriov_server::SriovServer};
use host::*;
use sriov_mgr::kernel::fake::{FakeKernel, Fault, Op};
use sriov_mgr::policy::Policy;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

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
        let policies = v1::NicPolicies {
            policies,
            ..Default::default()
        };
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

/// The agent has one thread for all that is asynchronous, and a bounded number for what blocks.
#[tokio::test]
async fn a_nic_that_does_not_answer_holds_up_nobody_else() {
    let mut lab = Lab::start(Vec::new()).await;
    let (kernel, (held, hold), (go, wait)) =
        (lab.kernel.clone(), mpsc::channel(), mpsc::channel::<()>());
    let stuck = std::thread::spawn(move || {
        kernel.change_pf(&pf(), |_| {
            held.send(()).unwrap();
            let _ = wait.recv_timeout(PATIENCE);
        });
    });
    hold.recv_timeout(PATIENCE).unwrap();
    let began = Instant::now();
    let mut calls = Vec::new();
    let mut client = lab.client.clone();
    calls.push(tokio::spawn(async move {
        let policies = vec![asked("tenants", 2)];
        let asked = v1::NicPolicies {
            policies,
            ..Default::default()
        };
        client.set_policies(asked).await.map(drop)
    }));
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut client = lab.client.clone();
    calls.push(tokio::spawn(async move {
        client.get_policies(v1::Empty {}).await.map(drop)
    }));
    // More than there are threads for what blocks (tokio: 512), over more than one connection.
    for _ in 0..4 {
        let socket = Target::Unix(lab.dir.path().join("agent.sock"));
        let client = client::nic_client(client::connect(&socket).await.unwrap());
        for _ in 0..180 {
            let mut client = client.clone();
            calls.push(tokio::spawn(async move {
                client.list_nics(v1::Empty {}).await.map(drop)
            }));
        }
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let others = tokio::task::spawn_blocking(|| ());
    let others = tokio::time::timeout(Duration::from_secs(10), others).await;
    assert!(others.is_ok(), "no thread is left for anything else");
    assert!(began.elapsed() < PATIENCE / 2, "{:?}", began.elapsed());
    go.send(()).unwrap();
    stuck.join().unwrap();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert!(!lab.plan().await.steps.is_empty(), "the policy is in force");
}
