//! The agent as a process: brings everything up in the right order, and takes it down again.

use crate::accounts::{self, AccountError};
use crate::config::{self, Config, ConfigError};
use crate::control::{self, Handle, Parts};
use crate::local_api::{self, ApiError, Facts, LocalApi};
use crate::lock::{Lock, LockError};
use crate::metrics::{self, MetricsError};
use crate::nics::service::NicApi;
use crate::nics::{self, Nics};
use crate::paths::Paths;
use crate::ports::chain;
use crate::relays::service::XvioApi;
use crate::sync::{self, About};
use crate::underlay::{self, UnderlayError};
use crate::uplink::{self, UplinkError};
use crate::{homes, notify};
use api::v1;
use fallback_dpdk::Dataplane;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;

/// How the agent is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Files.
    pub paths: Paths,
    /// The configuration, where it is not the usual one.
    pub config: PathBuf,
}

/// The agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An account or directory.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// Another agent.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The underlay's interface.
    #[error(transparent)]
    Underlay(#[from] UnderlayError),
    /// DPDK itself.
    #[error("The data plane cannot start")]
    Eal(#[source] dpdk::Error),
    /// The workers.
    #[error("The data plane's workers cannot start")]
    Dataplane(#[source] fallback_dpdk::Error),
    /// The uplink.
    #[error(transparent)]
    Uplink(#[from] UplinkError),
    /// The local API.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The listener for Prometheus.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// Threads or signals.
    #[error("The operating system refuses {what}")]
    System {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Runs the agent until it is told to end.
pub async fn run(options: Options) -> Result<(), StartError> {
    let started = Instant::now();
    let paths = options.paths.clone();
    let config = config::load(&options.config)?;
    let ownership = accounts::ownership(
        config.sockets.owner.as_deref(),
        config.sockets.group.as_deref(),
    )?;
    let api_group = match &config.api.group {
        Some(name) => Some(accounts::group(name, "group of [api]")?),
        None => None,
    };
    accounts::directory(&paths.run_dir(), 0o755, None)?;
    accounts::directory(&paths.state_dir(), 0o755, None)?;
    accounts::vhost_directory(&paths.vhost_dir(), ownership)?;
    let _lock = Lock::take(&paths.lock())?;

    // What can be refused is refused before DPDK takes its memory.
    let place = match &config.underlay {
        Some(wanted) => Some(place(wanted).await?),
        None => None,
    };
    let _reservation = match &place {
        Some(place) if place.kernel_owns => Some(underlay::reserve(place.address.addr())?),
        _ => None,
    };
    let listener = local_api::listen(&paths.api_socket(), api_group)?;
    let metrics = match config.metrics {
        Some(listen) => Some(metrics::listen(listen).await?),
        None => None,
    };

    let eal = dpdk::Eal::init(&uplink::eal_config(&config)).map_err(StartError::Eal)?;
    let mtu = place.as_ref().and_then(|place| place.mtu);
    let dataplane = Dataplane::start(eal.clone(), uplink::dataplane_config(&config, mtu))
        .map_err(StartError::Dataplane)?;
    let dataplane = Arc::new(dataplane);
    let uplink = match (&config.underlay, &place) {
        (Some(wanted), Some(place)) => {
            Some(uplink::attach(&eal, &dataplane, &wanted.uplink, place)?)
        }
        _ => None,
    };
    let homes = homes::probe(place.as_ref().and_then(|place| place.interface.as_deref()));

    let nics = Nics::new(paths.nic_policies());
    let parts = Parts {
        host: config.host.clone(),
        paths: paths.clone(),
        eal: eal.clone(),
        dataplane: Arc::clone(&dataplane),
        relays: config.relays.clone(),
        ownership,
        permissions: config.sockets.mode,
        underlay: uplink.as_ref().map(|uplink| uplink.underlay.clone()),
        keep_state: config.controller.is_some(),
        nics: nics.clone(),
        sriov_pool: config.nic.sriov_pool.clone(),
    };
    let (handle, control) = control::start(parts).map_err(|source| StartError::System {
        what: "the control thread",
        source,
    })?;
    uplink::forward_events(&dataplane, handle.clone()).map_err(|source| StartError::System {
        what: "the event thread",
        source,
    })?;
    if config.controller.is_none() {
        handle.replace(config.alone.clone());
    }
    manage_nics(&nics, &config, &paths, handle.clone())?;

    let connected = Arc::new(AtomicBool::new(false));
    let about = about(&config, uplink.as_ref(), homes);
    let api = LocalApi {
        facts: facts(&config, &paths, &about, uplink.as_ref(), eal.hugepages()),
        handle: handle.clone(),
        dataplane: Arc::clone(&dataplane),
        connected: Arc::clone(&connected),
        started,
    };
    let server = tonic::transport::Server::builder()
        .add_service(v1::agent_server::AgentServer::new(api))
        .add_service(v1::sriov_server::SriovServer::new(NicApi::new(
            nics.clone(),
        )))
        .add_service(v1::xvio_server::XvioServer::new(XvioApi::new(
            handle.clone(),
            Arc::clone(&dataplane),
        )))
        .serve_with_incoming(UnixListenerStream::new(listener));
    let server = tokio::spawn(server);
    let metrics = metrics.map(|listener| {
        let serve = metrics::serve(listener, handle.clone(), Arc::clone(&dataplane));
        tokio::spawn(serve)
    });
    let stream = config.controller.clone().map(|controller| {
        tokio::spawn(sync::run(
            controller,
            paths.clone(),
            about,
            handle.clone(),
            connected,
        ))
    });
    tracing::info!(host = config.host, root = %paths.root().display(), "agent runs");
    notify::ready();

    let ended = until_told(&options, config, &handle, &nics).await;
    nics.stop();
    notify::stopping();
    if let Some(stream) = stream {
        stream.abort();
    }
    if let Some(metrics) = metrics {
        metrics.abort();
    }
    server.abort();
    let _ = std::fs::remove_file(paths.api_socket());
    handle.stop();
    let _ = tokio::task::spawn_blocking(move || control.join()).await;
    tracing::info!("agent ended");
    ended
}

/// Has the NICs managed by a thread of its own. An agent that cannot do that does everything else.
fn manage_nics(
    nics: &Nics,
    config: &Config,
    paths: &Paths,
    handle: Handle,
) -> Result<(), StartError> {
    let kernel = nics::kernel::real(&config.nic);
    let watch = sriov_mgr::kernel::events::watch().inspect_err(
        |error| tracing::warn!(%error, "changes of NICs are seen within a minute, not at once"),
    );
    let start = nics::Start {
        options: sriov_mgr::Options::new(paths.sriov_dir(), kernel),
        file: config.nic.policies.clone(),
        watch: watch.ok(),
        moved: Box::new(move |owners| handle.nics_moved(owners)),
    };
    nics::start(nics, start).map_err(|source| StartError::System {
        what: "the thread of the NICs",
        source,
    })
}

/// Where this host is in the underlay, as configured and as its interface says.
pub(crate) async fn place(wanted: &config::Underlay) -> Result<underlay::Place, StartError> {
    let interface = match wanted.uplink.interface() {
        Some(name) => Some(underlay::interface(name).await?),
        None => None,
    };
    if let Some(interface) = interface.as_ref().filter(|interface| !interface.up) {
        tracing::warn!(
            interface = interface.name,
            "the underlay's interface is down"
        );
    }
    Ok(underlay::place(wanted, interface.as_ref())?)
}

fn about(config: &Config, uplink: Option<&uplink::Uplink>, homes: Vec<v1::HomeStatus>) -> About {
    About {
        host: config.host.clone(),
        vtep: uplink
            .map(|uplink| uplink.underlay.address.to_string())
            .unwrap_or_default(),
        underlay_mtu: uplink.map_or(0, |uplink| uplink.underlay.mtu.into()),
        homes,
    }
}

fn facts(
    config: &Config,
    paths: &Paths,
    about: &About,
    uplink: Option<&uplink::Uplink>,
    hugepages: bool,
) -> Facts {
    let (mode, url) = match &config.controller {
        None => ("none", ""),
        Some(controller) if controller.url.starts_with("http://") => {
            ("plain", controller.url.as_str())
        }
        Some(controller) => ("tls", controller.url.as_str()),
    };
    Facts {
        info: v1::AgentInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            host: config.host.clone(),
            vtep: about.vtep.clone(),
            underlay_mtu: about.underlay_mtu,
            controller_mode: mode.to_owned(),
            controller: url.to_owned(),
            homes: about.homes.clone(),
            uplink: uplink
                .map(|uplink| uplink.device.clone())
                .unwrap_or_default(),
            hugepages,
            config_dir: paths.config_dir().display().to_string(),
            ..v1::AgentInfo::default()
        },
    }
}

/// Waits for SIGTERM or SIGINT; SIGHUP reads the file again.
async fn until_told(
    options: &Options,
    mut config: Config,
    handle: &Handle,
    nics: &Nics,
) -> Result<(), StartError> {
    let system = |source| StartError::System {
        what: "signal handlers",
        source,
    };
    let mut terminate = signal(SignalKind::terminate()).map_err(system)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system)?;
    let mut hang_up = signal(SignalKind::hangup()).map_err(system)?;
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = hang_up.recv() => reload(options, &mut config, handle, nics),
        }
    }
}

/// Takes networks, ports, peers, relays and NIC policies from the changed file. A file with a mistake changes nothing.
fn reload(options: &Options, config: &mut Config, handle: &Handle, nics: &Nics) {
    let new = match config::load(&options.config) {
        Ok(new) => new,
        Err(error) => {
            tracing::error!(error = chain(&error), "file refused; nothing changes");
            return;
        }
    };
    let rest = |config: &Config| Config {
        alone: Default::default(),
        relays: Default::default(),
        nic: config::Nic {
            policies: Vec::new(),
            ..config.nic.clone()
        },
        ..config.clone()
    };
    if rest(&new) != rest(config) {
        tracing::warn!(
            "only networks, ports, peers, relays and NIC policies are taken from a changed file; restart the agent for the rest"
        );
    }
    if new.nic.policies != config.nic.policies {
        match nics.set_file_policies(new.nic.policies.clone()) {
            Ok(()) => {
                config.nic.policies = new.nic.policies;
                tracing::info!(
                    "NIC policies read again; `ferrovia nic plan` shows what they change"
                );
            }
            Err(error) => {
                tracing::error!(
                    error = chain(&error),
                    "NIC policies refused; the earlier ones stay"
                );
            }
        }
    }
    if new.relays != config.relays {
        config.relays = new.relays;
        handle.file_relays(config.relays.clone());
        tracing::info!(relays = config.relays.len(), "relays read again");
    }
    if config.controller.is_none() && new.controller.is_none() {
        config.alone = new.alone;
        handle.replace(config.alone.clone());
        tracing::info!(
            networks = config.alone.networks.len(),
            ports = config.alone.ports.len(),
            peers = config.alone.peers.len(),
            "file read again"
        );
    }
}
