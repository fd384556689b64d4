//! The probes on this host, in network namespaces that end with the thread that made them. Needs
//! root; skipped with a line that says so otherwise.

use nix::sched::{CloneFlags, unshare};
use offload::probe::{self, Interface, Unavailable};
use offload::{Availability, Home, HomeKind, Placement};
use std::process::{Command, Output};

/// Runs the test in a thread with a network namespace of its own; child processes are in it too.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: making a network namespace needs root");
        return;
    }
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("root may make a network namespace");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn run(program: &str, arguments: &str) -> Output {
    let command = Command::new(program).args(arguments.split(' ')).output();
    command.unwrap_or_else(|e| panic!("{program} runs: {e}"))
}

fn ip(arguments: &str) {
    let output = run("ip", arguments);
    assert!(output.status.success(), "ip {arguments}: {output:?}");
}

#[test]
fn a_veth_is_known_for_what_it_is() {
    in_namespace(|| {
        ip("link add fvo0 type veth peer name fvo1");
        let veth = Interface::look_up("fvo0").unwrap();
        let expected = Interface {
            kind: Some("veth".into()),
            ..Interface::default()
        };
        assert_eq!(veth, expected);
        let kind = Some("veth".to_owned());
        let interface = "fvo0".to_owned();
        assert_eq!(
            probe::nic("fvo0"),
            Err(Unavailable::NotHardware { interface, kind })
        );
    });
}

#[test]
fn an_interface_that_does_not_exist_is_named() {
    let names = [
        "fv-no-such",
        "a-name-longer-than-any-interface",
        "",
        "nul\0byte",
    ];
    for name in names {
        let error = probe::nic(name).unwrap_err();
        assert_eq!(error, Unavailable::NoSuchInterface(name.to_owned()));
    }
}

#[test]
fn the_probe_for_flower_agrees_with_tc() {
    in_namespace(|| {
        let probed = probe::flower();
        // The same rule, by iproute2, in this namespace.
        let qdisc = run("tc", "qdisc add dev lo clsact");
        let filter = run(
            "tc",
            "filter add dev lo ingress protocol ip flower skip_hw action drop",
        );
        match probed {
            Ok(()) => assert!(filter.status.success(), "{filter:?}"),
            Err(Unavailable::NoClsact(_)) => assert!(!qdisc.status.success(), "{qdisc:?}"),
            Err(Unavailable::NoFlower(_)) => {
                assert!(
                    qdisc.status.success() && !filter.status.success(),
                    "{filter:?}"
                );
            }
            // gact is in the rule; the other actions are not.
            Err(Unavailable::NoAction { action, .. }) => {
                assert_eq!(filter.status.success(), action != "gact", "{filter:?}");
            }
            Err(other) => panic!("root can probe: {other}"),
        }
    });
}

#[test]
fn probing_leaves_nothing_behind() {
    in_namespace(|| {
        ip("link add fvo0 type veth peer name fvo1");
        let state = || {
            let namespace = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
            let seen = [
                "qdisc show",
                "filter show dev lo ingress",
                "filter show dev fvo0 ingress",
            ]
            .map(|what| run("tc", what).stdout);
            (namespace, seen, run("ip", "link show").stdout)
        };
        let before = state();
        Placement::probe(Some("fvo0"));
        assert_eq!(state(), before);
    });
}

#[test]
fn flows_are_placed_in_software_and_the_reasons_are_told() {
    in_namespace(|| {
        ip("link add fvo0 type veth peer name fvo1");
        let placement = Placement::probe(Some("fvo0"));
        let answers = placement.availability();
        assert_eq!(
            answers.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(),
            HomeKind::ALL
        );
        assert_eq!(answers[0].1, Ok(()));
        let choice = placement.choose(&flow::FlowKey::default(), &[]);
        assert_eq!(choice.home, HomeKind::Software);
        println!("{}", choice.why);
        for (kind, answer) in &answers[1..] {
            let reason = answer.as_ref().unwrap_err();
            assert!(
                choice.why.contains(&format!("{kind}: {reason}")),
                "{}",
                choice.why
            );
        }
        assert!(
            answers[2]
                .1
                .as_ref()
                .unwrap_err()
                .contains("\"fvo0\" has no NIC behind it")
        );
    });
}

#[test]
fn an_uplink_without_a_kernel_interface_is_told_apart() {
    let answers = offload::availability(None);
    let reason = Unavailable::NoUplinkInterface.to_string();
    assert_eq!(answers[2], (HomeKind::Nic, Err(reason)));
}

#[test]
fn a_better_home_that_is_available_wins() {
    struct Always(HomeKind);
    impl Home for Always {
        fn kind(&self) -> HomeKind {
            self.0
        }
        fn probe(&self) -> Availability {
            Ok(())
        }
    }
    let homes = HomeKind::ALL.map(Always);
    let homes: Vec<&dyn Home> = homes.iter().map(|home| home as &dyn Home).collect();
    let key = flow::FlowKey::default();
    assert_eq!(Placement::of(&homes).choose(&key, &[]).home, HomeKind::Nic);
    assert_eq!(
        Placement::of(&homes[..2]).choose(&key, &[]).home,
        HomeKind::Kernel
    );
    assert_eq!(
        Placement::of(&[]).choose(&key, &[]).home,
        HomeKind::Software
    );
}
