//! Making an object: its parts, each of which borrows from others, and what handlers see of it.
//!
//! # Context: control plane

use super::exclusive::{Exclusive, Parts, Plan};
use super::options::ObjectOptions;
use super::rmap::IMmap;
use super::state::ObjectInner;
use crate::cache::space::Space;
use crate::cache::state::RuntimeInner;
use crate::lease::Lease;
use crate::memory::limit_pages;
use crate::writeback::state::Flushing;
use softfault_mm::chunk::ChunkWord;
use softfault_mm::cut::{CaptureBits, Captured};
use softfault_mm::failing::Failing;
use softfault_mm::folio::FolioWord;
use softfault_mm::mapping::{FailurePolicy, Mapping};
use softfault_mm::memcontrol::CacheAccount;
use softfault_mm::ops::AddressSpaceOps;
use softfault_mm::page::PAGE_SHIFT;
use softfault_mm::streams::Readahead;
use softfault_mm::sync::{AtomicU32, AtomicU64};
use softfault_mm::vma::VmOps;
use softfault_mm::vmstat::VmStat;
use softfault_mm::xarray::Nodes;
use softfault_platform::store::file::FileStore;
use softfault_platform::store::object::{FolioMemory, ObjectOps};
use softfault_platform::store::{ReadHere, Store, bounce};
use softfault_platform::vmatree;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

/// What an object is made over.
pub(super) struct Backing {
    pub(super) store: Box<dyn Store>,
    pub(super) ops: Box<dyn VmOps>,
    /// The store again, if it is a file's.
    pub(super) file: Option<*const FileStore>,
    /// What of the store can be read in a handler, where not everything can.
    pub(super) here: Option<Box<dyn ReadHere>>,
    pub(super) facts: Facts,
}

/// What the kind of an object says of its store and its pages.
#[derive(Clone, Copy, Default)]
pub(super) struct Facts {
    /// The store may be called in a signal handler.
    pub(super) handler_safe: bool,
    /// The store touches arenas.
    pub(super) store_faults: bool,
    pub(super) always_dirty: bool,
    /// What is written is to be found in the store later: the object is synced, and written back when it goes.
    pub(super) persistent: bool,
    /// Dirty pages have somewhere to go.
    pub(super) dirty_goes: bool,
    /// The vtable is the program's.
    pub(super) custom_ops: bool,
    /// A filler may fill pages that nobody asked for.
    pub(super) reads_ahead: bool,
}

/// Makes an object in a range of a space that is its own, under a number that is its own, and publishes its mapping.
///
/// # Context: control plane
#[expect(unsafe_code, reason = "the object's parts are lent to handlers until it is dropped")]
pub(super) fn make(
    options: &ObjectOptions,
    backing: Backing,
    plan: Option<Plan>,
    rt: Arc<RuntimeInner>,
    (space, offset, len): (Arc<Space>, u64, usize),
    id: u32,
) -> ObjectInner {
    let facts = backing.facts;
    let store: Lease<dyn Store> = Lease::new(backing.store);
    let vm_ops: Lease<dyn VmOps> = Lease::new(backing.ops);
    // SAFETY: `ObjectInner::drop` withdraws the object and waits for its users before any lease goes.
    let store_ref = unsafe { store.lend() };
    if plan.is_none() && !store_ref.uses_descriptors() || read_align_pages(store_ref) > 1 {
        bounce::init();
    }
    let here: Option<Lease<dyn ReadHere>> = backing.here.map(Lease::new);
    let a_ops = ops_of(options, facts, store_ref, (&space, offset, len), rt.lock_cache, id);
    // SAFETY: as for the store.
    let a_ops = Lease::new(Box::new(a_ops.with_here(here.as_ref().map(|here| unsafe { here.lend() }))));
    let words = words_of(&space, offset, len);
    let folios = words.folios;
    let parts = Parts { options, store: store_ref, folios, handler_safe: facts.handler_safe, name: u64::from(id) };
    let exclusive = plan.map(|p| p.build(&parts));
    let nodes: Lease<[AtomicU64]> =
        Lease::new((0..Nodes::words(words.chunks.len())).map(|_| AtomicU64::new(0)).collect());
    let label: Lease<str> = Lease::new(options.label_of(id).into_boxed_str());
    // SAFETY: as for the store.
    let ops = exclusive.as_ref().map_or_else(|| unsafe { a_ops.lend() } as &dyn AddressSpaceOps, Exclusive::as_ops);
    let borrowed = borrow(&rt, &label, &nodes, words, ops, store_ref);
    let (mapping, mapping_ref) = publish(mapping_of(id, options, facts, borrowed));
    let has_mkwrite = vm_ops.has_page_mkwrite();
    ObjectInner {
        rt,
        space,
        offset,
        len_max: len,
        writable: AtomicBool::new(options.writable),
        dsync: options.dsync,
        custom_ops: facts.custom_ops,
        sync_wp: options.mkwrite || has_mkwrite,
        huge: may_be_huge(options, facts, has_mkwrite),
        mapping: Some(mapping),
        nodes: Some(nodes),
        a_ops: Some(a_ops),
        exclusive,
        store: Some(store),
        here,
        vm_ops: Some(vm_ops),
        // SAFETY: it points to what `store` has on the heap, which goes when nobody can have this value any more.
        file_store: backing.file.map(|file| unsafe { &*file }),
        file: OnceLock::new(),
        id,
        i_mmap: Some(Lease::new(Box::new(IMmap::new(id)))),
        flushing: Arc::new(Flushing::new(mapping_ref, store_ref, options.writable && facts.persistent)),
        label: Some(label),
        pid: std::process::id(),
    }
}

/// Returns the words of the pages and chunks in a range of a space.
#[expect(unsafe_code, reason = "the object holds the space that the words lie in")]
fn words_of(space: &Space, offset: u64, len: usize) -> Words {
    // SAFETY: the object holds the space, so the words outlive it.
    let folios = unsafe { space.region.folios(offset, len) };
    // SAFETY: as above.
    let chunks = unsafe { space.region.chunks(offset, len) };
    // SAFETY: as above.
    Words { folios, chunks, bits: unsafe { space.region.capture_bits(offset, len) } }
}

/// The words and bits of an object's pages.
struct Words {
    folios: &'static [FolioWord],
    chunks: &'static [ChunkWord],
    bits: CaptureBits<'static>,
}

/// Shows the mapping to handlers, and lends it.
#[expect(unsafe_code, reason = "the mapping is lent to handlers until the object is dropped")]
fn publish(mapping: Mapping<'static>) -> (Lease<Mapping<'static>>, &'static Mapping<'static>) {
    let id = mapping.id;
    let lease = Lease::new(Box::new(mapping));
    // SAFETY: `ObjectInner::drop` withdraws the mapping and waits for its users before the lease goes.
    let lent = unsafe { lease.lend() };
    vmatree::publish_mapping(id, Some(lent));
    (lease, lent)
}

/// Returns whether chunks may be huge pages: not where stores are noted page by page, or fault.
fn may_be_huge(options: &ObjectOptions, facts: Facts, has_mkwrite: bool) -> bool {
    options.huge_pages && (!options.writable || facts.always_dirty) && !options.mkwrite && !has_mkwrite
}

/// Makes the operations by which pages of the cache are read and written.
#[expect(unsafe_code, reason = "the operations borrow the store and the space, as the object does")]
fn ops_of(
    options: &ObjectOptions,
    facts: Facts,
    store: &'static dyn Store,
    (space, offset, len): (&Space, u64, usize),
    is_locked: bool,
    id: u32,
) -> ObjectOps<'static> {
    let region = &space.region;
    let memory = FolioMemory {
        // SAFETY: the object holds the space, and with it the ports.
        ports: unsafe { &*std::ptr::from_ref(region.ports()) },
        fd: region.fd(),
        fd_offset: offset,
        alias: region.alias_at(offset),
        len_bytes: len,
        is_locked,
    };
    let (len_bytes, retries, policy) = (options.len_bytes, options.retries, options.policy);
    // SAFETY: `allocate` gave this range of the region to this object alone, until `give`.
    unsafe { ObjectOps::new(memory, store, len_bytes, retries, facts.handler_safe, policy, u64::from(id)) }
}

/// What a mapping borrows of the object's parts, and what the store says of itself.
struct Borrowed {
    label: &'static str,
    folios: &'static [FolioWord],
    chunks: &'static [ChunkWord],
    bits: CaptureBits<'static>,
    nodes: &'static [AtomicU64],
    a_ops: &'static dyn AddressSpaceOps,
    account: &'static CacheAccount<'static>,
    stat: &'static VmStat,
    write_blocks: bool,
    read_align: u32,
    reads_parts: bool,
}

/// Lends a mapping what it borrows of the object's parts.
#[expect(unsafe_code, reason = "the object's parts are lent to handlers until it is dropped")]
fn borrow(
    rt: &RuntimeInner,
    label: &Lease<str>,
    nodes: &Lease<[AtomicU64]>,
    words: Words,
    a_ops: &'static dyn AddressSpaceOps,
    store: &dyn Store,
) -> Borrowed {
    Borrowed {
        // SAFETY: the object drops or leaks its mapping before its label.
        label: unsafe { label.lend() },
        folios: words.folios,
        chunks: words.chunks,
        bits: words.bits,
        // SAFETY: the object keeps the nodes for as long as the mapping, which is dropped or leaked with them.
        nodes: unsafe { nodes.lend() },
        a_ops,
        // SAFETY: the object holds the runtime, which holds the account.
        account: unsafe { rt.account.lend() },
        stat: rt.stat,
        write_blocks: store.write_blocks(),
        read_align: read_align_pages(store),
        reads_parts: store.reads_parts(),
    }
}

/// Returns how many pages the store's reads are aligned to.
fn read_align_pages(store: &dyn Store) -> u32 {
    (store.read_align_bytes() >> PAGE_SHIFT) as u32
}

/// Makes what handlers see of an object.
fn mapping_of(id: u32, o: &ObjectOptions, facts: Facts, b: Borrowed) -> Mapping<'static> {
    let is_exclusive = o.exclusive.is_some();
    Mapping {
        id,
        label: b.label,
        folios: b.folios,
        chunks: b.chunks,
        nodes: Nodes::new(b.nodes),
        i_size: AtomicU64::new(o.len_bytes),
        a_ops: b.a_ops,
        policy: o.policy,
        handler_safe: facts.handler_safe,
        store_faults: facts.store_faults,
        always_dirty: facts.always_dirty,
        dirty_goes: facts.dirty_goes && (!is_exclusive || o.writable),
        is_flushed: AtomicBool::new(o.writable && facts.persistent),
        write_blocks: b.write_blocks,
        exclusive: is_exclusive,
        // What is read of a block past the cache, the next page of it would read again.
        staging: o.private_past_cache && !facts.always_dirty && !o.mkwrite && !is_exclusive && b.read_align <= 1,
        fill_window: o.fill_window_pages,
        read_align: b.read_align,
        reads_parts: b.reads_parts,
        ra: readahead_of(o.readahead_pages, o.fill_window_pages, o.policy, facts.reads_ahead),
        deadline_ns: o.deadline.map_or(u64::MAX, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)),
        users: AtomicU32::new(0),
        nr_writers: AtomicU32::new(0),
        nr_maps: AtomicU32::new(0),
        account: b.account,
        own_limit: AtomicU64::new(o.cache_limit_bytes.map_or(u64::MAX, limit_pages)),
        nr_own: AtomicU64::new(0),
        hand: AtomicU64::new(0),
        flush_turn: AtomicU32::new(0),
        flushing: AtomicU32::new(0),
        flush_wanted: AtomicU32::new(0),
        failing: Failing::new(),
        captured: Captured::new(b.bits),
        stat: b.stat,
    }
}

/// Returns the readahead state of an object that is being made.
fn readahead_of(asked: Option<u32>, fill_window: u32, policy: FailurePolicy, reads_ahead: bool) -> Readahead {
    // A page that nobody touched must not end the process.
    if !reads_ahead || policy == FailurePolicy::Abort {
        return Readahead::never();
    }
    // Who reads page by page wants nothing else.
    let usual = if fill_window > 1 { fill_window.saturating_mul(2) } else { 0 };
    Readahead::new(asked.unwrap_or(usual))
}
