//! The outputs of a node, and its configuration.

use ledger_core::ownership::Recovery;

use super::prelude::*;

/// A client, and the number of its request.
pub type ClientRequest = (usize, u64);

/// An output of a node.
#[derive(Debug)]
pub enum NodeOutput {
    Message {
        to: Index,
        message: Message,
    },
    Down {
        stream: u64,
        body: OwnerMessage,
    },
    Up {
        stream: u64,
        body: ReplicaMessage,
    },
    /// Breaks a stream that another node opened.
    Break {
        stream: u64,
    },
    Respond {
        client: usize,
        request: u64,
        response: Response,
    },
    Timer {
        after: Millis,
        timer: Timer,
    },
    /// Sync the disk.
    Sync,
    Note(Note),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timer {
    Commit,
    Question(u64),
    /// The schedules of other owners' slots, which were to be looked at then.
    Schedules(Millis),
}

/// A report to the simulation.
#[derive(Debug)]
pub enum Note {
    /// An owner wrote an entry.
    Created {
        context: Context,
        entry: Entry,
        by: Epoch,
    },
    Owned {
        slot: Slot,
        claim: Claim,
        was_handed_over: bool,
    },
    /// A client gets an acknowledgement of an entry.
    Acknowledged {
        context: Context,
        sequence: u64,
        id: u64,
        /// Epoch of the owner that acknowledges it.
        in_epoch: Option<Epoch>,
        is_stable: bool,
        needed: usize,
    },
    /// Readers see a context up to a size.
    Shown {
        context: Context,
        size: u64,
    },
    Counted(Counted, u64),
    /// An owner continues without members that were declared lost.
    Recovered {
        slot: Slot,
        recovery: Recovery,
    },
    /// A moment of a takeover that suits a fault.
    Moment,
    /// Something does not hold that always should.
    Violated(String),
    Trace(String),
}

/// What happens once a write is durable.
#[derive(Debug)]
pub enum AfterSync {
    /// A commit of the node's own is durable here.
    Own(u64),
    Recorded(Slot),
    /// What a run of catching up fetched is durable.
    Fetched(u64),
    Output(NodeOutput),
    /// Tell the slot manager.
    Told(Event),
}

/// The configuration of a node.
#[derive(Debug, Clone, Default)]
pub struct Config {
    pub contexts: Rc<Contexts>,
    pub settings: OwnershipSettings,
    /// How long a node must be silent to count as dead.
    pub dead_after: Millis,
    pub broken: DisabledRule,
    /// The nodes that it is configured with.
    pub seeds: Vec<Index>,
    pub is_traced: bool,
}
