//! What is done to one VF between being free and being free again. Each function does one part, checks what
//! came of it, and can be repeated; which part is due, and that it is written down first, is the manager's.
//!
//! | file | is |
//! |---|---|
//! | `settings` | MAC, VLAN, rate…: what differs, setting it, reading it back; the defaults of a free VF |
//! | `driver` | unbinding, binding, the reset |
//! | `choose` | which free VF a request gets |

pub(crate) mod choose;
pub(crate) mod driver;
pub(crate) mod settings;

use crate::kernel::{Kernel, KernelError};
use std::time::{Duration, Instant};

/// How long to wait for what the kernel does in its own time.
#[derive(Clone, Debug)]
pub struct Patience {
    /// For VFs to appear in sysfs after they were made.
    pub links: Duration,
    /// For a driver to be there after a probe, or again after a moment without.
    pub driver: Duration,
    /// For a VF that is given back to be let go by its user.
    pub holders: Duration,
    /// For EBUSY and EAGAIN to end.
    pub busy: Duration,
    /// For settings to show.
    pub settings: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            links: Duration::from_secs(20),
            driver: Duration::from_secs(5),
            holders: Duration::from_secs(3),
            busy: Duration::from_secs(5),
            settings: Duration::from_secs(2),
        }
    }
}

/// Looks until `look` finds something or `patience` is over; at least twice.
pub(crate) fn wait_for<T>(
    patience: Duration,
    mut look: impl FnMut() -> Result<Option<T>, KernelError>,
) -> Result<Option<T>, KernelError> {
    let end = Instant::now() + patience;
    // Most waits are for less than a millisecond; the pause grows with the time already waited.
    let mut pause = Duration::from_micros(500);
    loop {
        let last = Instant::now() >= end;
        if let Some(found) = look()? {
            return Ok(Some(found));
        }
        if last {
            return Ok(None);
        }
        std::thread::sleep(pause.min(end.saturating_duration_since(Instant::now())));
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Tries again for as long as the kernel says that it is busy, up to `patience` (R20).
pub(crate) fn retry_busy<T>(
    patience: Duration,
    mut call: impl FnMut() -> Result<T, KernelError>,
) -> Result<T, KernelError> {
    let mut last = None;
    let done = wait_for(patience, || match call() {
        Err(error) if matches!(error.errno(), Some(libc::EBUSY | libc::EAGAIN)) => {
            last = Some(error);
            Ok(None)
        }
        other => other.map(Some),
    })?;
    match (done, last) {
        (Some(value), _) => Ok(value),
        (None, Some(error)) => Err(error),
        // Without an answer there was an error.
        (None, None) => call(),
    }
}

/// What every part needs.
#[derive(Clone, Copy)]
pub(crate) struct Life<'a> {
    pub(crate) kernel: &'a dyn Kernel,
    pub(crate) patience: &'a Patience,
}
