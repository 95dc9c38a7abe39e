//! After the faults everything must recover by itself, within a bounded time.

use super::{
    client::Client,
    plan::Link,
    prelude::*,
    run::{Checked, Stage},
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
        self.network.link = Link::default();
        self.reads_from.clear();
        for index in 0..self.hosts.len() {
            self.fill(index, false);
            self.hosts[index].disk_mut().fails = false;
            // A paused node resumes by itself: messages sent meanwhile must not be overtaken.
            self.hosts[index].slow_until = 0;
            self.set_clock_running(index, true);
            if !self.hosts[index].is_gone {
                self.hosts[index].leaving = None;
                self.start(index);
                self.with(index, |node| node.leave(None));
            }
        }
        self.acknowledged_before = self.clients.iter().map(Client::acknowledged).collect();
        self.after(500_000, Self::check_healing);
    }

    fn check_healing(&mut self) {
        let missing = self.missing();
        if let Err(missing) = missing {
            if self.now > self.healing_since + HEALING_TIMEOUT {
                return self
                    .violate(format!("{} s after the last fault {missing}", HEALING_TIMEOUT / 1_000_000));
            }
            self.note(|| format!("not healed: {missing}"));
        } else if self.stage == Stage::Healing || (self.is_loose() && self.settled_times < SETTLED_TIMES) {
            // All members are equal: what they lack now they lack for good, unless a writer has it.
            (self.stage, self.settled) = (Stage::Settled, self.owners());
            self.settled_times += 1;
            self.clients.iter_mut().for_each(Client::attach_again);
        } else {
            self.counts.add(Counted::LongestHealing, (self.now - self.healing_since) / 1000);
            self.stage = Stage::Over;
            let checked = self.check_the_end();
            self.check(checked);
            let put_back = self.clients.iter().filter_map(Client::writer).map(|writer| writer.put_back);
            return self.counts.add(Counted::PutBack, put_back.sum());
        }
        self.after(500_000, Self::check_healing);
    }

    /// Checks that everything is as it should be.
    fn missing(&mut self) -> Checked {
        let slots = self.config.contexts.slots.clone();
        slots.iter().try_for_each(|slot| self.is_settled(*slot))?;
        // Every writer must succeed once more before it stops.
        let before = self.clients.iter().zip(&self.acknowledged_before);
        if let Some((client, _)) = before
            .into_iter()
            .find(|(client, before)| client.acknowledged().is_some() && client.acknowledged() == **before)
        {
            return Err(format!("a client was not acknowledged anything: {client:x?}"));
        }
        let is_done: Vec<bool> = self.clients.iter_mut().map(Client::finish).collect();
        if let Some(waits) = is_done.iter().position(|is_done| !is_done) {
            return Err(format!("client {waits} waits: {:x?}", self.clients[waits]));
        }
        slots.iter().try_for_each(|slot| self.is_equal(*slot))?;
        self.clients.iter().try_for_each(|client| self.has_watched(client))
    }

    /// Returns whether availability comes first and a slot changed hands since the writers attached: a node that
    /// heard nothing for a moment may have forked off history.
    fn is_loose(&self) -> bool {
        !self.plan.is_strict() && self.settled != self.owners()
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = (Index, &Node)> {
        self.hosts.iter().enumerate().filter_map(|(index, host)| Some((index, host.node.as_ref()?)))
    }

    /// Returns which node owns which slot, in which epoch.
    fn owners(&self) -> Vec<(Index, Slot, Epoch)> {
        let owned = |(index, node): (Index, &Node)| {
            node.slot_manager.owned().into_iter().map(move |(slot, epoch)| (index, slot, epoch))
        };
        self.nodes().flat_map(owned).collect()
    }

    /// Returns the only owner of a slot.
    fn owner(&self, slot: Slot) -> Result<&Node, String> {
        let owns = |node: &Node| node.slot_manager.owned().iter().any(|(of, _)| *of == slot);
        let owners: Vec<&Node> = self.nodes().map(|(_, node)| node).filter(|node| owns(node)).collect();
        let numbers = || owners.iter().map(|node| node.index).collect::<Vec<_>>();
        <[&Node; 1]>::try_from(&owners[..])
            .map(|[owner]| owner)
            .map_err(|_| format!("slot {} is owned by nodes {:?}", slot.number(), numbers()))
    }

    fn is_settled(&self, slot: Slot) -> Checked {
        let owner = self.owner(slot)?;
        let alive: BTreeSet<&Member> = self.nodes().map(|(_, node)| &node.member).collect();
        let members = members(owner, slot);
        let living: Vec<&Member> = members.iter().filter(|member| alive.contains(member)).collect();
        if living.len() < self.plan.settings.replication_factor.min(alive.len()) {
            return Err(format!("slot {} has only {living:?} of {members:?}", slot.number()));
        }
        // An owner that is about to hand over counts nobody.
        let Some(in_sync) = owner.slot_manager.in_sync(slot) else { return Ok(()) };
        match living.iter().find(|member| !in_sync.contains(member)) {
            Some(lacks) => Err(format!("{} is not in sync in slot {}", lacks.node, slot.number())),
            None => Ok(()),
        }
    }

    /// Checks that all members of a slot hold and show the same.
    fn is_equal(&self, slot: Slot) -> Checked {
        let owner = self.owner(slot)?;
        let members = members(owner, slot);
        for (index, node) in self.nodes() {
            for context in self.config.contexts.of(slot) {
                let (history, disk) = (&owner.disk.now.histories[context], &node.disk);
                let is_member = members.contains(&node.member);
                let is_equal = disk.now.histories[context] == *history
                    && disk.durable.histories[context].size() == history.size()
                    && !disk.now.damaged.contains_key(&context);
                if is_member && !is_equal {
                    return Err(format!(
                        "n{index} and the owner n{} differ in context {context}",
                        owner.index
                    ));
                }
                let shown = node.visible_size(context);
                if shown != Some(history.size()) && (is_member || shown.is_some()) {
                    let size = history.size();
                    return Err(format!(
                        "n{index} shows {shown:?} of the {size} entries of context {context}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Checks that a watcher has seen everything.
    fn has_watched(&self, client: &Client) -> Checked {
        let Client::Watcher(watcher) = client else { return Ok(()) };
        let owner = self.owner(self.config.contexts.slot(watcher.context))?;
        let (history, seen) = (&owner.disk.now.histories[watcher.context], &watcher.seen);
        // A watcher that saw lost entries learns of the loss once the history is as long again.
        let is_ahead = self.changed.contains(&watcher.context) && seen.size() > history.size();
        if seen == history || is_ahead {
            return Ok(());
        }
        let (context, seen, size) = (watcher.context, seen.size(), history.size());
        Err(format!("a watcher of context {context} saw {seen} entries of {size}"))
    }

    fn check_the_end(&self) -> Checked {
        let mut canonical: Vec<History> = Vec::new();
        for context in 0..self.plan.contexts {
            let owner = self.owner(self.config.contexts.slot(context))?;
            let history = owner.disk.now.histories[context].clone();
            self.is_whole("the history in the end", owner.index, context, history.size())?;
            canonical.push(history);
        }
        let disks: Vec<(Member, &Store)> =
            self.nodes().map(|(_, node)| (node.member.clone(), &node.disk.now)).collect();
        self.invariants.at_the_end(&canonical, &disks)?;
        for writer in self.clients.iter().filter_map(Client::writer) {
            let history = &canonical[writer.context];
            let lost = writer.kept.iter().find(|id| !history.0.iter().any(|entry| entry.id == **id));
            if let Some(lost) = lost.filter(|_| !self.is_loose()) {
                return Err(format!("the writer of entry {lost:x} did not put it back"));
            }
        }
        Ok(())
    }
}

fn members(owner: &Node, slot: Slot) -> Vec<Member> {
    let placement = owner.record(slot).placement;
    placement.map_or_else(Vec::new, |placement| placement.members.members().to_vec())
}
