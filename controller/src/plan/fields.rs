//! Validation of the single fields that requests are made of.

use std::net::IpAddr;

use ipnet::IpNet;
use uuid::Uuid;

use crate::mac::Mac;
use crate::refusal::Refusal;

/// Longest name; it is also a DNS label (RFC 1035), since it becomes the guest's host name.
const MAX_NAME: usize = 63;
/// Longest free text, bytes.
const MAX_TEXT: usize = 256;

/// A caller's text as it may appear in a message: short and printable.
pub fn shown(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .take(80)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    if shown.len() < text.len() && text.chars().count() > 80 {
        shown.push('…');
    }
    shown
}

/// A name for a new or renamed object.
///
/// # Errors
/// Invalid when it is not 1 to 63 of a-z 0-9 '-', starting with a letter, or could be taken for an id.
pub fn name(kind: &str, name: &str) -> Result<(), Refusal> {
    let bytes = name.as_bytes();
    let allowed = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
    let fits = (1..=MAX_NAME).contains(&bytes.len())
        && bytes.first().is_some_and(u8::is_ascii_lowercase)
        && bytes.last() != Some(&b'-')
        && bytes.iter().all(allowed);
    if !fits {
        return Err(Refusal::invalid(format!(
            "'{}' cannot be the name of a {kind}; use 1 to {MAX_NAME} of a-z, 0-9 and '-', starting with a letter and not ending with '-'",
            shown(name)
        )));
    }
    if Uuid::try_parse(name).is_ok() {
        return Err(Refusal::invalid(format!(
            "'{name}' cannot be the name of a {kind} because it reads like an id; choose another name"
        )));
    }
    Ok(())
}

/// Free text.
///
/// # Errors
/// Invalid when it is long or not printable.
pub fn text(what: &str, text: &str) -> Result<(), Refusal> {
    if text.len() > MAX_TEXT || text.chars().any(char::is_control) {
        return Err(Refusal::invalid(format!(
            "The {what} '{}' is not printable text of at most {MAX_TEXT} bytes; shorten it",
            shown(text)
        )));
    }
    Ok(())
}

/// An address that one station can have.
///
/// # Errors
/// Invalid when it is no address, or a multicast, loopback, link-local, mapped or unspecified one.
pub fn address(what: &str, text: &str) -> Result<IpAddr, Refusal> {
    let address: IpAddr = text.parse().map_err(|_| {
        Refusal::invalid(format!(
            "The {what} '{}' is not an IP address; write it like 10.0.0.1 or 2001:db8::1",
            shown(text)
        ))
    })?;
    let wrong = match address {
        IpAddr::V4(v4) => not_unicast_v4(v4),
        IpAddr::V6(v6) => {
            v6.is_multicast()
                || v6.is_unspecified()
                || v6.is_loopback()
                || v6.is_unicast_link_local()
                || v6.to_ipv4_mapped().is_some()
        }
    };
    if wrong {
        return Err(Refusal::invalid(format!(
            "The {what} {address} is not an address that one machine can have; use a unicast address"
        )));
    }
    Ok(address)
}

fn not_unicast_v4(address: std::net::Ipv4Addr) -> bool {
    address.is_multicast()
        || address.is_loopback()
        || address.is_link_local()
        || address.octets()[0] == 0
        || address.octets()[0] >= 240
}

/// A prefix without host bits.
///
/// # Errors
/// Invalid when it is no prefix, or has host bits.
pub fn prefix(what: &str, text: &str) -> Result<IpNet, Refusal> {
    let net: IpNet = text.parse().map_err(|_| {
        Refusal::invalid(format!(
            "The {what} '{}' is not a prefix; write it like 10.0.0.0/24 or 2001:db8::/64",
            shown(text)
        ))
    })?;
    if net.trunc() != net {
        return Err(Refusal::invalid(format!(
            "The {what} {net} has bits set beyond its length; write {}",
            net.trunc()
        )));
    }
    Ok(net)
}

/// A MAC that a port can have.
///
/// # Errors
/// Invalid when it is no MAC, a group address or zero.
pub fn mac(text: &str) -> Result<Mac, Refusal> {
    let mac: Mac = text.parse().map_err(|_| {
        Refusal::invalid(format!(
            "'{}' is not a MAC address; write it like 02:00:00:00:00:01",
            shown(text)
        ))
    })?;
    if !mac.is_station() {
        return Err(Refusal::invalid(format!(
            "{mac} is a group or zero MAC address, which no port can have; use one with an even first octet, such as 02:…"
        )));
    }
    Ok(mac)
}

/// A list that is not too long.
///
/// # Errors
/// Invalid when it is.
pub fn at_most(what: &str, count: usize, limit: usize) -> Result<(), Refusal> {
    if count > limit {
        return Err(Refusal::invalid(format!(
            "The request has {count} {what}, and {limit} are allowed; give fewer"
        )));
    }
    Ok(())
}
