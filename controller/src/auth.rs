//! Who is calling, and what they may do.
//!
//! The role comes from the client certificate's URI names, which only our CA gives out: `ferrovia:operator/x`,
//! or `ferrovia:host/h1` with `ferrovia:host-id/<uuid>`. It is decided before a message's body is looked at.

use tonic::{Request, Status};
use uuid::Uuid;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::refusal::Refusal;

/// The caller of an RPC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Plain mode: anybody who reaches the port.
    Plain,
    /// An operator, by name.
    Operator(String),
    /// A host's agent: the name that the certificate was made for, and the host's id.
    Host(String, Uuid),
}

/// Whether the transport is plain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plain(pub bool);

/// Finds out who is calling, from the connection.
///
/// # Errors
/// Unauthenticated without a certificate, denied when its names give no role.
pub fn caller<T>(plain: Plain, request: &Request<T>) -> Result<Caller, Refusal> {
    if plain.0 {
        return Ok(Caller::Plain);
    }
    let certificates = request.peer_certs();
    // rustls has verified the chain to our CA; the leaf comes first.
    let leaf = certificates
        .as_ref()
        .and_then(|certificates| certificates.first())
        .ok_or_else(|| {
            Refusal::unauthenticated(
                "The call came without a certificate; join with a token to get one",
            )
        })?;
    role(leaf).ok_or_else(|| {
        Refusal::denied("The certificate names neither a host nor an operator; join with a token to get another")
    })
}

/// The role in a certificate (DER).
pub fn role(der: &[u8]) -> Option<Caller> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let (mut operator, mut host, mut host_id) = (None, None, None);
    for name in &names.value.general_names {
        let GeneralName::URI(uri) = name else {
            continue;
        };
        let Some(uri) = uri.strip_prefix("ferrovia:") else {
            continue;
        };
        if let Some(name) = uri.strip_prefix("operator/") {
            operator = Some(name.to_owned());
        } else if let Some(id) = uri.strip_prefix("host-id/") {
            host_id = Uuid::try_parse(id).ok();
        } else if let Some(name) = uri.strip_prefix("host/") {
            host = Some(name.to_owned());
        }
    }
    match (operator, host, host_id) {
        (Some(name), None, None) => Some(Caller::Operator(name)),
        (None, Some(name), Some(id)) => Some(Caller::Host(name, id)),
        _ => None,
    }
}

/// An interceptor that lets only operators through.
pub fn operators_only(plain: Plain) -> impl Fn(Request<()>) -> Result<Request<()>, Status> + Clone {
    move |request| match caller(plain, &request)? {
        Caller::Plain | Caller::Operator(_) => Ok(request),
        Caller::Host(name, _) => Err(Refusal::denied(format!(
            "The certificate of host {name} is not good for this call; use an operator's"
        ))
        .into()),
    }
}

/// An interceptor that lets only hosts through and notes which one.
pub fn hosts_only(plain: Plain) -> impl Fn(Request<()>) -> Result<Request<()>, Status> + Clone {
    move |mut request| match caller(plain, &request)? {
        Caller::Operator(name) => Err(Refusal::denied(format!(
            "The certificate of operator {name} is not good for this call; use a host's"
        ))
        .into()),
        caller => {
            request.extensions_mut().insert(caller);
            Ok(request)
        }
    }
}
