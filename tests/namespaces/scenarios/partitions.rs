//! Networks that lose packets, of some nodes or of all.

use std::time::Instant;

use ledger_tests::skip;
use rand::RngExt as _;

use super::rounds;
use crate::{
    net::Way,
    run::{Errors, Run, Setting},
};

/// An owner is cut off, both ways, and comes back.
#[test]
fn the_owner_is_cut_off() {
    rounds(true, async |what| {
        let mut run = Run::start(what, Setting::default()).await?;
        run.a_while(0..500).await;
        let owner = run.cluster.owner(&run.contexts[0]).await;
        run.cluster.net.cut(run.cluster.nodes[owner].number, Way::Both);
        run.goes_on("while the owner is cut off").await;
        run.a_while(0..4000).await;
        run.cluster.net.heal();
        Some(run.finish(Errors::None).await)
    });
}

/// Nothing reaches an owner, or nothing leaves it.
#[test]
fn the_owner_is_cut_off_one_way() {
    rounds(false, async |what| {
        let mut run = Run::start(what, Setting::default()).await?;
        run.a_while(0..500).await;
        let owner = run.cluster.owner(&run.contexts[0]).await;
        let way = if run.random.random() { Way::In } else { Way::Out };
        run.note(format!("nothing {} it", if way == Way::In { "reaches" } else { "leaves" }));
        run.cluster.net.cut(run.cluster.nodes[owner].number, way);
        run.goes_on("while the owner is cut off one way").await;
        run.a_while(0..2000).await;
        run.cluster.net.heal();
        Some(run.finish(Errors::None).await)
    });
}

/// An owner and a replica cannot talk to each other; the third node can to both.
#[test]
fn the_owner_and_a_replica_cannot_talk() {
    rounds(false, async |what| {
        let mut run = Run::start(what, Setting::default()).await?;
        run.a_while(0..500).await;
        let owner = run.cluster.owner(&run.contexts[0]).await;
        let replica = (owner + run.random.random_range(1..3)) % 3;
        let [owner, replica] = [owner, replica].map(|index| run.cluster.nodes[index].number);
        if let Err(why) = run.cluster.net.cut_link(owner, replica) {
            skip(&format!("the kernel cannot cut a link: {why}"));
            return None;
        }
        run.goes_on("while two nodes cannot talk").await;
        run.a_while(0..4000).await;
        run.goes_on("while two nodes still cannot talk").await;
        run.cluster.net.heal();
        Some(run.finish(Errors::None).await)
    });
}

/// 30 % of all packets are lost for 6 to 9 s.
#[test]
fn a_third_of_the_packets_is_lost() {
    rounds(false, async |what| {
        let mut run = Run::start(what, Setting::default()).await?;
        run.cluster.net.lose(30);
        let (before, begin) = (run.load.count(), Instant::now());
        run.a_while(6000..9000).await;
        let (acknowledged, took) = (run.load.count() - before, begin.elapsed().as_secs_f64());
        let lost = run.cluster.net.lost();
        assert!((25..=35).contains(&lost), "{lost} % of the packets were lost instead of 30 %");
        run.cluster.net.heal();
        run.note(format!(
            "{acknowledged} acknowledged in {took:.1} s with {lost} % loss by {}",
            run.cluster.net.means()
        ));
        Some(run.finish(Errors::Some).await)
    });
}
