//! The local API: what this host does right now, on a unix socket.

use crate::accounts::AccountError;
use crate::control::Handle;
use crate::ports::chain;
use crate::probe_packet;
use crate::view::{View, feature_names};
use api::v1;
use fallback_dpdk::{Dataplane, FlowFilter, FlowRecord, Trace};
use flow::{ActionList, DropReason, PortId};
use nix::unistd::{Gid, chown};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tokio::net::UnixListener;
use tonic::{Request, Response, Status};
use vrouter::Verdict;

/// The most flows that one answer holds.
const MAX_FLOWS: usize = 100_000;
/// Unless asked otherwise.
const DEFAULT_FLOWS: usize = 1000;

/// The local API's socket cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The group is not there.
    #[error(transparent)]
    Group(#[from] AccountError),
    /// The file system says no.
    #[error(
        "The local API's socket {path} cannot be made; is its directory writable, and is the path shorter than 108 bytes?"
    )]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Makes the socket: mode 0660, of the group that may use it. It appears whole, in place of a stale
/// one.
pub fn listen(path: &Path, group: Option<u32>) -> Result<UnixListener, ApiError> {
    let make = || {
        let beside = path.with_extension("new");
        let _ = std::fs::remove_file(&beside);
        let listener = UnixListener::bind(&beside)?;
        std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o660))?;
        if let Some(group) = group {
            chown(&beside, None, Some(Gid::from_raw(group)))?;
        }
        std::fs::rename(&beside, path)?;
        Ok(listener)
    };
    make().map_err(|source| ApiError::Socket {
        path: path.to_owned(),
        source,
    })
}

/// What stays the same as long as the agent runs.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// What it is and where.
    pub info: v1::AgentInfo,
}

/// The service.
pub struct LocalApi {
    /// The unchanging part of the status.
    pub facts: Facts,
    /// The control thread.
    pub handle: Handle,
    /// The data plane.
    pub dataplane: Arc<Dataplane>,
    /// Whether the controller's stream is up.
    pub connected: Arc<AtomicBool>,
    /// Since when.
    pub started: Instant,
}

impl LocalApi {
    fn view(&self) -> Arc<View> {
        self.handle.view().borrow().clone()
    }
}

#[tonic::async_trait]
impl v1::agent_server::Agent for LocalApi {
    async fn get_status(&self, _: Request<v1::Empty>) -> Result<Response<v1::AgentInfo>, Status> {
        let mut info = self.facts.info.clone();
        info.controller_connected = self.connected.load(Ordering::Relaxed);
        info.applied_version = self.view().applied_version;
        info.uptime_ms = self.started.elapsed().as_millis() as u64;
        let counters = self.dataplane.counters();
        let workers = self.dataplane.workers();
        info.workers = workers
            .iter()
            .map(|worker| v1::WorkerInfo {
                index: worker.index as u32,
                core: worker.core.map_or(-1, |core| core as i32),
                busy_cycles: worker.busy_cycles,
                idle_cycles: worker.idle_cycles,
                packets: counters
                    .ports
                    .iter()
                    .filter(|(id, _)| worker.ports.contains(id))
                    .map(|(_, port)| port.rx_packets)
                    .sum(),
                sleeps: worker.sleeps,
                flows: worker.flows as u64,
            })
            .collect();
        Ok(Response::new(info))
    }

    async fn list_local_ports(
        &self,
        _: Request<v1::Empty>,
    ) -> Result<Response<v1::ListLocalPortsResponse>, Status> {
        let counters = self.dataplane.counters();
        let view = self.view();
        let mut ports: Vec<_> = view
            .ports
            .values()
            .map(|shown| {
                let own = counters
                    .ports
                    .iter()
                    .find(|(id, _)| Some(*id) == shown.number);
                v1::LocalPort {
                    port: Some(shown.port.clone()),
                    number: shown.number.map_or(0, |number| number.0),
                    counters: Some(own.map(|(_, c)| guest_counters(c)).unwrap_or_default()),
                    features: feature_names(shown.features),
                    active_queue_pairs: shown.active_queue_pairs.into(),
                }
            })
            .collect();
        ports.sort_by(|a, b| name(a).cmp(name(b)));
        Ok(Response::new(v1::ListLocalPortsResponse { ports }))
    }

    async fn list_flows(
        &self,
        request: Request<v1::ListFlowsRequest>,
    ) -> Result<Response<v1::ListFlowsResponse>, Status> {
        let request = request.into_inner();
        let view = self.view();
        let port = match request.port.as_str() {
            "" => None,
            "uplink" => Some(PortId::UPLINK),
            reference => Some(number_of(&view, reference)?),
        };
        let limit = match request.limit {
            0 => DEFAULT_FLOWS,
            limit => (limit as usize).min(MAX_FLOWS),
        };
        let dataplane = Arc::clone(&self.dataplane);
        // The workers are asked one after the other; that may take a moment.
        let filter = FlowFilter {
            port,
            ..FlowFilter::default()
        };
        let dump = tokio::task::spawn_blocking(move || dataplane.flows(&filter, limit))
            .await
            .map_err(|_| Status::internal("The flows could not be read"))?
            .map_err(|error| Status::unavailable(chain(&error)))?;
        let flows = dump.flows.iter().map(|flow| flow_of(flow, &view)).collect();
        Ok(Response::new(v1::ListFlowsResponse {
            flows,
            total: dump.total as u64,
        }))
    }

    async fn get_counters(&self, _: Request<v1::Empty>) -> Result<Response<v1::Counters>, Status> {
        let counters = self.dataplane.counters();
        let uplink = counters.ports.iter().find(|(id, _)| *id == PortId::UPLINK);
        Ok(Response::new(v1::Counters {
            uplink: uplink.map(|(_, c)| v1::PortCounters {
                rx_packets: c.rx_packets,
                rx_bytes: c.rx_bytes,
                tx_packets: c.tx_packets,
                tx_bytes: c.tx_bytes,
                drops: drops(&c.drops),
            }),
            drops: drops(&counters.drops),
            flow_hits: counters.hits,
            flow_misses: counters.misses,
            flows: counters.flows as u64,
            flow_capacity: counters.capacity as u64,
        }))
    }

    async fn trace(
        &self,
        request: Request<v1::TraceRequest>,
    ) -> Result<Response<v1::TraceResponse>, Status> {
        let request = request.into_inner();
        let view = self.view();
        let port = number_of(&view, &request.port)?;
        let packet = probe_packet::build(&request, port, view.router.topology())
            .map_err(Status::invalid_argument)?;
        let trace = self.dataplane.trace(port, &packet);
        let trace = trace.map_err(|error| Status::failed_precondition(chain(&error)))?;
        Ok(Response::new(trace_of(trace)))
    }
}

fn name(port: &v1::LocalPort) -> &str {
    port.port.as_ref().map_or("", |port| port.name.as_str())
}

fn number_of(view: &View, reference: &str) -> Result<PortId, Status> {
    let shown: String = reference.chars().take(64).collect();
    let port = view.find(reference).ok_or_else(|| {
        Status::not_found(format!(
            "There is no port \"{shown}\" on this host; `ferrovia port list` shows where it is"
        ))
    })?;
    port.number.ok_or_else(|| {
        Status::failed_precondition(format!(
            "Port \"{shown}\" is not in the data plane; its status says why"
        ))
    })
}

/// The data plane counts what comes in and goes out of it; a guest sees it the other way round.
fn guest_counters(counters: &fallback_dpdk::PortCounters) -> v1::PortCounters {
    v1::PortCounters {
        rx_packets: counters.tx_packets,
        rx_bytes: counters.tx_bytes,
        tx_packets: counters.rx_packets,
        tx_bytes: counters.rx_bytes,
        drops: drops(&counters.drops),
    }
}

pub(crate) fn drops(counts: &[u64; DropReason::COUNT]) -> Vec<v1::DropCount> {
    let counted = DropReason::ALL
        .iter()
        .zip(counts)
        .filter(|(_, packets)| **packets > 0);
    counted
        .map(|(reason, packets)| v1::DropCount {
            reason: reason.name().into(),
            packets: *packets,
        })
        .collect()
}

fn flow_of(flow: &FlowRecord, view: &View) -> v1::Flow {
    let key = &flow.key;
    let port = view.by_number(key.in_port);
    let vni = match port {
        Some(port) => port.vni,
        None => key.tunnel.vni,
    };
    v1::Flow {
        in_port: port.map_or_else(|| key.in_port.to_string(), |port| port.port.name.clone()),
        key: key.to_string(),
        actions: ActionList(&flow.actions).to_string(),
        home: offload::HomeKind::Software.to_string(),
        packets: flow.packets,
        bytes: flow.bytes,
        age_ms: flow.age.as_millis() as u64,
        idle_ms: flow.idle.as_millis() as u64,
        network: view.networks.get(&vni).cloned().unwrap_or_default(),
    }
}

fn trace_of(trace: Trace) -> v1::TraceResponse {
    let mut steps = trace.steps;
    if let Some(flow) = &trace.installed {
        steps.push(format!(
            "The flow table has it: {} packets, {} bytes, last used {} ms ago.",
            flow.packets,
            flow.bytes,
            flow.idle.as_millis()
        ));
    }
    if let Some(execution) = &trace.execution {
        let ports: Vec<String> = execution
            .outputs
            .iter()
            .map(|(port, _)| port.to_string())
            .collect();
        if !ports.is_empty() {
            steps.push(format!("The packet leaves by {}.", ports.join(", ")));
        }
        steps.push(format!("Execution ends with {:?}.", execution.outcome));
    }
    let key = trace
        .key
        .as_ref()
        .map_or_else(|_| String::new(), ToString::to_string);
    let verdict = match (&trace.key, &trace.verdict) {
        (Err(reason), _) => format!("drop={reason}"),
        (Ok(_), None) => "no router yet".to_owned(),
        (Ok(_), Some(Verdict::Flow { actions, .. })) => {
            format!("flow: {}", ActionList(actions))
        }
        (Ok(_), Some(Verdict::Once { actions })) => format!("once: {}", ActionList(actions)),
        (Ok(_), Some(Verdict::Answer(answers))) => {
            format!(
                "answered by the virtual router with {} packet(s)",
                answers.len()
            )
        }
        (Ok(_), Some(Verdict::Learned { ip, mac })) => format!("learned: {ip} is at {mac}"),
        (Ok(_), Some(Verdict::Drop(reason))) => format!("drop={reason}"),
    };
    v1::TraceResponse {
        key,
        steps,
        verdict,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_for_its_group_and_replaces_a_stale_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        std::fs::write(&path, "stale").unwrap();
        let _listener = listen(&path, Some(nix::unistd::getgid().as_raw())).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        tokio::net::UnixStream::connect(&path).await.unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
