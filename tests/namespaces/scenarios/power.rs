//! Power cuts: what a disk was not told to keep is gone. What counts is what was acknowledged before.
//!
//! ext4 lets an fdatasync that races with the cut return 0. A machine without power acknowledges nothing, so before all of
//! them lose it, their processes are frozen: whatever a sync returned by then is never heard of.

use futures::future::join_all;
use rand::RngExt as _;

use super::rounds;
use crate::{
    faults::power::FileSystem,
    report::Report,
    run::{Errors, Ground, Run, Setting, What},
};

async fn start(what: What, kind: FileSystem) -> Option<Run> {
    let mut run = Run::start(what, Setting { ground: Ground::Volumes(kind), ..Setting::default() }).await?;
    run.a_while(0..1000).await;
    Some(run)
}

impl Run {
    fn cut_power(&self, index: usize) {
        self.cluster.nodes[index].volume.as_ref().expect("the setting has volumes").cut();
    }

    /// The machine is back: its file system is mounted again. It must not run yet.
    fn restore_power(&self, index: usize) {
        self.cluster.nodes[index].volume.as_ref().expect("the setting has volumes").restore();
    }
}

/// One node loses its power, or its disk some time before: it goes on for up to 2 s while nothing more is kept. The others
/// have whatever it helped to acknowledge.
async fn one(what: What, kind: FileSystem) -> Option<Report> {
    let mut run = start(what, kind).await?;
    let index = run.cluster.owner(&run.contexts[0]).await;
    let is_frozen = run.random.random();
    if is_frozen {
        run.cluster.nodes[index].freeze().await;
        run.cut_power(index);
    } else {
        run.cut_power(index);
        run.a_while(0..2000).await;
    }
    if run.cluster.nodes[index].runs() {
        run.cluster.nodes[index].kill();
    }
    run.goes_on("without a node").await;
    run.restore_power(index);
    let restarts = run.cluster.supervise(index).await.expect("a power cut damages nothing");
    run.note(format!(
        "{}, started again {restarts} times",
        if is_frozen { "at once" } else { "the disk before" }
    ));
    Some(run.finish(Errors::None).await)
}

/// All nodes lose their power at once.
async fn all(what: What, kind: FileSystem) -> Option<Report> {
    let mut run = start(what, kind).await?;
    join_all(run.cluster.nodes.iter().map(crate::node::Node::freeze)).await;
    (0..3).for_each(|index| run.cut_power(index));
    (0..3).for_each(|index| run.cluster.nodes[index].kill());
    for index in 0..3 {
        run.restore_power(index);
        run.cluster.spawn(index);
    }
    for index in 0..3 {
        run.cluster.serves(index).await;
    }
    // Nobody is there to answer for as long as the machines need.
    Some(run.finish(Errors::Some).await)
}

/// An owner on ext4 loses its power.
#[test]
fn the_owner_loses_its_power_on_ext4() {
    rounds(true, async |what| one(what, FileSystem::Ext4).await);
}

/// An owner on XFS loses its power.
#[test]
fn the_owner_loses_its_power_on_xfs() {
    rounds(false, async |what| one(what, FileSystem::Xfs).await);
}

/// All nodes, on ext4, lose their power at once.
#[test]
fn all_nodes_lose_their_power_on_ext4() {
    rounds(false, async |what| all(what, FileSystem::Ext4).await);
}

/// All nodes, on XFS, lose their power at once.
#[test]
fn all_nodes_lose_their_power_on_xfs() {
    rounds(false, async |what| all(what, FileSystem::Xfs).await);
}
