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
use tokio::sync::{broadcast, mpsc};
use tokio_stream::Stream;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status};

/// The service.
pub struct NicApi {
    nics: Nics,
}

impl NicApi {
    /// Answers for these NICs.
    pub fn new(nics: Nics) -> NicApi {
        NicApi { nics }
    }

    /// Does something with the manager on a thread for blocking work.
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Manager) -> Result<T, Status> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let manager = self.nics.manager().map_err(Status::unavailable)?;
        let done = tokio::task::spawn_blocking(move || work(&manager)).await;
        done.map_err(|_| Status::internal("The agent is stopping"))?
            .map(Response::new)
    }
}

/// The manager's errors by what the caller can do about them.
fn status(error: Error) -> Status {
    let text = chain(&error);
    match error {
        Error::Invalid(_) => Status::invalid_argument(text),
        Error::NotFound(_) => Status::not_found(text),
        Error::Exhausted(_) => Status::resource_exhausted(text),
        Error::Kernel(KernelError::Gone { .. }) => Status::not_found(text),
        Error::Kernel(KernelError::Wedged { .. }) | Error::Unavailable(_) => {
            Status::unavailable(text)
        }
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

fn both(policies: &super::policies::Policies) -> v1::NicPolicies {
    let file = policies.file.iter().map(|p| shown::policy(p, true));
    let api = policies.api.iter().map(|p| shown::policy(p, false));
    v1::NicPolicies {
        policies: file.chain(api).collect(),
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
        Ok(Response::new(both(&self.nics.policies())))
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
        self.with(move |_| Ok(both(&nics.set_api_policies(policies)?)))
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
        let (out, events) = mpsc::unbounded_channel();
        tokio::task::spawn_blocking(move || {
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
        let (out, stream) = mpsc::unbounded_channel();
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
                if out.send(event).is_err() || last {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(
            stream,
        ))))
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
