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

/// Has a domain `web` that runs, does not share its memory, and keeps what it is given in a file beside.
const KEEPING_VIRSH: &str = r#"#!/bin/sh
echo "$*" >> "$0.log"
case "$*" in
*" dominfo web") printf 'Id:             1\nName:           web\nState:          running\nPersistent:     yes\n' ;;
*" dumpxml web"*) echo "<domain>"; cat "$0.shared" "$0.vhostuser" "$0.hostdev" 2>/dev/null; echo "</domain>" ;;
*" attach-device web"*)
  xml=$(cat)
  case "$xml" in
  *"type='hostdev'"*) [ -e "$0.full" ] && { echo "error: no slot" >&2; exit 1; }; echo "$xml" > "$0.hostdev" ;;
  *) echo "$xml" > "$0.vhostuser" ;;
  esac ;;
*" detach-interface web hostdev "*"--live") rm "$0.hostdev" ;;
*" detach-interface web vhostuser "*"--live") rm "$0.vhostuser" ;;
*" detach-interface web "*"--config") ;;
*) echo "error: $*" >&2; exit 1 ;;
esac
"#;

fn with_virsh(lab: &Lab) {
    with(lab, VIRSH);
}

fn with(lab: &Lab, virsh: &str) {
    let path = lab.home().join("bin");
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("virsh"), virsh).unwrap();
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

/// A lab with network blue in VLAN 42, host h1 with an agent, and a libvirt that keeps what it is given.
async fn with_vfs() -> (Lab, tokio::task::JoinHandle<()>) {
    let lab = Lab::plain().await;
    with(&lab, KEEPING_VIRSH);
    lab.json(&["host", "create", "h1"]);
    let blue = ["--subnet", "10.0.0.0/24", "--vlan", "42"];
    let made = lab.json(&[&["network", "create", "blue"], &blue[..]].concat());
    assert_eq!(made["vlan"], json!(42));
    let agent = support::agent(&lab, "h1").await;
    (lab, agent)
}

const ATTACH: [&str; 8] = [
    "vm",
    "attach",
    "web",
    "--network",
    "blue",
    "--host",
    "h1",
    "--binding=sriov",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_vf_is_attached_with_mac_and_vlan_and_detached_again() {
    let (lab, agent) = with_vfs().await;
    let port = lab.json(&ATTACH);
    let given = std::fs::read_to_string(lab.home().join("bin/virsh.hostdev")).unwrap();
    let mac = port["mac"].as_str().unwrap();
    for part in [
        "managed='yes'",
        mac,
        "bus='0x3b' slot='0x02' function='0x1'",
        "<tag id='42'/>",
    ] {
        assert!(given.contains(part), "{part} in {given}");
    }
    assert!(!lab.home().join("bin/virsh.vhostuser").exists());
    let run = lab.run(&["vm", "detach", "web", "--all", "--host", "h1"]);
    agent.abort();
    assert_eq!((run.code, run.err.as_str()), (0, ""), "{run:?}");
    assert!(!lab.home().join("bin/virsh.hostdev").exists());
    assert_eq!(lab.json(&["port", "list"]), json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pair_needs_shared_memory_and_goes_as_a_pair() {
    let (lab, agent) = with_vfs().await;
    let pair = [&ATTACH[..], &["--standby"]].concat();
    lab.refused(&pair, 1, &["share its memory"]);
    let shared = "<memoryBacking><access mode='shared'/></memoryBacking>";
    std::fs::write(lab.home().join("bin/virsh.shared"), shared).unwrap();
    let port = lab.json(&pair);
    assert_eq!(
        (&port["binding"], &port["standby"]),
        (&json!("sriov"), &json!(true))
    );
    let read = |kind: &str| std::fs::read_to_string(lab.home().join("bin").join(kind)).unwrap();
    assert!(read("virsh.vhostuser").contains("<alias name='ua-web-blue'/>"));
    assert!(read("virsh.hostdev").contains("persistent='ua-web-blue'"));
    let run = lab.run(&["vm", "detach", "web", "--all", "--host", "h1"]);
    agent.abort();
    assert_eq!((run.code, run.err.as_str()), (0, ""), "{run:?}");
    let log = read("virsh.log");
    let at = |what: &str| log.find(what).unwrap_or_else(|| panic!("{what} in {log}"));
    assert!(at("detach-interface web hostdev") < at("detach-interface web vhostuser"));
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_pair_is_taken_away_again() {
    let (lab, agent) = with_vfs().await;
    let shared = "<memoryBacking><access mode='shared'/></memoryBacking>";
    std::fs::write(lab.home().join("bin/virsh.shared"), shared).unwrap();
    std::fs::write(lab.home().join("bin/virsh.full"), "").unwrap();
    let run = lab.run(&[&ATTACH[..], &["--standby"]].concat());
    agent.abort();
    assert_eq!(run.code, 1, "{run:?}");
    assert!(run.err.contains("no slot"), "{}", run.err);
    assert!(!lab.home().join("bin/virsh.vhostuser").exists());
    assert_eq!(lab.json(&["port", "list"]), json!([]));
}
