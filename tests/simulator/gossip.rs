//! Gossip: every node sends a few others what it knows of all nodes. A node that was not heard for a while counts as
//! dead.

use std::{collections::BTreeMap, rc::Rc};

use ledger_core::{
    Epoch,
    node::Member,
    ownership::slot_manager::{DecommissionMode, Millis, ObservedNode},
    slot::Slot,
};

use super::message::Index;

/// What a node announces about itself.
#[derive(Debug, Clone)]
pub struct Published {
    pub index: Index,
    pub member: Member,
    /// Its start number, and how often it announced something since.
    pub version: (u64, u64),
    pub is_draining: bool,
    pub is_writable: bool,
    pub leaving: Option<DecommissionMode>,
    pub owned: BTreeMap<Slot, Epoch>,
}

#[derive(Debug, Clone)]
struct Heard {
    said: Rc<Published>,
    /// When it was last heard, on this node's clock.
    at: Millis,
}

/// What a node has heard.
#[derive(Debug, Default)]
pub struct Gossip {
    heard: BTreeMap<Index, Heard>,
    /// What the slot manager was given last.
    told: Vec<ObservedNode>,
}

impl Gossip {
    /// Receives what another node knows.
    pub fn hear(&mut self, now: Millis, all: &[Rc<Published>]) {
        for said in all {
            match self.heard.get_mut(&said.index) {
                Some(heard) if heard.said.version >= said.version => {}
                Some(heard) => *heard = Heard { said: Rc::clone(said), at: now },
                None => _ = self.heard.insert(said.index, Heard { said: Rc::clone(said), at: now }),
            }
        }
    }

    /// Returns everything that it knows.
    pub fn all(&self) -> Vec<Rc<Published>> {
        self.heard.values().map(|heard| Rc::clone(&heard.said)).collect()
    }

    pub fn known(&self) -> impl Iterator<Item = Index> + '_ {
        self.heard.keys().copied()
    }

    /// Returns the living nodes and their data directories.
    pub fn alive(&self, now: Millis, within: Millis) -> Vec<(Index, Member)> {
        let alive = self.heard.values().filter(|heard| heard.at + within > now);
        alive.map(|heard| (heard.said.index, heard.said.member.clone())).collect()
    }

    /// Returns the observed nodes, if they changed.
    pub fn changed(&mut self, now: Millis, within: Millis) -> Option<Vec<ObservedNode>> {
        let seen = self.heard.values().map(|Heard { said, at }| ObservedNode {
            member: said.member.clone(),
            zone: String::new(),
            is_alive: at + within > now,
            is_draining: said.is_draining,
            is_writable: said.is_writable,
            decommission: said.leaving,
            owned: said.owned.clone(),
        });
        let seen: Vec<ObservedNode> = seen.collect();
        if seen == self.told {
            return None;
        }
        self.told.clone_from(&seen);
        Some(seen)
    }
}
