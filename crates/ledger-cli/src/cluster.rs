//! `ledgerctl cluster`: who is there, who holds what, and a cluster to try things out.

mod decommission;
mod drain;
mod local;
mod locate;
mod members;
mod operator;
mod recover;
mod status;
mod survey;

use crate::{
    args::{Cluster, Connection},
    forks,
    output::Output,
};

pub(crate) async fn run(connection: &Connection, command: Cluster, output: &Output) -> anyhow::Result<()> {
    match command {
        Cluster::Members => members::run(connection, output).await,
        Cluster::Status { watch: false } => status::run(connection, output).await,
        Cluster::Status { watch: true } => status::watch(connection, output).await,
        Cluster::Locate { contexts } => locate::run(connection, contexts, output).await,
        Cluster::Drain { resume } => drain::run(connection, resume, output).await,
        Cluster::Decommission(command) => decommission::run(connection, command, output).await,
        Cluster::Recover(command) => recover::run(connection, command, output).await,
        Cluster::Forks(command) => forks::run(connection, command, output).await,
        Cluster::Local(command) => local::run(command, output).await,
    }
}
