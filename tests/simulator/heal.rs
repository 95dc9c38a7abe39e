//! Drives [`ledger_core::healing`]: reads this node's head, asks other nodes, stages what they send, and installs what
//! the machine decides, as `ledger_cluster::catch_up::healing` and `ledger_store::write::lane::heal`.

use ledger_core::{
    catch_up::{Event as RunEvent, RestoreResult, WantedRange},
    compare::{CompareRequest, CompareResponse, ListedContext},
    healing::{
        HeadAtInstall, HealAttempt, HealEffect, HealEvent, HealOutcome, HealProof, HealSource, InstallCase,
        InstallDecision, LocalHead, check_staged, heal_sources, proves_by_digest,
    },
    ownership::slot_manager::{DamagedSlots, Owner},
};

use super::{prelude::*, questions::Asker};

/// An attempt, with the history that it stages beside the damaged one.
#[derive(Debug)]
pub struct Healing {
    pub(super) context: Context,
    /// The run of catching up that needs it.
    pub(super) run: Option<u64>,
    attempt: HealAttempt,
    goal: TreeHead,
    proof: HealProof,
    staged: History,
    loaded: Option<LoadSpan>,
}

impl Healing {
    fn new(context: Context, run: Option<u64>, attempt: HealAttempt) -> Box<Self> {
        let (staged, proof, loaded) = (History::default(), HealProof::Head, None);
        Box::new(Self { context, run, attempt, goal: staged.head(), proof, staged, loaded })
    }

    /// Stages what a source sent. Returns whether it could.
    fn take(&mut self, range: &Range, together: Option<Size>) -> bool {
        let is_next = check_staged(self.goal, self.staged.head(), range.after, range.end, together).is_ok();
        if is_next {
            self.staged.0.extend(range.entries.iter());
            let span = together.map(|to| LoadSpan { after: range.after.size, to });
            self.loaded = span.map(|span| self.loaded.map_or(span, |known| known.with(span))).or(self.loaded);
        }
        is_next
    }
}

impl Node {
    /// Tries the contexts that are due, and tells the slot manager of the damage that there is.
    pub(super) fn heal(&mut self) {
        let damaged = self.quarantine.iter().map(|context| self.id(*context)).collect();
        for id in self.heal_schedule.due(self.now, &damaged) {
            let Some(context) = self.config.contexts.find(&id) else { continue };
            let is_tried = |asker: &Asker| matches!(asker, Asker::Healing(of) if of.context == context && of.run.is_none());
            if self.questions.values().any(|question| is_tried(&question.asker)) {
                continue;
            }
            let placement = self.record(self.slot(context)).placement;
            let members = placement.map_or_else(Vec::new, |placement| placement.members.members().to_vec());
            let owner = match self.slot_manager.owner(self.slot(context)) {
                Owner::Other(node, _) => Some(node),
                Owner::Me(_) | Owner::Nobody(_) => None,
            };
            let (attempt, effect) =
                HealAttempt::begin(id, heal_sources(&self.member, &members, owner.as_ref()));
            self.go_on_healing(Healing::new(context, None, attempt), effect);
        }
        let damage = DamagedSlots {
            damaged: self.quarantine.iter().map(|context| self.slot(*context)).collect(),
            impaired: self.heal_schedule.impaired(self.now),
        };
        if damage != self.damage {
            self.damage = damage.clone();
            self.events.push_back(Event::DamageChanged(damage));
        }
    }

    /// Replaces a context that cannot be read by the history of its slot's owner, for a run of catching up.
    pub(super) fn heal_in_claim(
        &mut self,
        run: u64,
        id: ContextId,
        owner: Member,
        claim: Claim,
        theirs: TreeHead,
    ) {
        let Some(context) = self.config.contexts.find(&id) else { return };
        let settings = &self.config.settings;
        let is_complete = settings.write_quorum * 2 > settings.replication_factor;
        let (attempt, effect) = HealAttempt::in_claim(id, owner, claim, is_complete, theirs);
        self.go_on_healing(Healing::new(context, Some(run), attempt), effect);
    }

    /// Does what an attempt asks for, until it waits for another node or is over.
    fn go_on_healing(&mut self, mut healing: Box<Healing>, mut effect: HealEffect) {
        loop {
            let context = healing.context;
            let event = match effect {
                HealEffect::Finished(outcome) => return self.healed(&healing, &outcome),
                HealEffect::ReadHead => HealEvent::Head(self.local_head(context)),
                HealEffect::AskBucket(member) => {
                    let buckets = [(self.slot(context), [Bucket::of(&self.id(context))].into())].into();
                    let request = PeerRequest::Compare(CompareRequest::Contexts { buckets, after: None });
                    return self.ask(Asker::Healing(healing), member, request);
                }
                HealEffect::Fetch { .. } if !self.quarantine.contains(&context) => HealEvent::Failed,
                HealEffect::Fetch { source, goal, proof, is_more } => {
                    if !is_more {
                        (healing.staged, healing.loaded) = (History::default(), None);
                    }
                    (healing.goal, healing.proof) = (goal, proof);
                    let (after, to) = (healing.staged.head().size, goal.size);
                    match source {
                        HealSource::Member(member) => {
                            let wanted = vec![WantedRange { context: self.id(context), after, to }];
                            return self.fetch(Asker::Healing(healing), member, wanted);
                        }
                        // Of entries that cannot be read, none is staged.
                        HealSource::Local => {
                            let is_readable = self.damage_of(context) == Some(Damage::Tiles);
                            let range = self.range(context, after.0, to.0);
                            let is_staged = is_readable && healing.take(&range, None);
                            if is_staged { HealEvent::Staged } else { HealEvent::Failed }
                        }
                    }
                }
                HealEffect::Install => self.install_healed(&mut healing),
            };
            effect = healing.attempt.step(event);
        }
    }

    fn healed(&mut self, healing: &Healing, outcome: &HealOutcome) {
        let (context, now) = (healing.context, self.now);
        self.trace(|_| format!("healing context {context}: {outcome:?}"));
        if let Some(run) = healing.run {
            let is_failed = matches!(outcome, HealOutcome::NotRestored);
            let result = if is_failed { RestoreResult::NotYet } else { RestoreResult::Restored };
            return self.tell(run, RunEvent::Restored(self.id(context), result));
        }
        let is_restored = matches!(outcome, HealOutcome::Restored { .. });
        self.heal_schedule.tried(now, healing.attempt.context(), is_restored, self.random.number() as u32);
    }

    /// Handles an answer to an attempt, `None` if there is none in time.
    pub(super) fn heal_answered(
        &mut self,
        mut healing: Box<Healing>,
        from: Member,
        next: PeerRequest,
        reply: Option<PeerResponse>,
    ) {
        let event = match reply {
            Some(PeerResponse::Ranges(items)) => {
                let is_taken = |item: &FetchItem| matches!(item, FetchItem::Range { range, together_to, .. } if healing.take(range, *together_to));
                let all = items.iter().take_while(|item| !matches!(item, FetchItem::End)).all(is_taken);
                if healing.staged.head() == healing.goal {
                    HealEvent::Staged
                } else if all && !matches!(items.last(), Some(FetchItem::End)) {
                    return self.ask(Asker::Healing(healing), from, next);
                } else {
                    HealEvent::Failed
                }
            }
            Some(PeerResponse::Compare(CompareResponse::Contexts(page))) => {
                let present = page.contexts.iter().filter_map(|listed| match listed {
                    ListedContext::Present(summary) => Some((summary.context.clone(), summary.tree_head())),
                    ListedContext::Unreadable(_) => None,
                });
                HealEvent::Bucket(present.collect())
            }
            _ => HealEvent::Failed,
        };
        let effect = healing.attempt.step(event);
        self.go_on_healing(healing, effect);
    }

    fn local_head(&mut self, context: Context) -> LocalHead {
        if !self.quarantine.contains(&context) {
            return LocalHead::NotDamaged;
        }
        if self.fails(context, Read::Head) {
            return LocalHead::Unreadable;
        }
        // Other nodes have at least what is committed.
        match self.range(context, 0, self.committed(context)).end {
            head if head.size.0 > 0 => LocalHead::Committed(head),
            _ => LocalHead::NothingCommitted,
        }
    }

    /// Decides about a staged history, as the lane does, and installs it.
    fn install_healed(&mut self, healing: &mut Healing) -> HealEvent {
        if !self.can_write() {
            return HealEvent::Failed;
        }
        let (context, slot) = (healing.context, self.slot(healing.context));
        let mut case = match &healing.proof {
            HealProof::Head => InstallCase::ByHead,
            HealProof::Digest(remote) => {
                let (id, bucket) = (self.id(context), self.bucket_here(context));
                let kept = self.digests.get(&slot).map(|digest| digest.bucket(Bucket::of(&id)));
                let head = healing.staged.head();
                let is_proven = proves_by_digest(kept.unwrap_or_default(), &id, head, bucket, remote);
                InstallCase::ByDigest { is_proven }
            }
            HealProof::Claim { claim, is_complete } => InstallCase::InClaim {
                is_complete: *is_complete,
                is_tail_lost: false,
                higher: self.record(slot).check_replicate(claim).err().map(|refused| refused.promised),
                is_in_sync: self.replica.is_in_sync(slot, claim),
            },
        };
        loop {
            let damage = self.damage_of(context);
            let head = self.history(context).head();
            let is_lost_after = |size: u64| matches!(damage, Some(Damage::Entries(to)) if to > size);
            let local = match damage {
                Some(Damage::Head) => HeadAtInstall::Unreadable,
                damage => HeadAtInstall::Present { head, is_replaced: damage.is_none() },
            };
            match case.decide(local, healing.staged.head()) {
                InstallDecision::Install => {
                    self.replace_damaged(healing);
                    return HealEvent::Installed;
                }
                InstallDecision::Extend(head) if is_lost_after(healing.staged.size()) => {
                    return HealEvent::Behind(head);
                }
                InstallDecision::Extend(head) => {
                    let newer = self.range(context, healing.staged.size(), head.size.0);
                    healing.staged.0.extend(newer.entries.iter());
                }
                InstallDecision::ForkTail(common) => {
                    // Of what was unreadable before, only what came later can be kept.
                    let is_lost = is_lost_after(common.0);
                    if !is_lost {
                        self.fork_tail(context, common.0, healing.staged.head());
                    }
                    if let InstallCase::InClaim { is_tail_lost, .. } = &mut case {
                        *is_tail_lost = is_lost;
                    }
                }
                InstallDecision::Obsolete => {
                    self.quarantine.remove(&context);
                    return HealEvent::Installed;
                }
                InstallDecision::Refuse(refused) => {
                    self.trace(|_| format!("healing context {context}: {refused}"));
                    return HealEvent::Failed;
                }
            }
        }
    }

    /// Returns the contexts of a context's bucket that this node has, with the tree heads that it can read.
    fn bucket_here(&self, context: Context) -> Vec<(ContextId, Option<TreeHead>)> {
        let bucket = Bucket::of(&self.id(context));
        let all = self.config.contexts.of(self.slot(context)).map(|of| (self.id(of), of));
        let head = |of| Some(self.history(of).head()).filter(|_| self.damage_of(of) != Some(Damage::Head));
        all.filter(|(id, _)| Bucket::of(id) == bucket).map(|(id, of)| (id, head(of))).collect()
    }

    /// Puts a staged history in the place of a damaged one.
    fn replace_damaged(&mut self, healing: &Healing) {
        let (context, slot) = (healing.context, self.slot(healing.context));
        let is_lost = self.damage_of(context) == Some(Damage::Head);
        let is_in_claim = matches!(healing.proof, HealProof::Claim { .. });
        if is_in_claim {
            // No reader may see a history that is being replaced.
            self.hide(slot);
            self.replica.on_history_replaced(slot, &context);
        }
        // A load that is not known to be committed here stays so.
        let known = self.disk.now.loaded.get(&context).filter(|_| !is_lost && !is_in_claim).copied();
        let loaded = healing.loaded.map_or(known, |span| Some(known.map_or(span, |known| known.with(span))));
        let write = Write::Restore(context, healing.staged.0.clone(), loaded);
        if is_lost {
            self.disk.write(write);
            if is_in_claim {
                let heads = self.bucket_here(context).into_iter().filter_map(|(id, head)| Some((id, head?)));
                let digest = self.digests.entry(slot).or_default();
                digest.recount(Bucket::of(self.config.contexts.id(context)), heads);
            }
        } else {
            self.write(context, write);
        }
        self.quarantine.remove(&context);
        self.want_sync();
        self.count(Counted::Restored, 1);
    }
}
