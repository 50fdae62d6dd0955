//! `ArenaBuilder`: what an arena is to be, and its beginning.
//!
//! # Context: control plane

use super::set::VmaSet;
use super::state::{ArenaInner, table_bytes};
use super::{Arena, check, place};
use crate::cache::state::RuntimeInner;
use crate::delivery::Delivery;
use crate::error::{Error, Result, parent_only, system};
use crate::lease::Table;
use crate::masked;
use crate::process::registry;
use softfault_mm::extent::Extent;
use softfault_mm::page::{EXTENT_SHIFT, EXTENT_SIZE, PAGE_SIZE};
use softfault_mm::sync::{AtomicU64, Ordering};
use softfault_platform::sys::mem;
use softfault_platform::vmatree::{self, ArenaFacts, Trap};
use std::sync::{Arc, Mutex};

/// Options of an arena; see [`Runtime::arena`](crate::Runtime::arena).
#[derive(Debug)]
pub struct ArenaBuilder {
    rt: Arc<RuntimeInner>,
    len_bytes: usize,
    delivery: Delivery,
    kernel_access: bool,
    fault_around: bool,
    native_extents: bool,
    granule_bytes: usize,
    lookup_first: bool,
    capturable: bool,
    at: Option<usize>,
}

impl ArenaBuilder {
    pub(crate) fn new(rt: Arc<RuntimeInner>, len_bytes: usize) -> Self {
        Self {
            rt,
            len_bytes,
            delivery: Delivery::Auto,
            kernel_access: false,
            fault_around: true,
            native_extents: true,
            granule_bytes: EXTENT_SIZE,
            lookup_first: false,
            capturable: false,
            at: None,
        }
    }
    /// Asks for one way of delivery; default [`Delivery::Auto`].
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn delivery(mut self, mode: Delivery) -> Self {
        self.delivery = mode;
        self
    }
    /// Asks that system calls, `O_DIRECT` and KVM may touch the arena without [`Arena::pin`]: needs `Monitor`.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn kernel_access(mut self, yes: bool) -> Self {
        self.kernel_access = yes;
        self
    }
    /// Whether cached neighbours are mapped with a touched page; default yes.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn fault_around(mut self, yes: bool) -> Self {
        self.fault_around = yes;
        self
    }
    /// Whether fully cached extents are handed to the kernel on their own; default yes. [`Arena::promote`] does it on
    /// demand either way.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn native_extents(mut self, yes: bool) -> Self {
        self.native_extents = yes;
        self
    }
    /// Sets how much `Segv` delivery exposes at once (rounded to a power of two, 4 KiB to 2 MiB); default 2 MiB. Each
    /// exposed granule beside hidden ones costs kernel VMAs: 4 KiB granules over 256 MiB need 65,536.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn granule(mut self, bytes: usize) -> Self {
        self.granule_bytes = bytes.clamp(PAGE_SIZE, EXTENT_SIZE).next_power_of_two();
        self
    }
    /// Asks delegates before `fault` instead of by its `UFFD_MINOR` bit: the kernel's later design.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn lookup_first(mut self, yes: bool) -> Self {
        self.lookup_first = yes;
        self
    }

    /// Asks that captures can hold the stores of threads, so that these go on while the arena is captured. Default no.
    ///
    /// Then the first store to a page that is clean, or was protected by a capture, faults (6 to 7 us instead of 0.9), extents are
    /// handed to the kernel only where nobody may store, and while a capture is made a system call that stores to a page which it
    /// has protected fails with `EFAULT`: use [`Arena::pin`], or calls ([`Object::write_at`](crate::Object::write_at)). What goes
    /// to the pages past their protection (`O_DIRECT`, registered buffers, RDMA) must be at rest, or under a pin for writing, which
    /// a capture waits for. Needs `InThread` delivery; maps objects shared.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn capturable(mut self, yes: bool) -> Self {
        self.capturable = yes;
        self
    }

    /// Puts the arena at exactly this address, a multiple of 2 MiB, where nothing may be mapped yet. Linux:
    /// `MAP_FIXED_NOREPLACE`. Default: the kernel chooses.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn at(mut self, address: usize) -> Self {
        self.at = Some(address);
        self
    }

    /// Sets what is not the program's to choose, whatever it chose.
    pub(crate) fn placed(mut self, len_bytes: usize, at: Option<usize>) -> Self {
        (self.len_bytes, self.at) = (len_bytes, at);
        self
    }

    /// Reserves the address space and makes the arena known to the handlers.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::Delivery`] when the mode cannot be had, [`Error::Argument`] for no bytes or an address that is no multiple of
    /// 2 MiB, [`Error::AddressInUse`], [`Error::Exhausted`], [`Error::System`].
    #[expect(unsafe_code, reason = "publishes the arena to handlers")]
    pub fn build(self) -> Result<Arena> {
        let op = "ArenaBuilder::build";
        parent_only(op)?;
        let trap = self.choose()?;
        let len = self.len_bytes.checked_next_multiple_of(EXTENT_SIZE).filter(|l| *l > 0 && *l < 1 << 46);
        let len_bytes = len.ok_or(Error::Argument {
            op,
            arg: "len_bytes",
            value: self.len_bytes as u64,
            why: "must be between 1 byte and 64 TiB",
        })?;
        let nr = len_bytes >> EXTENT_SHIFT;
        let granules: Table<AtomicU64> = Table::new(vmatree::granule_words(nr)).map_err(system(op, "mmap"))?;
        let extents: Table<Extent> = Table::new(nr).map_err(system(op, "mmap"))?;
        if trap == Trap::Segv {
            registry::lock().bound_exposures();
        }
        let mut registry = registry::lock();
        #[cfg(feature = "userfaultfd")]
        place::open_contexts(&mut registry, trap, self.mode_of(trap))?;
        if self.capturable && !check::faults_on_first_store(trap) {
            let why = "capturable needs write protection that faults: Linux 6.7".into();
            return Err(Error::Delivery { mode: Delivery::InThread, why });
        }
        let slot = registry.arenas.get().ok_or_else(registry::exhausted(op, "arenas (32768)"))?;
        let base = place::reserve(self.at, len_bytes).inspect_err(|_| registry.arenas.put(slot))?;
        let facts = ArenaFacts { base, len_bytes, granules: granules.lend(), trap, stat: self.rt.stat };
        // SAFETY: the slot's number was free; the arena withdraws it before its range and tables go.
        unsafe { vmatree::publish_arena(slot, &facts) }.map_err(|e| {
            registry.arenas.put(slot);
            // SAFETY: reserved above, and nobody has seen it.
            let _ = unsafe { mem::munmap(base, len_bytes) };
            system(op, "mmap")(e)
        })?;
        drop(registry);
        self.rt.arena_table_bytes.fetch_add(table_bytes(nr), Ordering::Relaxed);
        let inner = ArenaInner {
            rt: Arc::clone(&self.rt),
            slot,
            base,
            len_bytes,
            trap,
            fault_around: self.fault_around,
            native_extents: self.native_extents && trap != Trap::Segv,
            granule_pages: if trap == Trap::Segv { self.granule_bytes / PAGE_SIZE } else { 0 },
            lookup_first: self.lookup_first,
            capturable: self.capturable,
            extents,
            _granules: granules,
            vmas: masked::Mutex::new(VmaSet::default()),
            owed: Mutex::new(Vec::new()),
            pid: std::process::id(),
        };
        Ok(Arena { inner: Arc::new(inner) })
    }

    /// Settles the mode, and looks at no other. Auto never gives `InThread` to an arena that wants kernel access.
    fn choose(&self) -> Result<Trap> {
        let findings = &self.rt.findings;
        let mode = match (self.delivery, self.kernel_access) {
            (Delivery::Auto | Delivery::InThread, false) if self.capturable => Delivery::InThread,
            (mode, _) if self.capturable => {
                let why = "capturable needs InThread: elsewhere stores are not held";
                return Err(Error::Delivery { mode, why: why.into() });
            }
            (Delivery::Auto, true) => findings.choose_for_kernel_access().unwrap_or(Delivery::Monitor),
            (Delivery::Auto, false) => findings.choose(),
            (Delivery::Monitor, _) => Delivery::Monitor,
            (mode, true) => {
                let why = "kernel_access needs Monitor: in this mode system calls on the arena would fail with EFAULT";
                return Err(Error::Delivery { mode, why: why.into() });
            }
            (mode, false) => mode,
        };
        let finding = findings.of(mode);
        if !finding.available {
            return Err(Error::Delivery { mode, why: finding.why });
        }
        Ok(match mode {
            Delivery::Segv => Trap::Segv,
            Delivery::Monitor => Trap::Monitor,
            Delivery::InThread | Delivery::Auto => Trap::Uffd,
        })
    }

    #[cfg(feature = "userfaultfd")]
    fn mode_of(&self, trap: Trap) -> Delivery {
        match trap {
            Trap::Uffd => Delivery::InThread,
            Trap::Segv => Delivery::Segv,
            Trap::Monitor => Delivery::Monitor,
        }
    }
}
