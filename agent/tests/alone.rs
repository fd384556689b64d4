//! The real program, alone with its file: ports, signals, restarts, mistakes.

mod support;

use api::v1;
use nix::sys::signal::Signal;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;
use support::{BLUE, HEAD, Host, is_ready, is_socket, port, status_of};

fn two_ports() -> String {
    format!(
        "{HEAD}{BLUE}{}{}",
        port("a", 10, ""),
        port("b", 11, "mode = \"client\"\nqueue_pairs = 2")
    )
}

#[tokio::test]
async fn ports_of_the_file_become_ready_and_are_shown() {
    let host = Host::start(&two_ports()).await;
    host.until("two ready ports", |ports| {
        is_ready(ports, "a") && is_ready(ports, "b")
    })
    .await;

    let a = status_of(&host.ports().await, "a").unwrap();
    assert_eq!(a.socket, host.socket("a").display().to_string());
    assert!(!a.guest_connected);
    assert!(is_socket(&host.socket("a")));
    let mode = std::fs::metadata(host.socket("a"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o660);
    let directory = std::fs::metadata(host.socket("a").parent().unwrap()).unwrap();
    assert_eq!(
        directory.permissions().mode() & 0o007,
        0,
        "closed to others"
    );
    assert!(
        !host.socket("b").exists(),
        "the guest's QEMU makes this one"
    );

    let info = host.status().await;
    assert_eq!(
        (info.host.as_str(), info.controller_mode.as_str()),
        ("h1", "none")
    );
    assert_eq!(info.workers.len(), 1);
    let software = info
        .homes
        .iter()
        .find(|home| home.home == "software")
        .unwrap();
    assert!(software.available);
    for home in info.homes.iter().filter(|home| !home.available) {
        assert!(!home.reason.is_empty(), "{home:?}");
    }
    let counters = host
        .client()
        .await
        .get_counters(v1::Empty {})
        .await
        .unwrap()
        .into_inner();
    assert!(counters.flow_capacity > 0);
}

#[tokio::test]
async fn a_trace_says_what_would_happen() {
    let host = Host::start(&two_ports()).await;
    host.until("ready", |ports| {
        is_ready(ports, "a") && is_ready(ports, "b")
    })
    .await;
    let mut client = host.client().await;
    let mut trace = async |src: &str, dst: &str| {
        let request = v1::TraceRequest {
            port: "a".into(),
            src: src.into(),
            dst: dst.into(),
            protocol: "tcp".into(),
            ..Default::default()
        };
        client.trace(request).await.map(tonic::Response::into_inner)
    };
    let to_b = trace("", "10.0.0.11").await.unwrap();
    assert!(
        to_b.verdict.starts_with("flow:") && to_b.verdict.contains("output="),
        "{to_b:?}"
    );
    assert!(!to_b.steps.is_empty());
    let spoofed = trace("10.0.0.99", "10.0.0.11").await.unwrap();
    assert!(spoofed.verdict.contains("spoofed-ip"), "{spoofed:?}");
    let status = trace("", "nonsense").await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    let request = v1::TraceRequest {
        port: "zzz".into(),
        ..Default::default()
    };
    let status = host.client().await.trace(request).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::NotFound);
    assert_eq!(
        host.client()
            .await
            .list_flows(v1::ListFlowsRequest::default())
            .await
            .unwrap()
            .into_inner()
            .total,
        0
    );
}

#[tokio::test]
async fn a_changed_file_is_taken_and_a_wrong_one_changes_nothing() {
    let host = Host::start(&two_ports()).await;
    host.until("ready", |ports| is_ready(ports, "a")).await;
    let number = |ports: &[v1::LocalPort], name: &str| {
        ports
            .iter()
            .find(|p| p.port.as_ref().unwrap().name == name)
            .unwrap()
            .number
    };
    let a_before = number(&host.ports().await, "a");

    host.configure("host = \"h1\"\n[[port]\n");
    host.signal(Signal::SIGHUP);
    tokio::time::timeout(support::PATIENCE, async {
        while !host.log().contains("agent.toml:2:") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the mistake is in the log with its line");
    assert_eq!(host.ports().await.len(), 2);

    // b goes, c comes, and a gets another address: it keeps its number and its socket.
    let made = |name: &str| {
        std::fs::metadata(host.socket(name))
            .unwrap()
            .modified()
            .unwrap()
    };
    let socket_before = made("a");
    let a = port("a", 10, "").replace("10.0.0.10", "10.0.0.77");
    host.configure(&format!("{HEAD}{BLUE}{a}{}", port("c", 12, "")));
    host.signal(Signal::SIGHUP);
    host.until("a and c", |ports| {
        is_ready(ports, "a") && is_ready(ports, "c") && status_of(ports, "b").is_none()
    })
    .await;
    let ports = host.ports().await;
    assert_eq!(number(&ports, "a"), a_before);
    assert_eq!(
        made("a"),
        socket_before,
        "another address needs no other backend"
    );
    assert!(number(&ports, "c") > 2, "the number of b is not used again");
    let shown = ports
        .iter()
        .find(|p| p.number == a_before)
        .unwrap()
        .port
        .clone()
        .unwrap();
    assert_eq!(shown.addresses[0], "10.0.0.77");

    // Another MTU needs another backend.
    let shorter = BLUE.replace("mtu = 1400", "mtu = 1300");
    host.configure(&format!("{HEAD}{shorter}{a}"));
    host.signal(Signal::SIGHUP);
    host.until("only a", |ports| ports.len() == 1 && is_ready(ports, "a"))
        .await;
    assert!(!host.socket("c").exists());
    assert_ne!(made("a"), socket_before);
    assert_eq!(
        number(&host.ports().await, "a"),
        a_before,
        "the number stays"
    );
}

#[tokio::test]
async fn killed_and_started_again_everything_is_back() {
    let mut host = Host::start(&two_ports()).await;
    host.until("ready", |ports| is_ready(ports, "a")).await;
    host.end(Signal::SIGKILL);
    assert!(is_socket(&host.socket("a")), "nobody could clean up");
    host.run().await;
    host.until("ready again", |ports| {
        is_ready(ports, "a") && is_ready(ports, "b")
    })
    .await;
    assert!(std::os::unix::net::UnixStream::connect(host.socket("a")).is_ok());
}

#[tokio::test]
async fn told_to_end_it_leaves_no_sockets() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut host = Host::start(&two_ports()).await;
        host.until("ready", |ports| is_ready(ports, "a")).await;
        let status = host.end(signal);
        assert!(status.success(), "{signal}: {status}\n{}", host.log());
        assert!(!host.socket("a").exists());
        assert!(!host.root.path().join("run/ferrovia/agent.sock").exists());
    }
}

#[tokio::test]
async fn a_second_agent_is_refused_and_disturbs_nothing() {
    let host = Host::start(&two_ports()).await;
    host.until("ready", |ports| is_ready(ports, "a")).await;
    let output = host.command("run").output().unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains(&format!("process {}", host.pid())), "{text}");
    assert!(is_ready(&host.ports().await, "a"));
}

#[test]
fn a_wrong_file_is_refused_with_all_its_places() {
    let host = Host::new("host = \"h1\"\n[underlay]\ninterfaze = \"x\"\n[[port]]\nname = 7\n");
    for subcommand in ["check", "run"] {
        let output = host.command(subcommand).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8(output.stderr).unwrap();
        for wanted in [
            "agent.toml:3:1: ",
            "did you mean \"interface\"?",
            "agent.toml:5:8: ",
        ] {
            assert!(text.contains(wanted), "{wanted} in {text}");
        }
    }
    assert!(!host.root.path().join("run").exists(), "nothing was begun");
}

#[test]
fn a_check_takes_its_options_anywhere_and_a_closed_pipe() {
    let host = Host::new(&two_ports());
    let program = env!("CARGO_BIN_EXE_ferrovia-agent");
    let run = |words: &str| {
        let line = format!("{program} {words}");
        let output = Command::new("bash")
            .args(["-o", "pipefail", "-c", &line])
            .env("ROOT", host.root.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), text)
    };
    let fine = (Some(0), String::new());
    assert_eq!(run("--root $ROOT --log-format json check"), fine);
    assert_eq!(run("check --root $ROOT | true"), fine);
}

#[test]
fn what_this_host_has_not_is_one_clear_sentence() {
    let cases = [
        (
            "[underlay]\ninterface = \"fvnone0\"\n",
            "There is no interface \"fvnone0\"",
        ),
        (
            "[sockets]\nowner = \"fv-nobody\"\n",
            "There is no account \"fv-nobody\"",
        ),
        (
            "[api]\ngroup = \"fv-nobody\"\n",
            "There is no group \"fv-nobody\"",
        ),
    ];
    for (config, wanted) in cases {
        let host = Host::new(&format!("{HEAD}{config}"));
        for subcommand in ["run", "check"] {
            let output = host.command(subcommand).output().unwrap();
            let text = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(1), "{text}");
            assert!(text.contains(wanted), "{wanted} in {text}");
        }
    }
    let required = HEAD
        .replace("\"never\"", "\"require\"")
        .replace("= 64", "= 1048576");
    let output = Host::new(&required).command("run").output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && text.contains("hugepages"),
        "{text}"
    );
}

#[tokio::test]
async fn one_port_that_fails_leaves_the_others_and_is_tried_again() {
    let host = Host::new(&two_ports());
    std::fs::create_dir_all(host.socket("a").parent().unwrap()).unwrap();
    std::fs::write(host.socket("a"), "somebody's file").unwrap();
    let mut host = host;
    host.run().await;
    host.until("b ready, a failed", |ports| {
        is_ready(ports, "b")
            && status_of(ports, "a")
                .is_some_and(|s| s.state() == v1::PortState::Failed && s.reason.contains("a.sock"))
    })
    .await;
    assert_eq!(std::fs::read(host.socket("a")).unwrap(), b"somebody's file");
    std::fs::remove_file(host.socket("a")).unwrap();
    host.until("a ready", |ports| is_ready(ports, "a")).await;
}

#[tokio::test]
async fn a_hundred_ports_are_ready_soon_and_an_idle_agent_costs_little() {
    let mut config = format!("{HEAD}{BLUE}");
    for number in 10..110 {
        config.push_str(&port(&format!("p{number}"), number, ""));
    }
    let host = Host::start(&config).await;
    host.until("100 ports ready", |ports| {
        ports.len() == 100
            && ports.iter().all(|port| {
                let status = port.port.as_ref().and_then(|port| port.status.as_ref());
                status.is_some_and(|status| status.state() == v1::PortState::Ready)
            })
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let share = host.cpu_share(Duration::from_secs(5)).await;
    assert!(
        share < 0.03,
        "an idle agent uses {:.1} % of a core",
        share * 100.0
    );
}
