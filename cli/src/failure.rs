//! What went wrong, as one message and a stable exit code.

use crate::connect::chain;
use std::process::ExitCode;
use tonic::{Code, Status};

/// The exit codes, as `--help` shows them.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed for another reason
  2  the command line is wrong
  3  no such object
  4  refused: the name is taken, the object is in use, or it changed meanwhile
  5  controller, agent or libvirt cannot be reached, or did not answer in time
  6  not allowed: certificate or token missing or wrong
  7  nothing is free: addresses or VFs are used up";

/// A message for a person, and the exit code for a script.
#[derive(Debug)]
pub struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    /// A failure of no special kind.
    pub fn other(message: impl Into<String>) -> Failure {
        Failure {
            message: message.into(),
            code: 1,
        }
    }

    /// The arguments do not make sense together.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure {
            message: message.into(),
            code: 2,
        }
    }

    /// There is no such object.
    pub fn not_found(message: impl Into<String>) -> Failure {
        Failure {
            message: message.into(),
            code: 3,
        }
    }

    /// It is there already.
    pub fn taken(message: impl Into<String>) -> Failure {
        Failure {
            message: message.into(),
            code: 4,
        }
    }

    /// Somebody cannot be reached.
    pub fn unreachable(message: impl Into<String>) -> Failure {
        Failure {
            message: message.into(),
            code: 5,
        }
    }

    /// No certificate, or a wrong one.
    pub fn denied(message: impl Into<String>) -> Failure {
        Failure {
            message: message.into(),
            code: 6,
        }
    }

    /// Adds what was being done before the message.
    pub fn during(self, what: &str) -> Failure {
        Failure {
            message: format!("{what}: {}", self.message),
            ..self
        }
    }

    /// Adds what that means and what can be done after the message.
    pub fn then(self, what: &str) -> Failure {
        Failure {
            message: format!("{}; {what}", self.message),
            ..self
        }
    }

    /// Prints the message and gives the exit code.
    pub fn report(self) -> ExitCode {
        eprintln!("error: {}", self.message);
        ExitCode::from(self.code)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        // A status with a cause was made here: the connection broke, and nobody answered.
        if std::error::Error::source(&status).is_some() {
            return Failure::unreachable(format!(
                "The connection broke before an answer came; check that the other side runs, that the URL says \
                 https:// for a controller with certificates and http:// for a plain one, and that your certificate \
                 is of its CA ({})",
                chain(&status)
            ));
        }
        let code = match status.code() {
            Code::InvalidArgument | Code::OutOfRange => 2,
            Code::NotFound => 3,
            Code::AlreadyExists | Code::FailedPrecondition | Code::Aborted => 4,
            // Cancelled: the controller gave up on its own work after a minute.
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => 5,
            Code::Unauthenticated | Code::PermissionDenied => 6,
            Code::ResourceExhausted => 7,
            _ => 1,
        };
        Failure {
            message: status.message().to_owned(),
            code,
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure::other(error.to_string())
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Failure::other(format!("{error:#}"))
    }
}

impl From<sriov_mgr::Error> for Failure {
    fn from(error: sriov_mgr::Error) -> Self {
        let code = if matches!(error, sriov_mgr::Error::NotFound { .. }) {
            3
        } else {
            1
        };
        Failure {
            message: format!("{:#}", anyhow::Error::from(error)),
            code,
        }
    }
}
