//! The ports that run: a vhost-user backend each, and its place in the data plane.
//!
//! A port that cannot be set up fails by itself, with a reason, and is tried again after a back-off.

use crate::accounts::Ownership;
use crate::desired::SocketMode;
use crate::diff::Attachment;
use fallback_dpdk::Dataplane;
use flow::PortId;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The first wait before a failed port is tried again; it doubles up to [`SLOWEST_RETRY`].
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The longest.
const SLOWEST_RETRY: Duration = Duration::from_secs(60);

/// Told when a backend's status changed: the port's id.
pub type OnChange = Arc<dyn Fn(&str) + Send + Sync>;

/// A port in the data plane.
struct Running {
    attachment: Attachment,
    number: PortId,
    backend: xvio::Backend,
}

/// A port that could not be set up.
struct Failed {
    reason: String,
    tries: u32,
    retry_at: Instant,
}

/// All ports of this host.
pub struct Ports {
    dataplane: Arc<Dataplane>,
    ownership: Ownership,
    permissions: u32,
    on_change: OnChange,
    running: BTreeMap<String, Running>,
    failed: BTreeMap<String, Failed>,
}

impl Ports {
    /// None yet.
    pub fn new(
        dataplane: Arc<Dataplane>,
        ownership: Ownership,
        permissions: u32,
        on_change: OnChange,
    ) -> Self {
        let (running, failed) = (BTreeMap::new(), BTreeMap::new());
        Ports {
            dataplane,
            ownership,
            permissions,
            on_change,
            running,
            failed,
        }
    }

    /// What runs now.
    pub fn attachments(&self) -> BTreeMap<String, Attachment> {
        self.running
            .iter()
            .map(|(id, running)| (id.clone(), running.attachment.clone()))
            .collect()
    }

    /// Whether the port is in the data plane.
    pub fn runs(&self, id: &str) -> bool {
        self.running.contains_key(id)
    }

    /// The number of a port that runs.
    pub fn number(&self, id: &str) -> Option<PortId> {
        self.running.get(id).map(|running| running.number)
    }

    /// The socket of a port that runs.
    pub fn socket(&self, id: &str) -> Option<&Path> {
        let running = self.running.get(id)?;
        Some(&running.attachment.socket)
    }

    /// The backend's status of a port that runs.
    pub fn status(&self, id: &str) -> Option<xvio::Status> {
        self.running.get(id).map(|running| running.backend.status())
    }

    /// The counters of a running port's rings, by queue pair.
    pub fn rings(&self, id: &str) -> Vec<xvio::PairCounters> {
        let running = self.running.get(id);
        running.map_or_else(Vec::new, |running| running.backend.counters().to_vec())
    }

    /// Why a port does not run.
    pub fn failure(&self, id: &str) -> Option<&str> {
        self.failed.get(id).map(|failed| failed.reason.as_str())
    }

    /// Whether a port may be tried now.
    pub fn may_try(&self, id: &str, now: Instant) -> bool {
        self.failed
            .get(id)
            .is_none_or(|failed| failed.retry_at <= now)
    }

    /// When the next failed port may be tried again.
    pub fn next_retry(&self) -> Option<Instant> {
        self.failed.values().map(|failed| failed.retry_at).min()
    }

    /// Forgets failures, so that all are tried again at once: the desired state has changed.
    pub fn retry_all(&mut self, now: Instant) {
        for failed in self.failed.values_mut() {
            failed.retry_at = now;
        }
    }

    /// Forgets the failures of ports that nobody wants any more.
    pub fn forget(&mut self, keep: impl Fn(&str) -> bool) {
        self.failed.retain(|id, _| keep(id));
    }

    /// Sets one port up. When it fails, the reason is kept.
    pub fn create(
        &mut self,
        id: &str,
        name: &str,
        number: PortId,
        attachment: &Attachment,
        now: Instant,
    ) -> bool {
        match self.try_create(id, name, number, attachment) {
            Ok(backend) => {
                let attachment = attachment.clone();
                self.failed.remove(id);
                self.running.insert(
                    id.to_owned(),
                    Running {
                        attachment,
                        number,
                        backend,
                    },
                );
                tracing::info!(port = name, number = number.0, "port ready");
                true
            }
            Err(reason) => {
                tracing::warn!(port = name, reason, "port failed");
                self.fail(id, reason, now);
                false
            }
        }
    }

    fn try_create(
        &self,
        id: &str,
        name: &str,
        number: PortId,
        attachment: &Attachment,
    ) -> Result<xvio::Backend, String> {
        let config = xvio::BackendConfig {
            name: name.to_owned(),
            socket: attachment.socket.clone(),
            mode: match attachment.mode {
                SocketMode::Server => xvio::SocketMode::Server,
                SocketMode::Client => xvio::SocketMode::Client,
            },
            owner: self.ownership.owner,
            group: self.ownership.group,
            permissions: self.permissions,
            max_queue_pairs: attachment.queue_pairs,
            max_queue_size: attachment.queue_size,
            mac: attachment.mac.0,
            mtu: attachment.mtu,
            features: xvio::Offer::default(),
        };
        let mut backend = xvio::Backend::start(config).map_err(|error| chain(&error))?;
        self.dataplane
            .add_vhost(number, &mut backend)
            .map_err(|error| chain(&error))?;
        let (on_change, id) = (Arc::clone(&self.on_change), id.to_owned());
        backend.on_change(Box::new(move |_| on_change(&id)));
        Ok(backend)
    }

    fn fail(&mut self, id: &str, reason: String, now: Instant) {
        let tries = self
            .failed
            .get(id)
            .map_or(0, |failed| failed.tries.saturating_add(1));
        let wait = (FIRST_RETRY * (1 << tries.min(6))).min(SLOWEST_RETRY);
        self.failed.insert(
            id.to_owned(),
            Failed {
                reason,
                tries,
                retry_at: now + wait,
            },
        );
    }

    /// Takes one port down. The topology must not have it any more. When this returns, no worker
    /// touches it and its socket is gone.
    pub fn remove(&mut self, id: &str) {
        let Some(running) = self.running.remove(id) else {
            return;
        };
        if let Err(error) = self.dataplane.remove_port(running.number) {
            tracing::error!(port = id, error = chain(&error), "port cannot be removed");
        }
        drop(running.backend);
    }

    /// The reason why a running port's backend gave up, where it has.
    pub fn given_up(&self, id: &str) -> Option<String> {
        match self.status(id)?.state {
            xvio::State::Failed(reason) => Some(reason),
            _ => None,
        }
    }

    /// Takes a port down whose backend gave up, to be tried again.
    pub fn give_up(&mut self, id: &str, reason: String, now: Instant) {
        self.remove(id);
        self.fail(id, reason, now);
    }

    /// Takes all ports down.
    pub fn clear(&mut self) {
        let ids: Vec<String> = self.running.keys().cloned().collect();
        for id in ids {
            self.remove(&id);
        }
    }
}

/// An error and what led to it, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
