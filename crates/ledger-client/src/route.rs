//! Which node a call goes to, and what is learned when it fails.
//!
//! | the call needs | goes to |
//! | --- | --- |
//! | any node | the one used before, until it fails |
//! | any node that knows a context | the same, until one says that only the owner knows |
//! | the owner | the one known for the slot; else the one that a node names; else any node, which forwards |

use std::{future::Future, time::Duration};

use ledger_core::{ContextId, slot::Slot};
use ledger_proto::ledger::v1::LocateRequest;
use tonic::{Code, Status, transport::Channel};

use crate::{
    Client, ClientError,
    address::Address,
    nodes::LeftAlone,
    pulse::UnderWay,
    refusal::Failure,
    retry::{Attempts, Failed},
};

/// How long a node may take to say who owns a slot before another is asked.
const LOCATE_TIMEOUT: Duration = Duration::from_secs(2);

/// Which node a call needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Aim {
    /// Any.
    Any,
    /// Any that can answer for a slot.
    Near(Slot),
    /// The owner of a slot.
    Owner(Slot),
}

impl Aim {
    pub(crate) fn owner_of(context: &ContextId) -> Self {
        Self::Owner(Slot::of(context))
    }

    pub(crate) fn near(context: &ContextId) -> Self {
        Self::Near(Slot::of(context))
    }

    /// Where to go after a failure: from a node that does not know the context to one that does.
    pub(crate) fn after(self, failed: &Failed) -> Self {
        match &failed.failure {
            Failure::Moved { .. } => self.owner(),
            _ => self,
        }
    }

    /// The owner instead of any that knows a context.
    pub(crate) const fn owner(self) -> Self {
        match self {
            Self::Near(slot) | Self::Owner(slot) => Self::Owner(slot),
            Self::Any => Self::Any,
        }
    }

    const fn slot(self) -> Option<Slot> {
        match self {
            Self::Any => None,
            Self::Near(slot) | Self::Owner(slot) => Some(slot),
        }
    }
}

/// A node to call.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) address: Address,
    pub(crate) channel: Channel,
}

impl Client {
    /// Makes a call, again after a pause while it fails for a reason that may pass, at the node that is then the
    /// right one, within the tries and the time allowed.
    pub(crate) async fn call<T, F>(&self, aim: Aim, call: impl FnMut(Channel) -> F) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        self.call_at(aim, call).await.map(|(_, answer)| answer)
    }

    /// The same for an answer that is a stream: it is under way until the first that is given is dropped.
    pub(crate) async fn open<T, F>(
        &self,
        aim: Aim,
        call: impl FnMut(Channel) -> F,
    ) -> Result<(Option<UnderWay>, T), ClientError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let (address, stream) = self.call_at(aim, call).await?;
        Ok((self.nodes().under_way(&address), stream))
    }

    async fn call_at<T, F>(
        &self,
        mut aim: Aim,
        mut call: impl FnMut(Channel) -> F,
    ) -> Result<(Address, T), ClientError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let mut attempts = Attempts::new(self.options());
        loop {
            match self.call_once(aim, &attempts, &mut call).await? {
                Ok(answered) => return Ok(answered),
                // A replica may be behind: what it lacks the owner may have.
                Err(failed) if failed.status.code() == Code::OutOfRange && self.may_ask_owner(aim) => {
                    aim = aim.owner();
                }
                Err(failed) => {
                    aim = aim.after(&failed);
                    attempts.after(failed).await?;
                }
            }
        }
    }

    /// Whether the owner may know more than the node that was asked.
    pub(crate) fn may_ask_owner(&self, aim: Aim) -> bool {
        matches!(aim, Aim::Near(_)) && self.nodes().only().is_none()
    }

    /// One try of a call: also gives the node that answered. The outer error says that the time is up.
    pub(crate) async fn call_once<T, F>(
        &self,
        aim: Aim,
        attempts: &Attempts,
        call: impl FnOnce(Channel) -> F,
    ) -> Result<Result<(Address, T), Failed>, ClientError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let tried = attempts.within(async {
            let Target { address, channel } = self.target(aim, &attempts.left_alone).await?;
            attempts.keep_from(&address).await;
            let _under_way = self.nodes().under_way(&address);
            match call(channel).await {
                Ok(answer) => {
                    self.nodes().answered(&address);
                    Ok((address, answer))
                }
                Err(status) => {
                    let failed = Failed::new(address, status);
                    self.note(aim, &failed);
                    Err(failed)
                }
            }
        });
        tried.await
    }

    /// The node to call now.
    pub(crate) async fn target(&self, aim: Aim, left_alone: &LeftAlone) -> Result<Target, Failed> {
        if let Some((address, channel)) = self.nodes().only()
            && (!matches!(aim, Aim::Owner(_)) || self.owners().is_empty())
        {
            return Ok(Target { address: address.clone(), channel: channel.clone() });
        }
        let address = match aim {
            Aim::Any | Aim::Near(_) => self.nodes().any(left_alone),
            Aim::Owner(slot) => self.owner(slot, left_alone).await?,
        };
        self.target_at(address)
    }

    /// The owner of a slot as far as anybody knows, or a node that forwards to it.
    async fn owner(&self, slot: Slot, left_alone: &LeftAlone) -> Result<Address, Failed> {
        if let Some(owner) = self.known_owner(slot, left_alone) {
            return Ok(owner);
        }
        let asked = self.nodes().any(left_alone);
        if self.nodes().only().is_none() {
            self.locate(&asked, &[slot]).await?;
        }
        Ok(self.known_owner(slot, left_alone).unwrap_or(asked))
    }

    /// As [`Client::target`] for the owners of many slots, with one question to one node. An answer for each.
    pub(crate) async fn owners_of(&self, wanted: &[(Slot, LeftAlone)]) -> Vec<Result<Target, Failed>> {
        let is_unknown = |(slot, left_alone): &&(_, _)| self.known_owner(*slot, left_alone).is_none();
        let unknown: Vec<_> = wanted.iter().filter(is_unknown).map(|(slot, _)| *slot).collect();
        let everybody = LeftAlone::default();
        let asked = self.nodes().any(wanted.first().map_or(&everybody, |(_, left_alone)| left_alone));
        let located = if unknown.is_empty() { Ok(()) } else { self.locate(&asked, &unknown).await };
        let target = |(slot, left_alone): &(_, _)| {
            let address = match (self.known_owner(*slot, left_alone), &located) {
                (Some(owner), _) => owner,
                (None, Ok(())) => self.nodes().any(left_alone),
                (None, Err(failed)) => return Err(failed.clone()),
            };
            self.target_at(address)
        };
        wanted.iter().map(target).collect()
    }

    /// The owner of a slot, if it is known and not to be avoided.
    fn known_owner(&self, slot: Slot, left_alone: &LeftAlone) -> Option<Address> {
        self.owners().of(slot).filter(|owner| !self.nodes().is_avoided(owner, left_alone))
    }

    fn target_at(&self, address: Address) -> Result<Target, Failed> {
        match self.nodes().channel(&address) {
            Ok(channel) => Ok(Target { address, channel }),
            Err(error) => Err(Failed::new(address, Status::invalid_argument(error.to_string()))),
        }
    }

    /// Asks a node for the owners of slots, and learns them. Those of which it knows none stay unknown.
    pub(crate) async fn locate(&self, asked: &Address, slots: &[Slot]) -> Result<(), Failed> {
        let failed = |status| Failed::new(asked.clone(), status);
        let channel = self.target_at(asked.clone())?.channel;
        let request = LocateRequest {
            slots: slots.iter().map(|slot| slot.number().into()).collect(),
            ..LocateRequest::default()
        };
        let mut service = self.cluster_service_on(channel);
        let Ok(answer) = tokio::time::timeout(LOCATE_TIMEOUT, service.locate(request)).await else {
            let status = Status::unavailable(format!("{asked} did not answer within {LOCATE_TIMEOUT:?}"));
            let failed = Failed { failure: Failure::Broken, ..failed(status) };
            self.note(Aim::Any, &failed);
            return Err(failed);
        };
        match answer.map_err(failed) {
            Ok(answer) => {
                self.nodes().answered(asked);
                for location in answer.into_inner().locations {
                    let named = u16::try_from(location.slot).ok().and_then(Slot::new);
                    let owner = asked.told(&location.owner_address);
                    let (Some(named), Some(owner)) = (named, owner) else { continue };
                    self.owners().learn(named, owner);
                }
                Ok(())
            }
            // A standalone node, or one of a version that knows of no owners: it takes what it is given.
            Err(failed) if failed.failure == Failure::Final => {
                self.nodes().answered(asked);
                if failed.status.code() == Code::Unimplemented {
                    self.owners().learn_standalone(asked.clone());
                }
                Ok(())
            }
            Err(failed) => {
                self.note(Aim::Any, &failed);
                Err(failed)
            }
        }
    }

    /// Learns from a call that failed.
    pub(crate) fn note(&self, aim: Aim, failed: &Failed) {
        match (&failed.failure, aim.slot()) {
            (Failure::Moved { owner, .. }, Some(slot)) => {
                self.owners().forget(slot, &failed.at);
                if let Some(owner) = owner.as_deref().and_then(|owner| failed.at.told(owner))
                    && owner != failed.at
                {
                    self.nodes().recommended(&owner);
                    self.owners().learn(slot, owner);
                }
            }
            (Failure::Busy { .. }, Some(slot)) => self.owners().forget(slot, &failed.at),
            (Failure::Broken, _) => {
                self.nodes().broke(&failed.at);
                self.owners().forget_node(&failed.at);
            }
            (Failure::Moved { .. } | Failure::Busy { .. }, None) | (Failure::Final, _) => {}
        }
    }
}
