//! What there is to say of a cluster: the nodes, and how the slots stand.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use comfy_table::{Table, presets::NOTHING};
use ledger_client::Client;
use ledger_proto::ledger::v1::{LocateRequest, Member, MembersResponse};
use serde_json::{Value, json};

use crate::{
    args::Connection,
    cluster::{
        members::{HEADER, object, row},
        survey::{Survey, survey},
    },
    exit::{Partial, Unwell},
    output::visible,
};

/// What there is to say of a cluster.
#[derive(Debug)]
pub(super) struct Picture {
    pub(super) members: MembersResponse,
    nodes: Nodes,
    slots: Slots,
}

/// Which nodes there should be, and are.
#[derive(Debug, Default, PartialEq, Eq)]
struct Nodes {
    /// Slots that each node keeps, in the directory that it has now, in the order of the members.
    keeps: Vec<usize>,
    /// Nodes that keep something, and those that are heard: neither those that left nor those whose places others have.
    expected: usize,
    /// Those of them that are heard.
    alive: usize,
    /// Those that answered.
    answered: BTreeSet<String>,
    /// Those that should have, and did not.
    silent: Vec<String>,
    /// Those that answered, and are not heard by others that did.
    unheard: BTreeMap<String, BTreeSet<String>>,
}

/// How the slots stand.
#[derive(Debug, Default, PartialEq, Eq)]
struct Slots {
    total: usize,
    /// So many copies are in sync at their owner that an append is acknowledged now.
    taking: usize,
    /// Fewer copies in step than there should be, the owner included.
    short: usize,
    /// Owned by nodes that did not answer: nobody else knows whether they take appends.
    unknown: usize,
    /// Why slots take no appends, and how many.
    reasons: BTreeMap<String, usize>,
}

impl Nodes {
    fn of(survey: &Survey) -> Self {
        let kept = survey.kept();
        let named: BTreeSet<_> = kept.keys().map(|(node, _)| *node).collect();
        let members = &survey.members.members;
        let is_expected = |member: &&Member| {
            let has_left = member.readiness == "decommissioning" || member.readiness == "leaving";
            named.contains(member.node_id.as_str()) || (member.alive && !has_left)
        };
        let expected: Vec<_> = members.iter().filter(is_expected).collect();
        let keeps = |member: &Member| kept.get(&(&*member.node_id, &*member.storage_id)).copied();
        Self {
            keeps: members.iter().map(|member| keeps(member).unwrap_or_default()).collect(),
            expected: expected.len(),
            alive: expected.iter().filter(|member| member.alive).count(),
            answered: survey.answered.clone(),
            silent: survey.silent().into_iter().map(str::to_owned).collect(),
            unheard: survey.unheard.clone(),
        }
    }

    fn silent(&self) -> String {
        names(&self.silent)
    }
}

/// Names, as they may be shown.
fn names<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    names.into_iter().map(|name| visible(name)).collect::<Vec<_>>().join(", ")
}

impl Slots {
    fn of(survey: &Survey) -> Self {
        let MembersResponse { copies, min_copies, .. } = survey.members;
        let mut slots = Self { total: survey.locations.len(), ..Self::default() };
        for location in &survey.locations {
            if location.owner.is_empty() {
                *slots.reasons.entry(location.reason.clone()).or_default() += 1;
                continue;
            }
            if !survey.is_known(location) {
                slots.unknown += 1;
                continue;
            }
            let in_step = location.replicas.iter().filter(|replica| replica.in_step).count();
            slots.short += usize::from(in_step < copies as usize);
            // With fewer members than that, all of them.
            let needed = (min_copies as usize).min(location.replicas.len());
            if in_step >= needed {
                slots.taking += 1;
            } else {
                *slots.reasons.entry(location.reason.clone()).or_default() += 1;
            }
        }
        slots
    }

    /// Slots to which no node takes appends.
    fn without_owner(&self) -> usize {
        self.reasons.values().sum()
    }

    fn is_whole(&self) -> bool {
        self.taking == self.total && self.short == 0
    }
}

/// Asks all nodes.
pub(super) async fn look(connection: &Connection, client: &Client) -> anyhow::Result<Picture> {
    Ok(Picture::of(survey(connection, client, LocateRequest::default()).await?))
}

impl Picture {
    /// What all nodes said.
    pub(super) fn of(survey: Survey) -> Self {
        let (nodes, slots) = (Nodes::of(&survey), Slots::of(&survey));
        Self { members: survey.members, nodes, slots }
    }

    pub(super) fn object(&self) -> Value {
        let MembersResponse { members, node_id, cluster_id, copies, min_copies, identity, others } =
            &self.members;
        let (nodes, slots) = (&self.nodes, &self.slots);
        let others: Vec<_> = others
            .iter()
            .map(|other| json!({ "identity": other.identity, "heard_at": other.heard_at }))
            .collect();
        let reasons: Vec<_> =
            slots.reasons.iter().map(|(reason, count)| json!({ "reason": reason, "slots": count })).collect();
        let members = members.iter().zip(&nodes.keeps).map(|(member, keeps)| {
            let mut object = object(member);
            object["slots_kept"] = json!(keeps);
            object["answered"] = json!(nodes.answered.contains(&member.node_id));
            let not_heard_by = nodes.unheard.get(&member.node_id);
            object["not_heard_by"] = json!(not_heard_by.into_iter().flatten().collect::<Vec<_>>());
            object
        });
        json!({
            "cluster_id": cluster_id,
            "identity": identity,
            "other_clusters": others,
            "node_id": node_id,
            "copies": copies,
            "min_copies": min_copies,
            "well": self.trouble().is_none(),
            "nodes": { "expected": nodes.expected, "alive": nodes.alive, "not_answering": nodes.silent },
            "members": members.collect::<Vec<_>>(),
            "slots": {
                "total": slots.total,
                "owned": slots.taking + slots.unknown,
                "taking_appends": slots.taking,
                "without_owner": slots.without_owner(),
                "short_of_copies": slots.short,
                "not_known": slots.unknown,
                "reasons": reasons,
            },
        })
    }

    pub(super) fn text(&self) -> String {
        let MembersResponse { members, node_id, cluster_id, copies, min_copies, others, .. } = &self.members;
        let Nodes { expected, alive, .. } = &self.nodes;
        let (cluster_id, node_id) = (visible(cluster_id), visible(node_id));
        let mut text =
            format!("cluster {cluster_id}, asked at {node_id} (*): {alive} of {expected} nodes alive; ");
        let _ = writeln!(text, "{copies} copies of each entry, acknowledged when {min_copies} are on disk\n");
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
        for (node, by) in &self.nodes.unheard {
            let _ = writeln!(
                text,
                "{} answers, and is not heard by {}: look at the network between them (gossip, UDP)",
                visible(node),
                names(by)
            );
        }
        text.push_str(&self.slots.text(*copies, &self.nodes.silent()));
        text
    }

    /// What is not as it should be, as the exit code has it.
    pub(super) fn trouble(&self) -> Option<anyhow::Error> {
        let Slots { total, taking, short, unknown, .. } = &self.slots;
        let without = self.slots.without_owner();
        if without > 0 || *short > 0 {
            let message = format!(
                "the cluster is not well: {taking} of {total} slots take appends now, {without} take none, {short} of those that are owned lack copies"
            );
            return Some(Unwell(message).into());
        }
        if !self.nodes.unheard.is_empty() {
            let unheard = names(self.nodes.unheard.keys());
            return Some(
                Unwell(format!("the cluster is not well: {unheard} answers, and is not heard by all")).into(),
            );
        }
        (!self.nodes.silent.is_empty()).then(|| {
            let silent = self.nodes.silent();
            Partial(format!("{silent} did not answer: how {unknown} of {total} slots are is not known"))
                .into()
        })
    }
}

impl Slots {
    fn text(&self, copies: u32, silent: &str) -> String {
        let Self { taking, total, .. } = self;
        let mut text = if self.is_whole() {
            format!("all {total} slots have an owner and {copies} copies in step")
        } else {
            format!("{taking} of {total} slots take appends now")
        };
        for (reason, count) in &self.reasons {
            let reason = if reason.is_empty() { "no reason is known".to_owned() } else { visible(reason) };
            let _ = write!(text, "\n  {count} take none: {reason}");
        }
        if self.short > 0 {
            let _ = write!(text, "\n  {} are owned, and have fewer than {copies} copies in step", self.short);
        }
        if !silent.is_empty() {
            let _ = write!(text, "\n  {silent} did not answer");
        }
        if self.unknown > 0 {
            let _ = write!(text, ": whether {} slots take appends is not known", self.unknown);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use ledger_proto::ledger::v1::{Location, Replica};

    use super::*;

    fn location(owner: &str, members: usize, in_step: usize) -> Location {
        let replica = |n| Replica { node_id: format!("n{n}"), in_step: n < in_step, ..Replica::default() };
        let reason = if owner.is_empty() { "2 of 3 are away" } else { "" };
        Location {
            owner: owner.into(),
            replicas: (0..members).map(replica).collect(),
            reason: reason.into(),
            ..Location::default()
        }
    }

    fn picture(locations: Vec<Location>, members: &[(&str, &str, bool)], answered: &[&str]) -> Picture {
        let member = |&(node, readiness, alive): &(&str, &str, bool)| Member {
            node_id: node.into(),
            readiness: readiness.into(),
            alive,
            ..Member::default()
        };
        let members = MembersResponse {
            members: members.iter().map(member).collect(),
            copies: 3,
            min_copies: 2,
            ..MembersResponse::default()
        };
        let answered = answered.iter().map(ToString::to_string).collect();
        Picture::of(Survey { members, locations, answered, ..Survey::default() })
    }

    fn code(picture: &Picture) -> Option<&'static str> {
        let trouble = picture.trouble()?;
        Some(if trouble.is::<Unwell>() { "unwell" } else { "partial" })
    }

    #[test]
    fn slots_are_counted_by_whether_they_take_appends_now() {
        let locations = vec![
            location("a", 3, 3),
            location("a", 3, 2),
            location("a", 3, 1),
            location("", 3, 0),
            location("", 3, 0),
            location("b", 3, 3),
            // What goes on after losses with what is left.
            location("a", 1, 1),
        ];
        let all = picture(locations, &[("a", "ready", true), ("b", "ready", true)], &["a"]);
        let slots = &all.slots;
        assert_eq!((slots.total, slots.taking, slots.without_owner()), (7, 3, 3));
        assert_eq!((slots.short, slots.unknown, code(&all)), (3, 1, Some("unwell")));
        let object = all.object();
        assert_eq!((&object["slots"]["owned"], &object["well"]), (&4.into(), &false.into()));
        let text = slots.text(3, &all.nodes.silent());
        for part in [
            "3 of 7 slots take appends now",
            "2 take none: 2 of 3 are away",
            "3 are owned, and have fewer than 3 copies",
            "b did not answer: whether 1 slots",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn all_is_well_only_if_every_node_that_is_there_says_so() {
        let nodes = [("n0", "ready", true), ("n1", "ready", true), ("n2", "ready", true)];
        let whole = picture(vec![location("n0", 3, 3)], &nodes, &["n0", "n1", "n2"]);
        assert_eq!(code(&whole), None);
        assert!(whole.text().contains("3 of 3 nodes alive") && whole.text().contains("all 1 slots"));
        let partial = picture(vec![location("n0", 3, 3)], &nodes, &["n0", "n1"]);
        assert_eq!(code(&partial), Some("partial"));
        assert!(partial.text().contains("n2 did not answer"), "{}", partial.text());
    }

    #[test]
    fn nodes_that_do_not_hear_each_other_are_said() {
        let nodes = [("n0", "ready", true), ("n1", "ready", true), ("n2", "ready", true)];
        let mut seen = picture(vec![location("n0", 3, 3)], &nodes, &["n0", "n1", "n2"]);
        seen.nodes.unheard.insert("n2".into(), ["n0".to_owned(), "n1".to_owned()].into());
        assert_eq!(code(&seen), Some("unwell"));
        assert!(seen.text().contains("n2 answers, and is not heard by n0, n1"), "{}", seen.text());
        let object = seen.object();
        let not_heard_by = |at: usize| object["members"][at]["not_heard_by"].clone();
        assert_eq!((not_heard_by(0), not_heard_by(2)), (json!([]), json!(["n0", "n1"])));
    }

    #[test]
    fn nodes_that_left_do_not_count_and_those_that_keep_something_do() {
        let nodes = [
            ("n0", "ready", true),
            ("n1", "ready", true),
            ("n2", "ready", false),
            ("left", "leaving", false),
            ("stays-up", "decommissioning", true),
            ("new", "joining", true),
            ("replaced", "ready", false),
        ];
        let seen = picture(vec![location("n0", 3, 2)], &nodes, &["n0", "n1", "new", "stays-up"]);
        assert_eq!((seen.nodes.expected, seen.nodes.alive), (4, 3));
        assert_eq!(seen.nodes.keeps, [1, 1, 1, 0, 0, 0, 0]);
        let object = seen.object();
        assert_eq!(
            (&object["members"][2]["answered"], &object["members"][5]["answered"]),
            (&false.into(), &true.into())
        );
    }
}
