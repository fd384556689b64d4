//! The explanation of a decision reads as a person would tell it.

use crate::frames::*;
use crate::world::*;

/// What the router of the guest's host says about its frame.
fn told(guest: &Guest, frame: &[u8]) -> Vec<String> {
    let parsed = flow::parse(frame, guest.port).unwrap();
    world().hosts[guest.host].explain(&parsed, frame).steps
}

#[test]
fn a_routed_packet_is_followed_to_its_host() {
    let guests = guests();
    let (b, c) = (guests[B], guests[C]);
    let frame = ping(GATEWAY_MAC, b.mac, b.v4.into(), c.v4.into(), 56);
    let steps = told(&b, &frame);
    let expected = [
        "The packet came in by port \"guest-1\" of network \"blue\", VNI 100.",
        "Source address 10.0.1.20 is the port's to use.",
        "10.0.0.30 is routed by 10.0.0.0/24, next hop 10.0.0.30.",
        "10.0.0.30 is at 02:00:00:00:00:1e, on the host at 192.0.2.2.",
        "At most 1450 bytes go that way; it has 84.",
    ];
    assert_eq!(steps[..5], expected);
    assert!(
        steps[5].starts_with("A flow is installed: check-mtu=1450, dec-ttl"),
        "{steps:#?}"
    );
    assert_eq!(steps.len(), 6);
}

#[test]
fn a_spoofed_source_is_named_beside_the_ports_own() {
    let guests = guests();
    let (a, c) = (guests[A], guests[C]);
    let frame = ping(c.mac, a.mac, ip("10.0.0.99"), c.v4.into(), 8);
    let steps = told(&a, &frame);
    let own = "10.0.0.10, fd00:b::10, fd00:b:0:1:0:ff:fe00:a, fe80::ff:fe00:a";
    let expected = [
        "The packet came in by port \"guest-0\" of network \"blue\", VNI 100.".to_string(),
        format!("Source address 10.0.0.99 is none of the port's: {own}."),
        "A flow is installed: drop=spoofed-ip.".to_string(),
    ];
    assert_eq!(steps, expected);
}
