//! A client that loads histories. Each load continues where the previous one ended, and is repeated until it is
//! acknowledged.

use std::rc::Rc;

use ledger_core::Epoch;

use super::{
    client::{SentRequest, one_of},
    history::{Context, History},
    message::{Index, Request, Response},
    random::Random,
};

/// First id of loaded entries: no writer uses it or a higher one.
const IDS: u64 = 1 << 60;
/// The epoch in which they were originally written, elsewhere.
const EPOCH: Epoch = Epoch(1);

/// Loads into a context that nobody else writes to.
#[derive(Debug)]
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
    /// The sizes that the context may have.
    sizes: Vec<u64>,
    pub acknowledged: u64,
    is_done: bool,
}

impl Loader {
    pub fn new(context: Context) -> Self {
        Self {
            context,
            target: 0,
            snapshot: Rc::default(),
            is_large: false,
            waits: None,
            is_under_way: false,
            next: 0,
            sizes: vec![0],
            acknowledged: 0,
            is_done: false,
        }
    }

    /// Returns whether a history of this size contains each load as a whole or not at all.
    pub fn is_whole(&self, context: Context, size: u64) -> bool {
        context != self.context || self.sizes.contains(&size)
    }

    /// Acts; called from time to time.
    pub fn wake(
        &mut self,
        now: u64,
        nodes: &[Index],
        random: &mut Random,
        number: &mut u64,
    ) -> Option<SentRequest> {
        if self.waits.is_some_and(|(_, until)| until > now) || now < self.next {
            return None;
        }
        if !self.is_under_way {
            if self.is_done {
                return None;
            }
            let mut snapshot = (*self.snapshot).clone();
            for _ in 0..random.between(2, 80) {
                let entry = snapshot.next(EPOCH, IDS + snapshot.size());
                snapshot.0.push(entry);
            }
            self.sizes.push(snapshot.size());
            self.snapshot = Rc::new(snapshot);
            (self.is_under_way, self.is_large) = (true, random.chance(600));
        }
        if self.waits.is_some() || random.chance(300) {
            self.target = one_of(nodes, random);
        }
        *number += 1;
        // This is often before the load is committed: then the loader sends the request again, to the next node or
        // the same one.
        self.waits = Some((*number, now + random.between(100, 6000)));
        let (context, snapshot, is_large) = (self.context, Rc::clone(&self.snapshot), self.is_large);
        Some((self.target, *number, Request::Load { context, snapshot, is_large }))
    }

    /// Returns whether the load is done; an error if it is refused.
    pub fn answered(
        &mut self,
        now: u64,
        request: u64,
        response: &Response,
        random: &mut Random,
    ) -> Result<bool, &'static str> {
        if self.waits.is_none_or(|(asked, _)| asked != request) {
            return Ok(false);
        }
        self.waits = None;
        match response {
            Response::Loaded { size } if *size < self.snapshot.size() => Err("a load is done before its end"),
            Response::Loaded { .. } => {
                self.is_under_way = false;
                self.acknowledged += 1;
                self.next = now + random.between(1, 5000);
                Ok(true)
            }
            Response::Differs => Err("what was loaded before is not the beginning of what is there"),
            Response::NotOwner { hint: Some(hint) } => {
                self.target = *hint;
                self.next = now + random.between(1, 200);
                Ok(false)
            }
            _ => {
                self.next = now + random.between(1, 500);
                Ok(false)
            }
        }
    }

    /// Stops loading new histories. Returns whether no load is in progress.
    pub fn finish(&mut self) -> bool {
        self.is_done = true;
        !self.is_under_way
    }
}
