//! Calls that only operators may make. A node takes them from its own machine, and from whoever proves to have the cluster's
//! key: which is never sent. See `ledger_cluster::peers::call_auth`.

use std::{
    fs,
    sync::atomic::{AtomicU64, Ordering},
};

use ledger_client::ClientError;
use ledger_core::{
    call_proof::{CallProof, Nonce, body_hash, greeting},
    cluster_key::{self, CallKey},
    node::{self, Incarnation, NodeId, StorageId},
};
use ledger_proto::ledger::v1::{
    GreetRequest, MembersRequest, SlotMember, cluster_service_client::ClusterServiceClient,
    replica_service_client::ReplicaServiceClient,
};
use prost::Message;
use tonic::{Code, Request, metadata::MetadataValue, transport::Channel};

use crate::{args::Connection, output::visible, reach};

/// Carries the proof of a call.
const PROOF: &str = "converge-call-bin";
/// As what an operator's calls are made.
const NAME: &str = "ledgerctl";

/// A node that is to do what an operator says.
#[derive(Debug)]
pub(crate) struct Operator {
    /// How long its answers may take is part of it.
    pub connection: Connection,
    pub service: ClusterServiceClient<Channel>,
    /// With the cluster's key, if there is one.
    session: Option<Session>,
}

/// What both sides gave, and what proves that this one has the key.
#[derive(Debug)]
struct Session {
    key: CallKey,
    from: node::Member,
    to: node::Member,
    caller: Nonce,
    called: Nonce,
    calls: AtomicU64,
}

impl Operator {
    /// The node that is reached so.
    pub(crate) async fn at(connection: &Connection) -> anyhow::Result<Self> {
        let channel = connection.client()?.channel();
        let session = match key(connection)? {
            Some(key) => greet(connection, channel.clone(), key).await?,
            None => None,
        };
        Ok(Self { connection: connection.clone(), service: ClusterServiceClient::new(channel), session })
    }

    /// A request, and the proof that comes with it.
    pub(crate) fn request<M: Message>(&self, method: &str, message: M) -> Request<M> {
        let proof = self.session.as_ref().map(|session| session.prove(method, &message));
        let mut request = Request::new(message);
        if let Some(proof) = proof {
            request.metadata_mut().insert_bin(PROOF, MetadataValue::from_bytes(&proof));
        }
        request
    }
}

/// The key that nodes seal with: the first of the file.
fn key(connection: &Connection) -> anyhow::Result<Option<CallKey>> {
    let Some(path) = &connection.cluster_key_file else { return Ok(None) };
    let wrong = |why: String| ClientError::Invalid(format!("cluster key file {}: {why}", path.display()));
    let text = fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let keys = cluster_key::parse(&text).map_err(|error| wrong(error.to_string()))?;
    Ok(keys.first().map(CallKey::of))
}

/// Greets the node, which proves that it has the key; `None`: it is by itself, and has none.
async fn greet(connection: &Connection, channel: Channel, key: CallKey) -> anyhow::Result<Option<Session>> {
    let asked = ClusterServiceClient::new(channel.clone()).members(MembersRequest {}).await;
    let known = asked.map_err(ClientError::from)?.into_inner();
    let itself = known.members.iter().find(|member| member.node_id == known.node_id);
    let to = itself.and_then(|itself| {
        Some(node::Member {
            node: NodeId::new(&itself.node_id).ok()?,
            storage: StorageId::parse(&itself.storage_id)?,
        })
    });
    let Some(to) = to else { return Ok(None) };
    let from = node::Member { node: NodeId::new(NAME)?, storage: StorageId(rand::random()) };
    let caller: Nonce = rand::random();
    let greeted = GreetRequest {
        from: Some(to_member(&from)),
        to: Some(to_member(&to)),
        nonce: caller.to_vec().into(),
    };
    let answer = match reach::within(connection, ReplicaServiceClient::new(channel).greet(greeted)).await? {
        Err(status) if status.code() == Code::Unimplemented => return Ok(None),
        answer => answer.map_err(ClientError::from)?.into_inner(),
    };
    let called = Nonce::try_from(answer.nonce.as_ref()).ok();
    let called = called.filter(|called| key.is_proven(&greeting(&from, &to, &caller, called), &answer.proof));
    let Some(called) = called else {
        return Err(ClientError::Invalid(format!(
            "node {} has another key than the first one of the cluster key file: give the file that the node has as cluster_key_file, or \
             none on the machine that it runs on",
            visible(&known.node_id)
        ))
        .into());
    };
    Ok(Some(Session { key, from, to, caller, called, calls: AtomicU64::new(0) }))
}

fn to_member(member: &node::Member) -> SlotMember {
    SlotMember { node_id: member.node.to_string(), storage_id: member.storage.0.to_vec().into() }
}

impl Session {
    fn prove<M: Message>(&self, method: &str, message: &M) -> Vec<u8> {
        let proof = CallProof {
            from: self.from.clone(),
            incarnation: Incarnation(0),
            caller: self.caller,
            called: self.called,
            call_number: self.calls.fetch_add(1, Ordering::Relaxed) + 1,
            body: Some(body_hash(&framed(message))),
        };
        proof.prove_with(&self.key, method, &self.to)
    }
}

/// A message as gRPC sends it: not compressed, with its length before it.
fn framed<M: Message>(message: &M) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend(u32::try_from(message.encoded_len()).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend(message.encode_to_vec());
    bytes
}

#[cfg(test)]
mod tests {
    use ledger_proto::ledger::v1::DrainRequest;

    use super::*;

    fn member(name: &str) -> node::Member {
        node::Member { node: NodeId::new(name).unwrap(), storage: StorageId([1; 16]) }
    }

    #[test]
    fn each_call_has_a_proof_of_its_own_over_what_is_sent() {
        let (key, to) = (CallKey::of(&[7; 32]), member("n0"));
        let session = Session {
            key: key.clone(),
            from: member(NAME),
            to: to.clone(),
            caller: [2; 16],
            called: [3; 16],
            calls: AtomicU64::new(0),
        };
        // Field 1 is true: two bytes, after five of gRPC's own.
        let message = DrainRequest { resume: true };
        assert_eq!(framed(&message), [0, 0, 0, 0, 2, 8, 1]);
        for number in 1..3 {
            let (proof, hash) = CallProof::decode(&session.prove("Drain", &message)).unwrap();
            assert_eq!((proof.call_number, proof.body), (number, Some(body_hash(&framed(&message)))));
            assert!(key.is_proven(&proof.text("Drain", &to), hash.as_bytes()));
            assert!(!key.is_proven(&proof.text("Recover", &to), hash.as_bytes()));
            assert!(!CallKey::of(&[8; 32]).is_proven(&proof.text("Drain", &to), hash.as_bytes()));
        }
    }
}
