//! Putting a load in place, on a standalone node or everywhere: nothing of it is to be seen anywhere before enough members
//! hold all of it.
//!
//! | size | how it goes to the replicas |
//! | --- | --- |
//! | what fits one part of a commit | in it |
//! | more | each member that counts fetches it, and stages it, while appends go on; then one small part of a commit says that it is in place |
//!
//! If the owner ends before that commit is anywhere else, nobody has anything of it in place.

use std::{
    sync::mpsc,
    time::{Duration, Instant},
};

use ledger_core::{
    Epoch, Head, Size,
    digest::TreeHead,
    replication::{Peer, PeerSet},
};
use tokio::sync::watch;

use super::staged::StagedHistory;
use crate::{
    LoadDescriptor, StoreError,
    replicate::incoming_load::OfferedLoad,
    replicate::ranges,
    replicate::replica::{StagingProgress, StagingRequest},
    write::lane::Install,
};

/// Most bytes of records that are sent with the commit.
const PART_BYTES: usize = 1 << 20;
/// How often it is looked whether the slot is still owned, and by whom it is kept.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How long a member that failed is left alone.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// A member that failed so often is left behind, if there are enough others …
const MAX_FAILURES: u32 = 5;
/// … and so is one that did not get on for so long.
const STUCK_AFTER: Duration = Duration::from_secs(30);
/// How long a load goes on while nobody gets on.
const LOAD_TIMEOUT: Duration = Duration::from_mins(10);

/// A member that is to stage a load.
#[derive(Debug, Clone, Copy)]
struct StagingReplica {
    is_asked: bool,
    failures: u32,
    /// When it got on, or failed, last.
    since: Instant,
}

/// What became of spreading a load.
#[derive(Debug, Default)]
struct StagingResult {
    staged_at: PeerSet,
    stale_peers: PeerSet,
}

impl StagedHistory {
    /// Puts the staged history in place: it has its copies when this returns.
    pub(super) fn put_in_place(&self) -> Result<(), StoreError> {
        let records = self.records()?;
        if !records.is_empty() || self.added() == 0 || self.epoch.is_none() {
            return match self.hand_over(self.to_install(records, &StagingResult::default())) {
                Ok(true) => Ok(()),
                // Nobody has to stage what is sent, or does not grow.
                Ok(false) => Err(StoreError::NotAcknowledged),
                Err(error) => Err(error),
            };
        }
        let mut spreading = StagingCoordinator::new(self);
        loop {
            let spread = spreading.run()?;
            if self.hand_over(self.to_install(Vec::new(), &spread))? {
                return Ok(());
            }
            // Somebody counts that did not: it has to stage it too.
        }
    }

    /// Whether it is in place. Whatever becomes of it, its rows are the lane's: a load that fails to get its copies may well be
    /// in place, and be the history of later owners.
    fn hand_over(&self, install: Install) -> Result<bool, StoreError> {
        self.is_handed_over.set(true);
        let installed = self.inner.install(install)?;
        self.is_handed_over.set(installed);
        Ok(installed)
    }

    fn before(&self) -> Option<TreeHead> {
        self.base.as_ref().map(|(_, head)| head.tree_head())
    }

    fn added(&self) -> u64 {
        self.state.head.size().0 - self.before().map_or(0, |before| before.size.0)
    }

    /// The records that are added, if they fit one part of a commit; else none.
    fn records(&self) -> Result<Vec<u8>, StoreError> {
        let (added, to) = (self.added(), self.state.head.size());
        if added == 0 || self.epoch.is_none() {
            return Ok(Vec::new());
        }
        let (rows, state) = (self.inner.database.get()?, &self.state);
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

    fn to_install(&self, records: Vec<u8>, spread: &StagingResult) -> Install {
        Install {
            context: self.context.clone(),
            base: self.base.as_ref().map(|(place, head)| (*place, head.frontier.size())),
            state: self.state.clone(),
            epoch: self.epoch,
            records,
            staged_at: spread.staged_at,
            stale_peers: spread.stale_peers,
            generation: self.generation,
        }
    }
}

/// Has the members of a slot stage a load.
struct StagingCoordinator<'a> {
    staging: &'a StagedHistory,
    epoch: Epoch,
    replicas: Vec<(Peer, StagingReplica)>,
    staged_at: PeerSet,
    events: mpsc::Receiver<(Peer, StagingProgress)>,
    teller: mpsc::Sender<(Peer, StagingProgress)>,
    /// Dropped when it is over.
    until: watch::Sender<()>,
    got_on: Instant,
    _offered: OfferedLoad<'a>,
}

impl<'a> StagingCoordinator<'a> {
    fn new(staging: &'a StagedHistory) -> Self {
        let (teller, events) = mpsc::channel();
        let departures = &staging.inner.shared.offered_loads;
        Self {
            _offered: departures.offer(&staging.context, staging.state.place, &staging.state.head),
            epoch: staging.epoch.unwrap_or_default(),
            staging,
            replicas: Vec::new(),
            staged_at: PeerSet::default(),
            events,
            teller,
            until: watch::Sender::default(),
            got_on: Instant::now(),
        }
    }

    /// Waits until the members that count have staged it, as many as are needed at least.
    fn run(&mut self) -> Result<StagingResult, StoreError> {
        let slot = self.staging.state.place.slot;
        loop {
            let shared = &self.staging.inner.shared;
            let copies = shared.replication_of(slot).ok_or(StoreError::NotOwner { slot })?;
            let (epoch, _) = copies.serving_epoch(slot)?;
            if epoch != self.epoch {
                return Err(StoreError::NotOwner { slot });
            }
            let (needed, counting) = copies.quorum_and_in_sync(slot);
            let missing = counting.without(self.staged_at);
            let is_enough = counting.without(missing).len() + 1 >= needed;
            let mut stale_peers = PeerSet::default();
            missing.iter().filter(|peer| self.is_hopeless(*peer)).for_each(|peer| stale_peers.insert(peer));
            if is_enough && missing.without(stale_peers).is_empty() {
                // Whoever is on the stream and does not count yet is offered the slot again anyway.
                return Ok(StagingResult { staged_at: self.staged_at, stale_peers });
            }
            if self.got_on.elapsed() > LOAD_TIMEOUT {
                return Err(StoreError::NotAcknowledged);
            }
            self.ask(missing);
            self.listen();
        }
    }

    fn is_hopeless(&self, peer: Peer) -> bool {
        let known = self.replicas.iter().find(|(of, _)| *of == peer);
        known.is_some_and(|(_, stager)| {
            stager.failures >= MAX_FAILURES || stager.is_asked && stager.since.elapsed() > STUCK_AFTER
        })
    }

    /// Asks those that were not asked, or failed a while ago.
    fn ask(&mut self, peers: PeerSet) {
        let staging = self.staging;
        let Some(outbox) = staging.inner.shared.outbox.get() else { return };
        let Some(claim) = staging
            .inner
            .shared
            .replication_of(staging.state.place.slot)
            .and_then(|copies| copies.ownership(staging.state.place.slot).map(|(claim, _)| claim))
        else {
            return;
        };
        let now = Instant::now();
        for peer in peers.iter() {
            let at = self.replicas.iter().position(|(of, _)| *of == peer).unwrap_or_else(|| {
                self.replicas.push((peer, StagingReplica { is_asked: false, failures: 0, since: now }));
                self.replicas.len() - 1
            });
            let stager = &mut self.replicas[at].1;
            if stager.is_asked || stager.failures > 0 && stager.since.elapsed() < RETRY_PAUSE {
                continue;
            }
            (stager.is_asked, stager.since) = (true, now);
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
            outbox.request_staging(
                peer,
                StagingRequest {
                    number: staging.state.place.number,
                    claim: claim.clone(),
                    context: staging.context.clone(),
                    load,
                    events: self.teller.clone(),
                    cancelled: self.until.subscribe(),
                },
            );
        }
    }

    /// Takes what members say, for a moment at most.
    fn listen(&mut self) {
        let Ok((peer, event)) = self.events.recv_timeout(POLL_INTERVAL) else { return };
        let Some((_, stager)) = self.replicas.iter_mut().find(|(of, _)| *of == peer) else { return };
        stager.since = Instant::now();
        match event {
            StagingProgress::Advanced => self.got_on = stager.since,
            StagingProgress::Staged => {
                self.got_on = stager.since;
                self.staged_at.insert(peer);
            }
            StagingProgress::Failed => {
                self.staged_at.remove(peer);
                (stager.is_asked, stager.failures) = (false, stager.failures + 1);
            }
        }
    }
}
