//! How payloads are shown.

use clap::ValueEnum;

/// How payloads are shown.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(crate) enum PayloadFormat {
    /// Text where it is printable, else hex digits
    #[default]
    Text,
    /// Hex digits
    Hex,
    /// Base64
    Base64,
    /// Not at all
    None,
    /// As they are, each with a newline after it, and nothing else: for programs, never to a terminal
    Raw,
}
