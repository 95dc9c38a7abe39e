//! The streams of a node, and the messages that other nodes send it.

use ledger_core::replication::replica::ReplicaStream;

use super::prelude::*;

/// A stream to another node.
#[derive(Debug)]
pub struct Outgoing {
    pub stream: u64,
    pub member: Member,
    pub is_up: bool,
    pub since: Millis,
}

/// A stream that another node opened.
#[derive(Debug)]
pub struct Incoming {
    pub stream: u64,
    pub from: Member,
    /// What came on it.
    pub received: ReplicaStream,
}

impl Node {
    /// Opens streams to the living nodes.
    pub(super) fn connect(&mut self) {
        for (to, member) in self.gossip.alive(self.now, self.config.dead_after) {
            if to == self.index {
                continue;
            }
            if let Some(known) = self.outgoing.get(&to) {
                let is_late = self.now >= known.since + 1000;
                if known.member == member && (known.is_up || !is_late) {
                    continue;
                }
            }
            self.close(to);
            let stream = self.number();
            self.send(to, Message::Hello { stream, from: self.member.clone(), to: member.clone() });
            self.outgoing.insert(to, Outgoing { stream, member, is_up: false, since: self.now });
        }
    }

    /// Returns the stream to a member, if it is there.
    pub(super) fn stream_to(&self, to: &Member) -> Option<u64> {
        let out = self.outgoing.get(&index_of(&to.node));
        out.filter(|out| out.is_up && out.member == *to).map(|out| out.stream)
    }

    pub(super) fn send_down(&mut self, stream: u64, body: OwnerMessage) {
        self.out.push(NodeOutput::Down { stream, body });
    }

    /// Closes the stream to a node, because it broke.
    pub(super) fn close(&mut self, to: Index) {
        if let Some(gone) = self.outgoing.remove(&to).filter(|gone| gone.is_up) {
            self.commits.peer_disconnected(peer_of(to));
            self.events.push_back(Event::PeerDisconnected(gone.member));
        }
    }

    pub fn stream_lost(&mut self, stream: u64) {
        if let Some((to, _)) = self.outgoing.iter().find(|(_, outgoing)| outgoing.stream == stream) {
            self.close(*to);
        }
    }

    /// Breaks a stream that another node opened.
    pub(super) fn break_stream(&mut self, from: Index) {
        if let Some(Incoming { stream, .. }) = self.incoming.remove(&from) {
            self.out.push(NodeOutput::Break { stream });
        }
    }

    pub fn message(&mut self, from: Index, message: Message) {
        match message {
            Message::Gossip { cluster, said_by, all } => {
                if self.is_ours(cluster, said_by) {
                    self.gossip.hear(self.now, &all);
                }
            }
            Message::Hello { stream, from: member, to } => {
                let is_new = self.incoming.get(&from).is_none_or(|known| known.stream < stream);
                // A node whose disk takes no writes takes no stream.
                if to == self.member && self.is_writable && is_new {
                    // No slot of that node is in sync until the node confirms it on this stream.
                    self.replica.on_stream_started(&member.node);
                    let received = ReplicaStream::begin(member.clone(), self.now);
                    self.incoming.insert(from, Incoming { stream, from: member, received });
                    self.send(from, Message::Welcome { stream });
                }
            }
            Message::Welcome { stream } => {
                let known = self.outgoing.get_mut(&from).filter(|known| known.stream == stream);
                if let Some(outgoing) = known.filter(|known| !known.is_up) {
                    outgoing.is_up = true;
                    self.events.push_back(Event::PeerConnected(outgoing.member.clone()));
                }
            }
            Message::Ask { from, to, slot, claim, ask } => {
                if to == self.member {
                    self.asked(&from, slot, claim, ask);
                }
            }
            Message::Answer { from, slot, claim, answer } => {
                self.events.push_back(Event::Response { from, slot, claim, answer });
            }
            Message::Question { number, to, question } => {
                if to == self.member {
                    let reply = self.reply(question);
                    self.send(from, Message::Reply { number, reply });
                }
            }
            Message::Reply { number, reply } => self.answered(number, Some(reply)),
        }
    }

    /// Handles a message from the replica at the other end of a stream.
    pub fn up(&mut self, from: Index, stream: u64, body: ReplicaMessage) {
        let known = self.outgoing.get(&from).filter(|known| known.stream == stream && known.is_up);
        let Some(member) = known.map(|known| known.member.clone()) else { return };
        match body {
            ReplicaMessage::Durable(number) => {
                let peer = peer_of(from);
                let known = self.step(|commits, effects| commits.advance_durable_at(peer, number, effects));
                assert_eq!(known, Ok(()), "a replica acknowledges what it was never sent");
            }
            ReplicaMessage::SyncOfferAnswered { slot, claim, outcome } => {
                let outcome = self.commits.record_offer_answer(slot, &claim, peer_of(from), outcome);
                self.events.push_back(Event::SyncOfferAnswered { from: member, slot, claim, outcome });
            }
            ReplicaMessage::PartRefused(refused) => {
                if self.config.broken != DisabledRule::RefusalUnheard {
                    self.commits.remove_peer(refused.slot, &refused.claim, peer_of(from));
                    self.events.push_back(Event::PartRefused { from: member, refused });
                }
            }
            ReplicaMessage::LeaseRenewed(refused) => {
                self.events.push_back(Event::LeaseRenewalAnswered { from: member, refused });
            }
        }
    }
}
