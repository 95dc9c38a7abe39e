//! Drives [`ledger_core::healing`]: reads this node's head, asks other nodes, stages what they send, and installs what the
//! machine decides, as `ledger_cluster::catch_up::healing` and `ledger_store::write::lane::heal`.

use std::collections::{BTreeMap, BTreeSet};

use ledger_core::{
    ContextId, Size,
    compare::{CompareRequest, CompareResponse, ListedContext},
    digest::{Bucket, TreeHead},
    healing::{
        HeadAtInstall, HealAttempt, HealEffect, HealEvent, HealOutcome, HealProof, HealSource, InstallCase,
        InstallDecision, LocalHead, check_staged, heal_sources, proves_by_digest,
    },
    loads::LoadSpan,
    ownership::{
        Claim,
        slot_manager::{DamagedSlots, Event, Owner},
    },
};

use super::{
    counts::Counted,
    disk::{Damage, Write},
    history::{Context, Entry, History},
    message::{CatchUpRequest, CatchUpResponse, Message, Range},
    node::{Node, index_of},
    node_output::{NodeOutput, Note, Timer},
};

/// How long another node may take to answer, in milliseconds.
const ANSWER_WITHIN: u64 = 800;

/// An attempt, with what it staged.
#[derive(Debug)]
pub struct Healing {
    context: Context,
    attempt: HealAttempt,
    staged: Staged,
}

/// A history beside the damaged one.
#[derive(Debug)]
struct Staged {
    goal: TreeHead,
    proof: HealProof,
    history: History,
    loaded: Option<LoadSpan>,
}

/// Returns how far a history goes; an empty one too.
fn head_of(history: &History) -> TreeHead {
    TreeHead { size: Size(history.size()), root: history.root() }
}

impl Node {
    /// Tries the contexts that are due, and tells the slot manager of the damage that there is.
    pub(super) fn heal(&mut self) {
        let contexts = std::rc::Rc::clone(&self.config);
        let contexts = &contexts.contexts;
        let damaged: BTreeSet<ContextId> =
            self.quarantine.iter().map(|context| contexts.id(*context).clone()).collect();
        for id in self.heal_schedule.due(self.now, &damaged) {
            let Some(context) = contexts.find(&id) else { continue };
            if self.healing.values().any(|healing| healing.context == context) {
                continue;
            }
            let slot = contexts.slot(context);
            let placement = self.record(slot).placement;
            let members = placement.map_or_else(Vec::new, |placement| placement.members.members().to_vec());
            let owner = match self.slot_manager.owner(slot) {
                Owner::Other(node, _) => Some(node),
                Owner::Me(_) | Owner::Nobody(_) => None,
            };
            let sources = heal_sources(&self.member, &members, owner.as_ref());
            let (attempt, effect) = HealAttempt::begin(id, sources);
            let goal = head_of(&History::default());
            let staged = Staged { goal, proof: HealProof::Head, history: History::default(), loaded: None };
            self.go_on_healing(Healing { context, attempt, staged }, effect);
        }
        let of = |context: &Context| contexts.slot(*context);
        let damage = DamagedSlots {
            damaged: self.quarantine.iter().map(of).collect(),
            impaired: self.heal_schedule.impaired(self.now),
        };
        if damage != self.damage {
            self.damage = damage.clone();
            self.events.push_back(Event::DamageChanged(damage));
        }
    }

    /// Does what an attempt asks for, until it waits for another node or is over.
    fn go_on_healing(&mut self, mut healing: Healing, mut effect: HealEffect) {
        loop {
            let context = healing.context;
            let event = match effect {
                HealEffect::Finished(outcome) => {
                    let is_restored = matches!(outcome, HealOutcome::Restored { .. });
                    self.trace(|_| format!("healing context {context}: {outcome:?}"));
                    let random = (self.random.number() & u64::from(u32::MAX)) as u32;
                    self.heal_schedule.tried(self.now, healing.attempt.context(), is_restored, random);
                    return;
                }
                HealEffect::ReadHead => HealEvent::Head(self.local_head(context)),
                HealEffect::AskBucket(member) => {
                    let id = self.config.contexts.id(context);
                    let buckets = [(self.config.contexts.slot(context), [Bucket::of(id)].into())].into();
                    let ask = CompareRequest::Contexts { buckets, after: None };
                    return self.ask_to_heal(healing, &member, CatchUpRequest::Compare(ask));
                }
                HealEffect::Fetch { source, goal, proof, is_more } => {
                    if !is_more {
                        (healing.staged.history, healing.staged.loaded) = (History::default(), None);
                    }
                    (healing.staged.goal, healing.staged.proof) = (goal, proof);
                    let after = healing.staged.history.size();
                    match source {
                        HealSource::Member(member) => {
                            let to = goal.size.0;
                            let ask = CatchUpRequest::Whole { context, after, to };
                            return self.ask_to_heal(healing, &member, ask);
                        }
                        HealSource::Local => {
                            let is_readable = self.disk.now.damaged.get(&context) == Some(&Damage::Tiles);
                            let range = self.range(context, after, goal.size.0);
                            let loaded = self.disk.now.loaded.get(&context).copied();
                            if is_readable { healing.staged.take(&range, loaded) } else { HealEvent::Failed }
                        }
                    }
                }
                HealEffect::Install => self.install_healed(context, &mut healing.staged),
            };
            effect = healing.attempt.step(event);
        }
    }

    fn ask_to_heal(&mut self, healing: Healing, to: &ledger_core::node::Member, question: CatchUpRequest) {
        let number = self.number();
        self.healing.insert(number, healing);
        let message = Message::Question { number, to: to.clone(), question };
        self.out.push(NodeOutput::Message { to: index_of(&to.node), message });
        self.out.push(NodeOutput::Timer { after: ANSWER_WITHIN, timer: Timer::Question(number) });
    }

    /// Handles an answer to an attempt, `None` if there is none in time. Returns whether an attempt asked for it.
    pub(super) fn heal_answered(&mut self, number: u64, reply: Option<&CatchUpResponse>) -> bool {
        let Some(mut healing) = self.healing.remove(&number) else { return false };
        let event = match reply {
            Some(CatchUpResponse::Whole(range, loaded)) => healing.staged.take(range, *loaded),
            Some(CatchUpResponse::Compare(CompareResponse::Contexts(page))) => {
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
        true
    }

    fn local_head(&mut self, context: Context) -> LocalHead {
        if !self.quarantine.contains(&context) {
            return LocalHead::NotDamaged;
        }
        if self.lacks_head(context) {
            return LocalHead::Unreadable;
        }
        // Other nodes have at least what is committed.
        let history = &self.disk.now.histories[context];
        let size = self.pins.committed(context, history.size());
        match history.root_at(size).filter(|_| size > 0) {
            Some(root) => LocalHead::Committed(TreeHead { size: Size(size), root }),
            None => LocalHead::NothingCommitted,
        }
    }

    /// Decides about a staged history, as the lane does, and installs it.
    fn install_healed(&mut self, context: Context, staged: &mut Staged) -> HealEvent {
        if !self.can_write() {
            return HealEvent::Failed;
        }
        let slot = self.config.contexts.slot(context);
        let mut case = match &staged.proof {
            HealProof::Head => InstallCase::ByHead,
            HealProof::Digest(remote) => {
                InstallCase::ByDigest { is_proven: self.is_proven(context, head_of(&staged.history), remote) }
            }
            HealProof::Claim { claim, is_complete } => InstallCase::InClaim {
                is_complete: *is_complete,
                is_tail_lost: false,
                higher: self.record(slot).check_replicate(claim).err().map(|refused| refused.promised),
                is_in_sync: self.replica.is_in_sync(slot, claim),
            },
        };
        loop {
            let damage = self.disk.now.damaged.get(&context).copied();
            let local = match damage {
                Some(Damage::Head) => HeadAtInstall::Unreadable,
                damage => HeadAtInstall::Present {
                    head: head_of(&self.disk.now.histories[context]),
                    is_replaced: damage.is_none(),
                },
            };
            let decision = case.decide(local, head_of(&staged.history));
            self.trace(|_| format!("healing context {context}, {case:?}: {decision:?}"));
            match decision {
                InstallDecision::Install => {
                    self.replace_damaged(context, staged, local, matches!(case, InstallCase::InClaim { .. }));
                    return HealEvent::Installed;
                }
                InstallDecision::Extend(head) => {
                    let here = staged.history.size();
                    if matches!(damage, Some(Damage::Entries(to)) if to > here) {
                        return HealEvent::Behind(head);
                    }
                    let newer = self.range(context, here, head.size.0);
                    staged.history.0.extend(newer.entries.iter());
                }
                InstallDecision::ForkTail(common) => {
                    let owners = head_of(&staged.history);
                    // Of what was unreadable before, only what came later can be kept.
                    let is_lost = matches!(damage, Some(Damage::Entries(to)) if to > common.0);
                    if !is_lost {
                        self.fork_tail(context, common.0, (owners.size.0, owners.root));
                    }
                    if let InstallCase::InClaim { is_tail_lost, .. } = &mut case {
                        *is_tail_lost = is_lost;
                    }
                }
                InstallDecision::Obsolete => {
                    self.quarantine.remove(&context);
                    return HealEvent::Installed;
                }
                InstallDecision::Refuse(_) => return HealEvent::Failed,
            }
        }
    }

    /// Returns whether the digest that this node kept proves a tree head of a context whose head is lost.
    fn is_proven(&self, context: Context, head: TreeHead, remote: &BTreeMap<ContextId, TreeHead>) -> bool {
        let id = self.config.contexts.id(context);
        let slot = self.config.contexts.slot(context);
        let digest = self.digests.get(&slot).map(|digest| digest.bucket(Bucket::of(id))).unwrap_or_default();
        proves_by_digest(digest, id, head, self.bucket_here(context), remote)
    }

    /// Returns the contexts of a context's bucket that this node has, with the tree heads that it can read.
    fn bucket_here(&self, context: Context) -> Vec<(ContextId, Option<TreeHead>)> {
        let contexts = &self.config.contexts;
        let bucket = Bucket::of(contexts.id(context));
        let of = contexts.of(contexts.slot(context)).filter(|of| Bucket::of(contexts.id(*of)) == bucket);
        of.map(|of| {
            let is_lost = self.disk.now.damaged.get(&of) == Some(&Damage::Head);
            let head = (!is_lost).then(|| head_of(&self.disk.now.histories[of]));
            (contexts.id(of).clone(), head)
        })
        .collect()
    }

    /// Puts a staged history in the place of a damaged one.
    fn replace_damaged(
        &mut self,
        context: Context,
        staged: &Staged,
        local: HeadAtInstall,
        is_in_claim: bool,
    ) {
        let slot = self.config.contexts.slot(context);
        if is_in_claim {
            // No reader may see a history that is being replaced.
            self.hide(slot);
            self.replica.on_history_replaced(slot, &context);
        }
        let entries: Vec<Entry> = staged.history.0.clone();
        self.ids[context] = entries.iter().map(|entry| (entry.id, entry.sequence)).collect();
        self.disk.write(Write::Restore(context, entries, staged.loaded));
        self.quarantine.remove(&context);
        if is_in_claim {
            match local {
                HeadAtInstall::Present { head, .. } => {
                    self.changed(context, Some(head).filter(|head| head.size.0 > 0));
                }
                HeadAtInstall::Absent | HeadAtInstall::Unreadable => self.recount(context),
            }
        }
        self.lost_sizes.remove(&context);
        self.want_sync();
        self.out.push(NodeOutput::Note(Note::Counted(Counted::Restored, 1)));
    }

    /// Counts the bucket of a context anew, whose earlier tree head is unknown.
    fn recount(&mut self, context: Context) {
        let mut digest = ledger_core::digest::Digest::default();
        for (id, head) in self.bucket_here(context) {
            if let Some(head) = head.filter(|head| head.size.0 > 0) {
                digest.add(&id, head);
            }
        }
        let (slot, bucket) =
            (self.config.contexts.slot(context), Bucket::of(self.config.contexts.id(context)));
        self.digests.entry(slot).or_default().set_bucket(bucket, digest);
    }

    /// Replaces a history that cannot be read here by what the slot's owner sent. Returns whether it did.
    pub(super) fn heal_in_claim(
        &mut self,
        context: Context,
        claim: &Claim,
        range: &Range,
        loaded: Option<LoadSpan>,
    ) -> bool {
        if !self.is_damaged(context) {
            return false;
        }
        let goal = TreeHead { size: Size(range.after + range.entries.len() as u64), root: range.root };
        let settings = &self.config.settings;
        let is_complete = settings.write_quorum * 2 > settings.replication_factor;
        let proof = HealProof::Claim { claim: claim.clone(), is_complete };
        let mut staged = Staged { goal, proof, history: History::default(), loaded: None };
        staged.take(range, loaded) == HealEvent::Staged
            && self.install_healed(context, &mut staged) == HealEvent::Installed
    }
}

impl Staged {
    /// Stages what a source sent: one message holds all that was asked for.
    fn take(&mut self, range: &Range, loaded: Option<LoadSpan>) -> HealEvent {
        let after = TreeHead { size: Size(range.after), root: range.after_root };
        let end = TreeHead { size: Size(range.after + range.entries.len() as u64), root: range.root };
        let together = loaded.map(|span| span.to);
        if check_staged(self.goal, head_of(&self.history), after, end, together).is_err() {
            return HealEvent::Failed;
        }
        self.history.0.extend(range.entries.iter());
        if let Some(span) = loaded {
            self.loaded = Some(self.loaded.map_or(span, |before| span.with(before)));
        }
        if end == self.goal { HealEvent::Staged } else { HealEvent::Failed }
    }
}
