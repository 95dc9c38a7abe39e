//! Damage: how a node finds, reports and restores what it cannot read, as in `ledger_store::integrity` and
//! `ledger_cluster::catch_up::healing`.

use ledger_core::{digest::TreeHead, loads::LoadSpan, node::Member, slot::Slot};

use super::{
    broken::DisabledRule,
    disk::Write,
    history::{Context, Entry},
    message::{CatchUpRequest, Message, Range},
    node::{Node, index_of},
    node_output::NodeOutput,
};

impl Node {
    /// Damages what the disk holds of a context. Nobody knows yet.
    pub fn damage(&mut self, context: Context) {
        if self.config.broken == DisabledRule::DamageIsAbsence {
            self.ids[context].clear();
        } else if let Some(extent) = self.disk.now.histories[context].extent() {
            self.counted.insert(context, extent);
        }
        self.disk.damage(context);
    }

    /// Returns whether appends to a context wait for a quorum.
    pub fn waits(&self, context: Context) -> bool {
        self.commits.has_pending(self.config.contexts.slot(context))
    }

    /// Returns whether a context cannot be read; a caller that tries records the damage.
    pub(super) fn is_damaged(&mut self, context: Context) -> bool {
        let is_damaged = self.is_unreadable(context);
        if is_damaged {
            self.quarantine.insert(context);
        }
        is_damaged
    }

    /// Does the same without recording the damage.
    pub fn is_unreadable(&self, context: Context) -> bool {
        self.disk.now.damaged.contains(&context) && self.config.broken != DisabledRule::DamageIsAbsence
    }

    /// Returns whether something of a slot is known to be damaged.
    pub(super) fn has_damage(&self, slot: Slot) -> bool {
        self.quarantine.iter().any(|context| self.config.contexts.slot(*context) == slot)
    }

    /// Returns the size of a context, as far as this node knows.
    pub(super) fn size_here(&self, context: Context) -> u64 {
        match self.counted.get(&context) {
            Some(extent) => extent.size.0,
            None => self.disk.now.histories[context].size(),
        }
    }

    /// Finds damage that nobody met, and requests what must be restored.
    pub(super) fn scrub(&mut self) {
        let damaged: Vec<Context> = self.disk.now.damaged.iter().copied().collect();
        for context in damaged {
            if self.random.chance(30) {
                self.is_damaged(context);
            }
        }
        for context in self.quarantine.clone() {
            // Without a counted tree head nothing here proves which history is right: only the owner's claim does.
            let Some(extent) = self.counted.get(&context).copied() else { continue };
            if !self.random.chance(100) {
                continue;
            }
            let placement = self.record(self.config.contexts.slot(context)).placement;
            let members = placement.map_or_else(Vec::new, |placement| placement.members.members().to_vec());
            let others: Vec<Member> = members.into_iter().filter(|member| *member != self.member).collect();
            let Some(to) = self.random.pick(&others) else { continue };
            let number = self.number();
            self.restoring.insert(number, context);
            let question = CatchUpRequest::Fetch { context, after: 0, to: extent.size.0, is_whole: true };
            let index = index_of(&to.node);
            self.out
                .push(NodeOutput::Message { to: index, message: Message::Question { number, to, question } });
        }
    }

    /// Receives another node's history of a damaged context, and restores it if it is exactly what was counted here.
    pub(super) fn fetched_for_restoring(
        &mut self,
        context: Context,
        fetched: Option<(&Range, Option<LoadSpan>)>,
    ) {
        let Some(counted) = self.counted.get(&context).copied() else { return };
        let Some((range, loaded)) = fetched.filter(|(range, _)| {
            let size = ledger_core::Size(range.entries.len() as u64);
            range.after == 0 && TreeHead { size, root: range.root } == counted
        }) else {
            return;
        };
        if self.quarantine.contains(&context) && self.can_write() {
            self.restore(context, &range.entries, loaded);
        }
    }

    /// Replaces an unreadable history.
    pub(super) fn restore(&mut self, context: Context, entries: &[Entry], loaded: Option<LoadSpan>) {
        let before = self.counted.remove(&context);
        self.disk.write(Write::Restore(context, entries.to_vec(), loaded));
        self.ids[context] = entries.iter().map(|entry| (entry.id, entry.sequence)).collect();
        self.quarantine.remove(&context);
        self.changed(context, before);
        self.want_sync();
        self.trace(|_| format!("restores context {context}"));
    }
}
