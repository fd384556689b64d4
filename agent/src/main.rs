//! `ferrovia-agent`: the command line of the host agent.

use agent::daemon::{self, Options};
use agent::nics::{kernel, vf_check};
use agent::paths::Paths;
use agent::ports::chain;
use agent::{check, config};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::io::{ErrorKind, IsTerminal, Write};
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
    #[command(flatten)]
    files: Files,
    /// How log lines are written.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the agent.
    #[command(after_help = "\
SIGHUP reads relays, and networks, ports and peers of an agent that runs alone, again from the file; a file with
a mistake changes nothing. SIGTERM ends it and removes its sockets. FERROVIA_LOG=debug shows more.")]
    Run,
    /// Check the configuration, look whether this host has what it names, and say what it asks for; nothing is
    /// changed.
    Check,
    /// Get this host's certificate with a join token of `ferrovia-controller token --host …`.
    #[command(after_help = "\
Example:
  ferrovia-agent join --url https://ctl.example:6640 --token \"$(cat token)\"")]
    Join {
        /// The controller, https://host:port.
        #[arg(long)]
        url: String,
        /// The token; a lone - reads it from standard input.
        #[arg(long)]
        token: String,
    },
    /// The self-test of a VF, in a process that the agent can give up: a request on standard input, steps
    /// on standard output.
    #[command(hide = true, name = vf_check::VERB)]
    VfioCheck,
    /// Changes NICs for the agent, in a process that the agent can give up: requests on standard input, answers
    /// on standard output, a line each.
    #[command(hide = true, name = kernel::HELPER_VERB)]
    SriovHelper,
}

#[derive(Args)]
struct Files {
    /// The root of /etc/ferrovia, /var/lib/ferrovia and /run/ferrovia.
    #[arg(long, global = true, default_value = "/", value_name = "DIR")]
    root: PathBuf,
    /// The configuration [default: ROOT/etc/ferrovia/agent.toml]
    #[arg(long, global = true, value_name = "FILE")]
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
    let Cli {
        files,
        log_format,
        command,
    } = Cli::parse();
    let result = match command {
        Command::Run => {
            log(log_format);
            block_on(daemon::run(files.options())).map_err(|error| chain(&error))
        }
        Command::Check => check(&files.options()),
        Command::Join { url, token } => block_on(join(files.root, url, token)),
        Command::SriovHelper => {
            sriov_mgr::helper::close_inherited();
            sriov_mgr::helper::serve(std::io::stdin().lock(), std::io::stdout().lock())
                .map_err(|error| chain(&error))
        }
        Command::VfioCheck => {
            sriov_mgr::helper::close_inherited();
            sriov_mgr::vfio::serve_check().map_err(|error| chain(&error))
        }
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
        Ok(runtime) => {
            let output = runtime.block_on(future);
            // A thread that waits for a wedged NIC does not keep the agent from ending.
            runtime.shutdown_timeout(std::time::Duration::from_secs(1));
            output
        }
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
    print(&format!(
        "Joined {url}; the certificate is in {}\n",
        files.dir.display()
    ))
}

/// Says what the agent would do, and what this host lacks for it.
fn check(options: &Options) -> Result<(), String> {
    let config = config::load(&options.config).map_err(|error| chain(&error))?;
    print(&check::report(&config, options))?;
    let missing = block_on(check::missing(&config));
    if missing.is_empty() {
        return Ok(());
    }
    Err(missing.join("\nferrovia-agent: "))
}

/// Prints; a closed pipe (`| head`) is no error.
fn print(text: &str) -> Result<(), String> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.to_string()),
        _ => Ok(()),
    }
}
