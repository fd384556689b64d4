//! `ferrovia nic` and `ferrovia vf` under the agent's own API and manager, over a kernel that refuses as NICs
//! do: what bad input gets is a sentence that names device, limit or holder and says what to do.

use agent::nics::service::NicApi;
use agent::nics::{self, Nics, Start};
use api::v1::sriov_server::SriovServer;
use sriov_mgr::kernel::Vlan;
use sriov_mgr::kernel::fake::{FakeKernel, FakePf};
use sriov_mgr::{Options, Request};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use tempfile::TempDir;
use tokio_stream::wrappers::UnixListenerStream;

const PF: &str = "0000:01:00.0";
const PATIENCE: Duration = Duration::from_secs(30);

/// An agent's NICs behind its socket: eth0 and eth1 have 7 VFs at most, eth2 has no SR-IOV.
struct Lab {
    root: TempDir,
    kernel: Arc<FakeKernel>,
    nics: Nics,
}

/// What a command printed, and its exit code.
#[derive(Debug)]
struct Run {
    code: i32,
    out: String,
    err: String,
}

impl Lab {
    fn start() -> Lab {
        let root = tempfile::tempdir().unwrap();
        let kernel = FakeKernel::builder()
            .pf(FakePf::igb(PF, "eth0"))
            .pf(FakePf::igb("0000:02:00.0", "eth1"))
            .pf(FakePf::plain("0000:03:00.0", "eth2"))
            .build();
        let nics = Nics::new(root.path().join("nic-policies.json"));
        let mut options = Options::new(root.path().join("sriov"), kernel.clone());
        options.root = root.path().into();
        let (moved, told) = mpsc::channel();
        let start = Start {
            options,
            file: Vec::new(),
            watch: None,
            moved: Box::new(move |_| {
                let _ = moved.send(());
            }),
        };
        nics::start(&nics, start).unwrap();
        told.recv_timeout(PATIENCE).unwrap();
        let socket = root.path().join("run/ferrovia/agent.sock");
        std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
        let listener = agent::local_api::listen(&socket, None).unwrap();
        let server = tonic::transport::Server::builder()
            .add_service(SriovServer::new(NicApi::new(nics.clone())))
            .serve_with_incoming(UnixListenerStream::new(listener));
        tokio::spawn(async move { server.await.unwrap() });
        Lab { root, kernel, nics }
    }

    fn path(&self) -> &Path {
        self.root.path()
    }

    /// Runs `ferrovia` with these words.
    fn run(&self, words: &[&str]) -> Run {
        let done = Command::new(env!("CARGO_BIN_EXE_ferrovia"))
            .arg("--root")
            .arg(self.path())
            .args(words)
            .env_clear()
            .env("HOME", self.path())
            .output()
            .unwrap();
        Run {
            code: done.status.code().expect("an exit code"),
            out: String::from_utf8(done.stdout).unwrap(),
            err: String::from_utf8(done.stderr).unwrap(),
        }
    }

    #[track_caller]
    fn ok(&self, words: &[&str]) -> String {
        let run = self.run(words);
        assert_eq!(run.code, 0, "{words:?}: {run:?}");
        run.out
    }

    #[track_caller]
    fn refused(&self, words: &[&str], code: i32, said: &[&str]) {
        let run = self.run(words);
        assert_eq!(run.code, code, "{words:?}: {run:?}");
        assert!(run.err.starts_with("error: "), "{words:?}: {run:?}");
        for word in said {
            assert!(run.err.contains(word), "{word} in {words:?}: {}", run.err);
        }
    }

    /// Policies as a file, for `nic policies --set`.
    fn file(&self, policies: &serde_json::Value) -> String {
        let path = self.path().join("policies.json");
        std::fs::write(&path, policies.to_string()).unwrap();
        path.to_str().unwrap().to_owned()
    }

    #[track_caller]
    fn set(&self, policies: &serde_json::Value) {
        self.ok(&["nic", "policies", "--set", &self.file(policies)]);
    }
}

fn tenants(num_vfs: u32) -> serde_json::Value {
    serde_json::json!({
        "name": "tenants",
        "select": {"pf": ["eth0"]},
        "num_vfs": num_vfs,
        "pool": "tenants",
        "driver": "vfio"
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_that_do_not_fit_are_refused_whole() {
    let lab = Lab::start();
    let set = |policies: serde_json::Value, code, said: &[&str]| {
        let file = lab.file(&policies);
        lab.refused(&["nic", "policies", "--set", &file], code, said)
    };
    set(
        serde_json::json!([tenants(8)]),
        2,
        &["\"tenants\"", PF, "eth0", "7", "8"],
    );
    let mut other = tenants(2);
    other["name"] = "storage".into();
    set(
        serde_json::json!([tenants(4), other]),
        2,
        &[
            "\"tenants\"",
            "\"storage\"",
            "same priority",
            "another priority",
        ],
    );
    set(
        serde_json::json!([{"name": "a", "numvfs": 3}]),
        2,
        &["numvfs", "num_vfs"],
    );
    assert_eq!(lab.ok(&["nic", "policies", "-o", "json"]).trim(), "[]");
    lab.nics.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_without_a_nic_is_said_wherever_one_looks() {
    let lab = Lab::start();
    let mut plain = tenants(2);
    plain["select"] = serde_json::json!({"pf": ["eth2"]});
    lab.refused(
        &[
            "nic",
            "policies",
            "--set",
            &lab.file(&serde_json::json!([plain])),
        ],
        2,
        &[
            "\"tenants\"",
            "0000:03:00.0 (eth2)",
            "no SR-IOV",
            "take it out of select",
        ],
    );
    let mut absent = tenants(2);
    absent["select"] = serde_json::json!({"pf": ["eth9"]});
    let file = lab.file(&serde_json::json!([absent]));
    let said = "warning: Policy \"tenants\": it selects eth9, and this host has no NIC with SR-IOV of that name";
    for words in [
        &["nic", "policies", "--set", &file][..],
        &["nic", "policies"],
        &["nic", "apply"],
    ] {
        let run = lab.run(words);
        assert_eq!(run.code, 0, "{run:?}");
        assert!(run.err.contains(said), "{words:?}: {run:?}");
    }
    // What is printed as JSON can be set again.
    let printed: serde_json::Value =
        serde_json::from_str(&lab.ok(&["nic", "policies", "-o", "json"])).unwrap();
    lab.set(&printed);
    let plan = lab.ok(&["nic", "plan"]);
    assert!(
        plan.contains("Nothing is to be done") && plan.contains(said),
        "{plan}"
    );
    lab.nics.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vf_in_use_is_not_taken_away_without_force() {
    let lab = Lab::start();
    lab.set(&serde_json::json!([tenants(4)]));
    lab.ok(&["nic", "apply"]);
    lab.ok(&["vf", "allocate", "cli/testpmd", "--pool", "tenants"]);
    let pf = PF.parse().unwrap();
    lab.kernel.hold(&pf, 0, "testpmd (pid 4711)", true);
    let holder = ["testpmd (pid 4711)", "0000:01:00.0#0", "force"];
    lab.refused(&["vf", "release", "cli/testpmd"], 4, &holder);
    lab.refused(&["nic", "reset", PF], 4, &holder);
    lab.set(&serde_json::json!([tenants(2)]));
    let plan = lab.ok(&["nic", "plan"]);
    assert!(plan.contains("testpmd (pid 4711)"), "{plan}");
    lab.refused(&["nic", "apply"], 4, &holder);
    lab.kernel.let_go(&pf, 0);
    lab.ok(&["vf", "release", "cli/testpmd"]);
    lab.ok(&["nic", "apply"]);
    lab.nics.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_says_whose_a_vf_is_and_who_has_it() {
    let lab = Lab::start();
    lab.set(&serde_json::json!([tenants(4)]));
    lab.ok(&["nic", "apply"]);
    let owner = "port/3f2a9c1e-7d3b-4c51-9a6e-0b1c2d3e4f50";
    let request = Request {
        owner: owner.into(),
        vlan: Some(Vlan {
            id: 4042,
            ..Vlan::default()
        }),
        ..Request::default()
    };
    lab.nics.manager().unwrap().allocate(&request).unwrap();
    let pf = PF.parse().unwrap();
    lab.kernel
        .hold(&pf, 0, "QEMU (pid 4711, guest=web-1)", true);
    let list = lab.ok(&["vf", "list"]);
    assert!(list.contains("port/3f2a9c1e, VM web-1"), "{list}");
    assert!(
        list.lines().all(|line| line.chars().count() <= 100),
        "{list}"
    );
    let vf = lab.ok(&["vf", "show", "0000:01:00.0#0"]);
    for whole in [owner, "QEMU (pid 4711, guest=web-1)"] {
        assert!(vf.contains(whole), "{vf}");
    }
    lab.nics.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_nic_refuses_is_said_in_its_name() {
    let lab = Lab::start();
    let mut doubly = tenants(2);
    doubly["defaults"] = serde_json::json!({"vlan": 42, "protocol": "802.1ad"});
    lab.set(&serde_json::json!([doubly]));
    lab.ok(&["nic", "apply"]);
    lab.refused(
        &["vf", "allocate", "cli/a", "--pool", "tenants"],
        4,
        &["0000:01:00.0#", "802.1ad", "another NIC"],
    );
    let vfs: serde_json::Value =
        serde_json::from_str(&lab.ok(&["vf", "list", "-o", "json"])).unwrap();
    assert!(
        vfs.as_array().unwrap().iter().all(|vf| vf["owner"] == ""),
        "nothing is handed out then: {vfs}"
    );
    lab.nics.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_said_with_what_is() {
    let lab = Lab::start();
    lab.set(&serde_json::json!([tenants(1)]));
    lab.ok(&["nic", "apply"]);
    lab.ok(&["vf", "allocate", "cli/a", "--pool", "tenants"]);
    lab.refused(
        &["vf", "allocate", "cli/b", "--pool", "tenants"],
        7,
        &["\"tenants\"", "cli/a", "num_vfs"],
    );
    lab.refused(
        &["vf", "allocate", "cli/b", "--pool", "nowhere"],
        7,
        &["\"nowhere\"", "nic plan"],
    );
    lab.refused(&["vf", "release", "cli/b"], 3, &["\"cli/b\"", "vf list"]);
    lab.refused(&["nic", "adopt", "eth9"], 3, &["\"eth9\""]);
    lab.refused(
        &["vf", "allocate", "cli/b", "--vlan", "4095"],
        2,
        &["4095", "4094"],
    );
    lab.nics.stop();
}
