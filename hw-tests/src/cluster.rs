//! A controller and hosts with an agent each, on one machine: the real programs, each with a root folder and
//! a network namespace of its own, joined by the underlay.

use crate::netns::{Netns, UNDERLAY, Underlay};
use crate::process::Daemon;
use crate::run::Run;
use crate::story::Story;
use crate::{command, process};
use anyhow::{Context, Result, bail};
use api::identity::{Identity, Paths};
use api::v1::controller_client::ControllerClient;
use serde_json::Value;
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;
use tonic::transport::Channel;

/// The controller's address in the underlay.
const CONTROLLER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// How long anything that the programs do may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Where the programs are: beside the one that is running.
pub fn program(name: &str) -> Result<PathBuf> {
    let mut dir = std::env::current_exe()?;
    dir.pop();
    if dir.ends_with("deps") || dir.ends_with("examples") {
        dir.pop();
    }
    let path = dir.join(name);
    if !path.exists() {
        bail!(
            "There is no \"{}\"; `cargo build --workspace` makes it",
            path.display()
        );
    }
    Ok(path)
}

/// A controller, its hosts, and the underlay.
#[derive(Debug)]
pub struct Cluster {
    /// The hosts: `h1`, `h2` …
    pub hosts: Vec<Host>,
    controller: Mutex<Option<Daemon>>,
    netns: Netns,
    root: PathBuf,
    underlay: Underlay,
    run: Run,
}

/// A host: a namespace, files of its own, and an agent.
#[derive(Debug)]
pub struct Host {
    /// Its name, as the controller knows it.
    pub name: String,
    /// Its namespace.
    pub netns: Netns,
    /// The root of the agent's files.
    pub root: PathBuf,
    /// Its address in the underlay.
    pub address: Ipv4Addr,
    agent: Mutex<Option<Daemon>>,
    run: Run,
}

impl Cluster {
    /// Makes the underlay and the places; nothing runs yet.
    pub fn new(run: &Run, hosts: u8, mtu: u16) -> Result<Cluster> {
        let underlay = Underlay::new(run, mtu)?;
        let netns = Netns::new(run, "ctl")?;
        underlay.plug(&netns, "ctl", CONTROLLER)?;
        let mut all = Vec::new();
        for number in 1..=hosts {
            let name = format!("h{number}");
            let netns = Netns::new(run, &name)?;
            let address = Ipv4Addr::new(192, 0, 2, number);
            underlay.plug(&netns, &name, address)?;
            let root = run.subdir(&name)?;
            all.push(Host {
                name,
                netns,
                root,
                address,
                agent: Mutex::default(),
                run: run.clone(),
            });
        }
        let root = run.subdir("ctl")?;
        Ok(Cluster {
            hosts: all,
            controller: Mutex::default(),
            netns,
            root,
            underlay,
            run: run.clone(),
        })
    }

    /// `ferrovia-controller init` and `run`, over mutual TLS.
    pub fn start_controller(&self, story: &Story) -> Result<()> {
        if !Paths::ca(&self.root).exist() {
            let mut init = Command::new(program("ferrovia-controller")?);
            init.args([
                "init",
                "--name",
                "ctl",
                "--san",
                &CONTROLLER.to_string(),
                "--root",
            ])
            .arg(&self.root);
            let said = command::output(&mut init, LIMIT)?;
            let facts = said.split("\n\n").next().unwrap_or("");
            story.command(
                "ctl",
                &format!("ferrovia-controller init --name ctl --san {CONTROLLER}"),
                facts,
            );
        }
        let mut run = self.netns.command(program("ferrovia-controller")?);
        run.args(["run", "--listen", &format!("{CONTROLLER}:6640"), "--root"])
            .arg(&self.root);
        let daemon = Daemon::start(&self.run, "controller", &mut run)?;
        let answering = command::wait_for(
            "an answer of the controller",
            Duration::from_secs(20),
            || {
                daemon.check()?;
                self.cli(None, &["host", "list"])
            },
        );
        answering
            .with_context(|| format!("The controller's last words:\n{}", daemon.log_tail(15)))?;
        story.command(
            "ctl",
            &format!("ferrovia-controller run --listen {CONTROLLER}:6640 &"),
            "",
        );
        *lock(&self.controller) = Some(daemon);
        Ok(())
    }

    /// Kills the controller without warning.
    pub fn kill_controller(&self) -> Result<()> {
        let daemon = lock(&self.controller)
            .take()
            .context("The controller is not running")?;
        daemon.kill();
        Ok(())
    }

    /// Makes a join token for the host, starts its agent, and waits until it is connected and in step.
    pub fn join(&self, host: &Host, story: &Story) -> Result<()> {
        let token = self.cli(None, &["token", "create", "--host", &host.name])?;
        story.command(
            "ctl",
            &format!("ferrovia token create --host {} > join-token", host.name),
            "",
        );
        let etc = host.root.join("etc/ferrovia");
        fs::create_dir_all(&etc)?;
        fs::write(etc.join("join-token"), token.trim())?;
        fs::write(etc.join("agent.toml"), self.agent_toml(host))?;
        host.start_agent()?;
        story.command(&host.name, "ferrovia-agent run &", "");
        self.wait_connected(host)
    }

    fn agent_toml(&self, host: &Host) -> String {
        format!(
            "host = \"{}\"\n\n[underlay]\ninterface = \"{UNDERLAY}\"\n\n[controller]\nurl = \"{}\"\n\
             token_file = \"/etc/ferrovia/join-token\"\n\n[dataplane]\nworkers = 1\nmemory_mb = 192\n",
            host.name,
            Self::url()
        )
    }

    /// Waits until the controller sees the host's agent and it has applied everything.
    pub fn wait_connected(&self, host: &Host) -> Result<()> {
        let waited = command::wait_for(
            &format!("the agent of {} being in step", host.name),
            LIMIT,
            || {
                host.check_agent()?;
                let shown = self.json(None, &["host", "show", &host.name])?;
                if shown["connected"] != true
                    || shown["applied_version"].as_u64() < shown["desired_version"].as_u64()
                {
                    bail!("the controller says {shown}");
                }
                Ok(())
            },
        );
        waited.with_context(|| format!("The agent's last words:\n{}", host.agent_log(20)))
    }

    /// The controller's URL.
    pub fn url() -> String {
        format!("https://{CONTROLLER}:6640")
    }

    /// The host of this name.
    pub fn host(&self, name: &str) -> Result<&Host> {
        self.hosts
            .iter()
            .find(|h| h.name == name)
            .with_context(|| format!("There is no host \"{name}\""))
    }

    /// The underlay.
    pub fn underlay(&self) -> &Underlay {
        &self.underlay
    }

    /// The run that all this belongs to.
    pub fn run(&self) -> &Run {
        &self.run
    }

    /// The `ferrovia` command as an operator would run it on `host`; without one, beside the controller.
    pub fn command(&self, host: Option<&Host>, args: &[&str]) -> Result<Command> {
        let (netns, root) = host.map_or((&self.netns, &self.root), |h| (&h.netns, &h.root));
        let mut command = netns.command(program("ferrovia")?);
        command.args(args).arg("--root").arg(root);
        command.env("FERROVIA_CONTROLLER", Self::url());
        command.env("FERROVIA_IDENTITY", &Paths::operator(&self.root).dir);
        Ok(command)
    }

    /// Runs the `ferrovia` command and returns what it printed.
    pub fn cli(&self, host: Option<&Host>, args: &[&str]) -> Result<String> {
        let done = command::run(&mut self.command(host, args)?, LIMIT)?;
        if !done.status.success() {
            bail!("`ferrovia {}`: {}", args.join(" "), done.stderr.trim());
        }
        Ok(done.stdout)
    }

    /// [`cli`](Self::cli), told to the person who watches.
    pub fn show(&self, story: &Story, host: Option<&Host>, args: &[&str]) -> Result<String> {
        let output = self.cli(host, args)?;
        story.command(
            host.map_or("ctl", |h| &h.name),
            &format!("ferrovia {}", args.join(" ")),
            &output,
        );
        Ok(output)
    }

    /// Runs the `ferrovia` command with `-o json`.
    pub fn json(&self, host: Option<&Host>, args: &[&str]) -> Result<Value> {
        let text = self.cli(host, &[args, &["-o", "json"]].concat())?;
        serde_json::from_str(&text)
            .with_context(|| format!("`ferrovia {} -o json` printed no JSON", args.join(" ")))
    }

    /// Calls the controller's API as the operator.
    pub fn api<T: Send, F: Future<Output = Result<T>>>(
        &self,
        work: impl FnOnce(ControllerClient<Channel>) -> F + Send,
    ) -> Result<T> {
        let identity = Identity::load(&Paths::operator(&self.root))
            .context("The operator's certificate cannot be used")?;
        self.netns.within(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let target = api::client::Target::controller(&Self::url(), Some(identity), false)?;
                let channel = api::client::connect(&target).await?;
                work(api::client::controller_client(channel)).await
            })
        })
    }

    /// The last words of all programs, for a failure's report.
    pub fn last_words(&self) -> String {
        let logs = self.run.dir().join("logs");
        let mut text = String::new();
        for name in ["controller"]
            .into_iter()
            .chain(self.hosts.iter().map(|h| h.name.as_str()))
        {
            let file = if name == "controller" {
                "controller.log".into()
            } else {
                format!("agent-{name}.log")
            };
            text.push_str(&format!(
                "── {name}\n{}\n",
                process::tail(&logs.join(file), 25)
            ));
        }
        text
    }
}

impl Host {
    /// Starts the agent and waits until its local API answers.
    pub fn start_agent(&self) -> Result<()> {
        let mut run = self.netns.command(program("ferrovia-agent")?);
        run.args(["run", "--root"]).arg(&self.root);
        let daemon = Daemon::start(&self.run, &format!("agent-{}", self.name), &mut run)?;
        *lock(&self.agent) = Some(daemon);
        let socket = self.root.join("run/ferrovia/agent.sock");
        let waited = command::wait_for(
            &format!("the start of the agent of {}", self.name),
            LIMIT,
            || {
                self.check_agent()?;
                std::os::unix::net::UnixStream::connect(&socket)?;
                Ok(())
            },
        );
        waited.with_context(|| format!("The agent's last words:\n{}", self.agent_log(20)))
    }

    /// Kills the agent without warning.
    pub fn kill_agent(&self) -> Result<()> {
        let daemon = lock(&self.agent)
            .take()
            .with_context(|| format!("The agent of {} is not running", self.name))?;
        daemon.kill();
        Ok(())
    }

    /// Fails when the agent is not running.
    pub fn check_agent(&self) -> Result<()> {
        match lock(&self.agent).as_ref() {
            Some(daemon) => daemon.check(),
            None => bail!("The agent of {} was not started", self.name),
        }
    }

    /// Processor time that the agent used so far.
    pub fn agent_cpu_time(&self) -> Result<Duration> {
        lock(&self.agent)
            .as_ref()
            .with_context(|| format!("The agent of {} is not running", self.name))?
            .cpu_time()
    }

    fn agent_log(&self, lines: usize) -> String {
        process::tail(
            &self
                .run
                .dir()
                .join("logs")
                .join(format!("agent-{}.log", self.name)),
            lines,
        )
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
