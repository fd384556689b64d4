//! The hand-off ring between two workers: bounded, one producer, one consumer, no lock.
//!
//! A packet whose output port belongs to another worker crosses here. The producer fills slots and
//! makes them visible with one [`Producer::publish`] a burst; the consumer takes them out in order.
//! Both ends keep a private copy of the other's index, so a burst costs about one shared cache line
//! each way.
//!
//! ```text
//!        head (consumer writes)                    tail (producer writes)
//!          |                                         |
//!   free   v  published: the consumer's to read      v  filled, not yet published     free
//! ---------+-----------------------------------------+-------------------------------+------
//! ```
//!
//! Indices run freely and are masked on use, so `tail - head` is the fill level even across a wrap.
//! The loom model of this file is in its test module (`--cfg loom`).

use crossbeam_utils::CachePadded;
use std::mem::MaybeUninit;

#[cfg(loom)]
use loom::{
    cell::UnsafeCell,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
#[cfg(not(loom))]
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// std's cell with the access methods of loom's, so that the code below is written once.
#[cfg(not(loom))]
struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(loom))]
impl<T> UnsafeCell<T> {
    fn new(value: T) -> Self {
        UnsafeCell(std::cell::UnsafeCell::new(value))
    }

    fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
        f(self.0.get())
    }
}

struct Shared<T> {
    /// Next slot to read. Written by the consumer only.
    head: CachePadded<AtomicUsize>,
    /// Next slot to publish. Written by the producer only.
    tail: CachePadded<AtomicUsize>,
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
}

// SAFETY: a slot is touched by one side at a time: by the producer while its index is in
// [tail, head + capacity), by the consumer while it is in [head, tail). The Release store of an
// index and its Acquire load by the other side order the accesses. T itself moves between threads,
// so it has to be Send.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above; the shared reference gives access only through the two unique ends.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    fn slot(&self, index: usize) -> &UnsafeCell<MaybeUninit<T>> {
        &self.slots[index & (self.slots.len() - 1)]
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        let tail = self.tail.load(Ordering::Acquire);
        let mut head = self.head.load(Ordering::Acquire);
        while head != tail {
            // SAFETY: both ends are gone and [head, tail) holds initialised values that nobody took.
            self.slot(head)
                .with_mut(|slot| unsafe { (*slot).assume_init_drop() });
            head = head.wrapping_add(1);
        }
    }
}

/// The sending end of a ring. It belongs to one worker.
pub struct Producer<T> {
    shared: Arc<Shared<T>>,
    /// Where the next value goes; runs ahead of the shared tail until [`Producer::publish`].
    tail: usize,
    /// What the consumer's head was when last read.
    head: usize,
}

/// The receiving end of a ring. It belongs to one worker.
pub struct Consumer<T> {
    shared: Arc<Shared<T>>,
    head: usize,
    tail: usize,
}

/// Makes a ring of `capacity` slots, rounded up to a power of two.
pub fn ring<T: Send>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    let capacity = capacity.max(1).next_power_of_two();
    let shared = Arc::new(Shared {
        head: CachePadded::new(AtomicUsize::new(0)),
        tail: CachePadded::new(AtomicUsize::new(0)),
        slots: (0..capacity)
            .map(|_| UnsafeCell::new(MaybeUninit::uninit()))
            .collect(),
    });
    (
        Producer {
            shared: Arc::clone(&shared),
            tail: 0,
            head: 0,
        },
        Consumer {
            shared,
            head: 0,
            tail: 0,
        },
    )
}

impl<T: Send> Producer<T> {
    /// Puts a value into the next slot, where the consumer does not see it before
    /// [`Producer::publish`]. Gives it back when the ring is full.
    pub fn push(&mut self, value: T) -> Result<(), T> {
        let capacity = self.shared.slots.len();
        if self.tail.wrapping_sub(self.head) == capacity {
            self.head = self.shared.head.load(Ordering::Acquire);
            if self.tail.wrapping_sub(self.head) == capacity {
                return Err(value);
            }
        }
        self.shared.slot(self.tail).with_mut(|slot| {
            // SAFETY: the slot is in [tail, head + capacity): the consumer is done with it, which the
            // Acquire load of head ordered before this write, and there is one producer.
            unsafe { (*slot).write(value) };
        });
        self.tail = self.tail.wrapping_add(1);
        Ok(())
    }

    /// Shows everything pushed so far to the consumer. True where there was something to show.
    pub fn publish(&mut self) -> bool {
        // Only this end writes the shared tail, so a relaxed load reads our own last store.
        if self.shared.tail.load(Ordering::Relaxed) == self.tail {
            return false;
        }
        self.shared.tail.store(self.tail, Ordering::Release);
        true
    }
}

impl<T> Drop for Producer<T> {
    fn drop(&mut self) {
        // Values that were pushed and not published are dropped with the ring, not leaked.
        self.shared.tail.store(self.tail, Ordering::Release);
    }
}

impl<T: Send> Consumer<T> {
    /// The oldest published value.
    pub fn pop(&mut self) -> Option<T> {
        if self.head == self.tail {
            self.tail = self.shared.tail.load(Ordering::Acquire);
            if self.head == self.tail {
                return None;
            }
        }
        let value = self.shared.slot(self.head).with_mut(|slot| {
            // SAFETY: the slot is in [head, tail): the producer initialised it before the Release
            // store of tail that we read, and leaves it alone until head has passed it.
            unsafe { (*slot).assume_init_read() }
        });
        self.head = self.head.wrapping_add(1);
        self.shared.head.store(self.head, Ordering::Release);
        Some(value)
    }

    /// True where nothing is published. Exact only while the producer is quiet.
    pub fn is_empty(&self) -> bool {
        self.head == self.tail && self.head == self.shared.tail.load(Ordering::Acquire)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn values_arrive_in_order_and_only_after_publish() {
        let (mut tx, mut rx) = ring(4);
        tx.push(1).unwrap();
        assert_eq!(rx.pop(), None);
        assert!(tx.publish());
        assert!(!tx.publish());
        tx.push(2).unwrap();
        assert_eq!(rx.pop(), Some(1));
        assert_eq!(rx.pop(), None);
        tx.publish();
        assert_eq!(rx.pop(), Some(2));
    }

    #[test]
    fn a_full_ring_gives_the_value_back() {
        let (mut tx, mut rx) = ring(2);
        tx.push(1).unwrap();
        tx.push(2).unwrap();
        assert_eq!(tx.push(3), Err(3));
        tx.publish();
        assert_eq!(rx.pop(), Some(1));
        tx.push(3).unwrap();
        assert_eq!(tx.push(4), Err(4));
    }

    #[test]
    fn what_is_left_in_the_ring_is_dropped_once() {
        let token = std::sync::Arc::new(());
        let (mut tx, mut rx) = ring(4);
        for _ in 0..3 {
            tx.push(std::sync::Arc::clone(&token)).unwrap();
        }
        tx.publish();
        tx.push(std::sync::Arc::clone(&token)).unwrap();
        drop(rx.pop());
        assert_eq!(std::sync::Arc::strong_count(&token), 4);
        drop(tx);
        drop(rx);
        assert_eq!(std::sync::Arc::strong_count(&token), 1);
    }

    #[test]
    fn two_threads_pass_a_million_values() {
        let (mut tx, mut rx) = ring(64);
        let sender = std::thread::spawn(move || {
            for value in 0..1_000_000u32 {
                let mut value = value;
                while let Err(back) = tx.push(value) {
                    value = back;
                    tx.publish();
                    std::thread::yield_now();
                }
                if value % 7 == 0 {
                    tx.publish();
                }
            }
            tx.publish();
        });
        for expected in 0..1_000_000u32 {
            loop {
                if let Some(value) = rx.pop() {
                    assert_eq!(value, expected);
                    break;
                }
                std::thread::yield_now();
            }
        }
        sender.join().unwrap();
        assert!(rx.is_empty());
    }
}

#[cfg(all(test, loom))]
mod loom_model {
    use super::*;

    /// Every interleaving of a producer that wraps a ring of two slots and a consumer that drains it.
    #[test]
    fn values_cross_in_order_whatever_the_interleaving() {
        loom::model(|| {
            let (mut tx, mut rx) = ring::<Box<usize>>(2);
            let sender = loom::thread::spawn(move || {
                let mut sent = 0;
                for value in 0..3 {
                    if tx.push(Box::new(value)).is_err() {
                        break;
                    }
                    tx.publish();
                    sent += 1;
                }
                sent
            });
            let mut seen = 0;
            for _ in 0..2 {
                if let Some(value) = rx.pop() {
                    assert_eq!(*value, seen);
                    seen += 1;
                }
            }
            let sent = sender.join().unwrap();
            while let Some(value) = rx.pop() {
                assert_eq!(*value, seen);
                seen += 1;
            }
            assert_eq!(seen, sent);
            assert!(sent >= 2);
        });
    }

    /// Either end may go first, with values inside, published or not.
    #[test]
    fn nothing_leaks_whichever_end_is_dropped_first() {
        loom::model(|| {
            let (mut tx, mut rx) = ring::<loom::sync::Arc<()>>(2);
            let token = loom::sync::Arc::new(());
            let theirs = loom::sync::Arc::clone(&token);
            let sender = loom::thread::spawn(move || {
                tx.push(loom::sync::Arc::clone(&theirs)).unwrap();
                tx.publish();
                tx.push(theirs).unwrap();
            });
            drop(rx.pop());
            drop(rx);
            sender.join().unwrap();
            drop(token);
        });
    }
}
