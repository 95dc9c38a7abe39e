//! Every bound on a comparison: on a request, on a response, and on the number of rounds.

/// Most slots whose buckets or contexts one request asks for: a response of at most 660 KiB.
pub const MAX_BUCKET_SLOTS: usize = 64;
/// Most contexts of a page: at most 550 KiB, because names are at most 1 KiB, and mostly a tenth of that.
pub const MAX_PAGE: usize = 512;
/// Most contexts whose roots one request asks for: a request of at most 150 KiB.
pub const MAX_COMPARED: usize = 128;
/// Sizes at which one round trip cuts what is left of a search: into 16 parts.
pub const MAX_PIVOTS: usize = 15;
/// Most roots of a context that one request asks for: the pivots, and both ends of what is left.
pub const MAX_SIZES: usize = MAX_PIVOTS + 2;
/// Most rounds (a request, and both responses) of one drill-down. At 512 contexts a page that is enough for some
/// ten million that differ, and it ends the comparison with a peer that goes on listing for ever.
pub const MAX_ROUNDS: u32 = 100_000;
/// Most round trips that comparing one context takes: 1 for the shorter size, then 16 because each divides the
/// 2^64 sizes there could be by 16.
pub const MAX_COMPARE_ROUNDS: u32 = 1 + u64::BITS.div_ceil((MAX_PIVOTS as u32 + 1).ilog2());
