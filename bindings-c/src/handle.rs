//! Handles: names of Rust values that C code may do anything to, and that are never addresses.
//!
//! ```text
//! 63    56 55            28 27      4 3  0
//!  0x5f   | (generation     | index   | type) ^ cookie
//! ```
//! The cookie is random, one a process and library, so a handle of another copy of the library, or a number that somebody
//! made up, names nothing. The first byte makes it an address that no processor accepts: a program that dereferences a
//! handle ends there and then, and garbage collectors do not take it for one of theirs.
//!
//! The table's lock is held for a look, never over a call, an allocation or a destructor: fillers and faulting threads
//! look handles up, too. A value lives until its handle is freed and the last call on it has returned.
//!
//! # Context: control plane, fillers; never a handler, since what it interrupts may hold the lock

use crate::error::{EACCES, EBADF, EINVAL, Failure, SOFTFAULT_ERROR_DENIED, SOFTFAULT_ERROR_EXHAUSTED};
use crate::error::{ENOMEM, SOFTFAULT_ERROR_HANDLE};
use crossbeam_utils::Backoff;
use softfault::image::workingset::WorkingSet;
use softfault::image::{Catalog, Image, Writer};
use softfault::{Arena, Capture, Held, Object, OpenImage, Pin, Runtime, Session, Stats};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

/// A page-fault runtime: a cache, its counters, its threads. Freed by softfault_runtime_free().
#[derive(Debug)]
pub struct softfault_runtime {
    _opaque: [u8; 0],
}

/// Bytes that can be mapped and read and written: a file, anonymous memory, or what a store of the program's has. Freed by
/// softfault_object_free().
#[derive(Debug)]
pub struct softfault_object {
    _opaque: [u8; 0],
}

/// A range of address space over which objects are mapped. Freed by softfault_arena_free().
#[derive(Debug)]
pub struct softfault_arena {
    _opaque: [u8; 0],
}

/// A range of an arena that stays resident. Freed by softfault_pin_free().
#[derive(Debug)]
pub struct softfault_pin {
    _opaque: [u8; 0],
}

/// A range of an object that is not written back. Freed by softfault_held_free().
#[derive(Debug)]
pub struct softfault_held {
    _opaque: [u8; 0],
}

/// A reading of a runtime's counters. Freed by softfault_stats_free().
#[derive(Debug)]
pub struct softfault_stats {
    _opaque: [u8; 0],
}

/// An image of memory: a snapshot. Freed by softfault_image_free().
#[derive(Debug)]
pub struct softfault_image {
    _opaque: [u8; 0],
}

/// An image that was restored: memory, which is filled as it is touched. Freed by softfault_session_free().
#[derive(Debug)]
pub struct softfault_session {
    _opaque: [u8; 0],
}

/// Which pages of an image a program touched first, in windows of time. Freed by softfault_working_set_free().
#[derive(Debug)]
pub struct softfault_working_set {
    _opaque: [u8; 0],
}

/// An image that is being written. Freed by softfault_image_writer_free().
#[derive(Debug)]
pub struct softfault_image_writer {
    _opaque: [u8; 0],
}

/// A folder of images. Freed by softfault_catalog_free().
#[derive(Debug)]
pub struct softfault_catalog {
    _opaque: [u8; 0],
}

/// An image that is being written of arenas. Freed by softfault_capture_free().
#[derive(Debug)]
pub struct softfault_capture {
    _opaque: [u8; 0],
}

/// An image: of files alone, or open as an object of a runtime.
#[derive(Clone)]
pub(crate) enum AnyImage {
    Files(Arc<Image>),
    Open(OpenImage),
}

impl AnyImage {
    pub(crate) fn image(&self) -> &Arc<Image> {
        match self {
            Self::Files(image) => image,
            Self::Open(open) => open.image(),
        }
    }
}

/// The value behind a handle.
pub(crate) enum Value {
    Runtime(Runtime),
    Object(Object),
    Arena(Arena),
    Pin(Arc<Pin>),
    Held(Arc<Held>),
    Stats(Arc<Stats>),
    Image(AnyImage),
    Session(Session),
    WorkingSet(Arc<WorkingSet>),
    ImageWriter(Arc<Mutex<Option<Writer>>>),
    Catalog(Catalog),
    Capture(Arc<Mutex<Option<Capture>>>),
}

/// A type of handle.
pub(crate) trait Handle {
    type Target: Clone;
    const TYPE: u64;
    const NAME: &'static str;
    fn wrap(target: Self::Target) -> Value;
    fn find(value: &Value) -> Option<&Self::Target>;
}

macro_rules! handles {
    ($($handle:ident is $number:literal: $variant:ident($target:ty);)*) => {$(
        impl Handle for $handle {
            type Target = $target;
            const TYPE: u64 = $number;
            const NAME: &'static str = stringify!($handle);
            fn wrap(target: $target) -> Value {
                Value::$variant(target)
            }
            fn find(value: &Value) -> Option<&$target> {
                match value {
                    Value::$variant(target) => Some(target),
                    _ => None,
                }
            }
        }
    )*};
}

handles! {
    softfault_runtime is 1: Runtime(Runtime);
    softfault_object is 2: Object(Object);
    softfault_arena is 3: Arena(Arena);
    softfault_pin is 4: Pin(Arc<Pin>);
    softfault_held is 5: Held(Arc<Held>);
    softfault_stats is 6: Stats(Arc<Stats>);
    softfault_image is 7: Image(AnyImage);
    softfault_session is 8: Session(Session);
    softfault_working_set is 9: WorkingSet(Arc<WorkingSet>);
    softfault_image_writer is 10: ImageWriter(Arc<Mutex<Option<Writer>>>);
    softfault_catalog is 11: Catalog(Catalog);
    softfault_capture is 12: Capture(Arc<Mutex<Option<Capture>>>);
}

const TOP: u64 = 0x5f << 56;
const LOW: u64 = (1 << 56) - 1;
const INDEX_BITS: u32 = 24;
const GENERATION_MAX: u32 = (1 << 28) - 1;

/// One row of the table.
struct Slot {
    /// Of the value that is there, or that is next.
    generation: u32,
    value: Option<Value>,
    /// The next free slot, if this one is free.
    next: Option<u32>,
}

struct Slots {
    rows: Vec<Slot>,
    free: Option<u32>,
}

static SLOTS: Mutex<Slots> = Mutex::new(Slots { rows: Vec::new(), free: None });
/// The process whose threads take the lock: the first that gave a handle out, or a child of it in which the lock was free.
static OWNER: AtomicU32 = AtomicU32::new(0);
static COOKIE: AtomicU64 = AtomicU64::new(0);

fn cookie() -> u64 {
    match COOKIE.load(Ordering::Relaxed) {
        0 => {
            let random = (RandomState::new().build_hasher().finish() & LOW) | 1;
            COOKIE.compare_exchange(0, random, Ordering::Relaxed, Ordering::Relaxed).err().unwrap_or(random)
        }
        made => made,
    }
}

/// Locks the table. In a forked child the lock may be held by a thread that does not exist there: an error, not a hang.
fn lock() -> Result<MutexGuard<'static, Slots>, Failure> {
    let backoff = Backoff::new();
    loop {
        match SLOTS.try_lock() {
            Ok(guard) => return Ok(guard),
            Err(TryLockError::Poisoned(poisoned)) => return Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => {
                // It is held for a look: only who has waited in vain asks whose it is.
                if backoff.is_completed() && OWNER.load(Ordering::Relaxed) != std::process::id() {
                    let why = "handles belong to the parent of this forked process";
                    return Err(Failure::new(EACCES, SOFTFAULT_ERROR_DENIED, why));
                }
                backoff.snooze();
            }
        }
    }
}

fn encode<H: Handle>(index: u32, generation: u32) -> *mut H {
    let packed = (u64::from(generation) << (INDEX_BITS + 4)) | (u64::from(index) << 4) | H::TYPE;
    std::ptr::without_provenance_mut((TOP | ((packed ^ cookie()) & LOW)) as usize)
}

/// Returns index and generation of what may be a handle.
fn decode<H: Handle>(handle: *mut H) -> Result<(usize, u32), Failure> {
    let name = H::NAME;
    let bits = handle.addr() as u64;
    if bits == 0 {
        return Err(Failure::new(EINVAL, SOFTFAULT_ERROR_HANDLE, format_args!("{name}: the handle is NULL")));
    }
    let packed = (bits ^ cookie()) & LOW;
    if bits & !LOW != TOP || packed & 15 != H::TYPE {
        return Err(bad(name));
    }
    let index = (packed >> 4) & ((1 << INDEX_BITS) - 1);
    Ok((index as usize, (packed >> (INDEX_BITS + 4)) as u32))
}

fn bad(name: &str) -> Failure {
    let why = format_args!("{name}: no such handle: freed, of another type, or never given out");
    Failure::new(EBADF, SOFTFAULT_ERROR_HANDLE, why)
}

/// Gives a value a name.
pub(crate) fn insert<H: Handle>(target: H::Target) -> Result<*mut H, Failure> {
    let pid = std::process::id();
    let _ = OWNER.compare_exchange(0, pid, Ordering::Relaxed, Ordering::Relaxed);
    let mut value = Some(H::wrap(target));
    let mut spare: Vec<Slot> = Vec::new();
    loop {
        let mut slots = lock()?;
        OWNER.store(pid, Ordering::Relaxed);
        if let Some(index) = slots.free {
            let row = &mut slots.rows[index as usize];
            row.value = value.take();
            let (generation, next) = (row.generation, row.next.take());
            slots.free = next;
            return Ok(encode(index, generation));
        }
        let index = slots.rows.len();
        if index >> INDEX_BITS != 0 {
            drop(slots);
            return Err(Failure::new(ENOMEM, SOFTFAULT_ERROR_EXHAUSTED, "out of handles (16777216)"));
        }
        if index < slots.rows.capacity() {
            slots.rows.push(Slot { generation: 1, value: value.take(), next: None });
            return Ok(encode(index as u32, 1));
        }
        // Room is made outside the lock, and moved into with it.
        if spare.capacity() > index {
            spare.append(&mut slots.rows);
            std::mem::swap(&mut spare, &mut slots.rows);
            continue;
        }
        drop(slots);
        spare = Vec::with_capacity((index * 2).max(64));
    }
}

/// Finds the value of a handle, and keeps it for the call.
pub(crate) fn get<H: Handle>(handle: *mut H) -> Result<H::Target, Failure> {
    let (index, generation) = decode(handle)?;
    let slots = lock()?;
    let row = slots.rows.get(index).filter(|row| row.generation == generation);
    row.and_then(|row| row.value.as_ref()).and_then(H::find).cloned().ok_or_else(|| bad(H::NAME))
}

/// Takes a handle back. The value goes with its last reference, outside the lock.
pub(crate) fn free<H: Handle>(handle: *mut H) -> Result<(), Failure> {
    let (index, generation) = decode(handle)?;
    let mut slots = lock()?;
    let found = slots.rows.get_mut(index).filter(|row| row.generation == generation);
    let found = found.filter(|row| row.value.as_ref().and_then(H::find).is_some());
    let Some(row) = found else { return Err(bad(H::NAME)) };
    let value = row.value.take();
    row.generation += 1;
    // A row whose generations are used up is never used again.
    if row.generation < GENERATION_MAX {
        let reusable = Some(index as u32);
        let next = std::mem::replace(&mut slots.free, reusable);
        slots.rows[index].next = next;
    }
    drop(slots);
    drop(value);
    Ok(())
}
