//! What a commit wrote becomes visible to readers and watchers.

use ledger_core::Size;

use crate::{
    engine::db::Db, engine::families::RowLocation, limited, shared::Shared, write::staging,
    write::written_context::WrittenContext,
};

/// Unpins the heads of contexts of a hidden slot. Does not notify watchers: the history may be forked off.
pub(crate) fn unpin(db: &Db, contexts: Vec<WrittenContext>) {
    for WrittenContext { context, rows, head, mut replaced_rows, .. } in contexts {
        db.committed_heads().unpin(&context, (rows, head));
        remove_replaced_rows(db, &mut replaced_rows);
    }
}

/// Publishes pinned writes to readers and watchers. Returns how many entries they are.
pub(crate) fn publish(db: &Db, shared: &Shared, contexts: &mut [WrittenContext]) -> u64 {
    let mut entries = 0;
    for written_context in contexts.iter_mut().filter(|written_context| written_context.appended > 0) {
        entries += written_context.appended;
        publish_context(db, shared, written_context);
    }
    entries
}

fn publish_context(db: &Db, shared: &Shared, written_context: &mut WrittenContext) {
    let WrittenContext { context, rows, head, watched, is_load, replaced_rows, .. } = written_context;
    db.committed_heads().unpin(context, (*rows, head.clone()));
    let size: Size = head.size();
    if let Some(entries) = watched.take() {
        shared.tails.committed(context, entries.into_iter(), size);
    } else if !shared.tails.is_idle()
        && let Some(tail) = shared.tails.find(context)
    {
        // A watcher joined after the commit was staged: it reads the entries from the store.
        tail.reach(size);
    }
    if *is_load {
        shared.uncommitted_loads.forget(db, *rows);
    }
    remove_replaced_rows(db, replaced_rows);
}

/// Removes the rows that a load replaced.
fn remove_replaced_rows(db: &Db, left: &mut Option<RowLocation>) {
    if let Some(place) = left.take()
        && let Err(error) = staging::abandon(db, place)
    {
        // Opening the ledger again removes them.
        limited!(warn, %error, "rows that a load replaced stay until restart");
    }
}
