//! Responses to clients.

use ledger_core::ownership::slot_manager::Owner;

use super::prelude::*;

impl Node {
    pub fn request(&mut self, client: usize, request: u64, body: Request) {
        if self.must_read(client) {
            return;
        }
        let client = (client, request);
        let response = match body {
            Request::Cancel { up_to } => return self.cancel(client.0, up_to),
            Request::Append(append) => {
                if self.queue.is_empty() {
                    let after = self.random.below(3);
                    self.out.push(NodeOutput::Timer { after, timer: Timer::Commit });
                }
                return self.queue.push((client, append));
            }
            Request::Load { context, snapshot, is_large } => {
                return self.load(client, context, &snapshot, is_large);
            }
            Request::Attach { context, kept } => {
                if self.is_damaged(context) || self.serving_epoch(self.slot(context)).is_none() {
                    self.not_owner(context)
                } else {
                    let is_missing = |id: &u64| self.history(context).find(*id).is_none();
                    Response::Attached { missing: kept.into_iter().filter(is_missing).collect() }
                }
            }
            Request::Read { context } | Request::Watch { context, .. } if self.is_damaged(context) => {
                Response::NotReadable
            }
            Request::Read { context } => match self.visible_size(context) {
                Some(size) => {
                    let root = self.history(context).root_at(size).unwrap();
                    Response::Read { context, size, root }
                }
                None => Response::NotReadable,
            },
            Request::Watch { context, after, root } => self.watched(context, after, root),
        };
        self.respond(client, response);
    }

    fn watched(&self, context: Context, after: u64, root: Hash) -> Response {
        let history = self.history(context);
        match self.visible_size(context) {
            None => Response::NotReadable,
            // The node is behind; or, where visible entries may be lost, the watcher saw some that are gone.
            Some(size) if size < after => {
                let OwnershipSettings { replication_factor, write_quorum, .. } = self.config.settings;
                let is_gone = write_quorum * 2 <= replication_factor
                    && self.serving_epoch(self.slot(context)).is_some();
                if is_gone { Response::Changed } else { Response::NotReadable }
            }
            Some(_) if history.root_at(after) != Some(root) => Response::Changed,
            Some(size) => {
                let to = size.min(after + 64) as usize;
                Response::Watched { entries: history.0[after as usize..to].into() }
            }
        }
    }

    pub(super) fn not_owner(&self, context: Context) -> Response {
        let hint = match self.slot_manager.owner(self.slot(context)) {
            Owner::Other(node, _) => Some(index_of(&node)),
            Owner::Me(_) => Some(self.index),
            Owner::Nobody(_) => None,
        };
        Response::NotOwner { hint }
    }
}
