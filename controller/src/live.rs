//! Connected agents and what they reported. None of it is stored: after a restart the agents say it again.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use api::v1;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::compile::Touched;

/// What is known of one host's agent.
#[derive(Debug, Default)]
pub struct Agent {
    /// Its stream is open.
    pub connected: bool,
    /// As it said in its hello.
    pub version: String,
    /// The last version that it applied.
    pub applied: u64,
    /// The last version that it was sent.
    pub desired: u64,
    /// Milliseconds since the epoch.
    pub last_seen_ms: i64,
    /// As it said in its hello.
    pub homes: Vec<v1::HomeStatus>,
    /// What is wrong with what it said, for the operator.
    pub problems: Vec<String>,
    /// Its word on each port, by id.
    pub reports: HashMap<Uuid, v1::PortStatus>,
    session: Option<Arc<Session>>,
}

/// The end of a stream that the rest of the controller talks to.
#[derive(Debug, Default)]
pub struct Session {
    touched: Mutex<HashSet<Touched>>,
    /// Something is in `touched`.
    pub woken: Notify,
    /// A newer stream of the same host took over, the host went, or the controller stops.
    pub ended: tokio::sync::OnceCell<tonic::Status>,
    /// `ended` was set.
    pub end: Notify,
}

impl Session {
    /// What may have changed since the last call.
    pub fn take(&self) -> HashSet<Touched> {
        std::mem::take(&mut *lock(&self.touched))
    }

    /// Ends the stream with a status for the agent.
    pub fn close(&self, why: tonic::Status) {
        let _ = self.ended.set(why);
        self.end.notify_one();
    }
}

/// All agents, by host.
#[derive(Debug, Default)]
pub struct Live {
    agents: HashMap<Uuid, Agent>,
    stopping: bool,
}

impl Live {
    /// The agent of a host, if it ever connected to this process.
    pub fn agent(&self, host: Uuid) -> Option<&Agent> {
        self.agents.get(&host)
    }

    /// The hosts whose agents are connected.
    pub fn connected(&self) -> HashSet<Uuid> {
        self.agents
            .iter()
            .filter(|(_, agent)| agent.connected)
            .map(|(host, _)| *host)
            .collect()
    }

    /// A stream begins. Returns the session, and whether another one was open, which ends.
    pub fn open(&mut self, host: Uuid, name: &str) -> (Arc<Session>, bool) {
        let session = Arc::new(Session::default());
        if self.stopping {
            session.close(stopping());
        }
        let agent = self.agents.entry(host).or_default();
        let replaced = agent.session.replace(session.clone());
        if let Some(old) = &replaced {
            old.close(tonic::Status::aborted(format!(
                "A newer agent connected as host {name}, so this stream ends; make sure that only one agent has this name"
            )));
        }
        *agent = Agent {
            connected: true,
            last_seen_ms: now_ms(),
            session: agent.session.take(),
            ..Agent::default()
        };
        (session, replaced.is_some())
    }

    /// A stream ended. What it reported stays, marked as not connected, unless a newer stream is there.
    pub fn close(&mut self, host: Uuid, session: &Arc<Session>) {
        if let Some(agent) = self.of(host, session) {
            agent.connected = false;
            agent.session = None;
        }
    }

    /// The agent, if this session is still its own.
    pub fn of(&mut self, host: Uuid, session: &Arc<Session>) -> Option<&mut Agent> {
        self.agents.get_mut(&host).filter(|agent| {
            agent
                .session
                .as_ref()
                .is_some_and(|own| Arc::ptr_eq(own, session))
        })
    }

    /// Something may have changed for a host.
    pub fn touch(&mut self, host: Uuid, what: Touched) {
        if let Some(session) = self
            .agents
            .get(&host)
            .and_then(|agent| agent.session.as_ref())
        {
            lock(&session.touched).insert(what);
            session.woken.notify_one();
        }
    }

    /// A port was deleted: what a host said about it is void.
    pub fn forget_port(&mut self, host: Uuid, port: Uuid) {
        if let Some(agent) = self.agents.get_mut(&host) {
            agent.reports.remove(&port);
        }
    }

    /// A host was deleted.
    pub fn forget_host(&mut self, host: Uuid) {
        if let Some(session) = self.agents.remove(&host).and_then(|agent| agent.session) {
            session.close(crate::plan::hosts::deleted().into());
        }
    }

    /// Ends every stream, now and later.
    pub fn stop(&mut self) {
        self.stopping = true;
        for session in self
            .agents
            .values()
            .filter_map(|agent| agent.session.as_ref())
        {
            session.close(stopping());
        }
    }
}

fn stopping() -> tonic::Status {
    tonic::Status::unavailable("The controller stops; connect again when it is back")
}

/// Milliseconds since the epoch.
pub fn now_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Locks; what a panicking thread left is taken as it is, since every critical section here is a few moves.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
