//! The owner of a large load: has the members stage it, and decides when it is installed.

use crate::{
    Epoch,
    ownership::slot_manager::Millis,
    replication::{Peer, PeerSet},
};

/// The times of staging, in milliseconds of the caller's clock, and how often a member may fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StagingSettings {
    /// How long the owner leaves a member alone that failed.
    pub retry_pause: Millis,
    /// The owner leaves a member behind that failed so often, if there are enough others …
    pub max_failures: u32,
    /// … and so is one without progress for this long.
    pub stuck_after: Millis,
    /// How long a load goes on without progress at any member.
    pub timeout: Millis,
}

impl Default for StagingSettings {
    fn default() -> Self {
        Self { retry_pause: 1_000, max_failures: 5, stuck_after: 30_000, timeout: 600_000 }
    }
}

/// A member's report to the owner that has it stage a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StagingProgress {
    /// It staged a part.
    Advanced,
    /// It staged the whole load, durably.
    Staged,
    /// It failed, or what it staged is gone.
    Failed,
}

/// What the owner of a load does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StagingDecision {
    /// Ask these members to stage the load, and wait.
    Request(PeerSet),
    /// Install it.
    Install {
        /// The members that have staged it.
        staged_at: PeerSet,
        /// In-sync members that have not: restart their streams, so that they catch up.
        stale_peers: PeerSet,
    },
    /// Give up: another node owns the slot, or this one in another epoch.
    NotOwner,
    /// Give up: no member makes progress.
    TimedOut,
}

/// The owner's state machine for one load: it has the slot's in-sync members stage the load before any node installs it.
#[derive(Debug)]
pub struct StagingCoordinator {
    settings: StagingSettings,
    /// The epoch in which the load began.
    epoch: Epoch,
    members: Vec<(Peer, StagingMember)>,
    staged_at: PeerSet,
    /// When any member last made progress.
    progressed: Millis,
}

/// A member that is to stage the load.
#[derive(Debug, Clone, Copy)]
struct StagingMember {
    is_asked: bool,
    failures: u32,
    /// When the member last made progress, or failed.
    since: Millis,
}

impl StagingCoordinator {
    /// Begins to stage a load of a slot that this node owns in an epoch.
    pub const fn new(settings: StagingSettings, epoch: Epoch, now: Millis) -> Self {
        Self { settings, epoch, members: Vec::new(), staged_at: PeerSet::EMPTY, progressed: now }
    }

    /// Decides what to do, from the epoch in which this node takes appends to the slot (`None`: it does not), the slot's
    /// write quorum, and the peers whose acknowledgements count. Call it again whenever a member reports something, and
    /// from time to time.
    pub fn step(
        &mut self,
        now: Millis,
        serving: Option<Epoch>,
        write_quorum: usize,
        in_sync: PeerSet,
    ) -> StagingDecision {
        if serving != Some(self.epoch) {
            return StagingDecision::NotOwner;
        }
        let missing = in_sync.without(self.staged_at);
        // The owner's own copy counts.
        let has_quorum = in_sync.without(missing).len() + 1 >= write_quorum;
        let mut stale_peers = PeerSet::default();
        missing.iter().filter(|peer| self.is_hopeless(*peer, now)).for_each(|peer| stale_peers.insert(peer));
        if has_quorum && missing.without(stale_peers).is_empty() {
            // A peer on the stream that does not count yet gets a new offer of the slot anyway.
            return StagingDecision::Install { staged_at: self.staged_at, stale_peers };
        }
        if now.saturating_sub(self.progressed) > self.settings.timeout {
            return StagingDecision::TimedOut;
        }
        StagingDecision::Request(self.request(now, missing))
    }

    /// Returns whether all in-sync peers have staged the load or are left behind: a peer may have come in sync since the
    /// decision to install it.
    pub fn may_install(in_sync: PeerSet, staged_at: PeerSet, stale_peers: PeerSet) -> bool {
        in_sync.without(staged_at).without(stale_peers).is_empty()
    }

    /// Takes a member's report.
    pub fn on_progress(&mut self, now: Millis, peer: Peer, progress: StagingProgress) {
        let Some((_, member)) = self.members.iter_mut().find(|(of, _)| *of == peer) else { return };
        member.since = now;
        match progress {
            StagingProgress::Advanced => self.progressed = now,
            StagingProgress::Staged => {
                self.progressed = now;
                self.staged_at.insert(peer);
            }
            StagingProgress::Failed => {
                (member.is_asked, member.failures) = (false, member.failures.saturating_add(1));
                self.staged_at.remove(peer);
            }
        }
    }

    fn is_hopeless(&self, peer: Peer, now: Millis) -> bool {
        let StagingSettings { max_failures, stuck_after, .. } = self.settings;
        let known = self.members.iter().find(|(of, _)| *of == peer);
        known.is_some_and(|(_, member)| {
            member.failures >= max_failures
                || member.is_asked && now.saturating_sub(member.since) > stuck_after
        })
    }

    /// Returns which of the missing members the owner asks: those that it has not asked, or that failed a while ago.
    fn request(&mut self, now: Millis, missing: PeerSet) -> PeerSet {
        let mut asked = PeerSet::default();
        for peer in missing.iter() {
            let at = self.members.iter().position(|(of, _)| *of == peer).unwrap_or_else(|| {
                self.members.push((peer, StagingMember { is_asked: false, failures: 0, since: now }));
                self.members.len() - 1
            });
            let member = &mut self.members[at].1;
            let is_paused =
                member.failures > 0 && now.saturating_sub(member.since) < self.settings.retry_pause;
            if !member.is_asked && !is_paused {
                (member.is_asked, member.since) = (true, now);
                asked.insert(peer);
            }
        }
        asked
    }
}
