//! A machine small enough for loom: one object of one chunk (two pages), two arenas over it, a store, a futex.
//!
//! What the kernel does in one step under its own locks (an install, a protection, a punch, one load or store through
//! the page table) is one loom operation here. It is a relaxed one on a word of its own: the kernel's locks would
//! order more, so whatever must be ordered between threads has to come from the crate's words.
//!
//! Two properties are checked by every step, not by the models: no load or store through a page table meets an absent
//! or a partly written page. The third, that no store is missing from the store in the end, is [`World::settle`].
//!
//! What loom does not do: it treats `SeqCst` loads and stores as acquire and release (only fences are stronger), and it
//! does not reorder a load behind a later store of the same thread. A model that needs either says so.
//!
//! Everything is leaked: loom runs a model some ten thousand times, and a thread needs `'static`.
#![allow(dead_code, reason = "each test file uses its part")]

use loom::sync::{Condvar, Mutex};
use softfault_mm::chunk::ChunkWord;
use softfault_mm::claim::{Claim, Telling};
use softfault_mm::ctx::Ctx;
use softfault_mm::cut::{CaptureBits, Captured};
use softfault_mm::delegation::{Delegation, MinorDelegate, MinorFault, MinorVerdict};
use softfault_mm::errno::Errno;
use softfault_mm::extent::Extent;
use softfault_mm::fault::{self, Env};
use softfault_mm::filemap;
use softfault_mm::folio::{FolioWord, REFERENCED, State, Wake};
use softfault_mm::host::{AddressSpace, Batch, Park, Rmap, Which, Woken};
use softfault_mm::lru::{Entry, Lruvec};
use softfault_mm::mapping::{FailurePolicy, Mapping};
use softfault_mm::memcontrol::CacheAccount;
use softfault_mm::ops::{AddressSpaceOps, Installed, Mmu, Prot, Pte, Staged, WaitKey, Zap};
use softfault_mm::page::{EXTENT_PAGES, PAGE_SHIFT, PAGE_SIZE};
use softfault_mm::rmap;
use softfault_mm::shmem::{self, ShmemVmOps};
use softfault_mm::sync::{AtomicU32, AtomicU64, Ordering};
use softfault_mm::types::{FaultFlags, FillError, VmFaultReason, VmFlags};
use softfault_mm::vma::{VmFault, VmOps, Vma};
use softfault_mm::vmstat::VmStat;
use softfault_mm::xarray::Nodes;
use softfault_mm::{vmscan, writeback};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Mutex as Plain, MutexGuard as PlainGuard, PoisonError};

/// Runs a model with at most `preemptions` in each execution, or `LOOM_MAX_PREEMPTIONS` if that is less.
pub(crate) fn check(preemptions: usize, f: impl Fn() + Sync + Send + 'static) {
    let mut b = loom::model::Builder::new();
    b.preemption_bound = Some(b.preemption_bound.map_or(preemptions, |most| most.min(preemptions)));
    b.max_branches = 20_000;
    b.check(f);
}

/// Starts a thread whose stack carries a walk and a panic's message.
pub(crate) fn spawn<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> loom::thread::JoinHandle<T> {
    loom::thread::Builder::new().stack_size(0x10000).spawn(f).expect("loom has room for a thread")
}

const NR: usize = EXTENT_PAGES;
/// Addresses of the two arenas.
const BASE: [usize; 2] = [1 << 30, 2 << 30];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Absent,
    Partial,
    Whole,
}

/// Who resolves what the page table does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Us,
    Kernel,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    present: bool,
    write: bool,
    /// Protected (a marker where nothing is mapped). Under asynchronous protection what is mapped without it counts as
    /// written.
    wp: bool,
    owner: Owner,
}

impl Slot {
    /// The note goes with what is mapped, unless it is that nothing was written.
    fn unmap(&mut self) {
        self.present = false;
    }
}

#[derive(Clone, Copy, Debug)]
struct Page {
    content: Content,
    data: u64,
    /// What a read of the store gives.
    stored: u64,
    /// What it gives after a failure that drops what was not flushed.
    durable: u64,
    ptes: [Slot; 2],
}

/// How a model differs from the real protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Broken {
    /// Not at all.
    #[default]
    No,
    /// `fault` returns its page unpinned.
    NoPin,
    /// The reclaimer's chunk words are not the promoter's.
    NoChunk,
    /// Who touches a page maps it without `REFERENCED`.
    NoReferenced,
    /// Windows map pages that reclaim has unmapped.
    AroundUnmapped,
    /// Who unmaps does not look a second time whether the page was written.
    NoSecondLook,
    /// A flush takes its turn when it is over.
    LateTurn,
    /// A failed flush passes over pages in write-back.
    WritebackForgotten,
    /// An empty entry counts as clean, whatever was mapped there.
    EmptyIsClean,
    /// Who installs a page notes it afterwards alone.
    LateBit,
}

/// The memfd, the page tables and the store.
#[derive(Debug)]
pub(crate) struct Machine {
    step: [loom::sync::atomic::AtomicU64; NR],
    pages: [Plain<Page>; NR],
    broken: Broken,
    /// The kernel notes first stores (else they fault).
    wp_async: bool,
    /// Nothing is dropped while it is mapped: reclaim unmaps first, and finds out whether it is missed.
    strict: AtomicBool,
    /// Of each entry, by arena and page: 1: the last look found it protected; 2: and it was zapped since.
    looks: [[AtomicUsize; NR]; 2],
}

/// What one instruction met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Done(u64),
    Fault,
}

impl Machine {
    fn page(&self, p: usize) -> PlainGuard<'_, Page> {
        // The scheduling point; what follows is one step.
        self.step[p].fetch_add(1, Ordering::Relaxed);
        self.pages[p].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One load (`store: None`) or store instruction of arena `a`.
    fn access(&self, a: usize, p: usize, store: Option<u64>) -> Access {
        let mut page = self.page(p);
        let pte = page.ptes[a];
        if !pte.present {
            if pte.owner == Owner::Us {
                return Access::Fault;
            }
            assert!(page.content == Content::Whole, "the kernel served an absent or partial page of a native extent");
            page.ptes[a].present = true;
            page.ptes[a].write = true;
        }
        assert!(page.content == Content::Whole, "an access through a page table met a partial or absent page");
        let Some(value) = store else { return Access::Done(page.data) };
        let pte = page.ptes[a];
        if !pte.write || (pte.wp && !self.wp_async) {
            return Access::Fault;
        }
        page.ptes[a].wp = false;
        page.data = value;
        Access::Done(value)
    }
}

/// One arena's page tables.
#[derive(Debug)]
pub(crate) struct Arena {
    m: &'static Machine,
    a: usize,
    extent: &'static Extent,
}

impl Arena {
    fn index(&self, addr: usize) -> usize {
        (addr - BASE[self.a]) >> PAGE_SHIFT
    }

    fn entry(&self, p: usize) -> Pte {
        let pte = self.m.page(p).ptes[self.a];
        match (pte.present, pte.wp) {
            (true, false) => Pte::Written,
            (true, true) => Pte::Clean,
            (false, true) => Pte::Marker,
            (false, false) => Pte::None,
        }
    }
}

impl Mmu for Arena {
    fn set_ptes(&self, addr: usize, nr: usize, prot: Prot) -> Installed {
        let first = self.index(addr);
        if self.m.broken == Broken::LateBit {
            self.extent.note_zapped(first, nr);
        }
        for i in 0..nr {
            let mut page = self.m.page(first + i);
            let missing = page.content == Content::Absent;
            let pte = &mut page.ptes[self.a];
            let stop = if pte.owner == Owner::Kernel {
                Installed::Gone
            } else if pte.present {
                Installed::Exists
            } else if missing && self.m.broken == Broken::NoPin {
                // Without pins EFAULT is ordinary: the page went away, look again.
                Installed::Gone
            } else if missing {
                Installed::Broken
            } else {
                *pte = Slot { present: true, write: prot.write, wp: prot.wp, owner: Owner::Us };
                continue;
            };
            return if i > 0 { Installed::Partial(i) } else { stop };
        }
        Installed::All
    }
    fn set_private(&self, _addr: usize, _staged: &Staged) -> Installed {
        Installed::Gone
    }
    fn unprotect(&self, addr: usize) -> Installed {
        self.m.page(self.index(addr)).ptes[self.a].wp = false;
        Installed::All
    }
    fn wake(&self, _addr: usize, _nr: usize) {}
    fn release_extents(&self, addr: usize, len_bytes: usize, tracked: bool) -> Result<(), Installed> {
        let pages = self.index(addr)..self.index(addr + len_bytes);
        // UNREGISTER drops the protection; only a second and a third call register and protect anew.
        for p in pages.clone() {
            let pte = &mut self.m.page(p).ptes[self.a];
            *pte = Slot { wp: false, owner: Owner::Kernel, ..*pte };
        }
        if tracked {
            for p in pages {
                self.m.page(p).ptes[self.a].wp = true;
            }
        }
        Ok(())
    }
    fn take_extents(&self, addr: usize, len_bytes: usize, _wp: bool, protect: bool) -> Result<(), Installed> {
        for p in self.index(addr)..self.index(addr + len_bytes) {
            let pte = &mut self.m.page(p).ptes[self.a];
            *pte = Slot { wp: pte.wp || protect, owner: Owner::Us, ..*pte };
        }
        Ok(())
    }
    fn zap(&self, ranges: &[Zap]) -> bool {
        for z in ranges {
            for p in self.index(z.addr)..self.index(z.addr + z.len_bytes) {
                self.m.page(p).ptes[self.a].unmap();
                let look = &self.m.looks[self.a][p];
                look.store(2 * look.load(Ordering::Relaxed) & 2, Ordering::Relaxed);
            }
        }
        true
    }
    fn write_protect(&self, addr: usize, nr: usize) -> bool {
        for p in self.index(addr)..self.index(addr) + nr {
            self.m.page(p).ptes[self.a].wp = true;
        }
        true
    }
    fn unprotected(&self, addr: usize, nr: usize, found: &mut dyn FnMut(usize, usize, Pte)) {
        for at in (addr..addr + (nr << PAGE_SHIFT)).step_by(PAGE_SIZE) {
            let pte = self.entry(self.index(at));
            let counts = pte == Pte::Written || (pte == Pte::None && self.m.broken != Broken::EmptyIsClean);
            if counts {
                found(at, 1, pte);
            }
        }
    }
    fn pte(&self, addr: usize) -> Pte {
        let p = self.index(addr);
        let entry = match self.entry(p) {
            Pte::None if self.m.broken == Broken::EmptyIsClean => Pte::Marker,
            entry => entry,
        };
        // What was protected is looked at again after it was unmapped.
        let protected = matches!(entry, Pte::Clean | Pte::Marker);
        let second = self.m.looks[self.a][p].swap(usize::from(protected), Ordering::Relaxed) == 2;
        if second && self.m.broken == Broken::NoSecondLook { Pte::Marker } else { entry }
    }
    fn charge_vmas(&self, _delta: i64) -> bool {
        true
    }
}

/// The store, and the memfd from the filler's side.
#[derive(Debug)]
pub(crate) struct Store(&'static Machine);

impl AddressSpaceOps for Store {
    fn read_folio(&self, pgoff: u64, nr: u32) -> Result<(), (u32, FillError)> {
        for p in pages(pgoff, nr) {
            // In place, so the first byte makes the page exist.
            self.0.page(p).content = Content::Partial;
            let mut page = self.0.page(p);
            page.data = page.stored;
            page.content = Content::Whole;
        }
        Ok(())
    }
    fn zero_folio(&self, _pgoff: u64, _nr: u32) -> Result<(), FillError> {
        Err(FillError::NoMemory)
    }
    fn read_staged(&self, _pgoff: u64, _staged: &Staged) -> Result<(), FillError> {
        Err(FillError::Io(Errno::EIO))
    }
    fn dsync(&self, _pgoff: u64, _nr: u32) -> Result<(), FillError> {
        Ok(())
    }
    fn write_folio(&self, pgoff: u64, nr: u32) -> Result<(), (u32, FillError)> {
        for p in pages(pgoff, nr) {
            let mut page = self.0.page(p);
            page.stored = page.data;
        }
        Ok(())
    }
    fn punch(&self, pgoff: u64, nr: u32) -> Result<(), FillError> {
        for p in pages(pgoff, nr) {
            let mut page = self.0.page(p);
            page.content = Content::Absent;
            let mapped = page.ptes.iter().any(|pte| pte.present);
            assert!(!mapped || !self.0.strict.load(Ordering::Relaxed), "a page is dropped while mapped");
            page.ptes.iter_mut().for_each(Slot::unmap);
        }
        Ok(())
    }
    fn collapse(&self, pgoff: u64) -> Result<(), FillError> {
        // The kernel takes every mapping of the pages away.
        for p in pages(pgoff, u32::try_from(NR).expect("small")) {
            self.0.page(p).ptes.iter_mut().for_each(Slot::unmap);
        }
        Ok(())
    }
    fn with_page_mut(&self, _pgoff: u64, f: &mut dyn FnMut(&mut [u8])) {
        f(&mut [0; PAGE_SIZE]);
    }
    fn copy_from_page(&self, _pgoff: u64, _offset: usize, dst: &mut [u8]) {
        dst.fill(0);
    }
}

fn pages(pgoff: u64, nr: u32) -> std::ops::Range<usize> {
    let from = usize::try_from(pgoff).expect("small");
    from..from + nr as usize
}

/// `ShmemVmOps`, whose `fault` forgets the pin if the model asks for it.
#[derive(Debug)]
struct Ops(Broken);

impl VmOps for Ops {
    fn fault(&self, vmf: &mut VmFault<'_>) -> VmFaultReason {
        let r = shmem::fault(vmf);
        if self.0 == Broken::NoReferenced
            && let Some(word) = vmf.folio
        {
            word.clear(REFERENCED);
        }
        if self.0 != Broken::NoPin {
            return r;
        }
        if let Some(word) = vmf.folio.take() {
            word.unpin();
        }
        r.without(VmFaultReason::LOCKED)
    }
    fn map_pages(&self, vmf: &mut VmFault<'_>, start: u64, end: u64) -> VmFaultReason {
        if self.0 == Broken::AroundUnmapped {
            for p in start..end {
                let (addr, word) = (vmf.vma().address_of(p), &vmf.vma().mapping.folios[pages(p, 1).start]);
                if p != vmf.pgoff() && word.try_pin(0).is_ok() {
                    vmf.vma().mmu.set_ptes(addr, 1, filemap::prot_of(vmf.vma(), false));
                    word.unpin();
                }
            }
        }
        ShmemVmOps::default().map_pages(vmf, start, end)
    }
    fn huge_fault(&self, vmf: &mut VmFault<'_>) -> VmFaultReason {
        ShmemVmOps::default().huge_fault(vmf)
    }
}

/// A futex: comparing and going to sleep are one step against every wake. A wake that never comes is a deadlock, which
/// loom reports.
#[derive(Debug)]
pub(crate) struct Futex {
    bucket: Mutex<()>,
    bell: Condvar,
}

impl Futex {
    pub(crate) fn new() -> Self {
        Self { bucket: Mutex::new(()), bell: Condvar::new() }
    }
    /// Sleeps once if `same` holds.
    pub(crate) fn wait(&self, same: impl FnOnce() -> bool) {
        let bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        if same() {
            drop(self.bell.wait(bucket));
        }
    }
    pub(crate) fn wake(&self) {
        let bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        self.bell.notify_all();
        drop(bucket);
    }
}

/// Counts what it is told, and lets it pass.
#[derive(Debug)]
pub(crate) struct Counting(pub(crate) AtomicUsize);

impl MinorDelegate for Counting {
    fn minor_fault(&self, _fault: &MinorFault<'_>) -> MinorVerdict {
        self.0.fetch_add(1, Ordering::Relaxed);
        MinorVerdict::Continue
    }
}

/// A delegation over a few pages, and its delegate.
pub(crate) fn delegation(base: usize) -> (&'static Delegation<'static>, &'static Counting) {
    let told = leak(Counting(AtomicUsize::new(0)));
    let words: &'static [AtomicU32] = leak([AtomicU32::new(0)]);
    (leak(Delegation { id: 0, base, told: words, delegate: told, handler_safe: true }), told)
}

/// The steps of write-back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Clear,
    Protect,
    Read,
    End,
}

/// What a model starts from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    /// Flags of both arenas.
    pub(crate) flags: VmFlags,
    /// Pages of the object (at most two).
    pub(crate) nr_pages: usize,
    /// Pages that are cached at the start.
    pub(crate) cached: usize,
    /// Pages read at once.
    pub(crate) fill_window: u32,
    /// What is left out.
    pub(crate) broken: Broken,
}

/// Everything a model's threads share.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) m: &'static Machine,
    pub(crate) mapping: &'static Mapping<'static>,
    /// What the reclaimer calls the object: the same words, but for [`Broken::NoChunk`].
    pub(crate) reclaimed: &'static Mapping<'static>,
    pub(crate) vmas: [Vma<'static>; 2],
    /// How often arena 0's delegate was told.
    pub(crate) told: &'static Counting,
    futex: Futex,
    queues: [&'static [AtomicU64]; 3],
    /// A signal for a thread that waits.
    signal: AtomicU32,
}

/// There is one; it made a thread leave its wait.
const PENDING: u32 = 1;
const TAKEN: u32 = 2;

fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

impl World {
    pub(crate) fn new(setup: Setup) -> &'static Self {
        Self::with_queues(setup, 0)
    }

    /// With queues of reclaim of `queue` cells, and page 0 in them if it is cached; without, queues are full from the start.
    pub(crate) fn with_queues(setup: Setup, queue: usize) -> &'static Self {
        static STAT: VmStat = VmStat::new();
        let pte = Slot { present: false, write: false, wp: false, owner: Owner::Us };
        let page = |p: usize| Page {
            content: if p < setup.cached { Content::Whole } else { Content::Absent },
            data: 5,
            stored: 5,
            durable: 5,
            ptes: [pte; 2],
        };
        let m = leak(Machine {
            step: std::array::from_fn(|_| loom::sync::atomic::AtomicU64::new(0)),
            pages: std::array::from_fn(|p| Plain::new(page(p))),
            broken: setup.broken,
            wp_async: setup.flags.intersects(VmFlags::WP_ASYNC),
            strict: AtomicBool::new(false),
            looks: std::array::from_fn(|_| std::array::from_fn(|_| AtomicUsize::new(0))),
        });
        let folios: &'static [FolioWord] = Box::leak((0..setup.nr_pages).map(|_| FolioWord::new()).collect());
        let chunks = leak([ChunkWord::new()]);
        for word in &folios[..setup.cached] {
            word.try_claim().expect("a new word is absent");
            let _ = word.publish(0);
        }
        chunks[0].add_uptodate(setup.cached as u64);
        let cells = || -> &'static [AtomicU64] { Box::leak((0..queue).map(|_| AtomicU64::new(0)).collect()) };
        let queues = [cells(), cells(), cells()];
        let limit = if queue > 0 { NR as u64 } else { 1 << 20 };
        let account = leak(CacheAccount::new(limit, Lruvec::new(queues[0], queues[1], queues[2], limit)));
        assert!(account.charge(setup.cached as u64), "within the limit");
        if queue > 0 && setup.cached > 0 {
            assert!(account.lru.add(Entry::named(1, 0, 1), false), "there is room");
        }
        let mapping = |chunks: &'static [ChunkWord]| {
            leak(Mapping {
                id: 1,
                folios,
                chunks,
                // The cached pages were not claimed through the walk, which gives the chunk its node.
                nodes: Nodes::new(Box::leak(Box::new([AtomicU64::new(1)]))),
                i_size: AtomicU64::new((setup.nr_pages << PAGE_SHIFT) as u64),
                a_ops: leak(Store(m)),
                policy: FailurePolicy::Poison,
                handler_safe: true,
                store_faults: false,
                always_dirty: false,
                dirty_goes: true,
                exclusive: false,
                is_flushed: AtomicBool::new(true),
                write_blocks: false,
                staging: false,
                fill_window: setup.fill_window,
                read_align: 1,
                reads_parts: false,
                ra: softfault_mm::streams::Readahead::new(0),
                deadline_ns: u64::MAX,
                users: AtomicU32::new(0),
                nr_writers: AtomicU32::new(0),
                nr_maps: AtomicU32::new(2),
                account,
                own_limit: AtomicU64::new(u64::MAX),
                nr_own: AtomicU64::new(0),
                hand: AtomicU64::new(0),
                flush_turn: AtomicU32::new(0),
                flushing: AtomicU32::new(0),
                flush_wanted: AtomicU32::new(0),
                failing: softfault_mm::failing::Failing::new(),
                captured: Captured::new(CaptureBits::none()),
                label: "test",
                stat: &STAT,
            })
        };
        let one = mapping(chunks);
        let two = if setup.broken == Broken::NoChunk { mapping(leak([ChunkWord::new()])) } else { one };
        let (delegation, told) = delegation(BASE[0]);
        let delegated = setup.flags.intersects(VmFlags::UFFD_MINOR);
        let vma = |a: usize| {
            let extents: &'static [Extent; 1] = leak([Extent::new()]);
            Vma {
                start: BASE[a],
                end: BASE[a] + (setup.nr_pages << PAGE_SHIFT),
                pgoff: 0,
                flags: setup.flags,
                ops: leak(Ops(setup.broken)),
                mapping: one,
                mmu: leak(Arena { m, a, extent: &extents[0] }),
                extents,
                arena_base: BASE[a],
                granule_pages: 0,
                delegation: (delegated && a == 0).then_some(delegation),
            }
        };
        let signal = AtomicU32::new(0);
        leak(Self {
            m,
            mapping: one,
            reclaimed: two,
            vmas: [vma(0), vma(1)],
            told,
            futex: Futex::new(),
            queues,
            signal,
        })
    }

    pub(crate) fn word(&self, p: usize) -> &'static FolioWord {
        &self.mapping.folios[p]
    }

    pub(crate) fn env(&self) -> Env<'_> {
        Env { mm: self, park: self }
    }

    /// Runs one load or store of arena `a` until it succeeds, resolving its faults by the real walk.
    fn run(&self, a: usize, p: usize, store: Option<u64>) -> u64 {
        let flags = if store.is_some() { FaultFlags::WRITE } else { FaultFlags::default() };
        loop {
            if let Access::Done(value) = self.m.access(a, p, store) {
                return value;
            }
            let addr = BASE[a] + (p << PAGE_SHIFT);
            let r = fault::do_user_addr_fault(self.env(), &Ctx::handler(0, false, 0, None), addr, flags);
            let r = r.expect("the vma is there");
            assert!(!r.intersects(VmFaultReason::ERROR), "a healthy access failed: {r:?}");
            if self.signal.load(Ordering::Relaxed) == TAKEN {
                // The program's handler, and then the instruction again.
                self.signal.store(0, Ordering::Relaxed);
                self.run(a, p, None);
            }
        }
    }

    /// A signal comes, whose handler loads from the page that its thread is about to wait for.
    pub(crate) fn signal(&self) {
        self.signal.store(PENDING, Ordering::Relaxed);
    }

    /// The handler of a signal that comes while its thread has the claim, as it could outside `host::Uninterrupted`.
    pub(crate) fn fill_interrupted(&self, p: usize) {
        let p64 = p as u64;
        if let Ok(Some(claim)) = filemap::claim_run(self.mapping, p64, p64, p64 + 1) {
            self.load(0, p);
            filemap::read_claimed(self.mapping, self, 0, claim).expect("the store is well");
        }
    }

    pub(crate) fn load(&self, a: usize, p: usize) -> u64 {
        self.run(a, p, None)
    }

    pub(crate) fn store(&self, a: usize, p: usize, value: u64) {
        self.run(a, p, Some(value));
    }

    /// One trap, no more.
    pub(crate) fn fault(&self, a: usize, p: usize) -> VmFaultReason {
        let ctx = Ctx::handler(0, false, 0, None);
        let r = fault::do_user_addr_fault(self.env(), &ctx, BASE[a] + (p << PAGE_SHIFT), FaultFlags::default());
        r.expect("the vma is there")
    }

    /// Installs page `p` in arena `a`, as a handler does under its pin.
    pub(crate) fn install(&self, a: usize, p: usize, prot: Prot) -> Installed {
        self.vmas[a].mmu.set_ptes(BASE[a] + (p << PAGE_SHIFT), 1, prot)
    }

    /// One store instruction, whose fault nobody resolves: did it succeed?
    pub(crate) fn try_store(&self, a: usize, p: usize, value: u64) -> bool {
        self.m.access(a, p, Some(value)) != Access::Fault
    }

    /// One load instruction, whose fault nobody resolves.
    pub(crate) fn try_load(&self, a: usize, p: usize) -> Option<u64> {
        match self.m.access(a, p, None) {
            Access::Done(value) => Some(value),
            Access::Fault => None,
        }
    }

    /// The kernel takes page `p` out of arena `a` by itself, and tells nobody.
    pub(crate) fn empty(&self, a: usize, p: usize) {
        self.m.page(p).ptes[a].unmap();
    }

    /// Looks for stores to page `p`; returns whether it is dirty then.
    pub(crate) fn finds_dirty(&self, p: usize) -> bool {
        self.harvest(p as u64, p as u64 + 1);
        self.word(p).load_latest().has(softfault_mm::folio::DIRTY)
    }

    /// The flusher's turn: what is dirty (in the word, or noted by the kernel) is protected and written out.
    pub(crate) fn write_back(&self, p: usize) -> bool {
        let p = p as u64;
        self.harvest(p, p + 1);
        writeback::writeout(self.env(), self.mapping, 0, p, p + 1) == Ok(1)
    }

    fn harvest(&self, from: u64, to: u64) {
        if self.m.wp_async {
            self.with_rmap(&mut |r| {
                rmap::harvest(r, self.mapping, from, to);
            });
        }
    }

    /// One step of a flusher's turn that is made by hand, in the wrong order.
    pub(crate) fn write_back_step(&self, p: usize, step: Step, bytes: &mut u64) {
        match step {
            Step::Clear => drop(self.word(p).try_writeback()),
            Step::Protect => (0..2).for_each(|a| self.m.page(p).ptes[a].wp = true),
            Step::Read => *bytes = self.m.page(p).data,
            Step::End if self.word(p).load().state() == State::Writeback => {
                self.m.page(p).stored = *bytes;
                self.leave(p, self.word(p).end_writeback(0).0);
            }
            Step::End => {}
        }
    }

    fn leave(&self, _p: usize, wake: Wake) {
        if wake == Wake::Needed {
            self.futex.wake();
        }
    }

    /// The reclaimer's turn: both stages.
    pub(crate) fn evict(&self, from: usize, to: usize) -> u64 {
        vmscan::reclaim_range(self.env(), self.reclaimed, 0, from as u64, to as u64)
    }

    /// The reclaimer's turn, one stage at a time, by the queues.
    pub(crate) fn shrink(&self) -> u64 {
        vmscan::shrink(self.env(), self.mapping.account, self.mapping.stat, 0).freed
    }

    /// A flush of the store; `ok`: what it was given is durable afterwards, else it is gone. Returns the lost pages.
    pub(crate) fn flush(&self, ok: bool) -> Vec<u64> {
        let late = self.m.broken == Broken::LateTurn;
        let early = (!late).then(|| writeback::begin_flush(self.mapping));
        for p in 0..self.mapping.folios.len() {
            let mut page = self.m.page(p);
            if ok {
                page.durable = page.stored;
            } else {
                page.stored = page.durable;
            }
        }
        let bit = early.unwrap_or_else(|| writeback::begin_flush(self.mapping));
        let mut lost = Vec::new();
        if ok {
            writeback::end_flush(self.mapping, bit);
        } else if self.m.broken == Broken::WritebackForgotten {
            for word in self.mapping.folios.iter().filter(|w| w.load().is_unsynced()) {
                if word.try_pin(softfault_mm::folio::DIRTY).is_ok() {
                    word.unpin();
                }
            }
        } else {
            writeback::fail_flush(self.mapping, &mut |p| lost.push(p));
        }
        lost
    }

    /// What a crash leaves of page `p`.
    pub(crate) fn durable(&self, p: usize) -> u64 {
        self.m.page(p).durable
    }

    /// From here on nothing may be dropped while it is mapped.
    pub(crate) fn strict(&self) {
        self.m.strict.store(true, Ordering::Relaxed);
    }

    /// How many entries of the queues name page `p` as it is in the cache now.
    pub(crate) fn nr_entries(&self, p: usize) -> usize {
        let current = |cell: &&AtomicU64| {
            let entry = Entry(cell.load(Ordering::Relaxed));
            entry.0 != 0 && entry.pgoff() == p as u64 && entry.is_current(self.word(p).load())
        };
        self.queues.iter().flat_map(|q| q.iter()).filter(current).count()
    }

    /// Writes everything back and drops it; returns what the store then holds of page `p`.
    pub(crate) fn settle(&self, p: usize) -> u64 {
        let word = self.word(p);
        assert_eq!(word.load().pins(), 0, "a pin was left behind");
        assert_eq!(self.mapping.users.load(Ordering::Relaxed), 0, "a claim was left behind");
        self.write_back(p);
        if word.load().state() == State::Uptodate {
            assert_eq!(self.evict(p, p + 1), 1, "a clean page that nobody uses leaves the cache");
        }
        assert_eq!(word.load().state(), State::Absent, "the page is in no lasting state");
        let cached = self.mapping.folios.iter().filter(|w| w.load().is_mappable()).count() as u64;
        assert_eq!(self.mapping.account.nr_pages.load(Ordering::Relaxed), cached, "pages charged to the cache");
        assert_eq!(self.reclaimed.chunks[0].nr_uptodate(), cached, "the chunk's count");
        self.m.page(p).stored
    }

    /// Fills page `p` as a filler thread does, if it is missing.
    pub(crate) fn fill(&self, p: usize) {
        let p = p as u64;
        if let Ok(Some(claim)) = filemap::claim_run(self.mapping, p, p, p + 1) {
            filemap::read_claimed(self.mapping, self, 0, claim).expect("the store is well");
        }
    }

    fn low(&self, addr: usize) -> u32 {
        if let Some(word) = self.mapping.folios.iter().find(|w| w.futex_addr() == addr) {
            return word.load().low();
        }
        let told = self.vmas[0].delegation.and_then(|d| d.word(0)).expect("sleepers sleep on words of the crate");
        told.load(Ordering::Relaxed)
    }
}

impl Rmap for World {
    fn mapping(&self, id: u32) -> Option<&Mapping<'_>> {
        (id == 1).then_some(self.reclaimed)
    }
    fn for_each_vma<'f>(&self, _id: u32, which: Which, f: &mut (dyn FnMut(&Vma<'_>) + 'f)) {
        let of = |v: &&Vma<'static>| v.flags.contains(VmFlags::SHARED) == (which == Which::Shared);
        self.vmas.iter().filter(of).for_each(f);
    }
}

impl AddressSpace for World {
    fn with_vma<'f>(
        &self,
        address: usize,
        f: &mut (dyn FnMut(&Vma<'_>) -> VmFaultReason + 'f),
    ) -> Option<VmFaultReason> {
        self.vmas.iter().find(|v| (v.start..v.end).contains(&address)).map(f)
    }
    fn with_claim<'f>(&self, _claim: &Claim, f: &mut (dyn FnMut(&Mapping<'_>) + 'f)) {
        f(self.mapping);
    }
    fn with_telling<'f>(&self, _telling: &Telling, f: &mut (dyn FnMut(&Delegation<'_>, &Mapping<'_>) + 'f)) {
        f(self.vmas[0].delegation.expect("arena 0 alone is delegated"), self.mapping);
    }
    fn with_rmap<'f>(&self, f: &mut (dyn FnMut(&dyn Rmap) + 'f)) -> bool {
        f(self);
        true
    }
    fn with_batch<'f>(&self, _cache: usize, f: &mut (dyn FnMut(&mut Batch) + 'f)) -> bool {
        f(&mut Batch::new());
        true
    }
    fn get_staged(&self) -> Option<Staged> {
        None
    }
    fn put_staged(&self, _staged: Staged) {}
}

impl Park for World {
    fn wait(&self, _ctx: &Ctx<'_>, key: WaitKey, _timeout_ns: u64) -> Woken {
        // rt_sigpending: a wait is left when a signal is there. One that comes later waits for a slice, which loom has not.
        if self.signal.compare_exchange(PENDING, TAKEN, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            return Woken::NotNow;
        }
        self.futex.wait(|| self.low(key.addr) == key.seen);
        Woken::LookAgain
    }
    fn nap(&self, _ctx: &Ctx<'_>, _key: WaitKey, _timeout_ns: u64) -> Woken {
        loom::thread::yield_now();
        Woken::LookAgain
    }
    fn wake(&self, _addr: usize) {
        self.futex.wake();
    }
    fn submit(&self, claim: Claim) -> Result<(), Claim> {
        Err(claim)
    }
    fn submit_telling(&self, telling: Telling) -> Result<(), Telling> {
        Err(telling)
    }
    fn relax(&self) {
        loom::thread::yield_now();
    }
}
