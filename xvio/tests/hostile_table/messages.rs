//! Rows about messages.

use std::os::fd::AsRawFd;

use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserInflight;
use vmm_sys_util::eventfd::EventFd;

use crate::guest::raw::message;
use crate::guest::*;
use crate::{Bed, SIZE, open_files};

const SET_LOG_BASE: u32 = 6;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_ENABLE: u32 = 18;
const GET_INFLIGHT: u32 = 31;
const SET_INFLIGHT: u32 = 32;

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_ne_bytes()).collect()
}

/// Every message there is and some there are not, with descriptors, whole and cut short.
pub(crate) fn surplus_descriptors(bed: &mut Bed) {
    let fds = [bed.file.as_raw_fd(); 3];
    for request in 0..48 {
        let mut hostile = bed.connect();
        for len in [0, 8, 16, 20, 40] {
            hostile.tell(request, &vec![0; len], &fds);
        }
        let mut hostile = bed.connect();
        hostile.send(&message(request, 1, &[0; 40])[..30], &fds);
    }
    bed.port.wait("idle", |s| !s.connected);
}

pub(crate) fn size_again_and_again(bed: &mut Bed) {
    let mut hostile = bed.connect();
    for round in 0..200 {
        let size = 1 << (round % 11);
        assert!(hostile.accepted(SET_VRING_NUM, &words(&[0, size]), &[]));
    }
    for size in [0, 3, 2048, 0x1_0040, u32::MAX] {
        assert!(!hostile.accepted(SET_VRING_NUM, &words(&[0, size]), &[]));
    }
}

pub(crate) fn log_overflow(bed: &mut Bed) {
    let mut hostile = bed.connect();
    for (size, offset) in [
        (u64::MAX, 1),
        (0x1000, u64::MAX - 0xfff),
        (1, u64::MAX),
        (0x1000, 1 << 40),
        (0, 0),
    ] {
        let body = [u64::to_ne_bytes(size), offset.to_ne_bytes()].concat();
        let fds = [bed.file.as_raw_fd()];
        assert!(!hostile.accepted(SET_LOG_BASE, &body, &fds), "{size:#x}");
    }
}

pub(crate) fn ring_numbers(bed: &mut Bed) {
    let mut hostile = bed.connect();
    for index in [0x1_0000, 0x1_0001, 0x100, 0x8000_0000, u32::MAX] {
        for (request, rest) in [(SET_VRING_NUM, SIZE.into()), (10, 0), (SET_VRING_ENABLE, 1)] {
            let body = words(&[index, rest]);
            assert!(!hostile.accepted(request, &body, &[]), "{index:#x}");
        }
        let mut address = words(&[index]);
        address.resize(40, 0);
        assert!(!hostile.accepted(9, &address, &[]), "{index:#x}");
    }
}

pub(crate) fn the_257th_queue(bed: &mut Bed) {
    let mut hostile = bed.connect();
    for index in [2, 3, 127, 128, 255, 256, 257] {
        assert!(!hostile.accepted(SET_VRING_NUM, &words(&[index, 64]), &[]));
        assert!(!hostile.accepted(SET_VRING_ENABLE, &words(&[index, 1]), &[]));
    }
    let fds = [bed.file.as_raw_fd()];
    for index in [2u64, 127, 255] {
        assert!(!hostile.accepted(SET_VRING_KICK, &index.to_ne_bytes(), &fds));
    }
}

pub(crate) fn inflight_again(bed: &mut Bed) {
    let mut guest = Guest::connect(&bed.port.socket, 0, 1, SIZE);
    let asked = VhostUserInflight::new(0, 0, 2, SIZE);
    let path = std::path::Path::new("/memfd:xvio-inflight (deleted)");
    let before = open_files(|open| open == path);
    for _ in 0..50 {
        let (table, file) = guest.frontend.get_inflight_fd(&asked).unwrap();
        // Given back each time, or not at all.
        guest
            .frontend
            .set_inflight_fd(&table, file.as_raw_fd())
            .unwrap();
        guest.frontend.get_inflight_fd(&asked).unwrap();
    }
    // Other tests of this program have a few of their own.
    assert!(open_files(|open| open == path) < before + 10);
}

pub(crate) fn inflight_range(bed: &mut Bed) {
    let mut hostile = bed.connect();
    let fds = [bed.file.as_raw_fd(); 2];
    let body = |size: u64, offset: u64, queues: u32, entries: u32| {
        let mut body = [size.to_ne_bytes(), offset.to_ne_bytes()].concat();
        body.extend(words(&[entries << 16 | queues, 0]));
        body
    };
    for (queues, entries) in [
        (0, 64),
        (3, 64),
        (0xffff, 64),
        (2, 0),
        (2, 2048),
        (2, 0xffff),
    ] {
        let body = body(1 << 20, 0, queues, entries);
        assert!(!hostile.accepted(GET_INFLIGHT, &body, &[]), "{queues}");
        assert!(
            !hostile.accepted(SET_INFLIGHT, &body, &fds[..1]),
            "{queues}"
        );
    }
    for (size, offset) in [
        (0, 0),
        (64, 0),
        (u64::MAX, 0),
        (4096, u64::MAX - 7),
        (1 << 40, 8),
    ] {
        let body = body(size, offset, 2, 64);
        assert!(
            !hostile.accepted(SET_INFLIGHT, &body, &fds[..1]),
            "{size:#x}"
        );
    }
    // Too many descriptors, none, and a body that is too short.
    assert!(!hostile.accepted(SET_INFLIGHT, &body(4096, 0, 2, 64), &fds));
    assert!(!hostile.accepted(SET_INFLIGHT, &body(4096, 0, 2, 64), &[]));
    assert!(!hostile.accepted(SET_INFLIGHT, &[0; 16], &fds[..1]));
    assert!(!hostile.accepted(GET_INFLIGHT, &[0; 8], &[]));
}

pub(crate) fn outgrown_table(bed: &mut Bed) {
    let mut guest = Guest::connect(&bed.port.socket, 0, 1, SIZE);
    let asked = VhostUserInflight::new(0, 0, 2, SIZE / 2);
    let (table, file) = guest.frontend.get_inflight_fd(&asked).unwrap();
    guest
        .frontend
        .set_inflight_fd(&table, file.as_raw_fd())
        .unwrap();
    guest.start();
    bed.assert_stopped(1, "in-flight table");
    assert_eq!(bed.poll(), 0);
    guest.frontend.set_vring_num(1, SIZE / 2).unwrap();
    bed.port.wait("fits", |s| s.broken_queues.len() == 1);
    assert!(bed.pair.tx.ready());
    // And grows again.
    guest.frontend.set_vring_num(1, SIZE).unwrap();
    bed.assert_stopped(1, "in-flight table");
}

pub(crate) fn kick_without_address(bed: &mut Bed) {
    let mut hostile = bed.connect();
    let kick = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    for ring in 0..2u64 {
        assert!(hostile.accepted(SET_VRING_KICK, &ring.to_ne_bytes(), &[kick.as_raw_fd()]));
        assert!(hostile.accepted(SET_VRING_ENABLE, &words(&[ring as u32, 1]), &[]));
        assert!(hostile.accepted(SET_VRING_NUM, &words(&[ring as u32, 64]), &[]));
        kick.write(1).unwrap();
    }
    assert_eq!(bed.poll(), 0);
    assert!(bed.pair.rx.send(&[&[0; 60]], None).is_err());
    bed.pair.rx.flush();
}

pub(crate) fn flood(bed: &mut Bed) {
    let mut hostile = bed.connect();
    for round in 0..300 {
        hostile.tell(SET_VRING_ENABLE, &words(&[round % 2, round / 2 % 2]), &[]);
    }
    assert!(hostile.ask(1, &[]).is_some());
}

pub(crate) fn part_of_a_message(bed: &mut Bed) {
    for cut in [1, 11, 12, 13, 19] {
        let mut hostile = bed.connect();
        hostile.send(&message(2, 1, &[0; 8])[..cut], &[]);
    }
    bed.port.wait("idle", |s| !s.connected);
}
