//! What most files of the simulator name.

pub use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
};

pub use ledger_core::{
    ContextId, Epoch, Hash, Size,
    digest::{Bucket, Digest, TreeHead},
    loads::LoadSpan,
    node::{ClusterId, Member, NodeId, ReplicaSet, StorageId},
    ownership::{
        Claim, DeclaredLosses, SlotRecord,
        slot_manager::{DecommissionMode, Event, MemberRequest, MemberResponse, Millis, OwnershipSettings},
    },
    slot::Slot,
};

pub use super::{
    broken::DisabledRule,
    counts::Counted,
    damage::Read,
    disk::{Damage, Disk, Fork, Store, Write},
    history::{Context, Contexts, Entry, History},
    message::{
        Append, FetchItem, Index, Message, OwnerMessage, Part, PeerRequest, PeerResponse, Range,
        ReplicaMessage, Request, Response,
    },
    node::{Node, index_of, peer_of},
    node_output::{AfterSync, ClientRequest, Config, NodeOutput, Note, Timer},
    random::Random,
    run::World,
};
