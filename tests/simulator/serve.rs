//! Responses to clients.

use ledger_core::ownership::slot_manager::{Owner, OwnershipSettings};

use super::{
    history::Context,
    lane::Queued,
    message::{Request, Response},
    node::{Node, index_of},
    node_output::{NodeOutput, Timer},
};

impl Node {
    pub fn request(&mut self, client: usize, request: u64, body: Request) {
        if self.must_read(client) {
            return;
        }
        let response = match body {
            Request::Cancel { up_to } => return self.cancel(client, up_to),
            Request::Append(append) => {
                if self.queue.is_empty() {
                    let after = self.random.below(3);
                    self.out.push(NodeOutput::Timer { after, timer: Timer::Commit });
                }
                return self.queue.push(Queued { client, request, append });
            }
            Request::Load { context, snapshot, is_large } => {
                return self.load(client, request, context, &snapshot, is_large);
            }
            Request::Attach { context, kept } => {
                if self.is_damaged(context) {
                    self.not_owner(context)
                } else if self.serving_epoch(self.config.contexts.slot(context)).is_some() {
                    let missing: Vec<u64> =
                        kept.into_iter().filter(|id| !self.ids[context].contains_key(id)).collect();
                    self.trace(|_| {
                        format!("writer {client} attaches to context {context}, lacks {missing:x?}")
                    });
                    Response::Attached { missing }
                } else {
                    self.not_owner(context)
                }
            }
            Request::Read { context } if self.is_damaged(context) => Response::NotReadable,
            Request::Read { context } => match self.visible_size(context) {
                Some(size) => {
                    let root = self.disk.now.histories[context].root_at(size).unwrap();
                    Response::Read { context, size, root }
                }
                None => Response::NotReadable,
            },
            Request::Watch { context, .. } if self.is_damaged(context) => Response::NotReadable,
            Request::Watch { context, after, root } => self.watched(context, after, root),
        };
        self.out.push(NodeOutput::Respond { client, request, response });
    }

    fn watched(&self, context: Context, after: u64, root: ledger_core::Hash) -> Response {
        let history = &self.disk.now.histories[context];
        match self.visible_size(context) {
            None => Response::NotReadable,
            // The node is behind; or, where visible entries may be lost, the watcher saw some that are gone.
            Some(size) if size < after => {
                let OwnershipSettings { replication_factor, write_quorum, .. } = self.config.settings;
                let is_gone = write_quorum * 2 <= replication_factor
                    && self.serving_epoch(self.config.contexts.slot(context)).is_some();
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
        let hint = match self.slot_manager.owner(self.config.contexts.slot(context)) {
            Owner::Other(node, _) => Some(index_of(&node)),
            Owner::Me(_) => Some(self.index),
            Owner::Nobody(_) => None,
        };
        Response::NotOwner { hint }
    }
}
