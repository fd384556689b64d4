//! Whole files, good and bad.

use super::*;
use crate::desired::SocketMode;
use proptest::prelude::*;

const GOOD: &str = r#"
host = "h1"

[underlay]
interface = "eth1"
address = "192.0.2.1/24"
gateway = "192.0.2.254"
mtu = 9000

[dataplane]
cores = [1]
hugepages = "never"

[sockets]
owner = "libvirt-qemu"
mode = "0600"

[[network]]
name = "blue"
vni = 100
dns = ["10.0.0.2"]
subnets = [{ cidr = "10.0.0.0/24" }, { cidr = "fd00::/64", gateway = "fd00::ff", slaac = true }]
routes = [{ destination = "172.16.0.0/12", next_hop = "10.0.0.9" }]

[[port]]
name = "web-1"
network = "blue"
mac = "52:54:00:00:00:01"
addresses = ["10.0.0.10", "fd00::10"]
queue_pairs = 2
mode = "client"

[[peer]]
network = "blue"
mac = "52:54:00:00:00:02"
addresses = ["10.0.0.11"]
vtep = "192.0.2.2"
"#;

fn problems(text: &str) -> Vec<String> {
    let problems = parse(text, Path::new("agent.toml")).unwrap_err();
    problems.to_string().lines().map(str::to_owned).collect()
}

#[test]
fn a_whole_file_is_understood() {
    let config = parse(GOOD, Path::new("agent.toml")).unwrap();
    assert_eq!(config.host, "h1");
    let underlay = config.underlay.unwrap();
    assert_eq!(underlay.uplink.interface(), Some("eth1"));
    assert_eq!(underlay.mtu, Some(9000));
    assert_eq!(config.dataplane.cores, Some(vec![1]));
    assert_eq!(config.sockets.mode, 0o600);
    let blue = &config.alone.networks["blue"];
    assert_eq!(blue.vni, 100);
    assert_eq!(blue.mtu, None);
    assert_eq!(blue.subnets[0].gateway.to_string(), "10.0.0.1");
    assert_eq!(blue.subnets[1].gateway.to_string(), "fd00::ff");
    assert_eq!(blue.routes[0].next_hop.to_string(), "10.0.0.9");
    let web = &config.alone.ports["web-1"];
    assert_eq!(
        (web.queue_pairs, web.mode),
        (2, crate::desired::SocketMode::Client)
    );
    assert_eq!(config.alone.peers.len(), 1);
}

#[test]
fn a_host_name_is_enough() {
    let config = parse("host = \"h1\"", Path::new("x")).unwrap();
    assert!(config.underlay.is_none() && config.controller.is_none());
    assert_eq!(config.dataplane.workers, 1);
    assert_eq!(config.sockets.mode, 0o660);
}

#[test]
fn a_device_string_names_its_interface() {
    let device = Uplink::Device("net_af_packet0,iface=eth1,qpairs=1".into());
    assert_eq!(device.interface(), Some("eth1"));
    assert_eq!(Uplink::Device("0000:3b:00.0".into()).interface(), None);
}

#[test]
fn every_problem_is_reported_at_once_with_its_place() {
    let text = r#"host = "H1"
[underlay]
interface = "eth1"
adress = "192.0.2.1/24"
mtu = "big"
[[network]]
name = "blue"
vni = 16777216
subnets = [{ cidr = "10.0.0.1/24" }]
[[port]]
name = "a"
network = "bleu"
mac = "52:54:00:00:00:0"
"#;
    assert_eq!(
        problems(text),
        [
            "agent.toml:1:8: A host's name is 1 to 63 of a-z, 0-9 and -, and starts with a letter",
            "agent.toml:4:1: \"adress\" is not known in [underlay]; did you mean \"address\"?",
            "agent.toml:5:7: \"mtu\" of [underlay] must be a whole number, not a string",
            "agent.toml:8:7: \"vni\" of [[network]] is 16777216, which is not within 1 to 16777215",
            "agent.toml:9:21: 10.0.0.1/24 has host bits set; the prefix is 10.0.0.0/24",
            "agent.toml:12:11: There is no network \"bleu\"; did you mean \"blue\"?",
            "agent.toml:13:7: \"52:54:00:00:00:0\" is not a MAC address; write six hexadecimal bytes, such as 52:54:00:12:34:56",
        ]
    );
}

#[test]
fn malformed_toml_is_refused_with_its_line() {
    let found = problems("host = \"h1\"\n[underlay\ninterface = \"x\"\n");
    assert!(found[0].starts_with("agent.toml:2:"), "{found:?}");
    let twice = problems("host = \"h1\"\nhost = \"h2\"\n");
    assert!(
        twice[0].starts_with("agent.toml:2:1: Duplicate key"),
        "{twice:?}"
    );
}

/// Each line of `GOOD` that is replaced, what by, and the words the problem must have.
#[test]
fn what_does_not_fit_together_is_refused() {
    let cases = [
        (
            "gateway = \"192.0.2.254\"",
            "gateway = \"198.51.100.1\"",
            "outside of 192.0.2.0/24",
        ),
        ("interface = \"eth1\"", "mtuu = 1", "did you mean \"mtu\"?"),
        ("interface = \"eth1\"", "", "needs interface"),
        (
            "interface = \"eth1\"\naddress = \"192.0.2.1/24\"",
            "device = \"0000:3b:00.0\"",
            "has none of its own",
        ),
        ("cores = [1]", "cores = [1, 1]", "listed twice"),
        ("cores = [1]", "cores = [1]\nworkers = 2", "one for each"),
        (
            "hugepages = \"never\"",
            "hugepages = \"yes\"",
            "auto, never or require",
        ),
        ("mode = \"0600\"", "mode = \"999\"", "octal"),
        ("vni = 100", "", "\"vni\" of [[network]] is missing"),
        ("vni = 100", "vni = 100\nmtu = 9000", "VXLAN leaves 8950"),
        ("vni = 100", "vni = 100\nmtu = 600", "at least 1280"),
        (
            "{ cidr = \"10.0.0.0/24\" }",
            "{ cidr = \"10.0.0.0/24\", slaac = true }",
            "SLAAC needs an IPv6 /64",
        ),
        (
            "{ cidr = \"10.0.0.0/24\" }",
            "{ cidr = \"10.0.0.0/24\" }, { cidr = \"10.0.0.0/8\" }",
            "overlaps",
        ),
        (
            "next_hop = \"10.0.0.9\"",
            "next_hop = \"fd00::9\"",
            "not of the family",
        ),
        ("\"10.0.0.10\"", "\"10.0.1.10\"", "in no subnet"),
        ("\"10.0.0.10\"", "\"10.0.0.1\"", "is the gateway"),
        (
            "addresses = [\"10.0.0.11\"]",
            "addresses = [\"10.0.0.10\"]",
            "already an address of port \"web-1\"",
        ),
        (
            "mac = \"52:54:00:00:00:02\"",
            "mac = \"52:54:00:00:00:01\"",
            "already the MAC of",
        ),
        (
            "mac = \"52:54:00:00:00:01\"",
            "mac = \"01:00:5e:00:00:01\"",
            "group address",
        ),
        ("mode = \"client\"", "mode = \"both\"", "mode is \"server\""),
        ("mode = \"client\"", "socket = \"x.sock\"", "absolute path"),
        ("queue_pairs = 2", "queue_pairs = 65", "within 1 to 64"),
        ("queue_pairs = 2", "queue_size = 100", "power of two"),
        (
            "vtep = \"192.0.2.2\"",
            "vtep = \"192.0.2.1\"",
            "own address",
        ),
        (
            "vtep = \"192.0.2.2\"",
            "vtep = \"2001:db8::1\"",
            "not of the family",
        ),
        ("vtep = \"192.0.2.2\"", "", "add vtep"),
        (
            "[sockets]",
            "[controller]\nurl = \"https://c:6640\"\n[sockets]",
            "come from the controller",
        ),
        (
            "[sockets]",
            "[controller]\nurl = \"http://c:6640\"\n[sockets]",
            "not encrypted",
        ),
        (
            "[sockets]",
            "[controller]\n[sockets]",
            "\"url\" of [controller] is missing",
        ),
        (
            "[[peer]]",
            "[[port]]\nname = \"web-1\"\nnetwork = \"blue\"\nmac = \"02:00:00:00:00:01\"\n[[peer]]",
            "already a port",
        ),
    ];
    for (from, to, wanted) in cases {
        assert!(GOOD.contains(from), "{from}");
        let found = problems(&GOOD.replacen(from, to, 1)).join("\n");
        assert!(found.contains(wanted), "{to:?} gave {found}");
    }
}

#[test]
fn plain_urls_are_for_loopback_or_by_will() {
    for good in [
        "https://c:1",
        "http://127.0.0.1:6640",
        "http://[::1]:6640",
        "http://localhost:1",
    ] {
        check_url(good, false).unwrap();
    }
    check_url("http://192.0.2.9:6640", true).unwrap();
    for bad in ["http://192.0.2.9:6640", "c:6640", "", "ftp://c", "https://"] {
        assert!(check_url(bad, false).is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,300}") {
        let _ = parse(&text, Path::new("x"));
    }

    /// A good file with one piece replaced by anything: never a panic, and problems have places
    /// that exist.
    #[test]
    fn no_damage_panics(at in 0..GOOD.len(), len in 0..20usize, with in "[ -~\n]{0,12}") {
        let end = (at + len).min(GOOD.len());
        let text = format!("{}{with}{}", &GOOD[..at], &GOOD[end..]);
        if let Err(problems) = parse(&text, Path::new("x")) {
            prop_assert!(!problems.list.is_empty());
            for problem in problems.list {
                prop_assert!(problem.line >= 1 && problem.line <= text.lines().count() + 1);
            }
        }
    }
}

const POLICIES: &str = r#"
host = "h1"
[nic]
sriov_pool = "tenants"
deadline_s = 30
vfio_force = ["unsafe-interrupts"]
[[nic.policy]]
name = "tenants"
select = { vendor = 0x8086, pf = ["eth0#0-3"], root_port = "0000:3a:00.0" }
num_vfs = 4
pool = "tenants"
driver = "vfio"
defaults = { vlan = 42, protocol = "802.1ad", max_rate = 100, trust = false }
"#;

#[test]
fn policies_are_read_as_they_are_written() {
    let nic = parse(POLICIES, Path::new("agent.toml")).unwrap().nic;
    assert_eq!(nic.deadline.as_secs(), 30);
    assert_eq!(nic.vfio_force, [sriov_mgr::vfio::Force::UnsafeInterrupts]);
    let policy = &nic.policies[0];
    assert_eq!((policy.priority, policy.num_vfs), (99, Some(4)));
    assert_eq!(policy.select.vendor, Some(0x8086));
    assert_eq!(policy.select.pf[0].to_string(), "eth0#0-3");
    assert_eq!(policy.defaults.vlan, Some(42));
    assert_eq!(policy.defaults.rate.unwrap().max, 100);
}

#[test]
fn what_is_wrong_with_policies_has_its_line() {
    let text = POLICIES
        .replace("num_vfs = 4", "num_vfs = 4\nexternal = true")
        .replace("sriov_pool = \"tenants\"", "sriov_pool = \"nobody\"")
        .replace("unsafe-interrupts", "anything")
        + "[[nic.policy]]\nname = \"b\"\nselect = { pf = [\"eth0#5-1\"] }\neswitch = \"both\"\nvfs = 3\n";
    let said = parse(&text, Path::new("agent.toml"))
        .unwrap_err()
        .to_string();
    for part in [
        "agent.toml:4:14: No policy fills the pool \"nobody\"",
        "agent.toml:6:15: \"anything\" is not a danger that can be forced; write",
        "Policy \"tenants\": it sets num_vfs",
        "agent.toml:17:18: \"eth0#5-1\" is not a PF",
        "agent.toml:18:11: \"both\" is not known for eswitch; write legacy or switchdev",
        "agent.toml:19:1: \"vfs\" is not known in [[nic.policy]]; known are name, priority,",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }
}

const RELAYS: &str = r#"
host = "h1"
[metrics]
listen = "127.0.0.1:9690"
[[xvio.relay]]
name = "vm-1"
vf = "0000:3b:02.1"
mac = "52:54:00:00:00:01"
vlan = 42
mtu = 9000
queue_pairs = 4
queue_size = 256
mode = "client"
socket = "/run/vm-1.sock"
[[xvio.relay]]
name = "vm-2"
device = "net_tap0,iface=tap0"
mac = "52:54:00:00:00:02"
"#;

#[test]
fn relays_are_read_as_they_are_written() {
    let config = parse(RELAYS, Path::new("agent.toml")).unwrap();
    assert_eq!(config.metrics, Some("127.0.0.1:9690".parse().unwrap()));
    let one = &config.relays["vm-1"];
    assert_eq!((one.vlan, one.mtu, one.queue_pairs), (42, 9000, 4));
    assert_eq!((one.queue_size, one.mode), (256, SocketMode::Client));
    assert_eq!(one.far.shown(), "VF 0000:3b:02.1");
    let two = &config.relays["vm-2"];
    assert_eq!((two.mtu, two.queue_size, two.vlan), (1500, 1024, 0));
    assert_eq!((two.mode, &two.socket), (SocketMode::Server, &None));
    assert!(
        parse("host = \"h1\"", Path::new("x"))
            .unwrap()
            .relays
            .is_empty()
    );
}

#[test]
fn what_is_wrong_with_relays_has_its_line() {
    let cases = [
        (
            "name = \"vm-2\"",
            "name = \"vm-1\"",
            ":16:8: There is already a relay \"vm-1\"",
        ),
        ("name = \"vm-2\"", "name = \"VM\"", ":16:8: A relay's name"),
        (
            "net_tap0,iface=tap0",
            "0000:3b:02.1",
            ":17:10: \"0000:3b:02.1\" is a PCI function",
        ),
        (
            "net_tap0,iface=tap0",
            "tap0",
            ":17:10: \"tap0\" is not a virtual device",
        ),
        (
            "device = ",
            "vf = \"0000:3b:02.1\"\ndevice = ",
            "give one of them",
        ),
        (
            "device = \"net_tap0,iface=tap0\"",
            "vf = \"0000:3b:02.1\"",
            "already the far side of relay \"vm-1\"",
        ),
        (
            "device = \"net_tap0,iface=tap0\"",
            "",
            ":15:1: [[xvio.relay]] needs vf",
        ),
        (
            "device = \"net_tap0,iface=tap0\"",
            "vf = \"eth0\"",
            "is not the PCI address of a VF",
        ),
        ("device = ", "vlan = 7\ndevice = ", "needs a VF"),
        ("mtu = 9000", "mtu = 9001", "68 to 9000"),
        ("queue_pairs = 4", "queue_pairs = 65", "1 to 64"),
        (
            "queue_size = 256",
            "queue_size = 100",
            ":12:14: queue_size must be a power of two",
        ),
        ("mode = \"client\"", "mode = \"both\"", "mode is \"server\""),
        ("/run/vm-1.sock", "vm-1.sock", "absolute path"),
        (
            "/run/vm-1.sock",
            "/run/ferrovia/vhost/vm-2.sock",
            "already the socket of relay \"vm-1\"",
        ),
        ("52:54:00:00:00:02", "53:54:00:00:00:02", "group address"),
        (
            "mac = \"52:54:00:00:00:02\"",
            "",
            "\"mac\" of [[xvio.relay]] is missing",
        ),
        ("127.0.0.1:9690", "0.0.0.0:9690", "anywhere = true"),
        ("127.0.0.1:9690", "localhost", "an address with its port"),
    ];
    for (from, to, wanted) in cases {
        assert!(RELAYS.contains(from), "{from}");
        let found = problems(&RELAYS.replacen(from, to, 1)).join("\n");
        assert!(found.contains(wanted), "{to:?} gave {found}");
    }
    let port = "[[network]]\nname = \"blue\"\nvni = 1\n[[port]]\nname = \"vm-2\"\nnetwork = \"blue\"\nmac = \"52:54:00:00:00:09\"\n";
    let found = problems(&format!("{RELAYS}{port}")).join("\n");
    assert!(
        found.contains("already the socket of port \"vm-2\""),
        "{found}"
    );
    let anywhere = RELAYS.replace("127.0.0.1:9690\"", "0.0.0.0:9690\"\nanywhere = true");
    assert!(parse(&anywhere, Path::new("x")).is_ok());
}

#[test]
fn a_port_of_binding_xvio_is_routed_and_has_a_pool() {
    let text = GOOD.replace("mode = \"client\"", "binding = \"xvio\"\npool = \"fast\"");
    let config = parse(&text, Path::new("agent.toml")).unwrap();
    let relay = config.alone.ports["web-1"].relay.as_ref().unwrap();
    assert_eq!(relay.pool.as_deref(), Some("fast"));
    assert!(config.alone.vf_ports.is_empty());
    let standby = text.replace("pool = \"fast\"", "standby = true");
    let found = problems(&standby).join("\n");
    assert!(found.contains("the router is one already"), "{found}");
    let device = text.replace("pool = \"fast\"", "device = \"net_tap0,iface=tap0\"");
    let config = parse(&device, Path::new("agent.toml")).unwrap();
    let relay = config.alone.ports["web-1"].relay.as_ref().unwrap();
    assert_eq!(relay.device.as_deref(), Some("net_tap0,iface=tap0"));
    let both = device.replace("device =", "pool = \"fast\"\ndevice =");
    assert!(problems(&both).join("\n").contains("so no pool"));
    let virtio = device.replace("\"xvio\"", "\"virtio\"");
    assert!(
        problems(&virtio)
            .join("\n")
            .contains("binding = \"xvio\" has a device")
    );
    let twice = format!(
        "{device}[[xvio.relay]]\nname = \"a\"\nmac = \"02:00:00:00:00:01\"\ndevice = \"net_tap0\"\n"
    );
    assert!(
        problems(&twice)
            .join("\n")
            .contains("far side of port \"web-1\"")
    );
}
