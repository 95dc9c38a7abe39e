//! The rows of the table: each measures one thing on nodes of its own.

mod append;
mod catch_up;
mod handover;
mod many;
mod search;
mod takeover;

use super::{
    run::{Run, say},
    table::Line,
};

/// Every row that is wanted; one that fails does not stop the others.
pub(super) async fn measure(run: &mut Run<'_>) {
    for row in 1..=6 {
        // Rows 5 and 7 are measured on the same nodes.
        let is_wanted = run.wants(row) || row == 5 && run.wants(7);
        if !is_wanted {
            continue;
        }
        let done = match row {
            1 => append::run(run).await,
            2 => takeover::run(run).await,
            3 => handover::run(run).await,
            4 => catch_up::run(run).await,
            5 => many::run(run).await,
            _ => search::run(run).await,
        };
        if let Err(error) = done {
            run.failed += 1;
            say(&format!("row {row} failed: {error:#}"));
            let line = Line::held(
                format!("row {row}"),
                format!("failed: {error:#}"),
                "",
                false,
                serde_json::json!(null),
            );
            run.push(row, &line);
        }
    }
}
