//! Keeps DPDK's file descriptors out of child processes.
//!
//! DPDK opens sockets and files without `O_CLOEXEC`. A program that is started while an af_packet port
//! is attached would inherit its socket and keep it alive after the port is gone; when the interface
//! is attached again, the forgotten socket is still a member of the driver's fanout group and
//! swallows its share of the packets. So whatever a call opened is marked right after it. (A child
//! started by another thread during such a call still gets it: there is no way to tell DPDK.)

use std::collections::HashSet;
use std::os::fd::RawFd;

/// Runs `call`; descriptors that are there afterwards and were not before close on exec.
pub(crate) fn closing_on_exec<T>(call: impl FnOnce() -> T) -> T {
    let before = open();
    let result = call();
    for fd in open().difference(&before) {
        // SAFETY: changes one flag of a descriptor of this process. If it is closed by now, or
        // another thread's, nothing is lost: Rust's own descriptors have the flag anyway.
        unsafe {
            let flags = libc::fcntl(*fd, libc::F_GETFD);
            if flags >= 0 {
                libc::fcntl(*fd, libc::F_SETFD, flags | libc::FD_CLOEXEC);
            }
        }
    }
    result
}

fn open() -> HashSet<RawFd> {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
        return HashSet::new();
    };
    let mut all: HashSet<RawFd> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    // The listing lists itself, and its number is the first that `call` gets.
    // SAFETY: asks for a flag of a descriptor, open or not.
    all.retain(|fd| unsafe { libc::fcntl(*fd, libc::F_GETFD) } >= 0);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_opened_meanwhile_is_marked_and_nothing_else() {
        // SAFETY: plain system calls on descriptors of this test.
        unsafe {
            let older = libc::dup(0);
            let newer = closing_on_exec(|| libc::dup(0));
            assert_eq!(libc::fcntl(older, libc::F_GETFD), 0);
            assert_eq!(libc::fcntl(newer, libc::F_GETFD), libc::FD_CLOEXEC);
            libc::close(older);
            libc::close(newer);
        }
    }
}
