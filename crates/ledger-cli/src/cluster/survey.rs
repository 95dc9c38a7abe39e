//! What a cluster says of itself: every node that can be reached is asked, and what they say is put together.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::join_all;
use ledger_client::{Client, ClientError};
use ledger_proto::ledger::v1::{LocateRequest, Location, Member, MembersResponse};

use crate::{args::Connection, reach};

/// How often those are asked that were heard of in the last round: what nodes say is not believed without end.
const ROUNDS: usize = 4;

/// What all nodes that can be reached say.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    /// As the node that was named says, but each node that answered as it says itself.
    pub members: MembersResponse,
    /// Where things are, in the order asked for.
    pub locations: Vec<Location>,
    /// The nodes that answered.
    pub answered: BTreeSet<String>,
    /// Nodes that answered and are not heard by others that answered: by which.
    pub unheard: BTreeMap<String, BTreeSet<String>>,
}

/// What one node says.
#[derive(Debug)]
struct Said {
    members: MembersResponse,
    locations: Vec<Location>,
}

impl Said {
    /// What it says of a node.
    fn of(&self, node: &str) -> Option<&Member> {
        self.members.members.iter().find(|member| member.node_id == node)
    }

    fn hears(&self, node: &str) -> bool {
        self.of(node).is_some_and(|member| member.alive)
    }
}

/// Asks the node that was named, then every other one that it knows, heard or not (it may be the one that is cut off), and then
/// those that only they know.
pub(crate) async fn survey(
    connection: &Connection,
    client: &Client,
    request: LocateRequest,
) -> Result<Survey, ClientError> {
    let named = reach::members(connection, client).await?;
    let (mut said, mut asked) = (BTreeMap::new(), BTreeSet::new());
    let mut next = named.members.clone();
    for _ in 0..ROUNDS {
        let answers = join_all(next.iter().map(async |member| {
            // The address by which it is known among nodes need not be one that leads there from here. Of several nodes that
            // are named, it is not known which answers.
            let is_named = member.node_id == named.node_id;
            let other = reach::other(connection, &member.address);
            let said = match other {
                _ if is_named && !connection.endpoint.contains(',') => {
                    ask(connection, client, &request).await
                }
                Some(other) => ask(&other, &other.client().ok()?, &request).await,
                None if is_named => ask(connection, client, &request).await,
                None => return None,
            };
            // Another node may have come to have the address.
            said.ok().filter(|said| said.members.node_id == member.node_id)
        }));
        let answers = answers.await.into_iter().flatten();
        said.extend(answers.map(|said| (said.members.node_id.clone(), said)));
        asked.extend(next.into_iter().map(|member| member.node_id));
        let known = said.values().flat_map(|said| &said.members.members);
        let new: BTreeMap<_, _> = known.map(|member| (&member.node_id, member)).collect();
        next = new.into_values().filter(|member| !asked.contains(&member.node_id)).cloned().collect();
        if next.is_empty() {
            break;
        }
    }
    if said.is_empty() {
        // None of their addresses leads there from here; one of those that were named answered a moment ago.
        let one = ask(connection, client, &request).await?;
        said.insert(one.members.node_id.clone(), one);
    }
    Ok(Survey::of(named, &said))
}

async fn ask(connection: &Connection, client: &Client, request: &LocateRequest) -> Result<Said, ClientError> {
    let members = reach::members(connection, client).await?;
    Ok(Said { members, locations: reach::locate(connection, client, request.clone()).await? })
}

impl Survey {
    fn of(mut members: MembersResponse, said: &BTreeMap<String, Said>) -> Self {
        add_unknown(&mut members.members, said);
        for member in &mut members.members {
            let itself = said.get(&member.node_id).and_then(|said| said.of(&member.node_id));
            match itself {
                // Whether it counts for nothing is for others to say.
                Some(itself) if member.readiness != "set-back" => member.clone_from(itself),
                Some(_) => {}
                None => {
                    // It owned that when it was last heard.
                    (member.slots_owned, member.slots_halted) = (0, 0);
                    member.alive = said.values().any(|said| said.hears(&member.node_id));
                }
            }
        }
        let most = said.values().map(|said| said.locations.len()).max().unwrap_or_default();
        let locations = (0..most).map(|at| {
            let views = said.iter().filter_map(|(node, said)| Some((node.as_str(), said.locations.get(at)?)));
            merged(&views.collect())
        });
        let locations: Vec<_> = locations.collect();
        add_unheard(&mut members.members, &locations);
        let deaf_to = |node: &String| -> BTreeSet<String> {
            said.iter().filter(|(_, said)| !said.hears(node)).map(|(other, _)| other.clone()).collect()
        };
        let unheard = said.keys().map(|node| (node.clone(), deaf_to(node))).filter(|(_, by)| !by.is_empty());
        Self { members, locations, answered: said.keys().cloned().collect(), unheard: unheard.collect() }
    }

    /// Whether somebody knows who is in sync.
    pub(crate) fn is_known(&self, location: &Location) -> bool {
        self.answered.contains(&location.owner)
    }

    /// How many of the locations name each node as one that keeps a copy, in the directory that it has now.
    pub(crate) fn kept(&self) -> BTreeMap<(&str, &str), usize> {
        let mut kept = BTreeMap::new();
        for replica in self.locations.iter().flat_map(|location| &location.replicas) {
            *kept.entry((replica.node_id.as_str(), replica.storage_id.as_str())).or_default() += 1;
        }
        kept
    }

    /// Nodes that are heard, or that own something, and did not answer.
    pub(crate) fn silent(&self) -> Vec<&str> {
        let heard = self.members.members.iter().filter(|member| member.alive).map(|member| &member.node_id);
        let owners = self.locations.iter().map(|location| &location.owner).filter(|owner| !owner.is_empty());
        let silent: BTreeSet<_> = heard.chain(owners).filter(|node| !self.answered.contains(*node)).collect();
        silent.into_iter().map(String::as_str).collect()
    }
}

/// Nodes that the one that was named does not know, and others do.
fn add_unknown(members: &mut Vec<Member>, said: &BTreeMap<String, Said>) {
    let mut known: BTreeSet<_> = members.iter().map(|member| member.node_id.clone()).collect();
    for member in said.values().flat_map(|said| &said.members.members) {
        if known.insert(member.node_id.clone()) {
            members.push(member.clone());
        }
    }
}

/// Nodes that keep something and that gossip has forgotten, or never heard.
fn add_unheard(members: &mut Vec<Member>, locations: &[Location]) {
    let mut known: BTreeSet<_> = members.iter().map(|member| member.node_id.clone()).collect();
    for replica in locations.iter().flat_map(|location| &location.replicas) {
        if known.insert(replica.node_id.clone()) {
            let (node_id, storage_id) = (replica.node_id.clone(), replica.storage_id.clone());
            members.push(Member { node_id, storage_id, ..Member::default() });
        }
    }
    members.sort_by(|a, b| a.node_id.cmp(&b.node_id));
}

/// Where something is, by what several nodes say. An owner's own word counts before what others say of it.
fn merged(views: &BTreeMap<&str, &Location>) -> Location {
    let claims = views.iter().filter(|(node, location)| {
        let owner = location.owner.as_str();
        !owner.is_empty() && (owner == **node || !views.contains_key(owner))
    });
    let newest = claims.max_by_key(|(node, location)| (location.epoch, location.owner == **node));
    if let Some((_, newest)) = newest {
        return (*newest).clone();
    }
    // Whoever was named and says that it takes none knows why; then those who keep it know more than those who do not.
    let is_named = |node: &str| views.values().any(|location| location.owner == node);
    let keeps = |node: &str, location: &Location| location.replicas.iter().any(|kept| kept.node_id == node);
    let knows = |(node, location): &(&&str, &&Location)| {
        (location.owner.is_empty(), is_named(node), keeps(node, location))
    };
    let Some((_, location)) = views.iter().max_by_key(knows) else { return Location::default() };
    let mut location = (*location).clone();
    if !location.owner.is_empty() {
        "it changes its owner at the moment".clone_into(&mut location.reason);
    }
    location.owner.clear();
    location.owner_address.clear();
    location
}

#[cfg(test)]
mod tests {
    use ledger_proto::ledger::v1::Replica;

    use super::*;

    fn at(owner: &str, epoch: u64, reason: &str) -> Location {
        let replica = |node: &str| Replica { node_id: node.to_owned(), ..Replica::default() };
        Location {
            owner: owner.into(),
            epoch,
            reason: reason.into(),
            replicas: vec![replica("a"), replica("b")],
            ..Location::default()
        }
    }

    fn merge(views: &[(&str, &Location)]) -> (String, u64, String) {
        let merged = merged(&views.iter().copied().collect());
        (merged.owner, merged.epoch, merged.reason)
    }

    #[test]
    fn the_owner_s_own_word_counts_before_what_others_say_of_it() {
        let (mine, by_others) = (at("a", 5, "2 of 3"), at("a", 5, ""));
        assert_eq!(merge(&[("a", &mine), ("b", &by_others)]).2, "2 of 3");
        // It says that it takes nothing, whatever others think.
        let none = at("", 0, "1 of 3 replicas answered");
        assert_eq!(merge(&[("a", &none), ("b", &by_others), ("c", &by_others)]).2, none.reason);
        assert_eq!(merge(&[("a", &none), ("b", &by_others)]).0, "");
        // One that was cut off meanwhile goes on thinking so.
        let newer = at("b", 6, "");
        assert_eq!(merge(&[("a", &by_others), ("b", &newer), ("c", &by_others)]).0, "b");
        // The newest does not answer, and another one that does was the owner before.
        let silent = at("d", 7, "");
        assert_eq!(merge(&[("a", &by_others), ("c", &silent)]).0, "d");
    }

    #[test]
    fn why_nobody_owns_it_is_asked_of_those_who_keep_it() {
        let (known, unknown) = (at("", 0, "1 of 3 answered"), at("", 0, "they know more"));
        assert_eq!(merge(&[("a", &known), ("z", &unknown), ("y", &unknown)]).2, "1 of 3 answered");
        // Two each take the other for the owner: it is being handed over.
        let (one, other) = (at("b", 5, ""), at("a", 6, ""));
        let (owner, _, reason) = merge(&[("a", &one), ("b", &other)]);
        assert!(owner.is_empty() && reason.contains("changes"), "{reason}");
    }

    #[test]
    fn each_node_is_as_it_says_itself_and_one_that_only_slots_name_is_there_too() {
        let member = |node: &str, slots_owned| Member {
            node_id: node.into(),
            alive: true,
            slots_owned,
            ..Member::default()
        };
        let answer = |node: &str, members: Vec<Member>| MembersResponse {
            node_id: node.into(),
            members,
            ..MembersResponse::default()
        };
        let dead = |node: &str| Member { alive: false, ..member(node, 2) };
        let named = answer("a", vec![member("a", 3), dead("c"), member("d", 7), dead("f")]);
        let of_c = answer("c", vec![member("a", 1), member("c", 4), member("e", 5)]);
        let said =
            |members: &MembersResponse| Said { members: members.clone(), locations: vec![at("a", 1, "")] };
        let said = [("a".to_owned(), said(&named)), ("c".to_owned(), said(&of_c))].into();
        let survey = Survey::of(named, &said);
        let seen = |member: &Member| (member.node_id.clone(), member.slots_owned, member.alive);
        let seen: Vec<_> = survey.members.members.iter().map(seen).collect();
        let expected = [
            ("a", 3, true),
            ("b", 0, false),
            ("c", 4, true),
            ("d", 0, true),
            ("e", 0, true),
            ("f", 0, false),
        ];
        assert_eq!(seen, expected.map(|(node, slots, alive)| (node.to_owned(), slots, alive)));
        assert_eq!(survey.silent(), ["d", "e"], "whoever is heard by one is to answer");
        assert_eq!(survey.kept()[&("b", "")], 1);
        let by_a = BTreeSet::from(["a".to_owned()]);
        assert_eq!(survey.unheard, [("c".to_owned(), by_a)].into(), "it answers, and a does not hear it");
    }
}
