//! Ringing an eventfd that somebody else could make us wait on.
//!
//! A `write` to an eventfd blocks when its counter is full and `O_NONBLOCK` is not set; both are in
//! the frontend's hands at any moment, and the worker that waits serves other guests too. The
//! kernel itself signals eventfds without ever waiting, for example when an asynchronous operation
//! completes. So a worker submits one that is complete at once (is a plain file ready?) and names
//! the guest's eventfd in it (`IOCB_FLAG_RESFD`, io_submit(2)): one system call, as with `write`.
//!
//! Where the kernel has no such operations, or no more of them, it is `write` after all.

use std::cell::OnceCell;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// `struct iocb` (linux/aio_abi.h); the two words that depend on the byte order are both 0.
#[repr(C)]
#[derive(Default)]
struct Iocb {
    data: u64,
    key_and_rw_flags: [u32; 2],
    opcode: u16,
    priority: i16,
    fd: u32,
    buf: u64,
    nbytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    result_fd: u32,
}

/// `struct io_event`.
type IoEvent = [u64; 4];
const IOCB_CMD_POLL: u16 = 5;
const IOCB_FLAG_RESFD: u32 = 1;

thread_local! {
    /// Each thread its own: nothing is shared and nothing has to be locked.
    static OPERATIONS: OnceCell<Option<Operations>> = const { OnceCell::new() };
}

/// Adds one to the eventfd, or leaves a full one as it is: then the notification is pending
/// already. So no outcome needs attention. Never waits.
pub(crate) fn ring(fd: BorrowedFd<'_>) {
    let rung = OPERATIONS.try_with(|cell| {
        let operations = cell.get_or_init(|| Operations::new().filter(Operations::work));
        operations.as_ref().is_some_and(|o| o.signal(fd))
    });
    if !rung.unwrap_or(false) {
        // Non-blocking unless the frontend has just changed that.
        let _ = nix::unistd::write(fd, &1u64.to_ne_bytes());
    }
}

/// A thread's asynchronous operations.
struct Operations {
    context: libc::c_ulong,
    /// A file that is always ready.
    ready: OwnedFd,
}

impl Operations {
    fn new() -> Option<Operations> {
        let ready = memfd_create(c"xvio-doorbell", MFdFlags::MFD_CLOEXEC).ok()?;
        let mut context: libc::c_ulong = 0;
        // SAFETY: `context` is 0, as it has to be, and valid for the answer.
        let made = unsafe { libc::syscall(libc::SYS_io_setup, 1, &mut context) };
        (made == 0).then_some(Operations { context, ready })
    }

    /// Tries it with an eventfd of our own.
    fn work(&self) -> bool {
        let own = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC);
        own.is_ok_and(|own| self.signal(own.as_fd()) && own.read() == Ok(1))
    }

    /// One operation that has completed, and signalled, when this returns.
    fn signal(&self, fd: BorrowedFd<'_>) -> bool {
        // Completed operations keep their place until they are fetched: here, once in many times.
        self.submit(fd) || (self.fetch() && self.submit(fd))
    }

    fn submit(&self, fd: BorrowedFd<'_>) -> bool {
        let mut operation = Iocb {
            opcode: IOCB_CMD_POLL,
            fd: self.ready.as_raw_fd() as u32,
            buf: libc::POLLIN as u64,
            flags: IOCB_FLAG_RESFD,
            result_fd: fd.as_raw_fd() as u32,
            ..Iocb::default()
        };
        let mut list = [&raw mut operation];
        // SAFETY: the list has one operation, which the kernel copies; both live through the call.
        // It has no buffer.
        unsafe { libc::syscall(libc::SYS_io_submit, self.context, 1, list.as_mut_ptr()) == 1 }
    }

    fn fetch(&self) -> bool {
        let mut events = [IoEvent::default(); 128];
        let timeout = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: `events` has room for as many as are asked for, and `timeout` lives on.
        let count = unsafe {
            let (least, most, to) = (0, events.len(), events.as_mut_ptr());
            libc::syscall(
                libc::SYS_io_getevents,
                self.context,
                least,
                most,
                to,
                timeout,
            )
        };
        count > 0
    }
}

impl Drop for Operations {
    fn drop(&mut self) {
        // SAFETY: the context is ours, and nothing is under way in it.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ring_is_counted() {
        let bell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        for _ in 0..1000 {
            ring(bell.as_fd());
        }
        assert_eq!(bell.read(), Ok(1000));
        OPERATIONS.with(|cell| assert!(cell.get().is_some_and(Option::is_some)));
    }

    #[test]
    fn a_full_eventfd_that_blocks_holds_nobody_up() {
        let bell = EventFd::new().unwrap();
        bell.write(u64::MAX - 1).unwrap();
        let (done, wait) = std::sync::mpsc::channel();
        let own = bell.as_fd().try_clone_to_owned().unwrap();
        std::thread::spawn(move || {
            for _ in 0..300 {
                ring(own.as_fd());
            }
            let _ = done.send(());
        });
        let time = std::time::Duration::from_secs(10);
        assert!(wait.recv_timeout(time).is_ok(), "the worker hangs");
        assert!(bell.read().unwrap() >= u64::MAX - 1);
    }
}
