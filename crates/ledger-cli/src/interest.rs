//! `ledgerctl interest`: who looks at a context now, and what they tell each other.

use ledger_client::{Client, ClientError, ContextId, InterestEvent, Observer};
use serde_json::{Value, json};

use crate::{
    append,
    args::{Interest, PayloadFormat},
    output::{Output, put_payload, text, visible},
};

pub(crate) async fn run(client: &Client, command: Interest, output: &Output) -> anyhow::Result<()> {
    match command {
        Interest::Join { context, name, metadata, count } => {
            let context = ContextId::new(&context).map_err(ClientError::from)?;
            let observer = Observer { name, metadata: append::metadata(&metadata)? };
            join(client, &context, observer, count, output).await
        }
        Interest::Broadcast { context, text, name, metadata } => {
            let context = ContextId::new(&context).map_err(ClientError::from)?;
            let reached = client.broadcast(&context, &name, text, append::metadata(&metadata)?).await?;
            output.result(&json!({ "context_id": context.as_str(), "reached": reached }), || {
                format!("reached {reached} observers")
            })?;
            Ok(())
        }
        Interest::Leave { context, observer } => {
            let context = ContextId::new(&context).map_err(ClientError::from)?;
            let was_there = client.leave(&context, &observer).await?;
            let object =
                json!({ "context_id": context.as_str(), "observer": observer, "was_there": was_there });
            output.result(&object, || {
                let how = if was_there { "left" } else { "was not there" };
                format!("{} {how}", visible(&observer))
            })?;
            Ok(())
        }
    }
}

async fn join(
    client: &Client,
    context: &ContextId,
    observer: Observer,
    count: u64,
    output: &Output,
) -> anyhow::Result<()> {
    let mut interest = client.join(context, observer);
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    let mut seen = 0;
    while count == 0 || seen < count {
        let event = tokio::select! {
            event = interest.next() => event?,
            _ = &mut interrupted => break,
        };
        let Some(event) = event else { break };
        output.result(&object(&event, interest.name()), || line(&event, interest.name()))?;
        seen += 1;
    }
    Ok(())
}

/// An event as an object: every field.
fn object(event: &InterestEvent, me: &str) -> Value {
    let observer = |observer: &Observer| json!({ "observer": observer.name, "metadata": observer.metadata });
    match event {
        InterestEvent::Members(members) => {
            let members: Vec<_> = members.iter().map(observer).collect();
            json!({ "event": "members", "observer": me, "members": members })
        }
        InterestEvent::Joined(joined) => {
            json!({ "event": "joined", "observer": joined.name, "metadata": joined.metadata })
        }
        InterestEvent::Left(name) => json!({ "event": "left", "observer": name }),
        InterestEvent::Broadcast { from, payload, metadata } => {
            let mut object = json!({
                "event": "broadcast",
                "from": from,
                "metadata": metadata,
            });
            put_payload(&mut object, payload, PayloadFormat::Text);
            object
        }
        InterestEvent::Missed(count) => json!({ "event": "missed", "count": count }),
    }
}

/// An event for people.
fn line(event: &InterestEvent, me: &str) -> String {
    let named = |observer: &Observer| {
        let mut text = visible(&observer.name);
        for (key, value) in &observer.metadata {
            text = format!("{text} {}={}", visible(key), visible(value));
        }
        text
    };
    match event {
        InterestEvent::Members(members) => {
            let names: Vec<_> = members.iter().map(named).collect();
            format!("{} is here, with all of: {}", visible(me), names.join(", "))
        }
        InterestEvent::Joined(observer) => format!("+ {}", named(observer)),
        InterestEvent::Left(name) => format!("- {}", visible(name)),
        InterestEvent::Broadcast { from, payload, metadata } => {
            let observer = Observer { name: from.clone(), metadata: metadata.clone() };
            format!("{}: {}", named(&observer), text(payload))
        }
        InterestEvent::Missed(count) => format!("missed {count} broadcasts: too slow"),
    }
}
