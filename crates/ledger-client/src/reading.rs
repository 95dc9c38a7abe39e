//! Reading a stream of answers from one node, and going on at another when that one fails.

use std::future::Future;

use ledger_core::{ContextId, Entry, Hash, Sequence};
use ledger_proto::context::v1 as proto;
use tonic::{Code, Status, transport::Channel};

use crate::{
    Client, ClientError,
    address::Address,
    convert,
    pulse::UnderWay,
    retry::{Attempts, Failed},
    route::Aim,
};

/// What a stream of answers is read through.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) client: Client,
    aim: Aim,
    attempts: Attempts,
    /// Something came since the last failure.
    is_well: bool,
    /// The node that answers.
    at: Option<Address>,
    under_way: Option<UnderWay>,
}

impl Reading {
    pub(crate) fn new(client: Client, aim: Aim) -> Self {
        let attempts = Attempts::new(client.options());
        Self { client, aim, attempts, is_well: true, at: None, under_way: None }
    }

    /// Something came.
    pub(crate) fn came(&mut self) {
        self.is_well = true;
    }

    /// Opens a stream, at the first node that can, within the tries and the time allowed.
    pub(crate) async fn open<T, F>(&mut self, mut call: impl FnMut(Channel) -> F) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        self.count_anew_if_well();
        loop {
            match self.client.call_once(self.aim, &self.attempts, &mut call).await {
                Ok(Ok((address, answer))) => {
                    self.under_way = self.client.nodes().under_way(&address);
                    self.at = Some(address);
                    return Ok(answer);
                }
                Ok(Err(failed)) => self.failed(failed).await?,
                Err(error) => {
                    self.is_well = true;
                    return Err(error);
                }
            }
        }
    }

    /// The stream broke off: pauses, after which it is to be opened again.
    pub(crate) async fn broke(&mut self, status: Status) -> Result<(), ClientError> {
        self.count_anew_if_well();
        self.under_way = None;
        let at = self.at.take().unwrap_or_else(|| self.client.nodes().given()[0].clone());
        let failed = Failed::new(at, status);
        self.client.note(self.aim, &failed);
        self.failed(failed).await
    }

    /// Asks the owner from now on, because the node that was asked knows too little. False if that was the owner,
    /// or the only node.
    pub(crate) fn ask_owner(&mut self) -> bool {
        let may = self.client.may_ask_owner(self.aim);
        self.aim = if may { self.aim.owner() } else { self.aim };
        may
    }

    async fn failed(&mut self, failed: Failed) -> Result<(), ClientError> {
        // A replica may be behind, and not know yet what the caller has seen.
        let is_behind = matches!(failed.status.code(), Code::OutOfRange | Code::FailedPrecondition);
        if is_behind && self.ask_owner() {
            return Ok(());
        }
        self.aim = self.aim.after(&failed);
        let again = self.attempts.after(failed).await;
        // Whoever tries again in spite of the error has all tries again.
        self.is_well |= again.is_err();
        again
    }

    fn count_anew_if_well(&mut self) {
        if std::mem::take(&mut self.is_well) {
            self.attempts = Attempts::new(self.client.options());
        }
    }
}

/// Where a reading broke off. The last entry that was delivered is read once more, so that a history that has
/// changed is noticed.
#[derive(Debug, Default)]
pub(crate) struct Seam {
    last: Option<(Sequence, Hash)>,
    /// The last entry is to come again.
    is_open: bool,
    /// The sequence that came last, or after which reading began.
    came: Sequence,
}

impl Seam {
    /// An entry was delivered.
    pub(crate) fn delivered(&mut self, entry: &Entry) {
        self.last = Some((entry.sequence, entry.content_hash));
    }

    /// Reading begins again after `from`: the last entry comes again if that is before it.
    pub(crate) fn begin(&mut self, from: Sequence) {
        self.is_open = self.last.is_some_and(|(last, _)| last > from);
        self.came = from;
    }

    /// The sequence after which to begin so that the last entry comes again; `after` if none was delivered.
    pub(crate) fn overlap(&self, after: Sequence) -> Sequence {
        self.last.map_or(after, |(last, _)| Sequence(last.0.saturating_sub(1)))
    }

    /// Takes an entry that came; gives it if it is new.
    pub(crate) fn take(
        &mut self,
        context: &ContextId,
        entry: proto::Entry,
    ) -> Result<Option<Entry>, ClientError> {
        let entry = convert::entry(context, entry)?;
        convert::check_next(self.came, &entry)?;
        self.came = entry.sequence;
        Ok(self.is_new(context, &entry)?.then_some(entry))
    }

    /// Whether an entry is new; an error if the one before the seam is not what it was.
    fn is_new(&mut self, context: &ContextId, entry: &Entry) -> Result<bool, ClientError> {
        let Some((last, hash)) = self.last.filter(|_| self.is_open) else { return Ok(true) };
        if entry.sequence < last {
            return Ok(false);
        }
        if (entry.sequence, entry.content_hash) != (last, hash) {
            let message = format!("entry {last} of context {context} is not the one that was read before");
            return Err(ClientError::HistoryChanged { message, common: None });
        }
        self.is_open = false;
        Ok(false)
    }
}
