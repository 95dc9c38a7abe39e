//! Verifies checkpoints against what the caller trusts.

use std::fmt;

use ledger_core::{
    ContextId, HashSuite, Size,
    checkpoint::{self, VerifierKey},
};

use super::{anchors::Trust, contents::KnownCheckpoint};
use crate::{
    connection::{core::Client, destination::Destination},
    error::{ClientError, NotExtended, TreeHead},
    verify::checkpoint::Checkpoint,
};

/// How often the client verifies a checkpoint again, because another process has replaced the known one meanwhile.
const MAX_RACES: u32 = 16;

/// A context's size and root, verified against what the caller trusts. Only that makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedCheckpoint {
    context: ContextId,
    head: TreeHead,
    suite: HashSuite,
    basis: Basis,
    signed_note: String,
    verifier_key: String,
}

/// What the trust in a checkpoint rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// It is signed by a key that the caller trusts.
    Signed,
    /// It is proven to continue, or to be a prefix of, one that the caller accepted before.
    Known,
    /// It is the first of its context: nothing vouches for it but the node that gave it.
    FirstUse,
}

impl TrustedCheckpoint {
    /// The context.
    pub const fn context(&self) -> &ContextId {
        &self.context
    }

    /// Number of entries, and the root over them.
    pub const fn head(&self) -> TreeHead {
        self.head
    }

    /// Hash suite of the context.
    pub const fn suite(&self) -> HashSuite {
        self.suite
    }

    /// What the trust in it rests on.
    pub const fn basis(&self) -> Basis {
        self.basis
    }

    /// The C2SP signed note that states it.
    pub fn signed_note(&self) -> &str {
        &self.signed_note
    }

    /// The key that signed the note; trusted itself only if [`TrustedCheckpoint::basis`] says so.
    pub fn verifier_key(&self) -> &str {
        &self.verifier_key
    }

    fn from_stated(stated: Checkpoint, basis: Basis) -> Self {
        let head = stated.head();
        let Checkpoint { context, suite, signed_note, verifier_key, .. } = stated;
        Self { context, head, suite, basis, signed_note, verifier_key }
    }
}

impl fmt::Display for TrustedCheckpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { context, head: TreeHead { size, root }, .. } = self;
        let basis = match self.basis {
            Basis::Signed => "signed by a key that is trusted",
            Basis::Known => "continuing what is known",
            Basis::FirstUse => "taken on trust, for it is the first that is seen",
        };
        write!(f, "the first {size} entries of {context}, root {root}, {basis}")
    }
}

impl Trust {
    /// Verifies the signature of a checkpoint against the keys; `None` if there are none.
    fn verify_signature(&self, stated: &Checkpoint) -> Result<Option<Basis>, ClientError> {
        // The key that the node states has signed the note: the client verified that on receipt. Here it checks that the
        // note is of the cluster of that key, and of the right context: a node signs checkpoints of all of its contexts.
        let key: VerifierKey = stated.verifier_key.parse()?;
        let signed = checkpoint::verify(&stated.signed_note, &key)?;
        let cluster = cluster_of(&key);
        if signed.origin() != format!("{cluster}/{}", stated.context) {
            return Err(ClientError::NotVerified(format!(
                "the checkpoint is of {}, and was asked for of context {} of cluster {cluster}",
                signed.origin(),
                stated.context
            )));
        }
        if self.keys.is_empty() {
            return Ok(None);
        }
        if !self.keys.contains(&key) {
            return Err(ClientError::NotVerified(format!(
                "the checkpoint of context {} is signed by {key}, which is none of the {} keys that are trusted: if \
                 it is a node's of this cluster, trust its key too",
                stated.context,
                self.keys.len()
            )));
        }
        Ok(Some(Basis::Signed))
    }
}

/// The name of the cluster in the name of a node's key, `<cluster>/<storage id>`.
fn cluster_of(key: &VerifierKey) -> &str {
    key.name().rsplit_once('/').map_or("", |(cluster, _)| cluster)
}

impl Client {
    /// The newest checkpoint of a context that this caller can trust.
    ///
    /// # Errors
    ///
    /// [`ClientError::NotVerified`] if no trusted key has signed it, or it is of another context or cluster;
    /// [`ClientError::NotExtended`] if the history that the ledger shows does not continue the known one;
    /// [`ClientError::Io`] if the file of known checkpoints fails; else as the call fails.
    pub async fn trusted_checkpoint(
        &self,
        context: &ContextId,
        trust: &Trust,
    ) -> Result<TrustedCheckpoint, ClientError> {
        self.trusted_at(Destination::replica_of(context), context, None, trust).await
    }

    /// As [`Client::trusted_checkpoint`], at a size.
    ///
    /// # Errors
    ///
    /// As [`Client::trusted_checkpoint`]; [`ClientError::Invalid`] if the context has fewer entries.
    pub async fn trusted_checkpoint_at(
        &self,
        context: &ContextId,
        size: Size,
        trust: &Trust,
    ) -> Result<TrustedCheckpoint, ClientError> {
        self.trusted_at(Destination::replica_of(context), context, Some(size), trust).await
    }

    /// As [`Client::trusted_checkpoint`], of everything that the owner has acknowledged so far.
    pub(crate) async fn trusted_by_owner(
        &self,
        context: &ContextId,
        trust: &Trust,
    ) -> Result<TrustedCheckpoint, ClientError> {
        self.trusted_at(Destination::replica_of(context).owner(), context, None, trust).await
    }

    async fn trusted_at(
        &self,
        mut destination: Destination,
        context: &ContextId,
        size: Option<Size>,
        trust: &Trust,
    ) -> Result<TrustedCheckpoint, ClientError> {
        loop {
            let stated = self.checkpoint_at(destination, context, size).await?;
            if size.is_some_and(|size| size != stated.position.size) {
                let message = format!("a checkpoint at size {size:?} was asked for: another one came");
                return Err(ClientError::NotVerified(message));
            }
            let signed = trust.verify_signature(&stated)?;
            let key: VerifierKey = stated.verifier_key.parse()?;
            let mut known = trust.known.get(cluster_of(&key), context).await?;
            if size.is_none()
                && destination == Destination::replica_of(context)
                && known.as_ref().is_some_and(|known| stated.head().size < known.head.size)
            {
                // A replica may be behind; the owner is not.
                destination = destination.owner();
                continue;
            }
            // Another task may replace the known checkpoint meanwhile. Then the client verifies the same statement again: the
            // known checkpoint is soon beyond it.
            for _ in 0..MAX_RACES {
                if let Some(known) = &known {
                    self.check_known(known, &stated).await?;
                }
                let basis = match (&known, signed) {
                    (_, Some(signed)) => signed,
                    (Some(_), None) => Basis::Known,
                    (None, None) => Basis::FirstUse,
                };
                let checkpoint = TrustedCheckpoint::from_stated(stated.clone(), basis);
                if self.store(trust, known.as_ref(), &checkpoint).await? {
                    return Ok(checkpoint);
                }
                known = trust.known.get(cluster_of(&key), context).await?;
            }
            return Err(ClientError::Unavailable(
                format!("what is known of context {context} changes all the time").into(),
            ));
        }
    }

    /// A checkpoint at the tree head that a reader computed itself, by hashing all entries from a trusted checkpoint on.
    pub(crate) async fn trusted_by_reading(
        &self,
        context: &ContextId,
        read: TreeHead,
        begun: &TrustedCheckpoint,
        trust: &Trust,
    ) -> Result<TrustedCheckpoint, ClientError> {
        let stated = self.checkpoint_at(Destination::replica_of(context), context, Some(read.size)).await?;
        let signed = trust.verify_signature(&stated)?;
        if (stated.head(), stated.suite) != (read, begun.suite) {
            let reason =
                format!("the entries that came lead to root {}, the checkpoint states another", read.root);
            return Err(not_extended(begun.head, &stated, reason));
        }
        Ok(TrustedCheckpoint::from_stated(stated, signed.unwrap_or(Basis::Known)))
    }

    /// Stores a checkpoint as the known one, if it is newer than what other tasks stored meanwhile.
    pub(crate) async fn store_newest(
        &self,
        trust: &Trust,
        checkpoint: &TrustedCheckpoint,
    ) -> Result<(), ClientError> {
        let key: VerifierKey = checkpoint.verifier_key.parse()?;
        for _ in 0..MAX_RACES {
            let known = trust.known.get(cluster_of(&key), &checkpoint.context).await?;
            if let Some(known) = &known {
                self.check_heads(&checkpoint.context, known, checkpoint.head, checkpoint.suite, || {
                    checkpoint.signed_note.clone()
                })
                .await?;
            }
            if self.store(trust, known.as_ref(), checkpoint).await? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Stores a checkpoint. False if the known one has changed: then the caller verifies against that.
    async fn store(
        &self,
        trust: &Trust,
        known: Option<&KnownCheckpoint>,
        checkpoint: &TrustedCheckpoint,
    ) -> Result<bool, ClientError> {
        let size = checkpoint.head.size;
        // Every history begins with no entries.
        if size.0 == 0 || known.is_some_and(|known| known.head.size >= size) {
            return Ok(true);
        }
        let key: VerifierKey = checkpoint.verifier_key.parse()?;
        let newest = KnownCheckpoint {
            head: checkpoint.head,
            suite: checkpoint.suite,
            signed_note: checkpoint.signed_note.clone(),
            verifier_key: checkpoint.verifier_key.clone(),
        };
        trust.known.replace(cluster_of(&key), &checkpoint.context, known, newest).await
    }

    async fn check_known(&self, known: &KnownCheckpoint, stated: &Checkpoint) -> Result<(), ClientError> {
        let evidence = || stated.signed_note.clone();
        self.check_heads(&stated.context, known, stated.head(), stated.suite, evidence).await
    }

    async fn check_heads(
        &self,
        context: &ContextId,
        known: &KnownCheckpoint,
        shown: TreeHead,
        suite: HashSuite,
        evidence: impl Fn() -> String,
    ) -> Result<(), ClientError> {
        let refused = |reason: String| {
            let (context, trusted) = (context.clone(), known.head);
            ClientError::from(Box::new(NotExtended { context, trusted, shown, reason, evidence: evidence() }))
        };
        if suite != known.suite {
            return Err(refused(format!("it is hashed with {suite} now, and was with {}", known.suite)));
        }
        let proven = if shown.size < known.head.size {
            self.prove_prefix(context, suite, shown, known.head).await
        } else {
            self.prove_prefix(context, suite, known.head, shown).await
        };
        match proven {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(refused(format!(
                "the ledger shows size {} with root {}: {error}",
                shown.size, shown.root
            ))),
            Err(ClientError::Invalid(_)) if shown.size < known.head.size => {
                Err(refused(format!("the ledger shows {} entries and no more", shown.size)))
            }
            Err(error) => Err(error),
        }
    }
}

fn not_extended(trusted: TreeHead, stated: &Checkpoint, reason: String) -> ClientError {
    let (context, shown, evidence) = (stated.context.clone(), stated.head(), stated.signed_note.clone());
    Box::new(NotExtended { context, trusted, shown, reason, evidence }).into()
}
