//! Buffers and bursts against a model: a `Vec<u8>` with free room on both sides.

use dpdk::{BURST, HEADROOM, MbufBurst};
use proptest::prelude::*;

use crate::pool;

#[derive(Debug, Clone)]
enum Step {
    Prepend(Vec<u8>),
    Append(Vec<u8>),
    TrimFront(usize),
    Truncate(usize),
    Write(usize, u8),
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200).prop_map(Step::Prepend),
        prop::collection::vec(any::<u8>(), 0..900).prop_map(Step::Append),
        (0_usize..300).prop_map(Step::TrimFront),
        (0_usize..70_000).prop_map(Step::Truncate),
        (0_usize..2000, any::<u8>()).prop_map(|(at, value)| Step::Write(at, value)),
        Just(Step::Reset),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn an_mbuf_is_a_vec_with_room_on_both_sides(steps in prop::collection::vec(step(), 1..40)) {
        const ROOM: usize = 1000;
        let pool = pool(64, ROOM as u16);
        let mut mbuf = pool.alloc().unwrap();
        let (mut model, mut front, mut back) = (Vec::<u8>::new(), usize::from(HEADROOM), ROOM);
        for step in steps {
            match step {
                Step::Prepend(bytes) => {
                    let fits = bytes.len() <= front;
                    let place = mbuf.prepend(bytes.len());
                    prop_assert_eq!(place.is_some(), fits);
                    if let Some(place) = place {
                        place.copy_from_slice(&bytes);
                        front -= bytes.len();
                        model.splice(0..0, bytes);
                    }
                }
                Step::Append(bytes) => {
                    let fits = bytes.len() <= back;
                    let place = mbuf.append(bytes.len());
                    prop_assert_eq!(place.is_some(), fits);
                    if let Some(place) = place {
                        place.copy_from_slice(&bytes);
                        back -= bytes.len();
                        model.extend(bytes);
                    }
                }
                Step::TrimFront(n) => {
                    prop_assert_eq!(mbuf.trim_front(n), n <= model.len());
                    if n <= model.len() {
                        model.drain(..n);
                        front += n;
                    }
                }
                Step::Truncate(n) => {
                    mbuf.truncate(n);
                    back += model.len().saturating_sub(n);
                    model.truncate(n);
                }
                Step::Write(at, value) => {
                    if let Some(byte) = mbuf.data_mut().get_mut(at) {
                        *byte = value;
                        model[at] = value;
                    }
                }
                Step::Reset => {
                    mbuf.reset();
                    model.clear();
                    (front, back) = (usize::from(HEADROOM), ROOM);
                }
            }
            prop_assert_eq!(mbuf.data(), &model[..]);
            prop_assert_eq!((mbuf.len(), mbuf.is_empty()), (model.len(), model.is_empty()));
            prop_assert_eq!((mbuf.headroom(), mbuf.tailroom()), (front, back));
        }
        let copy = mbuf.try_clone(&pool);
        // A copy starts behind a whole headroom.
        prop_assert_eq!(copy.is_some(), model.len() <= ROOM);
        if let Some(copy) = copy {
            prop_assert_eq!(copy.data(), &model[..]);
        }
    }

    #[test]
    fn a_burst_is_a_list_of_at_most_32(operations in prop::collection::vec((0_u8..6, 0_usize..40), 1..60)) {
        let pool = pool(128, 64);
        let mut burst = MbufBurst::new();
        let (mut model, mut next) = (Vec::<u8>::new(), 0_u8);
        for (operation, n) in operations {
            match operation {
                0..=2 => {
                    next = next.wrapping_add(1);
                    let mut mbuf = pool.alloc().unwrap();
                    mbuf.append(1).unwrap()[0] = next;
                    let pushed = burst.push(mbuf).is_ok();
                    prop_assert_eq!(pushed, model.len() < BURST);
                    if pushed {
                        model.push(next);
                    }
                }
                3 => prop_assert_eq!(burst.pop().map(|mbuf| mbuf.data()[0]), model.pop()),
                4 => {
                    burst.free_front(n);
                    model.drain(..n.min(model.len()));
                }
                _ => {
                    let taken: Vec<u8> = burst.drain().take(n).map(|mbuf| mbuf.data()[0]).collect();
                    prop_assert_eq!(taken, model.drain(..).take(n).collect::<Vec<_>>());
                }
            }
            prop_assert_eq!(burst.iter().map(|mbuf| mbuf.data()[0]).collect::<Vec<_>>(), model.clone());
            prop_assert_eq!((burst.len(), burst.is_full()), (model.len(), model.len() == BURST));
            prop_assert_eq!(pool.available() as usize, 128 - model.len());
        }
        drop(burst);
        prop_assert_eq!(pool.available(), 128);
    }
}

#[test]
fn a_pool_gives_what_it_has_and_no_more() {
    let pool = pool(100, 256);
    let mut burst = MbufBurst::new();
    let mut held = Vec::new();
    assert_eq!(
        pool.alloc_burst(&mut burst, 1000),
        BURST,
        "as many as the burst has room for"
    );
    assert_eq!(pool.alloc_burst(&mut burst, 1), 0, "the burst is full");
    held.extend(burst.drain());
    for _ in 0..2 {
        pool.alloc_burst(&mut burst, BURST);
        held.extend(burst.drain());
    }
    assert_eq!(pool.available(), 4);
    assert_eq!(pool.alloc_burst(&mut burst, 5), 0, "all or nothing");
    assert_eq!(pool.alloc_burst(&mut burst, 4), 4);
    assert!(pool.alloc().is_none());
    burst.clear();
    held.clear();
    assert_eq!(pool.available(), 100);
    assert_eq!(pool.alloc_burst(&mut burst, 0), 0);
}

#[test]
fn buffers_freed_by_other_threads_come_home() {
    let pool = pool(256, 64);
    for _ in 0..20 {
        std::thread::scope(|scope| {
            for registered in [true, false, true] {
                let pool = &pool;
                scope.spawn(move || {
                    let _guard = registered.then(|| crate::shared_eal().register_thread().unwrap());
                    let (sender, receiver) = std::sync::mpsc::sync_channel(8);
                    std::thread::scope(|inner| {
                        inner
                            .spawn(move || drop(receiver.into_iter().collect::<Vec<dpdk::Mbuf>>()));
                        for _ in 0..64 {
                            if let Some(mbuf) = pool.alloc() {
                                sender.send(mbuf).unwrap();
                            }
                        }
                        drop(sender);
                    });
                });
            }
        });
        assert_eq!(pool.available(), 256);
    }
}

#[test]
fn a_dropped_pool_is_used_again_only_when_all_its_buffers_are_home() {
    // A shape that no other test uses.
    let make = || pool(77, 333);
    let (first, second) = (make(), make());
    let mut held = first.alloc().unwrap();
    drop(first);
    let third = make();
    assert_eq!(
        third.available(),
        77,
        "the pool of the buffer that is out must not be handed on"
    );
    held.append(4).unwrap().copy_from_slice(b"safe");
    assert_eq!(held.data(), b"safe");
    drop((held, second, third));
    for _ in 0..2000 {
        // 2000 pools of 77 × 660 bytes would not fit the memory of the EAL.
        assert_eq!(make().available(), 77);
    }
}

#[test]
fn a_pool_that_does_not_fit_is_a_sentence_with_a_way_out() {
    let eal = crate::shared_eal();
    let error = dpdk::Mempool::new(eal, "huge", 4_000_000, 9000, None)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("\"huge\"") && error.contains("memory_mb"),
        "{error}"
    );
    let error = dpdk::Mempool::new(eal, "none", 0, 9000, None)
        .unwrap_err()
        .to_string();
    assert!(error.contains("at least one buffer"), "{error}");
    let error = dpdk::Mempool::new(eal, "wide", 8, u16::MAX, None)
        .unwrap_err()
        .to_string();
    assert!(error.contains("65407 bytes at most"), "{error}");
}
