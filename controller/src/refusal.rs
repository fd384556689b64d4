//! Why a request is refused: a gRPC code and one sentence that names the object and the way out.

use tonic::{Code, Status};

/// A refused request. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// What kind of refusal, as the API documents them.
    pub code: Code,
    /// The sentence for the caller.
    pub message: String,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident => $code:ident;)*) => {
        impl Refusal {
            $($(#[$doc])*
            pub fn $name(message: impl Into<String>) -> Refusal {
                Refusal { code: Code::$code, message: message.into() }
            })*
        }
    };
}

kinds! {
    /// The request itself is wrong.
    invalid => InvalidArgument;
    /// No such object.
    not_found => NotFound;
    /// The name, address or number is taken.
    taken => AlreadyExists;
    /// The object is in use, or the host cannot do it.
    precondition => FailedPrecondition;
    /// Stale revision.
    stale => Aborted;
    /// No address or number is free.
    exhausted => ResourceExhausted;
    /// Not yours to do.
    denied => PermissionDenied;
    /// No or wrong certificate or token.
    unauthenticated => Unauthenticated;
    /// The controller itself failed.
    internal => Internal;
    /// The controller is going away.
    unavailable => Unavailable;
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Status {
        Status::new(refusal.code, refusal.message)
    }
}
