//! Objects live as the API says: names and ids, revisions, pages, durability of a normal restart.

mod harness;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use api::v1;
use harness::*;

#[tokio::test]
async fn a_port_gets_one_address_from_each_subnet_and_a_mac() {
    let lab = Lab::plain().await;
    let mut c = lab.client().await;
    let request = v1::CreateNetworkRequest {
        subnets: vec![
            subnet("10.1.0.0/16"),
            v1::Subnet {
                slaac: true,
                ..subnet("2001:db8:1::/64")
            },
            v1::Subnet {
                gateway: "2001:db8:2::ff".into(),
                ..subnet("2001:db8:2::/64")
            },
        ],
        dns: vec!["10.1.0.53".into(), "2001:db8::53".into()],
        routes: vec![v1::Route {
            destination: "0.0.0.0/0".into(),
            next_hop: "10.1.0.254".into(),
        }],
        ..network("blue", &[])
    };
    let blue = c.create_network(request).await.unwrap().into_inner();
    assert_eq!((blue.vni, blue.mtu), (1, 1450));
    assert_eq!(blue.subnets[0].gateway, "10.1.0.1");
    assert_eq!(blue.subnets[2].gateway, "2001:db8:2::ff");
    let p = c
        .create_port(port("web-1", "blue", ""))
        .await
        .unwrap()
        .into_inner();
    let mac: controller::mac::Mac = p.mac.parse().unwrap();
    assert!(mac.is_station() && mac.0[0] & 2 == 2);
    let slaac = mac.eui64("2001:db8:1::".parse().unwrap()).to_string();
    assert_eq!(p.addresses, ["10.1.0.2", &slaac, "2001:db8:2::1"]);
    assert_eq!(
        (p.network.as_str(), p.network_name.as_str()),
        (blue.id.as_str(), "blue")
    );
    assert_eq!(p.binding, v1::Binding::Virtio as i32);
    assert_eq!(p.virtio.unwrap().queue_size, 1024);
    let status = p.status.unwrap();
    assert_eq!(status.state, v1::PortState::Pending as i32);
    assert!(status.reason.contains("on no host"), "{}", status.reason);
    let by_id = c.get_port(by_ref(&p.id)).await.unwrap().into_inner();
    assert_eq!(by_id.name, "web-1");
}

#[tokio::test]
async fn everything_is_the_same_after_a_restart() {
    let mut lab = Lab::plain().await;
    let mut c = lab.client().await;
    let info = c.get_info(v1::Empty {}).await.unwrap().into_inner();
    assert!(info.plain);
    c.create_host(v1::CreateHostRequest {
        name: "h1".into(),
        vtep: "192.0.2.9".into(),
    })
    .await
    .unwrap();
    let route = v1::Route {
        destination: "10.9.0.0/16".into(),
        next_hop: "10.0.0.9".into(),
    };
    c.create_network(v1::CreateNetworkRequest {
        routes: vec![route],
        ..network("blue", &["10.0.0.0/24", "2001:db8::/64"])
    })
    .await
    .unwrap();
    c.create_port(port("a", "blue", "h1")).await.unwrap();
    c.create_port(port("b", "blue", "")).await.unwrap();
    c.delete_port(delete("a", 0)).await.unwrap();
    c.create_port(port("c", "blue", "h1")).await.unwrap();
    let before = (
        c.list_hosts(v1::ListRequest::default())
            .await
            .unwrap()
            .into_inner(),
        c.list_networks(v1::ListRequest::default())
            .await
            .unwrap()
            .into_inner(),
        c.list_ports(v1::ListPortsRequest::default())
            .await
            .unwrap()
            .into_inner(),
        c.get_info(v1::Empty {}).await.unwrap().into_inner(),
    );
    lab.restart().await;
    let mut c = lab.client().await;
    let after = (
        c.list_hosts(v1::ListRequest::default())
            .await
            .unwrap()
            .into_inner(),
        c.list_networks(v1::ListRequest::default())
            .await
            .unwrap()
            .into_inner(),
        c.list_ports(v1::ListPortsRequest::default())
            .await
            .unwrap()
            .into_inner(),
        c.get_info(v1::Empty {}).await.unwrap().into_inner(),
    );
    assert_eq!(before, after);
    // Indexes too: c took a's address, the next is b's successor.
    let d = c
        .create_port(port("d", "blue", ""))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(d.addresses[0], "10.0.0.4");
}

#[tokio::test]
async fn pages_cover_everything_once_while_objects_come_and_go() {
    let lab = Lab::plain().await;
    let mut c = lab.client().await;
    c.create_network(network("blue", &["10.0.0.0/16"]))
        .await
        .unwrap();
    c.create_network(network("red", &["10.0.0.0/16"]))
        .await
        .unwrap();
    for number in 0..25 {
        c.create_port(port(&format!("p{number:02}"), "blue", ""))
            .await
            .unwrap();
        c.create_port(port(&format!("q{number:02}"), "red", ""))
            .await
            .unwrap();
    }
    let mut request = v1::ListPortsRequest {
        page_size: 10,
        network: "blue".into(),
        ..Default::default()
    };
    let mut seen = Vec::new();
    loop {
        let page = c.list_ports(request.clone()).await.unwrap().into_inner();
        seen.extend(page.ports.into_iter().map(|port| port.name));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
        // The last one seen goes: the token must not depend on it.
        c.delete_port(delete(seen.last().unwrap(), 0))
            .await
            .unwrap();
    }
    let expected: Vec<String> = (0..25).map(|number| format!("p{number:02}")).collect();
    assert_eq!(seen, expected);
    let all = c
        .list_ports(v1::ListPortsRequest {
            page_size: 1000,
            ..Default::default()
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(all.ports.len(), 48);
    assert!(all.next_page_token.is_empty());
}

#[tokio::test]
async fn updates_that_change_nothing_keep_the_revision() {
    let lab = Lab::plain().await;
    let mut c = lab.client().await;
    let blue = c
        .create_network(network("blue", &["10.0.0.0/24"]))
        .await
        .unwrap()
        .into_inner();
    let same = v1::UpdateNetworkRequest {
        r#ref: "blue".into(),
        name: Some("blue".into()),
        set_subnets: true,
        subnets: vec![subnet("10.0.0.0/24")],
        ..Default::default()
    };
    let after = c.update_network(same).await.unwrap().into_inner();
    assert_eq!(after, blue);
    let dns = v1::UpdateNetworkRequest {
        r#ref: "blue".into(),
        set_dns: true,
        dns: vec!["10.0.0.9".into()],
        ..Default::default()
    };
    let after = c.update_network(dns).await.unwrap().into_inner();
    assert!(after.revision > blue.revision);
    assert_eq!(
        (after.id, after.vni, after.gateway_mac),
        (blue.id, blue.vni, blue.gateway_mac)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_ports_take_seconds() {
    let lab = Lab::plain().await;
    let mut c = lab.client().await;
    c.create_network(network("blue", &["10.0.0.0/8", "2001:db8::/64"]))
        .await
        .unwrap();
    for number in 0..100 {
        c.create_host(host(&format!("h{number}"))).await.unwrap();
    }
    let started = Instant::now();
    let tasks: Vec<_> = (0..50)
        .map(|task| {
            let mut c = c.clone();
            tokio::spawn(async move {
                let mut ports = Vec::new();
                for number in 0..40 {
                    let request = port(
                        &format!("p{task}-{number}"),
                        "blue",
                        &format!("h{}", number % 100),
                    );
                    ports.push(c.create_port(request).await.unwrap().into_inner());
                }
                ports
            })
        })
        .collect();
    let (mut macs, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    for task in tasks {
        for port in task.await.unwrap() {
            assert!(macs.insert(port.mac));
            for address in port.addresses {
                assert!(addresses.insert(address.parse::<std::net::IpAddr>().unwrap()));
            }
        }
    }
    let took = started.elapsed();
    println!("2,000 ports in {took:?}");
    assert!(took < Duration::from_secs(60), "{took:?}");
    // Lowest free first leaves no holes.
    assert_eq!(addresses.first(), Some(&"10.0.0.2".parse().unwrap()));
    let v4 = addresses.iter().filter(|address| address.is_ipv4()).max();
    assert_eq!(v4, Some(&"10.0.7.209".parse().unwrap()));
}
