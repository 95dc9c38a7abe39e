//! Opens the database for the first time in this process, and compares how far its log goes with how far it is known to
//! have been durable.

use std::{path::Path, sync::Arc};

use crate::{
    Options, StoreError,
    directory::data_dir::OpenMode,
    directory::meta,
    engine::db::{Db, How},
    engine::durable_index::DurableIndex,
    engine::space::{self, Reserve},
    engine::tuning::Recovery,
    engine::watermark,
    read::visibility::SlotVisibility,
};

/// Returns whether there is too little disk space to open the database; releases the reserve if opening needs it.
pub(super) fn is_short_of_space(path: &Path, reserve: &Reserve) -> bool {
    let is_short_of = |bytes| space::free(path).is_ok_and(|free| free < bytes);
    let needed = space::logged(path) + space::HEADROOM;
    if !is_short_of(needed) {
        return false;
    }
    let gave_up = is_short_of(space::HEADROOM) && reserve.give_up();
    tracing::warn!(
        needed,
        gave_up,
        "there is hardly any space left: this node starts, and appends nothing before there is"
    );
    true
}

/// Opens the database for the first time in this process.
pub(super) fn open_checked(
    path: &Path,
    options: &Options,
    readable: &Arc<SlotVisibility>,
    marks: &Arc<DurableIndex>,
    opening: OpenMode,
    is_tight: bool,
) -> Result<Db, StoreError> {
    let open = |recovery| {
        let how = How { opening, recovery, generation: 0, compacts: true, is_tight };
        Db::open(path, options, Arc::clone(readable), Arc::clone(marks), how)
    };
    let expected = marks.expected();
    let db = match open(Recovery::Whole) {
        Ok(db) => db,
        Err(error) => match Db::readable_up_to(path, options) {
            // A power cut may leave half of the last record, or older bytes: nothing there was acknowledged.
            Some(number) if expected > 0 && number >= expected => {
                let db = open(Recovery::ToLastWhole).map_err(|_| error)?;
                tracing::warn!(
                    expected,
                    number,
                    "the write-ahead log ends with a record that is not whole: it was never acknowledged, and is left out"
                );
                db
            }
            Some(number) if expected > 0 => return Err(with_numbers(error, number, expected)),
            _ => return Err(error),
        },
    };
    let number = marks.opening();
    if number >= expected {
        return Ok(db);
    }
    let missing = expected - number;
    if options.accept_lost_writes == Some(number) {
        let refused = |reason: std::io::Error| StoreError::Io(format!("{}: {reason}", watermark::FILE));
        meta::record_lost_writes(&db, number, expected)?;
        marks.accept_loss_after(number).map_err(refused)?;
        tracing::error!(
            number,
            expected,
            missing,
            "the write-ahead log was cut short, and what is missing is given up as accept_lost_writes says"
        );
        return Ok(db);
    }
    Err(StoreError::NotWhole {
        path: path.display().to_string(),
        reason: format!(
            "its write-ahead log was cut short: changes up to number {expected} were durable, and it goes up to {number}, so \
             the last {missing} are missing, and with them entries that were acknowledged; restore the directory from a copy, \
             or remove it if this is a member of a cluster and the others have all; to go on without what is missing, for good, \
             start with accept_lost_writes = {number}"
        ),
    })
}

/// Adds to the error of a log that is damaged before its end how much would be lost.
fn with_numbers(error: StoreError, number: u64, expected: u64) -> StoreError {
    match error {
        StoreError::NotWhole { path, reason } => StoreError::NotWhole {
            path,
            reason: format!(
                "{reason} (changes up to number {expected} were durable, and can be read up to {number})"
            ),
        },
        other => other,
    }
}
