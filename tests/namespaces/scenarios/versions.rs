//! Nodes of another version beside new ones.

use std::{env, path::PathBuf};

use ledger_tests::{binary, skip};

use super::rounds;
use crate::run::{Errors, Run, Setting};

impl Run {
    /// Restarts a node with another program, as an upgrade does.
    async fn change(&mut self, index: usize, program: PathBuf) {
        self.cluster.nodes[index].stop().await;
        self.cluster.nodes[index].program = program;
        self.cluster.start(index).await;
        self.cluster.settled("after a node changed its version").await;
        self.goes_on("with nodes of two versions").await;
    }
}

/// Node after node goes over to the `ledgerd` of --other, and back; an owner is killed while there are two versions.
#[test]
fn nodes_change_their_version() {
    let Some(other) = env::var_os("LEDGERTEST_NAMESPACES_OTHER").map(PathBuf::from) else {
        skip("nodes_change_their_version: it needs --other with the path of another ledgerd");
        return;
    };
    rounds(false, async |what| {
        let mut run = Run::start(what, Setting::default()).await?;
        for index in 0..3 {
            run.change(index, other.clone()).await;
            if index == 1 {
                let owner = run.cluster.owner(&run.contexts[0]).await;
                run.cluster.nodes[owner].kill();
                run.goes_on("after an owner was killed among two versions").await;
                run.cluster.start(owner).await;
                run.cluster.settled("after an owner was killed among two versions").await;
            }
        }
        for index in 0..3 {
            run.change(index, binary("ledgerd")).await;
        }
        Some(run.finish(Errors::None).await)
    });
}
