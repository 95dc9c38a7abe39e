//! A database whose write failed: the node owns nothing, takes no writes, and opens the database anew once writes are
//! likely to succeed, as in `ledger_store::engine::reopenable_db`. Nobody knows which of the last writes it then has.

use ledger_core::ownership::slot_manager::Event;

use super::{lane::Commits, pins::Pins, prelude::*};

impl Node {
    /// A sync failed.
    pub(super) fn on_write_failed(&mut self) {
        self.disk.is_syncing = false;
        self.has_failed = true;
        self.can_write();
        self.after_sync.clear();
        let lost = self.step(Commits::on_write_failed);
        self.events.extend(lost.into_iter().map(Event::OwnershipLost));
    }

    /// Opens the database anew.
    pub(super) fn reopen(&mut self) {
        let lost = self.disk.crash(&mut self.random);
        self.out.push(NodeOutput::Note(Note::Counted(Counted::WritesLost, lost)));
        self.out.push(NodeOutput::Note(Note::Counted(Counted::Reopened, 1)));
        self.replica.on_reopened();
        let lost = self.step(Commits::on_reopened);
        self.events.extend(lost.into_iter().map(Event::OwnershipLost));
        self.pins = Pins::default();
        self.digests.clear();
        self.loads.clear();
        self.arrived.clear();
        self.scan();
        for slot in self.config.contexts.slots.clone() {
            self.events.push_back(Event::RecordChanged(slot, Some(self.record(slot))));
        }
        self.has_failed = false;
    }
}
