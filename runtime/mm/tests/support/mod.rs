//! A machine for tests without threads: a kernel (memfds, page tables, private copies), stores that can fail, and a
//! host that lends vmas, plays the fillers and is the control plane.
//!
//! The kernel checks on every call what the real one cannot: that each page named to it is pinned and cached, that a
//! mapping which lets stores through unnoted is of a dirty page, that nothing is served from a hole.
#![allow(dead_code, reason = "each test file uses its part")]

use softfault_mm::chunk::ChunkWord;
use softfault_mm::claim::{Claim, Telling};
use softfault_mm::ctx::Ctx;
use softfault_mm::cut::{CaptureBits, Captured, tables};
use softfault_mm::delegation::Delegation;
use softfault_mm::errno::Errno;
use softfault_mm::extent::{Extent, ExtentState};
use softfault_mm::fault::{self, Env};
use softfault_mm::filemap;
use softfault_mm::folio::{DIRTY, Folio, FolioWord, REFERENCED, State, UNMAPPED};
use softfault_mm::host::{AddressSpace, BATCH, Batch, Park, Rmap, Which, Woken};
use softfault_mm::huge_memory;
use softfault_mm::lru::{Entry as LruEntry, Lruvec};
use softfault_mm::mapping::{FailurePolicy, Mapping};
use softfault_mm::memcontrol::CacheAccount;
use softfault_mm::ops::{AddressSpaceOps, Installed, Mmu, Preserved, Prot, Pte, Staged, WaitKey, Zap};
use softfault_mm::page::{EXTENT_PAGES, EXTENT_SIZE, PAGE_SHIFT, PAGE_SIZE, pages_of};
use softfault_mm::rmap;
use softfault_mm::sync::AtomicU64 as Cell;
use softfault_mm::truncate;
use softfault_mm::types::{FaultFlags, FillError, VmFaultReason, VmFlags};
use softfault_mm::vma::{VmOps, Vma};
use softfault_mm::vmstat::VmStat;
use softfault_mm::xarray::Nodes;
use softfault_mm::{vmscan, writeback};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

pub(crate) fn index(n: u64) -> usize {
    usize::try_from(n).expect("test objects are small")
}

/// The bytes of an object: a pattern, zeros behind where the object once ended, and what was written.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    object: usize,
    pattern_len: u64,
    pages: BTreeMap<u64, Vec<u8>>,
}

impl Content {
    pub(crate) fn new(object: usize, len_bytes: u64) -> Self {
        Self { object, pattern_len: len_bytes, pages: BTreeMap::new() }
    }
    /// The byte that untouched page `p` of object `object` is full of.
    pub(crate) fn pattern(object: usize, p: u64) -> u8 {
        u8::try_from(p * 7 % 250).expect("less than 250") + u8::try_from(object).expect("few objects") + 1
    }
    pub(crate) fn page(&self, p: u64) -> Vec<u8> {
        self.pages.get(&p).cloned().unwrap_or_else(|| {
            let mut bytes = vec![Self::pattern(self.object, p); PAGE_SIZE];
            zero_tail(&mut bytes, p, self.pattern_len);
            bytes
        })
    }
    /// Whether page `p` may differ from what it was in the beginning.
    pub(crate) fn is_touched(&self, p: u64) -> bool {
        self.pages.contains_key(&p)
    }
    pub(crate) fn set_page(&mut self, p: u64, bytes: Vec<u8>) {
        self.pages.insert(p, bytes);
    }
    pub(crate) fn set_byte(&mut self, p: u64, offset: usize, value: u8) {
        let mut bytes = self.page(p);
        bytes[offset] = value;
        self.set_page(p, bytes);
    }
    pub(crate) fn truncate(&mut self, len_bytes: u64) {
        self.pattern_len = self.pattern_len.min(len_bytes);
        self.pages.retain(|p, _| p << PAGE_SHIFT < len_bytes);
        if let Some((p, bytes)) = self.pages.iter_mut().next_back() {
            zero_tail(bytes, *p, len_bytes);
        }
    }
}

/// Zeroes what of page `p` lies behind `len_bytes`.
fn zero_tail(bytes: &mut [u8], p: u64, len_bytes: u64) {
    let whole = len_bytes.saturating_sub(p << PAGE_SHIFT).min(PAGE_SIZE as u64);
    bytes[index(whole)..].fill(0);
}

#[derive(Debug)]
enum Entry {
    /// The page of the memfd; `wp`: protected. Where first stores are noted, the lack of protection is the note.
    Cache { wp: bool },
    /// A private copy; `hidden`: by protection, which destroys nothing.
    Private { bytes: Vec<u8>, hidden: bool },
    /// Nothing is mapped, and what was, or what was protected, had not been written.
    Marker,
}

impl Entry {
    fn is_visible(&self) -> bool {
        matches!(self, Entry::Cache { .. } | Entry::Private { hidden: false, .. })
    }
}

/// What the kernel knows of a mapping.
#[derive(Clone, Copy, Debug)]
struct KernelVma {
    start: usize,
    end: usize,
    object: usize,
    pgoff: u64,
    flags: VmFlags,
    /// Installs by protection, which may widen what is there.
    granule: bool,
    always_dirty: bool,
}

#[derive(Debug, Default)]
struct KernelState {
    vmas: Vec<KernelVma>,
    memfd: BTreeMap<(usize, u64), Vec<u8>>,
    ptes: BTreeMap<usize, Entry>,
    /// Extents that the kernel serves; `true`: it notes first stores.
    native: BTreeMap<usize, bool>,
    staged: BTreeMap<u32, Vec<u8>>,
    /// How many of the next installs answer `Again`.
    hiccups: u32,
    /// What the next installs answer, whatever they find.
    answer: Option<Installed>,
    wakes: u64,
    unprotects: u64,
    vmas_charged: i64,
    /// The next so many calls that unmap or protect are refused.
    refusals: u32,
}

/// The memfds and the page tables.
#[derive(Debug, Default)]
pub(crate) struct Kernel {
    state: Mutex<KernelState>,
    words: Mutex<Vec<&'static [FolioWord]>>,
    /// Runs when an entry has been looked at, once.
    after_look: Mutex<Option<OnLook>>,
    /// Entries are told of another process's page table, where all are protected.
    pub(crate) tells_anothers: AtomicBool,
    /// The number by which entries are asked about.
    pub(crate) asked: AtomicU64,
}

/// What somebody does between two steps of who looks at entries.
pub(crate) struct OnLook(pub(crate) Box<dyn FnOnce() + Send>);

impl core::fmt::Debug for OnLook {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("OnLook")
    }
}

/// What one instruction met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instruction {
    Done(u8),
    Fault,
}

impl KernelState {
    fn refuses(&mut self) -> bool {
        let refuses = self.refusals > 0;
        self.refusals = self.refusals.saturating_sub(1);
        refuses
    }

    /// `UFFDIO_WRITEPROTECT` on one page: where nothing is mapped it leaves a marker, or takes it away.
    fn protect(&mut self, at: usize, protect: bool) {
        match self.ptes.get_mut(&at) {
            Some(Entry::Cache { wp }) => *wp = protect,
            Some(Entry::Private { .. }) => {}
            Some(Entry::Marker) | None if protect => {
                self.ptes.insert(at, Entry::Marker);
            }
            Some(Entry::Marker) | None => {
                self.ptes.remove(&at);
            }
        }
    }

    /// Takes one page out of a mapping: its note goes, unless it is that nothing was written. By granule, by protection.
    fn unmap(&mut self, vma: &KernelVma, at: usize) {
        match self.ptes.get_mut(&at) {
            Some(Entry::Private { hidden, .. }) => *hidden = vma.granule,
            Some(Entry::Cache { wp: true }) if vma.is_noted() && !vma.granule => {
                self.ptes.insert(at, Entry::Marker);
            }
            Some(Entry::Cache { .. }) => {
                self.ptes.remove(&at);
            }
            Some(Entry::Marker) | None => {}
        }
    }

    fn vma(&self, addr: usize) -> Option<KernelVma> {
        self.vmas.iter().find(|v| (v.start..v.end).contains(&addr)).copied()
    }
}

impl KernelVma {
    fn pgoff_at(&self, addr: usize) -> u64 {
        self.pgoff + ((addr - self.start) >> PAGE_SHIFT) as u64
    }
    fn is_noted(&self) -> bool {
        self.flags.contains(VmFlags::SHARED | VmFlags::MAYWRITE)
            && self.flags.intersects(VmFlags::WP_SYNC | VmFlags::WP_ASYNC)
            && !self.always_dirty
    }
}

impl Kernel {
    fn word(&self, object: usize, p: u64) -> Folio {
        lock(&self.words)[object][index(p)].load()
    }

    fn run(&self, addr: usize, store: Option<u8>) -> Instruction {
        let mut guard = lock(&self.state);
        let s = &mut *guard;
        let Some(vma) = s.vma(addr) else { return Instruction::Fault };
        if !vma.flags.contains(if store.is_some() { VmFlags::WRITE } else { VmFlags::READ }) {
            return Instruction::Fault;
        }
        let (page, offset) = (addr & !(PAGE_SIZE - 1), addr % PAGE_SIZE);
        let (object, p) = (vma.object, vma.pgoff_at(page));
        if !s.ptes.get(&page).is_some_and(Entry::is_visible) {
            if !s.native.contains_key(&(addr & !(EXTENT_SIZE - 1))) {
                return Instruction::Fault;
            }
            // The kernel maps it, protected if there is a marker.
            let wp = matches!(s.ptes.get(&page), Some(Entry::Marker));
            s.ptes.insert(page, Entry::Cache { wp });
        }
        let Some(pte) = s.ptes.get_mut(&page) else { return Instruction::Fault };
        let wp = match pte {
            Entry::Private { bytes, .. } => {
                if let Some(value) = store {
                    bytes[offset] = value;
                }
                return Instruction::Done(bytes[offset]);
            }
            Entry::Cache { wp } => wp,
            Entry::Marker => return Instruction::Fault,
        };
        let Some(bytes) = s.memfd.get_mut(&(object, p)) else { panic!("page {p} was served from a hole") };
        let word = self.word(object, p);
        assert!(word.is_mappable(), "page {p} is mapped and {word:?}");
        let shared = vma.flags.contains(VmFlags::SHARED);
        assert!(
            !shared || !word.has(UNMAPPED) || word.has(REFERENCED),
            "page {p} would be dropped while mapped: {word:?}"
        );
        let Some(value) = store else { return Instruction::Done(bytes[offset]) };
        if !vma.flags.contains(VmFlags::SHARED) {
            let mut copy = bytes.clone();
            copy[offset] = value;
            *pte = Entry::Private { bytes: copy, hidden: false };
            return Instruction::Done(value);
        }
        if *wp && !vma.flags.contains(VmFlags::WP_ASYNC) {
            return Instruction::Fault;
        }
        *wp = false;
        let noted = vma.flags.contains(VmFlags::WP_ASYNC) || vma.always_dirty || word.has(DIRTY);
        assert!(noted, "a store to page {p} that nobody will write back");
        bytes[offset] = value;
        Instruction::Done(value)
    }

    /// Addresses at which page `p` of `object` may be mapped.
    fn rmap(s: &KernelState, object: usize, p: u64) -> Vec<usize> {
        let at = |v: &KernelVma| {
            let nr = ((v.end - v.start) >> PAGE_SHIFT) as u64;
            (v.object == object && (v.pgoff..v.pgoff + nr).contains(&p))
                .then(|| v.start + (index(p - v.pgoff) << PAGE_SHIFT))
        };
        s.vmas.iter().filter_map(at).collect()
    }

    /// The memfd's bytes, as the alias shows them.
    pub(crate) fn alias(&self, object: usize, p: u64) -> Option<Vec<u8>> {
        lock(&self.state).memfd.get(&(object, p)).cloned()
    }
    pub(crate) fn set_alias(&self, object: usize, p: u64, bytes: Vec<u8>) {
        lock(&self.state).memfd.insert((object, p), bytes);
    }
    /// Makes the next `n` installs answer `Again`.
    pub(crate) fn hiccup(&self, n: u32) {
        lock(&self.state).hiccups = n;
    }
    /// Makes all installs answer `answer` until told otherwise.
    pub(crate) fn answer(&self, answer: Option<Installed>) {
        lock(&self.state).answer = answer;
    }
    pub(crate) fn is_mapped(&self, addr: usize) -> bool {
        lock(&self.state).ptes.get(&addr).is_some_and(Entry::is_visible)
    }
    pub(crate) fn is_private(&self, addr: usize) -> bool {
        matches!(lock(&self.state).ptes.get(&(addr & !(PAGE_SIZE - 1))), Some(Entry::Private { .. }))
    }
    /// Whether a private copy is there and cannot be seen.
    pub(crate) fn is_hidden(&self, addr: usize) -> bool {
        matches!(lock(&self.state).ptes.get(&(addr & !(PAGE_SIZE - 1))), Some(Entry::Private { hidden: true, .. }))
    }
    /// Makes the kernel refuse the next `n` calls that unmap or protect.
    pub(crate) fn refuse(&self, n: u32) {
        lock(&self.state).refusals = n;
    }
    pub(crate) fn is_protected(&self, addr: usize) -> bool {
        matches!(lock(&self.state).ptes.get(&addr), Some(Entry::Cache { wp: true }))
    }
    pub(crate) fn unprotects(&self) -> u64 {
        lock(&self.state).unprotects
    }
    /// Empties entries as the host's own reclaim does, of which nobody is told: what is protected leaves a marker, what was
    /// stored to leaves nothing. Bytes stay, in the memfd or the swap. What is exposed by protection is mapped again unasked.
    pub(crate) fn after_look(&self, f: impl FnOnce() + Send + 'static) {
        *lock(&self.after_look) = Some(OnLook(Box::new(f)));
    }
    pub(crate) fn empty(&self, start: usize, end: usize) {
        let mut s = lock(&self.state);
        for at in (start..end).step_by(PAGE_SIZE) {
            if let Some(vma) = s.vma(at).filter(|v| !v.granule)
                && matches!(s.ptes.get(&at), Some(Entry::Cache { .. }))
            {
                s.unmap(&vma, at);
            }
        }
    }
    /// Unmaps without a word to anybody, as another process's reclaim would.
    pub(crate) fn zap(&self, addr: usize) {
        lock(&self.state).ptes.remove(&addr);
    }
}

/// The page tables of all arenas (addresses differ).
#[derive(Debug)]
struct PageTables(&'static Kernel);

impl Mmu for PageTables {
    fn set_ptes(&self, addr: usize, nr: usize, prot: Prot) -> Installed {
        let mut guard = lock(&self.0.state);
        let s = &mut *guard;
        if s.hiccups > 0 {
            s.hiccups -= 1;
            return Installed::Again;
        }
        if let Some(answer) = s.answer {
            return answer;
        }
        for i in 0..nr {
            let at = addr + (i << PAGE_SHIFT);
            let stop = |other: Installed| if i > 0 { Installed::Partial(i) } else { other };
            let Some(vma) = s.vma(at) else { return stop(Installed::Gone) };
            if s.native.contains_key(&(at & !(EXTENT_SIZE - 1))) {
                return stop(Installed::Gone);
            }
            let p = vma.pgoff_at(at);
            let word = self.0.word(vma.object, p);
            assert!(word.pins() > 0, "page {p} is installed without a pin: {word:?}");
            assert!(word.is_mappable() && s.memfd.contains_key(&(vma.object, p)), "page {p} is a hole: {word:?}");
            if vma.is_noted() && !prot.wp {
                assert!(word.has(DIRTY), "page {p} is open to stores and clean: {word:?}");
            }
            match s.ptes.get_mut(&at) {
                Some(Entry::Cache { wp }) if vma.granule => *wp = prot.wp,
                Some(Entry::Private { hidden, .. }) if vma.granule => *hidden = false,
                Some(Entry::Cache { .. } | Entry::Private { .. }) => return stop(Installed::Exists),
                // Over a marker too: only `prot` says whether the page is protected.
                Some(Entry::Marker) | None => {
                    let shared = vma.flags.contains(VmFlags::SHARED);
                    assert!(
                        !shared || !word.has(UNMAPPED) || word.has(REFERENCED),
                        "page {p} is mapped around: {word:?}"
                    );
                    s.ptes.insert(at, Entry::Cache { wp: prot.wp });
                }
            }
        }
        Installed::All
    }
    fn set_private(&self, addr: usize, staged: &Staged) -> Installed {
        let mut s = lock(&self.0.state);
        if s.hiccups > 0 {
            s.hiccups -= 1;
            return Installed::Again;
        }
        let Some(vma) = s.vma(addr) else { return Installed::Gone };
        assert!(!vma.flags.contains(VmFlags::SHARED), "a private copy in a shared mapping");
        if s.ptes.contains_key(&addr) {
            return Installed::Exists;
        }
        let bytes = s.staged.get(&staged.0).cloned().expect("the staging page was read");
        s.ptes.insert(addr, Entry::Private { bytes, hidden: false });
        Installed::All
    }
    fn unprotect(&self, addr: usize) -> Installed {
        let mut s = lock(&self.0.state);
        s.unprotects += 1;
        let Some(vma) = s.vma(addr) else { return Installed::Gone };
        let p = vma.pgoff_at(addr);
        let word = self.0.word(vma.object, p);
        assert!(word.pins() > 0 && word.has(DIRTY), "page {p} is opened to stores: {word:?}");
        let exposes = vma.granule;
        match s.ptes.get_mut(&addr) {
            Some(Entry::Cache { wp }) => *wp = false,
            // mprotect exposes the page, whatever was there before.
            None if exposes => {
                s.ptes.insert(addr, Entry::Cache { wp: false });
            }
            Some(Entry::Marker) => {
                s.ptes.remove(&addr);
            }
            _ => {}
        }
        Installed::All
    }
    fn wake(&self, _addr: usize, _nr: usize) {
        lock(&self.0.state).wakes += 1;
    }
    fn release_extents(&self, addr: usize, len_bytes: usize, tracked: bool) -> Result<(), Installed> {
        let mut s = lock(&self.0.state);
        for base in (addr..addr + len_bytes).step_by(EXTENT_SIZE) {
            s.native.insert(base, tracked);
        }
        for at in (addr..addr + len_bytes).step_by(PAGE_SIZE) {
            s.protect(at, tracked);
        }
        Ok(())
    }
    fn take_extents(&self, addr: usize, len_bytes: usize, _wp: bool, protect: bool) -> Result<(), Installed> {
        let mut s = lock(&self.0.state);
        for base in (addr..addr + len_bytes).step_by(EXTENT_SIZE) {
            s.native.remove(&base);
        }
        for at in (addr..addr + len_bytes).step_by(PAGE_SIZE).filter(|_| protect) {
            s.protect(at, true);
        }
        Ok(())
    }
    fn zap(&self, ranges: &[Zap]) -> bool {
        let mut s = lock(&self.0.state);
        // Protecting a whole vma splits nothing, and always succeeds.
        let whole =
            |z: &Zap| s.vma(z.addr).is_some_and(|v| v.granule && v.start == z.addr && v.end == z.addr + z.len_bytes);
        if !ranges.iter().all(whole) && s.refuses() {
            return false;
        }
        for at in ranges.iter().flat_map(|z| (z.addr..z.addr + z.len_bytes).step_by(PAGE_SIZE)) {
            let vma = s.vma(at).expect("what is unmapped was mapped");
            assert!(vma.granule || vma.flags.contains(VmFlags::SHARED), "private copies would be destroyed");
            s.unmap(&vma, at);
        }
        true
    }
    fn write_protect(&self, addr: usize, nr: usize) -> bool {
        let mut s = lock(&self.0.state);
        if s.refuses() {
            return false;
        }
        for at in (addr..addr + (nr << PAGE_SHIFT)).step_by(PAGE_SIZE) {
            s.protect(at, true);
        }
        true
    }
    fn write_unprotect(&self, addr: usize, nr: usize) -> bool {
        let mut s = lock(&self.0.state);
        for at in (addr..addr + (nr << PAGE_SHIFT)).step_by(PAGE_SIZE) {
            s.protect(at, false);
        }
        true
    }
    fn unprotected(&self, addr: usize, nr: usize, found: &mut dyn FnMut(usize, usize, Pte)) {
        for at in (addr..addr + (nr << PAGE_SHIFT)).step_by(PAGE_SIZE) {
            let pte = self.pte(at);
            if matches!(pte, Pte::Written | Pte::None) {
                found(at, 1, pte);
            }
        }
    }
    fn pte(&self, addr: usize) -> Pte {
        let s = lock(&self.0.state);
        assert!(s.vma(addr).is_some_and(|v| v.is_noted()), "the kernel notes nothing at {addr:#x}");
        match s.ptes.get(&addr) {
            None => Pte::None,
            Some(Entry::Cache { wp: true }) => Pte::Clean,
            Some(Entry::Marker) => Pte::Marker,
            Some(_) => Pte::Written,
        }
    }
    fn pte_glanced(&self, addr: usize) -> Pte {
        let pte = self.pte(addr);
        let anothers = self.0.tells_anothers.load(Ordering::Relaxed);
        let hook = lock(&self.0.after_look).take();
        if let Some(OnLook(f)) = hook {
            f();
        }
        match pte {
            // There the page was mapped and clean before, and is not mapped now.
            Pte::None if anothers => Pte::Marker,
            _ if anothers => Pte::Clean,
            pte => pte,
        }
    }
    fn asked(&self) -> u64 {
        self.0.asked.load(Ordering::Relaxed)
    }
    fn vouches(&self, asked: u64) -> bool {
        asked == self.asked() && !self.0.tells_anothers.load(Ordering::Relaxed)
    }
    fn charge_vmas(&self, delta: i64) -> bool {
        lock(&self.0.state).vmas_charged += delta;
        true
    }
}

/// What a store was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Read(u64, u32),
    Zero(u64, u32),
    Staged(u64),
    Dsync(u64),
    Punch(u64, u32),
    Write(u64, u32),
}

type Hook = Box<dyn FnMut(Call) + Send>;

/// A store whose pages can be made bad.
pub(crate) struct Store {
    kernel: &'static Kernel,
    object: usize,
    pub(crate) content: Mutex<Content>,
    pub(crate) bad: Mutex<BTreeMap<u64, FillError>>,
    pub(crate) punch_fails: AtomicBool,
    pub(crate) dsync_fails: AtomicBool,
    /// Pages that the store does not take.
    pub(crate) full: Mutex<BTreeSet<u64>>,
    pub(crate) rereads: AtomicBool,
    pub(crate) log: Mutex<Vec<Call>>,
    hook: Mutex<Option<Hook>>,
    /// What captures have kept: the bytes of pages.
    pub(crate) kept: Mutex<BTreeMap<u64, Vec<u8>>>,
    /// So many times there is no room for them.
    pub(crate) no_room: AtomicU32,
}

impl core::fmt::Debug for Store {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Store").field("object", &self.object).finish_non_exhaustive()
    }
}

impl Store {
    /// Has `hook` called before each answer, until it is called by a call that it causes itself.
    pub(crate) fn set_hook(&self, hook: impl FnMut(Call) + Send + 'static) {
        *lock(&self.hook) = Some(Box::new(hook));
    }
    pub(crate) fn clear_hook(&self) {
        *lock(&self.hook) = None;
    }
    fn called(&self, call: Call) {
        lock(&self.log).push(call);
        let hook = lock(&self.hook).take();
        if let Some(mut hook) = hook {
            hook(call);
            lock(&self.hook).get_or_insert(hook);
        }
    }
    pub(crate) fn calls(&self, which: impl Fn(&Call) -> bool) -> usize {
        lock(&self.log).iter().filter(|c| which(c)).count()
    }
}

impl AddressSpaceOps for Store {
    fn read_folio(&self, pgoff: u64, nr: u32) -> Result<(), (u32, FillError)> {
        self.called(Call::Read(pgoff, nr));
        for p in pgoff..pgoff + u64::from(nr) {
            let word = self.kernel.word(self.object, p);
            assert_eq!(word.state(), State::Filling, "page {p} is read in place by who does not own it");
            // Whatever comes of it: something is in each of the pages now.
            self.kernel.set_alias(self.object, p, vec![0xEE; PAGE_SIZE]);
        }
        for i in 0..nr {
            let p = pgoff + u64::from(i);
            if let Some(error) = lock(&self.bad).get(&p) {
                return Err((i, *error));
            }
            self.kernel.set_alias(self.object, p, lock(&self.content).page(p));
        }
        Ok(())
    }
    fn zero_folio(&self, pgoff: u64, nr: u32) -> Result<(), FillError> {
        self.called(Call::Zero(pgoff, nr));
        for p in pgoff..pgoff + u64::from(nr) {
            self.kernel.set_alias(self.object, p, vec![0; PAGE_SIZE]);
        }
        Ok(())
    }
    fn read_staged(&self, pgoff: u64, staged: &Staged) -> Result<(), FillError> {
        // What happens meanwhile comes between the two halves of the read.
        let mut bytes = lock(&self.content).page(pgoff);
        self.called(Call::Staged(pgoff));
        if let Some(error) = lock(&self.bad).get(&pgoff) {
            return Err(*error);
        }
        bytes.splice(PAGE_SIZE / 2.., lock(&self.content).page(pgoff).drain(PAGE_SIZE / 2..));
        lock(&self.kernel.state).staged.insert(staged.0, bytes);
        Ok(())
    }
    fn dsync(&self, pgoff: u64, _nr: u32) -> Result<(), FillError> {
        self.called(Call::Dsync(pgoff));
        if self.dsync_fails.load(Ordering::Relaxed) { Err(FillError::Io(Errno::EIO)) } else { Ok(()) }
    }
    fn write_folio(&self, pgoff: u64, nr: u32) -> Result<(), (u32, FillError)> {
        self.called(Call::Write(pgoff, nr));
        for i in 0..nr {
            let p = pgoff + u64::from(i);
            let word = self.kernel.word(self.object, p);
            assert_eq!(word.state(), State::Writeback, "page {p} is written by who does not own it: {word:?}");
            if lock(&self.full).contains(&p) {
                return Err((i, FillError::Io(Errno::EIO)));
            }
            let bytes = self.kernel.alias(self.object, p).expect("a page in write-back is there");
            lock(&self.content).set_page(p, bytes);
        }
        Ok(())
    }
    fn preserve(&self, number: u32, pgoff: u64, won: &mut dyn FnMut() -> bool) -> Preserved {
        let word = self.kernel.word(self.object, pgoff);
        assert!(word.pins() > 0, "page {pgoff} is kept without a pin: {word:?}");
        let capture = tables().and_then(|t| t.capture(number)).expect("its number");
        if self.no_room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
            return Preserved::Full(capture.room_key().1);
        }
        let bytes = self.kernel.alias(self.object, pgoff).expect("a pinned page is there");
        if won() {
            let twice = lock(&self.kept).insert(pgoff, bytes);
            assert!(twice.is_none(), "page {pgoff} is kept twice");
        }
        Preserved::Done
    }
    fn rereads_unflushed(&self) -> bool {
        self.rereads.load(Ordering::Relaxed)
    }
    fn punch(&self, pgoff: u64, nr: u32) -> Result<(), FillError> {
        self.called(Call::Punch(pgoff, nr));
        for p in pgoff..pgoff + u64::from(nr) {
            let word = self.kernel.word(self.object, p);
            let owned = matches!(word.state(), State::Evicting | State::Filling);
            assert!(owned && word.pins() == 0, "page {p} is punched by who does not own it: {word:?}");
        }
        if self.punch_fails.load(Ordering::Relaxed) {
            return Err(FillError::Io(Errno::EIO));
        }
        let mut guard = lock(&self.kernel.state);
        let s = &mut *guard;
        for p in pgoff..pgoff + u64::from(nr) {
            s.memfd.remove(&(self.object, p));
            for addr in Kernel::rmap(s, self.object, p) {
                let vma = s.vma(addr).expect("rmap finds addresses in vmas");
                let exposed = vma.granule && matches!(s.ptes.get(&addr), Some(Entry::Cache { .. }));
                assert!(!exposed, "a hole below an exposed granule: the kernel would show zeros");
                if !matches!(s.ptes.get(&addr), Some(Entry::Private { .. })) {
                    s.unmap(&vma, addr);
                }
            }
        }
        Ok(())
    }
    fn with_page_mut(&self, pgoff: u64, f: &mut dyn FnMut(&mut [u8])) {
        let mut bytes = self.kernel.alias(self.object, pgoff).unwrap_or_else(|| vec![0; PAGE_SIZE]);
        f(&mut bytes);
        self.kernel.set_alias(self.object, pgoff, bytes);
    }
    fn copy_from_page(&self, pgoff: u64, offset: usize, dst: &mut [u8]) {
        let bytes = self.kernel.alias(self.object, pgoff).expect("a pinned page is there");
        dst.copy_from_slice(&bytes[offset..offset + dst.len()]);
    }
}

/// How an object is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ObjectSpec {
    /// Pages its tables have.
    pub(crate) max_pages: usize,
    pub(crate) len_bytes: u64,
    pub(crate) handler_safe: bool,
    /// Its store touches arenas.
    pub(crate) store_faults: bool,
    pub(crate) always_dirty: bool,
    /// Dirty pages can be written out.
    pub(crate) dirty_goes: bool,
    /// `punch` takes its pages out of the one mapping they lie in.
    pub(crate) exclusive: bool,
    pub(crate) staging: bool,
    pub(crate) fill_window: u32,
    pub(crate) read_align: u32,
    pub(crate) reads_parts: bool,
    pub(crate) ra_pages: u32,
    pub(crate) policy: FailurePolicy,
    pub(crate) deadline_ns: u64,
}

impl ObjectSpec {
    pub(crate) fn pages(nr: usize) -> Self {
        Self {
            max_pages: nr,
            len_bytes: (nr << PAGE_SHIFT) as u64,
            handler_safe: true,
            store_faults: false,
            always_dirty: false,
            dirty_goes: true,
            exclusive: false,
            staging: false,
            fill_window: 1,
            read_align: 1,
            reads_parts: false,
            ra_pages: 0,
            policy: FailurePolicy::Poison,
            deadline_ns: u64::MAX,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Object {
    pub(crate) mapping: &'static Mapping<'static>,
    pub(crate) store: &'static Store,
}

/// Cells of each queue of reclaim: as many as there are pages, within these bounds.
const QUEUE: core::ops::RangeInclusive<usize> = 8192..=1 << 17;

/// Extents of each arena.
pub(crate) const ARENA_EXTENTS: usize = 4;

/// The first address of arena `a`.
pub(crate) const fn arena_base(a: usize) -> usize {
    (a + 1) << 32
}

/// Where a vma is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MapSpec {
    pub(crate) arena: usize,
    /// First page, from the arena's base.
    pub(crate) at: usize,
    pub(crate) nr: usize,
    pub(crate) object: usize,
    pub(crate) pgoff: u64,
    pub(crate) flags: VmFlags,
    pub(crate) ops: &'static dyn VmOps,
    pub(crate) granule_pages: usize,
    pub(crate) delegation: Option<&'static Delegation<'static>>,
}

/// What sleeping does in a test with one thread.
type Sleep = Box<dyn FnMut(WaitKey) -> Woken + Send>;
/// What happens when a thread goes on outside the section.
type Outside = Box<dyn FnOnce() + Send>;

/// The host.
pub(crate) struct World {
    pub(crate) kernel: &'static Kernel,
    pub(crate) objects: Vec<Object>,
    pub(crate) account: &'static CacheAccount<'static>,
    pub(crate) stat: &'static VmStat,
    arenas: Vec<&'static [Extent]>,
    vmas: Mutex<Vec<Vma<'static>>>,
    /// Claims on their way to the fillers; `None`: there are no fillers.
    pub(crate) queue: Mutex<Option<VecDeque<Claim>>>,
    pub(crate) tellings: Mutex<Option<VecDeque<Telling>>>,
    /// Pages on their way to the thread that writes them out; `None`: there is none.
    pub(crate) flushers: Mutex<Option<VecDeque<Claim>>>,
    batch: Mutex<Option<Box<Batch>>>,
    staging: Mutex<BTreeSet<u32>>,
    sleep: Mutex<Option<Sleep>>,
    outside: Mutex<Option<Outside>>,
    pub(crate) relaxed: AtomicU64,
    /// Another thread has pages in hand, and has had them for long.
    pub(crate) reclaims: AtomicBool,
    /// Tells whether the sections of others have been left, when somebody asks.
    pub(crate) sections: Mutex<Option<Box<dyn FnMut() -> bool + Send>>>,
}

impl core::fmt::Debug for World {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("World")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // The words are leaked, a few kilobytes; the bytes are not.
        *lock(&self.kernel.state) = KernelState::default();
        for o in &self.objects {
            *lock(&o.store.content) = Content::new(0, 0);
            o.store.clear_hook();
        }
    }
}

/// One bit a page, four times.
fn bits_of(max_pages: usize) -> CaptureBits<'static> {
    let table = || -> &'static [Cell] { Box::leak((0..max_pages.div_ceil(64)).map(|_| Cell::new(0)).collect()) };
    CaptureBits::new(table(), [table(), table()], table())
}

/// Another vma over the same, for a split.
fn part(v: &Vma<'static>, start: usize, end: usize, flags: VmFlags) -> Vma<'static> {
    Vma {
        start,
        end,
        pgoff: v.pgoff_at(start),
        flags,
        ops: v.ops,
        mapping: v.mapping,
        mmu: v.mmu,
        extents: v.extents,
        arena_base: v.arena_base,
        granule_pages: v.granule_pages,
        delegation: v.delegation,
    }
}

impl World {
    pub(crate) fn new(specs: &[ObjectSpec], nr_arenas: usize) -> Self {
        let kernel = leak(Kernel::default());
        let stat = leak(VmStat::new());
        let nr: usize = specs.iter().map(|spec| spec.max_pages).sum();
        let nr = nr.next_power_of_two().clamp(*QUEUE.start(), *QUEUE.end());
        let cells = || -> &'static [Cell] { Box::leak((0..nr).map(|_| Cell::new(0)).collect()) };
        let account = leak(CacheAccount::new(u64::MAX, Lruvec::new(cells(), cells(), cells(), u64::MAX)));
        let object = |(id, spec): (usize, &ObjectSpec)| {
            let folios: &'static [FolioWord] = Box::leak((0..spec.max_pages).map(|_| FolioWord::new()).collect());
            let nr_chunks = spec.max_pages.div_ceil(EXTENT_PAGES);
            lock(&kernel.words).push(folios);
            let store = leak(Store {
                kernel,
                object: id,
                content: Mutex::new(Content::new(id, spec.len_bytes)),
                bad: Mutex::default(),
                punch_fails: AtomicBool::new(false),
                dsync_fails: AtomicBool::new(false),
                full: Mutex::default(),
                rereads: AtomicBool::new(true),
                log: Mutex::default(),
                hook: Mutex::new(None),
                kept: Mutex::default(),
                no_room: AtomicU32::new(0),
            });
            let mapping = leak(Mapping {
                id: u32::try_from(id).expect("few objects"),
                folios,
                chunks: Box::leak((0..nr_chunks).map(|_| ChunkWord::new()).collect()),
                nodes: Nodes::new(Box::leak((0..Nodes::words(nr_chunks)).map(|_| AtomicU64::new(0)).collect())),
                i_size: AtomicU64::new(spec.len_bytes),
                a_ops: store,
                policy: spec.policy,
                handler_safe: spec.handler_safe,
                store_faults: spec.store_faults,
                always_dirty: spec.always_dirty,
                dirty_goes: spec.dirty_goes && !spec.always_dirty,
                exclusive: spec.exclusive,
                is_flushed: AtomicBool::new(true),
                write_blocks: false,
                staging: spec.staging,
                fill_window: spec.fill_window,
                read_align: spec.read_align,
                reads_parts: spec.reads_parts,
                ra: softfault_mm::streams::Readahead::new(spec.ra_pages),
                deadline_ns: spec.deadline_ns,
                users: AtomicU32::new(0),
                nr_writers: AtomicU32::new(0),
                nr_maps: AtomicU32::new(0),
                account,
                own_limit: AtomicU64::new(u64::MAX),
                nr_own: AtomicU64::new(0),
                hand: AtomicU64::new(0),
                flush_turn: AtomicU32::new(0),
                flushing: AtomicU32::new(0),
                flush_wanted: AtomicU32::new(0),
                failing: softfault_mm::failing::Failing::new(),
                captured: Captured::new(bits_of(spec.max_pages)),
                label: "test",
                stat,
            });
            Object { mapping, store }
        };
        let objects = specs.iter().enumerate().map(object).collect();
        let arena = |_| -> &'static [Extent] { Box::leak((0..ARENA_EXTENTS).map(|_| Extent::new()).collect()) };
        Self {
            kernel,
            objects,
            account,
            stat,
            arenas: (0..nr_arenas).map(arena).collect(),
            vmas: Mutex::default(),
            queue: Mutex::new(Some(VecDeque::new())),
            tellings: Mutex::new(Some(VecDeque::new())),
            flushers: Mutex::new(Some(VecDeque::new())),
            batch: Mutex::new(Some(Box::default())),
            staging: Mutex::new(BTreeSet::from([0])),
            sleep: Mutex::new(None),
            outside: Mutex::new(None),
            relaxed: AtomicU64::new(0),
            reclaims: AtomicBool::new(false),
            sections: Mutex::new(None),
        }
    }

    pub(crate) fn env(&self) -> Env<'_> {
        Env { mm: self, park: self }
    }

    pub(crate) fn word(&self, object: usize, p: u64) -> &'static FolioWord {
        &self.objects[object].mapping.folios[index(p)]
    }

    /// Extent `i` of arena `a`.
    /// Maps one page, protected, as who has pinned it does.
    pub(crate) fn install(&self, addr: usize) -> Installed {
        PageTables(self.kernel).set_ptes(addr, 1, Prot { write: true, wp: true })
    }

    pub(crate) fn extent(&self, a: usize, i: usize) -> &'static Extent {
        &self.arenas[a][i]
    }

    /// Maps, if nothing is there yet.
    pub(crate) fn map(&self, m: MapSpec) -> bool {
        let start = arena_base(m.arena) + (m.at << PAGE_SHIFT);
        let end = start + (m.nr << PAGE_SHIFT);
        let mapping = self.objects[m.object].mapping;
        let mut vmas = lock(&self.vmas);
        if end > arena_base(m.arena) + ARENA_EXTENTS * EXTENT_SIZE
            || vmas.iter().any(|v| v.start < end && start < v.end)
            || m.pgoff + m.nr as u64 > mapping.folios.len() as u64
        {
            return false;
        }
        lock(&self.kernel.state).vmas.push(KernelVma {
            start,
            end,
            object: m.object,
            pgoff: m.pgoff,
            flags: m.flags,
            granule: m.granule_pages != 0,
            always_dirty: mapping.always_dirty,
        });
        vmas.push(Vma {
            start,
            end,
            pgoff: m.pgoff,
            flags: m.flags,
            ops: m.ops,
            mapping,
            mmu: leak(PageTables(self.kernel)),
            extents: self.arenas[m.arena],
            arena_base: arena_base(m.arena),
            granule_pages: m.granule_pages,
            delegation: m.delegation,
        });
        mapping.nr_maps.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Replaces the parts of all vmas in `start..end` by what `f` makes of their flags (`None`: unmapped).
    fn change(&self, start: usize, end: usize, f: impl Fn(VmFlags) -> Option<VmFlags>) {
        let mut vmas = lock(&self.vmas);
        for v in vmas.iter() {
            // Native extents are taken back whole before anything happens to a part.
            self.demote(v, start, end);
        }
        let mut next = Vec::new();
        for v in vmas.drain(..) {
            let (lo, hi) = (v.start.max(start), v.end.min(end));
            if lo >= hi {
                next.push(v);
                continue;
            }
            v.mapping.nr_maps.fetch_sub(1, Ordering::Relaxed);
            let mut push = |from: usize, to: usize, flags: VmFlags| {
                if from < to {
                    v.mapping.nr_maps.fetch_add(1, Ordering::Relaxed);
                    next.push(part(&v, from, to, flags));
                }
            };
            push(v.start, lo, v.flags);
            if let Some(flags) = f(v.flags) {
                push(lo, hi, flags);
            }
            push(hi, v.end, v.flags);
        }
        *vmas = next;
        let mut s = lock(&self.kernel.state);
        s.vmas = vmas
            .iter()
            .map(|v| KernelVma {
                start: v.start,
                end: v.end,
                object: v.mapping.id as usize,
                pgoff: v.pgoff,
                flags: v.flags,
                granule: v.granule_pages != 0,
                always_dirty: v.mapping.always_dirty,
            })
            .collect();
        let KernelState { vmas: kept, ptes, .. } = &mut *s;
        ptes.retain(|at, _| kept.iter().any(|v| (v.start..v.end).contains(at)));
    }

    /// Unmaps; what kernel notes tell of dirtiness is taken down first.
    pub(crate) fn unmap(&self, start: usize, end: usize, forget_hints: bool) {
        self.each_part(start, end, |v, from, to| {
            rmap::harvest_vma(v, from, to);
        });
        self.change(start, end, |_| None);
        if forget_hints {
            self.forget_hints(start, end);
        }
    }

    /// Calls `f` for each vma that has pages in `start..end`, with those pages.
    fn each_part(&self, start: usize, end: usize, mut f: impl FnMut(&Vma<'static>, u64, u64)) {
        for v in lock(&self.vmas).iter() {
            let (lo, hi) = (v.start.max(start), v.end.min(end));
            if lo < hi {
                f(v, v.pgoff_at(lo), v.pgoff_at(hi - PAGE_SIZE) + 1);
            }
        }
    }

    pub(crate) fn protect(&self, start: usize, end: usize, read: bool, write: bool) {
        self.change(start, end, |flags| {
            let mut flags = flags.without(VmFlags::READ | VmFlags::WRITE);
            if read {
                flags |= VmFlags::READ;
                if write && flags.contains(VmFlags::MAYWRITE) {
                    flags |= VmFlags::WRITE;
                }
            }
            Some(flags)
        });
    }

    /// Shared pages are unmapped and stay cached (`MADV_DONTNEED`).
    pub(crate) fn zap(&self, start: usize, end: usize) {
        self.each_part(start, end, |v, from, to| {
            if v.flags.contains(VmFlags::SHARED) && v.granule_pages == 0 {
                for first in (from..to).step_by(BATCH) {
                    let end = to.min(first + BATCH as u64);
                    assert_eq!(rmap::zap_vma(v, first, end, &mut Batch::new(), false), 0, "nobody has a pin");
                }
            }
        });
    }

    fn forget_hints(&self, start: usize, end: usize) {
        for (a, extents) in self.arenas.iter().enumerate() {
            for (i, extent) in extents.iter().enumerate() {
                let base = arena_base(a) + i * EXTENT_SIZE;
                let (lo, hi) = (start.max(base), end.min(base + EXTENT_SIZE));
                if lo < hi {
                    extent.note_zapped((lo - base) >> PAGE_SHIFT, (hi - lo) >> PAGE_SHIFT);
                }
            }
        }
    }

    fn demote(&self, v: &Vma<'static>, start: usize, end: usize) {
        let (lo, hi) = (v.start.max(start), v.end.min(end));
        let mut base = lo & !(EXTENT_SIZE - 1);
        while base < hi {
            let native = |e: &Extent| matches!(e.state(), ExtentState::Native | ExtentState::Tracked);
            if base >= v.start && v.extent(base).is_some_and(native) {
                assert_eq!(huge_memory::demote_run(v, 0, base, 1), Ok(1), "one native extent");
            }
            base += EXTENT_SIZE;
        }
    }

    /// Demotes whatever is native over pages `from..to` of the object.
    pub(crate) fn demote_over(&self, object: usize, from: u64, to: u64) {
        let mapping = self.objects[object].mapping;
        for v in lock(&self.vmas).iter().filter(|v| core::ptr::eq(v.mapping, mapping)) {
            let (lo, hi) = (from.max(v.pgoff), to.min(v.pgoff_end()));
            if lo < hi {
                self.demote(v, v.address_of(lo), v.address_of(hi - 1) + PAGE_SIZE);
            }
        }
    }

    /// The flusher's turn; `ok`: the store takes the pages. Returns how many were written.
    pub(crate) fn write_back(&self, object: usize, from: u64, to: u64, ok: bool) -> Result<u64, (u64, FillError)> {
        let o = self.objects[object];
        self.with_rmap(&mut |r| {
            rmap::harvest(r, o.mapping, from, to);
        });
        if !ok {
            lock(&o.store.full).extend(from..to);
        }
        let written = writeback::writeout(self.env(), o.mapping, 0, from, to);
        if !ok {
            lock(&o.store.full).retain(|p| !(from..to).contains(p));
        }
        written
    }

    /// Has the store written and flushed, as `fsync` does; `ok`: the flush succeeds. Returns what was lost.
    pub(crate) fn sync(&self, object: usize, ok: bool) -> Vec<u64> {
        let m = self.objects[object].mapping;
        let _ = self.write_back(object, 0, m.folios.len() as u64, true);
        let turn = writeback::begin_flush(m);
        let mut lost = Vec::new();
        if ok {
            writeback::end_flush(m, turn);
        } else {
            writeback::fail_flush(m, &mut |p| lost.push(p));
        }
        lost
    }

    /// Writes back and drops; returns how many pages went.
    pub(crate) fn evict(&self, object: usize, from: u64, to: u64, store_ok: bool) -> u64 {
        let o = self.objects[object];
        if o.mapping.dirty_goes {
            let _ = self.write_back(object, from, to, store_ok);
        }
        self.reclaim(object, from, to)
    }

    /// Drops clean pages; returns how many went.
    pub(crate) fn reclaim(&self, object: usize, from: u64, to: u64) -> u64 {
        vmscan::reclaim_range(self.env(), self.objects[object].mapping, 0, from, to)
    }

    /// Drops pages, dirty or not; returns how many went.
    pub(crate) fn discard(&self, object: usize, from: u64, to: u64) -> u64 {
        vmscan::discard_range(self.env(), self.objects[object].mapping, 0, from, to)
    }

    pub(crate) fn truncate(&self, object: usize, len_bytes: u64) {
        let o = self.objects[object];
        let old = truncate::i_size_write(o.mapping, len_bytes);
        if len_bytes >= old {
            return;
        }
        let (from, to) = (pages_of(len_bytes), pages_of(old));
        self.demote_over(object, from.saturating_sub(1), to);
        let left = truncate::truncate_pagecache(self.env(), o.mapping, 0, to);
        assert_eq!(left, 0, "nobody uses the pages past the end");
        let last = from.saturating_sub(1);
        if from > 0
            && let Ok(old) = self.word(object, last).try_pin(DIRTY)
        {
            o.mapping.account_dirtied(u64::from(!old.has(DIRTY)));
            let mut bytes = self.kernel.alias(object, last).expect("a pinned page is there");
            zero_tail(&mut bytes, last, len_bytes);
            self.kernel.set_alias(object, last, bytes);
            self.word(object, last).unpin();
        }
        lock(&o.store.content).truncate(len_bytes);
        // Linux drops private copies past the end.
        let mut guard = lock(&self.kernel.state);
        let s = &mut *guard;
        let vmas = s.vmas.clone();
        s.ptes.retain(|at, pte| {
            let v = vmas.iter().find(|v| (v.start..v.end).contains(at));
            !(matches!(pte, Entry::Private { .. }) && v.is_some_and(|v| v.object == object && v.pgoff_at(*at) >= from))
        });
    }

    /// Makes one access, resolving its traps by the real walk: the byte, or why not; with the bits of all traps.
    pub(crate) fn access(&self, ctx: &Ctx<'_>, addr: usize, store: Option<u8>) -> (Option<u8>, Option<VmFaultReason>) {
        let flags = if store.is_some() { FaultFlags::WRITE | FaultFlags::USER } else { FaultFlags::USER };
        let mut seen = None;
        let mut before = VmFaultReason::empty();
        for _ in 0..16 {
            if let Instruction::Done(byte) = self.kernel.run(addr, store) {
                return (Some(byte), seen);
            }
            let Some(r) = fault::resume_user_addr_fault(self.env(), ctx, addr, flags, before, false) else {
                return (None, Some(VmFaultReason::SIGSEGV));
            };
            before = if r.intersects(VmFaultReason::RETRY) { r } else { VmFaultReason::empty() };
            seen = Some(seen.unwrap_or_default() | r);
            if r.intersects(VmFaultReason::ERROR) {
                return (None, seen);
            }
        }
        panic!("{addr:#x}: sixteen traps and no progress, seen {seen:?}");
    }

    /// Reads one byte that must be readable.
    pub(crate) fn read(&self, addr: usize) -> u8 {
        let (byte, seen) = self.access(&Ctx::handler(0, false, 0, None), addr, None);
        byte.unwrap_or_else(|| panic!("{addr:#x}: {seen:?}"))
    }

    /// One trap, no more.
    pub(crate) fn fault(&self, addr: usize, flags: FaultFlags) -> VmFaultReason {
        let r = fault::do_user_addr_fault(self.env(), &Ctx::handler(0, false, 0, None), addr, flags);
        r.unwrap_or_else(|| panic!("no vma at {addr:#x}"))
    }

    /// Reads pages into the cache without a fault.
    pub(crate) fn populate(&self, object: usize, from: u64, to: u64) {
        let m = self.objects[object].mapping;
        for p in from..to {
            let claim = filemap::claim_run(m, p, p, p + 1).expect("room").expect("not cached yet");
            filemap::read_claimed(m, self, 0, claim).expect("the store is well");
        }
    }

    /// Puts cached pages on probation, past whatever queue they stand in: they are unmapped, and nobody misses them.
    pub(crate) fn put_on_probation(&self, object: usize, from: u64, to: u64) {
        let m = self.objects[object].mapping;
        for p in from..to {
            let word = self.word(object, p);
            word.try_unmap().expect("cached and idle");
            word.unpin();
            assert!(self.account.lru.probation.push(LruEntry::new(m.id, p, word.load()).0));
        }
    }

    /// Empties the queues of reclaim; returns the pages that they named, those of entries that are void left out.
    pub(crate) fn drain_queues(&self) -> Vec<(usize, u64)> {
        let lru = &self.account.lru;
        let mut named = Vec::new();
        for queue in [&lru.small, &lru.main, &lru.probation] {
            while let Some(entry) = queue.pop().map(LruEntry) {
                let object = entry.mapping_id() as usize;
                if entry.is_current(self.word(object, entry.pgoff()).load()) {
                    named.push((object, entry.pgoff()));
                }
            }
        }
        named.sort_unstable();
        named
    }

    /// The pages that are in the cache.
    pub(crate) fn cached(&self) -> Vec<(usize, u64)> {
        let of = |(id, o): (usize, &Object)| {
            let m = o.mapping;
            (0u64..).take(m.folios.len()).filter(move |p| m.is_cached(*p)).map(move |p| (id, p))
        };
        self.objects.iter().enumerate().flat_map(of).collect()
    }

    /// Runs what fillers would run.
    pub(crate) fn run_fillers(&self) {
        while let Some(claim) = lock(&self.queue).as_mut().and_then(VecDeque::pop_front) {
            fault::fill_here(self.env(), &Ctx::thread(1), claim);
        }
        while let Some(telling) = lock(&self.tellings).as_mut().and_then(VecDeque::pop_front) {
            fault::tell_here(self.env(), 1, telling);
        }
        while let Some(claim) = lock(&self.flushers).as_mut().and_then(VecDeque::pop_front) {
            vmscan::write_here(self.env(), 1, claim);
        }
    }

    /// Sets what sleeping does; by default the fillers run.
    pub(crate) fn set_sleep(&self, sleep: impl FnMut(WaitKey) -> Woken + Send + 'static) {
        *lock(&self.sleep) = Some(Box::new(sleep));
    }

    /// Has `f` run once, when a thread has left its section to do the work of its fault.
    pub(crate) fn set_outside(&self, f: impl FnOnce() + Send + 'static) {
        *lock(&self.outside) = Some(Box::new(f));
    }

    /// Checks what must hold whenever nothing is under way.
    pub(crate) fn check_quiescent(&self) {
        let mut cached = 0;
        let mut dirty = 0;
        for (id, o) in self.objects.iter().enumerate() {
            let mut in_chunk = vec![0u64; o.mapping.chunks.len()];
            for (p, word) in o.mapping.folios.iter().enumerate() {
                let w = word.load();
                assert_eq!(w.pins(), 0, "object {id} page {p} was left pinned: {w:?}");
                dirty += u64::from(w.is_mappable() && w.has(DIRTY));
                match w.state() {
                    State::Uptodate => in_chunk[p / EXTENT_PAGES] += 1,
                    State::Absent | State::Poisoned => {}
                    other => panic!("object {id} page {p} was left {other:?}"),
                }
            }
            for (i, chunk) in o.mapping.chunks.iter().enumerate() {
                assert_eq!(chunk.nr_uptodate(), in_chunk[i], "object {id}: the count of chunk {i}");
                assert_eq!(chunk.nr_native(), self.nr_native(o, i), "object {id}: native mappings of chunk {i}");
            }
            cached += in_chunk.iter().sum::<u64>();
            let users = o.mapping.users.load(Ordering::Relaxed);
            assert_eq!(users, 0, "object {id}: claims were left behind");
            let writers = o.mapping.nr_writers.load(Ordering::Relaxed);
            assert_eq!(writers, 0, "object {id}: claims for write-back were left behind");
        }
        assert_eq!(self.account.nr_pages.load(Ordering::Relaxed), cached, "pages charged to the cache");
        assert_eq!(self.account.nr_dirty.load(Ordering::Relaxed), dirty, "pages counted dirty");
        assert_eq!(self.account.nr_writeback.load(Ordering::Relaxed), 0, "pages counted in write-back");
        assert!(lock(&self.batch).is_some(), "the batch is back");
        assert_eq!(*lock(&self.staging), BTreeSet::from([0]), "the staging page is back in its pool");
    }

    fn nr_native(&self, o: &Object, chunk: usize) -> u64 {
        let over = |v: &Vma<'static>| {
            let first = (chunk * EXTENT_PAGES) as u64;
            let native = |e: &Extent| matches!(e.state(), ExtentState::Native | ExtentState::Tracked);
            core::ptr::eq(v.mapping, o.mapping)
                && (v.pgoff..v.pgoff_end()).contains(&first)
                && v.extent(v.address_of(first)).is_some_and(native)
        };
        lock(&self.vmas).iter().filter(|v| over(v)).count() as u64
    }

    /// The vmas as `(start, end, object, pgoff, flags)`.
    pub(crate) fn vmas(&self) -> Vec<(usize, usize, usize, u64, VmFlags)> {
        lock(&self.vmas).iter().map(|v| (v.start, v.end, v.mapping.id as usize, v.pgoff, v.flags)).collect()
    }
}

struct Mappings<'a> {
    objects: &'a [Object],
    vmas: &'a [Vma<'static>],
}

impl Rmap for Mappings<'_> {
    fn mapping(&self, id: u32) -> Option<&Mapping<'_>> {
        self.objects.get(id as usize).map(|o| o.mapping)
    }
    fn for_each_vma<'f>(&self, id: u32, which: Which, f: &mut (dyn FnMut(&Vma<'_>) + 'f)) {
        let shared = which == Which::Shared;
        let of = |v: &&Vma<'static>| v.mapping.id == id && v.flags.contains(VmFlags::SHARED) == shared;
        self.vmas.iter().filter(of).for_each(f);
    }
}

impl AddressSpace for World {
    fn with_vma<'f>(
        &self,
        address: usize,
        f: &mut (dyn FnMut(&Vma<'_>) -> VmFaultReason + 'f),
    ) -> Option<VmFaultReason> {
        lock(&self.vmas).iter().find(|v| (v.start..v.end).contains(&address)).map(f)
    }
    fn with_claim<'f>(&self, claim: &Claim, f: &mut (dyn FnMut(&Mapping<'_>) + 'f)) {
        let outside = lock(&self.outside).take();
        if let Some(outside) = outside {
            outside();
        }
        f(self.objects[claim.mapping_id() as usize].mapping);
    }
    fn with_telling<'f>(&self, telling: &Telling, f: &mut (dyn FnMut(&Delegation<'_>, &Mapping<'_>) + 'f)) {
        let found = lock(&self.vmas)
            .iter()
            .find_map(|v| v.delegation.filter(|d| d.id == telling.delegation_id()).map(|d| (d, v.mapping)));
        let (d, m) = found.expect("a telling keeps its delegation");
        f(d, m);
    }
    fn with_rmap<'f>(&self, f: &mut (dyn FnMut(&dyn Rmap) + 'f)) -> bool {
        f(&Mappings { objects: &self.objects, vmas: &lock(&self.vmas) });
        true
    }
    fn with_batch<'f>(&self, _cache: usize, f: &mut (dyn FnMut(&mut Batch) + 'f)) -> bool {
        let batch = lock(&self.batch).take();
        let Some(mut batch) = batch else { return false };
        f(&mut batch);
        *lock(&self.batch) = Some(batch);
        true
    }
    fn has_reclaim_from_before(&self, _cache: usize, _ticket: u64) -> bool {
        self.reclaims.load(Ordering::Relaxed)
    }
    fn have_sections_settled(&self) -> bool {
        lock(&self.sections).as_mut().is_none_or(|settled| settled())
    }
    fn get_staged(&self) -> Option<Staged> {
        lock(&self.staging).pop_first().map(Staged)
    }
    fn put_staged(&self, staged: Staged) {
        assert!(lock(&self.staging).insert(staged.0), "a staging page was given back twice");
    }
}

impl Park for World {
    fn wait(&self, _ctx: &Ctx<'_>, key: WaitKey, timeout_ns: u64) -> Woken {
        assert!(self.vmas.try_lock().is_ok(), "slept inside a section");
        let sleep = lock(&self.sleep).take();
        if let Some(mut sleep) = sleep {
            let woken = sleep(key);
            lock(&self.sleep).get_or_insert(sleep);
            // Who waits for ever does not time out.
            return if timeout_ns == u64::MAX { Woken::LookAgain } else { woken };
        }
        self.run_fillers();
        Woken::LookAgain
    }
    fn wake(&self, addr: usize) {
        // The bell goes with the cache, and that with its last object.
        let held = |o: &Object| o.mapping.users.load(Ordering::Relaxed) > 0;
        assert!(
            addr != self.account.bell_addr() || self.objects.iter().any(held),
            "the bell of a cache that may be gone"
        );
    }
    fn submit(&self, claim: Claim) -> Result<(), Claim> {
        match lock(&self.queue).as_mut() {
            Some(queue) => queue.push_back(claim),
            None => return Err(claim),
        }
        Ok(())
    }
    fn submit_telling(&self, telling: Telling) -> Result<(), Telling> {
        match lock(&self.tellings).as_mut() {
            Some(queue) => queue.push_back(telling),
            None => return Err(telling),
        }
        Ok(())
    }
    fn submit_writeback(&self, claim: Claim) -> Result<(), Claim> {
        match lock(&self.flushers).as_mut() {
            Some(queue) => queue.push_back(claim),
            None => return Err(claim),
        }
        Ok(())
    }
    fn relax(&self) {
        self.relaxed.fetch_add(1, Ordering::Relaxed);
    }
}
