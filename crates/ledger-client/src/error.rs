//! What can go wrong, as a caller can act on it.

pub(crate) mod failure;

use std::fmt;

use ledger_core::{
    ContextId, EntryId, Hash, Sequence, Size, checkpoint::NoteError, id::IdError, tree::proof::ProofError,
};
use tonic::{Code, Status};

use self::failure::Failure;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The endpoint's address makes no sense.
    #[error("{endpoint:?} is not an endpoint: {reason}")]
    Endpoint {
        /// What was given.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A name is not valid.
    #[error(transparent)]
    Id(#[from] IdError),
    /// No node could be reached, or none could serve: worth trying again later.
    #[error("the ledger is not available: {0}")]
    Unavailable(Interruption),
    /// The call took longer than allowed. The ledger may have stored an append: repeat it with its entry id.
    #[error("no answer in time: {0}")]
    TimedOut(Interruption),
    /// The ledger, or this client, refused the request: repeating it changes nothing.
    #[error("{0}")]
    Invalid(String),
    /// Something is over a limit: a payload, a message.
    #[error("{0}")]
    Exhausted(String),
    /// The context, or an entry with this id, exists already.
    #[error("{0}")]
    AlreadyExists(String),
    /// The context's history is not the one that was seen before: read it again, from the beginning or from
    /// where the two part.
    #[error("{message}")]
    HistoryChanged {
        /// What the ledger says.
        message: String,
        /// How many entries the two have in common, if the ledger says it.
        common: Option<Size>,
    },
    /// The ledger lacks entries that this writer wrote and no longer keeps. The writer does not drop the others.
    #[error(
        "context {context} lacks entry {first}, which this writer wrote and no longer keeps: write again what \
         belongs there, or go on from where the ledger stands"
    )]
    Missing {
        /// The context.
        context: ContextId,
        /// The first entry that the ledger lacks and the writer cannot put back.
        first: Sequence,
    },
    /// The ledger found stored data damaged.
    #[error("{0}")]
    DataLoss(String),
    /// The ledger's answer contradicts itself or what it proves: do not believe it.
    #[error("the answer does not verify: {0}")]
    NotVerified(String),
    /// The ledger's history does not continue the one that is trusted: it was cut or replaced, by a liar or because
    /// entries were lost. What was read before is not proven to be there any more.
    #[error(transparent)]
    NotExtended(#[from] Box<NotExtended>),
    /// Reading or writing on this side failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// Anything else.
    #[error("{code:?}: {message}")]
    Other {
        /// The gRPC status code.
        code: Code,
        /// The ledger's message.
        message: String,
    },
}

/// Why a call did not complete, and which append it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interruption {
    /// What happened.
    pub message: String,
    /// Of an append, which may have been stored: the id with which repeating it is safe.
    pub entry_id: Option<EntryId>,
}

/// Two states of a context of which the later one does not continue the earlier one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the history of context {context} does not continue the one that is trusted, of size {} with root {}: {reason}. \
     Entries were lost or replaced, or a node lies: compare the nodes (ledgerctl forks), and trust the context anew \
     only when you know why", trusted.size, trusted.root
)]
pub struct NotExtended {
    /// The context.
    pub context: ContextId,
    /// The state that was trusted before.
    pub trusted: TreeHead,
    /// The state that the ledger shows now.
    pub shown: TreeHead,
    /// What does not fit.
    pub reason: String,
    /// The signed note with the state that the ledger shows now: evidence against its signer. Empty if there is none.
    pub evidence: String,
}

/// How many entries a context has, and the Merkle root over them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeHead {
    /// Number of entries.
    pub size: Size,
    /// The root over them.
    pub root: Hash,
}

impl<T: Into<String>> From<T> for Interruption {
    fn from(message: T) -> Self {
        Self { message: message.into(), entry_id: None }
    }
}

impl fmt::Display for Interruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.entry_id {
            Some(id) => write!(f, "; it may have been stored: repeat it with entry_id {id}"),
            None => Ok(()),
        }
    }
}

impl ClientError {
    /// The id of the append that failed, if it may have been stored: repeating it with this id is safe.
    pub const fn entry_id(&self) -> Option<&EntryId> {
        match self {
            Self::Unavailable(why) | Self::TimedOut(why) => why.entry_id.as_ref(),
            _ => None,
        }
    }

    /// Whether trying again later may help.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }

    pub(crate) fn malformed(what: &str) -> Self {
        Self::NotVerified(format!("{what} is missing or malformed"))
    }

    /// Adds the id with which to repeat an append that may have been stored.
    pub(crate) fn with_entry_id(self, id: &EntryId) -> Self {
        let named = |why: Interruption| Interruption { entry_id: Some(id.clone()), ..why };
        match self {
            Self::Unavailable(why) => Self::Unavailable(named(why)),
            Self::TimedOut(why) => Self::TimedOut(named(why)),
            error => error,
        }
    }

    /// The error of a code and message, as they come in a status or in the result of a streamed append.
    pub(crate) fn from_code(code: Code, message: &str) -> Self {
        let message = message.to_owned();
        match code {
            Code::Unavailable => Self::Unavailable(message.into()),
            Code::DeadlineExceeded | Code::Cancelled => Self::TimedOut(message.into()),
            Code::InvalidArgument | Code::OutOfRange | Code::NotFound | Code::Unimplemented => {
                Self::Invalid(message)
            }
            Code::ResourceExhausted => Self::Exhausted(message),
            Code::AlreadyExists => Self::AlreadyExists(message),
            Code::FailedPrecondition => Self::HistoryChanged { message, common: None },
            Code::DataLoss => Self::DataLoss(message),
            code => Self::Other { code, message },
        }
    }
}

impl From<Status> for ClientError {
    fn from(status: Status) -> Self {
        let message = failure::message_with_causes(&status);
        if let Some(reason) = failure::wrong_address(&message) {
            return Self::Invalid(reason.to_owned());
        }
        if Failure::of(&status) != Failure::Permanent {
            return Self::Unavailable(message.into());
        }
        match Self::from_code(status.code(), &message) {
            Self::HistoryChanged { message, .. } => {
                Self::HistoryChanged { message, common: failure::common_size(&status).map(Size) }
            }
            error => error,
        }
    }
}

impl From<ProofError> for ClientError {
    fn from(error: ProofError) -> Self {
        Self::NotVerified(error.to_string())
    }
}

impl From<NoteError> for ClientError {
    fn from(error: NoteError) -> Self {
        Self::NotVerified(error.to_string())
    }
}
