//! What has to be undone, whatever way a run ends.
//!
//! A fixture registers how it is undone when it is made, and holds a [`Guard`]: dropping the guard undoes
//! it. When the process is told to stop (Ctrl-C, SIGTERM, SIGHUP), a thread undoes everything that is still
//! registered, newest first, and ends the process. What a `kill -9` leaves behind is found by
//! [`sweep`](crate::run::sweep) at the start of a later run.

use anyhow::{Context, Result};
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};

type Undo = Box<dyn FnOnce() + Send>;

static REGISTERED: Mutex<Vec<(u64, Undo)>> = Mutex::new(Vec::new());
static NEXT: AtomicU64 = AtomicU64::new(1);
static KEEP: AtomicBool = AtomicBool::new(false);
/// The process was told to stop.
static ENDING: AtomicBool = AtomicBool::new(false);
/// Threads that are just making something.
static MAKING: AtomicUsize = AtomicUsize::new(0);
/// How long a clean-up waits for them.
const MAKING_LIMIT: Duration = Duration::from_secs(20);

thread_local! {
    /// How deep this thread is in [`making`]; a thread that undoes is always in it.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
    /// True for the thread that undoes everything.
    static UNDOING: Cell<bool> = const { Cell::new(false) };
}

fn registered() -> std::sync::MutexGuard<'static, Vec<(u64, Undo)>> {
    REGISTERED
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// This thread is making something until the value is dropped; see [`making`].
#[derive(Debug)]
pub struct Making(PhantomData<*const ()>);

/// Says that this thread is making something that must be undone: a clean-up waits until it is made and
/// registered. Once the process was told to stop, nothing new is made: the thread stops here for good.
pub fn making() -> Making {
    let depth = DEPTH.get();
    if depth == 0 {
        MAKING.fetch_add(1, Ordering::SeqCst);
        if ENDING.load(Ordering::SeqCst) {
            MAKING.fetch_sub(1, Ordering::SeqCst);
            loop {
                std::thread::park();
            }
        }
    }
    DEPTH.set(depth + 1);
    Making(PhantomData)
}

impl Drop for Making {
    fn drop(&mut self) {
        let depth = DEPTH.get() - 1;
        DEPTH.set(depth);
        if depth == 0 {
            MAKING.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Undoes what it stands for when dropped, unless [`keep_everything`] was called.
#[must_use = "dropping it undoes the fixture at once"]
#[derive(Debug)]
pub struct Guard(u64);

/// Registers `undo`; it runs once, when the guard is dropped or the process is told to stop.
pub fn on_exit(undo: impl FnOnce() + Send + 'static) -> Guard {
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    registered().push((id, Box::new(undo)));
    Guard(id)
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Once the process was told to stop, undoing is left to one thread; this one stops here.
        let _making = making();
        let undo = {
            let mut all = registered();
            all.iter()
                .position(|(id, _)| *id == self.0)
                .map(|at| all.remove(at).1)
        };
        if let Some(undo) = undo
            && !KEEP.load(Ordering::Relaxed)
        {
            undo();
        }
    }
}

/// True when the process was told to stop, and this thread is not the one that undoes.
pub fn ending() -> bool {
    ENDING.load(Ordering::SeqCst) && !UNDOING.get()
}

/// From now on nothing is undone: what runs keeps running after this process ends.
pub fn keep_everything() {
    KEEP.store(true, Ordering::Relaxed);
}

/// True once [`keep_everything`] was called.
pub fn kept() -> bool {
    KEEP.load(Ordering::Relaxed)
}

/// Undoes all that is registered, newest first.
pub fn undo_all() {
    loop {
        let next = registered().pop();
        match next {
            Some((_, undo)) if !kept() => undo(),
            Some(_) => {}
            None => return,
        }
    }
}

/// Makes Ctrl-C, SIGTERM and SIGHUP undo everything before the process ends.
pub fn undo_on_signals() -> Result<()> {
    // Handlers and not a blocked mask: children would inherit the mask and be deaf to SIGTERM.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("The thread that waits for signals could not be set up")?;
    let mut streams = Vec::new();
    {
        let _inside = runtime.enter();
        for kind in [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
        ] {
            streams.push((
                kind,
                signal(kind).context("The handler of a signal could not be installed")?,
            ));
        }
    }
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            let mut next = || runtime.block_on(first(&mut streams));
            let code = 128 + next().as_raw_value();
            eprintln!("\nStopping and cleaning up …");
            std::thread::spawn(move || {
                ENDING.store(true, Ordering::SeqCst);
                let until = Instant::now() + MAKING_LIMIT;
                while MAKING.load(Ordering::SeqCst) > 0 && Instant::now() < until {
                    std::thread::sleep(Duration::from_millis(10));
                }
                DEPTH.set(1);
                UNDOING.set(true);
                undo_all();
                eprintln!("Cleaned up.");
                std::process::exit(code);
            });
            // A second signal does not wait for a clean-up that hangs.
            next();
            std::process::exit(code);
        })
        .context("The thread that waits for signals could not start")?;
    Ok(())
}

async fn first(streams: &mut [(SignalKind, Signal)]) -> SignalKind {
    std::future::poll_fn(|context| {
        for (kind, stream) in streams.iter_mut() {
            if stream.poll_recv(context).is_ready() {
                return Poll::Ready(*kind);
            }
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_dropped_guard_undoes_once() {
        let count = Arc::new(AtomicU64::new(0));
        let seen = count.clone();
        let guard = on_exit(move || {
            seen.fetch_add(1, Ordering::Relaxed);
        });
        drop(guard);
        assert_eq!(count.load(Ordering::Relaxed), 1);
    }
}
