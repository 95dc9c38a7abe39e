//! Makes a call at the node it needs, and retries it.

use std::future::Future;

use tonic::{Code, Status, transport::Channel};

use super::{
    address::Address,
    core::Client,
    destination::Destination,
    keepalive::CallGuard,
    locate::NodeChannel,
    retry::{Attempts, FailedCall},
};
use crate::error::ClientError;

impl Client {
    /// Makes a call at the node it needs. While the call fails for a transient reason, the client backs off and retries it,
    /// each time at the node that is the right one by then, within [`Options::tries`](crate::Options::tries) and the
    /// client's timeout.
    pub(crate) async fn call<T, F>(
        &self,
        destination: Destination,
        call: impl FnMut(Channel) -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        self.call_at(destination, call).await.map(|(_, response)| response)
    }

    /// As [`Client::call`], for a response that is a stream: the client probes the connection until the caller drops the
    /// guard.
    pub(crate) async fn open<T, F>(
        &self,
        destination: Destination,
        call: impl FnMut(Channel) -> F,
    ) -> Result<(Option<CallGuard>, T), ClientError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let (address, stream) = self.call_at(destination, call).await?;
        Ok((self.nodes().track_call(&address), stream))
    }

    async fn call_at<T, F>(
        &self,
        mut destination: Destination,
        mut call: impl FnMut(Channel) -> F,
    ) -> Result<(Address, T), ClientError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let mut attempts = Attempts::new(self.options());
        loop {
            match self.call_once(destination, &attempts, &mut call).await? {
                Ok(responded) => return Ok(responded),
                // A replica may be behind: the owner may have what it lacks.
                Err(failed)
                    if failed.status.code() == Code::OutOfRange && self.may_ask_owner(destination) =>
                {
                    destination = destination.owner();
                }
                Err(failed) => {
                    destination = destination.after_failure(&failed);
                    attempts.back_off(failed).await?;
                }
            }
        }
    }

    /// Whether the owner may know more than a node that was called as this destination.
    pub(crate) fn may_ask_owner(&self, destination: Destination) -> bool {
        matches!(destination, Destination::AnyReplica(_)) && self.nodes().single().is_none()
    }

    /// Makes one attempt, and returns which node responded too. The outer error: the deadline passed.
    pub(crate) async fn call_once<T, F>(
        &self,
        destination: Destination,
        attempts: &Attempts,
        call: impl FnOnce(Channel) -> F,
    ) -> Result<Result<(Address, T), FailedCall>, ClientError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let attempt = attempts.within_deadline(async {
            let NodeChannel { address, channel } = self.find_node(destination, &attempts.retry_after).await?;
            attempts.wait_retry_after(&address).await;
            let _call_guard = self.nodes().track_call(&address);
            match call(channel).await {
                Ok(response) => {
                    self.nodes().record_success(&address);
                    Ok((address, response))
                }
                Err(status) => {
                    let failed = FailedCall::new(address, status);
                    self.learn_from_failure(destination, &failed);
                    Err(failed)
                }
            }
        });
        attempt.await
    }
}
