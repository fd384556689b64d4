//! As much netlink as probing needs: one request, its answers, one attribute format.
//!
//! Messages are built and taken apart in safe code over byte slices (`include/uapi/linux/netlink.h`).
//! An answer that is not what netlink says it is ends the exchange with an error.

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
/// Create the object, and fail where it is there already (`NLM_F_CREATE | NLM_F_EXCL`).
pub const CREATE: u16 = 0x600;
const HEADER_LEN: usize = 16;
/// The kernel sets this bit on attributes that nest others, and wants it in some requests.
const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;

/// A netlink socket that waits at most a deadline for each message.
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open(protocol: SockProtocol, deadline: Duration) -> Result<Netlink, Errno> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            protocol,
        )?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        let deadline = TimeVal::new(
            deadline.as_secs() as i64,
            i64::from(deadline.subsec_micros()),
        );
        setsockopt(&socket, sockopt::ReceiveTimeout, &deadline)?;
        Ok(Netlink {
            socket,
            sequence: 0,
        })
    }

    /// Sends a request and collects the bodies of the answers until the kernel acknowledges it.
    ///
    /// # Errors
    /// The errno that the kernel answered; `EAGAIN` where the deadline passed; `EBADMSG` where an
    /// answer is broken.
    pub fn request(&mut self, kind: u16, flags: u16, body: &[u8]) -> Result<Vec<Vec<u8>>, Errno> {
        self.sequence += 1;
        let mut message = Vec::with_capacity(HEADER_LEN + body.len());
        message.extend_from_slice(&((HEADER_LEN + body.len()) as u32).to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&(NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
        message.extend_from_slice(&self.sequence.to_ne_bytes());
        message.extend_from_slice(&[0; 4]);
        message.extend_from_slice(body);
        let fd = self.socket.as_raw_fd();
        sendto(fd, &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;

        let mut answers = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        // Each round takes a message or ends by the deadline; no request here has this many answers.
        for _ in 0..1000 {
            let length = recv(fd, &mut buffer, MsgFlags::empty())?;
            if self.collect(&buffer[..length], &mut answers)? {
                return Ok(answers);
            }
        }
        Err(Errno::EBADMSG)
    }

    /// Takes the messages of one datagram; true when the request is answered.
    fn collect(&self, mut bytes: &[u8], answers: &mut Vec<Vec<u8>>) -> Result<bool, Errno> {
        while !bytes.is_empty() {
            let header = bytes.first_chunk::<HEADER_LEN>().ok_or(Errno::EBADMSG)?;
            let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
            let kind = u16::from_ne_bytes([header[4], header[5]]);
            let sequence = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
            let body = bytes.get(HEADER_LEN..length).ok_or(Errno::EBADMSG)?;
            if sequence == self.sequence {
                match kind {
                    NLMSG_ERROR => {
                        let code = body.first_chunk::<4>().ok_or(Errno::EBADMSG)?;
                        return match i32::from_ne_bytes(*code) {
                            0 => Ok(true),
                            code => Err(Errno::from_raw(code.wrapping_neg())),
                        };
                    }
                    NLMSG_DONE => return Ok(true),
                    _ => answers.push(body.to_vec()),
                }
            }
            bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        }
        Ok(false)
    }
}

/// Attributes being written: type, length and value of each, padded to four bytes.
#[derive(Default)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    /// Begins after these bytes, which are a request's fixed part.
    pub fn after(fixed: &[u8]) -> Attributes {
        Attributes(fixed.to_vec())
    }

    /// Adds an attribute with a value.
    #[must_use]
    pub fn with(mut self, kind: u16, value: &[u8]) -> Attributes {
        self.0
            .extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Adds a text with the zero byte that ends it.
    #[must_use]
    pub fn with_text(self, kind: u16, text: &str) -> Attributes {
        self.with(kind, &[text.as_bytes(), &[0]].concat())
    }

    /// Adds attributes nested in one.
    #[must_use]
    pub fn with_nested(self, kind: u16, inner: Attributes) -> Attributes {
        self.with(kind | NESTED, &inner.0)
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The attributes in these bytes: type, without flag bits, and value. Ends at the first broken one.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// The value of the first attribute of this type.
pub fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes)
        .find(|(found, _)| *found == kind)
        .map(|(_, value)| value)
}

/// An attribute's text, without the zero byte that ends it.
pub fn text(value: &[u8]) -> String {
    let end = value
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let inner = Attributes::default().with(1, &[7]).with_text(2, "flower");
        let bytes = Attributes::after(&[])
            .with(9, &[1, 2, 3, 4, 5])
            .with_nested(3, inner);
        assert_eq!(bytes.bytes().len() % 4, 0);
        assert_eq!(find(bytes.bytes(), 9), Some(&[1, 2, 3, 4, 5][..]));
        let nested = find(bytes.bytes(), 3).unwrap();
        assert_eq!(find(nested, 2).map(text).as_deref(), Some("flower"));
        assert_eq!(find(nested, 4), None);
    }

    #[test]
    fn broken_attributes_end_the_list() {
        for bytes in [
            &[][..],
            &[3, 0, 1, 0],
            &[0, 0, 1, 0],
            &[9, 0, 1, 0, 1],
            &[8, 0, 1],
        ] {
            assert_eq!(attributes(bytes).count(), 0, "{bytes:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_attributes_end_without_a_panic(bytes: Vec<u8>) {
            proptest::prop_assert!(attributes(&bytes).count() <= bytes.len() / 4);
        }
    }
}
