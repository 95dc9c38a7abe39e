//! What all services share: the ledger, and the bounds and counters around it.

pub mod load_meter;
pub mod loading;
pub mod mode;
pub mod writers;

use std::{future::Future, sync::Arc, time::Instant};

use ledger_core::{ContextId, checkpoint::Signer, slot::Slot};
use ledger_store::{Ledger, StoreError, limited};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::{Response, Status};
use tracing::{Instrument as _, Span};

use crate::{
    grpc::call::UnreadAnswers,
    grpc::status::Refusal,
    interest::Interest,
    memory::Memory,
    metrics::{Metrics, Rpc},
    node::load_meter::LoadMeter,
    node::loading::Loads,
    node::mode::NodeMode,
    node::writers::{Writer, WriterCheck, Writers},
    settings::config::Config,
};

/// What all services share.
#[derive(Debug)]
pub struct Node {
    /// The store.
    pub ledger: Ledger,
    /// The settings.
    pub config: Config,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// Cancelled when the node begins to shut down: new requests are refused, watchers end.
    pub draining: CancellationToken,
    /// What clients make the node hold.
    pub memory: Arc<Memory>,
    /// Answers that clients have not yet taken.
    pub unread: Arc<UnreadAnswers>,
    /// Loads at the same time.
    pub loads: Loads,
    /// Signs checkpoints.
    pub signer: Signer,
    /// Who writes which context.
    pub writers: Writers,
    /// Whether it runs alone or as a member of a cluster.
    pub mode: NodeMode,
    /// What there is to do, measured now and then.
    pub meter: LoadMeter,
    /// Observers of contexts.
    pub interest: Arc<Interest>,
    reads: Arc<Semaphore>,
}

impl Node {
    /// A node that serves a ledger.
    pub fn new(
        ledger: Ledger,
        config: Config,
        metrics: Arc<Metrics>,
        signer: Signer,
        mode: NodeMode,
    ) -> Self {
        let of_cluster = mode.cluster().map(|cluster| cluster.shares());
        let others: Vec<_> = ledger.shares().into_iter().chain(of_cluster.into_iter().flatten()).collect();
        let memory = Arc::new(Memory::new(&config, others));
        Self {
            loads: Loads::within(&ledger.shares()[0]),
            ledger,
            metrics,
            draining: CancellationToken::new(),
            reads: Arc::new(Semaphore::new(memory.reads)),
            interest: Arc::new(Interest::within(Arc::clone(&memory.events))),
            memory,
            unread: Arc::default(),
            writers: Writers::default(),
            meter: LoadMeter::default(),
            mode,
            signer,
            config,
        }
    }

    /// Refuses when the node is shutting down.
    ///
    /// # Errors
    /// `UNAVAILABLE`, with a delay to retry after, when the node is shutting down.
    pub fn serving(&self) -> Result<(), Refusal> {
        if self.draining.is_cancelled() { Err(Refusal::shutting_down()) } else { Ok(()) }
    }

    /// Answers a unary request: counts and measures it.
    ///
    /// # Errors
    /// The refusal of the work, or of a node that is shutting down.
    pub async fn answer<T>(
        &self,
        rpc: Rpc,
        span: Span,
        work: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<Response<T>, Status> {
        self.metrics.started(rpc);
        let started = Instant::now();
        let result = match self.serving() {
            Ok(()) => work.instrument(span).await,
            Err(refusal) => Err(refusal),
        };
        self.metrics.answered(rpc, started.elapsed());
        result.map(Response::new).map_err(|refusal| self.refuse(rpc, refusal))
    }

    /// Counts and logs a refusal.
    pub fn refuse(&self, rpc: Rpc, refusal: Refusal) -> Status {
        self.metrics.refused(rpc, refusal.code);
        if matches!(refusal.code, tonic::Code::Internal | tonic::Code::DataLoss) {
            limited!(error, rpc = rpc.name(), code = ?refusal.code, reason = refusal.message, "request failed");
        } else {
            tracing::debug!(rpc = rpc.name(), code = ?refusal.code, reason = refusal.message, "request refused");
        }
        refusal.into()
    }

    /// Notes that an append goes to the store; counts and reports writers that take turns.
    pub fn wrote(&self, context: &ContextId, writer: &Writer, seen: &mut WriterCheck) {
        if let Some(other) = self.writers.wrote(context, writer, seen) {
            self.metrics.interleaved_writers.increment(1);
            self.writers.report(context, writer, &other);
        }
    }

    /// An append did not get its copies in time: says which members of its slot it may be for.
    pub fn explain_not_copied(&self, slot: Slot, refusal: Refusal) -> Refusal {
        let Some(cluster) = self.mode.cluster() else { return refusal };
        let (routes, view) = (cluster.routes(), cluster.view());
        let (routes, view) = (routes.borrow(), view.borrow());
        let Some(route) = routes.get(slot) else { return refusal };
        let missing =
            route.members.iter().filter(|member| *member != cluster.me() && !route.in_sync.contains(member));
        let named = missing.map(|member| {
            let is_alive = view.get(&member.node).is_some_and(|node| node.alive);
            format!("{} ({})", member.node, if is_alive { "behind" } else { "not heard of" })
        });
        let named = named.collect::<Vec<_>>().join(", ");
        let message = match named.as_str() {
            "" => {
                format!("{}; all members hold the slot, and the disk or the network is slow", refusal.message)
            }
            named => format!("{}; missing: {named}", refusal.message),
        };
        Refusal { message, ..refusal }
    }

    /// Reads the store on a thread that may block; waits while too many do.
    ///
    /// # Errors
    /// What the store refuses; `UNAVAILABLE` when the node is shutting down; `INTERNAL` if the work panicked.
    pub async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Ledger) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Refusal> {
        let permit = Arc::clone(&self.reads).acquire_owned().await.map_err(|_| Refusal::shutting_down())?;
        let ledger = self.ledger.clone();
        let work = move || {
            let result = work(&ledger);
            drop(permit);
            result
        };
        blocking(work).await?.map_err(Refusal::from)
    }
}

/// Runs work on a thread that may block. A panic there becomes `INTERNAL` here.
///
/// # Errors
/// `INTERNAL` if the work panicked; `UNAVAILABLE` when the node is shutting down.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
    ledger_store::blocking::spawn(work).await.map_err(|error| {
        if error.is_panic() {
            Refusal::internal("the request failed inside the server: see its log")
        } else {
            Refusal::shutting_down()
        }
    })
}
