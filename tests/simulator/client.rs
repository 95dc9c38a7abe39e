//! Clients: writers that retry with the same id and put back what is missing, one that loads histories, a reader, and
//! watchers.

use ledger_core::replication::WriteQuorum;

use super::{
    message::{Append, Request, Response},
    plan::RunPlan,
    prelude::*,
};

/// How long a writer waits for a response, in milliseconds.
const WRITER_TIMEOUT: u64 = 1200;
/// How long it waits for the response to its attaching.
const ATTACH_TIMEOUT: u64 = 600;
/// Number of acknowledged entries that a writer keeps, to append them again if they are missing.
const KEPT: usize = 64;
/// First id of loaded entries: no writer uses it or a higher one. They were written in this epoch, elsewhere.
const LOADED: (u64, Epoch) = (1 << 60, Epoch(1));

/// A client.
#[derive(Debug)]
pub enum Client {
    Writer(Writer),
    Loader(Loader),
    Reader,
    Watcher(Watcher),
}

/// What a client has to act with: it knows the nodes, and sends them numbered requests.
pub struct Sdk<'a> {
    /// In milliseconds.
    pub now: u64,
    pub nodes: Vec<Index>,
    pub random: &'a mut Random,
    pub next_request: &'a mut u64,
    pub sent: Vec<(Index, u64, Request)>,
}

impl Sdk<'_> {
    fn any_node(&mut self) -> Index {
        self.random.pick(&self.nodes).unwrap_or_default()
    }

    /// Sends a request. Returns its number.
    fn send(&mut self, to: Index, request: Request) -> u64 {
        *self.next_request += 1;
        self.sent.push((to, *self.next_request, request));
        *self.next_request
    }
}

/// What a client makes of a response: what counts, or what must not happen.
type Outcome = Result<(Counted, u64), &'static str>;

impl Client {
    /// Creates the clients of a run.
    pub fn all(plan: &RunPlan, random: &mut Random) -> Vec<Self> {
        let writers = (0..plan.writers).map(|number| Writer {
            context: number % plan.loaded.unwrap_or(plan.contexts),
            base: (number as u64 + 1) << 32,
            window: random.between(1, 3) as usize,
            other_copies: plan.other_copies,
            keeps_all: !plan.is_strict(),
            ..Writer::default()
        });
        let mut clients: Vec<Self> = writers.map(Self::Writer).collect();
        let watched = (0..plan.watchers).map(|_| random.index(plan.contexts));
        clients.extend(watched.map(|context| Self::Watcher(Watcher { context, ..Watcher::default() })));
        clients.extend(plan.loaded.map(|context| Self::Loader(Loader { context, ..Loader::default() })));
        clients.push(Self::Reader);
        clients
    }

    /// Acts; called from time to time.
    pub fn wake(&mut self, sdk: &mut Sdk<'_>, contexts: usize) {
        match self {
            Self::Writer(writer) => writer.wake(sdk),
            Self::Loader(loader) => loader.wake(sdk),
            Self::Watcher(watcher) => watcher.wake(sdk),
            Self::Reader => {
                let to = sdk.any_node();
                let context = sdk.random.index(contexts);
                sdk.send(to, Request::Read { context });
            }
        }
    }

    pub fn on_response(&mut self, sdk: &mut Sdk<'_>, request: u64, response: Response) -> Outcome {
        match self {
            Self::Writer(writer) => Ok(writer.on_response(sdk, request, response)),
            Self::Loader(loader) => loader.on_response(sdk, request, &response),
            Self::Watcher(watcher) => watcher.on_response(sdk, request, response),
            Self::Reader => Ok((Counted::Read, matches!(response, Response::Read { .. }).into())),
        }
    }

    pub fn writer(&self) -> Option<&Writer> {
        if let Self::Writer(writer) = self { Some(writer) } else { None }
    }

    /// Returns how often it was acknowledged something, if it writes.
    pub fn acknowledged(&self) -> Option<u64> {
        match self {
            Self::Writer(writer) => Some(writer.acknowledged),
            Self::Loader(loader) => Some(loader.acknowledged),
            Self::Reader | Self::Watcher(_) => None,
        }
    }

    /// Lets a writer give up what it waits for, and go on at another node.
    pub fn give_up(&mut self, sdk: &mut Sdk<'_>) {
        if let Self::Writer(writer) = self {
            writer.give_up(sdk);
        }
    }

    /// Lets a writer attach once more, to append again what is missing.
    pub fn attach_again(&mut self) {
        if let Self::Writer(writer) = self {
            writer.attach_again();
        }
    }

    /// Stops writing anything new. Returns whether it waits for nothing.
    pub fn finish(&mut self) -> bool {
        match self {
            Self::Writer(writer) => {
                if !std::mem::replace(&mut writer.is_done, true) {
                    writer.attach_again();
                }
                writer.is_attached && writer.outstanding.is_empty()
            }
            Self::Loader(loader) => {
                loader.is_done = true;
                !loader.is_under_way
            }
            Self::Reader | Self::Watcher(_) => true,
        }
    }
}

/// One engine: appends to a context, a few entries at a time.
#[derive(Debug, Default)]
pub struct Writer {
    pub context: Context,
    /// The id before its first.
    base: u64,
    window: usize,
    /// Of a thousand appends, how many ask for a quorum other than the configured one.
    other_copies: u64,
    /// Whether committed entries may be lost as well (availability first).
    keeps_all: bool,
    target: Index,
    next: u64,
    is_attached: bool,
    /// Number of the attach request, and when it times out.
    attach: (u64, u64),
    outstanding: VecDeque<Pending>,
    /// Acknowledged entries that may have to be appended again, the newest last.
    pub kept: VecDeque<u64>,
    acknowledged: u64,
    pub put_back: u64,
    /// Whether it appends nothing new.
    is_done: bool,
}

#[derive(Debug)]
struct Pending {
    id: u64,
    quorum: WriteQuorum,
    until: u64,
}

impl Writer {
    fn wake(&mut self, sdk: &mut Sdk<'_>) {
        if sdk.random.chance(10) {
            // The engine moves to another node.
            self.give_up(sdk);
        }
        if self.is_attached && self.outstanding.front().is_some_and(|pending| pending.until <= sdk.now) {
            self.give_up(sdk);
            self.attach.1 = sdk.now;
        }
        if !self.is_attached {
            if self.attach.1 > sdk.now {
                return;
            }
            if sdk.random.chance(500) {
                self.target = sdk.any_node();
            }
            let kept = self.kept.iter().copied().collect();
            let number = sdk.send(self.target, Request::Attach { context: self.context, kept });
            self.attach = (number, sdk.now + ATTACH_TIMEOUT);
        } else if self.outstanding.len() < self.window && !self.is_done {
            self.next += 1;
            let quorum = if sdk.random.chance(self.other_copies) {
                [WriteQuorum::One, WriteQuorum::One, WriteQuorum::Majority, WriteQuorum::All]
                    [sdk.random.index(4)]
            } else {
                WriteQuorum::Configured
            };
            let pending = Pending { id: self.base + self.next, quorum, until: sdk.now + WRITER_TIMEOUT };
            self.append(&pending, sdk);
            self.outstanding.push_back(pending);
        }
    }

    fn give_up(&mut self, sdk: &mut Sdk<'_>) {
        sdk.send(self.target, Request::Cancel { up_to: *sdk.next_request });
        self.target = sdk.any_node();
        self.attach_again();
    }

    /// Attaches, as an engine does that moves.
    fn attach_again(&mut self) {
        self.is_attached = false;
        // A response to an earlier request would report what was missing then.
        self.attach.0 = 0;
    }

    fn append(&self, pending: &Pending, sdk: &mut Sdk<'_>) {
        let append = Append { context: self.context, id: pending.id, quorum: pending.quorum };
        sdk.send(self.target, Request::Append(append));
    }

    fn on_response(&mut self, sdk: &mut Sdk<'_>, request: u64, response: Response) -> (Counted, u64) {
        let mut attached = 0;
        match response {
            Response::Appended { id, is_stable } => {
                let known = self.outstanding.len();
                self.outstanding.retain(|pending| pending.id != id);
                if self.outstanding.len() < known {
                    self.acknowledged += 1;
                    self.kept.retain(|kept| *kept != id);
                    self.kept.extend(Some(id).filter(|_| !is_stable || self.keeps_all));
                    self.kept.drain(..self.kept.len().saturating_sub(KEPT));
                }
            }
            Response::Unknown => self.detach(sdk, None),
            Response::NotOwner { hint } => self.detach(sdk, hint),
            Response::Attached { missing } if request == self.attach.0 && !self.is_attached => {
                self.is_attached = true;
                attached = 1;
                let mut outstanding = std::mem::take(&mut self.outstanding);
                let is_known = |id: &u64| outstanding.iter().any(|pending| pending.id == *id);
                let missing: Vec<u64> = missing.into_iter().filter(|id| !is_known(id)).collect();
                self.put_back += missing.len() as u64;
                for id in missing.into_iter().rev() {
                    outstanding.push_front(Pending { id, quorum: WriteQuorum::Configured, until: 0 });
                }
                for pending in &mut outstanding {
                    pending.until = sdk.now + WRITER_TIMEOUT;
                    if pending.quorum == WriteQuorum::All {
                        // A member may be absent for long.
                        pending.quorum = WriteQuorum::Configured;
                    }
                    self.append(pending, sdk);
                }
                self.outstanding = outstanding;
            }
            _ => {}
        }
        (Counted::Attached, attached)
    }

    fn detach(&mut self, sdk: &mut Sdk<'_>, hint: Option<Index>) {
        if self.is_attached || hint.is_some() {
            self.attach_again();
            self.attach.1 = sdk.now + sdk.random.between(10, 150);
        }
        self.target = hint.unwrap_or(self.target);
    }
}

/// Watches a context.
#[derive(Debug, Default)]
pub struct Watcher {
    pub context: Context,
    target: Index,
    pub seen: History,
    request: u64,
}

impl Watcher {
    fn wake(&mut self, sdk: &mut Sdk<'_>) {
        if sdk.random.chance(100) {
            self.target = sdk.any_node();
        }
        let (after, root) = (self.seen.size(), self.seen.root());
        self.request = sdk.send(self.target, Request::Watch { context: self.context, after, root });
    }

    fn on_response(&mut self, sdk: &mut Sdk<'_>, request: u64, response: Response) -> Outcome {
        if request != self.request {
            return Ok((Counted::Watched, 0));
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
                return Ok((Counted::Watched, entries.len() as u64));
            }
            Response::NotReadable => self.target = sdk.any_node(),
            Response::Changed => {
                self.seen = History::default();
                return Ok((Counted::StartedOver, 1));
            }
            _ => {}
        }
        Ok((Counted::Watched, 0))
    }
}

/// Loads into a context that nobody else writes to. Each load continues where the previous one ended, and is repeated
/// until it is acknowledged.
#[derive(Debug, Default)]
pub struct Loader {
    context: Context,
    target: Index,
    snapshot: Rc<History>,
    is_large: bool,
    /// Number of the pending request, and when it times out.
    waits: Option<(u64, u64)>,
    /// Whether the current load is not known to be installed yet.
    is_under_way: bool,
    /// When the next load begins.
    next: u64,
    /// The sizes that the context may have, beside none.
    sizes: Vec<u64>,
    acknowledged: u64,
    is_done: bool,
}

impl Loader {
    /// Returns whether a history of this size contains each load as a whole or not at all.
    pub fn is_whole(&self, context: Context, size: u64) -> bool {
        context != self.context || size == 0 || self.sizes.contains(&size)
    }

    fn wake(&mut self, sdk: &mut Sdk<'_>) {
        let is_waiting = self.waits.is_some_and(|(_, until)| until > sdk.now) || sdk.now < self.next;
        if is_waiting || (self.is_done && !self.is_under_way) {
            return;
        }
        if !self.is_under_way {
            let snapshot = Rc::make_mut(&mut self.snapshot);
            for _ in 0..sdk.random.between(2, 80) {
                let entry = snapshot.next(LOADED.1, LOADED.0 + snapshot.size());
                snapshot.0.push(entry);
            }
            self.sizes.push(snapshot.size());
            (self.is_under_way, self.is_large) = (true, sdk.random.chance(600));
        }
        if self.waits.is_some() || sdk.random.chance(300) {
            self.target = sdk.any_node();
        }
        let (context, snapshot, is_large) = (self.context, Rc::clone(&self.snapshot), self.is_large);
        let number = sdk.send(self.target, Request::Load { context, snapshot, is_large });
        // This is often before the load is committed: then the loader sends the request again, to the next node or
        // the same one.
        self.waits = Some((number, sdk.now + sdk.random.between(100, 6000)));
    }

    fn on_response(&mut self, sdk: &mut Sdk<'_>, request: u64, response: &Response) -> Outcome {
        let mut loaded = 0;
        if self.waits.is_some_and(|(number, _)| number == request) {
            self.waits = None;
            let pause = match response {
                Response::Loaded { size } if *size < self.snapshot.size() => {
                    return Err("a load is done before its end");
                }
                Response::Loaded { .. } => {
                    (self.is_under_way, loaded) = (false, 1);
                    self.acknowledged += 1;
                    5000
                }
                Response::Differs => {
                    return Err("what was loaded before is not the beginning of what is there");
                }
                Response::NotOwner { hint: Some(hint) } => {
                    self.target = *hint;
                    200
                }
                _ => 500,
            };
            self.next = sdk.now + sdk.random.between(1, pause);
        }
        Ok((Counted::Loaded, loaded))
    }
}
