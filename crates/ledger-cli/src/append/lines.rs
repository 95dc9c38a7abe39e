//! `ledgerctl append --stdin-lines`: an entry for each line, many under way.
//!
//! Each line has an id made of the name of the run and its number. So a run that broke off is repeated as a whole, with
//! its name: what it stored is found again and not stored twice, wherever it broke off.

use std::time::Duration;

use anyhow::Context as _;
use ledger_client::{Append, Client, ClientError, EntryId, Receipt};
use ledger_core::hash::{Blake3, Hasher as _};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    sync::watch,
};

use super::fates::Ranges;
use crate::{
    exit::Interrupted,
    output::{Output, complain, json_line},
    progress,
};

/// Lines under way.
const WINDOW: usize = 4096;
/// How long what is under way may take to be answered once the user wants to stop.
const STOP: Duration = Duration::from_secs(10);

/// What became of the lines.
#[derive(Debug, Default)]
struct Fates {
    stored: Ranges,
    /// Nobody knows: they may have been stored.
    open: Ranges,
    /// The first lines that were refused, and why.
    refused: Vec<(u64, ClientError)>,
    first: Option<u64>,
    last: u64,
    /// Lines that were sent.
    sent: u64,
    /// Lines of which a receipt came.
    answered: u64,
}

pub(super) async fn run(
    client: &Client,
    template: Append,
    run: Option<String>,
    output: &Output,
) -> anyhow::Result<()> {
    let run = run.unwrap_or_else(|| uuid::Uuid::now_v7().simple().to_string());
    let (mut appender, mut receipts) = client.appender(WINDOW).await?;
    let context = template.context.clone();
    let (stop, mut stopping) = watch::channel(false);
    let named = run.clone();
    // Gives how many lines were sent, and whether the input has ended.
    let sending = tokio::spawn(async move {
        let mut lines = BufReader::new(tokio::io::stdin()).split(b'\n');
        let mut sent = 0;
        loop {
            let line = tokio::select! {
                biased;
                _ = stopping.wait_for(|stop| *stop) => break anyhow::Ok((sent, false)),
                line = lines.next_segment() => line.context("standard input cannot be read")?,
            };
            let Some(mut line) = line else { break Ok((sent, true)) };
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            let append =
                Append { payload: line.into(), ..template.clone() }.with_entry_id(id(&named, sent + 1));
            let full = tokio::select! {
                biased;
                _ = stopping.wait_for(|stop| *stop) => break Ok((sent, false)),
                full = appender.send(append) => full,
            };
            // The stream has ended: its receipts say why.
            if full.is_err() {
                break Ok((sent, false));
            }
            sent += 1;
        }
    });
    let bar = progress::entries(None);
    let mut fates = Fates::default();
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    let (mut is_interrupted, mut failed) = (false, None);
    loop {
        tokio::select! {
            receipt = receipts.next() => match receipt {
                Ok(Some(receipt)) => {
                    bar.inc(1);
                    if fates.take(receipt) {
                        // What was sent meanwhile is under way; no more is sent.
                        let _ = stop.send(true);
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            },
            _ = &mut interrupted, if !is_interrupted => {
                is_interrupted = true;
                let _ = stop.send(true);
            }
            () = tokio::time::sleep(STOP), if is_interrupted => break,
        }
    }
    bar.finish_and_clear();
    let _ = stop.send(true);
    let (sent, is_whole) = if failed.is_some() { (fates.answered, false) } else { sending.await?? };
    fates.sent = sent;
    for line in 1..=sent {
        if fates.answered < sent && !fates.stored.has(line) && !fates.is_refused(line) {
            fates.open.add(line);
        }
    }
    let is_done = is_whole && fates.refused.is_empty() && fates.open.is_empty() && !is_interrupted;
    if is_done {
        let appended = fates.stored.count();
        let object = json!({
            "context_id": context.as_str(), "appended": appended, "first_sequence": fates.first,
            "last_sequence": fates.last, "run": run,
        });
        output.result(&object, || match fates.first {
            Some(first) => format!("{appended} entries appended to {context}: {first} to {}", fates.last),
            None => "no lines, nothing appended".to_owned(),
        })?;
        return Ok(());
    }
    let text = fates.text(&run);
    if output.is_json() {
        complain(&json_line(fates.object(&run)));
    }
    let error = match (is_interrupted, fates.refused.into_iter().next(), failed) {
        (true, ..) => return Err(Interrupted(text).into()),
        (_, Some((_, error)), _) | (_, None, Some(error)) => error,
        _ => ClientError::Unavailable("the stream of appends has ended".into()),
    };
    Err(anyhow::Error::from(error).context(text))
}

/// The id of a line of a run.
fn id(run: &str, line: u64) -> EntryId {
    let mut bits = [0; 16];
    let named = [b"ledgerctl run\n", run.as_bytes(), b"\n", line.to_string().as_bytes()].concat();
    bits.copy_from_slice(&Blake3::digest(&named).0[..16]);
    EntryId::from_bits(bits)
}

impl Fates {
    /// Notes what became of a line; true if no more should be sent.
    fn take(&mut self, receipt: Receipt) -> bool {
        let line = receipt.tag + 1;
        self.answered += 1;
        match receipt.result {
            Ok(stored) => {
                self.first = Some(self.first.map_or(stored.sequence.0, |first| first.min(stored.sequence.0)));
                self.last = self.last.max(stored.sequence.0);
                self.stored.add(line);
                false
            }
            Err(error) if error.entry_id().is_some() => {
                self.open.add(line);
                if self.refused.is_empty() {
                    self.refused.push((line, error));
                }
                true
            }
            Err(error) => {
                // Of those under way there may be as many as the window allows.
                self.refused.push((line, error));
                true
            }
        }
    }

    fn is_refused(&self, line: u64) -> bool {
        self.refused.iter().any(|(refused, _)| *refused == line)
    }

    fn text(&self, run: &str) -> String {
        let mut text = format!("stored: lines {}", self.stored.text());
        if !self.open.is_empty() {
            text = format!("{text}; may have been stored: lines {}", self.open.text());
        }
        let mut refused = Ranges::default();
        self.refused
            .iter()
            .filter(|(line, _)| !self.open.has(*line))
            .for_each(|(line, _)| refused.add(*line));
        let mended = if refused.is_empty() {
            String::new()
        } else {
            text = format!("{text}; refused: line {}", refused.text());
            "mend what was refused, and ".to_owned()
        };
        format!(
            "{text}; not sent: from line {} on. To go on, {mended}repeat all lines with --run {run}: those that are \
             stored are found, and not stored again",
            self.sent + 1
        )
    }

    fn object(&self, run: &str) -> Value {
        let refused: Vec<_> = self
            .refused
            .iter()
            .filter(|(line, _)| !self.open.has(*line))
            .map(|(line, error)| json!({ "line": line, "error": error.to_string() }))
            .collect();
        json!({
            "stored": self.stored.object(), "may_be_stored": self.open.object(), "refused": refused,
            "not_sent_from": self.sent + 1, "run": run,
        })
    }
}
