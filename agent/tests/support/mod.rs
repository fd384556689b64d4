//! A real agent below a root of its own, and a client of its local API.
#![allow(dead_code, reason = "each test file uses its own part of this")]

use api::client::{self, Target};
use api::v1;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What every configuration of these tests begins with: little memory, so that many fit.
pub const HEAD: &str =
    "host = \"h1\"\n[dataplane]\nmemory_mb = 64\nbuffers = 2048\nhugepages = \"never\"\n";

/// A network of both families.
pub const BLUE: &str = r#"
[[network]]
name = "blue"
vni = 100
mtu = 1400
subnets = [{ cidr = "10.0.0.0/24" }, { cidr = "fd00::/64" }]
"#;

/// A port of `BLUE`.
pub fn port(name: &str, number: u8, more: &str) -> String {
    format!(
        "[[port]]\nname = \"{name}\"\nnetwork = \"blue\"\nmac = \"52:54:00:00:00:{number:02x}\"\n\
         addresses = [\"10.0.0.{number}\", \"fd00::{number:x}\"]\n{more}\n"
    )
}

/// A root directory, and the agent that runs below it. Everything ends with it.
pub struct Host {
    pub root: TempDir,
    /// The network namespace that the agent runs in, where it is not this one.
    pub netns: Option<String>,
    child: Option<Child>,
}

impl Host {
    /// Writes the configuration; nothing runs yet.
    pub fn new(config: &str) -> Host {
        let root = tempfile::Builder::new().prefix("fva").tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("etc/ferrovia")).unwrap();
        let host = Host {
            root,
            netns: None,
            child: None,
        };
        host.configure(config);
        host
    }

    /// Writes the configuration and starts the agent; returns when it answers.
    pub async fn start(config: &str) -> Host {
        let mut host = Host::new(config);
        host.run().await;
        host
    }

    pub fn configure(&self, config: &str) {
        std::fs::write(self.root.path().join("etc/ferrovia/agent.toml"), config).unwrap();
    }

    pub fn command(&self, subcommand: &str) -> Command {
        let program = env!("CARGO_BIN_EXE_ferrovia-agent");
        // `ip netns exec` becomes the program, so the process is the agent's own.
        let mut command = match &self.netns {
            Some(name) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", name, program]);
                command
            }
            None => Command::new(program),
        };
        command.arg(subcommand).arg("--root").arg(self.root.path());
        command.env("FERROVIA_LOG", "info").stdin(Stdio::null());
        command
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.root.path().join("log")).unwrap_or_default()
    }

    /// Starts the agent; returns when it answers.
    pub async fn run(&mut self) {
        let file = self.root.path().join("log");
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(file)
            .unwrap();
        let child = self
            .command("run")
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(channel) = client::connect(&self.target()).await
                && client::agent_client(channel)
                    .get_status(v1::Empty {})
                    .await
                    .is_ok()
            {
                return;
            }
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                panic!("the agent ended with {status}:\n{}", self.log());
            }
            assert!(
                Instant::now() < deadline,
                "the agent does not answer:\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn target(&self) -> Target {
        Target::Unix(self.root.path().join("run/ferrovia/agent.sock"))
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid() as i32), signal).unwrap();
    }

    /// Sends a signal and waits for the end.
    pub fn end(&mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        self.child.take().unwrap().wait().unwrap()
    }

    pub async fn client(&self) -> v1::agent_client::AgentClient<tonic::transport::Channel> {
        client::agent_client(client::connect(&self.target()).await.unwrap())
    }

    pub async fn relays(&self) -> v1::xvio_client::XvioClient<tonic::transport::Channel> {
        client::relay_client(client::connect(&self.target()).await.unwrap())
    }

    /// The relay, or port of binding xvio, of this name.
    pub async fn relay(&self, name: &str) -> Option<v1::Relay> {
        let relays = self.relays().await.list_relays(v1::Empty {}).await;
        let mut relays = relays.unwrap().into_inner().relays.into_iter();
        relays.find(|relay| relay.spec.as_ref().unwrap().name == name)
    }

    /// Waits until a relay is in this state, and has it.
    pub async fn until_relay(&self, name: &str, state: v1::RelayState) -> v1::Relay {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let relay = self.relay(name).await;
            match relay {
                Some(relay) if relay.state() == state => return relay,
                relay => assert!(
                    Instant::now() < deadline,
                    "{name} is not {state:?}: {relay:#?}\n{}",
                    self.log()
                ),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn status(&self) -> v1::AgentInfo {
        self.client()
            .await
            .get_status(v1::Empty {})
            .await
            .unwrap()
            .into_inner()
    }

    pub async fn ports(&self) -> Vec<v1::LocalPort> {
        self.client()
            .await
            .list_local_ports(v1::Empty {})
            .await
            .unwrap()
            .into_inner()
            .ports
    }

    /// Waits until the ports are as `wanted` says.
    pub async fn until(&self, what: &str, wanted: impl Fn(&[v1::LocalPort]) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ports = self.ports().await;
            if wanted(&ports) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{what}: {ports:#?}\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn socket(&self, name: &str) -> PathBuf {
        self.root
            .path()
            .join(format!("run/ferrovia/vhost/{name}.sock"))
    }

    /// The share of a core that the agent uses in the next time.
    pub async fn cpu_share(&self, window: Duration) -> f64 {
        let before = self.cpu_seconds();
        tokio::time::sleep(window).await;
        (self.cpu_seconds() - before) / window.as_secs_f64()
    }

    /// Seconds of processor time that the agent has used.
    fn cpu_seconds(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        // Fields 14 and 15 of proc(5), in clock ticks of a hundredth of a second.
        fields[11..13]
            .iter()
            .map(|ticks| ticks.parse::<f64>().unwrap() / 100.0)
            .sum()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The status of the port with this name.
pub fn status_of(ports: &[v1::LocalPort], name: &str) -> Option<v1::PortStatus> {
    let ports = ports.iter().filter_map(|port| port.port.as_ref());
    ports
        .into_iter()
        .find(|port| port.name == name)
        .and_then(|port| port.status.clone())
}

pub fn is_ready(ports: &[v1::LocalPort], name: &str) -> bool {
    status_of(ports, name).is_some_and(|status| status.state() == v1::PortState::Ready)
}

pub fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
}
