//! After the faults everything must recover by itself, within a bounded time.

use std::collections::BTreeSet;

use ledger_core::{Epoch, node::Member, slot::Slot};

use super::{
    client::Client,
    counts::Counted,
    disk::Store,
    history::History,
    message::Index,
    node::Node,
    run::{ScheduledEvent, Stage, World},
};

/// How long recovery may take, in microseconds.
const HEALING_TIMEOUT: u64 = 120_000_000;
/// How often writers attach for the end: slots may change hands forever where nodes quickly take others for dead.
const SETTLED_TIMES: u32 = 4;

impl World {
    /// Ends all faults and starts all nodes.
    pub(super) fn heal(&mut self) {
        self.note(|| "healing".to_owned());
        (self.stage, self.healing_since) = (Stage::Healing, self.now);
        if self.plan.loses_most {
            self.lose_most();
        }
        self.network.heal();
        (self.network.loss, self.network.duplicates, self.network.late) = (0, 0, 0);
        self.network.cuts = 0;
        for index in 0..self.hosts.len() {
            let clock = self.clock(index);
            self.fill(index, false);
            let host = &mut self.hosts[index];
            // A paused node resumes by itself: messages sent meanwhile must not be overtaken.
            host.slow_until = 0;
            if !host.clock_runs {
                self.clock_stood_still = Some(self.now);
            }
            (host.clock, host.clock_runs) = ((clock, self.now), true);
            if !host.is_gone {
                self.hosts[index].leaving = None;
                self.start(index);
                self.with(index, |node| node.leave(None));
            }
        }
        let acknowledged = self.clients.iter().map(|client| match client {
            Client::Writer(writer) => writer.acknowledged,
            Client::Loader(loader) => loader.acknowledged,
            _ => 0,
        });
        self.acknowledged_before = acknowledged.collect();
        self.after(500_000, ScheduledEvent::IsHealed);
    }

    pub(super) fn is_healed(&mut self) {
        match self.missing() {
            // All members are equal: what they lack now they lack for good, unless a writer has it.
            None if self.stage == Stage::Healing
                || (self.is_loose() && self.settled_times < SETTLED_TIMES) =>
            {
                (self.stage, self.settled) = (Stage::Settled, self.owners());
                self.settled_times += 1;
                for client in &mut self.clients {
                    if let Client::Writer(writer) = client {
                        writer.attach_again();
                    }
                }
                self.after(500_000, ScheduledEvent::IsHealed);
            }
            None => {
                self.counts.add(Counted::LongestHealing, (self.now - self.healing_since) / 1000);
                self.stage = Stage::Over;
                if let Err(violation) = self.check_the_end() {
                    self.violate(violation);
                }
                let put_back = self.clients.iter().map(|client| match client {
                    Client::Writer(writer) => writer.put_back,
                    _ => 0,
                });
                self.counts.add(Counted::PutBack, put_back.sum());
            }
            Some(missing) if self.now > self.healing_since + HEALING_TIMEOUT => {
                self.violate(format!("{} s after the last fault {missing}", HEALING_TIMEOUT / 1_000_000));
            }
            Some(missing) => {
                self.note(|| format!("not healed: {missing}"));
                self.after(500_000, ScheduledEvent::IsHealed);
            }
        }
    }

    /// Returns what is not yet as it should be.
    fn missing(&mut self) -> Option<String> {
        let slots = self.config.contexts.slots.clone();
        if let Some(missing) = slots.iter().find_map(|slot| self.unsettled(*slot)) {
            return Some(missing);
        }
        // Every writer must succeed once more before it stops.
        for (number, client) in self.clients.iter_mut().enumerate() {
            if let Client::Writer(writer) = client
                && writer.acknowledged == self.acknowledged_before[number]
            {
                return Some(format!("writer {number} was not acknowledged anything: {writer:x?}"));
            }
            if let Client::Loader(loader) = client
                && loader.acknowledged == self.acknowledged_before[number]
            {
                return Some(format!("nothing was loaded: {loader:?}"));
            }
        }
        let mut waits = None;
        for (number, client) in self.clients.iter_mut().enumerate() {
            if let Client::Writer(writer) = client {
                writer.finish();
                if !writer.is_idle() {
                    waits = Some(format!("writer {number} waits for {:x?}", writer.outstanding));
                }
            }
            if let Client::Loader(loader) = client
                && !loader.finish()
            {
                waits = Some(format!("a load is not done: {loader:?}"));
            }
        }
        waits.or_else(|| slots.iter().find_map(|slot| self.unequal(*slot))).or_else(|| self.unwatched())
    }

    /// Returns whether availability comes first and a slot changed hands since the writers attached: a node that
    /// heard nothing for a moment may have forked off history.
    fn is_loose(&self) -> bool {
        !self.invariants.is_strict && self.settled != self.owners()
    }

    /// Returns which node owns which slot, in which epoch.
    fn owners(&self) -> Vec<(Index, Slot, Epoch)> {
        let nodes =
            self.hosts.iter().enumerate().filter_map(|(index, host)| Some((index, host.node.as_ref()?)));
        let owned = |(index, node): (Index, &Node)| {
            node.slot_manager.owned().into_iter().map(move |(slot, epoch)| (index, slot, epoch))
        };
        nodes.flat_map(owned).collect()
    }

    /// Returns the only owner of a slot.
    fn owner(&self, slot: Slot) -> Result<Index, String> {
        let owns = |index: &Index| {
            let node = self.hosts[*index].node.as_ref();
            node.is_some_and(|node| node.slot_manager.owned().iter().any(|(of, _)| *of == slot))
        };
        let owners: Vec<Index> = (0..self.hosts.len()).filter(owns).collect();
        match owners[..] {
            [owner] => Ok(owner),
            _ => Err(format!("slot {} is owned by nodes {owners:?}", slot.number())),
        }
    }

    fn members(&self, slot: Slot, owner: Index) -> Vec<Member> {
        let placement = self.hosts[owner].node.as_ref().and_then(|node| node.record(slot).placement);
        placement.map_or_else(Vec::new, |placement| placement.members.members().to_vec())
    }

    fn unsettled(&self, slot: Slot) -> Option<String> {
        let owner = match self.owner(slot) {
            Ok(owner) => owner,
            Err(missing) => return Some(missing),
        };
        let alive: BTreeSet<&Member> =
            self.hosts.iter().filter(|host| host.node.is_some()).map(|host| &host.member).collect();
        let members = self.members(slot, owner);
        let living = members.iter().filter(|member| alive.contains(member)).count();
        let number = slot.number();
        if living < self.plan.settings.replication_factor.min(alive.len()) {
            return Some(format!("slot {number} has {living} living members of {members:?}"));
        }
        let in_step = self.hosts[owner].node.as_ref()?.slot_manager.in_sync(slot)?;
        let lacking = members.iter().find(|member| alive.contains(member) && !in_step.contains(member));
        lacking
            .map(|member| format!("member {} of slot {number} is not in step with node {owner}", member.node))
    }

    /// Checks that all members of a slot hold and show the same.
    fn unequal(&self, slot: Slot) -> Option<String> {
        let owner = self.owner(slot).ok()?;
        let owners = self.hosts[owner].node.as_ref()?;
        for (index, host) in self.hosts.iter().enumerate() {
            for context in self.config.contexts.of(slot) {
                let size = owners.disk.now.histories[context].size();
                let shown = host.node.as_ref().and_then(|node| node.visible_size(context));
                if shown.is_some_and(|shown| shown != size) {
                    return Some(format!(
                        "node {index} shows {shown:?} of the {size} entries of context {context}"
                    ));
                }
            }
        }
        for member in self.members(slot, owner) {
            let Some(node) = self.hosts.iter().find(|host| host.member == member)?.node.as_ref() else {
                continue;
            };
            for context in self.config.contexts.of(slot) {
                let (ours, theirs) = (&owners.disk.now.histories[context], &node.disk.now.histories[context]);
                let durable = node.disk.durable.histories[context].size();
                if let Some(damage) = node.disk.now.damaged.get(&context) {
                    return Some(format!("{damage:?} of context {context} is damaged at {}", member.node));
                }
                if ours != theirs || durable != ours.size() {
                    return Some(format!("{} and node {owner} differ in context {context}", member.node));
                }
                if node.visible_size(context) != Some(ours.size()) {
                    let shown = node.visible_size(context);
                    return Some(format!(
                        "{} shows {shown:?} of the {} entries of context {context}",
                        member.node,
                        ours.size()
                    ));
                }
            }
        }
        None
    }

    /// Checks that watchers have seen everything.
    fn unwatched(&self) -> Option<String> {
        self.clients.iter().find_map(|client| {
            let Client::Watcher(watcher) = client else { return None };
            let owner = self.owner(self.config.contexts.slot(watcher.context)).ok()?;
            let history = &self.hosts[owner].node.as_ref()?.disk.now.histories[watcher.context];
            // A watcher that saw lost entries learns of the loss once the history is as long again.
            let is_ahead = self.changed.contains(&watcher.context) && watcher.seen.size() > history.size();
            let is_behind = watcher.seen != *history && !is_ahead;
            is_behind.then(|| {
                format!(
                    "a watcher of context {} saw {} entries of {}: {watcher:?}",
                    watcher.context,
                    watcher.seen.size(),
                    history.size()
                )
                .chars()
                .take(300)
                .collect()
            })
        })
    }

    fn check_the_end(&self) -> Result<(), String> {
        let mut canonical: Vec<History> = Vec::new();
        for context in 0..self.plan.contexts {
            let owner = self.owner(self.config.contexts.slot(context))?;
            let node = self.hosts[owner].node.as_ref().ok_or("the owner is gone")?;
            let history = node.disk.now.histories[context].clone();
            self.is_whole("the history in the end", owner, context, history.size())?;
            canonical.push(history);
        }
        let disks: Vec<(Member, &Store)> = self
            .hosts
            .iter()
            .filter(|host| !host.is_gone)
            .filter_map(|host| Some((host.member.clone(), &host.node.as_ref()?.disk.now)))
            .collect();
        self.invariants.at_the_end(&canonical, &disks)?;
        for client in &self.clients {
            if let Client::Writer(writer) = client {
                let history = &canonical[writer.context];
                let lost = writer.kept.iter().find(|id| !history.0.iter().any(|entry| entry.id == **id));
                if let Some(lost) = lost.filter(|_| !self.is_loose()) {
                    return Err(format!("the writer of entry {lost:x} did not put it back"));
                }
            }
        }
        Ok(())
    }
}
