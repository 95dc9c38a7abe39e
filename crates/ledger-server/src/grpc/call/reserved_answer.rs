//! Memory for an answer before it is built: whoever builds one waits for it here.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    grpc::{
        call::{Call, current},
        status::Refusal,
    },
    memory::{Charge, ClientShare, Memory},
};

/// How long whoever waits for memory waits before answers that nobody reads are ended for it.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Memory for an answer that is being built, or waits to be taken; none if nobody's call is served.
#[derive(Debug, Default)]
pub struct ReservedAnswer(Option<(Arc<Call>, Charge)>);

/// Waits until an answer of so many bytes may be built for a call; at once if there is none.
///
/// # Errors
/// `RESOURCE_EXHAUSTED` if there was no memory before the deadline of a unary call.
pub async fn reserve(call: Option<Arc<Call>>, bytes: usize) -> Result<ReservedAnswer, Refusal> {
    reserve_of(call, ClientShare::Answers, bytes).await
}

/// The same for results of appends.
///
/// # Errors
/// As [`reserve`].
pub async fn reserve_results(call: Option<Arc<Call>>, bytes: usize) -> Result<ReservedAnswer, Refusal> {
    reserve_of(call, ClientShare::Results, bytes).await
}

async fn reserve_of(
    call: Option<Arc<Call>>,
    of: ClientShare,
    bytes: usize,
) -> Result<ReservedAnswer, Refusal> {
    let Some(call) = call else { return Ok(ReservedAnswer::default()) };
    if let Some(charge) = call.memory().try_acquire(call.client(), of, bytes) {
        return Ok(ReservedAnswer::new(call, charge));
    }
    let charge = {
        let mut acquired = std::pin::pin!(call.memory().acquire(call.client(), of, bytes));
        loop {
            tokio::select! {
                charge = &mut acquired => break charge,
                () = tokio::time::sleep(POLL_INTERVAL) => {
                    call.unread().end_stuck(call.client(), bytes);
                    if call.is_unary() && Instant::now() >= call.deadline() {
                        return Err(call.out_of_memory());
                    }
                }
            }
        }
    };
    Ok(ReservedAnswer::new(call, charge))
}

/// Bytes of a page for the current call: fewer while there is little left.
pub fn page_bytes(memory: &Memory, most: usize) -> usize {
    page_bytes_for(memory, current().as_deref(), most)
}

/// The same for a call.
pub fn page_bytes_for(memory: &Memory, call: Option<&Call>, most: usize) -> usize {
    memory.page_bytes(call.map(|call| &**call.client()), most)
}

/// Bytes of an answer of the current call that is built at once: fewer while there is little left.
pub fn answer_bytes(memory: &Memory, most: usize) -> usize {
    memory.answer_bytes(current().as_deref().map(|call| &**call.client()), most)
}

impl ReservedAnswer {
    fn new(call: Arc<Call>, charge: Charge) -> Self {
        call.pending().add_reserved(charge.amount());
        call.unread().add(call.pending());
        Self(Some((call, charge)))
    }

    /// Takes back what was handed over of the current call's answer, for an answer that is taken later after all.
    pub fn of_built() -> Self {
        let Some(call) = current() else { return Self::default() };
        let built = call.pending().take_built();
        built.map_or_else(Self::default, |charge| Self::new(call, charge))
    }

    /// The answer has so many bytes, and is handed out now.
    pub fn hand_over(mut self, bytes: usize) {
        if let Some((call, mut charge)) = self.take() {
            charge.resize(bytes);
            call.pending().hold_built(charge);
        }
    }

    /// A part of so many bytes is handed out now; of the last part, all that is left.
    pub fn hand_over_part(&mut self, bytes: usize) {
        let Some((call, held)) = &mut self.0 else { return };
        match held.split(bytes) {
            Some(part) => {
                call.pending().sub_reserved(bytes);
                call.pending().hold_built(part);
            }
            None => std::mem::take(self).hand_over(bytes),
        }
    }

    fn take(&mut self) -> Option<(Arc<Call>, Charge)> {
        let (call, charge) = self.0.take()?;
        call.pending().sub_reserved(charge.amount());
        Some((call, charge))
    }
}

impl Drop for ReservedAnswer {
    fn drop(&mut self) {
        drop(self.take());
    }
}
