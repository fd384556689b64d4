//! The unix socket of a port: made so that nobody can connect before owner and permissions are
//! right, taken over from a dead process but never from a live one, removed only while it is ours.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, connect, listen, socket,
};
use nix::unistd::{Gid, Uid, fchownat, geteuid};

use crate::{BackendConfig, Error};

/// Longest path in a `sockaddr_un`, with its final zero.
const MAX_PATH: usize = 107;
static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A listening socket that owns its file.
#[derive(Debug)]
pub(crate) struct Listener {
    fd: OwnedFd,
    path: PathBuf,
    /// Device and inode of our own file.
    identity: (u64, u64),
}

impl Listener {
    /// Makes the socket of a port.
    ///
    /// It is bound under a temporary name in the same directory; a bound socket refuses connections
    /// until it listens, so owner and permissions are set before that, and the rename puts the
    /// finished socket in place (and over a stale one) in one step.
    pub(crate) fn bind(config: &BackendConfig) -> Result<Listener, Error> {
        let path = config.socket.clone();
        let step = |step: &'static str| {
            let path = path.clone();
            move |source: io::Error| Error::Socket { path, step, source }
        };
        check_length(&path)?;
        check_free(&path)?;
        let serial = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!(".{:x}.{serial:x}", std::process::id());
        let temporary = Temporary(path.with_file_name(name));
        check_length(&temporary.0)?;
        let fd = stream_socket().map_err(step("make a socket"))?;
        let _ = fs::remove_file(&temporary.0);
        let address = UnixAddr::new(&temporary.0).map_err(|e| step("use the path")(e.into()))?;
        bind(fd.as_raw_fd(), &address).map_err(|e| step("bind")(e.into()))?;
        let identity = hand_over(&temporary.0, config, || {}).map_err(step("set its owner"))?;
        listen(&fd, Backlog::new(8).unwrap_or(Backlog::MAXCONN))
            .map_err(|e| step("listen")(e.into()))?;
        // Once more, now that all the rest has worked: the window for two starters is small.
        check_free(&path)?;
        fs::rename(&temporary.0, &path).map_err(step("put the socket in place"))?;
        Ok(Listener { fd, path, identity })
    }

    /// A waiting connection, if there is one.
    pub(crate) fn accept(&self) -> io::Result<Option<UnixStream>> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        match accept4(self.fd.as_raw_fd(), flags) {
            // SAFETY: accept4 has just made this descriptor; nobody else has it.
            Ok(fd) => Ok(Some(unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) })),
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNABORTED) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let ours = |meta: fs::Metadata| (meta.dev(), meta.ino()) == self.identity;
        if fs::symlink_metadata(&self.path).is_ok_and(ours) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A file that goes away unless it was renamed.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Gives a new socket file its permissions and owner; its device and inode.
///
/// Others may have the right to write into the directory (frontends that listen do), and the new
/// owner may replace the file. So nothing here goes by the name: what was opened is looked at, and
/// only that is changed. `opened` is called in between (for the test of just that).
fn hand_over(path: &Path, config: &BackendConfig, opened: impl Fn()) -> io::Result<(u64, u64)> {
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
        .open(path)?;
    let meta = file.metadata()?;
    let ours = meta.uid() == geteuid().as_raw() && meta.nlink() == 1;
    if !meta.file_type().is_socket() || !ours {
        return Err(io::Error::other("somebody has replaced it"));
    }
    opened();
    let mode = fs::Permissions::from_mode(config.permissions & 0o7777);
    fs::set_permissions(format!("/proc/self/fd/{}", file.as_raw_fd()), mode)?;
    let (owner, group) = (config.owner.map(Uid::from), config.group.map(Gid::from));
    fchownat(&file, "", owner, group, AtFlags::AT_EMPTY_PATH)?;
    Ok((meta.dev(), meta.ino()))
}

/// Connects to a frontend that listens.
pub(crate) fn connect_to(path: &Path) -> io::Result<UnixStream> {
    let fd = stream_socket()?;
    let address = UnixAddr::new(path).map_err(io::Error::from)?;
    connect(fd.as_raw_fd(), &address).map_err(io::Error::from)?;
    Ok(UnixStream::from(fd))
}

/// A path that does not fit is refused before it is cut somewhere.
pub(crate) fn check_length(path: &Path) -> Result<(), Error> {
    if path.as_os_str().len() > MAX_PATH {
        return Err(Error::PathTooLong {
            path: path.to_path_buf(),
            max: MAX_PATH,
        });
    }
    Ok(())
}

fn stream_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(io::Error::from)
}

/// The path may be used: nothing is there, or a socket on which nobody answers.
fn check_free(path: &Path) -> Result<(), Error> {
    let path = path.to_path_buf();
    match fs::symlink_metadata(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            return Err(Error::Socket {
                path,
                step: "look at the path",
                source,
            });
        }
        Ok(meta) if !meta.file_type().is_socket() => return Err(Error::NotASocket { path }),
        Ok(_) => {}
    }
    match connect_to(&path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        // A live socket whose backlog is full.
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(Error::SocketInUse { path }),
        Err(source) => Err(Error::Socket {
            path,
            step: "find out whether the existing socket is in use",
            source,
        }),
        Ok(_) => Err(Error::SocketInUse { path }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::{Offer, SocketMode};

    #[test]
    fn only_the_socket_that_was_made_is_handed_over() {
        let dir = tempfile::tempdir().unwrap();
        let (path, precious) = (dir.path().join("port"), dir.path().join("precious"));
        let config = BackendConfig {
            name: "test".to_owned(),
            socket: path.clone(),
            mode: SocketMode::Server,
            owner: None,
            group: None,
            permissions: 0o666,
            max_queue_pairs: 1,
            max_queue_size: 256,
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            features: Offer::default(),
        };
        fs::write(&precious, "").unwrap();
        fs::set_permissions(&precious, fs::Permissions::from_mode(0o600)).unwrap();
        let mode = || fs::metadata(&precious).unwrap().mode() & 0o7777;
        // A link, or anything but a socket of ours, in its place.
        symlink(&precious, &path).unwrap();
        assert!(hand_over(&path, &config, || {}).is_err());
        fs::remove_file(&path).unwrap();
        fs::hard_link(&precious, &path).unwrap();
        assert!(hand_over(&path, &config, || {}).is_err());
        fs::remove_file(&path).unwrap();
        // Replaced at the worst moment.
        let socket = UnixListener::bind(&path).unwrap();
        let swap = || {
            fs::rename(&path, dir.path().join("moved")).unwrap();
            symlink(&precious, &path).unwrap();
        };
        hand_over(&path, &config, swap).unwrap();
        assert_eq!(mode(), 0o600);
        let moved = fs::metadata(dir.path().join("moved")).unwrap();
        assert_eq!(moved.mode() & 0o7777, 0o666);
        drop(socket);
    }
}
