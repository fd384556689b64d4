//! The real program under the real controller: ports made through its API, either side killed and
//! started again, joining with a token.

mod support;

use api::client::{self, Target};
use api::identity::{Identity, Paths};
use api::v1;
use controller::pki::{Ca, Subject};
use controller::server::{Options, Running};
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use support::{HEAD, Host, PATIENCE, is_ready};
use tempfile::TempDir;
use tonic::transport::Channel;

type Client = v1::controller_client::ControllerClient<Channel>;

struct Control {
    root: TempDir,
    plain: bool,
    address: SocketAddr,
    running: Option<Running>,
}

impl Control {
    async fn start(plain: bool) -> Control {
        let root = tempfile::tempdir().unwrap();
        if !plain {
            init(root.path());
        }
        let address = "127.0.0.1:0".parse().unwrap();
        let mut control = Control {
            root,
            plain,
            address,
            running: None,
        };
        control.run().await;
        control
    }

    /// Starts it, at the same address as before.
    async fn run(&mut self) {
        let options = Options {
            root: self.root.path().into(),
            listen: self.address,
            plain: self.plain,
            plain_anywhere: false,
        };
        let running = Running::start(&options).await.unwrap();
        self.address = running.address();
        self.running = Some(running);
    }

    async fn stop(&mut self) {
        self.running.take().unwrap().stop().await;
    }

    fn url(&self) -> String {
        format!(
            "{}://{}",
            if self.plain { "http" } else { "https" },
            self.address
        )
    }

    async fn client(&self) -> Client {
        let identity =
            (!self.plain).then(|| Identity::load(&Paths::operator(self.root.path())).unwrap());
        let target = Target::controller(&self.url(), identity, false).unwrap();
        client::controller_client(client::connect(&target).await.unwrap())
    }

    /// Waits until the controller says that so many ports of h1 are ready.
    async fn until_ready(&self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        let mut client = self.client().await;
        loop {
            let request = v1::ListPortsRequest {
                page_size: 1000,
                ..Default::default()
            };
            let ports = client.list_ports(request).await.unwrap().into_inner().ports;
            let ready = ports.iter().filter(|port| {
                port.status
                    .as_ref()
                    .is_some_and(|s| s.state() == v1::PortState::Ready)
            });
            if ready.count() == count {
                return;
            }
            assert!(Instant::now() < deadline, "{:#?}", ports.first());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// A CA with a server's and an operator's certificate, as `ferrovia-controller init` makes them.
fn init(root: &std::path::Path) {
    let (ca, _) = Ca::load_or_make(root, "ctl").unwrap();
    let names = ["127.0.0.1".to_owned()];
    ca.issue(Subject::Server("ctl", &names))
        .unwrap()
        .store(&Paths::server(root))
        .unwrap();
    ca.issue(Subject::Operator("operator"))
        .unwrap()
        .store(&Paths::operator(root))
        .unwrap();
}

async fn blue(client: &mut Client) {
    let subnet = |cidr: &str| v1::Subnet {
        cidr: cidr.into(),
        ..Default::default()
    };
    let request = v1::CreateNetworkRequest {
        name: "blue".into(),
        subnets: vec![subnet("10.0.0.0/16"), subnet("fd00::/64")],
        ..Default::default()
    };
    client.create_network(request).await.unwrap();
}

fn port(name: &str) -> v1::CreatePortRequest {
    v1::CreatePortRequest {
        name: name.into(),
        network: "blue".into(),
        host: "h1".into(),
        ..Default::default()
    }
}

fn under(control: &Control, more: &str) -> String {
    format!("{HEAD}[controller]\nurl = \"{}\"\n{more}", control.url())
}

fn numbers(ports: &[v1::LocalPort]) -> BTreeMap<String, u32> {
    ports
        .iter()
        .map(|p| (p.port.as_ref().unwrap().name.clone(), p.number))
        .collect()
}

fn all_ready(ports: &[v1::LocalPort], count: usize) -> bool {
    ports.len() == count
        && ports
            .iter()
            .all(|port| is_ready(ports, &port.port.as_ref().unwrap().name))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_ports_survive_either_side() {
    let mut control = Control::start(true).await;
    let mut client = control.client().await;
    let host = v1::CreateHostRequest {
        name: "h1".into(),
        vtep: String::new(),
    };
    client.create_host(host).await.unwrap();
    blue(&mut client).await;
    let mut host = Host::start(&under(&control, "")).await;
    for number in 0..100 {
        client
            .create_port(port(&format!("p{number}")))
            .await
            .unwrap();
    }
    control.until_ready(100).await;
    host.until("100 ports", |ports| all_ready(ports, 100)).await;
    let info = host.status().await;
    assert!(
        info.controller_connected && info.controller_mode == "plain" && info.applied_version > 0
    );
    assert!(host.log().contains("PLAIN"), "{}", host.log());

    // The controller is gone: nothing changes, and a restarted agent has all of it too.
    control.stop().await;
    drop(client);
    let before = numbers(&host.ports().await);
    assert_eq!(before.len(), 100);
    host.end(Signal::SIGKILL);
    host.run().await;
    host.until("100 ports without a controller", |ports| {
        all_ready(ports, 100)
    })
    .await;
    assert!(!host.status().await.controller_connected);

    // It comes back, the agent finds it, and no port is touched.
    let before = numbers(&host.ports().await);
    let made = |host: &Host| {
        std::fs::metadata(host.socket("p0"))
            .unwrap()
            .modified()
            .unwrap()
    };
    let socket = made(&host);
    control.run().await;
    let deadline = Instant::now() + 2 * PATIENCE;
    while !host.status().await.controller_connected {
        assert!(Instant::now() < deadline, "{}", host.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    control.until_ready(100).await;
    let mut client = control.client().await;
    client.create_port(port("one-more")).await.unwrap();
    host.until("101 ports", |ports| all_ready(ports, 101)).await;
    let mut now = numbers(&host.ports().await);
    now.remove("one-more");
    assert_eq!(now, before);
    assert_eq!(made(&host), socket);

    // A deleted port goes, and a renamed one keeps its socket.
    let delete = v1::DeleteRequest {
        r#ref: "one-more".into(),
        revision: 0,
    };
    client.delete_port(delete).await.unwrap();
    let rename = v1::UpdatePortRequest {
        r#ref: "p0".into(),
        name: Some("renamed".into()),
        ..Default::default()
    };
    client.update_port(rename).await.unwrap();
    host.until("100 ports, one renamed", |ports| {
        all_ready(ports, 100) && is_ready(ports, "renamed")
    })
    .await;
    assert!(!host.socket("one-more").exists());
    assert_eq!(made(&host), socket);
    host.end(Signal::SIGKILL);
    host.run().await;
    host.until("the renamed port", |ports| is_ready(ports, "renamed"))
        .await;
    let status = support::status_of(&host.ports().await, "renamed").unwrap();
    assert_eq!(status.socket, host.socket("p0").display().to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_joins_with_its_token_and_needs_it_once() {
    let control = Control::start(false).await;
    let mut client = control.client().await;
    let request = v1::CreateTokenRequest {
        subject: Some(v1::create_token_request::Subject::Host("h1".into())),
        valid_seconds: 600,
    };
    let token = client
        .create_token(request)
        .await
        .unwrap()
        .into_inner()
        .token;
    blue(&mut client).await;
    client.create_port(port("web")).await.unwrap();

    let config = under(&control, "token_file = \"/etc/ferrovia/token\"\n");
    let mut host = Host::new(&config);
    let file = host.root.path().join("etc/ferrovia/token");
    std::fs::write(&file, format!("{token}\n")).unwrap();
    host.run().await;
    control.until_ready(1).await;
    let info = host.status().await;
    assert_eq!(
        (info.controller_mode.as_str(), info.controller_connected),
        ("tls", true)
    );

    std::fs::remove_file(file).unwrap();
    host.end(Signal::SIGTERM);
    host.run().await;
    let deadline = Instant::now() + PATIENCE;
    while !host.status().await.controller_connected {
        assert!(Instant::now() < deadline, "{}", host.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(is_ready(&host.ports().await, "web"));

    // The token is used up, and says so.
    let mut other = Host::new(&config);
    std::fs::write(other.root.path().join("etc/ferrovia/token"), &token).unwrap();
    let mut join = other.command("join");
    let output = join
        .args(["--url", &control.url(), "--token", &token])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    other.run().await;
    let deadline = Instant::now() + PATIENCE;
    while !other.log().contains("no controller; forwarding goes on") {
        assert!(Instant::now() < deadline, "{}", other.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!other.status().await.controller_connected);
}
