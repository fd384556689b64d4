//! Where tests let the process die: right after a journal record is on disk.

#[cfg(debug_assertions)]
use std::sync::Arc;
#[cfg(debug_assertions)]
use std::sync::atomic::{AtomicU64, Ordering};

/// When to die. Nothing of it is in a release build.
#[derive(Clone, Debug, Default)]
pub struct CrashPoints {
    #[cfg(debug_assertions)]
    at: Option<Arc<Point>>,
}

#[cfg(debug_assertions)]
#[derive(Debug)]
struct Point {
    seen: AtomicU64,
    last: u64,
    /// `SIGKILL`, or a panic that a test in the same process catches.
    kill: bool,
}

impl CrashPoints {
    /// Never.
    pub fn never() -> CrashPoints {
        CrashPoints::default()
    }

    /// After as many records as `FERROVIA_CRASH_AT` says, in a debug build: by `SIGKILL`, as an
    /// out-of-memory killer would. Never where it is not set.
    pub fn from_env() -> CrashPoints {
        #[cfg(debug_assertions)]
        if let Some(last) = std::env::var("FERROVIA_CRASH_AT")
            .ok()
            .and_then(|text| text.parse().ok())
        {
            return CrashPoints::new(last, true);
        }
        CrashPoints::never()
    }

    /// After `records` records the thread panics with `kernel::fake::Killed`.
    #[cfg(all(debug_assertions, any(test, feature = "fake")))]
    pub fn panic_after(records: u64) -> CrashPoints {
        CrashPoints::new(records, false)
    }

    #[cfg(debug_assertions)]
    fn new(last: u64, kill: bool) -> CrashPoints {
        let seen = AtomicU64::new(0);
        CrashPoints {
            at: Some(Arc::new(Point { seen, last, kill })),
        }
    }

    /// `records` more records are on disk.
    #[cfg(debug_assertions)]
    pub(super) fn pass(&self, records: u64) {
        let Some(point) = &self.at else {
            return;
        };
        let seen = point.seen.fetch_add(records, Ordering::SeqCst) + records;
        if seen < point.last {
            return;
        }
        if point.kill {
            let me = nix::unistd::Pid::this();
            let _ = nix::sys::signal::kill(me, nix::sys::signal::Signal::SIGKILL);
        }
        #[cfg(any(test, feature = "fake"))]
        std::panic::panic_any(crate::kernel::fake::Killed);
    }

    #[cfg(not(debug_assertions))]
    pub(super) fn pass(&self, _records: u64) {}
}
