//! What the control side and the workers say to each other.
//!
//! Commands are owned messages. A worker looks at one flag a turn, takes the messages between two
//! bursts, and answers through a channel that came with the question; it never waits. Memory that the
//! control side gives is given back to it where freeing it could take long.

use crate::Error;
use crate::counters::{PortBlock, WorkerBlock};
use crate::fabric::Exit;
use crate::input::Source;
use crate::record::{FlowFilter, FlowRecord};
use crate::relay::Far;
use crate::wake::Doorbell;
use flow::{FlowKey, PortId};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use vrouter::VRouter;

/// A port with all its queues, on its way to or from its worker.
pub(crate) struct PortParts {
    pub(crate) id: PortId,
    pub(crate) source: Source,
    pub(crate) exit: Exit,
    pub(crate) block: Arc<PortBlock>,
    /// First packets a second.
    pub(crate) slow_path_rate: u32,
    /// The device it is relayed to.
    pub(crate) far: Option<Box<Far>>,
}

/// A bounded part of a flow dump.
pub(crate) struct DumpSlice {
    pub(crate) flows: Vec<FlowRecord>,
    /// Where the next slice begins; `None` after the last.
    pub(crate) next: Option<usize>,
}

/// What a worker is asked to do.
pub(crate) enum Command {
    /// Use this router from the next burst on. The addresses are the next hops without a MAC address.
    Publish(Arc<VRouter>, Arc<[IpAddr]>),
    /// Serve this port.
    Adopt(Box<PortParts>, SyncSender<()>),
    /// Reach this port through that worker; `None`: it is gone.
    Route(PortId, Option<usize>, SyncSender<()>),
    /// Stop serving this port, forget its flows, and give its queues back.
    Release(PortId, SyncSender<Option<Box<PortParts>>>),
    /// Relay this port's packets to and from that device from the next burst on; `None`: give them to
    /// the router. What was there before comes back; the device itself where there is no such port.
    Relay(PortId, Option<Box<Far>>, SyncSender<Option<Box<Far>>>),
    /// Send this packet.
    Inject(PortId, Vec<u8>),
    /// Copy out the flows in a bounded number of slots from this one on.
    Dump {
        from: usize,
        limit: usize,
        filter: FlowFilter,
        reply: SyncSender<DumpSlice>,
    },
    /// Copy out one flow.
    Lookup(FlowKey, SyncSender<Option<FlowRecord>>),
    /// End.
    Stop,
    /// Stage a packet for this port, then panic.
    #[cfg(test)]
    Panic(PortId),
}

/// The worker's end of its mailbox.
pub(crate) struct Mailbox {
    receiver: Receiver<Command>,
    mail: Arc<AtomicBool>,
}

impl Mailbox {
    /// Whether there may be messages: one load.
    pub(crate) fn has_mail(&self) -> bool {
        self.mail.load(Ordering::Acquire)
    }

    /// The next message. Call it until there is none.
    pub(crate) fn take(&self) -> Option<Command> {
        // Before the look: a message that comes after it sets the flag again. A swap, because the
        // flag that is taken down here may be a later message's, which then has to be seen.
        self.mail.swap(false, Ordering::SeqCst);
        let command = self.receiver.try_recv().ok();
        if command.is_some() {
            self.mail.store(true, Ordering::Release);
        }
        command
    }
}

/// The control side's end: how to reach a worker.
pub(crate) struct WorkerHandle {
    pub(crate) index: usize,
    pub(crate) core: Option<usize>,
    pub(crate) doorbell: Arc<Doorbell>,
    pub(crate) block: Arc<WorkerBlock>,
    /// Drops that belong to no port of the worker.
    pub(crate) orphans: Arc<PortBlock>,
    sender: Sender<Command>,
    mail: Arc<AtomicBool>,
}

impl WorkerHandle {
    pub(crate) fn new(
        index: usize,
        core: Option<usize>,
        doorbell: Arc<Doorbell>,
    ) -> (WorkerHandle, Mailbox) {
        let (sender, receiver) = channel();
        let mail = Arc::new(AtomicBool::new(false));
        let handle = WorkerHandle {
            index,
            core,
            doorbell,
            block: Arc::default(),
            orphans: Arc::default(),
            sender,
            mail: Arc::clone(&mail),
        };
        (handle, Mailbox { receiver, mail })
    }

    /// Sends a message and makes sure that it is looked at.
    pub(crate) fn tell(&self, command: Command) -> Result<(), Error> {
        self.sender
            .send(command)
            .map_err(|_| Error::WorkerGone { worker: self.index })?;
        self.mail.store(true, Ordering::SeqCst);
        self.doorbell.ring();
        Ok(())
    }

    /// Sends a question and waits for its answer.
    pub(crate) fn ask<T>(
        &self,
        question: impl FnOnce(SyncSender<T>) -> Command,
    ) -> Result<T, Error> {
        let (reply, answer) = sync_channel(1);
        self.tell(question(reply))?;
        answer
            .recv()
            .map_err(|_| Error::WorkerGone { worker: self.index })
    }
}
