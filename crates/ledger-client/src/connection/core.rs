//! The state that all clones of a client share: the nodes, who owns which slot, and the writer's name.

use std::{sync::Arc, time::Duration};

use tonic::{
    Request,
    metadata::{Ascii, MetadataValue},
};

use super::{address::Address, nodes::Nodes, owners::Owners};
use crate::{error::ClientError, options::Options};

/// The metadata key under which a client sends its name with every append.
const WRITER: &str = "converge-writer";

/// A client of a node, or of a cluster by the addresses of any of its nodes. Cheap to clone: clones share the
/// connections. A client connects on first use and reconnects whenever a connection breaks, and resolves a name in an
/// address each time it does.
#[derive(Debug, Clone)]
pub struct Client {
    shared: Arc<Shared>,
    options: Arc<Options>,
}

#[derive(Debug)]
struct Shared {
    nodes: Nodes,
    owners: Owners,
    writer: MetadataValue<Ascii>,
}

impl Client {
    /// A client of the node at an address such as `http://127.0.0.1:50051`, or of the cluster some of whose nodes
    /// are at several, with commas between them. Connects when first used.
    ///
    /// With one address everything goes there. With several, reads go to any node that answers, and appends
    /// straight to the owner of their context, wherever it moves.
    ///
    /// # Errors
    ///
    /// [`ClientError::Endpoint`] if an address is malformed or none is given, or if [`Options::tls`] cannot be used;
    /// [`ClientError::Invalid`] if there are too many.
    pub fn connect(addresses: &str, options: &Options) -> Result<Self, ClientError> {
        Self::connect_any([addresses], options)
    }

    /// As [`Client::connect`], with a list.
    ///
    /// # Errors
    ///
    /// As [`Client::connect`].
    pub fn connect_any<T: AsRef<str>>(
        addresses: impl IntoIterator<Item = T>,
        options: &Options,
    ) -> Result<Self, ClientError> {
        let nodes = Nodes::new(Address::list(addresses)?, options.clone())?;
        let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
        let writer = MetadataValue::from(high ^ low);
        let shared = Arc::new(Shared { nodes, owners: Owners::default(), writer });
        Ok(Self { shared, options: Arc::new(options.clone()) })
    }

    /// The same client on the same connections, with another timeout for its calls, in place of [`Options::timeout`].
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        let options = Options { timeout, ..(*self.options).clone() };
        Self { shared: Arc::clone(&self.shared), options: Arc::new(options) }
    }

    /// The name under which this client, and every clone of it, appends: the client draws it at random when it is made.
    /// Nodes count, and name in their logs, writers that take turns on a context, where one engine is to write: an
    /// operator can find an engine that logs its name, and an engine that appends with several clients looks like several
    /// engines.
    pub fn writer(&self) -> &str {
        self.shared.writer.to_str().unwrap_or_default()
    }

    /// A request that carries this writer's name: for an append, or for a stream of them.
    pub(crate) fn writer_request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert(WRITER, self.shared.writer.clone());
        request
    }

    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    pub(crate) fn nodes(&self) -> &Nodes {
        &self.shared.nodes
    }

    pub(crate) fn owners(&self) -> &Owners {
        &self.shared.owners
    }
}
