//! Model check of the gate: with every interleaving of a worker and a control thread, the value is
//! used by one at a time, is never used after it was taken away, and nobody waits for ever.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p xvio --test loom_gate --release`
#![cfg(loom)]

use std::sync::Arc;

use loom::thread;
use xvio::gate::Gate;

/// Something that must not be used after it was freed.
struct Mapping {
    alive: bool,
    uses: usize,
}

#[test]
fn the_worker_never_uses_what_was_taken_away() {
    loom::model(|| {
        let gate = Arc::new(Gate::new(Some(Mapping {
            alive: true,
            uses: 0,
        })));
        let worker = {
            let gate = Arc::clone(&gate);
            thread::spawn(move || {
                for _ in 0..2 {
                    if let Some(mut pass) = Gate::enter(&gate) {
                        pass.with(|value| {
                            if let Some(mapping) = value {
                                assert!(mapping.alive);
                                mapping.uses += 1;
                            }
                        });
                        // The pass is held between two uses, as a burst does.
                        pass.with(|value| {
                            assert!(value.as_ref().is_none_or(|mapping| mapping.alive));
                        });
                    }
                }
            })
        };
        let mut closed = gate.close(thread::yield_now);
        let mut old = closed.with(Option::take).expect("it was there");
        old.alive = false;
        closed.with(|value| {
            *value = Some(Mapping {
                alive: true,
                uses: old.uses,
            });
        });
        drop(closed);
        worker.join().unwrap();
        let mut closed = gate.close(thread::yield_now);
        assert!(closed.with(|value| value.as_ref().is_some_and(|m| m.alive && m.uses <= 2)));
    });
}

#[test]
fn a_worker_that_does_not_poll_holds_nobody_up() {
    loom::model(|| {
        let gate = Arc::new(Gate::new(0));
        let parked = Arc::clone(&gate);
        if let Some(mut pass) = Gate::enter(&parked) {
            pass.with(|value| *value += 1);
        }
        // The worker is parked here: no further call into the gate. Closing must not wait.
        let mut closed = gate.close(|| panic!("waited for a worker that is outside"));
        assert_eq!(closed.with(|value| *value), 1);
        assert!(Gate::enter(&parked).is_none());
    });
}

#[test]
fn two_control_threads_take_turns() {
    loom::model(|| {
        let gate = Arc::new(Gate::new(0));
        let other = {
            let gate = Arc::clone(&gate);
            thread::spawn(move || gate.close(thread::yield_now).with(|value| *value += 1))
        };
        gate.close(thread::yield_now).with(|value| *value += 1);
        other.join().unwrap();
        assert_eq!(gate.close(thread::yield_now).with(|value| *value), 2);
    });
}
