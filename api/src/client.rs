//! Connecting to a controller or an agent.
//!
//! One [`Target`] says where; [`connect`] makes the channel. The three `*_client` functions put the generated
//! clients on it with message limits that fit what the other side may send.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Uri};

use crate::identity::Identity;
use crate::v1;

/// How long a connection may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest answer a client of the controller or of an agent takes, bytes.
pub const MAX_ANSWER: usize = 32 * 1024 * 1024;
/// The longest message on the stream of desired state, in both directions, bytes. A resource has about
/// 150 bytes, and a host's first message holds all that the host needs to know.
pub const MAX_SYNC_MESSAGE: usize = 64 * 1024 * 1024;

/// Where to connect, and as whom.
#[derive(Clone, Debug)]
pub enum Target {
    /// `http://host:port`, nothing encrypted and nobody authenticated.
    Plain {
        /// The URL.
        url: String,
        /// Whether addresses other than this machine's loopback are allowed.
        anywhere: bool,
    },
    /// `https://host:port` with our own certificate.
    Tls {
        /// The URL.
        url: String,
        /// Who we are and whom we trust.
        identity: Identity,
    },
    /// `https://host:port` without a certificate of our own; good for joining.
    TlsAnonymous {
        /// The URL.
        url: String,
        /// The CA to trust, PEM.
        ca_pem: String,
    },
    /// A unix socket; who may use it is a matter of its file's permissions.
    Unix(PathBuf),
}

impl Target {
    /// The target for a controller's URL: plain for `http://`, TLS for `https://`, for which an identity is
    /// needed.
    ///
    /// # Errors
    /// When the URL is of neither kind or no identity is there for `https://`.
    pub fn controller(
        url: &str,
        identity: Option<Identity>,
        plain_anywhere: bool,
    ) -> Result<Target, ConnectError> {
        let uri = parse(url)?;
        match uri.scheme_str() {
            Some("http") => Ok(Target::Plain {
                url: url.into(),
                anywhere: plain_anywhere,
            }),
            _ => match identity {
                Some(identity) => Ok(Target::Tls {
                    url: url.into(),
                    identity,
                }),
                None => Err(ConnectError::NoIdentity { url: url.into() }),
            },
        }
    }

    fn name(&self) -> String {
        match self {
            Target::Plain { url, .. }
            | Target::Tls { url, .. }
            | Target::TlsAnonymous { url, .. } => url.clone(),
            Target::Unix(path) => path.display().to_string(),
        }
    }
}

/// Why a connection could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The URL cannot be read.
    #[error(
        "'{url}' is not a URL to connect to; write https://host:port, or http://host:port for plain mode"
    )]
    BadUrl {
        /// The URL as given.
        url: String,
    },
    /// Plain mode to another machine.
    #[error(
        "'{url}' would send everything unencrypted to another machine; use https://, or allow plain mode explicitly"
    )]
    PlainNotLoopback {
        /// The URL as given.
        url: String,
    },
    /// TLS without a certificate of our own.
    #[error(
        "'{url}' needs a certificate and there is none here; join with a token first, or use http:// for a plain controller on this machine"
    )]
    NoIdentity {
        /// The URL as given.
        url: String,
    },
    /// A certificate, key or CA that TLS cannot use.
    #[error(
        "The certificate, key or CA for '{target}' cannot be used; remove them and join again with a new token"
    )]
    BadIdentity {
        /// Where to.
        target: String,
        /// What TLS said.
        #[source]
        source: tonic::transport::Error,
    },
    /// Nobody answers there, or TLS was refused.
    #[error(
        "No connection to '{target}'; check that it runs, listens there, and was initialised with the same CA"
    )]
    Unreachable {
        /// Where to.
        target: String,
        /// What the transport said.
        #[source]
        source: tonic::transport::Error,
    },
    /// No one listens on the unix socket.
    #[error("No connection to the socket '{}'; check that the agent runs and that you may open the socket", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

fn parse(url: &str) -> Result<Uri, ConnectError> {
    let bad = || ConnectError::BadUrl { url: url.into() };
    let uri: Uri = url.parse().map_err(|_| bad())?;
    let known = matches!(uri.scheme_str(), Some("http" | "https"));
    if known && uri.host().is_some_and(|host| !host.is_empty()) {
        Ok(uri)
    } else {
        Err(bad())
    }
}

/// The host part without the brackets of an IPv6 address.
fn host_of(uri: &Uri) -> &str {
    uri.host()
        .unwrap_or_default()
        .trim_start_matches('[')
        .trim_end_matches(']')
}

/// Whether a URL's host is this machine's loopback.
pub fn is_loopback(url: &str) -> bool {
    parse(url).is_ok_and(|uri| {
        let host = host_of(&uri);
        host == "localhost"
            || host
                .parse::<IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    })
}

fn endpoint(url: &str) -> Result<Endpoint, ConnectError> {
    let uri = parse(url)?;
    Ok(Endpoint::from(uri)
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true))
}

/// Connects and waits until the connection stands.
///
/// # Errors
/// [`ConnectError`], which names the target and what to check.
pub async fn connect(target: &Target) -> Result<Channel, ConnectError> {
    let (url, tls) = match target {
        Target::Unix(path) => return connect_unix(path).await,
        Target::Plain { url, anywhere } => {
            if parse(url)?.scheme_str() != Some("http") {
                return Err(ConnectError::BadUrl { url: url.clone() });
            }
            if !anywhere && !is_loopback(url) {
                return Err(ConnectError::PlainNotLoopback { url: url.clone() });
            }
            (url, None)
        }
        Target::Tls { url, identity } => {
            let own = tonic::transport::Identity::from_pem(&identity.cert_pem, &identity.key_pem);
            (url, Some((&identity.ca_pem, Some(own))))
        }
        Target::TlsAnonymous { url, ca_pem } => (url, Some((ca_pem, None))),
    };
    let mut endpoint = endpoint(url)?;
    if let Some((ca_pem, own)) = tls {
        let uri = parse(url)?;
        if uri.scheme_str() != Some("https") {
            return Err(ConnectError::BadUrl { url: url.clone() });
        }
        let mut config = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(ca_pem))
            .domain_name(host_of(&uri))
            .timeout(CONNECT_TIMEOUT);
        if let Some(own) = own {
            config = config.identity(own);
        }
        endpoint = endpoint
            .tls_config(config)
            .map_err(|source| ConnectError::BadIdentity {
                target: target.name(),
                source,
            })?;
    }
    endpoint
        .connect()
        .await
        .map_err(|source| ConnectError::Unreachable {
            target: target.name(),
            source,
        })
}

async fn connect_unix(path: &Path) -> Result<Channel, ConnectError> {
    let failed = |source| ConnectError::Socket {
        path: path.into(),
        source,
    };
    // Tried once by itself, so that the system's own words reach the operator.
    tokio::net::UnixStream::connect(path)
        .await
        .map_err(failed)?;
    let socket = path.to_path_buf();
    // The URL is never looked at: the connector below decides.
    Endpoint::from_static("http://localhost")
        .connect_timeout(CONNECT_TIMEOUT)
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move {
                tokio::net::UnixStream::connect(socket)
                    .await
                    .map(TokioIo::new)
            }
        }))
        .await
        .map_err(|source| ConnectError::Unreachable {
            target: path.display().to_string(),
            source,
        })
}

/// A client of the controller's objects.
pub fn controller_client(channel: Channel) -> v1::controller_client::ControllerClient<Channel> {
    v1::controller_client::ControllerClient::new(channel).max_decoding_message_size(MAX_ANSWER)
}

/// A client of the stream of desired state.
pub fn sync_client(channel: Channel) -> v1::host_sync_client::HostSyncClient<Channel> {
    v1::host_sync_client::HostSyncClient::new(channel)
        .max_decoding_message_size(MAX_SYNC_MESSAGE)
        .max_encoding_message_size(MAX_SYNC_MESSAGE)
}

/// A client of an agent's local API.
pub fn agent_client(channel: Channel) -> v1::agent_client::AgentClient<Channel> {
    v1::agent_client::AgentClient::new(channel).max_decoding_message_size(MAX_ANSWER)
}

/// A client of an agent's NICs.
pub fn nic_client(channel: Channel) -> v1::sriov_client::SriovClient<Channel> {
    v1::sriov_client::SriovClient::new(channel).max_decoding_message_size(MAX_ANSWER)
}

/// A client of an agent's relays.
pub fn relay_client(channel: Channel) -> v1::xvio_client::XvioClient<Channel> {
    v1::xvio_client::XvioClient::new(channel).max_decoding_message_size(MAX_ANSWER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_urls_are_told_from_others() {
        for url in [
            "http://127.0.0.1:6640",
            "http://[::1]:6640",
            "http://localhost:1",
        ] {
            assert!(is_loopback(url), "{url}");
        }
        for url in [
            "http://192.0.2.1:6640",
            "http://ctl:6640",
            "http://127.0.0.1.example:1",
            "nonsense",
        ] {
            assert!(!is_loopback(url), "{url}");
        }
    }

    #[tokio::test]
    async fn plain_mode_does_not_leave_the_machine_unasked() {
        let target = Target::controller("http://192.0.2.1:6640", None, false).unwrap();
        assert!(matches!(
            connect(&target).await,
            Err(ConnectError::PlainNotLoopback { .. })
        ));
    }

    #[tokio::test]
    async fn bad_targets_are_errors() {
        assert!(matches!(
            Target::controller("ftp://x", None, false),
            Err(ConnectError::BadUrl { .. })
        ));
        assert!(matches!(
            Target::controller("https://x:1", None, false),
            Err(ConnectError::NoIdentity { .. })
        ));
        let nobody = Target::Unix("/nonexistent/agent.sock".into());
        assert!(matches!(
            connect(&nobody).await,
            Err(ConnectError::Socket { .. })
        ));
    }
}
