//! Which worker serves a port, and moving it to another one while it runs.

use crate::Error;
use crate::control::Dataplane;
use crate::message::Command;
use flow::PortId;

impl Dataplane {
    /// Has a port served by another worker, with its queues and the device it is relayed to. What waits
    /// in rings and device queues stays there and is taken by the new worker: the port loses nothing.
    /// What a third worker hands over at the very moment is dropped and counted. Its flows are compiled
    /// again as their next packets come.
    ///
    /// # Errors
    /// There is no such port or worker.
    pub fn move_port(&self, id: PortId, worker: usize) -> Result<(), Error> {
        let last = self.handles.len().saturating_sub(1);
        if worker > last {
            return Err(Error::NoSuchWorker { worker, last });
        }
        let mut state = self.state();
        let record = state.ports.get_mut(&id).ok_or(Error::NoSuchPort(id))?;
        if record.worker == worker {
            return Ok(());
        }
        let released = self
            .handle(record.worker)?
            .ask(|reply| Command::Release(id, reply))?;
        let parts = released.ok_or(Error::NoSuchPort(id))?;
        record.worker = worker;
        self.handle(worker)?
            .ask(|reply| Command::Adopt(parts, reply))?;
        self.route(id, Some(worker), worker)
    }
}
