//! Bad input gets a sentence and a fitting status, and changes nothing.

mod harness;

use api::v1;
use harness::*;

#[tokio::test]
async fn unknown_objects_are_named() {
    let (lab, mut c) = lab().await;
    refuse!(
        lab,
        c.create_port(port("p2", "green", "h1")),
        NotFound,
        "network 'green'",
        "network list"
    );
    refuse!(
        lab,
        c.create_port(port("p2", "blue", "h9")),
        NotFound,
        "host 'h9'",
        "host list"
    );
    refuse!(
        lab,
        c.create_port(port("p2", "", "h1")),
        InvalidArgument,
        "No network"
    );
    refuse!(lab, c.get_port(by_ref("nope")), NotFound, "port 'nope'");
    refuse!(
        lab,
        c.get_host(by_ref("nope\u{7}")),
        NotFound,
        "host 'nope\u{fffd}'"
    );
    refuse!(
        lab,
        c.get_network(by_ref("00000000-0000-4000-8000-000000000000")),
        NotFound,
        "00000000"
    );
    let list = v1::ListPortsRequest {
        network: "green".into(),
        ..Default::default()
    };
    refuse!(lab, c.list_ports(list), NotFound, "green");
    let moved = v1::UpdatePortRequest {
        r#ref: "p1".into(),
        host: Some("h9".into()),
        ..Default::default()
    };
    refuse!(lab, c.update_port(moved), NotFound, "h9");
}

#[tokio::test]
async fn an_exhausted_subnet_is_named() {
    let (lab, mut c) = lab().await;
    // Of a /29, 8 addresses: network, broadcast and gateway go, p1 has one, four are left.
    for number in 2..=5 {
        c.create_port(port(&format!("p{number}"), "blue", ""))
            .await
            .unwrap();
    }
    refuse!(
        lab,
        c.create_port(port("p6", "blue", "h1")),
        ResourceExhausted,
        "10.0.0.0/29",
        "blue",
        "p6"
    );
    c.delete_port(delete("p3", 0)).await.unwrap();
    let p6 = c
        .create_port(port("p6", "blue", "h1"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(p6.addresses, ["10.0.0.4"], "the address that became free");
}

#[tokio::test]
async fn duplicates_are_named() {
    let (lab, mut c) = lab().await;
    refuse!(lab, c.create_host(host("h1")), AlreadyExists, "Host h1");
    refuse!(
        lab,
        c.create_network(network("blue", &[])),
        AlreadyExists,
        "Network blue"
    );
    refuse!(
        lab,
        c.create_port(port("p1", "blue", "")),
        AlreadyExists,
        "Port p1"
    );
    let p1 = c.get_port(by_ref("p1")).await.unwrap().into_inner();
    let same_mac = v1::CreatePortRequest {
        mac: p1.mac.to_uppercase(),
        ..port("p2", "blue", "")
    };
    refuse!(
        lab,
        c.create_port(same_mac),
        AlreadyExists,
        &p1.mac,
        "port p1"
    );
    let same_address = v1::CreatePortRequest {
        addresses: p1.addresses.clone(),
        ..port("p2", "blue", "")
    };
    refuse!(
        lab,
        c.create_port(same_address),
        AlreadyExists,
        "10.0.0.2",
        "port p1"
    );
    let vni = c
        .get_network(by_ref("blue"))
        .await
        .unwrap()
        .into_inner()
        .vni;
    let same_vni = v1::CreateNetworkRequest {
        vni,
        ..network("red", &[])
    };
    refuse!(
        lab,
        c.create_network(same_vni),
        AlreadyExists,
        "network blue"
    );
    let same_vtep = v1::CreateHostRequest {
        name: "h2".into(),
        vtep: "192.0.2.1".into(),
    };
    refuse!(
        lab,
        c.create_host(same_vtep),
        AlreadyExists,
        "192.0.2.1",
        "host h1"
    );
    // Between networks, addresses and MACs may overlap.
    c.create_network(network("red", &["10.0.0.0/29"]))
        .await
        .unwrap();
    let twin = v1::CreatePortRequest {
        mac: p1.mac.clone(),
        addresses: p1.addresses,
        ..port("p2", "red", "")
    };
    c.create_port(twin).await.unwrap();
}

#[tokio::test]
async fn an_mtu_above_the_underlay_names_host_and_numbers() {
    let (lab, mut c) = lab().await;
    let jumbo = v1::CreateNetworkRequest {
        mtu: 9000,
        ..network("big", &[])
    };
    refuse!(
        lab,
        c.create_network(jumbo.clone()),
        FailedPrecondition,
        "big",
        "9050",
        "h1",
        "1500",
        "1450"
    );
    let update = v1::UpdateNetworkRequest {
        r#ref: "blue".into(),
        mtu: Some(1451),
        ..Default::default()
    };
    refuse!(
        lab,
        c.update_network(update),
        FailedPrecondition,
        "blue",
        "1501",
        "h1"
    );
    assert_eq!(
        c.get_network(by_ref("blue"))
            .await
            .unwrap()
            .into_inner()
            .mtu,
        1450
    );
    // Each side of the limit, by RFC 7348's overhead of 50 on IPv4.
    let fits = v1::UpdateNetworkRequest {
        r#ref: "blue".into(),
        mtu: Some(1450),
        ..Default::default()
    };
    c.update_network(fits).await.unwrap();
}

#[tokio::test]
async fn a_port_is_not_placed_on_a_host_whose_underlay_is_too_small() {
    let lab = Lab::plain().await;
    let mut c = lab.client().await;
    let jumbo = v1::CreateNetworkRequest {
        mtu: 8950,
        ..network("big", &["10.0.0.0/24"])
    };
    c.create_network(jumbo).await.unwrap();
    c.create_host(host("h1")).await.unwrap();
    c.create_host(host("h6")).await.unwrap();
    let mut small = lab.agent(hello("h1", "192.0.2.1", 1500)).await;
    small.step().await.unwrap();
    // 70 bytes over IPv6: 9000 carries 8930.
    let mut six = lab.agent(hello("h6", "2001:db8::6", 9000)).await;
    six.step().await.unwrap();
    refuse!(
        lab,
        c.create_port(port("p1", "big", "h1")),
        FailedPrecondition,
        "big",
        "9000",
        "h1"
    );
    refuse!(
        lab,
        c.create_port(port("p1", "big", "h6")),
        FailedPrecondition,
        "big",
        "9020",
        "h6"
    );
    c.create_port(port("p1", "big", "")).await.unwrap();
    let moved = v1::UpdatePortRequest {
        r#ref: "p1".into(),
        host: Some("h1".into()),
        ..Default::default()
    };
    refuse!(lab, c.update_port(moved), FailedPrecondition, "big", "h1");
}

#[tokio::test]
async fn stale_revisions_are_refused() {
    let (lab, mut c) = lab().await;
    let p1 = c.get_port(by_ref("p1")).await.unwrap().into_inner();
    let rename = |name: &str, revision| v1::UpdatePortRequest {
        r#ref: p1.id.clone(),
        revision,
        name: Some(name.into()),
        ..Default::default()
    };
    let renamed = c
        .update_port(rename("web", p1.revision))
        .await
        .unwrap()
        .into_inner();
    assert!(renamed.revision > p1.revision);
    refuse!(
        lab,
        c.update_port(rename("db", p1.revision)),
        Aborted,
        "port web",
        "get it again"
    );
    refuse!(
        lab,
        c.delete_port(delete("web", p1.revision)),
        Aborted,
        "port web"
    );
    refuse!(
        lab,
        c.delete_network(delete("blue", 9999)),
        Aborted,
        "network blue"
    );
    refuse!(lab, c.delete_host(delete("h1", 9999)), Aborted, "host h1");
    let host = v1::UpdateHostRequest {
        r#ref: "h1".into(),
        revision: 9999,
        ..Default::default()
    };
    refuse!(lab, c.update_host(host), Aborted, "host h1");
    let network = v1::UpdateNetworkRequest {
        r#ref: "blue".into(),
        revision: 9999,
        ..Default::default()
    };
    refuse!(lab, c.update_network(network), Aborted, "network blue");
    c.update_port(rename("db", 0)).await.unwrap();
}

#[tokio::test]
async fn what_is_in_use_stays_and_its_users_are_named() {
    let (lab, mut c) = lab().await;
    refuse!(
        lab,
        c.delete_network(delete("blue", 0)),
        FailedPrecondition,
        "blue",
        "p1"
    );
    refuse!(
        lab,
        c.delete_host(delete("h1", 0)),
        FailedPrecondition,
        "h1",
        "p1"
    );
    let subnets = |subnets| v1::UpdateNetworkRequest {
        r#ref: "blue".into(),
        set_subnets: true,
        subnets,
        ..Default::default()
    };
    refuse!(
        lab,
        c.update_network(subnets(vec![])),
        FailedPrecondition,
        "10.0.0.0/29",
        "blue",
        "p1"
    );
    let gateway = v1::Subnet {
        gateway: "10.0.0.2".into(),
        ..subnet("10.0.0.0/29")
    };
    refuse!(
        lab,
        c.update_network(subnets(vec![gateway])),
        FailedPrecondition,
        "10.0.0.2",
        "p1"
    );
    c.delete_port(delete("p1", 0)).await.unwrap();
    c.update_network(subnets(vec![])).await.unwrap();
    c.delete_network(delete("blue", 0)).await.unwrap();
    c.delete_host(delete("h1", 0)).await.unwrap();
}
