//! The generated gRPC clients, on the channel of a node.

use ledger_proto::{
    context::v1::context_service_client::ContextServiceClient,
    ledger::v1::{
        cluster_service_client::ClusterServiceClient, integrity_service_client::IntegrityServiceClient,
        ledger_service_client::LedgerServiceClient,
    },
};
use tonic::transport::Channel;

use super::core::Client;

impl Client {
    /// A connection to the node in use, for services of which this SDK has no client.
    pub fn channel(&self) -> Channel {
        self.nodes().current_channel()
    }

    /// The generated client of `converge.context.v1` of the node in use, for what this SDK does not cover. Like
    /// the others below it stays with that node, and appends without [`Client::writer`]'s name.
    pub fn context_service(&self) -> ContextServiceClient<Channel> {
        self.context_service_on(self.nodes().current_channel())
    }

    /// The generated client of the streaming service.
    pub fn ledger_service(&self) -> LedgerServiceClient<Channel> {
        self.ledger_service_on(self.nodes().current_channel())
    }

    /// The generated client of the cluster service.
    pub fn cluster_service(&self) -> ClusterServiceClient<Channel> {
        self.cluster_service_on(self.nodes().current_channel())
    }

    /// The generated client of the integrity service.
    pub fn integrity_service(&self) -> IntegrityServiceClient<Channel> {
        self.integrity_service_on(self.nodes().current_channel())
    }

    pub(crate) fn context_service_on(&self, channel: Channel) -> ContextServiceClient<Channel> {
        ContextServiceClient::new(channel).max_decoding_message_size(self.options().max_message)
    }

    pub(crate) fn ledger_service_on(&self, channel: Channel) -> LedgerServiceClient<Channel> {
        LedgerServiceClient::new(channel).max_decoding_message_size(self.options().max_message)
    }

    pub(crate) fn cluster_service_on(&self, channel: Channel) -> ClusterServiceClient<Channel> {
        ClusterServiceClient::new(channel).max_decoding_message_size(self.options().max_message)
    }

    pub(crate) fn integrity_service_on(&self, channel: Channel) -> IntegrityServiceClient<Channel> {
        IntegrityServiceClient::new(channel).max_decoding_message_size(self.options().max_message)
    }
}
