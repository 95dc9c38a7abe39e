//! The command line of `ledgerctl interest`.

use clap::Subcommand;

// The subcommands of `ledgerctl interest`, each with its arguments.
#[derive(Debug, Subcommand)]
pub(crate) enum Interest {
    /// Be an observer of a context, and show who is there and what they broadcast, until interrupted
    Join {
        /// The context
        context: String,
        /// The name to be known by; without it, the node gives one
        #[arg(long = "as", default_value = "", hide_default_value = true, value_name = "NAME")]
        name: String,
        /// A pair of metadata for the other observers; may be repeated
        #[arg(long = "meta", value_name = "KEY=VALUE")]
        metadata: Vec<String>,
        /// End after so many events; 0: go on until interrupted
        #[arg(long, default_value_t = 0, value_name = "N")]
        count: u64,
    },
    /// Tell all observers of a context something, which is not stored
    Broadcast {
        /// The context
        context: String,
        /// What to tell
        text: String,
        /// The name to say it by
        #[arg(long = "as", default_value = "", hide_default_value = true, value_name = "NAME")]
        name: String,
        /// A pair of metadata; may be repeated
        #[arg(long = "meta", value_name = "KEY=VALUE")]
        metadata: Vec<String>,
    },
    /// Have an observer leave a context
    Leave {
        /// The context
        context: String,
        /// Its name
        #[arg(value_name = "NAME")]
        observer: String,
    },
}
