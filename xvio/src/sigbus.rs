//! Guest memory that is taken away while it is mapped.
//!
//! The file behind a mapping is the frontend's: it may be truncated, or its pages may run out
//! (a full tmpfs, no huge page left, a failed memory module). The next access then raises SIGBUS,
//! which by default ends the process and with it every other guest's network. The handler here
//! puts zeros of our own in the place of the whole region, so that the access goes on, and marks
//! the region as lost; the ring that finds it so stops with that reason.
//!
//! ```text
//!   worker reads ──▶ SIGBUS ──▶ handler: whose address? ──▶ a guest's: map zeros, mark, go on
//!                                          └──────────────▶ nobody's: the handler before us
//! ```
//!
//! The handler runs on the thread that made the access, and that thread holds the mapping (it is
//! inside a ring's gate), so the place found in the table cannot be given up meanwhile.

use std::mem::zeroed;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use vm_memory::MmapRegion;

/// Mappings at one time, in the whole process.
const MAX_PLACES: usize = 16_384;

/// Where a mapping is, for the handler. Free when `start` is 0.
#[derive(Debug)]
struct Place {
    start: AtomicUsize,
    /// 0 while the place is being taken or given up.
    end: AtomicUsize,
    lost: AtomicBool,
}

impl Place {
    /// Where it is; empty when it is free, or just changing hands: then it is not the place of
    /// whoever asks, whose mapping stays. (The bounds of two owners must not be mixed.)
    fn bounds(&self) -> Range<usize> {
        let start = self.start.load(Ordering::Acquire);
        let end = self.end.load(Ordering::Acquire);
        match self.start.load(Ordering::Acquire) == start {
            true => start..end,
            false => 0..0,
        }
    }
}

static PLACES: [Place; MAX_PLACES] = [const {
    Place {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        lost: AtomicBool::new(false),
    }
}; MAX_PLACES];

/// Mappings lost since the process began.
static LOSSES: AtomicU64 = AtomicU64::new(0);

/// What was to be done about SIGBUS before us.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// How many mappings were lost in this process: when it has changed, it is time to ask
/// [`Guarded::lost`].
#[inline]
pub(crate) fn losses() -> u64 {
    LOSSES.load(Ordering::Relaxed)
}

/// A mapping that may be accessed even after its memory is gone.
#[derive(Debug)]
pub(crate) struct Guarded {
    mapping: MmapRegion,
    place: &'static Place,
}

impl Guarded {
    /// Guards a mapping; `None` when there are too many of them.
    pub(crate) fn new(mapping: MmapRegion) -> Option<Guarded> {
        install();
        let start = mapping.as_ptr().addr();
        let take = |place: &&Place| {
            let (free, order) = (0, Ordering::Acquire);
            let taken = place.start.compare_exchange(free, start, order, order);
            taken.is_ok()
        };
        let place = PLACES.iter().find(take)?;
        place.lost.store(false, Ordering::Relaxed);
        let end = start + mapping.size();
        place.end.store(end, Ordering::Release);
        Some(Guarded { mapping, place })
    }

    /// Its first byte.
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.mapping.as_ptr()
    }

    /// Its memory was taken away.
    pub(crate) fn lost(&self) -> bool {
        self.place.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // Before the mapping goes, which is after this.
        self.place.end.store(0, Ordering::Release);
        self.place.start.store(0, Ordering::Release);
    }
}

/// Takes SIGBUS over, once in the process.
fn install() {
    PREVIOUS.get_or_init(|| {
        // SAFETY: an all-zero `sigaction` is a valid value of this plain C struct.
        let (mut old, mut new): (libc::sigaction, libc::sigaction) =
            unsafe { (zeroed(), zeroed()) };
        new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        new.sa_sigaction = on_sigbus as *const () as usize;
        // SAFETY: both are valid for the call, and the handler has the signature of SA_SIGINFO.
        unsafe { libc::sigaction(libc::SIGBUS, &new, &mut old) };
        old
    });
}

/// Only atomics and system calls from here on: it may run at any instruction.
extern "C" fn on_sigbus(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid `siginfo_t`.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    // Above 0: from the kernel, so there is an address. Not the early warning of a failing module.
    if code > 0 && code != libc::BUS_MCEERR_AO {
        let bounds = PLACES.iter().map(|place| (place, place.bounds()));
        let mut bounds = bounds.filter(|(_, bounds)| bounds.contains(&address));
        if bounds.next().is_some_and(|(place, at)| replace(place, at)) {
            return;
        }
    }
    pass_on(signal, code, info, context);
}

/// Puts zeros where a mapping was.
fn replace(place: &Place, at: Range<usize>) -> bool {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: the location of `errno` is this thread's own, and always there.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: exactly a mapping of ours is replaced, and it stays one of the same length; whoever
    // uses it expects it to change at any time.
    let new = unsafe { libc::mmap(at.start as *mut _, at.len(), protection, flags, -1, 0) };
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
    if new == libc::MAP_FAILED {
        return false;
    }
    place.lost.store(true, Ordering::Relaxed);
    LOSSES.fetch_add(1, Ordering::Relaxed);
    true
}

/// Not ours: what would have happened without us.
fn pass_on(signal: i32, code: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let (handler, flags) = PREVIOUS
        .get()
        .map_or((libc::SIG_DFL, 0), |p| (p.sa_sigaction, p.sa_flags));
    match handler {
        libc::SIG_IGN if code <= 0 => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: plain system calls. The access is made again and ends the process; a signal
            // that somebody sent has to be sent again.
            unsafe {
                libc::signal(signal, libc::SIG_DFL);
                if code <= 0 {
                    libc::raise(signal);
                }
            }
        }
        handler if flags & libc::SA_SIGINFO != 0 => {
            type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);
            // SAFETY: with SA_SIGINFO the address is a function of this type.
            let handler: Handler = unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: without SA_SIGINFO, and neither default nor ignored, it is of this type.
            let handler: extern "C" fn(i32) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}
