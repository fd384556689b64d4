//! How a worker is woken: an eventfd for its mailbox and the other workers, and an epoll set for the
//! kicks of guests and the doorbells of devices.
//!
//! Sleeping without losing a wake-up takes three steps in this order: [`Doorbell::about_to_sleep`],
//! look at every source of work once more, then wait. Who brings work does the reverse: first the
//! work, then [`Doorbell::ring`]. Both sides have a sequentially consistent fence between their write
//! and their read, so at least one of them sees the other. The loom model of this is in the test
//! module (`--cfg loom`).

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, Ordering, fence};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, Ordering, fence};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// Whether the owner sleeps: the part of a doorbell that decides if a system call is needed.
#[derive(Debug)]
struct Sleeping(AtomicBool);

impl Sleeping {
    fn new() -> Self {
        Sleeping(AtomicBool::new(false))
    }

    fn announce(&self) {
        self.0.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// True where the caller has to wake the owner; for one caller only.
    fn needs_wake(&self) -> bool {
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::AcqRel)
    }

    fn over(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// What others ring when they have put work where a worker finds it.
#[derive(Debug)]
pub(crate) struct Doorbell {
    sleeping: Sleeping,
    fd: EventFd,
}

impl Doorbell {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Doorbell {
            sleeping: Sleeping::new(),
            fd: EventFd::from_value_and_flags(0, flags)?,
        })
    }

    /// Wakes the owner if it sleeps or is about to. A fence and a load otherwise.
    pub(crate) fn ring(&self) {
        if self.sleeping.needs_wake() {
            // It fails only when the counter is full, and then the owner is being woken anyway.
            let _ = self.fd.write(1);
        }
    }

    /// From now on [`Doorbell::ring`] wakes: look for work once more, then wait.
    pub(crate) fn about_to_sleep(&self) {
        self.sleeping.announce();
    }

    /// The owner runs again.
    pub(crate) fn awake(&self) {
        self.sleeping.over();
    }
}

/// What woke a worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Woken {
    /// A kick, a doorbell or the eventfd.
    Event,
    /// The time was up.
    Timeout,
}

/// The epoll set a worker sleeps in. Everything in it is edge-triggered: a readable descriptor that
/// nobody reads wakes once for each write.
#[derive(Debug)]
pub(crate) struct Bed {
    epoll: Epoll,
}

impl Bed {
    pub(crate) fn new(doorbell: &Doorbell) -> io::Result<Self> {
        let bed = Bed {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
        };
        bed.add(&doorbell.fd)?;
        Ok(bed)
    }

    /// Wakes on this descriptor from now on.
    pub(crate) fn add(&self, fd: &impl AsFd) -> io::Result<()> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        Ok(self.epoll.add(fd, EpollEvent::new(flags, 0))?)
    }

    /// No longer wakes on this descriptor, and closes it.
    pub(crate) fn remove(&self, fd: OwnedFd) {
        // A descriptor that is not in the set any more needs no removal.
        let _ = self.epoll.delete(&fd);
    }

    /// No longer wakes on this descriptor.
    pub(crate) fn forget(&self, fd: &impl AsFd) {
        // A descriptor that is not in the set any more needs no removal.
        let _ = self.epoll.delete(fd);
    }

    /// Sleeps for at most `millis`.
    pub(crate) fn sleep(&self, millis: u16) -> Woken {
        let mut events = [EpollEvent::empty(); 16];
        match self.epoll.wait(&mut events, EpollTimeout::from(millis)) {
            Ok(0) => Woken::Timeout,
            // A signal's handler ran: look around like after an event.
            Ok(_) | Err(_) => Woken::Event,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    #[test]
    fn a_ring_after_the_announcement_wakes_and_one_before_costs_nothing() {
        let bell = Doorbell::new().unwrap();
        let bed = Bed::new(&bell).unwrap();
        bell.ring();
        bell.about_to_sleep();
        assert_eq!(bed.sleep(1), Woken::Timeout);
        bell.ring();
        assert_eq!(bed.sleep(1000), Woken::Event);
        bell.awake();
        bell.about_to_sleep();
        bell.ring();
        assert_eq!(bed.sleep(1000), Woken::Event);
    }

    #[test]
    fn a_sleeper_is_woken_from_another_thread_at_once() {
        let bell = Arc::new(Doorbell::new().unwrap());
        let bed = Bed::new(&bell).unwrap();
        let other = Arc::clone(&bell);
        bell.about_to_sleep();
        let ringer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            other.ring();
        });
        let before = Instant::now();
        assert_eq!(bed.sleep(10_000), Woken::Event);
        assert!(before.elapsed() < Duration::from_secs(5));
        ringer.join().unwrap();
    }
}

#[cfg(all(test, loom))]
mod loom_model {
    use super::*;
    use loom::sync::Arc;

    /// Work is put and the bell rung while the owner goes to sleep: it sees the work or is woken.
    #[test]
    fn no_wake_up_is_lost() {
        loom::model(|| {
            let sleeping = Arc::new(Sleeping::new());
            let work = Arc::new(AtomicBool::new(false));
            let (s, w) = (Arc::clone(&sleeping), Arc::clone(&work));
            let ringer = loom::thread::spawn(move || {
                w.store(true, Ordering::Relaxed);
                s.needs_wake()
            });
            sleeping.announce();
            let saw = work.load(Ordering::Relaxed);
            let woken = ringer.join().unwrap();
            assert!(saw || woken, "asleep with work waiting");
        });
    }
}
