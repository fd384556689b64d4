//! The one call without a certificate: a token buys one.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use api::token::Token;
use api::v1;
use tonic::{Request, Response, Status};

use crate::live::{lock, now_ms};
use crate::pki::{Ca, SigningRequest, Subject};
use crate::plan::tokens;
use crate::refusal::Refusal;
use crate::store::Store;

/// Joins that one address may try at once, and after that one each [`REFILL`].
const BURST: u32 = 20;
const REFILL: Duration = Duration::from_millis(500);
/// Addresses that are remembered; when full, those that have not tried for long go.
const REMEMBERED: usize = 4096;

/// The Join service.
#[derive(Debug)]
pub struct JoinService {
    store: Arc<Store>,
    /// `None` in plain mode.
    ca: Option<Arc<Ca>>,
    limiter: Mutex<Limiter>,
}

impl JoinService {
    /// A service on a store and a CA; without a CA (plain mode) every call is refused.
    pub fn new(store: Arc<Store>, ca: Option<Arc<Ca>>) -> JoinService {
        JoinService {
            store,
            ca,
            limiter: Mutex::default(),
        }
    }

    async fn join(
        &self,
        from: Option<IpAddr>,
        request: v1::JoinRequest,
    ) -> Result<v1::JoinResponse, Refusal> {
        let ca = self.ca.as_ref().ok_or_else(|| {
            Refusal::precondition("This controller is in plain mode, where nobody needs to join; use http:// and no token")
        })?;
        if !lock(&self.limiter).allow(from, Instant::now()) {
            return Err(Refusal::exhausted(
                "Too many joins come from this address; try again in a second",
            ));
        }
        let token = Token::decode(&request.token)
            .map_err(|error| Refusal::unauthenticated(error.to_string()))?;
        // Before the token is used up: a bad request does not cost it.
        let csr = SigningRequest::from_pem(&request.csr_pem)
            .map_err(|error| Refusal::invalid(error.to_string()))?;
        let secret = token.secret;
        let now = now_ms() / 1000;
        let record = self
            .store
            .write(move |state, plan| tokens::redeem(state, plan, &secret, now))
            .await?;
        let certificate_pem = ca
            .sign_request(Subject::of(record.role, &record.name, record.host), &csr)
            .map_err(|error| {
                tracing::error!(error = &error as &dyn std::error::Error, name = record.name, "A certificate could not be signed");
                Refusal::internal(format!(
                    "The certificate for {} could not be signed; look at the controller's log and join with a new token",
                    record.name
                ))
            })?;
        tracing::info!(role = %record.role, name = record.name, from = ?from, "Joined");
        Ok(v1::JoinResponse {
            certificate_pem,
            ca_pem: ca.pem().into(),
            name: record.name.clone(),
        })
    }
}

#[tonic::async_trait]
impl v1::join_server::Join for JoinService {
    async fn join(
        &self,
        request: Request<v1::JoinRequest>,
    ) -> Result<Response<v1::JoinResponse>, Status> {
        let from = request.remote_addr().map(|address| address.ip());
        let outcome = JoinService::join(self, from, request.into_inner()).await;
        if let Err(refusal) = &outcome {
            tracing::warn!(from = ?from, code = ?refusal.code, "Join refused: {refusal}");
        }
        Ok(Response::new(outcome?))
    }
}

/// A token bucket for each address.
#[derive(Debug, Default)]
struct Limiter {
    /// How many tries are left, and when the last refill was.
    buckets: HashMap<Option<IpAddr>, (u32, Instant)>,
}

impl Limiter {
    fn allow(&mut self, from: Option<IpAddr>, now: Instant) -> bool {
        if self.buckets.len() >= REMEMBERED && !self.buckets.contains_key(&from) {
            // Full buckets need not be remembered.
            self.buckets
                .retain(|_, (_, since)| now.saturating_duration_since(*since) < REFILL * BURST);
            if self.buckets.len() >= REMEMBERED {
                return false;
            }
        }
        let (left, since) = self.buckets.entry(from).or_insert((BURST, now));
        let periods = now.saturating_duration_since(*since).as_millis() / REFILL.as_millis();
        let refill = u32::try_from(periods).unwrap_or(u32::MAX);
        if refill > 0 {
            *left = left.saturating_add(refill).min(BURST);
            *since = now;
        }
        if *left == 0 {
            return false;
        }
        *left -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_runs_dry_and_recovers_while_others_are_served() {
        let (mut limiter, start) = (Limiter::default(), Instant::now());
        let (a, b) = (Some([192, 0, 2, 1].into()), Some([192, 0, 2, 2].into()));
        assert_eq!(
            (0..100).filter(|_| limiter.allow(a, start)).count(),
            BURST as usize
        );
        assert!(limiter.allow(b, start));
        assert!(limiter.allow(a, start + REFILL));
        assert!(!limiter.allow(a, start + REFILL));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut limiter, start) = (Limiter::default(), Instant::now());
        for number in 0..20_000u32 {
            limiter.allow(Some(IpAddr::V4(number.into())), start);
        }
        assert!(limiter.buckets.len() <= REMEMBERED);
        assert!(limiter.allow(Some([10, 9, 9, 9].into()), start + REFILL * BURST));
    }
}
