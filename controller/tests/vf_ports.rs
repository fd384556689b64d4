//! Ports with a VF: what may be asked, the provider VLAN of their network, and who is told of them.

mod harness;

use api::v1::{self, Binding};
use harness::*;

fn vf_port(name: &str, host: &str) -> v1::CreatePortRequest {
    v1::CreatePortRequest {
        binding: Binding::Sriov.into(),
        ..port(name, "blue", host)
    }
}

fn vlan(network: &str, vlan: u32) -> v1::UpdateNetworkRequest {
    v1::UpdateNetworkRequest {
        r#ref: network.into(),
        vlan: Some(vlan),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_port_keeps_its_pool_and_standby_over_a_restart() {
    let (mut lab, mut c) = lab().await;
    c.update_network(vlan("blue", 42)).await.unwrap();
    let asked = v1::CreatePortRequest {
        pool: "tenants".into(),
        standby: true,
        ..vf_port("v1", "h1")
    };
    c.create_port(asked).await.unwrap();
    lab.restart().await;
    let mut c = lab.client().await;
    let kept = c.get_port(by_ref("v1")).await.unwrap().into_inner();
    assert_eq!(kept.binding(), Binding::Sriov);
    assert_eq!((kept.pool.as_str(), kept.standby), ("tenants", true));
    let blue = c.get_network(by_ref("blue")).await.unwrap().into_inner();
    assert_eq!(blue.vlan, 42);
}

#[tokio::test]
async fn pools_and_standbys_are_for_vfs_only() {
    let (lab, mut c) = lab().await;
    let pool = v1::CreatePortRequest {
        pool: "tenants".into(),
        ..port("v1", "blue", "h1")
    };
    refuse!(
        lab,
        c.create_port(pool),
        InvalidArgument,
        "v1",
        "a pool",
        "sriov"
    );
    let standby = v1::CreatePortRequest {
        standby: true,
        ..port("v1", "blue", "h1")
    };
    refuse!(
        lab,
        c.create_port(standby),
        InvalidArgument,
        "v1",
        "a standby",
        "sriov"
    );
    let odd = v1::CreatePortRequest {
        pool: "No Pool".into(),
        ..vf_port("v1", "h1")
    };
    refuse!(lab, c.create_port(odd), InvalidArgument, "'No Pool'");
}

#[tokio::test]
async fn a_port_of_binding_xvio_has_a_pool_and_is_routed_too() {
    let (mut lab, mut c) = lab().await;
    c.update_network(vlan("blue", 42)).await.unwrap();
    let xvio = |name: &str| v1::CreatePortRequest {
        binding: Binding::Xvio.into(),
        pool: "tenants".into(),
        ..port(name, "blue", "h1")
    };
    let standby = v1::CreatePortRequest {
        standby: true,
        ..xvio("x1")
    };
    refuse!(
        lab,
        c.create_port(standby),
        InvalidArgument,
        "x1",
        "a standby"
    );
    c.create_host(host("h2")).await.unwrap();
    let mut h2 = lab.agent(hello("h2", "192.0.2.2", 1500)).await;
    h2.step().await.unwrap();
    c.create_port(port("p2", "blue", "h2")).await.unwrap();
    h2.step().await.unwrap();
    let x1 = c.create_port(xvio("x1")).await.unwrap().into_inner();
    h2.step().await.unwrap();
    assert!(
        h2.resources.contains_key(&format!("peer/{}", x1.id)),
        "without its VF the router reaches it"
    );
    refuse!(
        lab,
        c.update_network(vlan("blue", 43)),
        FailedPrecondition,
        "VLAN 42",
        "x1"
    );
    lab.restart().await;
    let mut c = lab.client().await;
    let kept = c.get_port(by_ref("x1")).await.unwrap().into_inner();
    assert_eq!(
        (kept.binding(), kept.pool.as_str()),
        (Binding::Xvio, "tenants")
    );
}

#[tokio::test]
async fn a_vlan_is_one_networks_and_stays_while_a_vf_has_it() {
    let (lab, mut c) = lab().await;
    let red = v1::CreateNetworkRequest {
        vlan: 42,
        ..network("red", &["10.0.0.0/29"])
    };
    c.create_network(red).await.unwrap();
    refuse!(
        lab,
        c.update_network(vlan("blue", 42)),
        AlreadyExists,
        "VLAN 42",
        "red"
    );
    refuse!(
        lab,
        c.update_network(vlan("blue", 4095)),
        InvalidArgument,
        "4095",
        "4094"
    );
    let blue = c
        .update_network(vlan("blue", 43))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(blue.vlan, 43);
    c.create_port(vf_port("v1", "h1")).await.unwrap();
    refuse!(
        lab,
        c.update_network(vlan("blue", 44)),
        FailedPrecondition,
        "VLAN 43",
        "blue",
        "v1"
    );
    // The same again is no change, and other fields are free.
    c.update_network(vlan("blue", 43)).await.unwrap();
    c.delete_port(delete("v1", 0)).await.unwrap();
    c.update_network(vlan("blue", 0)).await.unwrap();
}

#[tokio::test]
async fn other_hosts_hear_only_of_what_their_router_reaches() {
    let (lab, mut c) = lab().await;
    c.create_host(host("h2")).await.unwrap();
    let mut h2 = lab.agent(hello("h2", "192.0.2.2", 1500)).await;
    h2.step().await.unwrap();
    c.create_port(port("p2", "blue", "h2")).await.unwrap();
    h2.step().await.unwrap();
    let before = h2.keys().len();
    c.create_port(vf_port("v1", "h1")).await.unwrap();
    h2.silence().await;
    let standby = v1::CreatePortRequest {
        standby: true,
        ..vf_port("v2", "h1")
    };
    let v2 = c.create_port(standby).await.unwrap().into_inner();
    h2.step().await.unwrap();
    assert_eq!(h2.keys().len(), before + 1);
    assert!(h2.resources.contains_key(&format!("peer/{}", v2.id)));
}
