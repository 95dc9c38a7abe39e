//! Attributes: small values that the node's own services store by name, beside the ledger's data.

use rocksdb::WriteBatch;

use crate::{StoreError, engine::db::Db, engine::families, engine::record};

/// Prefix of the attributes' keys in `meta`.
const PREFIX: &[u8] = b"note/";
/// Largest attribute, in bytes.
const MAX_ATTRIBUTE: usize = 16 << 20;

fn key(name: &str) -> Vec<u8> {
    [PREFIX, name.as_bytes()].concat()
}

/// Reads an attribute; `None` if there is none.
pub(crate) fn read(db: &Db, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
    let read = |bytes: &[u8]| record::decode::<&[u8]>(bytes).map(<[u8]>::to_vec);
    let damaged = |error: &dyn std::fmt::Display| {
        StoreError::Io(format!("the data directory's note {name:?} is damaged ({error})"))
    };
    let found = db.get(families::META, &key(name), read).map_err(|error| damaged(&error))?;
    found.transpose().map_err(|error| damaged(&error))
}

/// Replaces or removes an attribute; the change is on disk when this returns.
pub(crate) fn write(db: &Db, name: &str, note: Option<&[u8]>) -> Result<(), StoreError> {
    let family = db.family(families::META)?;
    let mut batch = WriteBatch::default();
    match note {
        None => batch.delete_cf(family, key(name)),
        Some(note) if note.len() > MAX_ATTRIBUTE => {
            return Err(StoreError::Io(format!("the note {name:?} has more than {MAX_ATTRIBUTE} bytes")));
        }
        Some(note) => {
            let mut row = Vec::new();
            record::encode(&note, &mut row).map_err(|error| StoreError::Io(error.to_string()))?;
            batch.put_cf(family, key(name), row);
        }
    }
    db.write_unsynced(batch)?;
    db.sync()
}

#[cfg(test)]
mod tests {
    use crate::Ledger;

    #[test]
    fn a_note_is_there_after_a_restart_and_gone_when_it_was_removed() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        assert_eq!(ledger.node_attribute("leaving").unwrap(), None);
        ledger.set_node_attribute("leaving", Some(b"soon")).unwrap();
        ledger.set_node_attribute("leaving", Some(b"now")).unwrap();
        ledger.set_node_attribute("other", Some(b"")).unwrap();
        ledger.close().unwrap();
        drop(ledger);
        let ledger = Ledger::open(dir.path()).unwrap();
        assert_eq!(ledger.node_attribute("leaving").unwrap().as_deref(), Some(&b"now"[..]));
        assert_eq!(ledger.node_attribute("other").unwrap().as_deref(), Some(&b""[..]));
        ledger.set_node_attribute("leaving", None).unwrap();
        assert_eq!(ledger.node_attribute("leaving").unwrap(), None);
    }
}
