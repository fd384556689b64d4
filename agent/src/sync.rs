//! The stream to the controller: desired state in, actual state out.
//!
//! Whatever happens to the stream, the data plane goes on with what it has. A lost stream is opened
//! again, after a wait that doubles up to half a minute, with jitter, so that a controller that comes
//! back is not met by all its hosts at once.

use crate::config;
use crate::control::Handle;
use crate::paths::Paths;
use crate::ports::chain;
use crate::view::View;
use api::client::{self, Target};
use api::identity::{self, Identity};
use api::v1;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// The first wait.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// The longest.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// What the hello says of this host, beside what the agent has.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// The host's name.
    pub host: String,
    /// Its address in the underlay; empty without one.
    pub vtep: String,
    /// MTU of the underlay; 0 without one.
    pub underlay_mtu: u32,
    /// Homes of flows.
    pub homes: Vec<v1::HomeStatus>,
}

/// The stream cannot be had or has ended.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// No certificate, and no way to get one.
    #[error(
        "This host has not joined; run `ferrovia-agent join --url {url} --token …`, or set token_file in [controller]"
    )]
    NotJoined {
        /// The controller.
        url: String,
    },
    /// The token cannot be read.
    #[error("The token file {path} cannot be read")]
    TokenFile {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The certificate cannot be had or read.
    #[error(transparent)]
    Identity(#[from] identity::IdentityError),
    /// No connection.
    #[error(transparent)]
    Connect(#[from] client::ConnectError),
    /// The controller refused or ended the stream.
    #[error("The controller ended the stream: {0}")]
    Status(String),
    /// The stream ended without a word.
    #[error("The controller closed the stream")]
    Closed,
    /// The agent is stopping.
    #[error("The agent is stopping")]
    Stopping,
}

/// Where the controller is and as whom to talk to it. Joins with the token file when there is no
/// certificate yet.
pub async fn target(controller: &config::Controller, paths: &Paths) -> Result<Target, SyncError> {
    let url = &controller.url;
    if url.starts_with("http://") {
        return Ok(Target::controller(url, None, controller.plain)?);
    }
    let files = identity::Paths::agent(paths.root());
    let identity = if files.exist() {
        Identity::load(&files)?
    } else if let Some(token_file) = &controller.token_file {
        let path = paths.relocate(token_file);
        let token = match std::fs::read_to_string(&path) {
            Ok(token) => token,
            Err(source) => return Err(SyncError::TokenFile { path, source }),
        };
        let identity = identity::join(url, token.trim(), &files).await?;
        tracing::info!(url, "joined; the certificate is in {}", files.dir.display());
        identity
    } else {
        return Err(SyncError::NotJoined { url: url.clone() });
    };
    Ok(Target::controller(url, Some(identity), false)?)
}

/// Keeps the stream up for ever. `connected` says whether it is.
pub async fn run(
    controller: config::Controller,
    paths: Paths,
    about: About,
    handle: Handle,
    connected: Arc<AtomicBool>,
) {
    if controller.url.starts_with("http://") {
        tracing::warn!(
            url = controller.url,
            "PLAIN: the controller is not authenticated and nothing is encrypted"
        );
    }
    let mut wait = FIRST_WAIT;
    let mut last_error = String::new();
    loop {
        let started = tokio::time::Instant::now();
        let error = match once(&controller, &paths, &about, &handle, &connected).await {
            Ok(never) => match never {},
            Err(SyncError::Stopping) => return,
            Err(error) => chain(&error),
        };
        if connected.swap(false, Ordering::Relaxed) || error != last_error {
            tracing::warn!(
                error,
                "no controller; forwarding goes on with the last known state"
            );
        }
        last_error = error;
        if started.elapsed() > LONGEST_WAIT {
            wait = FIRST_WAIT;
        }
        tokio::time::sleep(jitter(wait)).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// Between half of it and all of it.
fn jitter(wait: Duration) -> Duration {
    let random = uuid::Uuid::new_v4().as_u128() as u32;
    wait / 2 + wait.mul_f64(f64::from(random) / f64::from(u32::MAX) / 2.0)
}

enum Never {}

async fn once(
    controller: &config::Controller,
    paths: &Paths,
    about: &About,
    handle: &Handle,
    connected: &AtomicBool,
) -> Result<Never, SyncError> {
    let target = target(controller, paths).await?;
    let channel = client::connect(&target).await?;
    let mut client = client::sync_client(channel);
    let have = handle.have().await.ok_or(SyncError::Stopping)?;
    let hello = v1::AgentHello {
        host: about.host.clone(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        vtep: about.vtep.clone(),
        underlay_mtu: about.underlay_mtu,
        store_id: have.store_id,
        have: have.have,
        homes: about.homes.clone(),
    };
    let (out, messages) = mpsc::channel(16);
    send(&out, v1::agent_message::Message::Hello(hello)).await?;
    // All ports after a hello, as far as there are any yet.
    let mut view = handle.view();
    let mut sent = BTreeMap::new();
    let now = view.borrow_and_update().clone();
    report(&out, &now, &mut sent, true).await?;
    let status = |status: tonic::Status| SyncError::Status(status.message().to_owned());
    let mut stream = client
        .sync(ReceiverStream::new(messages))
        .await
        .map_err(status)?
        .into_inner();
    connected.store(true, Ordering::Relaxed);
    tracing::info!(url = controller.url, "controller connected");
    loop {
        tokio::select! {
            message = stream.message() => {
                let message = message.map_err(status)?.ok_or(SyncError::Closed)?;
                let Some(v1::controller_message::Message::Desired(step)) = message.message else {
                    continue;
                };
                let version = match handle.step(step).await.ok_or(SyncError::Stopping)? {
                    Ok(version) => version,
                    Err(error) => {
                        // Nothing of the other store is kept: the next hello asks for everything.
                        handle.forget_store().await.ok_or(SyncError::Stopping)?;
                        return Err(SyncError::Status(error.to_string()));
                    }
                };
                let now = view.borrow_and_update().clone();
                report(&out, &now, &mut sent, false).await?;
                send(&out, v1::agent_message::Message::Applied(v1::Applied { version })).await?;
            }
            changed = view.changed() => {
                changed.map_err(|_| SyncError::Stopping)?;
                let now = view.borrow_and_update().clone();
                report(&out, &now, &mut sent, false).await?;
            }
        }
    }
}

async fn send(
    out: &mpsc::Sender<v1::AgentMessage>,
    message: v1::agent_message::Message,
) -> Result<(), SyncError> {
    out.send(v1::AgentMessage {
        message: Some(message),
    })
    .await
    .map_err(|_| SyncError::Closed)
}

/// Reports the ports whose status is not what was last sent.
async fn report(
    out: &mpsc::Sender<v1::AgentMessage>,
    view: &View,
    sent: &mut BTreeMap<String, v1::PortStatus>,
    even_if_none: bool,
) -> Result<(), SyncError> {
    sent.retain(|id, _| view.ports.contains_key(id));
    let mut ports = Vec::new();
    for (id, port) in &view.ports {
        let Some(status) = &port.port.status else {
            continue;
        };
        if sent.get(id) != Some(status) {
            sent.insert(id.clone(), status.clone());
            ports.push(v1::PortReport {
                port: id.clone(),
                status: Some(status.clone()),
            });
        }
    }
    if ports.is_empty() && !even_if_none {
        return Ok(());
    }
    send(
        out,
        v1::agent_message::Message::Status(v1::AgentStatus { ports }),
    )
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::PortView;

    #[tokio::test]
    async fn only_what_changed_is_reported() {
        let (out, mut messages) = mpsc::channel(16);
        let mut sent = BTreeMap::new();
        let mut view = View::default();
        let with = |state: v1::PortState| PortView {
            port: v1::Port {
                status: Some(v1::PortStatus {
                    state: state.into(),
                    ..Default::default()
                }),
                ..Default::default()
            },
            ..Default::default()
        };
        view.ports.insert("a".into(), with(v1::PortState::Ready));
        view.ports.insert("b".into(), with(v1::PortState::Ready));
        report(&out, &view, &mut sent, false).await.unwrap();
        report(&out, &view, &mut sent, false).await.unwrap();
        view.ports.insert("b".into(), with(v1::PortState::Failed));
        report(&out, &view, &mut sent, false).await.unwrap();
        drop(out);
        let mut reported = Vec::new();
        while let Some(message) = messages.recv().await {
            let Some(v1::agent_message::Message::Status(status)) = message.message else {
                panic!()
            };
            reported.push(status.ports.into_iter().map(|p| p.port).collect::<Vec<_>>());
        }
        assert_eq!(reported, [vec!["a", "b"], vec!["b"]]);
    }

    #[test]
    fn jitter_stays_between_half_and_whole() {
        for _ in 0..100 {
            let wait = jitter(Duration::from_secs(8));
            assert!(
                (Duration::from_secs(4)..=Duration::from_secs(8)).contains(&wait),
                "{wait:?}"
            );
        }
    }
}
