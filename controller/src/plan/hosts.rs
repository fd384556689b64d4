//! Hosts: created by the operator, kept up to date by what their agents say.

use std::net::IpAddr;
use std::sync::Arc;

use api::v1;
use uuid::Uuid;

use crate::plan::{check_revision, fields, find, next_revision, some_names};
use crate::records::Host;
use crate::refusal::Refusal;
use crate::state::{Change, State};
use crate::store::Plan;

/// Finds a host by id or name.
///
/// # Errors
/// Not found.
pub fn host<'a>(state: &'a State, reference: &str) -> Result<&'a Arc<Host>, Refusal> {
    let id = find(
        "host",
        state.host_names(),
        |id| state.host(id).is_some(),
        reference,
    )?;
    state.host(id).ok_or_else(|| {
        Refusal::internal(format!(
            "Host {id} is in an index only; restart the controller"
        ))
    })
}

fn check_name(state: &State, name: &str) -> Result<(), Refusal> {
    fields::name("host", name)?;
    if state.host_names().contains_key(name) {
        return Err(Refusal::taken(format!(
            "Host {name} exists already; choose another name or use that host"
        )));
    }
    Ok(())
}

fn vtep_owner(state: &State, vtep: IpAddr, but: Uuid) -> Option<&Arc<Host>> {
    state
        .hosts()
        .find(|host| host.id != but && host.vtep == Some(vtep))
}

fn check_vtep(state: &State, name: &str, id: Uuid, text: &str) -> Result<IpAddr, Refusal> {
    let vtep = fields::address("VTEP", text)?;
    if let Some(other) = vtep_owner(state, vtep, id) {
        return Err(Refusal::taken(format!(
            "Host {name} cannot have VTEP {vtep}, which host {} has; give each host an underlay address of its own",
            other.name
        )));
    }
    Ok(vtep)
}

/// Creates a host.
///
/// # Errors
/// Bad or taken name or VTEP.
pub fn create(
    state: &State,
    plan: &mut Plan,
    request: &v1::CreateHostRequest,
) -> Result<Arc<Host>, Refusal> {
    check_name(state, &request.name)?;
    let id = Uuid::new_v4();
    let given = !request.vtep.is_empty();
    let vtep = given
        .then(|| check_vtep(state, &request.name, id, &request.vtep))
        .transpose()?;
    let revision = next_revision(state);
    let host = Arc::new(Host {
        id,
        name: request.name.clone(),
        revision,
        vtep,
        vtep_given: given,
        vtep_revision: revision,
        underlay_mtu: 0,
    });
    plan.push(Change::PutHost(host.clone()));
    Ok(host)
}

/// Changes name or VTEP. An empty VTEP leaves it to the agent again.
///
/// # Errors
/// Not found, stale, bad or taken name or VTEP.
pub fn update(
    state: &State,
    plan: &mut Plan,
    request: &v1::UpdateHostRequest,
) -> Result<Arc<Host>, Refusal> {
    let old = host(state, &request.r#ref)?;
    check_revision("host", &old.name, request.revision, old.revision)?;
    let mut new = Host::clone(old);
    if let Some(name) = request.name.as_ref().filter(|name| **name != old.name) {
        check_name(state, name)?;
        new.name.clone_from(name);
    }
    match request.vtep.as_deref() {
        None => {}
        Some("") => new.vtep_given = false,
        Some(text) => {
            new.vtep = Some(check_vtep(state, &old.name, old.id, text)?);
            new.vtep_given = true;
        }
    }
    Ok(put(state, plan, old, new))
}

/// Stores the host if it differs.
fn put(state: &State, plan: &mut Plan, old: &Arc<Host>, mut new: Host) -> Arc<Host> {
    if new == **old {
        return old.clone();
    }
    new.revision = next_revision(state);
    if new.vtep != old.vtep {
        new.vtep_revision = new.revision;
    }
    let new = Arc::new(new);
    plan.push(Change::PutHost(new.clone()));
    new
}

/// Deletes a host without ports, and its tokens.
///
/// # Errors
/// Not found, stale, in use.
pub fn delete(state: &State, plan: &mut Plan, request: &v1::DeleteRequest) -> Result<(), Refusal> {
    let old = host(state, &request.r#ref)?;
    check_revision("host", &old.name, request.revision, old.revision)?;
    if let Some(ports) = state.ports_on(old.id) {
        return Err(Refusal::precondition(format!(
            "Host {} has ports on it: {}; delete or move them first",
            old.name,
            some_names(ports.keys())
        )));
    }
    for token in state.tokens().filter(|token| token.host == Some(old.id)) {
        plan.push(Change::DeleteToken(token.key()));
    }
    plan.push(Change::DeleteHost(old.id));
    Ok(())
}

/// What the agent of a host that is gone is told.
pub fn deleted() -> Refusal {
    Refusal::not_found("This host was deleted; create it again to use its agent")
}

/// What an agent says about its host when it connects.
#[derive(Clone, Debug)]
pub struct Hello {
    /// The host.
    pub host: Uuid,
    /// Its VTEP as text, empty without an underlay.
    pub vtep: String,
    /// Its underlay's MTU; 0 when it does not know.
    pub underlay_mtu: u32,
}

/// Takes an agent's word on VTEP and MTU. Returns the host and what is wrong with the agent's word.
/// `connected` tells whether another host's agent is connected: an address that a host without one had may
/// have moved here.
///
/// # Errors
/// The VTEP is no address or another host's, or the MTU is impossible.
pub fn hello(
    state: &State,
    plan: &mut Plan,
    hello: &Hello,
    connected: impl Fn(Uuid) -> bool,
) -> Result<(Arc<Host>, Vec<String>), Refusal> {
    let old = state.host(hello.host).ok_or_else(deleted)?;
    if hello.underlay_mtu > u32::from(u16::MAX) {
        return Err(Refusal::invalid(format!(
            "The agent of host {} reports an underlay MTU of {}, and {} is the most there is; correct `mtu` in its agent.toml",
            old.name,
            hello.underlay_mtu,
            u16::MAX
        )));
    }
    let mut problems = Vec::new();
    let mut new = Host::clone(old);
    new.underlay_mtu = hello.underlay_mtu;
    let reported = (!hello.vtep.is_empty())
        .then(|| fields::address("VTEP", &hello.vtep))
        .transpose()?;
    if !old.vtep_given {
        if let Some(other) = reported.and_then(|vtep| vtep_owner(state, vtep, old.id)) {
            if other.vtep_given || connected(other.id) {
                return Err(Refusal::taken(format!(
                    "The agent of host {} reports VTEP {}, which host {} has; give each host an underlay address of its own",
                    old.name, hello.vtep, other.name
                )));
            }
            put(
                state,
                plan,
                other,
                Host {
                    vtep: None,
                    ..Host::clone(other)
                },
            );
        }
        new.vtep = reported;
    } else if reported != old.vtep {
        problems.push(format!(
            "Host {} was given VTEP {}, but its agent reports '{}'; correct one of them",
            old.name,
            old.vtep.map(|vtep| vtep.to_string()).unwrap_or_default(),
            hello.vtep
        ));
    }
    Ok((put(state, plan, old, new), problems))
}
