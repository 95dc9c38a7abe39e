//! The process's file descriptors, and who gets how many.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::limits;

/// How the file descriptors of the process are shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptors {
    /// All there are.
    pub all: usize,
    /// Table files that the store keeps open.
    pub store: usize,
    /// Connections of gRPC clients.
    pub clients: usize,
}

impl Descriptors {
    /// Shares out a limit: a part for the store, some for everything else, and the rest for clients, as many as they
    /// may be at most.
    pub fn share(all: usize, max_connections: usize) -> Self {
        let store = (all / 2).clamp(limits::MIN_OPEN_FILES, limits::MAX_OPEN_FILES);
        let rest = all.saturating_sub(store + limits::RESERVED_DESCRIPTORS);
        Self { all, store, clients: max_connections.min(rest).max(limits::MIN_CONNECTIONS) }
    }
}

/// Raises the limit of open files to the highest that the process may set, and gives it.
pub fn raise_limit() -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: maximum, maximum };
    let now =
        if current != maximum && setrlimit(Resource::Nofile, raised).is_ok() { maximum } else { current };
    // No limit is one of more than anybody opens.
    now.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_and_everything_else_keep_their_share_whatever_clients_take() {
        let share = |all, most| {
            let Descriptors { store, clients, .. } = Descriptors::share(all, most);
            (store, clients)
        };
        assert_eq!(share(1 << 20, 8192), (1024, 8192));
        assert_eq!(share(4096, 8192), (1024, 2816));
        assert_eq!(share(1024, 8192), (512, 256));
        assert_eq!(share(256, 8192), (128, limits::MIN_CONNECTIONS));
    }

    #[test]
    fn the_limit_is_raised_as_far_as_it_goes() {
        let raised = raise_limit();
        let now = getrlimit(Resource::Nofile);
        assert_eq!(now.current, now.maximum);
        assert!(raised > 0);
    }
}
