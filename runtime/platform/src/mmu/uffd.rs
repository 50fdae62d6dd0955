//! userfaultfd as the page table: CONTINUE installs, COPY places private pages, WRITEPROTECT protects.
//!
//! Features belong to a context, so there are at most three in a process: *async* (SIGBUS; the kernel notes first
//! stores), *sync* (SIGBUS; first stores fault) and *monitor* (messages). They are opened at first use and closed when
//! the last runtime goes.
//!
//! # Context: handler; what opens and closes contexts: control plane

use super::budget;
use crate::staging;
use crate::sys::uffd::{DONTWAKE, Filled, Uffd, bits};
use crate::sys::{Errno, mem, pagemap};
use core::sync::atomic::{AtomicPtr, Ordering};
use softfault_mm::ops::{Installed, Mmu, Prot, Pte, Staged, Zap};
use softfault_mm::page::PAGE_SIZE;

/// The page tables of arenas that are served by one userfaultfd context.
#[derive(Debug)]
pub struct UffdMmu {
    uffd: Uffd,
    kind: Kind,
    wp: bool,
}

/// What a context is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// SIGBUS in the faulting thread; first stores are noted by the kernel.
    Async,
    /// SIGBUS in the faulting thread; first stores fault.
    Sync,
    /// Messages to a monitor thread; also serves the kernel's own accesses.
    Monitor,
}

const BASE_FEATURES: u64 = bits::FEATURE_MISSING_SHMEM | bits::FEATURE_MINOR_SHMEM;
const WP_FEATURES: u64 = bits::FEATURE_PAGEFAULT_FLAG_WP | bits::FEATURE_WP_HUGETLBFS_SHMEM;

impl Kind {
    /// Returns the features a context of this kind needs, and those it uses where the kernel has them.
    ///
    /// # Context: handler
    #[must_use]
    pub const fn features(self) -> (u64, u64) {
        match self {
            Kind::Async => (BASE_FEATURES | bits::FEATURE_SIGBUS, WP_FEATURES | bits::FEATURE_WP_ASYNC),
            Kind::Sync => (BASE_FEATURES | bits::FEATURE_SIGBUS, WP_FEATURES),
            // Poison is how an access that fails gets its error; without it the thread would wait for ever.
            Kind::Monitor => (BASE_FEATURES | bits::FEATURE_POISON, WP_FEATURES | bits::FEATURE_WP_ASYNC),
        }
    }
    /// Returns the flags its descriptor is opened with.
    ///
    /// # Context: handler
    #[must_use]
    pub const fn open_flags(self) -> usize {
        match self {
            Kind::Monitor => 0,
            _ => bits::USER_MODE_ONLY,
        }
    }
}

impl UffdMmu {
    /// Opens a context.
    ///
    /// # Context: control plane
    ///
    /// # Errors
    /// `EPERM`, `ENOSYS`, or `EINVAL` where the kernel lacks a feature that the kind needs.
    pub fn open(kind: Kind) -> Result<Self, Errno> {
        let have = Uffd::probe(kind.open_flags())?;
        let (need, like) = kind.features();
        if have & need != need {
            return Err(Errno::EINVAL);
        }
        // Write protection comes whole or not at all: WP_ASYNC without the shmem feature would protect nothing.
        // CONTINUE_MODE_WP came between the two and has no feature bit: a kernel that knows WP_ASYNC knows it too.
        let whole = like | bits::FEATURE_WP_ASYNC;
        // And what the kernel notes must be found: without PAGEMAP_SCAN (or /proc) nobody would.
        let found = kind == Kind::Sync || pagemap::is_open();
        let like = if have & whole == whole && found { like } else { 0 };
        let wp = like & WP_FEATURES == WP_FEATURES;
        let uffd = Uffd::open(kind.open_flags(), need | like)?;
        if wp && kind != Kind::Sync {
            pagemap::learn(&uffd);
        }
        Ok(Self { uffd, kind, wp })
    }

    /// Returns whether first stores can be noted or faulted on here (since Linux 5.19, asynchronously since 6.7).
    /// Where they cannot, every page that may be stored to counts as dirty.
    ///
    /// # Context: handler
    #[must_use]
    pub fn has_wp(&self) -> bool {
        self.wp
    }

    /// Returns the context.
    ///
    /// # Context: handler
    #[must_use]
    pub fn uffd(&self) -> &Uffd {
        &self.uffd
    }

    /// Registers a fresh range: MISSING and MINOR always together, write protection where the mapping may be written.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// The kernel's.
    pub fn register(&self, addr: usize, len_bytes: usize, wp: bool) -> Result<(), Errno> {
        let wp = if wp && self.wp { bits::REGISTER_WP } else { 0 };
        self.uffd.register(addr, len_bytes, bits::REGISTER_MISSING | bits::REGISTER_MINOR | wp)
    }

    /// Takes a range back that was about to be handed to the kernel, and says why it was not. If that cannot be done either,
    /// nobody knows whose it is: it counts as handed over. That is safe both ways: its pages stay, what is written there
    /// counts as written (the kernel notes nothing that says otherwise), and a fault that comes to us after all is served.
    #[cold]
    fn keep_extents(&self, addr: usize, len_bytes: usize, why: Errno) -> Result<(), Installed> {
        match self.register(addr, len_bytes, true) {
            Ok(()) => Err(errno_to_installed(why)),
            Err(_) => Ok(()),
        }
    }

    fn dontwake(&self) -> u64 {
        // With the SIGBUS feature nobody ever waits.
        if self.kind == Kind::Monitor { 0 } else { DONTWAKE }
    }
}

/// Translates a fill ioctl's result for the walk.
fn installed(r: Filled) -> Installed {
    match r {
        Filled::All => Installed::All,
        Filled::Partial(bytes) => Installed::Partial(bytes / PAGE_SIZE),
        Filled::Again => Installed::Again,
        Filled::Exists => Installed::Exists,
        Filled::Err(Errno::ENOMEM) => Installed::NoMemory,
        Filled::Gone => Installed::Gone,
        // EFAULT: the page is pinned uptodate and yet not in the memfd. EINVAL, EIO and the rest: the range is ours and
        // the kernel refuses all the same. Running the instruction again would end here again.
        Filled::Err(_) => Installed::Broken,
    }
}

fn errno_to_installed(e: Errno) -> Installed {
    if e == Errno::ENOMEM { Installed::NoMemory } else { Installed::Gone }
}

impl Mmu for UffdMmu {
    #[inline]
    fn set_ptes(&self, addr: usize, nr: usize, prot: Prot) -> Installed {
        let wp = if prot.wp { bits::CONTINUE_MODE_WP } else { 0 };
        let r = self.uffd.cont(addr, nr * PAGE_SIZE, wp | self.dontwake());
        // The map is changing (a fork, say): once more, then leave it to the instruction.
        let r = if r == Filled::Again { self.uffd.cont(addr, nr * PAGE_SIZE, wp | self.dontwake()) } else { r };
        installed(r)
    }
    fn set_private(&self, addr: usize, staged: &Staged) -> Installed {
        installed(self.uffd.copy(addr, staging::address(staged), PAGE_SIZE, self.dontwake()))
    }
    fn unprotect(&self, addr: usize) -> Installed {
        match self.uffd.writeprotect(addr, PAGE_SIZE, false) {
            Ok(()) => Installed::All,
            Err(Errno::EAGAIN) => Installed::Again,
            Err(e) => errno_to_installed(e),
        }
    }
    fn wake(&self, addr: usize, nr: usize) {
        if self.kind == Kind::Monitor {
            self.uffd.wake(addr, nr * PAGE_SIZE);
        }
    }
    fn release_extents(&self, addr: usize, len_bytes: usize, tracked: bool) -> Result<(), Installed> {
        if let Err(e) = self.uffd.unregister(addr, len_bytes) {
            // Of several kernel mappings the first ones may be unregistered by now: they are ours again.
            return self.keep_extents(addr, len_bytes, e);
        }
        // UNREGISTER leaves MINOR and WP waiters asleep.
        self.wake(addr, len_bytes / PAGE_SIZE);
        if tracked {
            // Every page is marked dirty until this has happened: what is written in between is written back.
            // Re-registering with fewer modes without the UNREGISTER above would be a silent no-op.
            let r = self.uffd.register(addr, len_bytes, bits::REGISTER_WP);
            let r = r.and_then(|()| self.uffd.writeprotect(addr, len_bytes, true));
            if let Err(e) = r {
                return self.keep_extents(addr, len_bytes, e);
            }
        }
        Ok(())
    }
    fn take_extents(&self, addr: usize, len_bytes: usize, wp: bool, protect: bool) -> Result<(), Installed> {
        // Registering replaces the modes: without WP here, a range that was tracked would lose it, and installs that
        // ask for it would be refused for ever.
        self.register(addr, len_bytes, wp).map_err(errno_to_installed)?;
        if protect && self.wp {
            // What the kernel mapped while the extent was native is writable and silent: protect it.
            self.uffd.writeprotect(addr, len_bytes, true).map_err(errno_to_installed)?;
        }
        Ok(())
    }
    fn zap(&self, ranges: &[Zap]) -> bool {
        // SAFETY: the walk names ranges of shared mappings of published vmas, inside a section: pages stay cached.
        unsafe { mem::zap_ranges(ranges) }
    }
    fn map_huge(&self, addr: usize, len_bytes: usize) -> bool {
        // 25 us where the pages are huge already: the page table goes, if it maps nothing else (a private copy, say).
        // SAFETY: the caller keeps the range mapped, and its pages cached: the advice changes no byte.
        unsafe { mem::madvise(addr, len_bytes, mem::MADV_COLLAPSE) }.is_ok()
    }
    fn write_protect(&self, addr: usize, nr: usize) -> bool {
        let len = nr * PAGE_SIZE;
        if !self.wp {
            return false;
        }
        // Where the kernel makes no page tables for it, entries would stay as they are, and be written each time.
        if self.kind != Kind::Sync && pagemap::protects_empty() && pagemap::protect(addr, len).is_ok() {
            return true;
        }
        // By protecting everything; in between a store is noted nowhere only if the range is changing hands, and then
        // its pages are dirty and pinned.
        loop {
            match self.uffd.writeprotect(addr, len, true) {
                Err(Errno::EAGAIN) => {}
                r => return r.is_ok(),
            }
        }
    }
    fn write_unprotect(&self, addr: usize, nr: usize) -> bool {
        loop {
            match self.uffd.writeprotect(addr, nr * PAGE_SIZE, false) {
                Err(Errno::EAGAIN) => {}
                r => return r.is_ok(),
            }
        }
    }
    fn unprotected(&self, addr: usize, nr: usize, found: &mut dyn FnMut(usize, usize, Pte)) {
        let scanned = pagemap::each_unprotected(addr, nr * PAGE_SIZE, &mut |at, len, categories| {
            found(at, len / PAGE_SIZE, pte_of(categories));
        });
        if scanned.is_err() {
            // Nobody knows: everything counts as written.
            found(addr, nr, Pte::Written);
        }
    }
    fn maybe_written(&self, addr: usize, nr: usize, found: &mut dyn FnMut(usize, usize)) {
        let scanned = pagemap::each_written_or_empty(addr, nr * PAGE_SIZE, &mut |at, len| found(at, len / PAGE_SIZE));
        if scanned.is_err() {
            found(addr, nr);
        }
    }
    fn pte(&self, addr: usize) -> Pte {
        pagemap::look(addr).map_or(Pte::Written, pte_of)
    }
    fn pte_glanced(&self, addr: usize) -> Pte {
        pagemap::glance(addr).map_or(Pte::Written, pte_of)
    }
    fn asked(&self) -> u64 {
        pagemap::asked_by()
    }
    fn vouches(&self, asked: u64) -> bool {
        pagemap::vouches(asked)
    }
    fn charge_vmas(&self, delta: i64) -> bool {
        budget::charge(delta)
    }
}

/// An entry that is neither protected nor empty counts as written: of a page that is being migrated, too.
fn pte_of(categories: u64) -> Pte {
    let has = |c| categories & c != 0;
    match (has(pagemap::PAGE_IS_PRESENT), has(pagemap::PAGE_IS_SWAPPED), has(pagemap::PAGE_IS_WRITTEN)) {
        (false, false, _) => Pte::None,
        (_, _, true) => Pte::Written,
        (true, _, false) => Pte::Clean,
        (false, true, false) => Pte::Marker,
    }
}

/// Drops the page-table entries of a range (pages stay cached).
///
/// # Context: control plane
///
/// # Errors
/// The kernel's.
///
/// # Safety
/// The range is an arena's, shared: on a private mapping this destroys what was written.
pub unsafe fn zap(addr: usize, len_bytes: usize) -> Result<(), Errno> {
    // SAFETY: the caller's contract.
    match unsafe { mem::madvise(addr, len_bytes, mem::MADV_DONTNEED) } {
        // Under mlockall the plain advice is refused.
        // SAFETY: as above.
        Err(Errno::EINVAL) => unsafe { mem::madvise(addr, len_bytes, mem::MADV_DONTNEED_LOCKED) },
        r => r,
    }
}

static CONTEXTS: [AtomicPtr<UffdMmu>; 3] = [const { AtomicPtr::new(core::ptr::null_mut()) }; 3];

/// Returns the process's context of this kind, if it is open.
///
/// # Context: handler
#[must_use]
pub fn context(kind: Kind) -> Option<&'static UffdMmu> {
    // Acquire pairs with `set_context`.
    let ptr = CONTEXTS.get(kind as usize)?.load(Ordering::Acquire);
    // SAFETY: null, or set by `set_context` from a reference that outlives every arena of the context.
    unsafe { ptr.as_ref() }
}

/// Makes `mmu` the process's context of its kind, or forgets it.
///
/// # Context: control plane, under the caller's lock
pub fn set_context(kind: Kind, mmu: Option<&'static UffdMmu>) {
    if let Some(c) = CONTEXTS.get(kind as usize) {
        // Release pairs with `context`: who finds it finds it made.
        c.store(mmu.map_or(core::ptr::null_mut(), |m| core::ptr::from_ref(m).cast_mut()), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagemap::{PAGE_IS_PRESENT, PAGE_IS_SWAPPED, PAGE_IS_WRITTEN};

    #[test]
    fn clean_is_only_what_the_kernel_protects() {
        for (categories, want) in [
            (PAGE_IS_PRESENT, Pte::Clean),
            (PAGE_IS_PRESENT | PAGE_IS_WRITTEN, Pte::Written),
            (PAGE_IS_SWAPPED, Pte::Marker),
            // A page that is being migrated, and was stored to.
            (PAGE_IS_SWAPPED | PAGE_IS_WRITTEN, Pte::Written),
            (PAGE_IS_WRITTEN, Pte::None),
            (0, Pte::None),
        ] {
            assert_eq!(pte_of(categories), want, "{categories:#x}");
        }
    }
}
