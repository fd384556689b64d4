//! The API of the relays, on the local socket.

use super::spec::{Origin, Spec};
use super::{id_of, is_relay};
use crate::control::{Handle, RelayError};
use crate::local_api::drops;
use crate::ports::chain;
use crate::view::{RelayView, View};
use api::v1::{self, RelayState};
use fallback_dpdk::{Counters, Dataplane, WorkerStats};
use std::sync::Arc;
use std::time::Duration;
use tonic::{Request, Response, Status};

/// How long a caller waits for a VF to be handed out, or refused.
const VF_WAIT: Duration = Duration::from_secs(20);

/// The service.
pub struct XvioApi {
    handle: Handle,
    dataplane: Arc<Dataplane>,
}

impl XvioApi {
    /// Answers for the relays of this control thread.
    pub fn new(handle: Handle, dataplane: Arc<Dataplane>) -> XvioApi {
        XvioApi { handle, dataplane }
    }

    fn view(&self) -> Arc<View> {
        self.handle.view().borrow().clone()
    }

    fn one(&self, id: &str) -> Result<v1::Relay, Status> {
        let view = self.view();
        let found = view.relays.get(id).ok_or_else(stopping)?;
        Ok(Reading::of(&self.dataplane).relay(found))
    }

    fn find(&self, name: &str) -> Result<String, Status> {
        find(&self.view(), name).ok_or_else(|| {
            Status::not_found(format!(
                "There is no relay \"{}\" on this host; `ferrovia xvio list` shows those there are",
                shown(name)
            ))
        })
    }

    /// Waits until it is decided whether the relay has its VF; why it has none.
    async fn vf_refused(&self, id: &str) -> Option<String> {
        let mut views = self.handle.view();
        let decided = async {
            loop {
                let view = views.borrow_and_update().clone();
                let relay = &view.relays.get(id)?.relay;
                let waiting = relay.state() == RelayState::RelayWaitingForVf;
                if !waiting {
                    return None;
                }
                if !relay.reason.is_empty() {
                    return Some(relay.reason.clone());
                }
                views.changed().await.ok()?;
            }
        };
        // A NIC that takes longer than that goes on, and the relay's state says how it ends.
        tokio::time::timeout(VF_WAIT, decided).await.ok().flatten()
    }
}

fn stopping() -> Status {
    Status::unavailable("The agent is stopping")
}

fn shown(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(64).collect()
}

/// The id of the relay of this name, or else of the port.
fn find(view: &View, name: &str) -> Option<String> {
    let relay = id_of(name);
    if view.relays.contains_key(&relay) {
        return Some(relay);
    }
    let mut ports = view.relays.iter().filter(|(id, _)| !is_relay(id));
    let named = |relay: &RelayView| relay.relay.spec.as_ref().is_some_and(|s| s.name == name);
    ports
        .find(|(id, relay)| *id == name || named(relay))
        .map(|(id, _)| id.clone())
}

impl From<RelayError> for Status {
    fn from(error: RelayError) -> Status {
        match error {
            RelayError::Taken(why) => Status::already_exists(why),
            RelayError::Refused(why) => Status::failed_precondition(why),
            RelayError::Keep(why) => Status::internal(why),
        }
    }
}

/// What the data plane says now, read once for all relays.
pub struct Reading<'d> {
    dataplane: &'d Dataplane,
    counters: Counters,
    workers: Vec<WorkerStats>,
}

impl Reading<'_> {
    /// Reads it.
    pub fn of(dataplane: &Dataplane) -> Reading<'_> {
        Reading {
            dataplane,
            counters: dataplane.counters(),
            workers: dataplane.workers(),
        }
    }

    /// A relay with what is counted.
    pub fn relay(&self, view: &RelayView) -> v1::Relay {
        let mut relay = view.relay.clone();
        (relay.worker, relay.core) = (-1, -1);
        relay.queues = view
            .rings
            .0
            .iter()
            .enumerate()
            .map(|(index, pair)| v1::RelayQueue {
                index: index as u32,
                from_guest: Some(ring(&pair.tx.snapshot())),
                to_guest: Some(ring(&pair.rx.snapshot())),
            })
            .collect();
        let Some(number) = view.number else {
            return relay;
        };
        if let Some(worker) = self.workers.iter().find(|w| w.ports.contains(&number)) {
            relay.worker = worker.index as i32;
            relay.core = worker.core.map_or(-1, |core| core as i32);
        }
        let own = self.counters.ports.iter().find(|(id, _)| *id == number);
        let dropped = own.map(|(_, own)| own.drops);
        if let Some(far) = self.dataplane.relayed(number) {
            relay.device = Some(v1::RelayDevice {
                name: far.device,
                driver: far.driver,
                queues: far.queues.into(),
                link_up: far.link.up,
                link_mbps: far.link.mbps,
                rx_packets: far.counters.rx_packets,
                rx_bytes: far.counters.rx_bytes,
                tx_packets: far.counters.tx_packets,
                tx_bytes: far.counters.tx_bytes,
            });
        }
        relay.drops = dropped.map(|dropped| drops(&dropped)).unwrap_or_default();
        relay
    }
}

fn ring(now: &xvio::CountersSnapshot) -> v1::RingCounters {
    let reasons = [
        ("ring-full", now.full),
        ("ring-down", now.down),
        ("too-long", now.too_long),
        ("runt", now.runt),
        ("bad-checksum-request", now.bad_csum),
        ("segmentation-not-offered", now.gso_not_offered),
        ("oversize", now.oversize),
    ];
    let counted = reasons.into_iter().filter(|(_, packets)| *packets > 0);
    v1::RingCounters {
        packets: now.packets,
        bytes: now.bytes,
        bursts: now.bursts,
        kicks: now.kicks,
        kicks_suppressed: now.suppressed,
        drops: counted
            .map(|(reason, packets)| v1::DropCount {
                reason: reason.to_owned(),
                packets,
            })
            .collect(),
    }
}

#[tonic::async_trait]
impl v1::xvio_server::Xvio for XvioApi {
    async fn list_relays(
        &self,
        _: Request<v1::Empty>,
    ) -> Result<Response<v1::ListRelaysResponse>, Status> {
        let view = self.view();
        let now = Reading::of(&self.dataplane);
        let mut relays: Vec<_> = view.relays.values().map(|relay| now.relay(relay)).collect();
        let name = |relay: &v1::Relay| relay.spec.as_ref().map(|spec| spec.name.clone());
        relays.sort_by_key(name);
        Ok(Response::new(v1::ListRelaysResponse { relays }))
    }

    async fn get_relay(
        &self,
        request: Request<v1::RelayRequest>,
    ) -> Result<Response<v1::Relay>, Status> {
        let id = self.find(&request.into_inner().name)?;
        self.one(&id).map(Response::new)
    }

    async fn add_relay(
        &self,
        request: Request<v1::RelaySpec>,
    ) -> Result<Response<v1::Relay>, Status> {
        let spec =
            Spec::from_api(&request.into_inner(), Origin::Api).map_err(Status::invalid_argument)?;
        let (name, id) = (spec.name.clone(), id_of(&spec.name));
        let added = self.handle.add_relay(spec).await.ok_or_else(stopping)??;
        if added && let Some(why) = self.vf_refused(&id).await {
            self.handle
                .remove_relay(name)
                .await
                .ok_or_else(stopping)??;
            return Err(Status::failed_precondition(why));
        }
        self.one(&id).map(Response::new)
    }

    async fn remove_relay(
        &self,
        request: Request<v1::RelayRequest>,
    ) -> Result<Response<v1::RemoveRelayResponse>, Status> {
        let name = request.into_inner().name;
        let existed = self.handle.remove_relay(name.clone()).await;
        let existed = existed.ok_or_else(stopping)??;
        if !existed && find(&self.view(), &name).is_some() {
            return Err(Status::failed_precondition(format!(
                "\"{}\" is a port; delete it with `ferrovia port delete`",
                shown(&name)
            )));
        }
        Ok(Response::new(v1::RemoveRelayResponse { existed }))
    }

    async fn move_relay(
        &self,
        request: Request<v1::MoveRelayRequest>,
    ) -> Result<Response<v1::Relay>, Status> {
        let v1::MoveRelayRequest { name, worker } = request.into_inner();
        let id = self.find(&name)?;
        let number = self.view().relays.get(&id).and_then(|relay| relay.number);
        let number = number.ok_or_else(|| {
            Status::failed_precondition(format!(
                "Relay \"{}\" is not in the data plane; its state says why",
                shown(&name)
            ))
        })?;
        let dataplane = Arc::clone(&self.dataplane);
        let moved =
            tokio::task::spawn_blocking(move || dataplane.move_port(number, worker as usize));
        match moved.await.map_err(|_| stopping())? {
            Ok(()) => self.one(&id).map(Response::new),
            Err(error @ fallback_dpdk::Error::NoSuchWorker { .. }) => {
                Err(Status::invalid_argument(chain(&error)))
            }
            Err(error) => Err(Status::failed_precondition(chain(&error))),
        }
    }
}
