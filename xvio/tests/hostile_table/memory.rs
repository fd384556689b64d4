//! Rows about the guest's memory and its life.

use std::os::fd::AsRawFd;

use vhost::{VhostBackend, VringConfigData};

use crate::guest::*;
use crate::{Bed, SIZE};

const SET_MEM_TABLE: u32 = 5;
const USER: u64 = 0x7000_0000_0000;

/// The body of SET_MEM_TABLE: guest address, size, user address and offset of each region.
fn table(regions: &[[u64; 4]]) -> Vec<u8> {
    let mut body = (regions.len() as u64).to_ne_bytes().to_vec();
    body.extend(regions.iter().flatten().flat_map(|v| v.to_ne_bytes()));
    body
}

pub(crate) fn bad_regions(bed: &mut Bed) {
    let memory = Memory::new();
    let mut hostile = bed.connect();
    let good = [0x10_0000, 0x10_0000, USER, 0];
    for regions in [
        vec![good, [0x18_0000, 0x10_0000, USER + (1 << 30), 0]],
        vec![good, [0x80_0000, 0x10_0000, USER + 0x8_0000, 0]],
        vec![[u64::MAX - 0xfff, 0x2000, USER, 0]],
        vec![[0, 0x2000, u64::MAX - 0xfff, 0]],
        vec![[0, 0x2000, USER, u64::MAX - 0xfff]],
        vec![[0, 0, USER, 0]],
        vec![[0, u64::MAX, USER, 0]],
        vec![[0, 1 << 46, USER, 0]],
        vec![[0, 0x40_1000, USER, 0]],
        vec![[0, 0x1000, USER, 0x40_0000]],
    ] {
        let fds = vec![memory.file.as_raw_fd(); regions.len()];
        let refused = !hostile.accepted(SET_MEM_TABLE, &table(&regions), &fds);
        assert!(refused, "{regions:x?}");
    }
    // More regions than descriptors, and the reverse.
    let fds = [memory.file.as_raw_fd(); 2];
    assert!(!hostile.accepted(SET_MEM_TABLE, &table(&[good]), &fds));
    assert!(!hostile.accepted(SET_MEM_TABLE, &table(&[good]), &[]));
    assert!(hostile.accepted(SET_MEM_TABLE, &table(&[good]), &fds[..1]));
}

pub(crate) fn rings_across_regions(bed: &mut Bed) {
    let guest = bed.guest(0);
    let (desc, avail, used) = (LOW + USER, LOW + USER + 0x1000, LOW + USER + 0x2000);
    for (part, at) in [
        ("descriptor table", [HIGH + USER - 0x100, used, avail]),
        ("used ring", [desc, HIGH + USER - 0x40, avail]),
        ("available ring", [desc, used, HIGH + USER - 0x10]),
        ("available ring", [desc, used, END + USER - 2]),
        ("descriptor table", [USER, used, avail]),
        ("used ring", [desc, u64::MAX - 0xfff, avail]),
    ] {
        let [desc_table_addr, used_ring_addr, avail_ring_addr] = at;
        let at = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr,
            used_ring_addr,
            avail_ring_addr,
            log_addr: None,
        };
        guest.frontend.set_vring_addr(1, &at).unwrap();
        bed.assert_stopped(1, part);
    }
    guest.memory.assert_untouched_outside();
}

pub(crate) fn replaced_under_a_burst(bed: &mut Bed) {
    let mut guest = bed.guest(0);
    let (ring, memory) = guest.ring(1);
    memory.write(HIGH, &[5; 112]);
    memory.write(HIGH, &[0; 12]);
    ring.add(memory, &[(HIGH, 112)], false, false).unwrap();
    ring.expose(memory);
    assert_eq!(bed.pair.tx.poll(&mut bed.burst), 1);
    // A new table waits until the burst is complete; meanwhile the old memory is there.
    std::thread::scope(|scope| {
        let replacing = scope.spawn(|| {
            guest
                .frontend
                .set_mem_table(&guest.memory.regions()[..1])
                .unwrap();
        });
        std::thread::sleep(std::time::Duration::from_millis(2));
        let mut bytes = [0; 100];
        bed.burst.packet(0).copy_to(&mut bytes).unwrap();
        assert_eq!(bytes, [5; 100]);
        bed.pair.tx.complete(&mut bed.burst);
        replacing.join().unwrap();
    });
    let (ring, memory) = guest.ring(1);
    ring.add(memory, &[(HIGH, 112)], false, false).unwrap();
    ring.expose(memory);
    assert_eq!(bed.poll(), 0);
    bed.assert_stopped(1, "not in shared memory");
}

pub(crate) fn truncated(bed: &mut Bed) {
    let mut guest = bed.guest(0);
    let (ring, memory) = guest.ring(1);
    ring.add(memory, &[(HIGH, 112)], false, false).unwrap();
    ring.expose(memory);
    guest.memory.file.set_len(HIGH_OFFSET).unwrap();
    bed.poll();
    assert_eq!(bed.poll(), 0);
    bed.assert_stopped(1, "memory is gone");
}

pub(crate) fn dies_in_a_burst(bed: &mut Bed) {
    let mut guest = bed.guest(0);
    let (ring, memory) = guest.ring(1);
    memory.write(HIGH, &[0; 112]);
    ring.add(memory, &[(HIGH, 112)], false, false).unwrap();
    ring.expose(memory);
    assert_eq!(bed.pair.tx.poll(&mut bed.burst), 1);
    drop(guest);
    let mut bytes = [1; 100];
    bed.burst.packet(0).copy_to(&mut bytes).unwrap();
    assert_eq!(bytes, [0; 100]);
    bed.pair.tx.complete(&mut bed.burst);
    bed.port.wait("gone", |s| !s.connected);
    assert_eq!(bed.poll(), 0);
}
