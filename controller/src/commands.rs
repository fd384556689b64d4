//! The program's commands.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage or configuration (nothing was touched), 3 the store or the
//! running controller could not be reached.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use api::client::{self, Target};
use api::identity::{Identity, Paths, pki_dir};
use api::token::{Role, Token};
use api::v1;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::{self, Config, ConfigError};
use crate::pki::{Ca, PkiError, Subject, server_names};
use crate::server::{Options, Running, StartError, store_path};
use crate::service::make_token;
use crate::store::{OpenError, Store};

/// How long the first operator's token works.
const FIRST_TOKEN_SECONDS: u32 = 24 * 3600;

/// The controller: creates, controls and observes virtual networks.
#[derive(Debug, Parser)]
#[command(
    name = "ferrovia-controller",
    version,
    after_help = "\
Examples:
  ferrovia-controller init --san ctl.example.net    make the CA and certificates, once
  ferrovia-controller run --listen 0.0.0.0:6640     serve agents and operators over TLS
  ferrovia-controller token --host h1               let the agent of host h1 join
  ferrovia-controller run --plain                   serve this machine only, without TLS

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 store or controller not reachable.
Files: /etc/ferrovia/controller.toml (optional), /var/lib/ferrovia/controller.redb, /var/lib/ferrovia/pki/"
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    global: Global,
}

#[derive(Debug, Args)]
struct Global {
    /// Look for all files below this folder instead of /
    #[arg(long, global = true, default_value = "/", value_name = "DIR")]
    root: PathBuf,
    /// How to print facts on standard output
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// How to log on standard error; FERROVIA_LOG=debug says more
    #[arg(long, global = true, value_enum)]
    log_format: Option<LogFormat>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the CA, the controller's and an operator's certificate; what exists stays
    #[command(
        after_help = "Example:\n  ferrovia-controller init --name ctl --san ctl.example.net --san 192.0.2.10"
    )]
    Init {
        /// The controller's name in its certificate [default: controller]
        #[arg(long)]
        name: Option<String>,
        /// Another name or address that clients use to reach it; may be repeated
        #[arg(long, value_name = "NAME|ADDRESS")]
        san: Vec<String>,
    },
    /// Serve until SIGTERM or Ctrl-C
    #[command(
        after_help = "Examples:\n  ferrovia-controller run --listen 0.0.0.0:6640\n  ferrovia-controller run --plain -o json   # prints the address once it listens"
    )]
    Run {
        /// Where to listen; port 0 picks one [default: 127.0.0.1:6640]
        #[arg(long, value_name = "ADDRESS:PORT")]
        listen: Option<SocketAddr>,
        /// Without TLS and without knowing who calls; loopback addresses only
        #[arg(long)]
        plain: bool,
        /// Allow --plain on addresses that other machines reach
        #[arg(long)]
        plain_anywhere: bool,
    },
    /// Make a join token, through the running controller or, when none runs, in its store
    #[command(
        after_help = "Examples:\n  ferrovia-controller token --host h1 > /etc/ferrovia/join-token\n  ferrovia-controller token --operator alice --valid 600"
    )]
    Token {
        #[command(flatten)]
        subject: TokenSubject,
        /// Seconds until it expires [default: 3600]
        #[arg(long, default_value_t = 0, hide_default_value = true)]
        valid: u32,
        /// The running controller's URL [default: by its configuration]
        #[arg(long, value_name = "URL")]
        controller: Option<String>,
    },
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct TokenSubject {
    /// For the agent of this host, which is created when it does not exist
    #[arg(long)]
    host: Option<String>,
    /// For an operator
    #[arg(long)]
    operator: Option<String>,
}

/// There is neither a CA nor a store where tokens are made.
#[derive(Debug, thiserror::Error)]
#[error(
    "No controller was initialised here, as '{}' is not there; run this on the controller's machine, or `ferrovia-controller init` first", dir.display()
)]
struct NoController {
    dir: PathBuf,
}

/// Prints a line; a closed standard output is an error and no panic.
macro_rules! say {
    ($($words:tt)*) => {
        writeln!(std::io::stdout(), $($words)*)
            .context("The result cannot be printed; check where standard output goes")?
    };
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let config = match config::load(&cli.global.root.join("etc/ferrovia/controller.toml")) {
        Ok(config) => config,
        Err(error) => return failed(&error.into()),
    };
    let json = cli
        .global
        .log_format
        .map_or(config.log_json, |format| format == LogFormat::Json);
    log_to_stderr(json);
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.into()),
    };
    match runtime.block_on(execute(cli, config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn log_to_stderr(json: bool) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("FERROVIA_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false);
    if json { log.json().init() } else { log.init() }
}

/// Prints the chain of an error; its kind decides the exit code.
fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("ferrovia-controller: {error:#}");
    let usage = error.is::<ConfigError>()
        || error.is::<NoController>()
        || matches!(error.downcast_ref(), Some(PkiError::BadName { .. }))
        || matches!(
            error.downcast_ref(),
            Some(StartError::PlainAnywhere { .. } | StartError::NotInitialised { .. })
        );
    let unreachable = error.is::<OpenError>()
        || error.is::<client::ConnectError>()
        || matches!(error.downcast_ref(), Some(StartError::Store(_)));
    ExitCode::from(if usage {
        2
    } else if unreachable {
        3
    } else {
        1
    })
}

async fn execute(cli: Cli, config: Config) -> anyhow::Result<()> {
    let Cli { global, command } = cli;
    match command {
        Command::Init { name, san } => {
            let name = name.or(config.name).unwrap_or_else(|| "controller".into());
            init(&global, &name, &[config.san, san].concat()).await
        }
        Command::Run {
            listen,
            plain,
            plain_anywhere,
        } => {
            let options = Options {
                root: global.root.clone(),
                listen: listen
                    .or(config.listen)
                    .map_or_else(|| api::DEFAULT_CONTROLLER.parse(), Ok)?,
                plain: plain || config.plain,
                plain_anywhere: plain_anywhere || config.plain_anywhere,
            };
            run(&global, &options).await
        }
        Command::Token {
            subject,
            valid,
            controller,
        } => {
            let (role, name) = match (subject.host, subject.operator) {
                (Some(name), _) => (Role::Host, name),
                (None, name) => (Role::Operator, name.unwrap_or_default()),
            };
            token(&global, &config, role, name, valid, controller).await
        }
    }
}

async fn init(global: &Global, name: &str, san: &[String]) -> anyhow::Result<()> {
    let root = &global.root;
    let names = server_names(name, san)?;
    let (ca, made_ca) = Ca::load_or_make(root, name)?;
    let (server, operator) = (Paths::server(root), Paths::operator(root));
    let make_server = !server.exist();
    if make_server {
        ca.issue(Subject::Server(name, &names))?.store(&server)?;
    }
    let make_operator = !operator.exist();
    let mut first = None;
    if make_operator {
        // The store first: when it cannot be used, the next init makes both.
        let store = Store::open(&store_path(root))?;
        first = Some(
            make_token(
                &store,
                &ca,
                Role::Operator,
                "operator".into(),
                FIRST_TOKEN_SECONDS,
            )
            .await?,
        );
        ca.issue(Subject::Operator("operator"))?.store(&operator)?;
    }
    let token = first.map(|token| token.encode());
    let state = |made: bool| if made { "made" } else { "kept" };
    if global.output == Output::Json {
        let facts = serde_json::json!({
            "pki": pki_dir(root),
            "ca": state(made_ca), "server": state(make_server), "operator": state(make_operator),
            "names": if make_server { Some(&names) } else { None },
            "operator_token": token,
        });
        say!("{facts}");
        return Ok(());
    }
    for (what, paths, made) in [
        ("CA", Paths::ca(root), made_ca),
        ("server certificate", server, make_server),
        ("operator certificate", operator, make_operator),
    ] {
        say!("{:21} {}  {}", what, state(made), paths.dir.display());
    }
    if make_server {
        say!("{:21} {}", "names", names.join(", "));
    } else if !san.is_empty() {
        say!(
            "The server certificate was kept, so --san changes nothing; remove its folder and run init again for a new one."
        );
    }
    if let Some(token) = token {
        say!("\nFor an operator on another machine, once and within 24 hours:\n{token}");
        say!(
            "\nNext: `ferrovia-controller run`, then `ferrovia-controller token --host NAME` for each host."
        );
    }
    Ok(())
}

async fn run(global: &Global, options: &Options) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let running = Running::start(options).await?;
    let mode = if options.plain { "plain" } else { "tls" };
    if options.plain {
        tracing::warn!(
            listen = %running.address(),
            "Plain mode: nothing is encrypted, and everybody who reaches the address may do everything. Run `ferrovia-controller init` and leave --plain out to change that"
        );
    }
    let revision = running.store().read().revision;
    tracing::info!(listen = %running.address(), mode, revision, "Serving");
    if global.output == Output::Json {
        say!(
            "{}",
            serde_json::json!({ "listen": running.address(), "mode": mode, "pid": std::process::id() })
        );
    }
    notify_systemd("READY=1");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    notify_systemd("STOPPING=1");
    tracing::info!("Stopping");
    running.stop().await;
    Ok(())
}

/// sd_notify(3), when systemd asks for it.
fn notify_systemd(state: &str) {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(Path::new(&socket)),
    };
    let sent = address
        .and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        tracing::warn!(%error, "systemd could not be told {state}; check NOTIFY_SOCKET");
    }
}

async fn token(
    global: &Global,
    config: &Config,
    role: Role,
    name: String,
    valid: u32,
    controller: Option<String>,
) -> anyhow::Result<()> {
    let root = &global.root;
    let opened = match &controller {
        Some(_) => None,
        None => {
            let ca = Paths::ca(root);
            // Nothing is made on a machine that is no controller.
            if !ca.exist() && !store_path(root).exists() {
                return Err(NoController { dir: ca.dir }.into());
            }
            match Store::open(&store_path(root)) {
                Ok(store) => Some(store),
                Err(OpenError::InUse { .. }) => None,
                Err(error) => return Err(error.into()),
            }
        }
    };
    let token = match opened {
        Some(store) => make_token(&store, &Ca::load(root)?, role, name, valid)
            .await?
            .encode(),
        None => ask_for_token(root, config, role, name, valid, controller).await?,
    };
    if global.output == Output::Json {
        let facts = Token::decode(&token)?;
        say!(
            "{}",
            serde_json::json!({ "token": token, "role": facts.role, "name": facts.name, "expires": facts.expires })
        );
    } else {
        say!("{token}");
    }
    Ok(())
}

async fn ask_for_token(
    root: &Path,
    config: &Config,
    role: Role,
    name: String,
    valid_seconds: u32,
    controller: Option<String>,
) -> anyhow::Result<String> {
    let url = controller.unwrap_or_else(|| {
        let listen = config.listen.map_or_else(
            || api::DEFAULT_CONTROLLER.to_owned(),
            |listen| {
                let mut listen = listen;
                if listen.ip().is_unspecified() {
                    listen.set_ip(if listen.is_ipv4() {
                        std::net::Ipv4Addr::LOCALHOST.into()
                    } else {
                        std::net::Ipv6Addr::LOCALHOST.into()
                    });
                }
                listen.to_string()
            },
        );
        format!("{}://{listen}", if config.plain { "http" } else { "https" })
    });
    let operator = Paths::operator(root);
    let identity = if operator.exist() {
        Some(Identity::load(&operator)?)
    } else {
        None
    };
    let channel =
        client::connect(&Target::controller(&url, identity, config.plain_anywhere)?).await?;
    let subject = match role {
        Role::Host => v1::create_token_request::Subject::Host(name),
        Role::Operator => v1::create_token_request::Subject::Operator(name),
    };
    let answer = client::controller_client(channel)
        .create_token(v1::CreateTokenRequest {
            subject: Some(subject),
            valid_seconds,
        })
        .await
        .map_err(|status| anyhow::anyhow!("{}", status.message()))
        .with_context(|| format!("The controller at '{url}' made no token"))?;
    Ok(answer.into_inner().token)
}
