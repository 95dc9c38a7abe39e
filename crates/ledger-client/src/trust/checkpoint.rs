//! Checkpoints that were held against what the caller trusts.

use std::{fmt, time::Duration};

use ledger_core::{
    ContextId, HashSuite, Size,
    checkpoint::{self, VerifierKey},
    hash::Hasher as _,
    tree::{ConsistencyProof, ProofError},
    with_suite,
};
use ledger_proto::ledger::v1::ConsistencyProofRequest;

use super::{Trust, known::Known};
use crate::{
    Checkpoint, Client, ClientError, convert,
    error::{NotExtended, TreeHead},
    retry::pause,
    route::Aim,
};

/// How often a proof is asked for at a size that a replica may not have yet.
const ASKED: u32 = 8;
/// How often a checkpoint is held against what another process has kept meanwhile.
const RACES: u32 = 16;

/// A context's size and root, held against what the caller trusts. Only that makes one.
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
    /// It is proven to continue, or to be the beginning of, one that the caller kept.
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

    fn of(stated: Checkpoint, basis: Basis) -> Self {
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
    /// Holds the signature of a checkpoint against the keys; `None` if there are none.
    fn signature(&self, stated: &Checkpoint) -> Result<Option<Basis>, ClientError> {
        // The note is signed by the key that the node states: that was checked when it came. It is of the cluster that
        // its key is of, and of the context that was asked for: a node signs checkpoints of all of its contexts.
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
    /// [`ClientError::NotVerified`] if it is not signed by a key that is trusted, or not what it was asked for;
    /// [`ClientError::NotExtended`] if the history that the ledger shows does not continue the one that is known.
    pub async fn trusted_checkpoint(
        &self,
        context: &ContextId,
        trust: &Trust,
    ) -> Result<TrustedCheckpoint, ClientError> {
        self.trusted_at(Aim::near(context), context, None, trust).await
    }

    /// As [`Client::trusted_checkpoint`], at a size.
    pub async fn trusted_checkpoint_at(
        &self,
        context: &ContextId,
        size: Size,
        trust: &Trust,
    ) -> Result<TrustedCheckpoint, ClientError> {
        self.trusted_at(Aim::near(context), context, Some(size), trust).await
    }

    /// As [`Client::trusted_checkpoint`], of everything that the owner has acknowledged so far.
    pub(crate) async fn trusted_by_owner(
        &self,
        context: &ContextId,
        trust: &Trust,
    ) -> Result<TrustedCheckpoint, ClientError> {
        self.trusted_at(Aim::near(context).owner(), context, None, trust).await
    }

    async fn trusted_at(
        &self,
        mut aim: Aim,
        context: &ContextId,
        size: Option<Size>,
        trust: &Trust,
    ) -> Result<TrustedCheckpoint, ClientError> {
        loop {
            let stated = self.checkpoint_at(aim, context, size).await?;
            if size.is_some_and(|size| size != stated.position.size) {
                let message = format!("a checkpoint at size {size:?} was asked for: another one came");
                return Err(ClientError::NotVerified(message));
            }
            let signed = trust.signature(&stated)?;
            let key: VerifierKey = stated.verifier_key.parse()?;
            let mut known = trust.known.get(cluster_of(&key), context).await?;
            if size.is_none()
                && aim == Aim::near(context)
                && known.as_ref().is_some_and(|known| stated.head().size < known.head.size)
            {
                // A replica may be behind; the owner never is.
                aim = aim.owner();
                continue;
            }
            // What is known may grow meanwhile, through others. It is the same statement that is held against it again: what
            // is known is soon beyond that.
            for _ in 0..RACES {
                if let Some(known) = &known {
                    self.check_known(known, &stated).await?;
                }
                let basis = match (&known, signed) {
                    (_, Some(signed)) => signed,
                    (Some(_), None) => Basis::Known,
                    (None, None) => Basis::FirstUse,
                };
                let checkpoint = TrustedCheckpoint::of(stated.clone(), basis);
                if self.keep(trust, known.as_ref(), &checkpoint).await? {
                    return Ok(checkpoint);
                }
                known = trust.known.get(cluster_of(&key), context).await?;
            }
            return Err(ClientError::Unavailable(
                format!("what is known of context {context} changes all the time").into(),
            ));
        }
    }

    /// A statement that a reading vouches for: it has hashed its entries from a trusted checkpoint on, and come to this
    /// root.
    pub(crate) async fn trusted_by_reading(
        &self,
        context: &ContextId,
        read: TreeHead,
        begun: &TrustedCheckpoint,
        trust: &Trust,
    ) -> Result<TrustedCheckpoint, ClientError> {
        let stated = self.checkpoint_at(Aim::near(context), context, Some(read.size)).await?;
        let signed = trust.signature(&stated)?;
        if (stated.head(), stated.suite) != (read, begun.suite) {
            let reason =
                format!("the entries that came lead to root {}, the checkpoint states another", read.root);
            return Err(not_extended(begun.head, &stated, reason));
        }
        Ok(TrustedCheckpoint::of(stated, signed.unwrap_or(Basis::Known)))
    }

    /// Keeps a checkpoint as the newest that is known, whatever others kept meanwhile.
    pub(crate) async fn keep_newest(
        &self,
        trust: &Trust,
        checkpoint: &TrustedCheckpoint,
    ) -> Result<(), ClientError> {
        let key: VerifierKey = checkpoint.verifier_key.parse()?;
        for _ in 0..RACES {
            let known = trust.known.get(cluster_of(&key), &checkpoint.context).await?;
            if let Some(known) = &known {
                self.check_heads(&checkpoint.context, known, checkpoint.head, checkpoint.suite, || {
                    checkpoint.signed_note.clone()
                })
                .await?;
            }
            if self.keep(trust, known.as_ref(), checkpoint).await? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// False if what is known has changed: then the checkpoint is to be held against that.
    async fn keep(
        &self,
        trust: &Trust,
        known: Option<&Known>,
        checkpoint: &TrustedCheckpoint,
    ) -> Result<bool, ClientError> {
        let size = checkpoint.head.size;
        // Every history begins with no entries.
        if size.0 == 0 || known.is_some_and(|known| known.head.size >= size) {
            return Ok(true);
        }
        let key: VerifierKey = checkpoint.verifier_key.parse()?;
        let newest = Known {
            head: checkpoint.head,
            suite: checkpoint.suite,
            signed_note: checkpoint.signed_note.clone(),
            verifier_key: checkpoint.verifier_key.clone(),
        };
        trust.known.replace(cluster_of(&key), &checkpoint.context, known, newest).await
    }

    async fn check_known(&self, known: &Known, stated: &Checkpoint) -> Result<(), ClientError> {
        let evidence = || stated.signed_note.clone();
        self.check_heads(&stated.context, known, stated.head(), stated.suite, evidence).await
    }

    async fn check_heads(
        &self,
        context: &ContextId,
        known: &Known,
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

    /// Holds the tree of one state against that of a later one. The inner error: it is not a prefix of it.
    pub(crate) async fn prove_prefix(
        &self,
        context: &ContextId,
        suite: HashSuite,
        old: TreeHead,
        new: TreeHead,
    ) -> Result<Result<ConsistencyProof, ProofError>, ClientError> {
        let (old_size, new_size) = (old.size.0, new.size.0);
        let mut proof = ConsistencyProof { old_size, new_size, hashes: Vec::new() };
        // Nothing has to be asked for what needs no hashes.
        if old_size > 0 && old_size < new_size {
            let request =
                ConsistencyProofRequest { context_id: context.as_str().to_owned(), old_size, new_size };
            let answer = self.asked_again(|| {
                self.call(Aim::near(context), |channel| {
                    let (mut service, request) = (self.integrity_service_on(channel), request.clone());
                    async move { service.consistency_proof(request).await }
                })
            });
            // Only the hashes count: sizes and roots are the caller's, whatever the ledger says.
            proof.hashes = convert::hashes(&answer.await?.into_inner().hashes)?;
        }
        let empty = with_suite!(suite, H => H::empty_root());
        if (old_size == 0 && old.root != empty) || (new_size == 0 && new.root != empty) {
            return Ok(Err(ProofError::Root {
                expected: empty,
                computed: if old_size == 0 { old.root } else { new.root },
            }));
        }
        Ok(proof.verify_in(suite, &old.root, &new.root).map(|()| proof))
    }

    /// Asks again for what a replica may not have yet.
    pub(crate) async fn asked_again<T, F>(&self, mut ask: impl FnMut() -> F) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let mut asked = 0;
        loop {
            asked += 1;
            match ask().await {
                Err(ClientError::Invalid(_)) if asked < ASKED => {
                    tokio::time::sleep(pause(asked).max(Duration::from_millis(5))).await;
                }
                answer => return answer,
            }
        }
    }
}

fn not_extended(trusted: TreeHead, stated: &Checkpoint, reason: String) -> ClientError {
    let (context, shown, evidence) = (stated.context.clone(), stated.head(), stated.signed_note.clone());
    Box::new(NotExtended { context, trusted, shown, reason, evidence }).into()
}
