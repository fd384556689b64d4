//! What a worker does after a panic: a bug of ours must not take its guests' network away for good.
//!
//! Packets of the present burst are lost, and the flow table, which may be half changed, is thrown
//! away: it is a cache, and the next packets fill it again. Ports, routes and the router stay.

use crate::input::Burst;
use crate::table::FlowTable;
use crate::worker::Worker;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// A rest after a panic: a packet that brings it about each time must not fill the log.
const PAUSE: Duration = Duration::from_millis(10);

impl Worker {
    /// The thread's life.
    pub(crate) fn run(mut self) {
        let mut burst = Burst::new();
        // What a panic may have left half done is put right by `recover`.
        while catch_unwind(AssertUnwindSafe(|| self.work(&mut burst))).is_err() {
            burst = Burst::new();
            self.recover();
        }
    }

    fn recover(&mut self) {
        self.block.panics.add(1);
        tracing::error!(
            worker = self.index,
            "A worker came upon a bug, see the message before this one; its flows are forgotten, and it goes on"
        );
        self.doorbell.awake();
        let mut table = FlowTable::new(self.table.capacity());
        (table.evicted, table.expired) = (self.table.evicted, self.table.expired);
        for input in &self.inputs {
            table.add_port(input.id);
        }
        self.table = table;
        for far in self
            .inputs
            .iter_mut()
            .filter_map(|input| input.far.as_mut())
        {
            far.forget_staged();
        }
        self.fabric.recover();
        std::thread::sleep(PAUSE);
    }
}
