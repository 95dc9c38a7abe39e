//! Clients: writers that retry with the same id and put back what is missing, readers, and watchers.

use std::collections::VecDeque;

use ledger_core::replication::WriteQuorum;

use super::{
    history::{Context, Entry, History},
    loader::Loader,
    message::{Append, Index, Request, Response},
    random::Random,
};

/// How long a writer waits for a response, in milliseconds.
const WRITER_TIMEOUT: u64 = 1200;
/// Number of acknowledged entries that a writer keeps, to append them again if they are missing.
const KEPT: usize = 64;

/// A client.
#[derive(Debug)]
pub enum Client {
    Writer(Writer),
    Loader(Loader),
    Reader,
    Watcher(Watcher),
}

/// One engine: appends to a context, a few entries at a time.
#[derive(Debug)]
pub struct Writer {
    pub context: Context,
    target: Index,
    base: u64,
    next: u64,
    window: usize,
    /// Of a thousand appends, how many ask for a quorum other than the configured one.
    other_copies: u64,
    is_attached: bool,
    /// Number of the attach request, and when it times out.
    attach: (u64, u64),
    pub outstanding: VecDeque<Pending>,
    /// Acknowledged entries that may have to be appended again, the newest last.
    pub kept: VecDeque<u64>,
    /// Whether committed entries may be lost as well (availability first).
    keeps_all: bool,
    pub acknowledged: u64,
    pub put_back: u64,
    /// Whether it appends nothing new.
    is_done: bool,
}

#[derive(Debug)]
pub struct Pending {
    pub id: u64,
    needed: WriteQuorum,
    until: u64,
}

/// Watches a context.
#[derive(Debug)]
pub struct Watcher {
    pub context: Context,
    target: Index,
    pub seen: History,
    request: u64,
}

/// A request with its number, and the node that it is sent to.
pub type SentRequest = (Index, u64, Request);

impl Writer {
    pub fn new(
        number: usize,
        context: Context,
        other_copies: u64,
        keeps_all: bool,
        random: &mut Random,
    ) -> Self {
        Self {
            context,
            target: 0,
            base: (number as u64 + 1) << 32,
            next: 0,
            window: random.between(1, 3) as usize,
            other_copies,
            is_attached: false,
            attach: (0, 0),
            outstanding: VecDeque::new(),
            kept: VecDeque::new(),
            keeps_all,
            acknowledged: 0,
            put_back: 0,
            is_done: false,
        }
    }

    /// Acts; called from time to time.
    pub fn wake(
        &mut self,
        now: u64,
        nodes: &[Index],
        random: &mut Random,
        number: &mut u64,
    ) -> Vec<SentRequest> {
        if random.chance(10) {
            // The engine moves to another node.
            self.target = one_of(nodes, random);
            self.attach_again();
        }
        if self.outstanding.front().is_some_and(|pending| pending.until <= now) && self.is_attached {
            self.target = one_of(nodes, random);
            self.attach_again();
            self.attach.1 = now;
        }
        if !self.is_attached {
            if self.attach.1 > now {
                return Vec::new();
            }
            if random.chance(500) {
                self.target = one_of(nodes, random);
            }
            *number += 1;
            self.attach = (*number, now + 600);
            let request =
                Request::Attach { context: self.context, kept: self.kept.iter().copied().collect() };
            return vec![(self.target, *number, request)];
        }
        if self.outstanding.len() < self.window && !self.is_done {
            self.next += 1;
            let needed = if random.chance(self.other_copies) {
                [WriteQuorum::One, WriteQuorum::One, WriteQuorum::Majority, WriteQuorum::All][random.index(4)]
            } else {
                WriteQuorum::Configured
            };
            let pending = Pending { id: self.base + self.next, needed, until: now + WRITER_TIMEOUT };
            let asked = self.append(&pending, number);
            self.outstanding.push_back(pending);
            return vec![asked];
        }
        Vec::new()
    }

    /// Stops appending new entries. Attaches once more, to append again what is missing.
    pub fn finish(&mut self) {
        if !self.is_done {
            self.is_done = true;
            self.attach_again();
        }
    }

    /// Attaches, as an engine does that moves.
    pub fn attach_again(&mut self) {
        self.is_attached = false;
        // A response to an earlier request would report what was missing then.
        self.attach.0 = 0;
    }

    /// Returns whether it waits for nothing.
    pub fn is_idle(&self) -> bool {
        self.is_attached && self.outstanding.is_empty()
    }

    fn append(&self, pending: &Pending, number: &mut u64) -> SentRequest {
        *number += 1;
        let append = Append { context: self.context, id: pending.id, quorum: pending.needed };
        (self.target, *number, Request::Append(append))
    }

    pub fn answered(
        &mut self,
        now: u64,
        request: u64,
        response: Response,
        random: &mut Random,
        number: &mut u64,
    ) -> Vec<SentRequest> {
        match response {
            Response::Appended { id, is_stable } => {
                let known = self.outstanding.len();
                self.outstanding.retain(|pending| pending.id != id);
                if self.outstanding.len() == known {
                    return Vec::new();
                }
                self.acknowledged += 1;
                self.kept.retain(|kept| *kept != id);
                if !is_stable || self.keeps_all {
                    self.kept.push_back(id);
                    if self.kept.len() > KEPT {
                        self.kept.pop_front();
                    }
                }
            }
            Response::Unknown => self.detach(now, None, random),
            Response::NotOwner { hint } => self.detach(now, hint, random),
            Response::Attached { missing } if request == self.attach.0 && !self.is_attached => {
                self.is_attached = true;
                let put_back: Vec<u64> = missing
                    .into_iter()
                    .filter(|id| !self.outstanding.iter().any(|pending| pending.id == *id))
                    .collect();
                self.put_back += put_back.len() as u64;
                for id in put_back.into_iter().rev() {
                    self.outstanding.push_front(Pending { id, needed: WriteQuorum::Configured, until: 0 });
                }
                for pending in &mut self.outstanding {
                    pending.until = now + WRITER_TIMEOUT;
                    if pending.needed == WriteQuorum::All {
                        // A member may be absent for long.
                        pending.needed = WriteQuorum::Configured;
                    }
                }
                return self.outstanding.iter().map(|pending| self.append(pending, number)).collect();
            }
            _ => {}
        }
        Vec::new()
    }

    fn detach(&mut self, now: u64, hint: Option<Index>, random: &mut Random) {
        if self.is_attached || hint.is_some() {
            self.attach_again();
            self.attach.1 = now + random.between(10, 150);
        }
        if let Some(hint) = hint {
            self.target = hint;
        }
    }
}

impl Watcher {
    pub fn new(context: Context) -> Self {
        Self { context, target: 0, seen: History::default(), request: 0 }
    }

    pub fn wake(&mut self, nodes: &[Index], random: &mut Random, number: &mut u64) -> SentRequest {
        if random.chance(100) {
            self.target = one_of(nodes, random);
        }
        *number += 1;
        self.request = *number;
        let (after, root) = (self.seen.size(), self.seen.root());
        (self.target, *number, Request::Watch { context: self.context, after, root })
    }

    /// Returns what is new; an error if the history is another one.
    pub fn answered(
        &mut self,
        request: u64,
        response: Response,
        nodes: &[Index],
        random: &mut Random,
    ) -> Result<Vec<Entry>, &'static str> {
        if request != self.request {
            return Ok(Vec::new());
        }
        self.request = 0;
        match response {
            Response::Watched { entries } => {
                for entry in entries.iter() {
                    if !self.seen.continues(entry) {
                        return Err("a watcher is sent an entry that is not the next one");
                    }
                    self.seen.0.push(*entry);
                }
                Ok(entries.to_vec())
            }
            Response::NotReadable => {
                self.target = one_of(nodes, random);
                Ok(Vec::new())
            }
            Response::Changed => {
                self.seen = History::default();
                Err("a watcher finds that what it saw is no longer there")
            }
            _ => Ok(Vec::new()),
        }
    }
}

/// Picks one of the nodes that a client knows.
pub fn one_of(nodes: &[Index], random: &mut Random) -> Index {
    random.pick(nodes).unwrap_or_default()
}

/// Makes a reader's request.
pub fn read(nodes: &[Index], contexts: usize, random: &mut Random, number: &mut u64) -> SentRequest {
    *number += 1;
    (one_of(nodes, random), *number, Request::Read { context: random.index(contexts) })
}
