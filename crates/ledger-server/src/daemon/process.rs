//! The process around a node: its runtime, the signals it hears, and how it ends.

use std::{future::Future, io};

use tokio_util::sync::CancellationToken;

use crate::{
    daemon::{
        error::{StartError, exit_code},
        serve::run,
    },
    settings::{args, config::Config, memory_plan::blocking_threads},
};

/// Serves until SIGTERM or SIGINT, and ends the process. A second signal ends it at once.
pub fn main(config: Config) -> ! {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(worker_threads(config.store_options().lanes()))
        .enable_all()
        .on_thread_start(ledger_store::blocking::mark_runtime_thread)
        .max_blocking_threads(blocking_threads(config.memory))
        .build()
        .map_err(StartError::Runtime);
    let ended = match runtime {
        Ok(runtime) => {
            let stdin_counts = config.exit_when_stdin_closes;
            let ended = runtime.block_on(async { run(config, asked_to_stop(stdin_counts)).await });
            // What hangs on a client or a disk is not waited for again.
            runtime.shutdown_background();
            ended
        }
        Err(error) => Err(error.into()),
    };
    match ended {
        Ok(()) => end_process(args::EXIT_SUCCESS),
        Err(error) => {
            tracing::error!("{error:#}");
            end_process(exit_code(&error))
        }
    }
}

/// Ends the process, without the destructors of its libraries: a thread that still reads, or hangs on a disk, would find
/// the locks destroyed that it waits for, and the process would be aborted instead.
fn end_process(code: u8) -> ! {
    // Nobody may read it any more.
    let _ = io::Write::flush(&mut io::stdout());
    signal_hook::low_level::exit(code.into())
}

/// Threads of the runtime. A lane needs about half a processor; more threads than processors would only take
/// turns, at the price of a switch for every request.
fn worker_threads(lanes: usize) -> usize {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    cpus.saturating_sub(lanes.div_ceil(2)).max(1)
}

/// Completes at the first signal, or at the end of standard input if that counts. From then on, another signal
/// ends the process, and does so if the node ends by itself meanwhile: signals are heard as long as the process lives.
fn asked_to_stop(stdin_counts: bool) -> impl Future<Output = ()> {
    let asked = CancellationToken::new();
    tokio::spawn(watch_signals(stdin_counts, asked.clone()));
    asked.cancelled_owned()
}

async fn watch_signals(stdin_counts: bool, asked: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("cannot listen for signals: stop the node with SIGKILL, which is safe for its data");
        return;
    };
    let by = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
        () = end_of_stdin(), if stdin_counts => "the end of standard input",
    };
    tracing::info!(by, "asked to stop");
    asked.cancel();
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::warn!("asked again: ending at once");
    end_process(args::EXIT_FORCED);
}

/// Completes when standard input ends: whoever held the other end of the pipe closed it, or died.
async fn end_of_stdin() {
    let mut stdin = tokio::io::stdin();
    // An error is an end, too.
    let _ = tokio::io::copy(&mut stdin, &mut tokio::io::sink()).await;
}
