//! `ledgerctl cluster status --watch`: shows the picture whenever it changes.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    io::{self, IsTerminal as _},
    time::Duration,
};

use ledger_client::ClientError;
use ledger_proto::ledger::v1::WatchClusterRequest;
use tokio::time::{sleep, timeout};

use super::picture::{Picture, look};
use crate::{
    args::Connection,
    output::{Output, complain},
    reach,
};

/// Changes that come within so long of each other are shown together.
const TOGETHER: Duration = Duration::from_millis(100);
/// How often a cluster that lacks something is looked at, even if no change is heard.
const AGAIN: Duration = Duration::from_secs(1);
/// How often one that lacks nothing is: only owners know that a copy is behind.
const WHOLE: Duration = Duration::from_secs(5);

/// Shows the picture whenever it changes, until interrupted. If the node that is asked goes, another one is.
pub(crate) async fn watch(connection: &Connection, output: &Output) -> anyhow::Result<()> {
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
            () = sleep(if is_whole { WHOLE } else { AGAIN }) => {}
        }
        let picture = look(connection, &client).await?;
        is_whole = picture.trouble().is_none();
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
    use ledger_proto::ledger::v1::{Member, MembersResponse};

    use super::*;
    use crate::cluster::survey::Survey;

    #[test]
    fn when_a_node_goes_each_of_the_others_is_asked_once() {
        let member = |name: &str, alive| Member { address: format!("{name}:1"), alive, ..Member::default() };
        let members = vec![member("a", true), member("b", true), member("dead", false), member("c", true)];
        let members = MembersResponse { members, ..MembersResponse::default() };
        let output = Output::new(true);
        let last = Some(Picture::of(Survey { members, ..Survey::default() }));
        let mut screen = Screen { output: &output, last, tried: BTreeSet::new() };
        let mut asked = Connection {
            endpoint: "http://a:1".into(),
            timeout: 1.0,
            ca: None,
            cert: None,
            key_file: None,
            cluster_key_file: None,
        };
        for expected in ["http://b:1", "http://c:1"] {
            asked = screen.next_to_ask(&asked).unwrap();
            assert_eq!(asked.endpoint, expected);
        }
        assert!(screen.next_to_ask(&asked).is_none());
    }
}
