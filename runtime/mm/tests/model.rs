//! Random histories of maps, accesses, reclaim and failures against a model that knows only bytes.
//!
//! The model has an object's bytes, the private copies, and which pages the store will not give; it knows nothing of
//! folios, extents or windows. So whatever the walk does with them, a byte that differs or an error that is not in the
//! model is a bug.
#![cfg(not(loom))]
#![forbid(unsafe_code)]

mod support;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use softfault_mm::ctx::Ctx;
use softfault_mm::errno::Errno;
use softfault_mm::folio::DIRTY;
use softfault_mm::page::{EXTENT_PAGES, PAGE_SHIFT, PAGE_SIZE, pages_of};
use softfault_mm::shmem::ShmemVmOps;
use softfault_mm::types::{FaultFlags, FillError, VmFaultReason, VmFlags};
use softfault_mm::vmscan;
use softfault_mm::vmstat::Event;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use support::{ARENA_EXTENTS, Content, MapSpec, ObjectSpec, World, arena_base, lock};

const NR_ARENAS: usize = 2;
/// Objects 0 to 2 are small and differ in kind; 3 and 4 have a whole extent and a little more.
const SMALL: usize = 24;
const LARGE: usize = EXTENT_PAGES + 8;
const NR_OBJECTS: usize = 5;

fn specs() -> [ObjectSpec; NR_OBJECTS] {
    let small = ObjectSpec { len_bytes: (SMALL << PAGE_SHIFT) as u64 - 1000, ..ObjectSpec::pages(SMALL) };
    let large =
        ObjectSpec { len_bytes: (LARGE << PAGE_SHIFT) as u64 - 5, fill_window: 512, ..ObjectSpec::pages(LARGE) };
    [
        ObjectSpec { fill_window: 4, ..small },
        ObjectSpec { staging: true, ..small },
        ObjectSpec { handler_safe: false, staging: true, fill_window: 8, ..small },
        large,
        ObjectSpec { always_dirty: true, ..large },
    ]
}

#[derive(Clone, Debug)]
enum Op {
    Map {
        arena: usize,
        at: usize,
        nr: usize,
        object: usize,
        pgoff: usize,
        kind: usize,
    },
    Unmap {
        arena: usize,
        at: usize,
        nr: usize,
        hints: bool,
    },
    Protect {
        arena: usize,
        at: usize,
        nr: usize,
        read: bool,
        write: bool,
    },
    Zap {
        arena: usize,
        at: usize,
        nr: usize,
    },
    Access {
        arena: usize,
        at: usize,
        offset: usize,
        store: Option<u8>,
        thread: bool,
    },
    Glance {
        arena: usize,
        at: usize,
        write: bool,
    },
    Evict {
        object: usize,
        at: usize,
        nr: usize,
        store_ok: bool,
    },
    WriteBack {
        object: usize,
        at: usize,
        store_ok: bool,
    },
    Truncate {
        object: usize,
        len_bytes: usize,
    },
    Fail {
        object: usize,
        at: usize,
        corrupt: bool,
    },
    Heal {
        object: usize,
    },
    Hiccup(u32),
    /// The cache's limit from here on; 0: none.
    Limit(u64),
    Shrink(usize),
    /// One page is not taken by the store.
    WriteOut {
        object: usize,
        at: usize,
        nr: usize,
        full: usize,
    },
    Sync {
        object: usize,
        ok: bool,
    },
    Discard {
        object: usize,
        at: usize,
        nr: usize,
    },
    /// The kernel refuses to unmap and protect.
    Refuse(u32),
    /// The kernel empties entries by itself.
    Empty {
        arena: usize,
        at: usize,
        nr: usize,
    },
}

/// Pages where things happen: mostly the first few of an arena, sometimes the second extent.
fn place() -> impl Strategy<Value = usize> {
    prop_oneof![12 => 0..10usize, 6 => 0..SMALL + 8, 3 => EXTENT_PAGES - 4..EXTENT_PAGES + 12, 1 => 0..ARENA_EXTENTS * EXTENT_PAGES]
}

fn length() -> impl Strategy<Value = usize> {
    prop_oneof![5 => 1..SMALL, 4 => Just(LARGE), 1 => 1..LARGE]
}

fn op() -> impl Strategy<Value = Op> {
    let arena = 0..NR_ARENAS;
    let object = 0..NR_OBJECTS;
    let offset = prop_oneof![Just(0), Just(PAGE_SIZE - 1), 0..PAGE_SIZE];
    // Congruent maps, or no extent would ever be promoted.
    let map = prop_oneof![
        2 => (place(), 0..8usize),
        4 => Just((0, 0)),
        1 => Just((EXTENT_PAGES, 0)),
    ];
    prop_oneof![
        4 => (arena.clone(), map, length(), object.clone(), 0..KINDS.len()).prop_map(
            |(arena, (at, pgoff), nr, object, kind)| Op::Map { arena, at, nr, object, pgoff, kind }
        ),
        1 => (arena.clone(), place(), length(), any::<bool>())
            .prop_map(|(arena, at, nr, hints)| Op::Unmap { arena, at, nr, hints }),
        1 => (arena.clone(), place(), length(), prop::bool::weighted(0.8), any::<bool>())
            .prop_map(|(arena, at, nr, read, write)| Op::Protect { arena, at, nr, read, write }),
        1 => (arena.clone(), place(), length()).prop_map(|(arena, at, nr)| Op::Zap { arena, at, nr }),
        16 => (arena.clone(), place(), offset, proptest::option::of(any::<u8>()), any::<bool>())
            .prop_map(|(arena, at, offset, store, thread)| Op::Access { arena, at, offset, store, thread }),
        1 => (arena.clone(), place(), any::<bool>()).prop_map(|(arena, at, write)| Op::Glance { arena, at, write }),
        2 => (arena, place(), length()).prop_map(|(arena, at, nr)| Op::Empty { arena, at, nr }),
        3 => (object.clone(), place(), length(), prop::bool::weighted(0.8))
            .prop_map(|(object, at, nr, store_ok)| Op::Evict { object, at, nr, store_ok }),
        1 => (object.clone(), place(), any::<bool>())
            .prop_map(|(object, at, store_ok)| Op::WriteBack { object, at, store_ok }),
        1 => (object.clone(), 0..(LARGE << PAGE_SHIFT)).prop_map(|(object, len_bytes)| Op::Truncate { object, len_bytes }),
        2 => (object.clone(), place(), any::<bool>()).prop_map(|(object, at, corrupt)| Op::Fail { object, at, corrupt }),
        1 => object.clone().prop_map(|object| Op::Heal { object }),
        1 => (1..4u32).prop_map(Op::Hiccup),
        2 => prop_oneof![1 => Just(0), 4 => 4..40u64].prop_map(Op::Limit),
        3 => (1..6usize).prop_map(Op::Shrink),
        1 => (object.clone(), place(), length(), place())
            .prop_map(|(object, at, nr, full)| Op::WriteOut { object, at, nr, full }),
        1 => (object.clone(), prop::bool::weighted(0.7)).prop_map(|(object, ok)| Op::Sync { object, ok }),
        1 => (object, place(), length()).prop_map(|(object, at, nr)| Op::Discard { object, at, nr }),
        1 => (1..4u32).prop_map(Op::Refuse),
    ]
}

/// A way to map: flags, by how many pages protection works, and whether `page_mkwrite` is asked.
struct Kind {
    flags: VmFlags,
    granule: usize,
    mkwrite: bool,
}

const RW: VmFlags = VmFlags::READ.union(VmFlags::WRITE).union(VmFlags::MAYWRITE);
const SHARED: VmFlags = RW.union(VmFlags::SHARED);
const KINDS: &[Kind] = &[
    Kind { flags: SHARED.union(VmFlags::WP_SYNC), granule: 0, mkwrite: true },
    Kind { flags: SHARED.union(VmFlags::WP_SYNC).union(VmFlags::MAP_SINGLE), granule: 0, mkwrite: false },
    Kind { flags: SHARED.union(VmFlags::WP_ASYNC).union(VmFlags::NATIVE_OK), granule: 0, mkwrite: false },
    Kind { flags: SHARED.union(VmFlags::WP_SYNC).union(VmFlags::SYNC), granule: 0, mkwrite: false },
    Kind { flags: SHARED.union(VmFlags::WP_SYNC).union(VmFlags::GRANULE), granule: 8, mkwrite: false },
    Kind { flags: VmFlags::READ.union(VmFlags::SHARED).union(VmFlags::NATIVE_OK), granule: 0, mkwrite: false },
    Kind { flags: RW, granule: 0, mkwrite: false },
    Kind { flags: RW.union(VmFlags::NATIVE_OK), granule: 0, mkwrite: false },
    Kind { flags: RW.union(VmFlags::GRANULE), granule: 4, mkwrite: false },
    Kind { flags: VmFlags::READ, granule: 0, mkwrite: false },
];

static PLAIN: ShmemVmOps = ShmemVmOps { mkwrite: false };
static MKWRITE: ShmemVmOps = ShmemVmOps { mkwrite: true };

struct Model {
    world: World,
    bytes: Vec<Content>,
    len_bytes: Vec<u64>,
    /// Private copies, by page address.
    copies: BTreeMap<usize, Vec<u8>>,
    majors: u64,
}

impl Model {
    fn new() -> Self {
        let specs = specs();
        Self {
            world: World::new(&specs, NR_ARENAS),
            bytes: specs.iter().enumerate().map(|(i, s)| Content::new(i, s.len_bytes)).collect(),
            len_bytes: specs.iter().map(|s| s.len_bytes).collect(),
            copies: BTreeMap::new(),
            majors: 0,
        }
    }

    fn range(arena: usize, at: usize, nr: usize) -> (usize, usize) {
        let start = arena_base(arena) + (at << PAGE_SHIFT);
        (start, start + (nr << PAGE_SHIFT))
    }

    fn pages(&self, object: usize, at: usize, nr: usize) -> (u64, u64) {
        let max = self.world.objects[object].mapping.folios.len();
        (at.min(max) as u64, (at + nr).min(max) as u64)
    }

    /// What the model says of an access: the byte it finds, or the error bit.
    fn expect(&self, addr: usize, store: bool) -> Result<u8, VmFaultReason> {
        let page = addr & !(PAGE_SIZE - 1);
        let Some((start, _, object, pgoff, flags)) = self.world.vmas().into_iter().find(|v| (v.0..v.1).contains(&addr))
        else {
            return Err(VmFaultReason::SIGSEGV);
        };
        if !flags.contains(if store { VmFlags::WRITE } else { VmFlags::READ }) {
            return Err(VmFaultReason::SIGSEGV);
        }
        let p = pgoff + ((page - start) >> PAGE_SHIFT) as u64;
        // A copy that reclaim hid with its granule comes back with the cache's page.
        if let Some(copy) = self.copies.get(&page)
            && !(self.world.kernel.is_hidden(page) && lock(&self.world.objects[object].store.bad).contains_key(&p))
        {
            return Ok(copy[addr % PAGE_SIZE]);
        }
        if p >= pages_of(self.len_bytes[object]) {
            return Err(VmFaultReason::SIGBUS);
        }
        if let Some(error) = lock(&self.world.objects[object].store.bad).get(&p)
            && !self.world.word(object, p).load().is_mappable()
        {
            return Err(error.reason());
        }
        let bytes = self.copies.get(&page).cloned().unwrap_or_else(|| self.bytes[object].page(p));
        Ok(bytes[addr % PAGE_SIZE])
    }

    /// Every byte of every object, wherever it is now: the cache if it has the page, else the store.
    fn compare(&self) {
        for (id, o) in self.world.objects.iter().enumerate() {
            for p in 0..pages_of(self.len_bytes[id]) {
                if self.world.word(id, p).load().is_mappable() {
                    let cached = self.world.kernel.alias(id, p).expect("a cached page is there");
                    assert!(cached == self.bytes[id].page(p), "object {id} page {p}: the cache has other bytes");
                } else if self.bytes[id].is_touched(p) || lock(&o.store.content).is_touched(p) {
                    let stored = lock(&o.store.content).page(p);
                    assert!(stored == self.bytes[id].page(p), "object {id} page {p}: the store has other bytes");
                }
            }
        }
    }

    fn set_limit(&self, pages: u64) {
        let limit = if pages == 0 { u64::MAX } else { pages };
        self.world.account.limit_pages.store(limit, Ordering::Relaxed);
    }

    fn access(&mut self, addr: usize, store: Option<u8>, thread: bool) {
        let want = self.expect(addr, store.is_some());
        let at = self.world.vmas().into_iter().find(|v| (v.0..v.1).contains(&addr));
        let target = at.map(|(start, _, object, pgoff, flags)| {
            (object, pgoff + ((addr - start) >> PAGE_SHIFT) as u64, flags.contains(VmFlags::SHARED))
        });
        let cached = target.is_some_and(|(object, p, _)| {
            let words = self.world.objects[object].mapping.folios;
            words[support::index(p)].load().is_mappable()
        });
        let ctx = if thread { Ctx::thread(0) } else { Ctx::handler(0, false, 0, None) };
        let (got, seen) = self.world.access(&ctx, addr, store);
        if seen.is_some_and(|r| r.intersects(VmFaultReason::OOM)) {
            // Nothing has changed; more may be pinned, native or the cache's alone than the limit allows.
            assert!(self.world.account.limit() < u64::MAX, "{addr:#x}: out of memory without a limit");
            return;
        }
        match want {
            Err(bit) => {
                assert_eq!(got, None, "{addr:#x}: accessible, and the model says {bit:?}");
                let errors = seen.expect("an error comes from a trap") & VmFaultReason::ERROR;
                assert_eq!(errors, bit, "{addr:#x}: another error than the model's");
                return;
            }
            Ok(byte) => assert_eq!(got, Some(store.unwrap_or(byte)), "{addr:#x}: another byte, seen {seen:?}"),
        }
        let (object, p, shared) = target.expect("accessible, so there is a vma");
        if let Some(seen) = seen {
            let major = seen.intersects(VmFaultReason::MAJOR);
            assert_eq!(major, !cached, "{addr:#x}: MAJOR means that the store was asked, seen {seen:?}");
            self.majors += u64::from(major);
        }
        if let Some(value) = store {
            let (page, offset) = (addr & !(PAGE_SIZE - 1), addr % PAGE_SIZE);
            if shared {
                self.bytes[object].set_byte(p, offset, value);
            } else {
                let copy = self.copies.entry(page).or_insert_with(|| self.bytes[object].page(p));
                copy[offset] = value;
                assert!(self.world.kernel.is_private(page), "{addr:#x}: a private store without a private copy");
            }
        }
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Map { arena, at, nr, object, pgoff, kind } => {
                let k = &KINDS[kind];
                let max = self.world.objects[object].mapping.folios.len();
                let nr = nr.min(max.saturating_sub(pgoff)).min(ARENA_EXTENTS * EXTENT_PAGES - at);
                // Nobody makes blocks durable for a handler: there SYNC needs a store that it may call itself.
                let possible = !k.flags.intersects(VmFlags::SYNC) || self.world.objects[object].mapping.handler_safe;
                if nr > 0 && possible {
                    self.world.map(MapSpec {
                        arena,
                        at,
                        nr,
                        object,
                        pgoff: pgoff as u64,
                        flags: k.flags,
                        ops: if k.mkwrite { &MKWRITE } else { &PLAIN },
                        granule_pages: k.granule,
                        delegation: None,
                    });
                }
            }
            Op::Unmap { arena, at, nr, hints } => {
                let (start, end) = Self::range(arena, at, nr);
                self.world.unmap(start, end, !hints);
                self.copies.retain(|page, _| !(start..end).contains(page));
            }
            Op::Protect { arena, at, nr, read, write } => {
                let (start, end) = Self::range(arena, at, nr);
                self.world.protect(start, end, read, write);
            }
            Op::Zap { arena, at, nr } => {
                let (start, end) = Self::range(arena, at, nr);
                self.world.zap(start, end);
            }
            Op::Access { arena, at, offset, store, thread } => {
                self.access(Self::range(arena, at, 1).0 + offset, store, thread);
            }
            Op::Glance { arena, at, write } => self.glance(Self::range(arena, at, 1).0, write),
            Op::Evict { object, at, nr, store_ok } => {
                let (from, to) = self.pages(object, at, nr);
                self.world.evict(object, from, to, store_ok);
            }
            Op::WriteBack { object, at, store_ok } => {
                let (from, to) = self.pages(object, at, 1);
                let _ = self.world.write_back(object, from, to, store_ok);
            }
            Op::Truncate { object, len_bytes } => self.truncate(object, len_bytes as u64),
            Op::Fail { object, at, corrupt } => {
                let error = if corrupt { FillError::Corrupt } else { FillError::Io(Errno::EIO) };
                lock(&self.world.objects[object].store.bad).insert(at as u64, error);
            }
            Op::Heal { object } => lock(&self.world.objects[object].store.bad).clear(),
            Op::Hiccup(n) => self.world.kernel.hiccup(n),
            Op::Limit(pages) => self.set_limit(pages),
            Op::Shrink(times) => {
                for _ in 0..times {
                    vmscan::shrink(self.world.env(), self.world.account, self.world.stat, 0);
                }
                self.world.run_fillers();
            }
            Op::WriteOut { object, at, nr, full } => {
                let (from, to) = self.pages(object, at, nr);
                let o = self.world.objects[object];
                lock(&o.store.full).insert(full as u64);
                let written = self.world.write_back(object, from, to, true);
                if let Err((p, error)) = written {
                    assert_eq!((p, error), (full as u64, FillError::Io(Errno::EIO)), "another page than the bad one");
                    assert!(self.world.word(object, p).load().has(DIRTY), "page {p} is still to be written");
                }
                lock(&o.store.full).clear();
            }
            Op::Sync { object, ok } => {
                let lost = self.world.sync(object, ok);
                assert!(!ok || lost.is_empty());
            }
            Op::Discard { object, at, nr } => {
                let (from, to) = self.pages(object, at, nr);
                self.world.discard(object, from, to);
                // What was only in the cache is void.
                for p in (from..to).filter(|p| !self.world.word(object, *p).load().is_mappable()) {
                    let stored = lock(&self.world.objects[object].store.content).page(p);
                    self.bytes[object].set_page(p, stored);
                }
            }
            Op::Refuse(n) => self.world.kernel.refuse(n),
            Op::Empty { arena, at, nr } => {
                let (start, end) = Self::range(arena, at, nr);
                self.world.kernel.empty(start, end);
            }
        }
        self.world.run_fillers();
        self.compare();
        self.world.check_quiescent();
    }

    /// A fault that may not wait: it maps what is cached, and leaves everything else as it is.
    fn glance(&self, addr: usize, write: bool) {
        let flags = FaultFlags::RETRY_NOWAIT | if write { FaultFlags::WRITE } else { FaultFlags::default() };
        if self.world.vmas().iter().any(|v| (v.0..v.1).contains(&addr)) {
            let before: usize = self.world.objects.iter().map(|o| o.store.calls(|_| true)).sum();
            let r = self.world.fault(addr, flags);
            let after: usize = self.world.objects.iter().map(|o| o.store.calls(|_| true)).sum();
            assert_eq!(before, after, "{addr:#x}: the store was asked by who may not wait: {r:?}");
        }
    }

    fn truncate(&mut self, object: usize, len_bytes: u64) {
        let max = (self.world.objects[object].mapping.folios.len() << PAGE_SHIFT) as u64;
        let len_bytes = len_bytes.min(max);
        self.world.truncate(object, len_bytes);
        if len_bytes < self.len_bytes[object] {
            self.bytes[object].truncate(len_bytes);
            for (start, end, o, pgoff, flags) in self.world.vmas() {
                if o == object && !flags.contains(VmFlags::SHARED) {
                    let gone = |page: &usize| {
                        (start..end).contains(page)
                            && pgoff + ((page - start) >> PAGE_SHIFT) as u64 >= pages_of(len_bytes)
                    };
                    self.copies.retain(|page, _| !gone(page));
                }
            }
        }
        self.len_bytes[object] = len_bytes;
    }

    /// Every byte of every page, at the end.
    fn sweep(&mut self) {
        self.world.kernel.hiccup(0);
        self.world.kernel.refuse(0);
        self.set_limit(0);
        for o in &self.world.objects {
            lock(&o.store.bad).clear();
        }
        for (start, end, _, _, flags) in self.world.vmas() {
            for page in (start..end).step_by(PAGE_SIZE) {
                self.access(page, None, false);
                if flags.contains(VmFlags::READ) && self.expect(page, false).is_ok() {
                    self.whole_page(page);
                }
            }
        }
        self.world.check_quiescent();
        assert_eq!(self.world.stat.event(Event::PGMAJFAULT), self.majors, "major faults counted");
        // Verdicts on what waits to be missed.
        self.set_limit(1);
        self.apply(&Op::Shrink(1000));
        self.set_limit(0);
        // What is in the cache goes to the store, and the store has it all.
        for (id, o) in self.world.objects.iter().enumerate().filter(|(_, o)| !o.mapping.always_dirty) {
            let nr = o.mapping.folios.len() as u64;
            self.world.evict(id, 0, nr, true);
            assert_eq!(o.mapping.folios.iter().filter(|w| w.load().is_mappable()).count(), 0, "object {id} is clean");
            for p in 0..pages_of(self.len_bytes[id]) {
                assert!(
                    lock(&o.store.content).page(p) == self.bytes[id].page(p),
                    "object {id} page {p}: a store is lost"
                );
            }
        }
        self.world.check_quiescent();
    }

    fn whole_page(&self, page: usize) {
        let at = self.world.vmas().into_iter().find(|v| (v.0..v.1).contains(&page)).expect("swept");
        let p = at.3 + ((page - at.0) >> PAGE_SHIFT) as u64;
        let want = self.copies.get(&page).cloned().unwrap_or_else(|| self.bytes[at.2].page(p));
        for offset in (0..PAGE_SIZE).step_by(409) {
            assert_eq!(self.world.read(page + offset), want[offset], "{page:#x}+{offset}");
        }
    }
}

/// What the histories must have come by: a model that never got there proves nothing.
const VISITED: &[Event] = &[
    Event::PGMAJFAULT,
    Event::PGMINFAULT,
    Event::PGMAPPED_AROUND,
    Event::MAP_EEXIST,
    Event::PGCOW_STAGED,
    Event::FILL_ERRORS,
    Event::PGPOISON,
    Event::PGSTEAL,
    Event::UFFD_WP,
    Event::PAGE_MKWRITE,
    Event::EXTENT_PROMOTE,
    Event::EXTENT_DEMOTE,
    Event::ALLOCSTALL,
    Event::PGSCAN_DIRECT,
    Event::PGDEACTIVATE,
    Event::PGACTIVATE,
    Event::WORKINGSET_ACTIVATE,
    Event::PGPGOUT,
    Event::WRITEBACK_ERRORS,
];

#[test]
fn bytes_and_errors_are_the_models() {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(300);
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let visits = RefCell::new([0u64; VISITED.len()]);
    let result = runner.run(&prop::collection::vec(op(), 1..80), |ops| {
        let mut m = Model::new();
        for op in &ops {
            m.apply(op);
        }
        m.sweep();
        for (n, event) in visits.borrow_mut().iter_mut().zip(VISITED) {
            *n += m.world.stat.event(*event);
        }
        Ok(())
    });
    if let Err(e) = result {
        panic!("{e}\n{runner}");
    }
    for (n, event) in visits.borrow().iter().zip(VISITED) {
        assert!(*n > 0, "{cases} histories, and none came by {event:?}");
    }
}
