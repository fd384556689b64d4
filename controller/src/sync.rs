//! The stream to each agent: desired state down, actual state up.
//!
//! ```text
//! agent:       Hello ─────────────▶ Applied, Status … ──────────────▶
//! controller:         ◀── Desired (full, or the difference to `have`)  ◀── Desired (differences) …
//! ```
//!
//! A session remembers which revision of each resource it sent. Whatever may have changed is compared with
//! that, so telling a session too much costs time but sends nothing twice.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use api::v1::{self, agent_message, controller_message};
use futures_util::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;

use crate::auth::Caller;
use crate::compile::{self, Key, Touched};
use crate::live::{Session, now_ms};
use crate::plan::{fields, hosts};
use crate::refusal::Refusal;
use crate::store::Store;

/// How long an agent may take for its first message.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an agent may leave a message untaken before its stream is ended.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// After a change, how long to wait for others, so that a burst of requests is a handful of messages.
const GATHER: Duration = Duration::from_millis(5);
/// Most resources that an agent may say it has, and most ports in a report.
const MAX_ITEMS: usize = 500_000;
const MAX_HOMES: usize = 16;
const MAX_REPORTED_TEXT: usize = 1024;

type Outbox = mpsc::Sender<Result<v1::ControllerMessage, Status>>;

/// The HostSync service.
#[derive(Debug)]
pub struct SyncService {
    store: Arc<Store>,
}

impl SyncService {
    /// A service on a store.
    pub fn new(store: Arc<Store>) -> SyncService {
        SyncService { store }
    }
}

#[tonic::async_trait]
impl v1::host_sync_server::HostSync for SyncService {
    type SyncStream = Pin<Box<dyn Stream<Item = Result<v1::ControllerMessage, Status>> + Send>>;

    async fn sync(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let caller = request.extensions().get::<Caller>().cloned();
        let caller = caller
            .ok_or_else(|| Status::internal("The call was not authenticated; report this"))?;
        let (outbox, stream) = mpsc::channel(4);
        let store = self.store.clone();
        let inbox = request.into_inner();
        // In a task of its own: an agent may wait for our headers before it says hello.
        tokio::spawn(async move {
            if let Err(status) = serve(&store, caller, inbox, &outbox).await {
                let _ = tokio::time::timeout(SEND_TIMEOUT, outbox.send(Err(status))).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

async fn serve(
    store: &Arc<Store>,
    caller: Caller,
    mut inbox: Streaming<v1::AgentMessage>,
    outbox: &Outbox,
) -> Result<(), Status> {
    let first = tokio::time::timeout(HELLO_TIMEOUT, inbox.message())
        .await
        .map_err(|_| {
            Status::deadline_exceeded("The agent did not say hello in 10 seconds; look at its log")
        })??;
    let Some(agent_message::Message::Hello(hello)) = first.and_then(|message| message.message)
    else {
        return Err(Status::invalid_argument(
            "The stream did not begin with a hello; use an agent of this version",
        ));
    };
    let host = admit(store, &caller, &hello)?;
    let shown = fields::shown(&hello.host);
    fields::at_most("resources", hello.have.len(), MAX_ITEMS)?;
    fields::at_most("homes", hello.homes.len(), MAX_HOMES)?;
    let word = hosts::Hello {
        host,
        vtep: hello.vtep.clone(),
        underlay_mtu: hello.underlay_mtu,
    };
    let connected = store.live().connected();
    let (record, problems) = store
        .write(move |state, plan| {
            hosts::hello(state, plan, &word, |other| connected.contains(&other))
        })
        .await
        .inspect_err(|refusal| tracing::warn!(host = shown, "An agent was refused: {refusal}"))?;

    let (session, replaced) = {
        // Under the state's lock: a host that goes from now on ends the session.
        let state = store.read();
        if state.host(host).is_none() {
            return Err(hosts::deleted().into());
        }
        store.live().open(host, &record.name)
    };
    if replaced {
        tracing::warn!(
            host = record.name,
            "A second agent connected as this host; the newer one stays. Make sure that only one agent has this name"
        );
    }
    tracing::info!(
        host = record.name,
        vtep = hello.vtep,
        mtu = hello.underlay_mtu,
        version = clipped(hello.agent_version.clone()),
        "Agent connected"
    );
    for problem in &problems {
        tracing::warn!(host = record.name, "{problem}");
    }
    if let Some(agent) = store.live().of(host, &session) {
        agent.version = clipped(hello.agent_version.clone());
        agent.problems = problems;
        agent.homes = hello
            .homes
            .iter()
            .map(|home| v1::HomeStatus {
                home: clipped(home.home.clone()),
                available: home.available,
                reason: clipped(home.reason.clone()),
            })
            .collect();
    }
    let mut talk = Talk {
        store,
        host,
        session: session.clone(),
        outbox,
        sent: HashMap::new(),
    };
    let outcome = talk.run(hello, inbox).await;
    store.live().close(host, &session);
    match &outcome {
        Ok(()) => tracing::info!(host = record.name, "Agent disconnected"),
        Err(status) => tracing::info!(
            host = record.name,
            reason = status.message(),
            "Agent disconnected"
        ),
    }
    outcome
}

/// Which host the caller is, if it may be the one it says.
fn admit(store: &Store, caller: &Caller, hello: &v1::AgentHello) -> Result<Uuid, Refusal> {
    let state = store.read();
    match caller {
        Caller::Plain => Ok(hosts::host(&state, &hello.host)?.id),
        Caller::Operator(_) => Err(Refusal::denied(
            "An operator's certificate is not good for this call; use a host's",
        )),
        Caller::Host(name, id) => {
            let Some(host) = state.host(*id) else {
                return Err(Refusal::denied(format!(
                    "The certificate is for host {name}, which was deleted; join with a token for the host as it is now"
                )));
            };
            // The host may have been renamed since the certificate was made; both names are its own.
            if hello.host == *name || hello.host == host.name {
                Ok(*id)
            } else {
                Err(Refusal::denied(format!(
                    "The certificate is for host {name}, and the agent says that it is '{}'; correct `host` in its agent.toml or join with another token",
                    fields::shown(&hello.host)
                )))
            }
        }
    }
}

/// An agent's text as operators may see it: not long, and without what would move their cursor.
fn clipped(text: String) -> String {
    let mut text = text.replace(char::is_control, "\u{fffd}");
    if text.len() > MAX_REPORTED_TEXT {
        let mut end = MAX_REPORTED_TEXT;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    text
}

/// One agent's stream after the hello.
struct Talk<'a> {
    store: &'a Arc<Store>,
    host: Uuid,
    session: Arc<Session>,
    outbox: &'a Outbox,
    /// Network and revision of each resource that the agent has.
    sent: HashMap<Key, (Uuid, u64)>,
}

impl Talk<'_> {
    async fn run(
        &mut self,
        hello: v1::AgentHello,
        mut inbox: Streaming<v1::AgentMessage>,
    ) -> Result<(), Status> {
        let first = self.first(hello);
        self.send(first).await?;
        loop {
            if let Some(why) = self.session.ended.get() {
                return Err(why.clone());
            }
            tokio::select! {
                () = self.session.end.notified() => {}
                () = self.session.woken.notified() => {
                    tokio::time::sleep(GATHER).await;
                    if let Some(step) = self.step() {
                        self.send(step).await?;
                    }
                }
                message = inbox.message() => match message? {
                    None => return Ok(()),
                    Some(message) => self.take(message)?,
                },
            }
        }
    }

    async fn send(&mut self, desired: v1::Desired) -> Result<(), Status> {
        if let Some(agent) = self.store.live().of(self.host, &self.session) {
            agent.desired = desired.version;
        }
        let message = v1::ControllerMessage {
            message: Some(controller_message::Message::Desired(desired)),
        };
        tokio::time::timeout(SEND_TIMEOUT, self.outbox.send(Ok(message)))
            .await
            .map_err(|_| {
                Status::deadline_exceeded(
                    "The agent took no message for 30 seconds; look at its log",
                )
            })?
            .map_err(|_| Status::cancelled("The agent closed its stream"))
    }

    /// Everything, or the difference to what the agent has.
    fn first(&mut self, hello: v1::AgentHello) -> v1::Desired {
        let state = self.store.read();
        let full = hello.store_id != state.store_id.to_string();
        let mut have: HashMap<String, u64> = if full {
            HashMap::new()
        } else {
            hello
                .have
                .into_iter()
                .map(|have| (have.key, have.revision))
                .collect()
        };
        let mut upserts = Vec::new();
        for key in compile::keys_of(&state, self.host) {
            let Some((network, resource)) = compile::resource(&state, self.host, key) else {
                continue;
            };
            self.sent.insert(key, (network, resource.revision));
            if have.remove(&resource.key) != Some(resource.revision) {
                upserts.push(resource);
            }
        }
        let mut deletes: Vec<String> = have.into_keys().collect();
        deletes.sort_unstable();
        v1::Desired {
            version: state.revision,
            store_id: state.store_id.to_string(),
            full,
            upserts,
            deletes,
            host_id: self.host.to_string(),
        }
    }

    /// What changed since the last message; `None` when nothing did for this host.
    fn step(&mut self) -> Option<v1::Desired> {
        // In this order: what is committed after the look at the state must not be in the version.
        let state = self.store.read();
        let touched = self.session.take();
        let mut keys = Vec::new();
        for touched in touched {
            match touched {
                Touched::Network(id) => keys.push(Key::Network(id)),
                Touched::Port(id) => keys.extend([Key::Port(id), Key::Peer(id)]),
                Touched::Whole(network) => {
                    keys.extend(compile::keys_in(&state, network));
                    keys.extend(
                        self.sent
                            .iter()
                            .filter(|(_, (of, _))| *of == network)
                            .map(|(key, _)| *key),
                    );
                }
            }
        }
        keys.sort_unstable();
        keys.dedup();
        let (mut upserts, mut deletes, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        for key in keys {
            match compile::resource(&state, self.host, key) {
                Some((network, resource)) => {
                    let now = (network, resource.revision);
                    if self.sent.insert(key, now) != Some(now) {
                        upserts.push(resource);
                    }
                }
                None => {
                    if self.sent.remove(&key).is_some() {
                        deletes.push(key.to_string());
                    }
                    if let Key::Port(id) = key {
                        gone.push(id);
                    }
                }
            }
        }
        if let Some(agent) = self.store.live().of(self.host, &self.session) {
            // The agent forgets the port and, should it come back, says anew how it is.
            for port in gone {
                agent.reports.remove(&port);
            }
        }
        if upserts.is_empty() && deletes.is_empty() {
            return None;
        }
        Some(v1::Desired {
            version: state.revision,
            store_id: state.store_id.to_string(),
            full: false,
            upserts,
            deletes,
            host_id: self.host.to_string(),
        })
    }

    /// The agent's word.
    fn take(&self, message: v1::AgentMessage) -> Result<(), Status> {
        let state = self.store.read();
        let mut live = self.store.live();
        let Some(agent) = live.of(self.host, &self.session) else {
            return Ok(());
        };
        agent.last_seen_ms = now_ms();
        match message.message {
            Some(agent_message::Message::Applied(applied)) => {
                // It cannot have applied what it was not sent.
                agent.applied = applied.version.min(agent.desired);
            }
            Some(agent_message::Message::Status(status)) => {
                fields::at_most("port reports", status.ports.len(), MAX_ITEMS)?;
                for report in status.ports {
                    let id = Uuid::try_parse(&report.port).ok();
                    let own = id.filter(|id| {
                        state
                            .port(*id)
                            .is_some_and(|port| port.host == Some(self.host))
                    });
                    // A port that has just gone is no error.
                    let (Some(id), Some(status)) = (own, report.status) else {
                        continue;
                    };
                    let known =
                        v1::PortState::try_from(status.state).unwrap_or(v1::PortState::Unspecified);
                    let port_status = v1::PortStatus {
                        state: if known == v1::PortState::Unspecified {
                            v1::PortState::Pending
                        } else {
                            known
                        } as i32,
                        reason: clipped(status.reason),
                        socket: clipped(status.socket),
                        guest_connected: status.guest_connected,
                        vf: clipped(status.vf),
                        vlan: status.vlan,
                    };
                    if known == v1::PortState::Failed
                        && agent.reports.get(&id) != Some(&port_status)
                    {
                        let name = state.port(id).map(|port| port.name.as_str());
                        tracing::warn!(
                            port = name,
                            reason = port_status.reason,
                            "A port failed on its host"
                        );
                    }
                    agent.reports.insert(id, port_status);
                }
            }
            Some(agent_message::Message::Hello(_)) => {
                return Err(Status::invalid_argument(
                    "A stream has one hello; open a new one",
                ));
            }
            // Something that a later agent says.
            None => {}
        }
        Ok(())
    }
}
