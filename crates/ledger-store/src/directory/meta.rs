//! Facts about the data directory as a whole: its format, its identity, and the numbers it has given out.

use std::{path::Path, sync::atomic::AtomicU64};

use ledger_core::slot::{SLOTS, Slot};
use parking_lot::Mutex;
use rocksdb::WriteBatch;

use crate::{
    StoreError,
    engine::db::Db,
    engine::errors::io_error,
    engine::families::{self, RowLocation, SEPARATE_BIT},
};

/// Version of the directory's layout. A build opens every version up to its own.
///
/// | version | since |
/// | --- | --- |
/// | 1 | the first; what new directories have |
/// | 2 | rows may be apart ([`families`]): set with the first context whose rows are put apart because of damage |
pub const FORMAT: u32 = 2;
/// The version of new directories.
const FIRST_FORMAT: u32 = 1;
/// The version that allows rows to be apart.
const APART_FORMAT: u32 = 2;
/// Context numbers are reserved in blocks of this many, so that one write serves many contexts.
const NUMBER_BLOCK: u64 = 4096;

const FORMAT_KEY: &[u8] = b"format";
const SLOTS_KEY: &[u8] = b"slots";
pub(crate) const STORAGE_ID_KEY: &[u8] = b"storage_id";
const SIGNING_SEED_KEY: &[u8] = b"signing_seed";
const NUMBERS_KEY: &[u8] = b"numbers";
/// The cluster that the directory belongs to, 16 bytes; missing until it belongs to one.
pub(crate) const CLUSTER_ID_KEY: &[u8] = b"cluster_id";
/// Followed by the number after which the operator accepted lost writes; the value says how far they went and when.
const LOST_WRITES_KEY: &[u8] = b"lost_writes/";

/// The directory's identity.
#[derive(Clone)]
pub(crate) struct Meta {
    /// Drawn at random when the directory is formatted or re-identified: a wiped disk gets another id.
    pub(crate) storage_id: [u8; 16],
    /// Seed of the node's Ed25519 key.
    pub(crate) signing_seed: [u8; 32],
}

impl std::fmt::Debug for Meta {
    /// Leaves the seed out.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Meta").field("storage_id", &hex::encode(self.storage_id)).finish_non_exhaustive()
    }
}

impl Meta {
    /// Reads the identity, or formats an empty directory.
    pub(crate) fn open(db: &Db, path: &Path) -> Result<Self, StoreError> {
        let refuse = |reason: String| StoreError::Open { path: path.display().to_string(), reason };
        let Some(format) = read::<4>(db, FORMAT_KEY)?.map(u32::from_be_bytes) else {
            return Self::format(db);
        };
        if format > FORMAT {
            return Err(refuse(format!(
                "its format is {format}, and this build reads formats up to {FORMAT}: use a newer build"
            )));
        }
        let slots = read::<2>(db, SLOTS_KEY)?.map(u16::from_be_bytes);
        if slots != Some(SLOTS) {
            return Err(refuse(format!("it has {slots:?} slots, and this build has {SLOTS}")));
        }
        match (read(db, STORAGE_ID_KEY)?, read(db, SIGNING_SEED_KEY)?) {
            (Some(storage_id), Some(signing_seed)) => Ok(Self { storage_id, signing_seed }),
            _ => Err(StoreError::FileDamaged("its identity is missing".into())),
        }
    }

    fn format(db: &Db) -> Result<Self, StoreError> {
        let meta = Self { storage_id: random()?, signing_seed: random()? };
        let family = db.family(families::META)?;
        let mut batch = WriteBatch::default();
        batch.put_cf(family, FORMAT_KEY, FIRST_FORMAT.to_be_bytes());
        batch.put_cf(family, SLOTS_KEY, SLOTS.to_be_bytes());
        batch.put_cf(family, STORAGE_ID_KEY, meta.storage_id);
        batch.put_cf(family, SIGNING_SEED_KEY, meta.signing_seed);
        db.write(batch)?;
        db.sync()?;
        Ok(meta)
    }
}

/// Records permanently that an operator accepted the loss of durable writes after a number.
pub(crate) fn record_lost_writes(db: &Db, number: u64, expected: u64) -> Result<(), StoreError> {
    let now_ns = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos());
    let key = [LOST_WRITES_KEY, &number.to_be_bytes()].concat();
    let mut batch = WriteBatch::default();
    let value = [&expected.to_be_bytes()[..], &now_ns.to_be_bytes()].concat();
    batch.put_cf(db.family(families::META)?, key, value);
    db.write_unsynced(batch)?;
    db.sync()
}

/// Gives out context numbers, each once.
#[derive(Debug)]
pub(crate) struct Numbers {
    next: AtomicU64,
    /// The first unreserved number, and the generation of the database that recorded it: a write to an earlier
    /// generation may be lost.
    reserved: Mutex<(u64, u64)>,
}

impl Numbers {
    /// Continues after everything that was reserved before.
    pub(crate) fn open(db: &Db) -> Result<Self, StoreError> {
        let reserved = read::<8>(db, NUMBERS_KEY)?.map_or(1, u64::from_be_bytes);
        Ok(Self { next: AtomicU64::new(reserved), reserved: Mutex::new((reserved, db.generation())) })
    }

    /// Returns the next number. The row that reserves its block precedes every row that uses the number in the same
    /// log, so a crash never reuses a number.
    pub(crate) fn next(&self, db: &Db) -> Result<u64, StoreError> {
        let number = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut reserved = self.reserved.lock();
        if number >= reserved.0 || reserved.1 != db.generation() {
            let limit = number + NUMBER_BLOCK;
            let mut batch = WriteBatch::default();
            batch.put_cf(db.family(families::META)?, NUMBERS_KEY, limit.to_be_bytes());
            db.write_unsynced(batch)?;
            *reserved = (limit, db.generation());
        }
        Ok(number)
    }

    /// Returns a location for a context's rows: apart if damaged blocks of its slot could block reading them.
    pub(crate) fn place(&self, db: &Db, slot: Slot, is_apart: bool) -> Result<RowLocation, StoreError> {
        let number = self.next(db)?;
        if !is_apart {
            return Ok(RowLocation { slot, number });
        }
        let format = read::<4>(db, FORMAT_KEY)?.map_or(FIRST_FORMAT, u32::from_be_bytes);
        if format < APART_FORMAT {
            // This precedes every such row in the same log: an older build would not find those rows, so it must
            // refuse to open the directory.
            let mut batch = WriteBatch::default();
            batch.put_cf(db.family(families::META)?, FORMAT_KEY, APART_FORMAT.to_be_bytes());
            db.write_unsynced(batch)?;
        }
        Ok(RowLocation { slot, number: number | SEPARATE_BIT })
    }
}

/// Returns random bytes.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], StoreError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| StoreError::Io(format!("no randomness: {error}")))?;
    Ok(bytes)
}

/// Reads a record of fixed length; `None` if there is none.
pub(crate) fn read<const N: usize>(db: &Db, key: &[u8]) -> Result<Option<[u8; N]>, StoreError> {
    let damaged = |why: &dyn std::fmt::Display| {
        StoreError::FileDamaged(format!(
            "the data directory's record {:?} cannot be read: {why}",
            String::from_utf8_lossy(key)
        ))
    };
    let row = db.get(families::META, key, |bytes| bytes.try_into().ok()).map_err(|error| {
        match io_error(&error) {
            StoreError::FileDamaged(_) => damaged(&error),
            other => other,
        }
    })?;
    match row {
        None => Ok(None),
        Some(Some(bytes)) => Ok(Some(bytes)),
        Some(None) => Err(damaged(&"it has another length")),
    }
}
