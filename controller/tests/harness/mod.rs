//! A controller in this process on an ephemeral loopback port, and an agent made of a stream.
#![allow(dead_code, reason = "each test program uses its own part of it")]

use std::collections::BTreeMap;
use std::time::Duration;

use api::client::{self, Target};
use api::v1::{self, agent_message, controller_message};
use controller::server::{Options, Running};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

pub type Client = v1::controller_client::ControllerClient<Channel>;

/// A controller with a folder of its own, removed with it.
pub struct Lab {
    pub root: TempDir,
    pub running: Option<Running>,
    pub plain: bool,
}

impl Lab {
    pub async fn plain() -> Lab {
        let mut lab = Lab {
            root: tempfile::tempdir().unwrap(),
            running: None,
            plain: true,
        };
        lab.start().await;
        lab
    }

    pub async fn start(&mut self) {
        let options = Options {
            root: self.root.path().into(),
            listen: "127.0.0.1:0".parse().unwrap(),
            plain: self.plain,
            plain_anywhere: false,
        };
        self.running = Some(Running::start(&options).await.unwrap());
    }

    pub async fn restart(&mut self) {
        self.running.take().unwrap().stop().await;
        self.start().await;
    }

    pub fn running(&self) -> &Running {
        self.running.as_ref().unwrap()
    }

    pub fn url(&self) -> String {
        let scheme = if self.plain { "http" } else { "https" };
        format!("{scheme}://{}", self.running().address())
    }

    pub fn revision(&self) -> u64 {
        self.running().store().read().revision
    }

    pub async fn channel(&self) -> Channel {
        client::connect(&Target::controller(&self.url(), None, false).unwrap())
            .await
            .unwrap()
    }

    pub async fn client(&self) -> Client {
        client::controller_client(self.channel().await)
    }

    pub async fn agent(&self, hello: v1::AgentHello) -> Agent {
        Agent::connect(self.channel().await, hello).await.unwrap()
    }
}

pub fn subnet(cidr: &str) -> v1::Subnet {
    v1::Subnet {
        cidr: cidr.into(),
        ..Default::default()
    }
}

pub fn network(name: &str, cidrs: &[&str]) -> v1::CreateNetworkRequest {
    v1::CreateNetworkRequest {
        name: name.into(),
        subnets: cidrs.iter().map(|cidr| subnet(cidr)).collect(),
        ..Default::default()
    }
}

pub fn port(name: &str, network: &str, host: &str) -> v1::CreatePortRequest {
    v1::CreatePortRequest {
        name: name.into(),
        network: network.into(),
        host: host.into(),
        ..Default::default()
    }
}

pub fn host(name: &str) -> v1::CreateHostRequest {
    v1::CreateHostRequest {
        name: name.into(),
        vtep: String::new(),
    }
}

pub fn by_ref(reference: &str) -> v1::GetRequest {
    v1::GetRequest {
        r#ref: reference.into(),
    }
}

pub fn delete(reference: &str, revision: u64) -> v1::DeleteRequest {
    v1::DeleteRequest {
        r#ref: reference.into(),
        revision,
    }
}

pub fn hello(host: &str, vtep: &str, mtu: u32) -> v1::AgentHello {
    v1::AgentHello {
        host: host.into(),
        agent_version: "test".into(),
        vtep: vtep.into(),
        underlay_mtu: mtu,
        ..Default::default()
    }
}

/// A refusal with this code, whose sentence has these words.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(outcome: Result<T, Status>, code: Code, words: &[&str]) {
    let status = outcome.expect_err("it should have been refused");
    assert_eq!(status.code(), code, "{}", status.message());
    for word in words {
        assert!(
            status.message().contains(word),
            "{word:?} is not in {:?}",
            status.message()
        );
    }
    assert!(
        !status.message().contains('\n') && status.message().contains([';', ',']),
        "{}",
        status.message()
    );
}

/// An agent that keeps what it is sent, as the real one does.
pub struct Agent {
    pub outbox: mpsc::Sender<v1::AgentMessage>,
    pub inbox: Streaming<v1::ControllerMessage>,
    pub resources: BTreeMap<String, v1::Resource>,
    pub store_id: String,
}

impl Agent {
    pub async fn connect(channel: Channel, hello: v1::AgentHello) -> Result<Agent, Status> {
        let (outbox, stream) = mpsc::channel(16);
        outbox
            .send(message(agent_message::Message::Hello(hello)))
            .await
            .unwrap();
        let inbox = client::sync_client(channel)
            .sync(ReceiverStream::new(stream))
            .await?
            .into_inner();
        Ok(Agent {
            outbox,
            inbox,
            resources: BTreeMap::new(),
            store_id: String::new(),
        })
    }

    /// The next step, kept but not yet acknowledged.
    pub async fn step(&mut self) -> Result<v1::Desired, Status> {
        let message = tokio::time::timeout(Duration::from_secs(10), self.inbox.message())
            .await
            .expect("no step within 10 seconds")?
            .ok_or_else(|| Status::cancelled("the stream ended"))?;
        let Some(controller_message::Message::Desired(desired)) = message.message else {
            panic!("an empty message")
        };
        if desired.full {
            self.resources.clear();
        }
        for resource in &desired.upserts {
            self.resources
                .insert(resource.key.clone(), resource.clone());
        }
        for key in &desired.deletes {
            assert!(
                self.resources.remove(key).is_some(),
                "{key} was deleted and not known"
            );
        }
        self.store_id.clone_from(&desired.store_id);
        Ok(desired)
    }

    /// Nothing comes for a while.
    pub async fn silence(&mut self) {
        let next = tokio::time::timeout(Duration::from_millis(200), self.inbox.message()).await;
        assert!(next.is_err(), "{next:?}");
    }

    pub async fn say(&self, what: agent_message::Message) {
        self.outbox.send(message(what)).await.unwrap();
    }

    pub async fn applied(&self, version: u64) {
        self.say(agent_message::Message::Applied(v1::Applied { version }))
            .await;
    }

    pub async fn report(&self, port: &str, state: v1::PortState, reason: &str) {
        let status = v1::PortStatus {
            state: state as i32,
            reason: reason.into(),
            ..Default::default()
        };
        let report = v1::PortReport {
            port: port.into(),
            status: Some(status),
        };
        self.say(agent_message::Message::Status(v1::AgentStatus {
            ports: vec![report],
        }))
        .await;
    }

    /// What it would say it has after a restart.
    pub fn have(&self) -> Vec<v1::Have> {
        self.resources
            .values()
            .map(|r| v1::Have {
                key: r.key.clone(),
                revision: r.revision,
            })
            .collect()
    }

    pub fn keys(&self) -> Vec<&str> {
        self.resources.keys().map(String::as_str).collect()
    }
}

pub fn message(message: agent_message::Message) -> v1::AgentMessage {
    v1::AgentMessage {
        message: Some(message),
    }
}

/// Waits until a condition holds.
pub async fn eventually<F, Fut>(what: &str, mut condition: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    for _ in 0..500 {
        if condition().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 5 seconds: {what}");
}

/// A lab with network blue (10.0.0.0/29), host h1 with an underlay MTU of 1500, and port p1.
pub async fn lab() -> (Lab, Client) {
    let lab = Lab::plain().await;
    let mut client = lab.client().await;
    client.create_host(host("h1")).await.unwrap();
    let mut agent = lab.agent(hello("h1", "192.0.2.1", 1500)).await;
    agent.step().await.unwrap();
    client
        .create_network(network("blue", &["10.0.0.0/29"]))
        .await
        .unwrap();
    client.create_port(port("p1", "blue", "h1")).await.unwrap();
    (lab, client)
}

/// Runs a request that must be refused, and checks that the store did not move.
#[macro_export]
macro_rules! refuse {
    ($lab:expr, $call:expr, $code:ident, $($word:expr),+) => {{
        let before = $lab.revision();
        $crate::harness::refused($call.await, tonic::Code::$code, &[$($word),+]);
        assert_eq!($lab.revision(), before, "a refused request changed something");
    }};
}
