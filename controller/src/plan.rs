//! What a request changes, or why it is refused.
//!
//! Each function here is pure: it reads the state, validates everything, and only then adds changes to the
//! plan. A refusal changes nothing. The store runs them one after the other.

pub mod fields;
pub mod hosts;
pub mod networks;
pub mod ports;
pub mod tokens;

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::refusal::Refusal;
use crate::state::State;

/// The revision that a change planned now will have.
pub fn next_revision(state: &State) -> u64 {
    state.revision + 1
}

/// Finds an object by id or name.
///
/// # Errors
/// Not found, or invalid when the reference is empty or absurd.
pub fn find(
    kind: &str,
    names: &BTreeMap<String, Uuid>,
    known: impl Fn(Uuid) -> bool,
    reference: &str,
) -> Result<Uuid, Refusal> {
    if reference.is_empty() {
        return Err(Refusal::invalid(format!(
            "No {kind} is named in the request; give its name or id"
        )));
    }
    if let Some(&id) = names.get(reference) {
        return Ok(id);
    }
    let id = Uuid::try_parse(reference).ok().filter(|&id| known(id));
    id.ok_or_else(|| {
        let shown = fields::shown(reference);
        Refusal::not_found(format!(
            "There is no {kind} '{shown}'; `ferrovia {kind} list` shows those that exist, `ferrovia {kind} create` makes one"
        ))
    })
}

/// Checks the revision that a caller has seen against the one there is.
///
/// # Errors
/// Stale, with both revisions.
pub fn check_revision(kind: &str, name: &str, seen: u64, now: u64) -> Result<(), Refusal> {
    if seen == 0 || seen == now {
        return Ok(());
    }
    Err(Refusal::stale(format!(
        "The {kind} {name} is at revision {now} and the request was made for revision {seen}; get it again and repeat the change"
    )))
}

/// Up to three names and how many more there are, for a message.
pub fn some_names<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let all: Vec<&str> = names.map(String::as_str).collect();
    match all.len() {
        0..=3 => all.join(", "),
        more => format!("{} and {} more", all[..3].join(", "), more - 3),
    }
}
