//! Event counters in `/proc/vmstat` names, one counter per reason bit, and the latency histogram of the walk's stages.
//!
//! Counters are striped by thread so that two faulting processors do not share a line; readers add the stripes up
//! without stopping anyone, so a snapshot is exact only when nothing runs, and never goes backwards.
//!
//! # Context: handler

// Not loom's, under loom either: nothing is decided by a counter, and two thousand of them would be all that a model
// sees. So they are constants' and statics' material in every build.
use core::sync::atomic::{AtomicU64, Ordering};

use crate::failures::Failure;
#[cfg(not(loom))]
use crate::failures::Failures;
use crate::types::VmFaultReason;

macro_rules! events {
    ($($(#[$doc:meta])* $id:ident = $name:literal;)*) => {
        /// What is counted. The names that Linux has are Linux's.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[expect(non_camel_case_types, reason = "vmstat item names, as the kernel spells them")]
        #[repr(usize)]
        pub enum Event { $($(#[$doc])* $id,)* }

        impl Event {
            /// Every event with its printed name, in printing order.
            pub const ALL: &[(Event, &'static str)] = &[$((Event::$id, $name),)*];
        }
    };
}

events! {
    /// Faults that reached the runtime.
    PGFAULT = "pgfault";
    /// Faults whose page came from the store.
    PGMAJFAULT = "pgmajfault";
    /// Faults whose page was in the cache.
    PGMINFAULT = "pgminfault";
    /// Entries into a trap handler, ours or not.
    HANDLER_ENTRY = "handler_entry";
    /// Faults handed to the previous handler.
    HANDLER_CHAINED = "handler_chained";
    /// Faults of a nested handler.
    HANDLER_NESTED = "handler_nested";
    /// Faults refused: on a helper thread, or nested too deep.
    HANDLER_REFUSED = "handler_refused";
    /// SIGSEGVs that a concurrent `protect` explains.
    FAULT_SPURIOUS = "fault_spurious";
    /// Pages mapped by `CONTINUE` (or exposed by protection) because they were touched.
    PGMAPPED = "pgmapped";
    /// Pages mapped around a touched one.
    PGMAPPED_AROUND = "pgmapped_around";
    /// Install ioctls made.
    MAP_CALLS = "map_calls";
    /// Installs that found the page mapped already.
    MAP_EEXIST = "map_eexist";
    /// Private copies made straight from the store.
    PGCOW_STAGED = "pgcow_staged";
    /// Pages filled from a store.
    PGPGIN = "pgpgin";
    /// Windows passed to the fillers.
    READAHEAD_WINDOWS = "readahead_windows";
    /// Pages passed to the fillers before anybody asked for them.
    READAHEAD_PAGES = "readahead_pages";
    /// Markers met, each of which sets the next window off.
    READAHEAD_HITS = "readahead_hits";
    /// Misses that continue no stream.
    MMAP_MISS = "mmap_miss";
    /// Fill requests made to stores.
    FILL_CALLS = "fill_calls";
    /// Pages that stores gave beside those that were wanted: they read whole blocks, and the others are cached, or had no room.
    FILL_DISCARDED = "fill_discarded";
    /// Fill requests that failed.
    FILL_ERRORS = "fill_errors";
    /// Faults that had to wait for a page that somebody else fills or evicts.
    FILL_WAITS = "fill_waits";
    /// Fills whose deadline passed while a thread waited.
    FILL_OVERDUE = "fill_overdue";
    /// Pages poisoned.
    PGPOISON = "pgpoison";
    /// Pages dropped from the cache.
    PGSTEAL = "pgsteal";
    /// Pages that reclaim took out of their mappings, to see whether they are missed.
    PGDEACTIVATE = "pgdeactivate";
    /// Pages that were missed in time, or held.
    PGACTIVATE = "pgactivate";
    /// Pages that came back soon after they were dropped.
    WORKINGSET_ACTIVATE = "workingset_activate";
    /// Faults and calls that had to make room by themselves.
    ALLOCSTALL = "allocstall";
    /// Pages looked at by them.
    PGSCAN_DIRECT = "pgscan_direct";
    /// Pages looked at by the background reclaimer.
    PGSCAN_KSWAPD = "pgscan_kswapd";
    /// Pages written to a store.
    PGPGOUT = "pgpgout";
    /// Write requests made to stores.
    WRITEBACK_CALLS = "writeback_calls";
    /// Write requests that failed.
    WRITEBACK_ERRORS = "writeback_errors";
    /// Pages that syncs looked at: those of the 2 MiB chunks in use, not of the whole object.
    WRITEBACK_SCAN = "writeback_scan_pages";
    /// Writers that waited because too many pages were dirty.
    BALANCE_DIRTY = "balance_dirty_pages";
    /// Flushes of stores.
    FLUSH_CALLS = "flush_calls";
    /// Flushes that failed.
    FLUSH_ERRORS = "flush_errors";
    /// Pages whose writes a failed flush lost.
    FLUSH_LOST = "flush_lost";
    /// Pages of exclusive objects that somebody discarded below them.
    EXCLUSIVE_DISCARDED = "exclusive_discarded";
    /// Minor faults told to a delegate.
    UFFD_MINOR_TOLD = "uffd_minor_told";
    /// Missing pages on a delegated range.
    UFFD_MISSING = "uffd_missing";
    /// Write-protection faults resolved.
    UFFD_WP = "uffd_wp";
    /// `page_mkwrite` calls.
    PAGE_MKWRITE = "page_mkwrite";
    /// Extents handed to the kernel.
    EXTENT_PROMOTE = "extent_promote";
    /// Extents taken back.
    EXTENT_DEMOTE = "extent_demote";
    /// Promotions given up (evictions under way, budget spent, page missing).
    EXTENT_PROMOTE_FAIL = "extent_promote_fail";
    /// Extents of images that are mapped from their file itself: their pages are neither in the cache nor under its limit.
    EXTENT_DIRECT = "extent_direct";
    /// Extents of images that could have been, and stayed as they are: a page of theirs was stored to, or pinned.
    EXTENT_DIRECT_LEFT = "extent_direct_left";
    /// Chunks that were made huge pages.
    THP_COLLAPSE_ALLOC = "thp_collapse_alloc";
    /// Collapses that the kernel refused.
    THP_COLLAPSE_ALLOC_FAILED = "thp_collapse_alloc_failed";
    /// Huge pages that were dropped in part, because a part of them was used.
    THP_SPLIT_PAGE = "thp_split_page";
    /// Huge pages that were dropped whole.
    THP_STEAL = "thp_steal";
    /// Extents over huge pages that stayed mapped page by page: part of them was stored to privately.
    THP_FAULT_FALLBACK = "thp_fault_fallback";
    /// Objects that were to have huge pages and cannot: their stores are noted page by page, or fault.
    THP_UNSUPPORTED = "thp_unsupported";
    /// Pages of images that were filled without a read: they are zero.
    IMAGE_ZERO_PAGES = "image_zero_pages";
    /// Pages of images that were read as they lie there.
    IMAGE_RAW_PAGES = "image_raw_pages";
    /// Pages of images that the faulting thread read by itself; they count among the two above, too.
    IMAGE_HERE_PAGES = "image_in_thread_pages";
    /// Pages of images that came out of frames.
    IMAGE_FRAME_PAGES = "image_frame_pages";
    /// Frames of images that were read, verified and decoded.
    IMAGE_FRAMES = "image_frames_decoded";
    /// Reads of images that failed: of a device, of a digest, of a table.
    IMAGE_ERRORS = "image_errors";
    /// Messages read by the monitor thread.
    MONITOR_MSG = "monitor_msg";
    /// Poison markers planted for system calls' sake.
    MONITOR_POISON = "monitor_poison";
}

/// How many kinds of event there are.
pub const NR_EVENTS: usize = Event::ALL.len();
/// How many bits of a reason have a counter of their own (bits 0 to 15).
pub const NR_REASONS: usize = 16;
/// log2 buckets of a stage's histogram, in clock ticks.
pub const NR_BUCKETS: usize = 40;
/// How many stripes the counters have.
pub const NR_STRIPES: usize = 8;

/// A stage of one fault, as the latency histogram knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Stage {
    /// From the touching instruction to the handler's first instruction (calibrated at start, not per fault).
    Delivery,
    /// Finding the vma.
    Lookup,
    /// Reading from the store.
    Fill,
    /// The walk inside the section, the install ioctl included.
    Map,
    /// The handler from entry to return.
    Total,
}

impl Stage {
    /// Every stage with its printed name.
    pub const ALL: &[(Stage, &'static str)] = &[
        (Stage::Delivery, "delivery"),
        (Stage::Lookup, "lookup"),
        (Stage::Fill, "fill"),
        (Stage::Map, "map"),
        (Stage::Total, "total"),
    ];
}

/// How many stages there are.
pub const NR_STAGES: usize = Stage::ALL.len();

#[expect(clippy::declare_interior_mutable_const, reason = "a template, copied, never shared")]
const ZERO: AtomicU64 = AtomicU64::new(0);

/// One stripe of counters.
#[repr(C, align(128))]
struct Stripe {
    events: [AtomicU64; NR_EVENTS],
    reasons: [AtomicU64; NR_REASONS],
    stages: [[AtomicU64; NR_BUCKETS]; NR_STAGES],
}

/// The statistics of one runtime. All-zero memory is a valid value.
#[repr(C)]
pub struct VmStat {
    stripes: [Stripe; NR_STRIPES],
    /// What went wrong last. Loom has a model of its own.
    #[cfg(not(loom))]
    pub failures: Failures,
}

impl core::fmt::Debug for VmStat {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("VmStat").field("pgfault", &self.event(Event::PGFAULT)).finish_non_exhaustive()
    }
}

impl Default for VmStat {
    fn default() -> Self {
        Self::new()
    }
}

impl VmStat {
    /// Returns counters at zero.
    ///
    /// # Context: handler
    #[must_use]
    pub const fn new() -> Self {
        #[expect(clippy::declare_interior_mutable_const, reason = "a template, copied, never shared")]
        const STRIPE: Stripe = Stripe {
            events: [ZERO; NR_EVENTS],
            reasons: [ZERO; NR_REASONS],
            stages: [const { [ZERO; NR_BUCKETS] }; NR_STAGES],
        };
        Self {
            stripes: [STRIPE; NR_STRIPES],
            #[cfg(not(loom))]
            failures: Failures::new(),
        }
    }

    /// Keeps a failure.
    ///
    /// # Context: handler
    pub fn record(&self, failure: &Failure<'_>) {
        #[cfg(not(loom))]
        self.failures.record(failure);
        #[cfg(loom)]
        let _ = failure;
    }

    /// Sets every counter to zero, for the next owner of the block.
    ///
    /// # Context: control plane
    pub fn reset(&self) {
        #[cfg(not(loom))]
        self.failures.reset();
        for s in &self.stripes {
            let stages = s.stages.iter().flatten();
            s.events.iter().chain(&s.reasons).chain(stages).for_each(|c| c.store(0, Ordering::Relaxed));
        }
    }

    fn stripe(&self, stripe: usize) -> Option<&Stripe> {
        self.stripes.get(stripe % NR_STRIPES)
    }

    /// Adds `n` to an event.
    ///
    /// # Context: handler
    #[inline]
    pub fn add(&self, stripe: usize, event: Event, n: u64) {
        if let Some(c) = self.stripe(stripe).and_then(|s| s.events.get(event as usize)) {
            c.fetch_add(n, Ordering::Relaxed);
        }
    }

    /// Counts each bit of `reason`.
    ///
    /// # Context: handler
    #[inline]
    pub fn reason(&self, stripe: usize, reason: VmFaultReason) {
        let Some(s) = self.stripe(stripe) else { return };
        let mut bits = reason.0 & 0xffff;
        while bits != 0 {
            if let Some(c) = s.reasons.get(bits.trailing_zeros() as usize) {
                c.fetch_add(1, Ordering::Relaxed);
            }
            bits &= bits - 1;
        }
    }

    /// Adds one observation of `ticks` to a stage.
    ///
    /// # Context: handler
    #[inline]
    pub fn stage(&self, stripe: usize, stage: Stage, ticks: u64) {
        let bucket = (u64::BITS - ticks.leading_zeros()) as usize;
        let bucket = if bucket < NR_BUCKETS { bucket } else { NR_BUCKETS - 1 };
        if let Some(c) = self.stripe(stripe).and_then(|s| s.stages.get(stage as usize)).and_then(|h| h.get(bucket)) {
            c.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns an event's count.
    ///
    /// # Context: handler
    #[must_use]
    pub fn event(&self, event: Event) -> u64 {
        self.sum(|s| s.events.get(event as usize))
    }

    /// Returns how often a reason bit was returned; for a mask of several bits, that of its lowest.
    ///
    /// # Context: handler
    #[must_use]
    pub fn reason_count(&self, bit: VmFaultReason) -> u64 {
        self.sum(|s| s.reasons.get(bit.0.trailing_zeros() as usize))
    }

    /// Returns the observations in bucket `bucket` (ticks in `2^(bucket-1) .. 2^bucket`) of a stage.
    ///
    /// # Context: handler
    #[must_use]
    pub fn bucket(&self, stage: Stage, bucket: usize) -> u64 {
        self.sum(|s| s.stages.get(stage as usize).and_then(|h| h.get(bucket)))
    }

    fn sum<'a>(&'a self, pick: impl Fn(&'a Stripe) -> Option<&'a AtomicU64>) -> u64 {
        self.stripes.iter().filter_map(pick).fold(0u64, |a, c| a.wrapping_add(c.load(Ordering::Relaxed)))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn stripes_add_up() {
        let s = VmStat::new();
        for stripe in 0..20 {
            s.add(stripe, Event::PGFAULT, 3);
            s.reason(stripe, VmFaultReason::MAJOR | VmFaultReason::RETRY);
        }
        assert_eq!(s.event(Event::PGFAULT), 60);
        assert_eq!(s.reason_count(VmFaultReason::MAJOR), 20);
        assert_eq!(s.reason_count(VmFaultReason::RETRY), 20);
        assert_eq!(s.reason_count(VmFaultReason::SIGBUS), 0);
    }

    #[test]
    fn every_duration_has_a_bucket() {
        let s = VmStat::new();
        for ticks in [0, 1, 2, 3, 1 << 20, u64::MAX] {
            s.stage(0, Stage::Map, ticks);
        }
        let all: u64 = (0..NR_BUCKETS).map(|b| s.bucket(Stage::Map, b)).sum();
        assert_eq!(all, 6);
        assert_eq!(s.bucket(Stage::Map, 2), 2, "2 and 3 share a bucket");
    }
}
