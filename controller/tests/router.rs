//! What the controller accepts, the hosts' virtual routers take: one refused network costs all its guests.

use std::sync::Arc;

use api::v1;
use controller::plan::{networks, ports};
use controller::records::{Network, Port};
use controller::refusal::Refusal;
use controller::state::{Change, State};
use controller::store::Plan;
use proptest::prelude::*;
use proptest::sample::select;
use vrouter::{NetworkId, Topology, VRouter};

/// Plans and applies, as the store does.
fn write<T>(
    state: &mut State,
    plan: impl FnOnce(&State, &mut Plan) -> Result<T, Refusal>,
) -> Result<T, Refusal> {
    let mut changes = Plan::default();
    let value = plan(state, &mut changes)?;
    state.revision += 1;
    changes
        .changes()
        .iter()
        .for_each(|change: &Change| state.apply(change));
    Ok(value)
}

const PREFIXES: &[&str] = &[
    "10.0.0.0/30",
    "10.0.0.0/29",
    "10.0.1.0/24",
    "10.0.0.0/8",
    "0.0.0.0/1",
    "64.0.0.0/2",
    "0.0.0.0/0",
    "128.0.0.0/1",
    "223.255.255.0/24",
    "224.0.0.0/24",
    "169.254.0.0/16",
    "168.0.0.0/6",
    "127.0.0.0/8",
    "10.9.0.0/31",
    "10.9.0.0/32",
    "fd00::/64",
    "fd00::/126",
    "fd00::/127",
    "fd00:1::/48",
    "::/8",
    "fe00::/8",
    "fe80::/64",
    "ff00::/8",
    "::ffff:0:0/96",
    "2001:db8::/64",
];

const ADDRESSES: &[&str] = &[
    "10.0.0.0",
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.3",
    "10.0.0.7",
    "10.0.1.255",
    "64.0.0.1",
    "127.0.0.1",
    "169.254.0.9",
    "223.255.255.255",
    "255.255.255.255",
    "fd00::",
    "fd00::1",
    "fd00::2",
    "fd00::3",
    "fd00:1::9",
    "fe80::1",
    "ff02::1",
    "::1",
    "::ffff:10.0.0.1",
    "2001:db8::5",
];

/// Those that are often accepted, so that what follows is reached.
const USUAL: &[&str] = &["10.0.0.0/29", "10.0.1.0/24", "fd00::/64"];

const DESTINATIONS: &[&str] = &[
    "0.0.0.0/0",
    "10.9.0.0/16",
    "10.0.0.0/8",
    "10.0.0.0/30",
    "10.0.0.0/29",
    "::/0",
    "fd00::/64",
    "fd00::/16",
    "fd00:9::/48",
];

const NEXT_HOPS: &[&str] = &[
    "10.0.0.0", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.7", "10.0.1.1", "fd00::", "fd00::1",
    "fd00::2",
];

fn texts(of: &'static [&'static str], most: usize) -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(select(of).prop_map(str::to_owned), 0..=most)
}

fn subnet() -> impl Strategy<Value = v1::Subnet> {
    let cidr = prop_oneof![6 => select(USUAL), 1 => select(PREFIXES)];
    let gateway =
        prop_oneof![6 => Just(String::new()), 1 => select(ADDRESSES).prop_map(str::to_owned)];
    (cidr, gateway, prop::bool::weighted(0.2)).prop_map(|(cidr, gateway, slaac)| v1::Subnet {
        cidr: cidr.into(),
        gateway,
        slaac,
    })
}

fn route() -> impl Strategy<Value = v1::Route> {
    (select(DESTINATIONS), select(NEXT_HOPS)).prop_map(|(destination, next_hop)| v1::Route {
        destination: destination.into(),
        next_hop: next_hop.into(),
    })
}

fn request() -> impl Strategy<Value = v1::CreateNetworkRequest> {
    let mtu = select(&[576, 1279, 1280, 1450, 65000, 65001, 65485, 65536][..]);
    let mtu = prop_oneof![3 => Just(0), 1 => mtu];
    let subnets = prop::collection::vec(subnet(), 0..4);
    let routes = prop::collection::vec(route(), 0..3);
    (mtu, subnets, texts(ADDRESSES, 1), routes).prop_map(|(mtu, subnets, dns, routes)| {
        v1::CreateNetworkRequest {
            name: "blue".into(),
            vni: 0,
            mtu,
            subnets,
            dns,
            routes,
            vlan: 0,
        }
    })
}

fn topology(network: &Network, ports: &[Arc<Port>]) -> Topology {
    let id = NetworkId(0);
    Topology {
        networks: vec![vrouter::Network {
            id,
            name: network.name.clone(),
            vni: network.vni,
            mtu: u16::try_from(network.mtu).expect("an MTU of 16 bits"),
            gateway_mac: flow::MacAddr(network.gateway_mac.0),
            subnets: network
                .subnets
                .iter()
                .map(|subnet| vrouter::Subnet {
                    prefix: subnet.prefix,
                    gateway: subnet.gateway,
                    slaac: subnet.slaac,
                })
                .collect(),
            dns: network.dns.clone(),
            routes: network
                .routes
                .iter()
                .map(|route| vrouter::Route {
                    destination: route.destination,
                    next_hop: route.next_hop,
                })
                .collect(),
        }],
        ports: (1..)
            .zip(ports)
            .map(|(number, port)| vrouter::Port {
                id: flow::PortId(number),
                name: port.name.clone(),
                network: id,
                mac: flow::MacAddr(port.mac.0),
                addresses: port.addresses.clone(),
            })
            .collect(),
        ..Topology::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]
    #[test]
    fn an_accepted_network_with_its_ports_makes_a_router(
        request in request(),
        wanted in prop::collection::vec(texts(ADDRESSES, 2), 0..4),
    ) {
        let mut state = State::default();
        let Ok(network) = write(&mut state, |state, plan| networks::create(state, plan, &request)) else {
            return Ok(());
        };
        let mut made = Vec::new();
        for (number, addresses) in wanted.into_iter().enumerate() {
            let port = v1::CreatePortRequest {
                name: format!("p{number}"),
                network: "blue".into(),
                addresses,
                ..Default::default()
            };
            made.extend(write(&mut state, |state, plan| ports::create(state, plan, &port)));
        }
        if let Err(error) = VRouter::new(topology(&network, &made)) {
            prop_assert!(false, "{request:?}: {error}");
        }
    }
}
