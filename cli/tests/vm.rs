//! `ferrovia vm`, with a `virsh` that answers as libvirt's does and writes down what it was asked.

mod support;

use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;
use support::Lab;

/// Knows one domain, `web`, which is shut off and has no interface.
const VIRSH: &str = r#"#!/bin/sh
echo "$*" >> "$0.log"
case "$*" in
*" dominfo web") printf 'Id:             -\nName:           web\nState:          shut off\nPersistent:     yes\n' ;;
*" dumpxml web"*) echo "<domain><memoryBacking><access mode='shared'/></memoryBacking></domain>" ;;
*" attach-device web"*) echo "error: Failed to attach device from /dev/stdin" >&2; echo "error: no room" >&2; exit 1 ;;
*) echo "error: failed to get domain 'other'" >&2; exit 1 ;;
esac
"#;

fn with_virsh(lab: &Lab) {
    let path = lab.home().join("bin");
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("virsh"), VIRSH).unwrap();
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(path.join("virsh"), mode).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn detaching_leaves_the_ports_of_another_hosts_domain_of_that_name() {
    let lab = Lab::plain().await;
    with_virsh(&lab);
    lab.json(&["network", "create", "blue", "--subnet", "10.0.0.0/24"]);
    for host in ["h1", "h2"] {
        lab.json(&["host", "create", host]);
        let port = format!("web-{host}");
        lab.json(&[
            "port",
            "create",
            &port,
            "--network",
            "blue",
            "--host",
            host,
            "--owner",
            "vm/web",
        ]);
    }
    let run = lab.run(&["vm", "detach", "web", "--network", "blue", "--host", "h1"]);
    assert_eq!((run.code, run.err.as_str()), (0, ""), "{run:?}");
    let left = lab.json(&["port", "list"]);
    assert_eq!(left.as_array().unwrap().len(), 1, "{left}");
    assert_eq!(left[0]["name"], json!("web-h2"));
    lab.refused(
        &["vm", "detach", "web", "--all", "--host", "h1"],
        3,
        &["\"web\"", "h1", "ferrovia vm list"],
    );
    // Without a host, the agent is asked, and none is here.
    lab.refused(&["vm", "detach", "web", "--all"], 5, &["--host"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn attaching_to_an_unknown_domain_makes_nothing() {
    let lab = Lab::plain().await;
    with_virsh(&lab);
    lab.json(&["host", "create", "h1"]);
    lab.json(&["network", "create", "blue"]);
    let other = ["vm", "attach", "other", "--network", "blue", "--host", "h1"];
    lab.refused(&other, 3, &["\"other\"", "virsh list --all"]);
    let dash = [
        "vm",
        "attach",
        "--network",
        "blue",
        "--host",
        "h1",
        "--",
        "-x",
    ];
    lab.refused(&dash, 2, &["-x"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attachment_that_fails_takes_its_port_with_it() {
    let lab = Lab::plain().await;
    with_virsh(&lab);
    lab.json(&["host", "create", "h1"]);
    lab.json(&["network", "create", "blue", "--subnet", "10.0.0.0/24"]);
    let agent = support::agent(&lab, "h1").await;
    let run = lab.run(&["vm", "attach", "web", "--network", "blue", "--host", "h1"]);
    agent.abort();
    assert_eq!(run.code, 1, "{run:?}");
    assert!(run.err.contains("no room"), "{}", run.err);
    assert_eq!(run.err.trim_end().lines().count(), 1, "{}", run.err);
    assert_eq!(lab.json(&["port", "list"]), json!([]));
    let asked = std::fs::read_to_string(lab.home().join("bin/virsh.log")).unwrap();
    assert!(
        asked.contains("attach-device web /dev/stdin --config"),
        "{asked}"
    );
    assert!(!asked.contains("--live"), "it is shut off: {asked}");
}
