//! The framing of vhost-user messages: a 12-byte header, a body, and file descriptors beside them.
//!
//! The `vhost` crate has this too, but its reader blocks for as long as the other side wishes in
//! the middle of a message, takes a body that arrives in two pieces for a broken one, and knows no
//! way to be told to stop. Here every read and write has a deadline and watches the stop signal;
//! descriptors are owned from the moment they arrive, so that none leaks on any path.

use std::io::{self, IoSlice};
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use vhost::vhost_user::message::{MAX_MSG_SIZE, VhostUserHeaderFlag as Flag};

/// Bytes of a message's header.
const HEADER: usize = 12;
/// A message that has begun must be complete after this time; so must a reply be taken.
pub(crate) const DEADLINE: Duration = Duration::from_secs(5);
/// The kernel passes at most this many descriptors in one message (`SCM_MAX_FD`), so the control
/// buffer never truncates.
const MAX_FDS: usize = 253;
const VERSION: u32 = 1;

/// Why a connection ends at the level of framing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("The frontend closed the connection")]
    Closed,
    #[error("The frontend closed the connection in the middle of a message")]
    Truncated,
    #[error("The frontend did not finish a message within {} s", DEADLINE.as_secs())]
    Unfinished,
    #[error("The frontend did not take a reply within {} s", DEADLINE.as_secs())]
    NotTaken,
    #[error(
        "The frontend sent a message header that is not of vhost-user: flags {flags:#x}, {size} bytes"
    )]
    Header { flags: u32, size: u32 },
    #[error("The frontend sent more than {MAX_FDS} file descriptors with one message")]
    Descriptors,
    #[error("The port is being stopped")]
    Stopped,
    #[error("The connection failed")]
    Io(#[source] io::Error),
}

/// One message from the frontend.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) request: u32,
    /// An answer is expected even if the request has none of its own.
    pub(crate) need_reply: bool,
    pub(crate) body: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

/// A connection to a frontend.
#[derive(Debug)]
pub(crate) struct Wire<'a> {
    socket: UnixStream,
    /// Readable when the port is to stop (or has something else to do; see `stopping`).
    wake: &'a dyn Wake,
}

/// What can interrupt waiting.
pub(crate) trait Wake: std::fmt::Debug {
    /// Readable when `stopping` should be asked.
    fn fd(&self) -> std::os::fd::BorrowedFd<'_>;
    /// The wait is over for good. Otherwise the signal stays pending for whoever it is for.
    fn stopping(&self) -> bool;
}

impl<'a> Wire<'a> {
    pub(crate) fn new(socket: UnixStream, wake: &'a dyn Wake) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Wire { socket, wake })
    }

    pub(crate) fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Reads one message; the caller knows that something is there to be read.
    pub(crate) fn receive(&self) -> Result<Message, WireError> {
        let deadline = Instant::now() + DEADLINE;
        let mut fds = Vec::new();
        let mut header = [0; HEADER];
        self.fill(&mut header, &mut fds, deadline, WireError::Closed)?;
        let field = |at: usize| {
            u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let (request, flags, size) = (field(0), field(4), field(8));
        let allowed = VERSION | Flag::NEED_REPLY.bits();
        if flags & Flag::VERSION.bits() != VERSION
            || flags & !allowed != 0
            || size as usize > MAX_MSG_SIZE
        {
            return Err(WireError::Header { flags, size });
        }
        let mut body = vec![0; size as usize];
        // Descriptors travel with the header; any that come with the body are closed.
        self.fill(&mut body, &mut Vec::new(), deadline, WireError::Truncated)?;
        Ok(Message {
            request,
            need_reply: flags & Flag::NEED_REPLY.bits() != 0,
            body,
            fds,
        })
    }

    /// Sends an answer to a request.
    pub(crate) fn reply(&self, request: u32, body: &[u8]) -> Result<(), WireError> {
        self.send(request, body, &[])
    }

    /// Sends an answer with a descriptor beside it.
    pub(crate) fn reply_with(
        &self,
        request: u32,
        body: &[u8],
        fd: BorrowedFd<'_>,
    ) -> Result<(), WireError> {
        self.send(request, body, &[fd.as_raw_fd()])
    }

    fn send(&self, request: u32, body: &[u8], mut fds: &[RawFd]) -> Result<(), WireError> {
        let flags = VERSION | Flag::REPLY.bits();
        let mut message = Vec::with_capacity(HEADER + body.len());
        for value in [request, flags, body.len() as u32] {
            message.extend_from_slice(&value.to_ne_bytes());
        }
        message.extend_from_slice(body);
        let deadline = Instant::now() + DEADLINE;
        let mut rest = &message[..];
        while !rest.is_empty() {
            // A closed connection must be an error here and not a SIGPIPE.
            let flags = MsgFlags::MSG_NOSIGNAL;
            let rights = [ControlMessage::ScmRights(fds)];
            let rights = if fds.is_empty() { &[] } else { &rights[..] };
            let piece = [IoSlice::new(rest)];
            match sendmsg::<()>(self.socket.as_raw_fd(), &piece, rights, flags, None) {
                Ok(n) => {
                    rest = &rest[n..];
                    // They went with the first bytes.
                    fds = &[];
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    self.wait(PollFlags::POLLOUT, deadline, WireError::NotTaken)?;
                }
                Err(e) => return Err(WireError::Io(e.into())),
            }
        }
        Ok(())
    }

    /// Reads until `buffer` is full. `closed` is the error when the stream ends before its first
    /// byte.
    fn fill(
        &self,
        buffer: &mut [u8],
        fds: &mut Vec<OwnedFd>,
        deadline: Instant,
        closed: WireError,
    ) -> Result<(), WireError> {
        let mut done = 0;
        while done < buffer.len() {
            match receive(&self.socket, &mut buffer[done..], fds) {
                Ok(0) if done == 0 => return Err(closed),
                Ok(0) => return Err(WireError::Truncated),
                // Each byte could bring as many again, until the process has none left.
                Ok(_) if fds.len() > MAX_FDS => return Err(WireError::Descriptors),
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(PollFlags::POLLIN, deadline, WireError::Unfinished)?;
                }
                Err(e) => return Err(WireError::Io(e)),
            }
        }
        Ok(())
    }

    /// Waits for the socket; `late` is the error when the deadline passes.
    fn wait(&self, what: PollFlags, deadline: Instant, late: WireError) -> Result<(), WireError> {
        loop {
            if self.wake.stopping() {
                return Err(WireError::Stopped);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(late);
            }
            // The wake signal may be pending for another reason, so it is looked at in short steps
            // and not polled on.
            let step = left.min(Duration::from_millis(100)).as_millis() as u16;
            let mut fds = [PollFd::new(self.socket.as_fd(), what)];
            match poll(&mut fds, PollTimeout::from(step.max(1))) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(e) => return Err(WireError::Io(e.into())),
            }
        }
    }
}

/// One `recvmsg`: bytes into `buffer`, descriptors (close-on-exec) added to `fds`.
fn receive(socket: &UnixStream, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    // Aligned for `cmsghdr`, with room for the most descriptors there can be.
    let mut control = [0u64; 4 + MAX_FDS * size_of::<RawFd>() / 8 + 1];
    let mut piece = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: an all-zero `msghdr` is a valid value of this plain C struct.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = &mut piece;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    let flags = libc::MSG_CMSG_CLOEXEC;
    // SAFETY: `message` points to one buffer and one control buffer, both valid for their lengths.
    let n = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, flags) };
    let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: `message` was filled in by recvmsg and `control` is still there.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&message) };
    while !header.is_null() {
        // SAFETY: the CMSG macros return headers inside the control buffer.
        let (level, kind, length) = unsafe {
            (
                (*header).cmsg_level,
                (*header).cmsg_type,
                (*header).cmsg_len as usize,
            )
        };
        if level == libc::SOL_SOCKET && kind == libc::SCM_RIGHTS {
            // SAFETY: as above; CMSG_LEN(0) is the length of a header without data.
            let (data, empty) = unsafe { (libc::CMSG_DATA(header), libc::CMSG_LEN(0) as usize) };
            for index in 0..length.saturating_sub(empty) / size_of::<RawFd>() {
                // SAFETY: the kernel put this many descriptors there; they may be unaligned.
                let fd = unsafe { data.cast::<RawFd>().add(index).read_unaligned() };
                // SAFETY: the kernel has just made this descriptor for us; nobody else has it.
                fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        // SAFETY: as for CMSG_FIRSTHDR.
        header = unsafe { libc::CMSG_NXTHDR(&message, header) };
    }
    Ok(n)
}
