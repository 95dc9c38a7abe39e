//! tmp
#![allow(clippy::all, clippy::pedantic, clippy::unwrap_used)]
use ledger_store::*;
use std::time::Instant;
fn main() {
    let dir = tempfile::tempdir_in(std::env::args().nth(1).unwrap_or("/tmp".into())).unwrap();
    let secs: f64 = std::env::args().nth(2).and_then(|s| s.parse().ok()).unwrap_or(5.0);
    let lanes: usize = std::env::args().nth(3).and_then(|s| s.parse().ok()).unwrap_or(0);
    // raw
    {
        let mut o = rocksdb::Options::default();
        o.create_if_missing(true);
        let db = rocksdb::DB::open(&o, dir.path().join("raw")).unwrap();
        let mut w = rocksdb::WriteOptions::default();
        w.set_sync(true);
        let t = Instant::now();
        let mut n = 0u64;
        let payload = vec![7u8; 256];
        while t.elapsed().as_secs_f64() < secs {
            let mut b = rocksdb::WriteBatch::default();
            for _ in 0..256 { b.put(n.to_be_bytes(), &payload); n += 1; }
            db.write_opt(b, &w).unwrap();
        }
        println!("raw 256/sync: {:.0}/s", n as f64 / t.elapsed().as_secs_f64());
    }
    let l = Ledger::open_with(dir.path().join("l"), Options { lanes, ..Options::default() }).unwrap();
    let rt = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let ctxs: Vec<_> = (0..64).map(|i| ContextId::new(format!("context-{i}")).unwrap()).collect();
    let payload = bytes::Bytes::from(vec![7u8; 256]);
    rt.block_on(async {
        let (tx, mut rx) = tokio::sync::mpsc::unbounded_channel();
        let t = Instant::now();
        let (mut sent, mut done) = (0u64, 0u64);
        while t.elapsed().as_secs_f64() < secs {
            while sent - done < 4096 {
                let batch = (0..256).map(|i| { let n = sent + i; (n, Append { context: ctxs[(n % 64) as usize].clone(), draft: Draft { key: Key::new("facts").unwrap(), payload: payload.clone(), metadata: Default::default() }, received_lamport: 0, entry_id: None }) }).collect();
                sent += 256;
                l.submit(batch, tx.clone()).await.unwrap();
            }
            let r: BatchResults = rx.recv().await.unwrap();
            done += r.results.len() as u64;
        }
        let s = l.stats();
        println!("ledger: {:.0}/s, {:.0} entries/commit {:?}", done as f64 / t.elapsed().as_secs_f64(), s.appended as f64 / s.commits as f64, s);
        while done < sent { done += rx.recv().await.unwrap().results.len() as u64; }
    });
    let t = Instant::now();
    let mut n = 0;
    for c in &ctxs { let mut after = Sequence(0); loop { let p = l.get(c, &Filter { after, limit: 512, ..Filter::default() }).unwrap(); n += p.entries.len(); after = p.covered; if !p.more { break; } } }
    println!("read: {:.0}/s", n as f64 / t.elapsed().as_secs_f64());
}
