//! DHCPv6 messages as bytes (RFC 8415 sections 8 and 21): reading what clients say, writing
//! answers.

use std::net::Ipv6Addr;

/// Option codes.
pub(crate) mod option {
    pub(crate) const CLIENT_ID: u16 = 1;
    pub(crate) const SERVER_ID: u16 = 2;
    pub(crate) const IA_NA: u16 = 3;
    pub(crate) const IA_TA: u16 = 4;
    pub(crate) const IA_ADDRESS: u16 = 5;
    pub(crate) const STATUS: u16 = 13;
    pub(crate) const RAPID_COMMIT: u16 = 14;
    pub(crate) const NAME_SERVERS: u16 = 23;
    pub(crate) const IA_PD: u16 = 25;
}

/// Status codes (RFC 8415 section 21.13).
pub(crate) mod status {
    pub(crate) const SUCCESS: u16 = 0;
    pub(crate) const NO_ADDRESS: u16 = 2;
    pub(crate) const NOT_ON_LINK: u16 = 4;
    pub(crate) const NO_PREFIX: u16 = 6;
}

/// The longest DUID (RFC 8415 section 11.1).
const DUID_MAX: usize = 130;
/// More associations than this are not read: a client has one an interface.
const ASSOCIATIONS_MAX: usize = 8;
/// More addresses than this in one association are not read.
const ADDRESSES_MAX: usize = 8;

/// An identity association as the client sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Association<'a> {
    /// `IA_NA`, `IA_TA` or `IA_PD`.
    pub(crate) code: u16,
    /// What the answer repeats: IAID, and T1 and T2 where the kind has them.
    pub(crate) head: &'a [u8],
    /// The addresses the client has or would like.
    pub(crate) addresses: Vec<Ipv6Addr>,
}

/// A client's message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u8,
    pub(crate) transaction: [u8; 3],
    pub(crate) client_id: Option<&'a [u8]>,
    pub(crate) server_id: Option<&'a [u8]>,
    pub(crate) rapid_commit: bool,
    pub(crate) associations: Vec<Association<'a>>,
}

/// Takes the next option off the front; none where there is no whole one.
fn split_option(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<4>()?;
    let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
    let (value, rest) = rest.split_at_checked(length)?;
    Some((u16::from_be_bytes([head[0], head[1]]), value, rest))
}

/// Reads a message; none where it is malformed. Relays' messages come out with their kind and
/// whatever their bytes say: the server refuses them by kind.
pub(crate) fn parse(bytes: &[u8]) -> Option<Message<'_>> {
    let ([kind, transaction @ ..], mut rest) = bytes.split_first_chunk::<4>()?;
    let mut message = Message {
        kind: *kind,
        transaction: *transaction,
        ..Message::default()
    };
    while !rest.is_empty() {
        let (code, value, after) = split_option(rest)?;
        rest = after;
        match code {
            option::CLIENT_ID => message.client_id = Some(duid(value)?),
            option::SERVER_ID => message.server_id = Some(duid(value)?),
            option::RAPID_COMMIT => message.rapid_commit = true,
            option::IA_NA | option::IA_TA | option::IA_PD
                if message.associations.len() < ASSOCIATIONS_MAX =>
            {
                message.associations.push(association(code, value)?);
            }
            _ => {}
        }
    }
    Some(message)
}

fn duid(value: &[u8]) -> Option<&[u8]> {
    (3..=DUID_MAX).contains(&value.len()).then_some(value)
}

fn association(code: u16, value: &[u8]) -> Option<Association<'_>> {
    let head_len = if code == option::IA_TA { 4 } else { 12 };
    let (head, mut rest) = value.split_at_checked(head_len)?;
    let mut addresses = Vec::new();
    while !rest.is_empty() {
        let (inner, value, after) = split_option(rest)?;
        rest = after;
        if inner == option::IA_ADDRESS && addresses.len() < ADDRESSES_MAX {
            addresses.push(Ipv6Addr::from(*value.first_chunk::<16>()?));
        }
    }
    Some(Association {
        code,
        head,
        addresses,
    })
}

/// Bytes under way to which options are added.
pub(crate) struct Options(Vec<u8>);

impl Options {
    /// A message.
    pub(crate) fn new(kind: u8, [a, b, c]: [u8; 3]) -> Options {
        Options(vec![kind, a, b, c])
    }

    /// An option that has fixed fields and then options of its own.
    pub(crate) fn within(fixed: Vec<u8>) -> Options {
        Options(fixed)
    }

    /// Adds an option. All that the server says is far shorter than a length field can tell.
    pub(crate) fn put(&mut self, code: u16, value: &[u8]) {
        self.0.extend_from_slice(&code.to_be_bytes());
        self.0
            .extend_from_slice(&(value.len() as u16).to_be_bytes());
        self.0.extend_from_slice(value);
    }

    /// Adds a status with a text for people.
    pub(crate) fn status(&mut self, code: u16, text: &str) {
        let mut value = code.to_be_bytes().to_vec();
        value.extend_from_slice(text.as_bytes());
        self.put(option::STATUS, &value);
    }

    /// Adds an address with its lifetimes in seconds.
    pub(crate) fn address(&mut self, ip: Ipv6Addr, preferred: u32, valid: u32) {
        let mut value = ip.octets().to_vec();
        value.extend_from_slice(&preferred.to_be_bytes());
        value.extend_from_slice(&valid.to_be_bytes());
        self.put(option::IA_ADDRESS, &value);
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }
}
