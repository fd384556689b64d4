//! Join tokens: made, used once, forgotten when over.

use std::sync::Arc;

use api::token::Role;
use api::v1;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::plan::{fields, hosts};
use crate::records::{Token, token_key};
use crate::refusal::Refusal;
use crate::state::{Change, State};
use crate::store::Plan;

/// How long a token works unless the caller says.
pub const DEFAULT_SECONDS: u32 = 3600;
const MAX_SECONDS: u32 = 30 * 24 * 3600;
const MAX_TOKENS: usize = 10_000;

/// The hash that is kept of a secret.
pub fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

/// Records a token with this secret; creates the host when it does not exist. `now` is in seconds since the
/// epoch.
///
/// # Errors
/// Bad name or duration, or too many tokens.
pub fn create(
    state: &State,
    plan: &mut Plan,
    role: Role,
    name: &str,
    valid_seconds: u32,
    secret: &str,
    now: i64,
) -> Result<Arc<Token>, Refusal> {
    let seconds = if valid_seconds == 0 {
        DEFAULT_SECONDS
    } else {
        valid_seconds
    };
    if seconds > MAX_SECONDS {
        return Err(Refusal::invalid(format!(
            "A token cannot be valid for {seconds} seconds; use at most {MAX_SECONDS}, which is 30 days"
        )));
    }
    let mut alive = 0;
    for token in state.tokens() {
        if token.expires <= now {
            plan.push(Change::DeleteToken(token.key()));
        } else {
            alive += 1;
        }
    }
    if alive >= MAX_TOKENS {
        return Err(Refusal::exhausted(format!(
            "There are {alive} unused tokens; use some or wait until they expire"
        )));
    }
    let host = match role {
        Role::Operator => {
            fields::name("operator", name)?;
            None
        }
        Role::Host => Some(match state.host_names().get(name) {
            Some(&id) => id,
            None => {
                hosts::create(
                    state,
                    plan,
                    &v1::CreateHostRequest {
                        name: name.into(),
                        vtep: String::new(),
                    },
                )?
                .id
            }
        }),
    };
    let token = Arc::new(Token {
        hash: hash(secret),
        role,
        name: name.into(),
        host,
        expires: now.saturating_add(seconds.into()),
    });
    plan.push(Change::PutToken(token.clone()));
    Ok(token)
}

/// Uses a token up. All wrong tokens get the same answer.
///
/// # Errors
/// Unauthenticated when it is unknown, used or over; not found when its host went.
pub fn redeem(
    state: &State,
    plan: &mut Plan,
    secret: &str,
    now: i64,
) -> Result<Arc<Token>, Refusal> {
    let hash = hash(secret);
    let token = state
        .token(token_key(&hash))
        .filter(|token| bool::from(token.hash.ct_eq(&hash)) && token.expires > now)
        .ok_or_else(|| {
            Refusal::unauthenticated(
                "The join token is unknown, used already or expired; make a new one with `ferrovia-controller token`",
            )
        })?;
    if token.host.is_some_and(|host| state.host(host).is_none()) {
        return Err(Refusal::not_found(format!(
            "Host {} was deleted after its token was made; make a new one with `ferrovia-controller token`",
            token.name
        )));
    }
    plan.push(Change::DeleteToken(token.key()));
    Ok(token.clone())
}
