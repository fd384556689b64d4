//! Desired state reaches agents whole once and then as differences; ports are ready by the agent's word.

mod harness;

use api::v1::{self, PortState};
use harness::*;
use tonic::Code;

/// Two hosts with VTEPs, network blue, one port on each.
async fn two_hosts(lab: &Lab) -> (Client, Agent, Agent, v1::Port, v1::Port) {
    let mut c = lab.client().await;
    c.create_host(host("h1")).await.unwrap();
    c.create_host(host("h2")).await.unwrap();
    c.create_network(network("blue", &["10.0.0.0/24"]))
        .await
        .unwrap();
    c.create_network(network("other", &["10.0.0.0/24"]))
        .await
        .unwrap();
    let mut h1 = lab.agent(hello("h1", "192.0.2.1", 9000)).await;
    let mut h2 = lab.agent(hello("h2", "192.0.2.2", 9000)).await;
    h1.step().await.unwrap();
    h2.step().await.unwrap();
    let p1 = c
        .create_port(port("p1", "blue", "h1"))
        .await
        .unwrap()
        .into_inner();
    h1.step().await.unwrap();
    let p2 = c
        .create_port(port("p2", "blue", "h2"))
        .await
        .unwrap()
        .into_inner();
    h1.step().await.unwrap();
    h2.step().await.unwrap();
    (c, h1, h2, p1, p2)
}

async fn status(c: &mut Client, port: &str) -> v1::PortStatus {
    c.get_port(by_ref(port))
        .await
        .unwrap()
        .into_inner()
        .status
        .unwrap()
}

async fn becomes(c: &Client, port: &str, state: PortState) {
    eventually(&format!("{port} becomes {state:?}"), || {
        let mut c = c.clone();
        async move { status(&mut c, port).await.state == state as i32 }
    })
    .await;
}

#[tokio::test]
async fn a_host_is_sent_what_it_needs_and_no_more() {
    let lab = Lab::plain().await;
    let (mut c, mut h1, mut h2, p1, p2) = two_hosts(&lab).await;
    let network = format!("network/{}", p1.network);
    assert_eq!(
        h1.keys(),
        [
            network.clone(),
            format!("peer/{}", p2.id),
            format!("port/{}", p1.id)
        ]
    );
    assert_eq!(
        h2.keys(),
        [
            network.clone(),
            format!("peer/{}", p1.id),
            format!("port/{}", p2.id)
        ]
    );
    let Some(v1::resource::Resource::Peer(peer)) =
        h1.resources[&format!("peer/{}", p2.id)].resource.clone()
    else {
        panic!("not a peer");
    };
    assert_eq!(
        (peer.vtep.as_str(), &peer.mac, &peer.addresses),
        ("192.0.2.2", &p2.mac, &p2.addresses)
    );

    // Another network, and a port on no host, are nobody's business.
    c.create_port(port("q", "other", "")).await.unwrap();
    c.create_port(port("r", "blue", "")).await.unwrap();
    h1.silence().await;
    h2.silence().await;

    // A difference is only the difference.
    let dns = v1::UpdateNetworkRequest {
        r#ref: "blue".into(),
        set_dns: true,
        dns: vec!["10.0.0.9".into()],
        ..Default::default()
    };
    c.update_network(dns).await.unwrap();
    let step = h1.step().await.unwrap();
    assert!(!step.full && step.deletes.is_empty());
    assert_eq!(
        step.upserts
            .iter()
            .map(|r| r.key.as_str())
            .collect::<Vec<_>>(),
        [network.as_str()]
    );
    h2.step().await.unwrap();

    // A port moves: h1 has the only ones now, h2 forgets the network whole.
    let moved = v1::UpdatePortRequest {
        r#ref: "p2".into(),
        host: Some("h1".into()),
        ..Default::default()
    };
    c.update_port(moved).await.unwrap();
    h1.step().await.unwrap();
    h2.step().await.unwrap();
    assert!(h2.resources.is_empty(), "{:?}", h2.keys());
    assert_eq!(
        h1.keys().len(),
        3,
        "network and two ports, no peer: {:?}",
        h1.keys()
    );

    c.delete_port(delete("p1", 0)).await.unwrap();
    let step = h1.step().await.unwrap();
    assert_eq!(step.deletes, [format!("port/{}", p1.id)]);
    h2.silence().await;
}

#[tokio::test]
async fn a_vtep_that_changes_reaches_the_peers() {
    let lab = Lab::plain().await;
    let (_c, mut h1, h2, _p1, p2) = two_hosts(&lab).await;
    drop(h2);
    let mut h2 = lab.agent(hello("h2", "192.0.2.22", 9000)).await;
    h2.step().await.unwrap();
    let step = h1.step().await.unwrap();
    assert_eq!(step.upserts.len(), 1);
    assert_eq!(step.upserts[0].key, format!("peer/{}", p2.id));
}

#[tokio::test]
async fn after_a_restart_of_either_side_only_differences_are_sent() {
    let mut lab = Lab::plain().await;
    let (c, h1, mut h2, p1, p2) = two_hosts(&lab).await;
    // The controller restarts.
    lab.restart().await;
    assert_eq!(h2.step().await.unwrap_err().code(), Code::Unavailable);
    let again = v1::AgentHello {
        store_id: h1.store_id.clone(),
        have: h1.have(),
        ..hello("h1", "192.0.2.1", 9000)
    };
    let mut new = lab.agent(again).await;
    let step = new.step().await.unwrap();
    assert!(
        !step.full && step.upserts.is_empty() && step.deletes.is_empty(),
        "{step:?}"
    );
    drop(c);
    let mut c = lab.client().await;
    // The agent restarts, and misses changes meanwhile.
    drop(new);
    c.delete_port(delete("p2", 0)).await.unwrap();
    let p3 = c
        .create_port(port("p3", "blue", "h1"))
        .await
        .unwrap()
        .into_inner();
    let mut have = h1.have();
    have.push(v1::Have {
        key: "rubbish".into(),
        revision: 1,
    });
    let again = v1::AgentHello {
        store_id: h1.store_id.clone(),
        have,
        ..hello("h1", "192.0.2.1", 9000)
    };
    let mut new = lab.agent(again).await;
    new.resources.clone_from(&h1.resources);
    new.resources
        .insert("rubbish".into(), v1::Resource::default());
    let step = new.step().await.unwrap();
    assert_eq!(step.upserts.len(), 1);
    assert_eq!(step.deletes, [format!("peer/{}", p2.id), "rubbish".into()]);
    assert_eq!(new.keys().len(), 3);
    assert!(
        new.resources.contains_key(&format!("port/{}", p3.id))
            && new.resources.contains_key(&format!("port/{}", p1.id))
    );
    // An agent of another store starts anew.
    let other = v1::AgentHello {
        store_id: "other".into(),
        have: h1.have(),
        ..hello("h1", "192.0.2.1", 9000)
    };
    let mut new = lab.agent(other).await;
    let step = new.step().await.unwrap();
    assert!(step.full);
    assert_eq!(new.keys().len(), 3);
}

#[tokio::test]
async fn a_port_is_ready_by_its_agents_word_for_what_it_is_now() {
    let mut lab = Lab::plain().await;
    let mut c = lab.client().await;
    c.create_host(host("h1")).await.unwrap();
    c.create_network(network("blue", &["10.0.0.0/24"]))
        .await
        .unwrap();
    let p1 = c
        .create_port(port("p1", "blue", "h1"))
        .await
        .unwrap()
        .into_inner();
    let pending = status(&mut c, "p1").await;
    assert_eq!(pending.state, PortState::Pending as i32);
    assert!(
        pending.reason.contains("h1 has not connected"),
        "{}",
        pending.reason
    );

    let mut h1 = lab.agent(hello("h1", "192.0.2.1", 1500)).await;
    let version = h1.step().await.unwrap().version;
    // Said before it was applied: not yet.
    h1.report(&p1.id, PortState::Ready, "").await;
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    assert_eq!(status(&mut c, "p1").await.state, PortState::Pending as i32);
    h1.applied(version).await;
    becomes(&c, "p1", PortState::Ready).await;
    // The port changes: what was said is about the old one.
    let owner = v1::UpdatePortRequest {
        r#ref: "p1".into(),
        owner: Some("vm/web".into()),
        ..Default::default()
    };
    let updated = c.update_port(owner).await.unwrap().into_inner();
    assert_eq!(updated.status.unwrap().state, PortState::Pending as i32);
    let version = h1.step().await.unwrap().version;
    h1.applied(version).await;
    becomes(&c, "p1", PortState::Ready).await;
    h1.report(&p1.id, PortState::Failed, "No such socket").await;
    becomes(&c, "p1", PortState::Failed).await;
    assert_eq!(status(&mut c, "p1").await.reason, "No such socket");
    // A report on a port of nobody, or someone else, is ignored.
    h1.report("rubbish", PortState::Ready, "").await;
    h1.report(&p1.id, PortState::Ready, "").await;
    becomes(&c, "p1", PortState::Ready).await;
    let host = c.get_host(by_ref("h1")).await.unwrap().into_inner();
    let host_status = host.status.unwrap();
    assert!(host_status.connected && host_status.applied_version == host_status.desired_version);
    assert_eq!((host.vtep.as_str(), host.underlay_mtu), ("192.0.2.1", 1500));

    drop(h1);
    becomes(&c, "p1", PortState::Pending).await;
    lab.restart().await;
    let mut c = lab.client().await;
    assert_eq!(status(&mut c, "p1").await.state, PortState::Pending as i32);
}

#[tokio::test]
async fn an_underlay_that_shrinks_fails_the_ports_with_a_reason() {
    let lab = Lab::plain().await;
    let (mut c, mut h1, _h2, p1, _p2) = two_hosts(&lab).await;
    let up = v1::UpdateNetworkRequest {
        r#ref: "blue".into(),
        mtu: Some(8950),
        ..Default::default()
    };
    c.update_network(up).await.unwrap();
    let version = h1.step().await.unwrap().version;
    h1.applied(version).await;
    h1.report(&p1.id, PortState::Ready, "").await;
    becomes(&c, "p1", PortState::Ready).await;
    let mut smaller = lab.agent(hello("h1", "192.0.2.1", 1500)).await;
    smaller.step().await.unwrap();
    becomes(&c, "p1", PortState::Failed).await;
    let reason = status(&mut c, "p1").await.reason;
    assert!(
        reason.contains("blue") && reason.contains("9000") && reason.contains("h1 has 1500"),
        "{reason}"
    );
    let problems = c
        .get_host(by_ref("h1"))
        .await
        .unwrap()
        .into_inner()
        .status
        .unwrap()
        .problems;
    assert_eq!(problems, [reason]);
}

#[tokio::test]
async fn a_newer_agent_of_the_same_host_takes_over() {
    let lab = Lab::plain().await;
    let (mut c, mut old, _h2, _p1, _p2) = two_hosts(&lab).await;
    let mut new = lab.agent(hello("h1", "192.0.2.1", 9000)).await;
    new.step().await.unwrap();
    assert_eq!(old.step().await.unwrap_err().code(), Code::Aborted);
    let status = c
        .get_host(by_ref("h1"))
        .await
        .unwrap()
        .into_inner()
        .status
        .unwrap();
    assert!(status.connected);
    c.create_port(port("p9", "blue", "h1")).await.unwrap();
    assert_eq!(new.step().await.unwrap().upserts.len(), 1);
}

#[tokio::test]
async fn agents_that_cannot_be_are_refused() {
    let lab = Lab::plain().await;
    let (_c, _h1, _h2, ..) = two_hosts(&lab).await;
    for (word, code, words) in [
        (
            hello("h9", "", 0),
            Code::NotFound,
            &["host 'h9'", "create"][..],
        ),
        (
            hello("h1", "192.0.2.2", 9000),
            Code::AlreadyExists,
            &["h1", "192.0.2.2", "h2"][..],
        ),
        (
            hello("h1", "nowhere", 9000),
            Code::InvalidArgument,
            &["nowhere"][..],
        ),
        (
            hello("h1", "192.0.2.1", 70_000),
            Code::InvalidArgument,
            &["70000"][..],
        ),
    ] {
        let mut agent = lab.agent(word).await;
        refused(agent.step().await, code, words);
    }
    let (outbox, stream) = tokio::sync::mpsc::channel(1);
    outbox
        .send(message(v1::agent_message::Message::Applied(v1::Applied {
            version: 1,
        })))
        .await
        .unwrap();
    let mut client = api::client::sync_client(lab.channel().await);
    let mut inbox = client
        .sync(tokio_stream::wrappers::ReceiverStream::new(stream))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        inbox.message().await.unwrap_err().code(),
        Code::InvalidArgument
    );
}

#[tokio::test]
async fn a_hundred_ports_on_one_host_become_ready() {
    let lab = Lab::plain().await;
    let mut c = lab.client().await;
    c.create_host(host("h1")).await.unwrap();
    c.create_network(network("blue", &["10.0.0.0/24"]))
        .await
        .unwrap();
    let mut h1 = lab.agent(hello("h1", "192.0.2.1", 1500)).await;
    h1.step().await.unwrap();
    for number in 0..100 {
        c.create_port(port(&format!("p{number}"), "blue", "h1"))
            .await
            .unwrap();
    }
    let mut steps = 0;
    while h1.keys().len() < 101 {
        let step = h1.step().await.unwrap();
        steps += 1;
        for resource in &step.upserts {
            if let Some(id) = resource.key.strip_prefix("port/") {
                h1.report(id, PortState::Ready, "").await;
            }
        }
        h1.applied(step.version).await;
    }
    println!("100 ports in {steps} steps");
    eventually("all are ready", || {
        let mut c = c.clone();
        async move {
            let list = v1::ListPortsRequest {
                page_size: 1000,
                host: "h1".into(),
                ..Default::default()
            };
            let ports = c.list_ports(list).await.unwrap().into_inner().ports;
            ports.len() == 100
                && ports.iter().all(|port| {
                    port.status
                        .as_ref()
                        .is_some_and(|s| s.state == PortState::Ready as i32)
                })
        }
    })
    .await;
}

#[tokio::test]
async fn a_port_that_leaves_and_comes_back_at_once_is_ready_again() {
    let lab = Lab::plain().await;
    let (c, mut h1, h2, p1, _p2) = two_hosts(&lab).await;
    drop(h2);
    h1.report(&p1.id, PortState::Ready, "").await;
    let store = lab.running().store();
    let away_and_back = store.write(|state, plan| {
        let id = state.port_names()["p1"];
        let old = state.port(id).unwrap().as_ref().clone();
        let other = state.host_names()["h2"];
        let revision = state.revision + 1;
        for host in [Some(other), old.host] {
            plan.push(controller::state::Change::PutPort(
                controller::records::Port {
                    host,
                    revision,
                    ..old.clone()
                }
                .into(),
            ));
        }
        Ok(())
    });
    away_and_back.await.unwrap();
    let step = h1.step().await.unwrap();
    assert!(step.deletes.is_empty(), "{step:?}");
    // Nothing changed for the agent, which therefore reports nothing.
    h1.applied(step.version).await;
    becomes(&c, "p1", PortState::Ready).await;
}

/// Otherwise an agent says that it applied what it was never sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_step_has_everything_up_to_its_version() {
    let lab = Lab::plain().await;
    let mut c = lab.client().await;
    c.create_host(host("h1")).await.unwrap();
    c.create_network(network("blue", &["10.0.0.0/16"]))
        .await
        .unwrap();
    let mut h1 = lab.agent(hello("h1", "192.0.2.1", 1500)).await;
    h1.step().await.unwrap();
    let creations: Vec<_> = (0..4)
        .map(|task| {
            let mut c = c.clone();
            tokio::spawn(async move {
                let mut made = Vec::new();
                for number in 0..250 {
                    let request = port(&format!("p{task}-{number}"), "blue", "h1");
                    let port = c.create_port(request).await.unwrap().into_inner();
                    made.push((port.revision, format!("port/{}", port.id)));
                }
                made
            })
        })
        .collect();
    let mut seen = Vec::new();
    while h1.keys().len() < 1001 {
        let version = h1.step().await.unwrap().version;
        seen.push((version, h1.resources.clone()));
    }
    let mut made = Vec::new();
    for task in creations {
        made.extend(task.await.unwrap());
    }
    for (version, resources) in seen {
        for (revision, key) in made.iter().filter(|(revision, _)| *revision <= version) {
            assert!(
                resources.contains_key(key),
                "version {version} came without {key} of revision {revision}"
            );
        }
    }
}

#[tokio::test]
async fn an_agent_that_takes_nothing_stops_nobody_else() {
    let lab = Lab::plain().await;
    let mut c = lab.client().await;
    for name in ["h1", "h2"] {
        c.create_host(host(name)).await.unwrap();
    }
    let networks = ["n0", "n1", "n2", "n3"];
    for name in networks {
        c.create_network(network(name, &["10.0.0.0/16"]))
            .await
            .unwrap();
    }
    // It says hello and never reads: its window fills, then the outbox.
    let _stuck = lab.agent(hello("h1", "192.0.2.1", 1500)).await;
    let mut h2 = lab.agent(hello("h2", "192.0.2.2", 1500)).await;
    h2.step().await.unwrap();
    let store = lab.running().store();
    let mut made = 0;
    let start = std::time::Instant::now();
    for round in 0..40 {
        let batch = (0..100).map(|number| {
            let request = v1::CreatePortRequest {
                owner: "o".repeat(250),
                ..port(
                    &format!("p{round}-{number}"),
                    networks[number % networks.len()],
                    ["h1", "h2"][number / 4 % 2],
                )
            };
            store.write(move |state, plan| {
                controller::plan::ports::create(state, plan, &request).map(drop)
            })
        });
        for outcome in futures_util::future::join_all(batch).await {
            outcome.unwrap();
            made += 1;
        }
        while h2.keys().len() < made + networks.len() {
            h2.step().await.unwrap();
        }
    }
    assert!(
        start.elapsed() < std::time::Duration::from_secs(20),
        "h2 waited for h1: {:?}",
        start.elapsed()
    );
    // The stuck one may be replaced at once, and its successor is told everything.
    let mut again = lab.agent(hello("h1", "192.0.2.1", 1500)).await;
    again.step().await.unwrap();
    assert_eq!(again.keys().len(), made + networks.len());
}
