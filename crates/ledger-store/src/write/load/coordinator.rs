//! Installs a load, on a standalone node or in a cluster. No reader sees any of it before enough members hold all of
//! it.
//!
//! | size | how it goes to the replicas |
//! | --- | --- |
//! | fits one part of a commit | in it |
//! | larger | each in-sync member fetches and stages it, while appends go on ([`StagingCoordinator`]); then a small part of a commit installs it |
//!
//! If the owner ends before that commit is at any other node, no node has installed anything of the load.

use std::{
    sync::mpsc,
    time::{Duration, Instant},
};

use ledger_core::{
    Head, Size,
    digest::TreeHead,
    loads::{StagingCoordinator, StagingDecision, StagingProgress, StagingSettings},
    ownership::Claim,
    replication::{Peer, PeerSet},
};
use tokio::sync::watch;

use super::staged::StagedHistory;
use crate::{
    LoadDescriptor, StoreError, replicate::ranges, replicate::replica::StagingRequest,
    replicate::staged_loads::OfferedLoad, write::command::Install,
};

/// Most bytes of records that are sent with the commit.
const PART_BYTES: usize = 1 << 20;
/// How often the load checks whether this node still owns the slot, and which members are in sync.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

impl StagedHistory {
    /// Installs the staged history; returns when it is committed.
    pub(super) fn put_in_place(&self) -> Result<(), StoreError> {
        let records = self.records()?;
        if !records.is_empty() || self.added() == 0 || self.epoch.is_none() {
            return match self.hand_over(self.to_install(records, PeerSet::EMPTY, PeerSet::EMPTY)) {
                Ok(true) => Ok(()),
                // The lane asks for staging only if the records are not sent with the commit.
                Ok(false) => Err(StoreError::NotAcknowledged),
                Err(error) => Err(error),
            };
        }
        let mut spread = Spread::new(self);
        loop {
            let (staged_at, stale_peers) = spread.run()?;
            if self.hand_over(self.to_install(Vec::new(), staged_at, stale_peers))? {
                return Ok(());
            }
            // Another member came in sync: it has to stage the load too.
        }
    }

    /// Passes the staged history to the lane; returns whether the lane installed it. From then on the rows are the
    /// lane's: a load that fails to be committed may be installed nevertheless, and become the history of later
    /// owners.
    fn hand_over(&self, install: Install) -> Result<bool, StoreError> {
        self.is_handed_over.set(true);
        let installed = self.store.install(install)?;
        self.is_handed_over.set(installed);
        Ok(installed)
    }

    fn before(&self) -> Option<TreeHead> {
        self.base.as_ref().map(|(_, head)| head.tree_head())
    }

    fn added(&self) -> u64 {
        self.state.head.size().0 - self.before().map_or(0, |before| before.size.0)
    }

    /// Returns the records of the added entries if they fit one part of a commit; else none.
    fn records(&self) -> Result<Vec<u8>, StoreError> {
        let (added, to) = (self.added(), self.state.head.size());
        if added == 0 || self.epoch.is_none() {
            return Ok(Vec::new());
        }
        let (rows, state) = (self.store.database.get()?, &self.state);
        let after = Size(to.0 - added);
        let range = ranges::read_at(
            &rows.snapshot(),
            &self.context,
            state.place,
            &state.head,
            after,
            to,
            PART_BYTES,
        )?;
        let is_all = range.count == added && range.records.len() <= PART_BYTES;
        Ok(if is_all { range.records.to_vec() } else { Vec::new() })
    }

    fn to_install(&self, records: Vec<u8>, staged_at: PeerSet, stale_peers: PeerSet) -> Install {
        Install {
            context: self.context.clone(),
            base: self.base.as_ref().map(|(place, head)| (*place, head.frontier.size())),
            state: self.state.clone(),
            epoch: self.epoch,
            records,
            staged_at,
            stale_peers,
            generation: self.generation,
        }
    }
}

/// Asks the members of a slot to stage a load.
struct Spread<'a> {
    staging: &'a StagedHistory,
    coordinator: StagingCoordinator,
    began: Instant,
    events: mpsc::Receiver<(Peer, StagingProgress)>,
    event_sender: mpsc::Sender<(Peer, StagingProgress)>,
    /// Dropped when the load ends: the members then remove what they staged.
    until: watch::Sender<()>,
    _offered: OfferedLoad<'a>,
}

impl<'a> Spread<'a> {
    fn new(staging: &'a StagedHistory) -> Self {
        let (event_sender, events) = mpsc::channel();
        let offered_loads = &staging.store.shared.offered_loads;
        let epoch = staging.epoch.unwrap_or_default();
        Self {
            _offered: offered_loads.offer(&staging.context, staging.state.place, &staging.state.head),
            coordinator: StagingCoordinator::new(StagingSettings::default(), epoch, 0),
            staging,
            began: Instant::now(),
            events,
            event_sender,
            until: watch::Sender::default(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Waits until the load may be installed. Returns the members that have staged it, and those that failed to.
    fn run(&mut self) -> Result<(PeerSet, PeerSet), StoreError> {
        let slot = self.staging.state.place.slot;
        let shared = &self.staging.store.shared;
        let copies = shared.replication_of(slot).ok_or(StoreError::NotOwner { slot })?;
        loop {
            let (epoch, _) = copies.serving_epoch(slot)?;
            let (write_quorum, in_sync) = copies.quorum_and_in_sync(slot);
            match self.coordinator.step(self.now(), Some(epoch), write_quorum, in_sync) {
                StagingDecision::Request(peers) => {
                    if let Some((claim, _)) = copies.ownership(slot) {
                        self.request(peers, &claim);
                    }
                    self.listen();
                }
                StagingDecision::Install { staged_at, stale_peers } => return Ok((staged_at, stale_peers)),
                StagingDecision::NotOwner => return Err(StoreError::NotOwner { slot }),
                StagingDecision::TimedOut => return Err(StoreError::NotAcknowledged),
            }
        }
    }

    fn request(&self, peers: PeerSet, claim: &Claim) {
        let staging = self.staging;
        let Some(outbox) = staging.store.shared.publisher.outbox.get() else { return };
        let head = &staging.state.head;
        let empty = Head::new(head.suite, head.lineage, head.created_at_ns);
        let load = LoadDescriptor {
            lineage: head.lineage,
            suite: head.suite,
            created_at_ns: head.created_at_ns,
            after: staging.before().unwrap_or_else(|| empty.tree_head()),
            to: head.size(),
            root: Some(head.root()),
        };
        for peer in peers.iter() {
            outbox.request_staging(
                peer,
                StagingRequest {
                    number: staging.state.place.number,
                    claim: claim.clone(),
                    context: staging.context.clone(),
                    load: load.clone(),
                    events: self.event_sender.clone(),
                    cancelled: self.until.subscribe(),
                },
            );
        }
    }

    /// Waits shortly for the report of a member.
    fn listen(&mut self) {
        if let Ok((peer, progress)) = self.events.recv_timeout(POLL_INTERVAL) {
            self.coordinator.on_progress(self.now(), peer, progress);
        }
    }
}
