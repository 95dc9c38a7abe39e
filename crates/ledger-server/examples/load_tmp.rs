//! tmp
#![allow(clippy::all, clippy::pedantic, clippy::unwrap_used)]
use ledger_proto::{context::v1::*, ledger::v1::{AppendBatch, AppendItem, ledger_service_client::LedgerServiceClient}};
use std::time::Instant;
use std::sync::{Arc, atomic::{AtomicU64, Ordering}};
fn main() {
    let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    rt.block_on(run());
}
async fn run() {
    let a: Vec<String> = std::env::args().collect();
    let url = a[1].clone();
    let secs: f64 = a[2].parse().unwrap();
    let streams: u64 = a[3].parse().unwrap();
    let per: u64 = a[4].parse().unwrap();
    let inflight = 4096 / streams;
    let total = Arc::new(AtomicU64::new(0));
    let t = Instant::now();
    let mut hs = vec![];
    for st in 0..streams {
        let url = url.clone(); let total = total.clone();
        hs.push(tokio::spawn(async move {
            let ch = tonic::transport::Endpoint::from_shared(url).unwrap().initial_stream_window_size(4<<20).initial_connection_window_size(8<<20).tcp_nodelay(true).connect().await.unwrap();
            let mut c = LedgerServiceClient::new(ch).max_decoding_message_size(64<<20);
            let (tx, rx) = tokio::sync::mpsc::channel(64);
            let mut out = c.append(tokio_stream::wrappers::ReceiverStream::new(rx)).await.unwrap().into_inner();
            let payload = bytes::Bytes::from(vec![7u8; 256]);
            let ctxs: Vec<String> = (0..64/streams).map(|i| format!("bench-{st}-{i}")).collect();
            let (mut sent, mut done) = (0u64, 0u64);
            let mut tx = Some(tx);
            loop {
                if t.elapsed().as_secs_f64() >= secs { tx = None; }
                if let Some(tx) = &tx { while sent - done + per <= inflight {
                    let items = (0..per).map(|i| AppendItem { tag: sent + i, request: Some(AppendRequest { context_id: ctxs[((sent + i) as usize) % ctxs.len()].clone(), key: "facts".into(), payload: payload.clone(), ..Default::default() }) }).collect();
                    sent += per;
                    tx.send(AppendBatch { items }).await.unwrap();
                } }
                match out.message().await.unwrap() { Some(m) => { for r in &m.results { assert!(r.error.is_none(), "{:?}", r.error); } done += m.results.len() as u64; total.fetch_add(m.results.len() as u64, Ordering::Relaxed); } None => break }
            }
        }));
    }
    for h in hs { h.await.unwrap(); }
    println!("streaming append: {:.0}/s", total.load(Ordering::Relaxed) as f64 / t.elapsed().as_secs_f64());
    // replay
    let ch = tonic::transport::Endpoint::from_shared(url).unwrap().initial_stream_window_size(4<<20).initial_connection_window_size(8<<20).tcp_nodelay(true).connect().await.unwrap();
    let mut c = LedgerServiceClient::new(ch).max_decoding_message_size(64<<20);
    let t = Instant::now();
    let mut n = 0;
    for st in 0..streams { for i in 0..64/streams { 
      let mut s = c.get(GetRequest { context_id: format!("bench-{st}-{i}"), ..Default::default() }).await.unwrap().into_inner();
      while let Some(p) = s.message().await.unwrap() { n += p.entries.len(); } } }
    println!("replay: {:.0}/s of {n}", n as f64 / t.elapsed().as_secs_f64());
}
