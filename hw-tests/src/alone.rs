//! An agent without a controller and without an underlay, with the ports `a` and `b` in one network.

use crate::cluster::program;
use crate::command;
use crate::process::Daemon;
use crate::run::Run;
use anyhow::{Context, Result};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// The agent, with a folder of its own.
pub struct Alone {
    root: PathBuf,
    /// Who makes the ports' sockets: the agent ("server"), or the guest ("client").
    mode: &'static str,
    agent: Option<Daemon>,
    run: Run,
}

impl Alone {
    /// Starts it; `queues` are the queue pairs of each port.
    pub fn start(mode: &'static str, queues: u16) -> Result<Alone> {
        let run = Run::start()?;
        let root = run.subdir("alone")?;
        let port = |name: &str, last: u8| {
            format!(
                "[[port]]\nname = \"{name}\"\nnetwork = \"blue\"\nmac = \"{}\"\n\
                 addresses = [\"10.0.0.{last}\"]\nqueue_pairs = {queues}\nmode = \"{mode}\"\n",
                Alone::mac(last)
            )
        };
        let text = format!(
            "host = \"alone\"\n[dataplane]\nworkers = 1\nmemory_mb = 192\nhugepages = \"never\"\n\
             [[network]]\nname = \"blue\"\nvni = 100\nsubnets = [{{ cidr = \"10.0.0.0/24\" }}]\n{}{}",
            port("a", 10),
            port("b", 11)
        );
        std::fs::create_dir_all(root.join("etc/ferrovia"))?;
        std::fs::write(root.join("etc/ferrovia/agent.toml"), text)?;
        let mut alone = Alone {
            root,
            mode,
            agent: None,
            run,
        };
        alone.start_agent()?;
        Ok(alone)
    }

    /// The MAC of the port with the address 10.0.0.`last`: 10 for `a`, 11 for `b`.
    pub fn mac(last: u8) -> String {
        format!("52:54:00:00:00:{last:02x}")
    }

    /// What the test's processes and files belong to.
    pub fn run(&self) -> &Run {
        &self.run
    }

    /// Whether the guests make the sockets.
    pub fn guests_listen(&self) -> bool {
        self.mode == "client"
    }

    /// Where a port is.
    pub fn socket(&self, port: &str) -> PathBuf {
        self.root.join(format!("run/ferrovia/vhost/{port}.sock"))
    }

    /// Starts the agent again after [`Alone::kill_agent`].
    pub fn start_agent(&mut self) -> Result<()> {
        let mut command = Command::new(program("ferrovia-agent")?);
        command.args(["run", "--root"]).arg(&self.root);
        let agent = Daemon::start(&self.run, "agent", &mut command)?;
        let answers = self.root.join("run/ferrovia/agent.sock");
        let sockets = [self.socket("a"), self.socket("b")];
        let wait_for_sockets = !self.guests_listen();
        command::wait_for("the start of the agent", LIMIT, || {
            agent.check()?;
            UnixStream::connect(&answers)?;
            if wait_for_sockets {
                for socket in &sockets {
                    // A killed agent's socket file is still there; only a connection tells it from a new one.
                    UnixStream::connect(socket)
                        .with_context(|| format!("\"{}\" is not served", socket.display()))?;
                }
            }
            Ok(())
        })
        .with_context(|| format!("The agent's last words:\n{}", agent.log_tail(20)))?;
        self.agent = Some(agent);
        Ok(())
    }

    /// kill -9.
    pub fn kill_agent(&mut self) -> Result<()> {
        self.agent
            .take()
            .context("The agent is not running")?
            .kill();
        Ok(())
    }
}
