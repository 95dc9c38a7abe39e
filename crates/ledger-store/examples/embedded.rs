//! The ledger inside another program: append, read, watch, snapshot, load and prove, without a server.
//!
//! Run it with `cargo run --release --example embedded`.

use std::error::Error;

use ledger_store::{ContextId, Draft, Filter, Key, LamportClock, Ledger, Sequence};

fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::temp_dir().join(format!("converge-ledger-embedded-{}", std::process::id()));
    let ledger = Ledger::open(&dir)?;
    let context = ContextId::new("growth-strategy-001")?;

    // A watcher in another thread sees what is there and what is to come.
    let mut watch = ledger.watch(&context, None, Sequence(0));
    let watcher = std::thread::spawn(move || -> Result<(), ledger_store::StoreError> {
        while watch.delivered() < Sequence(3) {
            watch.wait()?;
            for entry in watch.read(100, 1 << 20)?.entries {
                println!("watched {} {} {:?}", entry.sequence, entry.key, entry.payload);
            }
        }
        Ok(())
    });

    let fact = |text: &'static str| -> Result<Draft, Box<dyn Error>> {
        Ok(Draft { key: Key::new("facts")?, payload: text.into(), metadata: [].into() })
    };
    ledger.append(&context, fact("market_size: 2.4B")?)?;
    ledger.append(&context, fact("growth: 12 %")?)?;
    // An event elsewhere had Lamport time 41: this one is later.
    let appended = ledger.append_received(&context, fact("competitors: 3")?, LamportClock(41))?;
    println!("appended {} at Lamport time {}", appended.entry.sequence, appended.entry.lamport.0);
    watcher.join().map_err(|_| "the watcher panicked")??;

    let page = ledger.get(&context, &Filter { after: Sequence(1), ..Filter::default() })?;
    println!("read {} entries after the first", page.entries.len());

    let proven = ledger.prove_inclusion(&context, Sequence(2), None)?;
    proven.proof.verify_in(proven.suite, &proven.content_hash, &proven.root)?;
    println!("entry 2 is under root {}", proven.root);

    let snapshot = ledger.snapshot(&context)?.collect::<Result<Vec<_>, _>>()?.concat();
    let copy = ContextId::new("growth-strategy-001/copy")?;
    let loaded = ledger.load_from(&copy, true, &snapshot[..])?;
    println!("loaded {} entries from a snapshot of {} bytes", loaded.restored, snapshot.len());

    ledger.close()?;
    std::fs::remove_dir_all(dir)?;
    Ok(())
}
