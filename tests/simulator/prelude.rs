//! What most files of the simulator name.

pub use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
};

pub use ledger_core::{
    Epoch, Hash,
    node::{ClusterId, Member, NodeId, ReplicaSet, StorageId},
    ownership::{
        Claim, DeclaredLosses, SlotRecord,
        slot_manager::{DecommissionMode, OwnershipSettings},
    },
    slot::Slot,
};

pub use super::{
    broken::DisabledRule,
    counts::Counted,
    disk::{Damage, Disk, Store},
    history::{Context, Contexts, Entry, History},
    message::Index,
    node::{Node, index_of},
    node_output::{Config, NodeOutput, Note},
    random::Random,
    run::World,
};
