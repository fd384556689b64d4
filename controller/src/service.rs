//! The Controller service: each call is a plan for the store or a look at the state.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use api::token::{Role, Token};
use api::v1::{self, create_token_request::Subject};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::live::now_ms;
use crate::pki::Ca;
use crate::plan::{hosts, networks, ports, tokens};
use crate::records::{Host, Port};
use crate::refusal::Refusal;
use crate::store::Store;
use crate::views;

const DEFAULT_PAGE: u32 = 100;
const MAX_PAGE: u32 = 1000;

/// The Controller service.
#[derive(Debug)]
pub struct ControllerService {
    store: Arc<Store>,
    /// `None` when the controller was never initialised, which plain mode allows.
    ca: Option<Arc<Ca>>,
    plain: bool,
}

impl ControllerService {
    /// A service on a store.
    pub fn new(store: Arc<Store>, ca: Option<Arc<Ca>>, plain: bool) -> ControllerService {
        ControllerService { store, ca, plain }
    }

    fn host(&self, host: &Host) -> Response<v1::Host> {
        let state = self.store.read();
        let status = views::host_status(&state, &self.store.live(), host);
        Response::new(views::host(host, Some(status)))
    }

    fn port(&self, port: &Port) -> Response<v1::Port> {
        Response::new(views::port(&self.store.read(), &self.store.live(), port))
    }
}

/// One page of objects by name.
fn page(
    names: Option<&BTreeMap<String, Uuid>>,
    size: u32,
    token: &str,
    keep: impl Fn(Uuid) -> bool,
) -> Result<(Vec<Uuid>, String), Refusal> {
    let size = match size {
        0 => DEFAULT_PAGE,
        1..=MAX_PAGE => size,
        _ => {
            return Err(Refusal::invalid(format!(
                "A page cannot have {size} items; ask for at most {MAX_PAGE}"
            )));
        }
    } as usize;
    // The token is the last name of the page before, so that pages neither overlap nor miss objects that stay,
    // whatever is created or deleted meanwhile.
    let after = if token.is_empty() {
        Bound::Unbounded
    } else {
        let name = URL_SAFE_NO_PAD
            .decode(token)
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok());
        Bound::Excluded(name.ok_or_else(|| {
            Refusal::invalid("The page token is not one that this controller gave; start the list anew without one")
        })?)
    };
    let Some(names) = names else {
        return Ok((Vec::new(), String::new()));
    };
    let mut rest = names
        .range((after, Bound::Unbounded))
        .filter(|(_, id)| keep(**id));
    let items: Vec<(&String, &Uuid)> = rest.by_ref().take(size).collect();
    let next = match items.last() {
        Some((last, _)) if rest.next().is_some() => URL_SAFE_NO_PAD.encode(last.as_bytes()),
        _ => String::new(),
    };
    Ok((items.into_iter().map(|(_, id)| *id).collect(), next))
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl v1::controller_server::Controller for ControllerService {
    async fn create_host(&self, request: Request<v1::CreateHostRequest>) -> Answer<v1::Host> {
        let request = request.into_inner();
        let host = self
            .store
            .write(move |state, plan| hosts::create(state, plan, &request))
            .await?;
        Ok(self.host(&host))
    }

    async fn get_host(&self, request: Request<v1::GetRequest>) -> Answer<v1::Host> {
        let host = hosts::host(&self.store.read(), &request.get_ref().r#ref)?.clone();
        Ok(self.host(&host))
    }

    async fn list_hosts(&self, request: Request<v1::ListRequest>) -> Answer<v1::ListHostsResponse> {
        let request = request.get_ref();
        let state = self.store.read();
        let (ids, next_page_token) = page(
            Some(state.host_names()),
            request.page_size,
            &request.page_token,
            |_| true,
        )?;
        let live = self.store.live();
        let hosts = ids.into_iter().filter_map(|id| state.host(id));
        let hosts = hosts
            .map(|host| views::host(host, Some(views::host_status(&state, &live, host))))
            .collect();
        Ok(Response::new(v1::ListHostsResponse {
            hosts,
            next_page_token,
        }))
    }

    async fn update_host(&self, request: Request<v1::UpdateHostRequest>) -> Answer<v1::Host> {
        let request = request.into_inner();
        let host = self
            .store
            .write(move |state, plan| hosts::update(state, plan, &request))
            .await?;
        Ok(self.host(&host))
    }

    async fn delete_host(&self, request: Request<v1::DeleteRequest>) -> Answer<v1::Empty> {
        let request = request.into_inner();
        self.store
            .write(move |state, plan| hosts::delete(state, plan, &request))
            .await?;
        Ok(Response::new(v1::Empty {}))
    }

    async fn create_network(
        &self,
        request: Request<v1::CreateNetworkRequest>,
    ) -> Answer<v1::Network> {
        let request = request.into_inner();
        let network = self
            .store
            .write(move |state, plan| networks::create(state, plan, &request))
            .await?;
        Ok(Response::new(views::network(&network)))
    }

    async fn get_network(&self, request: Request<v1::GetRequest>) -> Answer<v1::Network> {
        let state = self.store.read();
        Ok(Response::new(views::network(networks::network(
            &state,
            &request.get_ref().r#ref,
        )?)))
    }

    async fn list_networks(
        &self,
        request: Request<v1::ListRequest>,
    ) -> Answer<v1::ListNetworksResponse> {
        let request = request.get_ref();
        let state = self.store.read();
        let (ids, next_page_token) = page(
            Some(state.network_names()),
            request.page_size,
            &request.page_token,
            |_| true,
        )?;
        let networks = ids
            .into_iter()
            .filter_map(|id| state.network(id))
            .map(|network| views::network(network))
            .collect();
        Ok(Response::new(v1::ListNetworksResponse {
            networks,
            next_page_token,
        }))
    }

    async fn update_network(
        &self,
        request: Request<v1::UpdateNetworkRequest>,
    ) -> Answer<v1::Network> {
        let request = request.into_inner();
        let network = self
            .store
            .write(move |state, plan| networks::update(state, plan, &request))
            .await?;
        Ok(Response::new(views::network(&network)))
    }

    async fn delete_network(&self, request: Request<v1::DeleteRequest>) -> Answer<v1::Empty> {
        let request = request.into_inner();
        self.store
            .write(move |state, plan| networks::delete(state, plan, &request))
            .await?;
        Ok(Response::new(v1::Empty {}))
    }

    async fn create_port(&self, request: Request<v1::CreatePortRequest>) -> Answer<v1::Port> {
        let request = request.into_inner();
        let port = self
            .store
            .write(move |state, plan| ports::create(state, plan, &request))
            .await?;
        Ok(self.port(&port))
    }

    async fn get_port(&self, request: Request<v1::GetRequest>) -> Answer<v1::Port> {
        let port = ports::port(&self.store.read(), &request.get_ref().r#ref)?.clone();
        Ok(self.port(&port))
    }

    async fn list_ports(
        &self,
        request: Request<v1::ListPortsRequest>,
    ) -> Answer<v1::ListPortsResponse> {
        let request = request.get_ref();
        let state = self.store.read();
        let find_network = || networks::network(&state, &request.network).map(|network| network.id);
        let find_host = || hosts::host(&state, &request.host).map(|host| host.id);
        let network = (!request.network.is_empty())
            .then(find_network)
            .transpose()?;
        let host = (!request.host.is_empty()).then(find_host).transpose()?;
        let names = match (network, host) {
            (_, Some(host)) => state.ports_on(host),
            (Some(network), None) => state.ports_in(network),
            (None, None) => Some(state.port_names()),
        };
        let keep = |id| {
            network.is_none_or(|network| state.port(id).is_some_and(|port| port.network == network))
        };
        let (ids, next_page_token) = page(names, request.page_size, &request.page_token, keep)?;
        let live = self.store.live();
        let ports = ids
            .into_iter()
            .filter_map(|id| state.port(id))
            .map(|port| views::port(&state, &live, port))
            .collect();
        Ok(Response::new(v1::ListPortsResponse {
            ports,
            next_page_token,
        }))
    }

    async fn update_port(&self, request: Request<v1::UpdatePortRequest>) -> Answer<v1::Port> {
        let request = request.into_inner();
        let port = self
            .store
            .write(move |state, plan| ports::update(state, plan, &request))
            .await?;
        Ok(self.port(&port))
    }

    async fn delete_port(&self, request: Request<v1::DeleteRequest>) -> Answer<v1::Empty> {
        let request = request.into_inner();
        self.store
            .write(move |state, plan| ports::delete(state, plan, &request))
            .await?;
        Ok(Response::new(v1::Empty {}))
    }

    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Answer<v1::CreateTokenResponse> {
        let request = request.into_inner();
        let (role, name) = match request.subject {
            Some(Subject::Host(name)) => (Role::Host, name),
            Some(Subject::Operator(name)) => (Role::Operator, name),
            None => {
                return Err(Refusal::invalid(
                    "The request names neither a host nor an operator; name one",
                )
                .into());
            }
        };
        let ca = self.ca.as_ref().ok_or_else(|| {
            Refusal::precondition("This controller has no CA to make certificates with; run `ferrovia-controller init` and restart it")
        })?;
        let token = make_token(&self.store, ca, role, name, request.valid_seconds).await?;
        Ok(Response::new(v1::CreateTokenResponse {
            token: token.encode(),
        }))
    }

    async fn get_info(&self, _: Request<v1::Empty>) -> Answer<v1::ControllerInfo> {
        let state = self.store.read();
        Ok(Response::new(v1::ControllerInfo {
            version: env!("CARGO_PKG_VERSION").into(),
            plain: self.plain,
            store_id: state.store_id.to_string(),
            revision: state.revision,
        }))
    }
}

/// Makes a join token; its secret is in the answer and nowhere else.
///
/// # Errors
/// As [`tokens::create`].
pub async fn make_token(
    store: &Store,
    ca: &Ca,
    role: Role,
    name: String,
    valid_seconds: u32,
) -> Result<Token, Refusal> {
    let mut random = [0; 32];
    // UUIDs of version 4 come from the system's random numbers, 122 bits each; four make 244 bits of secret.
    for (half, chunk) in random.chunks_mut(8).enumerate() {
        let id = Uuid::new_v4();
        let bytes = if half % 2 == 0 {
            &id.as_bytes()[..8]
        } else {
            &id.as_bytes()[8..]
        };
        chunk.copy_from_slice(bytes);
    }
    let secret = URL_SAFE_NO_PAD.encode(random);
    let own = secret.clone();
    let now = now_ms() / 1000;
    let record = store
        .write(move |state, plan| {
            tokens::create(state, plan, role, &name, valid_seconds, &own, now)
        })
        .await?;
    Ok(Token {
        secret,
        ca_pem: ca.pem().into(),
        role,
        name: record.name.clone(),
        expires: record.expires,
    })
}
