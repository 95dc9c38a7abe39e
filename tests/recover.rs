//! Most disks of a cluster are lost, each node a process of its own: what is left goes on when an operator says so.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should stop"
)]

use ledger_client::{Append, Client, ContextId, Options, ReadFrom, Selection};
use ledger_tests::{Cluster, Node, cluster::name, until, until_async};
use serde_json::Value;

fn recover(node: &Node, args: &[&str]) -> (i32, String, String) {
    node.ctl(&[&["cluster", "recover"], args].concat())
}

fn json(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn client(node: &Node) -> Client {
    Client::connect(&node.endpoint(), &Options::default()).unwrap()
}

fn context(number: usize) -> ContextId {
    ContextId::new(format!("recover-{number}")).unwrap()
}

async fn append(client: &Client, number: usize, payload: &str) -> Result<u64, String> {
    let append = Append::new(&context(number), "facts", payload.to_owned()).unwrap();
    client.append(append).await.map(|stored| stored.entry.sequence.0).map_err(|error| error.to_string())
}

async fn payloads(client: &Client, number: usize) -> Vec<String> {
    let selection = Selection { read_from: ReadFrom::Owner, ..Selection::default() };
    let entries = client.get(&context(number), selection).collect().await.unwrap();
    entries.iter().map(|entry| String::from_utf8(entry.payload.to_vec()).unwrap()).collect()
}

/// Nodes die, and their disks with them.
fn lose(cluster: &mut Cluster, lost: &[usize]) {
    for lost in lost {
        cluster.kill(*lost);
        std::fs::remove_dir_all(cluster.data_dir(*lost)).unwrap();
    }
    // Every survivor has a say in what is lost.
    for node in cluster.running() {
        until("it is seen who is gone", || {
            let (_, members, _) = node.ctl(&["cluster", "members"]);
            (members.matches("dead").count() == lost.len()).then_some(())
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_of_three_volumes_are_lost_and_the_third_goes_on_when_it_is_told_to() {
    const CONTEXTS: usize = 60;
    let mut cluster = Cluster::start(3, &[]);
    let before = client(cluster.node(0));
    for number in 0..CONTEXTS {
        assert_eq!(append(&before, number, "before").await, Ok(1));
    }
    cluster.settle();
    let (code, said, _) = recover(cluster.node(0), &[]);
    assert!(code == 0 && said.contains("nothing is lost"), "{said}");

    lose(&mut cluster, &[1, 2]);
    let hasty = Options { timeout: std::time::Duration::from_secs(2), ..Options::default() };
    let refused = append(&Client::connect(&cluster.node(0).endpoint(), &hasty).unwrap(), 0, "refused").await;
    assert!(refused.is_err(), "{refused:?}");

    // What status and the metrics say is what clients meet.
    let slots = until("status says that no slot takes appends", || {
        let (_, said, _) = cluster.node(0).ctl(&["cluster", "status", "--json"]);
        let slots = json(&said).pop()?["slots"].clone();
        // What owners take for the moment waits for copies, and may be stored: then they refuse it.
        let waits = slots["reasons"].to_string().contains("appends wait");
        (slots["taking_appends"] == 0 && !waits).then_some(slots)
    });
    assert_eq!(slots["total"], 1024, "{slots}");
    until("the metrics say so", || {
        let metric = |name: &str| cluster.node(0).metric(name);
        let owned = metric("ledger_cluster_slots_owned")?;
        let unowned = metric("ledger_cluster_slots_without_owner")?;
        (owned < 0.5 && unowned > 1023.5).then_some(())
    });
    let asked = (0..CONTEXTS).step_by(4).map(|number| {
        let client = Client::connect(&cluster.node(0).endpoint(), &hasty).unwrap();
        async move { append(&client, number, "refused").await }
    });
    for refused in futures::future::join_all(asked).await {
        assert!(refused.is_err(), "{refused:?}");
    }

    // What there is, slot by slot; nothing is changed.
    let shown = until("all slots are known to be stuck", || {
        let (code, said, error) = recover(cluster.node(0), &["--json"]);
        assert_eq!(code, 0, "{error}");
        (json(&said).last().unwrap()["stuck_slots"] == 1024).then(|| json(&said))
    });
    let (summary, slots) = shown.split_last().unwrap();
    assert_eq!((slots.len(), &summary["applied"]), (1024, &false.into()));
    let entries: u64 = slots.iter().map(|slot| slot["survivors"][0]["entries"].as_u64().unwrap()).sum();
    assert_eq!(entries, CONTEXTS as u64);
    for slot in slots {
        assert_eq!(slot["missing"], serde_json::json!(["n1", "n2"]));
        assert_eq!(slot["survivors"][0]["node_id"], "n0");
    }
    let (_, said, _) = recover(cluster.node(0), &[]);
    for part in ["n1 (directory", "n2 (directory", "1024 slots cannot go on", "cannot be known", "--apply"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    let (code, _, error) = recover(cluster.node(0), &["--lost", "n0"]);
    assert!(code == 2 && error.contains("n0 is no member that does not answer"), "{error}");
    // With one of them only, the other may still hold something.
    let (code, said, error) = recover(cluster.node(0), &["--lost", "n1", "--apply"]);
    assert!(code == 2 && error.contains("n2") && error.contains("was not declared lost"), "{said}{error}");

    let reason = ["--apply", "--reason", "both volumes are gone"];
    let (code, said, error) = recover(cluster.node(0), &reason);
    assert_eq!(code, 0, "{said}{error}");
    for number in 0..CONTEXTS {
        assert_eq!(append(&client(cluster.node(0)), number, "after").await, Ok(2));
    }
    // Empty directories under the old names are new members.
    cluster.restart(1);
    cluster.restart(2);
    cluster.settle();
    for restarted in 0..3 {
        cluster.stop(restarted);
        cluster.restart(restarted);
    }
    cluster.settle();
    for number in 0..CONTEXTS {
        assert_eq!(payloads(&client(cluster.node(number % 3)), number).await, ["before", "after"]);
    }
    // What was decided, and what came of it, is known to every node, and stays so.
    for node in 0..3 {
        let known = until("the decision is known", || {
            let (code, said, error) = recover(cluster.node(node), &["--history", "--json"]);
            assert_eq!(code, 0, "{error}");
            json(&said).pop()
        });
        assert_eq!(known["reason"], "both volumes are gone");
        let lost: Vec<_> = known["lost"].as_array().unwrap().iter().map(|lost| &lost["node_id"]).collect();
        assert_eq!(lost, ["n1", "n2"]);
        let slots = known["slots"].as_array().unwrap();
        assert_eq!(slots.len(), 1024);
        assert_eq!((&slots[0]["claimant"], &slots[0]["heard"][0]["node_id"]), (&"n0".into(), &"n0".into()));
        assert_eq!(slots[0]["missing"].as_array().unwrap().len(), 2);
    }
    let (_, said, _) = recover(cluster.node(1), &["--history"]);
    assert!(said.contains("both volumes are gone") && said.contains("1024 slots went on"), "{said}");
    let (_, said, _) = recover(cluster.node(1), &[]);
    assert!(said.contains("no slot needs them") || said.contains("nothing is lost"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_were_declared_lost_and_are_back_are_new_ones_and_what_only_they_held_is_a_fork() {
    let mut cluster = Cluster::start(3, &[]);
    assert_eq!(append(&client(cluster.node(0)), 0, "of all").await, Ok(1));
    cluster.settle();
    // Two acknowledge what the third never sees.
    cluster.kill(0);
    let two = client(cluster.node(1));
    let second = until_async("the two go on", async || append(&two, 0, "of two").await.ok()).await;
    assert_eq!(second, 2);
    cluster.kill(1);
    cluster.kill(2);
    cluster.restart(0);
    // It hears of nobody, and knows the others by what it recorded.
    let (code, said, error) = recover(cluster.node(0), &["--apply", "--reason", "nobody finds the volumes"]);
    assert_eq!(code, 0, "{said}{error}");
    assert_eq!(append(&client(cluster.node(0)), 0, "of one").await, Ok(2));

    // They are found after all. What they promised each other holds no longer: they end, and join anew.
    cluster.restart(1);
    cluster.restart(2);
    for back in [1, 2] {
        let stopped = cluster.nodes[back].take().unwrap().wait();
        assert_eq!(stopped.status.code(), Some(5), "{}", stopped.log);
        assert!(stopped.log.contains("declared the data directory lost"), "{}", stopped.log);
        cluster.restart(back);
    }
    cluster.settle();
    for node in 0..3 {
        assert_eq!(payloads(&client(cluster.node(node)), 0).await, ["of all", "of one"]);
    }
    let left = until("what only they held is listed", || {
        let (code, said, error) = cluster.node(0).ctl(&["forks", context(0).as_str(), "--json"]);
        assert_eq!(code, 0, "{error}");
        (said.lines().count() == 2).then(|| json(&said))
    });
    for fork in &left {
        let (node, number) = (fork["node_id"].as_str().unwrap(), fork["fork"].to_string());
        assert!([name(1), name(2)].contains(&node.to_owned()), "{fork}");
        let (_, lines, _) =
            cluster.node(0).ctl(&["forks", context(0).as_str(), "--export", &number, "--node", node]);
        assert!(lines.contains("of two"), "{lines}");
    }

    // Each counts its own: whether a node that is silent has one of that number, too, nobody knows.
    let of_one = left.iter().find(|fork| fork["node_id"] == name(1).as_str()).unwrap();
    let number = of_one["fork"].to_string();
    cluster.kill(2);
    let of = context(0);
    let export = ["forks", of.as_str(), "--export", &number];
    let (code, lines, error) = cluster.node(0).ctl(&export);
    assert!(code == 8 && lines.contains("of two"), "{code}: {lines}{error}");
    assert!(error.contains(&name(2)) && error.contains("--node"), "{error}");
    let (code, lines, error) = cluster.node(0).ctl(&[&export[..], &["--node", &name(1)]].concat());
    assert!(code == 0 && lines.contains("of two"), "{code}: {lines}{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_five_nodes_two_are_lost_and_only_slots_that_need_it_go_on_without_them() {
    let mut cluster = Cluster::start(5, &[]);
    let before = client(cluster.node(0));
    for number in 0..40 {
        assert_eq!(append(&before, number, "before").await, Ok(1));
    }
    cluster.settle();
    lose(&mut cluster, &[3, 4]);
    let (code, said, error) = recover(cluster.node(1), &["--apply", "--reason", "one rack burnt"]);
    assert_eq!(code, 0, "{said}{error}");
    let known = json(&recover(cluster.node(2), &["--history", "--json"]).1).pop().unwrap();
    let slots = known["slots"].as_array().unwrap().len();
    assert!((150..500).contains(&slots), "three of ten slots had both as members, not {slots}");
    for number in 0..40 {
        assert_eq!(append(&client(cluster.node(2)), number, "after").await, Ok(2));
        assert_eq!(payloads(&client(cluster.node(0)), number).await, ["before", "after"]);
    }
    cluster.settle();
}

/// Of some slots all members are lost, and none of those who are left ever knew them: these go on, too, with nothing.
#[tokio::test(flavor = "multi_thread")]
async fn of_five_nodes_three_are_lost_and_slots_that_nobody_else_knew_go_on_empty() {
    const CONTEXTS: usize = 40;
    let mut cluster = Cluster::start(5, &[]);
    let before = client(cluster.node(0));
    for number in 0..CONTEXTS {
        assert_eq!(append(&before, number, "before").await, Ok(1));
    }
    cluster.settle();
    lose(&mut cluster, &[2, 3, 4]);
    until("slots of which nobody is left are shown", || {
        let (code, said, error) = recover(cluster.node(0), &["--json"]);
        assert_eq!(code, 0, "{error}");
        let slots = json(&said);
        // Three of five: one slot in ten had no other members.
        let of_nobody = slots.iter().filter(|slot| slot["survivors"].as_array().is_some_and(Vec::is_empty));
        let of_nobody = of_nobody.count();
        // Seven of ten had at most one.
        let stuck = slots.last()?["stuck_slots"].as_u64()?;
        (of_nobody > 50 && (600..900).contains(&stuck)).then_some(())
    });
    let (code, said, error) = recover(cluster.node(1), &["--apply", "--reason", "three volumes are gone"]);
    assert_eq!(code, 0, "{said}{error}");
    let mut empty = 0;
    for number in 0..CONTEXTS {
        let sequence = append(&client(cluster.node(number % 2)), number, "after").await.unwrap();
        let expected: &[&str] = if sequence == 1 { &["after"] } else { &["before", "after"] };
        assert_eq!(payloads(&client(cluster.node(0)), number).await, expected);
        empty += usize::from(sequence == 1);
    }
    assert!(empty < CONTEXTS / 2, "what somebody still held is there: {empty} of {CONTEXTS} are empty");
    cluster.restart(2);
    cluster.settle();
}
