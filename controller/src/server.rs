//! The controller as a running server.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::identity::{Identity, IdentityError, Paths};
use api::v1::{controller_server, host_sync_server, join_server};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Server, ServerTlsConfig};

use crate::auth::{self, Plain};
use crate::join::JoinService;
use crate::listener;
use crate::pki::{Ca, PkiError};
use crate::service::ControllerService;
use crate::store::{OpenError, Store};
use crate::sync::SyncService;

/// Connections at once.
const MAX_CONNECTIONS: usize = 4096;
/// Calls at once on one connection.
const MAX_CALLS: usize = 1024;
/// Longest request but an agent's, bytes.
const MAX_REQUEST: usize = 1024 * 1024;
/// Longest request without a certificate, bytes.
const MAX_JOIN: usize = 64 * 1024;
/// Longest request header list, bytes.
const MAX_HEADERS: u32 = 16 * 1024;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How far apart pings are, and how long an answer may take.
const PING: Duration = Duration::from_secs(10);
/// How long a connection may say nothing. Those that speak HTTP/2 answer a ping before that.
const SILENCE: Duration = Duration::from_secs(30);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long open calls may take once the controller stops.
const DRAIN: Duration = Duration::from_secs(3);

/// Where and how to serve.
#[derive(Clone, Debug)]
pub struct Options {
    /// What `/` is for our files.
    pub root: PathBuf,
    /// Where to listen; port 0 picks one.
    pub listen: SocketAddr,
    /// Without TLS.
    pub plain: bool,
    /// Plain mode on an address that other machines reach.
    pub plain_anywhere: bool,
}

/// Why the controller cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Plain mode on an address that other machines reach.
    #[error(
        "Plain mode on {listen} would let everybody who reaches that address control the networks; listen on 127.0.0.1, leave --plain out, or add --plain-anywhere on a network you trust"
    )]
    PlainAnywhere {
        /// The address.
        listen: SocketAddr,
    },
    /// TLS without keys.
    #[error("The controller has no certificate in '{}'; run `ferrovia-controller init` first, or use --plain on this machine only", dir.display())]
    NotInitialised {
        /// Where it would be.
        dir: PathBuf,
        /// What is missing.
        #[source]
        source: IdentityError,
    },
    /// The CA cannot be used.
    #[error("The controller's CA cannot be used")]
    Pki(#[from] PkiError),
    /// The store cannot be used.
    #[error("The controller's store cannot be used")]
    Store(#[from] OpenError),
    /// The address cannot be used.
    #[error(
        "The controller cannot listen on {listen}; choose another address, or stop what listens there"
    )]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// TLS refuses the keys.
    #[error("The controller's certificate or key in '{}' cannot be used; remove the folder and run `ferrovia-controller init` again", dir.display())]
    Tls {
        /// Where they are.
        dir: PathBuf,
        /// What TLS said.
        #[source]
        source: tonic::transport::Error,
    },
}

/// The store's file.
pub fn store_path(root: &Path) -> PathBuf {
    root.join("var/lib/ferrovia/controller.redb")
}

/// A controller that serves until it is stopped.
#[derive(Debug)]
pub struct Running {
    address: SocketAddr,
    store: Arc<Store>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Running {
    /// Checks everything, opens the store and listens; answers come from then on.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(options: &Options) -> Result<Running, StartError> {
        let Options {
            root,
            listen,
            plain,
            plain_anywhere,
        } = options;
        let listen = *listen;
        if *plain && !plain_anywhere && !listen.ip().is_loopback() {
            return Err(StartError::PlainAnywhere { listen });
        }
        let paths = Paths::server(root);
        let mut server = Server::builder()
            .timeout(REQUEST_TIMEOUT)
            .concurrency_limit_per_connection(MAX_CALLS)
            .max_concurrent_streams(u32::try_from(MAX_CALLS).ok())
            .http2_max_header_list_size(MAX_HEADERS)
            .http2_keepalive_interval(Some(PING))
            .http2_keepalive_timeout(Some(PING))
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(1 << 22);
        let ca = if *plain {
            // A CA is not needed, and used for tokens when it is there.
            if Paths::ca(root).exist() {
                Some(Ca::load(root)?)
            } else {
                None
            }
        } else {
            let own = Identity::load(&paths).map_err(|source| StartError::NotInitialised {
                dir: paths.dir.clone(),
                source,
            })?;
            let tls = ServerTlsConfig::new()
                .identity(tonic::transport::Identity::from_pem(
                    &own.cert_pem,
                    &own.key_pem,
                ))
                .client_ca_root(Certificate::from_pem(&own.ca_pem))
                // For Join; every other service asks for the certificate itself.
                .client_auth_optional(true)
                .timeout(HANDSHAKE_TIMEOUT);
            server = server.tls_config(tls).map_err(|source| StartError::Tls {
                dir: paths.dir.clone(),
                source,
            })?;
            Some(Ca::load(root)?)
        };
        let ca = ca.map(Arc::new);
        let failed = |source| StartError::Listen { listen, source };
        // Before the store: a second controller by mistake should not wait for the file.
        let listener = TcpListener::bind(listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let store = Arc::new(Store::open(&store_path(root))?);

        let mode = Plain(*plain);
        let controller = controller_server::ControllerServer::new(ControllerService::new(
            store.clone(),
            ca.clone(),
            *plain,
        ))
        .max_decoding_message_size(MAX_REQUEST);
        let sync = host_sync_server::HostSyncServer::new(SyncService::new(store.clone()))
            .max_decoding_message_size(api::client::MAX_SYNC_MESSAGE)
            .max_encoding_message_size(api::client::MAX_SYNC_MESSAGE);
        let join =
            join_server::JoinServer::new(JoinService::new(store.clone(), ca.filter(|_| !plain)))
                .max_decoding_message_size(MAX_JOIN);
        let router = server
            .add_service(InterceptedService::new(
                controller,
                auth::operators_only(mode),
            ))
            .add_service(InterceptedService::new(sync, auth::hosts_only(mode)))
            .add_service(join);
        let (stop, stopped) = oneshot::channel();
        let incoming = listener::incoming(listener, MAX_CONNECTIONS, SILENCE);
        let task = tokio::spawn(router.serve_with_incoming_shutdown(incoming, async {
            // Dropping the sender stops too.
            let _ = stopped.await;
        }));
        Ok(Running {
            address,
            store,
            stop: Some(stop),
            task,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The store behind it.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Ends the agents' streams, finishes open calls and closes the store.
    pub async fn stop(mut self) {
        self.store.live().stop();
        drop(self.stop.take());
        if tokio::time::timeout(DRAIN, &mut self.task).await.is_err() {
            self.task.abort();
            let _ = (&mut self.task).await;
        }
    }
}
