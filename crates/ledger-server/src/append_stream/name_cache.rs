//! The names of contexts that one stream has used.

use std::{collections::HashMap, sync::Arc};

use ledger_core::ContextId;
use ledger_store::budget::{Permit, Share};

use crate::{grpc::status::Refusal, limits, node::writers::WriterCheck};

/// Names: checked once, then shared. They begin anew when they take too many bytes: those
/// that come with the call, or, while others do not need it, a part of what is for calls.
#[derive(Debug)]
pub(super) struct NameCache {
    numbers: HashMap<Box<str>, usize>,
    named: Vec<CachedName>,
    calls: Arc<Share>,
    bytes: usize,
    /// For what is beyond [`limits::NAMES_BYTES`].
    more: Option<Permit>,
}

/// A context that a stream has used.
#[derive(Debug)]
pub(super) struct CachedName {
    /// The checked name.
    pub(super) context: ContextId,
    /// What the stream knows of who writes it.
    pub(super) writer: WriterCheck,
}

impl NameCache {
    /// None yet, of a call on a node with this share for calls.
    pub(super) fn new(calls: Arc<Share>) -> Self {
        Self { numbers: HashMap::new(), named: Vec::new(), calls, bytes: 0, more: None }
    }

    /// The context of a name.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`: it is no name of a context.
    pub(super) fn get(&mut self, text: &str) -> Result<&mut CachedName, Refusal> {
        let number = match self.numbers.get(text) {
            Some(number) => *number,
            None => self.add(text)?,
        };
        Ok(&mut self.named[number])
    }

    fn add(&mut self, text: &str) -> Result<usize, Refusal> {
        let context = ContextId::new(text)?;
        // It is kept twice.
        let bytes = 2 * text.len() + limits::NAME;
        if !self.has_capacity(bytes) {
            // The tables shrink, too.
            *self = Self::new(Arc::clone(&self.calls));
        }
        self.bytes += bytes;
        let number = self.named.len();
        self.numbers.insert(text.into(), number);
        self.named.push(CachedName { context, writer: WriterCheck::default() });
        Ok(number)
    }

    fn has_capacity(&mut self, bytes: usize) -> bool {
        if self.bytes + bytes <= limits::NAMES_BYTES {
            return true;
        }
        // Half of it is for other calls.
        if self.named.len() >= limits::NAMES_PER_STREAM || self.calls.used() > self.calls.capacity() / 2 {
            return false;
        }
        let Some(more) = self.calls.try_acquire(bytes) else { return false };
        match &mut self.more {
            Some(held) => held.merge(more),
            None => self.more = Some(more),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_and_remembered() {
        let mut names = NameCache::new(Share::new("calls", 16 << 20));
        let [first, again] = [(); 2].map(|()| names.get("a").unwrap().context.clone());
        assert_eq!(first, again);
        assert_eq!(names.get("").unwrap_err().field, Some("context_id"));
        for n in 0..2 * limits::NAMES_PER_STREAM {
            let name = n.to_string();
            assert_eq!(names.get(&name).unwrap().context.as_str(), name);
        }
        assert!(names.named.len() <= limits::NAMES_PER_STREAM);
        assert_eq!(names.named.len(), names.numbers.len());
    }

    #[test]
    fn names_take_what_comes_with_the_call_and_a_part_of_what_is_for_calls() {
        let calls = Share::new("calls", 1 << 20);
        let mut streams: Vec<NameCache> = (0..40).map(|_| NameCache::new(Arc::clone(&calls))).collect();
        for n in 0..4096 {
            let name = format!("{n:01024}");
            for names in &mut streams {
                assert_eq!(names.get(&name).unwrap().context.as_str(), name);
            }
        }
        let held: usize = streams.iter().map(|names| names.named.len() * (2 * 1024 + limits::NAME)).sum();
        assert!(held <= streams.len() * limits::NAMES_BYTES + calls.used(), "{held}");
        assert!(calls.used() <= calls.capacity() / 2 + (4 << 10), "{}", calls.used());
        drop(streams);
        assert_eq!(calls.used(), 0);
    }
}
