//! One object for each file of the process, whatever its names and however often it is opened. Linux: `i_mapping`.
//!
//! Two caches over one file would not know of each other's stores: whole pages are written back, and the one that is written
//! last takes the other's stores away. So who opens a file that is open already joins the object that there is, of whatever
//! runtime, and brings nothing but rights of its own.
//!
//! ```text
//! state of a file        left by
//! (no entry)             find(): Making, the caller makes the object
//! Making                 fill(): Open; the place dropped: no entry. Others wait.
//! Open                   the last reference to the object goes: it is dropped, and then forget(): no entry
//! ```
//! An object that is being dropped writes back what is dirty, and only then may the file be read again:
//! ```text
//! drops the last value                    opens the file
//! no reference is left
//!                                         finds the entry; the object cannot be had any more: waits
//! writes back
//! forget(): no entry, wakes
//!                                         makes another object, which reads what was written
//! ```
//! Who waits has nothing in hand, and who drops may have any lock of ours: nobody waits for a lock while this one is held.
//!
//! # Context: control plane

use super::options::{Asked, FileOf};
use crate::object::state::ObjectInner;
use crate::process::descriptors::Inode;
use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

#[derive(Debug)]
enum Entry {
    Making,
    Open(Weak<ObjectInner>),
}

static OPEN: Mutex<Option<HashMap<Inode, Entry>>> = Mutex::new(None);
static CHANGED: Condvar = Condvar::new();

fn lock() -> MutexGuard<'static, Option<HashMap<Inode, Entry>>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What there is of a file.
pub(super) enum Found {
    /// The object.
    Open(Arc<ObjectInner>),
    /// Nothing: the caller makes it, and nobody else.
    Nothing(Place),
}

/// The right to make a file's object.
#[derive(Debug)]
pub(super) struct Place {
    inode: Inode,
    is_filled: bool,
}

/// Finds a file's object, waiting for who makes or ends it.
pub(super) fn find(inode: Inode) -> Found {
    let mut table = lock();
    loop {
        let map = table.get_or_insert_default();
        match map.get(&inode) {
            None => {
                map.insert(inode, Entry::Making);
                return Found::Nothing(Place { inode, is_filled: false });
            }
            Some(Entry::Open(object)) => {
                if let Some(object) = object.upgrade() {
                    return Found::Open(object);
                }
            }
            Some(Entry::Making) => {}
        }
        table = CHANGED.wait(table).unwrap_or_else(PoisonError::into_inner);
    }
}

impl Place {
    /// Returns which file it is.
    pub(super) fn inode(&self) -> Inode {
        self.inode
    }

    /// Says that the object is there.
    pub(super) fn fill(mut self, object: &Arc<ObjectInner>, asked: Asked) {
        object.is_file(FileOf { inode: self.inode, asked });
        self.is_filled = true;
        lock().get_or_insert_default().insert(self.inode, Entry::Open(Arc::downgrade(object)));
        CHANGED.notify_all();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.is_filled {
            forget(self.inode);
        }
    }
}

/// Says that the object has ended: what was dirty has been written. Not in a forked child, where the lock may be held by a
/// thread that does not exist.
pub(crate) fn forget(inode: Inode) {
    lock().get_or_insert_default().remove(&inode);
    CHANGED.notify_all();
}
