//! Netlink messages, byte by byte: attributes written and read, and one socket's requests and answers
//! (kernel: `include/uapi/linux/netlink.h`).
//!
//! Written here and not taken from a message library because a NIC's VF list can be larger than an
//! attribute's 16-bit length says (see `vf_attributes`), which a strict parser cannot read.

use netlink_sys::{Socket, SocketAddr};
use std::io;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
pub(crate) const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
/// The dump was made while things changed: ask again.
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;
const HEADER: usize = 16;
/// The kernel fills messages of a dump up to what the reader offers, at most this.
const OFFERED: usize = 32 * 1024;

/// The kernel's refusal: error number, and its own words where it has any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) errno: i32,
    pub(crate) words: Option<String>,
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        match error.raw_os_error() {
            Some(errno) => Refusal { errno, words: None },
            None => Refusal {
                errno: libc::EPROTO,
                words: Some(error.to_string()),
            },
        }
    }
}

/// Attributes under construction.
#[derive(Default)]
pub(crate) struct Body(pub(crate) Vec<u8>);

impl Body {
    pub(crate) fn put(&mut self, kind: u16, value: &[u8]) -> &mut Body {
        // Values here are short: structures of the kernel and names.
        let length = (value.len() + 4) as u16;
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(crate) fn put_u32(&mut self, kind: u16, value: u32) -> &mut Body {
        self.put(kind, &value.to_ne_bytes())
    }

    pub(crate) fn put_text(&mut self, kind: u16, value: &str) -> &mut Body {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes)
    }

    pub(crate) fn nest(&mut self, kind: u16, inner: &Body) -> &mut Body {
        self.put(kind | NLA_F_NESTED, &inner.0)
    }
}

/// The attributes of `bytes`, by kind. What does not parse ends the walk.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)? & NLA_TYPE_MASK;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// A text attribute without its closing zero.
pub(crate) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// A socket for requests that the kernel answers at once.
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket of `protocol` (`NETLINK_ROUTE`, `NETLINK_GENERIC`) in the calling thread's network
    /// namespace.
    pub(crate) fn open(protocol: isize) -> Result<Netlink, Refusal> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Both only make refusals more telling; kernels before 4.12 lack them.
        let _optional = socket.set_ext_ack(true);
        let _optional = socket.set_cap_ack(true);
        Ok(Netlink {
            socket,
            sequence: 0,
        })
    }

    /// One request, acknowledged. Gives the bodies of the answers before the acknowledgement.
    pub(crate) fn request(&mut self, kind: u16, body: &[u8]) -> Result<Vec<Vec<u8>>, Refusal> {
        self.send(kind, NLM_F_REQUEST | NLM_F_ACK, body)?;
        Ok(self.answers()?.0)
    }

    /// A list of everything. Asked again when it changed while it was made.
    pub(crate) fn dump(&mut self, kind: u16, body: &[u8]) -> Result<Vec<Vec<u8>>, Refusal> {
        let mut tries = 0;
        loop {
            self.send(kind, NLM_F_REQUEST | NLM_F_DUMP, body)?;
            let (answers, disturbed) = self.answers()?;
            tries += 1;
            if !disturbed || tries == 5 {
                return Ok(answers);
            }
        }
    }

    fn send(&mut self, kind: u16, flags: u16, body: &[u8]) -> Result<(), Refusal> {
        self.sequence += 1;
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend_from_slice(&((HEADER + body.len()) as u32).to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&flags.to_ne_bytes());
        message.extend_from_slice(&self.sequence.to_ne_bytes());
        message.extend_from_slice(&0u32.to_ne_bytes());
        message.extend_from_slice(body);
        self.socket.send(&message, 0)?;
        Ok(())
    }

    fn answers(&mut self) -> Result<(Vec<Vec<u8>>, bool), Refusal> {
        let (mut found, mut disturbed) = (Vec::new(), false);
        loop {
            let datagram = self.receive()?;
            let mut rest = datagram.as_slice();
            while rest.len() >= HEADER {
                let field = |at| u32_at(rest, at).unwrap_or(0);
                let length = field(0) as usize;
                let (kind, flags) = (u16_at(rest, 4).unwrap_or(0), u16_at(rest, 6).unwrap_or(0));
                let Some(body) = rest.get(HEADER..length) else {
                    return Err(garbled());
                };
                if field(8) == self.sequence {
                    disturbed |= flags & NLM_F_DUMP_INTR != 0;
                    match kind {
                        NLMSG_ERROR => {
                            return match refusal(body, flags) {
                                Some(refusal) => Err(refusal),
                                None => Ok((found, disturbed)),
                            };
                        }
                        NLMSG_DONE => {
                            let errno = u32_at(body, 0).map_or(0, |e| -(e as i32));
                            return if errno > 0 {
                                Err(Refusal { errno, words: None })
                            } else {
                                Ok((found, disturbed))
                            };
                        }
                        _ => found.push(body.to_vec()),
                    }
                }
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }

    /// A whole datagram, however large: looked at first, for its size.
    fn receive(&self) -> Result<Vec<u8>, Refusal> {
        let mut buffer = Vec::with_capacity(OFFERED);
        let peek = libc::MSG_PEEK | libc::MSG_TRUNC;
        let length = retried(|| self.socket.recv(&mut buffer, peek))?;
        let mut buffer = Vec::with_capacity(length.max(OFFERED));
        retried(|| self.socket.recv(&mut buffer, 0))?;
        if buffer.is_empty() {
            return Err(garbled());
        }
        Ok(buffer)
    }
}

fn retried(mut receive: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match receive() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn garbled() -> Refusal {
    Refusal {
        errno: libc::EBADMSG,
        words: Some("the kernel's answer makes no sense".into()),
    }
}

/// `struct nlmsgerr`: none for an acknowledgement.
fn refusal(body: &[u8], flags: u16) -> Option<Refusal> {
    let errno = -(u32_at(body, 0)? as i32);
    if errno == 0 {
        return None;
    }
    // With NETLINK_CAP_ACK the request itself is not repeated, only its header.
    let words = (flags & NLM_F_ACK_TLVS != 0)
        .then(|| attributes(body.get(4 + HEADER..).unwrap_or_default()))
        .into_iter()
        .flatten()
        .find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)
        .map(|(_, value)| text(value));
    Some(Refusal { errno, words })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn attributes_read_as_written() {
        let mut inner = Body::default();
        inner.put(5, &[1, 2, 3]);
        let mut body = Body::default();
        body.put_text(3, "eth0").nest(22, &inner).put_u32(4, 1500);
        let found: Vec<(u16, &[u8])> = attributes(&body.0).collect();
        assert_eq!(found.len(), 3);
        assert_eq!((found[0].0, text(found[0].1)), (3, "eth0".to_owned()));
        assert_eq!(
            attributes(found[1].1).next(),
            Some((5, [1u8, 2, 3].as_slice()))
        );
        assert_eq!(u32_at(found[2].1, 0), Some(1500));
    }

    #[test]
    fn a_refusal_carries_the_kernels_words() {
        let mut body = (-libc::EINVAL).to_ne_bytes().to_vec();
        body.extend_from_slice(&[0; HEADER]);
        let mut words = Body::default();
        words.put_text(NLMSGERR_ATTR_MSG, "No such VF");
        body.extend_from_slice(&words.0);
        let found = refusal(&body, NLM_F_ACK_TLVS).unwrap();
        assert_eq!(
            (found.errno, found.words.as_deref()),
            (libc::EINVAL, Some("No such VF"))
        );
        assert_eq!(refusal(&[0; 20], 0), None);
    }

    #[test]
    fn the_kernel_answers_and_refuses() {
        let mut netlink = Netlink::open(netlink_sys::protocols::NETLINK_ROUTE).unwrap();
        let links = netlink.dump(libc::RTM_GETLINK, &[0; 16]).unwrap();
        assert!(!links.is_empty());
        let mut none = [0u8; 16];
        none[4..8].copy_from_slice(&i32::MAX.to_ne_bytes());
        let refused = netlink.request(libc::RTM_GETLINK, &none).unwrap_err();
        assert_eq!(refused.errno, libc::ENODEV);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200), flags: u16) {
            prop_assert!(attributes(&bytes).count() <= bytes.len() / 4);
            let _any = refusal(&bytes, flags);
        }
    }
}
