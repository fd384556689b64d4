//! The API of the NICs, on the local socket. Every call that may touch a NIC runs on a thread for blocking
//! work: a NIC that hangs holds up its caller and nobody else.

use super::{Nics, SetError, asked, shown, vf_check};
use crate::ports::chain;
use crate::relays::is_relay;
use api::v1;
use sriov_mgr::kernel::KernelError;
use sriov_mgr::manager::{Error, PfView, VfView};
use sriov_mgr::{Device, Manager};
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc};
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tonic::{Request, Response, Status};

/// Calls that are at work at the same time. Each may wait for a NIC that hangs, on a thread that others of this
/// process need too; further calls wait their turn.
const AT_ONCE: usize = 32;
/// Events that wait for a watcher who does not read.
const UNREAD: usize = 64;

/// The service.
pub struct NicApi {
    nics: Nics,
    turns: Arc<Semaphore>,
}

impl NicApi {
    /// Answers for these NICs.
    pub fn new(nics: Nics) -> NicApi {
        NicApi {
            nics,
            turns: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// Does something with the manager on a thread for blocking work.
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Manager) -> Result<T, Status> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let manager = self.nics.manager().map_err(Status::unavailable)?;
        self.blocking(move || work(&manager)).await
    }

    /// Does something that may wait for a NIC, or for somebody who does, on a thread for blocking work.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Status> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let turn = self.turn().await?;
        let work = move || {
            let _turn = turn;
            work()
        };
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|_| stopping())?.map(Response::new)
    }

    async fn turn(&self) -> Result<OwnedSemaphorePermit, Status> {
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        turn.map_err(|_| stopping())
    }
}

fn stopping() -> Status {
    Status::internal("The agent is stopping")
}

/// The manager's errors by what the caller can do about them.
fn status(error: Error) -> Status {
    let text = chain(&error);
    match error {
        Error::Invalid(_) => Status::invalid_argument(text),
        Error::NotFound(_) => Status::not_found(text),
        Error::Exhausted(_) => Status::resource_exhausted(text),
        Error::Kernel(KernelError::Gone { .. }) => Status::not_found(text),
        Error::Kernel(KernelError::Wedged { .. }) => Status::unavailable(text),
        Error::NotOurs { .. }
        | Error::Disturbs { .. }
        | Error::Unsupported(_)
        | Error::NotTaken { .. }
        | Error::Partition { .. }
        | Error::Unclean { .. } => Status::failed_precondition(text),
        _ => Status::internal(text),
    }
}

fn pfs(manager: &Manager) -> Result<Vec<PfView>, Status> {
    manager.pfs().map_err(status)
}

fn vfs(manager: &Manager) -> Result<Vec<VfView>, Status> {
    manager.vfs().map_err(status)
}

fn device(manager: &Manager, name: &str) -> Result<Device, Status> {
    let pfs = pfs(manager)?;
    let pf = asked::pf(&pfs, name).ok_or_else(|| Status::not_found(asked::no_nic(name)))?;
    Ok(pf.state.device.clone())
}

fn nic(manager: &Manager, name: &str) -> Result<v1::ManagedNic, Status> {
    let pfs = pfs(manager)?;
    let pf = asked::pf(&pfs, name).ok_or_else(|| Status::not_found(asked::no_nic(name)))?;
    Ok(shown::nic(pf))
}

fn vf(manager: &Manager, name: &str) -> Result<VfView, Status> {
    let (pfs, vfs) = (pfs(manager)?, vfs(manager)?);
    let vf = asked::vf(&pfs, &vfs, name);
    vf.cloned()
        .ok_or_else(|| Status::not_found(asked::no_vf(name)))
}

impl From<SetError> for Status {
    fn from(error: SetError) -> Status {
        let text = chain(&error);
        match error {
            SetError::Clash(_) => Status::already_exists(text),
            SetError::Wrong(_) => Status::invalid_argument(text),
            SetError::NoManager(_) => Status::unavailable(text),
            SetError::Keep(_) => Status::internal(text),
        }
    }
}

/// The policies of both kinds, with what they select in vain as far as that can be told now.
fn both(nics: &Nics) -> v1::NicPolicies {
    let policies = nics.policies();
    let file = policies.file.iter().map(|p| shown::policy(p, true));
    let api = policies.api.iter().map(|p| shown::policy(p, false));
    let manager = nics.manager().ok();
    let warnings = manager.and_then(|manager| manager.warnings().ok());
    v1::NicPolicies {
        policies: file.chain(api).collect(),
        warnings: shown::notes(&warnings.unwrap_or_default()),
    }
}

type EventStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl v1::sriov_server::Sriov for NicApi {
    async fn list_nics(
        &self,
        _: Request<v1::Empty>,
    ) -> Result<Response<v1::ListNicsResponse>, Status> {
        self.with(|manager| {
            let nics = pfs(manager)?.iter().map(shown::nic).collect();
            Ok(v1::ListNicsResponse { nics })
        })
        .await
    }

    async fn get_nic(
        &self,
        request: Request<v1::NicRequest>,
    ) -> Result<Response<v1::ManagedNic>, Status> {
        let name = request.into_inner().nic;
        self.with(move |manager| nic(manager, &name)).await
    }

    async fn get_policies(
        &self,
        _: Request<v1::Empty>,
    ) -> Result<Response<v1::NicPolicies>, Status> {
        let nics = self.nics.clone();
        self.blocking(move || Ok(both(&nics))).await
    }

    async fn set_policies(
        &self,
        request: Request<v1::NicPolicies>,
    ) -> Result<Response<v1::NicPolicies>, Status> {
        // Those of the file come back from a caller that changes what GetPolicies gave.
        let mut list = request.into_inner().policies;
        list.retain(|policy| !policy.from_file);
        let policies = asked::policies(&list).map_err(Status::invalid_argument)?;
        let nics = self.nics.clone();
        self.blocking(move || {
            nics.set_api_policies(policies)?;
            Ok(both(&nics))
        })
        .await
    }

    async fn plan(&self, _: Request<v1::Empty>) -> Result<Response<v1::NicPlan>, Status> {
        let trouble = self.nics.trouble();
        self.with(move |manager| {
            let mut plan = shown::plan(&manager.plan().map_err(status)?);
            let trouble = trouble.into_iter().map(|why| v1::NicNote {
                device: String::new(),
                why,
            });
            plan.refused.extend(trouble);
            Ok(plan)
        })
        .await
    }

    type ApplyStream = EventStream<v1::ApplyNicsEvent>;

    async fn apply(
        &self,
        request: Request<v1::ApplyNicsRequest>,
    ) -> Result<Response<Self::ApplyStream>, Status> {
        let force = request.into_inner().force;
        let manager = self.nics.manager().map_err(Status::unavailable)?;
        let turn = self.turn().await?;
        let (out, events) = mpsc::unbounded_channel();
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let say = |event| {
                let event = v1::ApplyNicsEvent { event: Some(event) };
                // What is begun is finished, whether or not the caller still listens.
                let _ = out.send(Ok(event));
            };
            let progress = |step: &_| {
                say(v1::apply_nics_event::Event::Progress(shown::progress(step)));
            };
            match manager.apply(force, &progress) {
                Ok(applied) => say(v1::apply_nics_event::Event::Result(shown::applied(
                    &applied,
                ))),
                Err(error) => {
                    let _ = out.send(Err(status(error)));
                }
            }
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(
            events,
        ))))
    }

    async fn reset_nic(
        &self,
        request: Request<v1::ResetNicRequest>,
    ) -> Result<Response<v1::NicDone>, Status> {
        let v1::ResetNicRequest { nic, force } = request.into_inner();
        self.with(move |manager| {
            let device = device(manager, &nic)?;
            let done = manager.reset(&device, force).map_err(status)?;
            Ok(shown::done(&done))
        })
        .await
    }

    async fn adopt_nic(
        &self,
        request: Request<v1::NicRequest>,
    ) -> Result<Response<v1::ManagedNic>, Status> {
        let name = request.into_inner().nic;
        self.with(move |manager| {
            manager.adopt(&device(manager, &name)?).map_err(status)?;
            nic(manager, &name)
        })
        .await
    }

    async fn disown_nic(
        &self,
        request: Request<v1::NicRequest>,
    ) -> Result<Response<v1::ManagedNic>, Status> {
        let name = request.into_inner().nic;
        self.with(move |manager| {
            manager.disown(&device(manager, &name)?).map_err(status)?;
            nic(manager, &name)
        })
        .await
    }

    type WatchStream = EventStream<v1::NicEvent>;

    async fn watch(&self, _: Request<v1::Empty>) -> Result<Response<Self::WatchStream>, Status> {
        self.nics.manager().map_err(Status::unavailable)?;
        let mut events = self.nics.events();
        // Bounded: who does not read misses events and is told so, instead of having them all kept.
        let (out, stream) = mpsc::channel(UNREAD);
        tokio::spawn(async move {
            loop {
                let event = tokio::select! {
                    event = events.recv() => event,
                    () = out.closed() => return,
                };
                let event = match event {
                    Ok(event) => Ok(event),
                    Err(broadcast::error::RecvError::Lagged(missed)) => Err(Status::data_loss(
                        format!("{missed} events were missed; list the NICs and watch again"),
                    )),
                    Err(broadcast::error::RecvError::Closed) => return,
                };
                let last = event.is_err();
                if out.send(event).await.is_err() || last {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn list_vfs(
        &self,
        request: Request<v1::ListVfsRequest>,
    ) -> Result<Response<v1::ListVfsResponse>, Status> {
        let v1::ListVfsRequest { nic, pool } = request.into_inner();
        self.with(move |manager| {
            let of = match nic.as_str() {
                "" => None,
                name => Some(device(manager, name)?),
            };
            let all = vfs(manager)?;
            let wanted = all.iter().filter(|vf| {
                of.as_ref().is_none_or(|pf| vf.id.pf == *pf)
                    && (pool.is_empty() || vf.pool.as_deref() == Some(&pool))
            });
            Ok(v1::ListVfsResponse {
                vfs: wanted.map(shown::vf).collect(),
            })
        })
        .await
    }

    async fn get_vf(
        &self,
        request: Request<v1::VfRequest>,
    ) -> Result<Response<v1::ManagedVf>, Status> {
        let name = request.into_inner().vf;
        self.with(move |manager| Ok(shown::vf(&vf(manager, &name)?)))
            .await
    }

    async fn check_vf(
        &self,
        request: Request<v1::CheckVfRequest>,
    ) -> Result<Response<v1::CheckVfResponse>, Status> {
        let v1::CheckVfRequest { vf: name, force } = request.into_inner();
        self.with(move |manager| {
            let vf = vf(manager, &name)?;
            vf_check::run(&vf, &force)
        })
        .await
    }

    async fn allocate_vf(
        &self,
        request: Request<v1::AllocateVfRequest>,
    ) -> Result<Response<v1::VfAllocation>, Status> {
        let request = request.into_inner();
        self.with(move |manager| {
            let (pfs, vfs) = (pfs(manager)?, vfs(manager)?);
            let request = asked::request(&request, &pfs, &vfs).map_err(Status::invalid_argument)?;
            let given = manager.allocate(&request).map_err(status)?;
            Ok(shown::allocation(&given))
        })
        .await
    }

    async fn release_vf(
        &self,
        request: Request<v1::ReleaseVfRequest>,
    ) -> Result<Response<v1::ReleaseVfResponse>, Status> {
        let v1::ReleaseVfRequest { owner, force } = request.into_inner();
        self.with(move |manager| {
            let owner = owner_of(manager, owner)?;
            if owner.starts_with("port/") && !force {
                return Err(Status::failed_precondition(format!(
                    "{owner} is a port's; delete the port, or force it: the port gets another VF then"
                )));
            }
            if is_relay(&owner) && !force {
                return Err(Status::failed_precondition(format!(
                    "{owner} is a relay's; remove the relay, or force it: the relay asks for it again then"
                )));
            }
            let released = manager.release(&owner, force).map_err(status)?;
            Ok(shown::released(&released))
        })
        .await
    }
}

/// The owner that is meant: by its own name, or by its VF's.
fn owner_of(manager: &Manager, name: String) -> Result<String, Status> {
    if manager.allocations().iter().any(|one| one.owner == name) {
        return Ok(name);
    }
    let none = || {
        let shown: String = name.chars().take(64).collect();
        Status::not_found(format!(
            "Nobody called \"{shown}\" has a VF; `ferrovia vf list` shows who has which"
        ))
    };
    let vf = vf(manager, &name).map_err(|_| none())?;
    vf.owner
        .ok_or_else(|| Status::failed_precondition(format!("VF {} is handed out to nobody", vf.id)))
}

#[cfg(test)]
mod tests {
    use super::super::{EVENTS, State};
    use super::*;
    use futures_util::StreamExt;
    use sriov_mgr::Options;
    use sriov_mgr::kernel::fake::FakeKernel;
    use v1::sriov_server::Sriov;

    #[tokio::test]
    async fn a_watcher_that_does_not_read_misses_events_and_is_told_so() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options::new(dir.path(), FakeKernel::builder().build());
        let nics = Nics::new(dir.path().join("policies.json"));
        nics.decide(State::Open(Manager::open(options).unwrap().0));
        let api = NicApi::new(nics.clone());
        let watched = api.watch(Request::new(v1::Empty {})).await.unwrap();
        for at_ms in 0..2 * EVENTS as i64 {
            let event = v1::NicEvent {
                at_ms,
                ..Default::default()
            };
            nics.0.events.send(event).unwrap();
            tokio::task::yield_now().await;
        }
        let seen: Vec<Result<v1::NicEvent, Status>> = watched.into_inner().collect().await;
        let (last, before) = seen.split_last().unwrap();
        assert!(before.len() <= UNREAD + 1, "{}", before.len());
        let last = last.as_ref().unwrap_err();
        assert_eq!(last.code(), tonic::Code::DataLoss, "{last}");
    }
}
