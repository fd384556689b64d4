//! `ferrovia-agent`: the command line of the host agent.

use agent::config::{self, Uplink};
use agent::daemon::{self, Options};
use agent::desired::SocketMode;
use agent::paths::Paths;
use agent::ports::chain;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

/// The Ferrovia host agent: virtual networks for the virtual machines of this host.
#[derive(Parser)]
#[command(
    name = "ferrovia-agent",
    version,
    after_help = "\
Examples:
  ferrovia-agent check                      is /etc/ferrovia/agent.toml right, and what does it ask for?
  ferrovia-agent run                        run in the foreground, as the systemd unit does
  ferrovia-agent join --url https://ctl:6640 --token frv1.…
                                            get this host's certificate from the controller
  ip netns exec h2 ferrovia-agent run --root /tmp/h2
                                            a second agent on one machine, with files of its own"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the agent.
    #[command(after_help = "\
SIGHUP reads networks, ports and peers again from the file of an agent that runs alone; a file with
a mistake changes nothing. SIGTERM ends it and removes its sockets. FERROVIA_LOG=debug shows more.")]
    Run {
        #[command(flatten)]
        files: Files,
        /// How log lines are written.
        #[arg(long, value_enum, default_value_t = LogFormat::Text)]
        log_format: LogFormat,
    },
    /// Check the configuration and say what it asks for; nothing is changed.
    Check {
        #[command(flatten)]
        files: Files,
    },
    /// Get this host's certificate with a join token of `ferrovia-controller token --host …`.
    #[command(after_help = "\
Example:
  ferrovia-agent join --url https://ctl.example:6640 --token \"$(cat token)\"")]
    Join {
        /// The root of all files.
        #[arg(long, default_value = "/", value_name = "DIR")]
        root: PathBuf,
        /// The controller, https://host:port.
        #[arg(long)]
        url: String,
        /// The token; a lone - reads it from standard input.
        #[arg(long)]
        token: String,
    },
}

#[derive(Args)]
struct Files {
    /// The root of /etc/ferrovia, /var/lib/ferrovia and /run/ferrovia.
    #[arg(long, default_value = "/", value_name = "DIR")]
    root: PathBuf,
    /// The configuration [default: ROOT/etc/ferrovia/agent.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Files {
    fn options(self) -> Options {
        // Paths end in status and XML, so they have to mean the same everywhere.
        let root = std::path::absolute(&self.root).unwrap_or(self.root);
        let paths = Paths::new(root);
        let config = self.config.unwrap_or_else(|| paths.config());
        Options { paths, config }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run { files, log_format } => {
            log(log_format);
            block_on(daemon::run(files.options())).map_err(|error| chain(&error))
        }
        Command::Check { files } => check(&files.options()),
        Command::Join { root, url, token } => block_on(join(root, url, token)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ferrovia-agent: {error}");
            ExitCode::FAILURE
        }
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    // The control side has little to do; the data plane has its own threads.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(future),
        Err(error) => {
            eprintln!("ferrovia-agent: The operating system refuses threads: {error}");
            std::process::exit(1);
        }
    }
}

fn log(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("FERROVIA_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder
            .with_target(false)
            .with_ansi(std::io::stderr().is_terminal())
            .init(),
        LogFormat::Json => builder.json().init(),
    }
}

async fn join(root: PathBuf, url: String, token: String) -> Result<(), String> {
    let token = match token.as_str() {
        "-" => std::io::read_to_string(std::io::stdin()).map_err(|e| e.to_string())?,
        _ => token,
    };
    let files = api::identity::Paths::agent(&root);
    api::identity::join(&url, token.trim(), &files)
        .await
        .map_err(|error| chain(&error))?;
    println!(
        "Joined {url}; the certificate is in {}",
        files.dir.display()
    );
    Ok(())
}

/// Says what the agent would do.
fn check(options: &Options) -> Result<(), String> {
    let config = config::load(&options.config).map_err(|error| chain(&error))?;
    println!("{}: right", options.config.display());
    println!("host        {}", config.host);
    match &config.underlay {
        None => println!("underlay    none: only ports of this host reach each other"),
        Some(underlay) => {
            let uplink = match &underlay.uplink {
                Uplink::Interface(name) => format!("interface {name} by af_packet"),
                Uplink::Device(device) => format!("DPDK device {device}"),
            };
            let address = underlay
                .address
                .map_or("the interface's own address".into(), |a| a.to_string());
            let mtu = underlay
                .mtu
                .map_or("the interface's MTU".into(), |mtu| format!("MTU {mtu}"));
            println!("underlay    {uplink}, {address}, {mtu}");
        }
    }
    match &config.controller {
        None => println!("controller  none: runs alone from this file"),
        Some(controller) if controller.url.starts_with("http://") => {
            println!(
                "controller  {} PLAIN: neither encrypted nor authenticated",
                controller.url
            );
        }
        Some(controller) => println!("controller  {}", controller.url),
    }
    let dataplane = &config.dataplane;
    println!(
        "data plane  {} worker(s), {} flows, {} buffers",
        dataplane.workers, dataplane.flow_capacity, dataplane.buffers
    );
    for network in config.alone.networks.values() {
        println!("network     {} vni {}", network.name, network.vni);
    }
    for port in config.alone.ports.values() {
        let default = || format!("{}/{}.sock", options.paths.vhost_dir().display(), port.name);
        let socket = port.socket.as_ref().map_or_else(default, |path| {
            options.paths.relocate(path).display().to_string()
        });
        let verb = match port.mode {
            SocketMode::Server => "listens on",
            SocketMode::Client => "connects to",
        };
        println!(
            "port        {} in {}, {verb} {socket}",
            port.name, port.network
        );
    }
    if !config.alone.peers.is_empty() {
        println!("peers       {}", config.alone.peers.len());
    }
    Ok(())
}
