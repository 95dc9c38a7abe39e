//! `ledgerctl cluster status`: the nodes, and whether every slot has an owner and all its copies.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    fmt::Write as _,
    io::{self, IsTerminal as _},
    time::Duration,
};

use comfy_table::{Table, presets::NOTHING};
use ledger_client::{Client, ClientError};
use ledger_proto::ledger::v1::{LocateRequest, Location, MembersResponse, WatchClusterRequest};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::{
    members::{HEADER, object, row},
    reach::{self, Located},
};
use crate::{
    args::Connection,
    output::{Output, complain, visible},
};

/// Changes that come within so long of each other are shown together.
const TOGETHER: Duration = Duration::from_millis(100);
/// How often a cluster that lacks something is looked at, even if no change is heard.
const AGAIN: Duration = Duration::from_secs(1);

/// What there is to say of a cluster.
#[derive(Debug)]
struct Picture {
    members: MembersResponse,
    slots: Slots,
}

/// How the slots stand.
#[derive(Debug, Default, PartialEq, Eq)]
struct Slots {
    total: usize,
    owned: usize,
    /// Owned, with so many copies in step that an append is acknowledged now.
    taking: usize,
    /// Fewer copies in step than there should be, the owner included.
    short: usize,
    /// Owned by nodes that did not answer: nobody else knows their copies.
    unknown: usize,
    silent: BTreeSet<String>,
    /// Why slots have no owner, and how many.
    reasons: BTreeMap<String, usize>,
}

impl Slots {
    fn of(located: &Located, copies: u32, min_copies: u32) -> Self {
        let mut slots =
            Self { total: located.locations.len(), silent: located.silent.clone(), ..Self::default() };
        for location in &located.locations {
            if location.owner.is_empty() {
                *slots.reasons.entry(location.reason.clone()).or_default() += 1;
                continue;
            }
            slots.owned += 1;
            if !located.is_known(location) {
                slots.unknown += 1;
                continue;
            }
            let in_step = in_step(location);
            slots.short += usize::from(in_step < copies as usize);
            slots.taking += usize::from(in_step >= min_copies as usize);
        }
        slots
    }

    fn is_whole(&self) -> bool {
        self.owned == self.total && self.short == 0 && self.unknown == 0
    }
}

fn in_step(location: &Location) -> usize {
    location.replicas.iter().filter(|replica| replica.in_step).count()
}

async fn look(connection: &Connection, client: &Client) -> anyhow::Result<Picture> {
    let members = reach::members(connection, client).await?;
    let located = reach::locate_at_owners(connection, client, &members, LocateRequest::default()).await?;
    let slots = Slots::of(&located, members.copies, members.min_copies);
    Ok(Picture { members, slots })
}

impl Picture {
    fn object(&self) -> Value {
        let MembersResponse { members, node_id, cluster_id, copies, min_copies, identity, others } =
            &self.members;
        let slots = &self.slots;
        let others: Vec<_> = others
            .iter()
            .map(|other| json!({ "identity": other.identity, "heard_at": other.heard_at }))
            .collect();
        let reasons: Vec<_> =
            slots.reasons.iter().map(|(reason, count)| json!({ "reason": reason, "slots": count })).collect();
        json!({
            "cluster_id": cluster_id,
            "identity": identity,
            "other_clusters": others,
            "node_id": node_id,
            "copies": copies,
            "min_copies": min_copies,
            "members": members.iter().map(object).collect::<Vec<_>>(),
            "slots": {
                "total": slots.total,
                "owned": slots.owned,
                "taking_appends": slots.taking,
                "without_owner": slots.total - slots.owned,
                "short_of_copies": slots.short,
                "not_known": slots.unknown,
                "reasons": reasons,
            },
        })
    }

    fn text(&self) -> String {
        let MembersResponse { members, node_id, cluster_id, copies, min_copies, others, .. } = &self.members;
        let alive = members.iter().filter(|member| member.alive).count();
        let (cluster_id, node_id) = (visible(cluster_id), visible(node_id));
        let mut text =
            format!("cluster {cluster_id}, as {node_id} (*) sees it: {alive} of {} ", members.len());
        let _ = writeln!(
            text,
            "nodes alive; {copies} copies of each entry, acknowledged when {min_copies} are on disk\n"
        );
        for other in others {
            let (identity, heard_at) = (visible(&other.identity), visible(&other.heard_at));
            let _ = writeln!(
                text,
                "another cluster of this name and with these keys ({identity}) is heard at {heard_at}, and refused: look at the seeds of both\n"
            );
        }
        let mut table = Table::new();
        table.load_style(NOTHING);
        table.set_header(HEADER);
        for member in members {
            table.add_row(row(member, &self.members));
        }
        let _ = writeln!(text, "{}\n", table.trim_fmt());
        text.push_str(&self.slots.text(*copies));
        text
    }
}

impl Slots {
    fn text(&self, copies: u32) -> String {
        if self.is_whole() {
            return format!("all {} slots have an owner and {copies} copies in step", self.total);
        }
        let Self { owned, taking, total, .. } = self;
        let mut text = format!("{owned} of {total} slots have an owner, {taking} take appends now");
        for (reason, count) in &self.reasons {
            let reason = if reason.is_empty() { "no reason is known".to_owned() } else { visible(reason) };
            let _ = write!(text, "\n  {count} have none: {reason}");
        }
        if self.short > 0 {
            let _ = write!(text, "\n  {} have fewer than {copies} copies in step", self.short);
        }
        if self.unknown > 0 {
            let silent = self.silent.iter().map(|name| visible(name)).collect::<Vec<_>>().join(", ");
            let _ = write!(
                text,
                "\n  {}: how their copies are is not known, for {silent} did not answer",
                self.unknown
            );
        }
        text
    }
}

pub(super) async fn run(connection: &Connection, output: &Output) -> anyhow::Result<()> {
    let picture = look(connection, &connection.client()?).await?;
    output.result(&picture.object(), || picture.text())?;
    Ok(())
}

/// Shows the picture whenever it changes, until interrupted. If the node that is asked goes, another one is.
pub(super) async fn watch(connection: &Connection, output: &Output) -> anyhow::Result<()> {
    let mut screen = Screen { output, last: None, tried: BTreeSet::new() };
    let mut asked = connection.clone();
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    loop {
        let Err(error) = tokio::select! {
            ended = follow(&asked, &mut screen) => ended,
            _ = &mut interrupted => return Ok(()),
        };
        match screen.next_to_ask(&asked) {
            Some(other) => {
                complain(&format!("ledgerctl: {}: {error:#}; asking {}", asked.endpoint, other.endpoint));
                asked = other;
            }
            None => return Err(error),
        }
    }
}

async fn follow(connection: &Connection, screen: &mut Screen<'_>) -> anyhow::Result<Infallible> {
    let client = connection.client()?;
    let mut service = client.cluster_service();
    let asked = reach::within(connection, service.watch_cluster(WatchClusterRequest {})).await?;
    let mut changes = asked.map_err(ClientError::from)?.into_inner();
    let mut is_whole = true;
    loop {
        tokio::select! {
            change = changes.message() => {
                if change.map_err(ClientError::from)?.is_none() {
                    return Err(ClientError::Unavailable("the node ended the watch".into()).into());
                }
                // If the watch ends meanwhile, the next round finds out.
                let more = async { while let Ok(Some(_)) = changes.message().await {} };
                let _ = timeout(TOGETHER, more).await;
            }
            () = sleep(AGAIN), if !is_whole => {}
        }
        let picture = look(connection, &client).await?;
        is_whole = picture.slots.is_whole();
        screen.show(picture)?;
    }
}

/// What is shown, and what was.
#[derive(Debug)]
struct Screen<'a> {
    output: &'a Output,
    last: Option<Picture>,
    /// Endpoints that failed since something was shown.
    tried: BTreeSet<String>,
}

impl Screen<'_> {
    fn show(&mut self, picture: Picture) -> io::Result<()> {
        self.tried.clear();
        if self.last.as_ref().is_none_or(|last| last.object() != picture.object()) {
            let clear = if io::stdout().is_terminal() { "\x1b[H\x1b[J" } else { "" };
            self.output.result(&picture.object(), || format!("{clear}{}\n", picture.text()))?;
        }
        self.last = Some(picture);
        Ok(())
    }

    /// A living node that did not fail yet.
    fn next_to_ask(&mut self, failed: &Connection) -> Option<Connection> {
        self.tried.insert(failed.endpoint.clone());
        let members = &self.last.as_ref()?.members.members;
        let alive = members.iter().filter(|member| member.alive);
        let mut others = alive.filter_map(|member| reach::other(failed, &member.address));
        others.find(|other| !self.tried.contains(&other.endpoint))
    }
}

#[cfg(test)]
mod tests {
    use ledger_proto::ledger::v1::{Member, Replica};

    use super::*;

    fn location(owner: &str, in_step: usize) -> Location {
        let replica = |n| Replica { in_step: n < in_step, ..Replica::default() };
        let reason = if owner.is_empty() { "2 of 3 are away" } else { "" };
        Location {
            owner: owner.into(),
            replicas: (0..3).map(replica).collect(),
            reason: reason.into(),
            ..Location::default()
        }
    }

    #[test]
    fn slots_are_counted_by_what_they_lack() {
        let locations = vec![
            location("a", 3),
            location("a", 2),
            location("a", 1),
            location("", 0),
            location("", 0),
            location("b", 3),
        ];
        let slots = Slots::of(&Located { locations, silent: ["b".to_owned()].into() }, 3, 2);
        assert_eq!((slots.total, slots.owned, slots.taking), (6, 4, 2));
        assert_eq!((slots.short, slots.unknown), (2, 1));
        let text = slots.text(3);
        for part in [
            "4 of 6 slots have an owner, 2 take",
            "2 have none: 2 of 3 are away",
            "2 have fewer than 3 copies",
            "b did not answer",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let whole = Slots::of(&Located { locations: vec![location("a", 3)], silent: [].into() }, 3, 2);
        assert!(whole.is_whole() && whole.text(3).starts_with("all 1 slots"), "{whole:?}");
    }

    #[test]
    fn when_a_node_goes_each_of_the_others_is_asked_once() {
        let member = |name: &str, alive| Member { address: format!("{name}:1"), alive, ..Member::default() };
        let members = vec![member("a", true), member("b", true), member("dead", false), member("c", true)];
        let members = MembersResponse { members, ..MembersResponse::default() };
        let output = Output::new(true);
        let last = Some(Picture { members, slots: Slots::default() });
        let mut screen = Screen { output: &output, last, tried: BTreeSet::new() };
        let mut asked =
            Connection { endpoint: "http://a:1".into(), timeout: 1.0, ca: None, cert: None, key_file: None };
        for expected in ["http://b:1", "http://c:1"] {
            asked = screen.next_to_ask(&asked).unwrap();
            assert_eq!(asked.endpoint, expected);
        }
        assert!(screen.next_to_ask(&asked).is_none());
    }
}
