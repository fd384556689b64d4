//! The in-flight table against a model of a driver and of a device that is killed at every step.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const SIZE: u16 = 8;

fn table(packed: bool) -> (Arc<Table>, File, Description) {
    let asked = Description {
        size: 0,
        offset: 0,
        queues: 2,
        queue_size: SIZE,
    };
    let (made, file) = make(asked, packed, 2, 256).unwrap();
    let table = Table::map(file.try_clone().unwrap(), made, packed, 2, 256).unwrap();
    (Arc::new(table), file, made)
}

fn split() -> Record {
    table(false).0.record(1, SIZE.into(), false).unwrap()
}

#[test]
fn tables_out_of_range_are_refused() {
    let (_, file, made) = table(false);
    let map =
        |said: Description| Table::map(file.try_clone().unwrap(), said, false, 2, 256).map(|_| ());
    assert!(map(made).is_ok());
    for queues in [0, 3, u16::MAX] {
        let said = Description { queues, ..made };
        assert!(matches!(map(said), Err(InflightError::Queues { .. })));
        assert!(make(said, false, 2, 256).is_err());
    }
    for queue_size in [0, 257, u16::MAX] {
        let said = Description { queue_size, ..made };
        assert!(matches!(map(said), Err(InflightError::Size { .. })));
        assert!(make(said, true, 2, 256).is_err());
    }
    let longer = Description {
        queue_size: 16,
        ..made
    };
    assert!(matches!(map(longer), Err(InflightError::TooShort { .. })));
    for (size, offset) in [
        (made.size + 1, 0),
        (made.size, 8),
        (made.size, u64::MAX - 7),
    ] {
        let said = Description {
            size,
            offset,
            ..made
        };
        assert!(
            matches!(map(said), Err(InflightError::Memory(_))),
            "{said:?}"
        );
    }
    // Of a file that has as many bytes, or of none.
    file.set_len(1 << 40).unwrap();
    for size in [MAX_TABLE + 1, 1 << 40, u64::MAX] {
        let said = Description { size, ..made };
        assert!(matches!(map(said), Err(InflightError::TooLong { .. })));
    }
    let most = make(
        Description {
            queues: 128,
            queue_size: 1 << 15,
            ..made
        },
        true,
        128,
        1 << 15,
    );
    assert!(most.unwrap().0.size <= MAX_TABLE);
    let odd = Description { offset: 4, ..made };
    assert!(matches!(map(odd), Err(InflightError::Alignment(4))));
}

#[test]
fn a_ring_larger_than_its_table_cannot_run() {
    let (table, ..) = table(false);
    assert!(table.record(0, SIZE.into(), false).is_ok());
    for (index, size, packed) in [
        (0, u32::from(SIZE) + 1, false),
        (0, u32::MAX, false),
        (2, 8, false),
        // The table was made for split rings, whose entries are half as long.
        (1, 8, true),
    ] {
        assert!(table.record(index, size, packed).is_err(), "{index} {size}");
    }
}

#[test]
fn a_region_without_history_begins_where_the_ring_is() {
    let mut record = split();
    assert_eq!(record.recover_split(700), Vec::<u16>::new());
    record.split_taken(3);
    assert_eq!(record.recover_split(700), [3]);
    // A ring that was stopped in order has none either.
    record.close();
    assert_eq!(record.recover_split(700), Vec::<u16>::new());
    // Nor has one that the driver began anew meanwhile.
    record.split_taken(3);
    assert_eq!(record.recover_split(0), Vec::<u16>::new());
}

#[test]
fn a_table_full_of_garbage_harms_nobody() {
    use std::os::unix::fs::FileExt;
    for byte in [0x01, 0x7f, 0x80, 0xff] {
        for packed in [false, true] {
            let (table, file, made) = table(packed);
            let mut garbage = vec![byte; made.size as usize];
            // With a header that is believed.
            for region in garbage.chunks_mut(region_len(SIZE, packed)) {
                region[H_VERSION..H_VERSION + 4].copy_from_slice(&[1, 0, SIZE as u8, 0]);
            }
            file.write_all_at(&garbage, 0).unwrap();
            let mut record = table.record(1, SIZE.into(), packed).unwrap();
            if packed {
                let (at, _) = record.recover_position((0, true), |_| 0x8080);
                assert!(at < SIZE);
                file.write_all_at(&garbage, 0).unwrap();
                record.packed_taken([noted(0)].into_iter());
                record.packed_used();
                record.packed_published();
            } else {
                assert!(record.recover_split(0x0101).iter().all(|h| *h < SIZE));
                file.write_all_at(&garbage, 0).unwrap();
                record.split_taken(1);
                record.split_used(1);
                record.split_published(1);
            }
        }
    }
}

fn noted(id: u16) -> Noted {
    Noted {
        addr: 0x1000 * u64::from(id),
        len: 60,
        id,
        flags: 0x80,
    }
}

/// A model of a device: what it has done, and the place where it is killed.
#[derive(Clone, Copy, Debug)]
enum Step {
    Take(u8),
    GiveBack(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (1u8..5).prop_map(Step::Take),
        (1u8..5).prop_map(Step::GiveBack)
    ];
    prop::collection::vec(step, 1..60)
}

/// Where in giving a batch back it is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Killed {
    BeforeUsed,
    BetweenUsedAndRing,
    BetweenRingAndTable,
    After,
}

fn killed() -> impl Strategy<Value = Killed> {
    prop_oneof![
        Just(Killed::BeforeUsed),
        Just(Killed::BetweenUsedAndRing),
        Just(Killed::BetweenRingAndTable),
        Just(Killed::After)
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn what_was_in_flight_in_a_split_ring_is_known_wherever_the_device_was_killed(
        steps in steps(), last in 1u8..5, killed in killed(), start in any::<u16>(),
    ) {
        let (table, ..) = table(false);
        let mut record = table.record(1, SIZE.into(), false).unwrap();
        prop_assert_eq!(record.recover_split(start), Vec::<u16>::new());
        let mut free: VecDeque<u16> = (0..SIZE).rev().collect();
        let mut flying: VecDeque<u16> = VecDeque::new();
        let mut used = start;
        for step in steps {
            match step {
                Step::Take(count) => for _ in 0..count {
                    if let Some(head) = free.pop_front() {
                        record.split_taken(head);
                        flying.push_back(head);
                    }
                },
                Step::GiveBack(count) => {
                    let count = usize::from(count).min(flying.len());
                    for head in flying.drain(..count) {
                        record.split_used(head);
                        used = used.wrapping_add(1);
                        free.push_back(head);
                    }
                    record.split_published(used);
                }
            }
        }
        let count = usize::from(last).min(flying.len());
        let batch: Vec<u16> = flying.iter().take(count).copied().collect();
        if killed != Killed::BeforeUsed {
            batch.iter().for_each(|head| record.split_used(*head));
        }
        let published = used.wrapping_add(count as u16);
        if killed == Killed::After {
            record.split_published(published);
        }
        let in_ring = matches!(killed, Killed::BetweenRingAndTable | Killed::After);
        if in_ring {
            flying.drain(..count);
            used = published;
        }
        drop(record);
        let mut record = table.record(1, SIZE.into(), false).unwrap();
        let found = record.recover_split(used);
        prop_assert_eq!(found, Vec::from(flying));
    }

    #[test]
    fn where_a_packed_ring_goes_on_is_known_wherever_the_device_was_killed(
        steps in steps(), last in 1u8..5, killed in killed(), start in 0..SIZE, wrap in any::<bool>(),
    ) {
        let (table, ..) = table(true);
        // The ring: whether the descriptor at a place is available, as its flags say.
        let flag = |on: bool, wrap: bool| match (on, wrap) {
            (true, true) => 0x80u16,
            (true, false) => 0x8000,
            (false, true) => 0x8080,
            (false, false) => 0,
        };
        let mut ring = [flag(false, !wrap); SIZE as usize];
        ring[..usize::from(start)].fill(flag(false, wrap));
        let mut record = table.record(0, SIZE.into(), true).unwrap();
        prop_assert_eq!(record.recover_position((start, wrap), |at| ring[usize::from(at)]), (start, wrap));
        let next = |(at, wrap): (u16, bool), by: u16| if at + by >= SIZE {
            (at + by - SIZE, !wrap)
        } else {
            (at + by, wrap)
        };
        let (mut avail, mut used) = ((start, wrap), (start, wrap));
        let mut room = SIZE;
        let mut flying: VecDeque<(u16, (u16, bool))> = VecDeque::new();
        for step in steps {
            match step {
                // A chain of so many descriptors.
                Step::Take(count) if u16::from(count) <= room => {
                    let count = u16::from(count);
                    flying.push_back((count, avail));
                    for i in 0..count {
                        let (at, wrap) = next(avail, i);
                        ring[usize::from(at)] = flag(true, wrap);
                    }
                    record.packed_taken((0..count).map(noted).collect::<Vec<_>>().into_iter());
                    avail = next(avail, count);
                    room -= count;
                }
                Step::Take(_) => {}
                Step::GiveBack(count) => {
                    for (slots, (at, wrap)) in flying.drain(..usize::from(count).min(flying.len())) {
                        record.packed_used();
                        ring[usize::from(at)] = flag(false, wrap);
                        used = next(used, slots);
                        room += slots;
                    }
                    record.packed_published();
                }
            }
        }
        let count = usize::from(last).min(flying.len());
        if killed != Killed::BeforeUsed {
            (0..count).for_each(|_| record.packed_used());
        }
        if matches!(killed, Killed::BetweenRingAndTable | Killed::After) {
            for (slots, (at, wrap)) in flying.drain(..count) {
                ring[usize::from(at)] = flag(false, wrap);
                used = next(used, slots);
            }
        }
        if killed == Killed::After {
            record.packed_published();
        }
        // What stands in the table for a device that gives back in another order: one entry for
        // each chain in flight, linked over all of its descriptors.
        if killed == Killed::After {
            let mut entries: Vec<(u64, u16)> = (0..SIZE)
                .filter(|e| record.get(record.at(*e)) != 0)
                .map(|e| (record.area.read16(record.at(e))[1], record.get(record.at(e) + P_NUM)))
                .collect();
            entries.sort_unstable();
            let slots: Vec<u16> = entries.iter().map(|(_, num)| *num).collect();
            let wanted: Vec<u16> = flying.iter().map(|(slots, _)| *slots).collect();
            prop_assert_eq!(slots, wanted);
        }
        drop(record);
        let mut record = table.record(0, SIZE.into(), true).unwrap();
        // The frontend does not know.
        let found = record.recover_position((0, true), |at| ring[usize::from(at)]);
        prop_assert_eq!(found, used);
    }
}
