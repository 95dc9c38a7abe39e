//! How RocksDB is tuned: for many small synced writes, and for entries that never change.

use rocksdb::{BlockBasedIndexType, BlockBasedOptions, Cache, DBCompressionType, DBRecoveryMode};

use crate::{Options, directory::data_dir::OpenMode, engine::families};

/// How much of the write-ahead log must be readable when RocksDB replays it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recovery {
    /// The whole log. A crash may have cut its last record short; anything else that cannot be read is damage and
    /// must be reported.
    Whole,
    /// Everything up to the last whole record: only for a log whose end is known to hold nothing acknowledged.
    ToLastWhole,
}

/// Returns the options of the whole database.
pub(crate) fn database(options: &Options, opening: OpenMode, recovery: Recovery) -> rocksdb::Options {
    let mut db = rocksdb::Options::default();
    // RocksDB would remove every file of a database that lost its CURRENT file and create a new one.
    db.create_if_missing(opening == OpenMode::Create);
    db.create_missing_column_families(true);
    db.set_wal_recovery_mode(match recovery {
        Recovery::Whole => DBRecoveryMode::TolerateCorruptedTailRecords,
        Recovery::ToLastWhole => DBRecoveryMode::PointInTime,
    });
    db.set_db_write_buffer_size(options.write_buffer);
    db.set_max_total_wal_size(2 * options.write_buffer as u64);
    db.set_max_background_jobs(2);
    db.set_bytes_per_sync(1 << 20);
    db.set_max_open_files(i32::try_from(options.max_open_files).unwrap_or(i32::MAX));
    db.set_keep_log_file_num(3);
    db.set_max_log_file_size(8 << 20);
    // Lanes write concurrently: one writes the log while another fills the memtable.
    db.set_enable_pipelined_write(true);
    db
}

/// The share of a memtable that its filter takes: at least 16 bits for each row.
const MEMTABLE_FILTER: f64 = 0.02;

/// Returns the options of one family.
pub(crate) fn family(name: &str, cache: &Cache, options: &Options) -> rocksdb::Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_block_size(16 << 10);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_format_version(6);
    if matches!(name, families::IDS | families::HEADS | families::TILES) {
        table.set_bloom_filter(10.0, false);
        // Partition the filter. A filter in one block is larger than a shard of the cache admits, so every lookup
        // would read it whole from the disk.
        table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
        table.set_partition_filters(true);
        table.set_metadata_block_size(4 << 10);
        table.set_pin_top_level_index_and_filter(true);
    }
    let mut family = rocksdb::Options::default();
    family.set_block_based_table_factory(&table);
    family.set_write_buffer_size(options.write_buffer / 2);
    family.set_max_write_buffer_number(3);
    if matches!(name, families::IDS | families::HEADS | families::SLOTS) {
        // Most lookups in these families miss: a new context, an append that repeats nothing.
        family.set_memtable_whole_key_filtering(true);
        family.set_memtable_prefix_bloom_ratio(MEMTABLE_FILTER);
    }
    family.set_level_compaction_dynamic_level_bytes(true);
    let compression = match name {
        // Hashes do not compress.
        families::TILES | families::IDS => DBCompressionType::None,
        _ => DBCompressionType::Lz4,
    };
    // The newest data is rewritten most often and read from memory, so compress only the lowest levels.
    family.set_compression_per_level(&[DBCompressionType::None, DBCompressionType::None, compression]);
    if name == families::ENTRIES {
        family.set_bottommost_compression_type(DBCompressionType::Zstd);
        family.set_target_file_size_base(64 << 20);
        family.set_max_bytes_for_level_base(512 << 20);
        // Entries never change, so every compaction of them is pure cost: start one later.
        family.set_level_zero_file_num_compaction_trigger(8);
    }
    family
}
