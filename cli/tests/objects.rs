//! Hosts, networks and ports from the command line, under a real controller.

mod support;

use serde_json::json;
use support::Lab;

const NO_ID: &str = "00000000-0000-4000-8000-000000000000";

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_created_shown_changed_and_deleted() {
    let lab = Lab::plain().await;
    assert_eq!(lab.json(&["host", "list"]), json!([]));
    let host = lab.json(&["host", "create", "h1", "--vtep", "192.0.2.1"]);
    assert_eq!(
        (&host["name"], &host["vtep"]),
        (&json!("h1"), &json!("192.0.2.1"))
    );
    let host = lab.json(&[
        "host",
        "update",
        "h1",
        "--vtep",
        "192.0.2.9",
        "--name",
        "h2",
    ]);
    assert_eq!(
        (&host["name"], &host["vtep"]),
        (&json!("h2"), &json!("192.0.2.9"))
    );

    let blue = lab.json(&[
        "network",
        "create",
        "blue",
        "--subnet",
        "10.1.0.0/24,gateway=10.1.0.254",
        "--subnet",
        "fd00:1::/64,slaac",
        "--dns",
        "10.1.0.53",
        "--route",
        "10.9.0.0/16=10.1.0.7",
        "--mtu",
        "1400",
    ]);
    assert_eq!(
        blue["subnets"],
        json!([
            {"cidr": "10.1.0.0/24", "gateway": "10.1.0.254", "slaac": false},
            {"cidr": "fd00:1::/64", "gateway": "fd00:1::1", "slaac": true},
        ])
    );
    assert_eq!(
        blue["routes"],
        json!([{"destination": "10.9.0.0/16", "next_hop": "10.1.0.7"}])
    );
    assert_eq!(
        (&blue["mtu"], &blue["dns"]),
        (&json!(1400), &json!(["10.1.0.53"]))
    );
    let id = blue["id"].as_str().unwrap();
    let seen = blue["revision"].to_string();
    let blue = lab.json(&["net", "update", id, "--mtu", "1350", "--revision", &seen]);
    assert_eq!((&blue["mtu"], &blue["id"]), (&json!(1350), &json!(id)));
    lab.refused(
        &[
            "network",
            "update",
            "blue",
            "--mtu",
            "1300",
            "--revision",
            &seen,
        ],
        4,
        &["blue", &seen],
    );

    let port = lab.json(&[
        "port",
        "create",
        "web",
        "--network",
        "blue",
        "--host",
        "h2",
        "--owner",
        "vm/web",
    ]);
    assert_eq!(port["addresses"][0], json!("10.1.0.1"));
    assert_eq!(port["state"], json!("pending"));
    assert_eq!(lab.json(&["port", "show", "web"]), port);
    assert_eq!(
        lab.json(&["port", "list", "--network", "blue"]),
        json!([port])
    );
    assert_eq!(lab.json(&["port", "list", "--host", "h2"]), json!([port]));
    let moved = lab.json(&["port", "update", "web", "--host", "", "--name", "web-2"]);
    assert_eq!(
        (&moved["name"], &moved["host"]),
        (&json!("web-2"), &json!(""))
    );

    for (words, left) in [
        (["port", "delete", "web-2"], ["port", "list"]),
        (["network", "delete", "blue"], ["network", "list"]),
        (["host", "delete", "h2"], ["host", "list"]),
    ] {
        let run = lab.run(&words);
        assert_eq!((run.code, run.err.as_str()), (0, ""), "{words:?}");
        assert!(run.out.ends_with("is deleted.\n"), "{}", run.out);
        assert_eq!(lab.json(&left), json!([]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn json_has_the_fields_that_scripts_rely_on() {
    let lab = Lab::plain().await;
    let fields = |words: &[&str]| {
        let value = lab.json(words);
        value
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect::<Vec<_>>()
            .join(" ")
    };
    let mut host = fields(&["host", "create", "h1"])
        .split(' ')
        .map(str::to_owned)
        .collect::<Vec<_>>();
    host.sort();
    assert_eq!(
        host.join(" "),
        "agent_version applied_version connected desired_version homes id last_seen_ms name problems revision underlay_mtu vtep"
    );
    let mut network: Vec<_> = fields(&["network", "create", "blue", "--subnet", "10.0.0.0/24"])
        .split(' ')
        .map(str::to_owned)
        .collect();
    network.sort();
    assert_eq!(
        network.join(" "),
        "dns gateway_mac id mtu name revision routes subnets vlan vni"
    );
    let mut port: Vec<_> = fields(&["port", "create", "p", "--network", "blue"])
        .split(' ')
        .map(str::to_owned)
        .collect();
    port.sort();
    assert_eq!(
        port.join(" "),
        "addresses binding guest_connected host id mac name network owner pool queue_pairs queue_size reason revision socket standby state vf vlan"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_longer_than_a_page_are_whole() {
    let lab = Lab::plain().await;
    let mut client = lab.client().await;
    lab.json(&["network", "create", "blue", "--subnet", "10.0.0.0/16"]);
    let mut tasks = Vec::new();
    for number in 0..1003 {
        let mut client = client.clone();
        tasks.push(tokio::spawn(async move {
            let host = api::v1::CreateHostRequest {
                name: format!("h{number}"),
                ..Default::default()
            };
            client.create_host(host).await.unwrap();
            let port = api::v1::CreatePortRequest {
                name: format!("p{number}"),
                network: "blue".into(),
                ..Default::default()
            };
            client.create_port(port).await.unwrap();
            let network = api::v1::CreateNetworkRequest {
                name: format!("n{number}"),
                ..Default::default()
            };
            client.create_network(network).await.unwrap();
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    for (words, more) in [
        (&["host", "list"][..], 0),
        (&["network", "list"], 1),
        (&["port", "list"], 0),
        (&["port", "list", "--network", "blue"], 0),
    ] {
        let list = lab.json(words);
        let mut names: Vec<_> = list
            .as_array()
            .unwrap()
            .iter()
            .map(|o| o["name"].as_str().unwrap())
            .collect();
        assert!(names.is_sorted(), "{words:?}");
        names.dedup();
        assert_eq!(names.len(), 1003 + more, "{words:?}");
    }
    let table = lab.run(&["port", "list"]);
    assert_eq!(table.out.lines().count(), 1004);
    assert!(
        client
            .get_port(api::v1::GetRequest {
                r#ref: "p1002".into()
            })
            .await
            .is_ok()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_has_one_sentence_and_its_exit_code_and_changes_nothing() {
    let lab = Lab::plain().await;
    lab.json(&["host", "create", "h1"]);
    lab.json(&["network", "create", "blue", "--subnet", "10.1.0.0/30"]);
    lab.json(&["port", "create", "p1", "--network", "blue", "--host", "h1"]);
    let cases: &[(&[&str], i32, &[&str])] = &[
        (
            &["port", "create", "p2", "--network", "nope"],
            3,
            &["'nope'", "ferrovia network list"],
        ),
        (
            &[
                "port",
                "create",
                "p2",
                "--network",
                "blue",
                "--host",
                "nope",
            ],
            3,
            &["'nope'", "ferrovia host list"],
        ),
        (
            &["port", "create", "p2", "--network", "blue"],
            7,
            &["10.1.0.0/30", "blue", "p2"],
        ),
        (
            &["port", "create", "p1", "--network", "blue"],
            4,
            &["p1", "exists"],
        ),
        (
            &[
                "port",
                "create",
                "p2",
                "--network",
                "blue",
                "--address",
                "10.1.0.2",
            ],
            4,
            &["10.1.0.2", "p1"],
        ),
        (
            &["port", "create", "p2", "--network", "blue", "--mac", "x"],
            2,
            &["'x'"],
        ),
        (&["host", "create", "h1"], 4, &["h1"]),
        (&["network", "create", "Blue"], 2, &["'Blue'"]),
        (
            &["network", "create", "red", "--mtu", "65001"],
            2,
            &["65001"],
        ),
        (
            &["network", "create", "red", "--subnet", "10.0.0.0/24,vlan=3"],
            2,
            &["vlan=3"],
        ),
        (
            &["network", "create", "red", "--subnet", "banana"],
            2,
            &["'banana'"],
        ),
        (
            &[
                "network",
                "create",
                "red",
                "--subnet",
                "10.0.0.0/24",
                "--route",
                "10.0.0.0/8",
            ],
            2,
            &["CIDR=NEXTHOP"],
        ),
        (
            &["network", "update", "blue", "--route", "0.0.0.0/0=10.1.0.1"],
            2,
            &["blue", "10.1.0.1", "gateway"],
        ),
        (&["network", "delete", "blue"], 4, &["blue", "p1"]),
        (&["host", "delete", "h1"], 4, &["h1", "p1"]),
        (
            &["port", "update", "p1", "--owner", "x", "--revision", "999"],
            4,
            &["p1", "999"],
        ),
        (
            &["port", "delete", "p1", "--revision", "999"],
            4,
            &["p1", "999"],
        ),
        (&["port", "show", NO_ID], 3, &[NO_ID]),
        (&["port", "delete", ""], 2, &["port"]),
        (&["port", "xml", "p1"], 1, &["p1", "h1"]),
    ];
    for (words, code, said) in cases {
        lab.refused(words, *code, said);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_line_that_is_wrong_is_exit_code_2_and_help_has_examples() {
    let lab = Lab::plain().await;
    for words in [
        &["port"][..],
        &["port", "create", "p1"],
        &["port", "create", "p1", "--network", "n", "--wait"],
        &["nonsense"],
        &["port", "create", "p", "--network", "n", "--address", "x"],
    ] {
        let run = lab.run(words);
        assert_eq!(run.code, 2, "{words:?}: {run:?}");
    }
    let help = lab.run(&["--help"]);
    assert_eq!(help.code, 0);
    assert!(
        help.out.contains("Exit codes:") && help.out.contains("Examples:"),
        "{}",
        help.out
    );
}
