//! Fields that cannot be are refused, and nothing changes.

mod harness;

use api::v1;
use harness::*;

#[tokio::test]
async fn malformed_fields_are_refused() {
    let (lab, mut c) = lab().await;
    let long = "a".repeat(64);
    for name in [
        "",
        "Web",
        "1web",
        "web_1",
        "web-",
        "wéb",
        "w\n",
        &long,
        "abcdef12-0000-4000-8000-000000000000",
    ] {
        refuse!(
            lab,
            c.create_port(port(name, "blue", "")),
            InvalidArgument,
            "port"
        );
        refuse!(lab, c.create_host(host(name)), InvalidArgument, "host");
        refuse!(
            lab,
            c.create_network(network(name, &[])),
            InvalidArgument,
            "network"
        );
    }
    for cidr in [
        "",
        "10.0.0.0",
        "10.0.0.1/24",
        "10.0.0.0/33",
        "10.0.0.0/31",
        "0.0.0.0/0",
        "224.0.0.0/24",
        "127.0.0.0/8",
        "fe80::/64",
        "ff00::/64",
        "2001:db8::/127",
        "::/0",
    ] {
        refuse!(
            lab,
            c.create_network(network("n", &[cidr])),
            InvalidArgument,
            "ubnet"
        );
    }
    refuse!(
        lab,
        c.create_network(network("n", &["10.0.0.0/24", "10.0.0.128/25"])),
        InvalidArgument,
        "overlap"
    );
    for (cidr, gateway) in [
        ("10.0.0.0/24", "10.0.1.1"),
        ("10.0.0.0/24", "10.0.0.0"),
        ("10.0.0.0/24", "10.0.0.255"),
        ("10.0.0.0/24", "2001:db8::1"),
        ("2001:db8::/64", "2001:db8::"),
    ] {
        let request = v1::CreateNetworkRequest {
            subnets: vec![v1::Subnet {
                gateway: gateway.into(),
                ..subnet(cidr)
            }],
            ..network("n", &[])
        };
        refuse!(
            lab,
            c.create_network(request),
            InvalidArgument,
            gateway,
            cidr
        );
    }
    for cidr in ["10.0.0.0/24", "2001:db8::/80"] {
        let request = v1::CreateNetworkRequest {
            subnets: vec![v1::Subnet {
                slaac: true,
                ..subnet(cidr)
            }],
            ..network("n", &[])
        };
        refuse!(lab, c.create_network(request), InvalidArgument, "SLAAC");
    }
    refuse!(
        lab,
        c.create_network(v1::CreateNetworkRequest {
            vni: 1 << 24,
            ..network("n", &[])
        }),
        InvalidArgument,
        "16777216"
    );
    refuse!(
        lab,
        c.create_network(v1::CreateNetworkRequest {
            mtu: 575,
            ..network("n", &[])
        }),
        InvalidArgument,
        "575"
    );
    refuse!(
        lab,
        c.create_network(v1::CreateNetworkRequest {
            mtu: 1279,
            ..network("n", &["2001:db8::/64"])
        }),
        InvalidArgument,
        "1279"
    );
    refuse!(
        lab,
        c.create_network(v1::CreateNetworkRequest {
            dns: vec!["dns".into()],
            ..network("n", &[])
        }),
        InvalidArgument,
        "dns"
    );
    let route = v1::Route {
        destination: "0.0.0.0/0".into(),
        next_hop: "10.9.9.9".into(),
    };
    refuse!(
        lab,
        c.create_network(v1::CreateNetworkRequest {
            routes: vec![route],
            ..network("n", &["10.0.0.0/24"])
        }),
        InvalidArgument,
        "10.9.9.9"
    );
    for mac in [
        "02:00",
        "01:00:5e:00:00:01",
        "ff:ff:ff:ff:ff:ff",
        "00:00:00:00:00:00",
    ] {
        refuse!(
            lab,
            c.create_port(v1::CreatePortRequest {
                mac: mac.into(),
                ..port("p2", "blue", "")
            }),
            InvalidArgument,
            mac
        );
    }
    for address in [
        "x",
        "10.0.0.0",
        "10.0.0.7",
        "10.0.0.1",
        "10.9.9.9",
        "2001:db8::5",
        "224.0.0.1",
    ] {
        refuse!(
            lab,
            c.create_port(v1::CreatePortRequest {
                addresses: vec![address.into()],
                ..port("p2", "blue", "")
            }),
            InvalidArgument,
            address
        );
    }
    let twice = vec!["10.0.0.5".to_owned(); 2];
    refuse!(
        lab,
        c.create_port(v1::CreatePortRequest {
            addresses: twice,
            ..port("p2", "blue", "")
        }),
        InvalidArgument,
        "twice"
    );
    for (queue_pairs, queue_size, mode) in [
        (65, 0, 0),
        (0, 63, 0),
        (0, 1000, 0),
        (0, 65536, 0),
        (0, 0, 7),
    ] {
        let virtio = Some(v1::VirtioOptions {
            queue_pairs,
            queue_size,
            mode,
        });
        refuse!(
            lab,
            c.create_port(v1::CreatePortRequest {
                virtio,
                ..port("p2", "blue", "")
            }),
            InvalidArgument,
            "p2"
        );
    }
    refuse!(
        lab,
        c.create_port(v1::CreatePortRequest {
            binding: 99,
            ..port("p2", "blue", "")
        }),
        InvalidArgument,
        "99"
    );
    refuse!(
        lab,
        c.create_port(v1::CreatePortRequest {
            owner: "x".repeat(300),
            ..port("p2", "blue", "")
        }),
        InvalidArgument,
        "owner"
    );
    refuse!(
        lab,
        c.list_ports(v1::ListPortsRequest {
            page_size: 1001,
            ..Default::default()
        }),
        InvalidArgument,
        "1001"
    );
    refuse!(
        lab,
        c.list_hosts(v1::ListRequest {
            page_token: "!".into(),
            ..Default::default()
        }),
        InvalidArgument,
        "page token"
    );
    refuse!(
        lab,
        c.create_token(v1::CreateTokenRequest::default()),
        InvalidArgument,
        "neither"
    );
    let huge = v1::CreateNetworkRequest {
        dns: vec!["x".repeat(2_000_000)],
        ..network("n", &[])
    };
    let before = lab.revision();
    assert_eq!(
        c.create_network(huge).await.unwrap_err().code(),
        tonic::Code::OutOfRange
    );
    assert_eq!(lab.revision(), before);
}
