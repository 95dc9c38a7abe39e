//! Opens a stream of responses at one node, and again at another when that one fails.

use std::{future::Future, mem};

use tonic::{Code, Status, transport::Channel};

use super::{
    address::Address,
    core::Client,
    destination::Destination,
    keepalive::CallGuard,
    retry::{Attempts, FailedCall},
};
use crate::error::ClientError;

/// Opens a stream, and opens it again wherever it can after it broke. The caller owns the stream itself.
#[derive(Debug)]
pub(crate) struct Reconnector {
    pub(crate) client: Client,
    destination: Destination,
    attempts: Attempts,
    /// The stream delivered something since the last failure: the next failure starts a new count of attempts.
    is_healthy: bool,
    /// The node that serves the stream.
    node: Option<Address>,
    call_guard: Option<CallGuard>,
}

impl Reconnector {
    pub(crate) fn new(client: Client, destination: Destination) -> Self {
        let attempts = Attempts::new(client.options());
        Self { client, destination, attempts, is_healthy: true, node: None, call_guard: None }
    }

    /// The stream delivered something.
    pub(crate) fn received(&mut self) {
        self.is_healthy = true;
    }

    /// Opens a stream at the first node that can serve it, within the attempts and the time allowed.
    pub(crate) async fn open<T, F>(&mut self, mut call: impl FnMut(Channel) -> F) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        self.reset_attempts_if_healthy();
        loop {
            match self.client.call_once(self.destination, &self.attempts, &mut call).await {
                Ok(Ok((address, response))) => {
                    self.call_guard = self.client.nodes().track_call(&address);
                    self.node = Some(address);
                    return Ok(response);
                }
                Ok(Err(failed)) => self.back_off(failed).await?,
                Err(error) => {
                    self.is_healthy = true;
                    return Err(error);
                }
            }
        }
    }

    /// The stream broke: backs off. Then the caller opens it again.
    pub(crate) async fn disconnected(&mut self, status: Status) -> Result<(), ClientError> {
        self.reset_attempts_if_healthy();
        self.call_guard = None;
        let node = self.node.take().unwrap_or_else(|| self.client.nodes().configured()[0].clone());
        let failed = FailedCall::new(node, status);
        self.client.learn_from_failure(self.destination, &failed);
        self.back_off(failed).await
    }

    /// Reads from the owner from now on, because a replica is behind. False if the stream comes from the owner already,
    /// or from the only node.
    pub(crate) fn switch_to_owner(&mut self) -> bool {
        let may_switch = self.client.may_ask_owner(self.destination);
        self.destination = if may_switch { self.destination.owner() } else { self.destination };
        may_switch
    }

    async fn back_off(&mut self, failed: FailedCall) -> Result<(), ClientError> {
        // A replica may be behind, and lack what the caller has read elsewhere.
        let is_behind = matches!(failed.status.code(), Code::OutOfRange | Code::FailedPrecondition);
        if is_behind && self.switch_to_owner() {
            return Ok(());
        }
        self.destination = self.destination.after_failure(&failed);
        let result = self.attempts.back_off(failed).await;
        // A caller that goes on in spite of the error has all attempts again.
        self.is_healthy |= result.is_err();
        result
    }

    fn reset_attempts_if_healthy(&mut self) {
        if mem::take(&mut self.is_healthy) {
            self.attempts = Attempts::new(self.client.options());
        }
    }
}
