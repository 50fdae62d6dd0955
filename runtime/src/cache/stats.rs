//! A reading of the counters: `/proc/vmstat` names, one per reason bit, and the latency of the walk's stages.
//!
//! # Context: control plane

use super::state::RuntimeInner;
use crate::memory;
use softfault_mm::types::VmFaultReason;
use softfault_mm::vmstat::{Event, NR_BUCKETS, Stage};
use softfault_platform::area;
use softfault_platform::mmu::budget;
use softfault_platform::sys::thread;
use softfault_platform::trap::entry;
use std::fmt::{self, Write as _};
use std::ops::Index;
use std::sync::OnceLock;
use std::time::Instant;

/// The latency of one stage of a fault, from a sample of the faults.
#[derive(Clone, Debug, PartialEq)]
pub struct StageLatency {
    /// The stage's name.
    pub name: &'static str,
    /// Observations.
    pub count: u64,
    /// Median in nanoseconds, within a factor of two (the upper bound of its bucket).
    pub p50_ns: u64,
    /// 99th percentile, likewise.
    pub p99_ns: u64,
}

/// A reading of one runtime's counters. `Display` prints them as `/proc/vmstat` does; [`Stats::to_json`] as JSON.
///
/// Memory, in bytes: what the cache's limit bounds is `cache_bytes_allocated` (memfds) and the exclusive objects' frames.
/// On top of it come the runtime's tables, `folio_table_bytes` (a word a page, where objects lie), `queue_bytes` (the
/// queues of reclaim: what is touched of `queue_bytes_reserved`) and `arena_table_bytes` (a record per 2 MiB of arena), and
/// the kernel's page tables, which are known for the process only: `process_page_table_bytes`. While captures are made come the
/// frames for the bytes that stores have kept, as many as [`CaptureBuilder::budget`](crate::CaptureBuilder::budget) says:
/// `process_capture_frame_bytes`.
#[derive(Clone, PartialEq)]
pub struct Stats {
    /// Counters by name.
    pub counters: Vec<(&'static str, u64)>,
    /// How often each reason bit was returned by the walk.
    pub reasons: Vec<(&'static str, u64)>,
    /// Latency by stage.
    pub stages: Vec<StageLatency>,
}

impl Stats {
    /// Reads the counters of a runtime, and those of the process.
    pub(crate) fn read(rt: &RuntimeInner) -> Self {
        let mut counters: Vec<_> = Event::ALL.iter().map(|(e, name)| (*name, rt.stat.event(*e))).collect();
        let relaxed = std::sync::atomic::Ordering::Relaxed;
        counters.push(("nr_cached_pages", rt.account.nr_pages.load(relaxed)));
        counters.push(("nr_cache_limit_pages", rt.account.limit()));
        counters.push(("nr_dirty", rt.account.nr_dirty.load(relaxed)));
        counters.push(("nr_dirty_stuck", rt.account.nr_stuck.load(relaxed)));
        counters.push(("nr_writeback", rt.account.nr_writeback.load(relaxed)));
        counters.push(("nr_shmem_hugepages", rt.account.nr_huge.load(relaxed)));
        counters.push(("nr_inactive", rt.account.lru.small.len()));
        counters.push(("nr_active", rt.account.lru.main.len()));
        counters.push(("nr_probation", rt.account.lru.probation.len()));
        counters.push(("queue_bytes_reserved", rt.queue_bytes()));
        counters.push(("queue_bytes", rt.queue_bytes_resident()));
        counters.push(("folio_table_bytes", rt.folio_table_bytes()));
        counters.push(("arena_table_bytes", rt.arena_table_bytes.load(relaxed)));
        counters.push(("cache_bytes_allocated", rt.allocated_bytes()));
        counters.push(("nr_warnings", rt.warnings.list().len() as u64));
        counters.push(("cache_memfds", rt.nr_regions() as u64));
        counters.extend(rt.swap.iter().flat_map(crate::cache::swap::Swap::counters));
        counters.push(("process_direct_fallbacks", softfault_platform::store::direct::fallbacks()));
        counters.push(("process_opened_pages", crate::process::opened::close_now_and_then()));
        counters.push(("process_descriptors_lost", softfault_platform::sys::fd::lost()));
        counters.push(("process_buffer_bytes", softfault_platform::store::bounce::pool_bytes()));
        #[cfg(feature = "userfaultfd")]
        {
            let (mapped, free) = rt.frames.nr_pages();
            counters.push(("exclusive_frames", mapped + free));
            counters.push(("exclusive_pool_bytes", free << softfault_mm::page::PAGE_SHIFT));
        }
        counters.push(("process_small_fills_forced", u64::from(softfault_platform::thp::is_forced())));
        counters.extend(captures());
        counters.push(("process_mlock_pages", crate::process::mlock::nr_pages()));
        counters.push(("process_page_table_bytes", memory::page_table_bytes()));
        counters.push(("vma_budget_left", u64::try_from(budget::left()).unwrap_or(0)));
        counters.push(("process_exposed_vmas", u64::try_from(budget::exposed()).unwrap_or(0)));
        counters.push(("process_exposed_vmas_max", u64::try_from(budget::exposed_max()).unwrap_or(0)));
        counters.push(("process_exposed_vmas_hidden", budget::hidden()));
        counters.push(("process_handler_chained", entry::PROCESS_STAT.event(Event::HANDLER_CHAINED)));
        counters.push(("process_fault_signal_pending", softfault_platform::leave::nr_left()));
        counters.push(("process_handler_refused", entry::PROCESS_STAT.event(Event::HANDLER_REFUSED)));
        counters.push(("process_refusal_reasons", entry::refusals()));
        let single = |(_, bit): &&(&str, VmFaultReason)| bit.0.count_ones() == 1 && bit.0 < 1 << 16;
        let reasons = VmFaultReason::NAMES.iter().filter(single).map(|(n, b)| (*n, rt.stat.reason_count(*b)));
        let stages = Stage::ALL.iter().map(|(stage, name)| stage_latency(rt, *stage, name));
        Self { counters, reasons: reasons.collect(), stages: stages.collect() }
    }

    /// Returns what the text says of `name`: a counter, how often the walk returned a bit (`vm_fault_sigbus`), or the
    /// observations of a stage (`stage_total`); `None` if there is no such name. Some names come with what they count:
    /// those of a swap file, for instance.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn get(&self, name: &str) -> Option<u64> {
        self.find(name).copied()
    }

    fn find(&self, name: &str) -> Option<&u64> {
        let counter = || self.counters.iter().find(|(n, _)| *n == name).map(|(_, v)| v);
        let reason = || {
            let bit = name.strip_prefix("vm_fault_")?;
            self.reasons.iter().find(|(n, _)| n.to_lowercase() == bit).map(|(_, v)| v)
        };
        counter().or_else(reason).or_else(|| self.stage(name.strip_prefix("stage_")?).map(|s| &s.count))
    }

    /// Returns how often the walk returned `bit`.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn reason(&self, bit: VmFaultReason) -> u64 {
        let name = VmFaultReason::NAMES.iter().find(|(_, b)| *b == bit).map_or("", |(n, _)| n);
        self.reasons.iter().find(|(n, _)| *n == name).map_or(0, |(_, v)| *v)
    }

    /// Returns the latency of stage `name`.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn stage(&self, name: &str) -> Option<&StageLatency> {
        self.stages.iter().find(|s| s.name == name)
    }

    /// Returns everything as one JSON object.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut s = String::from("{");
        for (name, value) in &self.counters {
            let _ = write!(s, "\"{name}\":{value},");
        }
        s.push_str("\"reasons\":{");
        for (i, (name, value)) in self.reasons.iter().enumerate() {
            let _ = write!(s, "{}\"{name}\":{value}", if i == 0 { "" } else { "," });
        }
        s.push_str("},\"stages\":{");
        for (i, t) in self.stages.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            let _ = write!(
                s,
                "{comma}\"{}\":{{\"count\":{},\"p50_ns\":{},\"p99_ns\":{}}}",
                t.name, t.count, t.p50_ns, t.p99_ns
            );
        }
        s.push_str("}}");
        s
    }
}

/// `stats["pgfault"]`, for names that are known to be there.
///
/// # Panics
/// There is no such name: [`Stats::get`] asks.
impl Index<&str> for Stats {
    type Output = u64;

    fn index(&self, name: &str) -> &u64 {
        self.find(name).unwrap_or_else(|| panic!("there is no statistic named {name:?}"))
    }
}

impl fmt::Debug for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // This is what a person asks for first; `Display` prints all of it.
        let of = |name| self.get(name).unwrap_or_default();
        f.debug_struct("Stats")
            .field("pgfault", &of("pgfault"))
            .field("pgmajfault", &of("pgmajfault"))
            .field("nr_cached_pages", &of("nr_cached_pages"))
            .field("nr_dirty", &of("nr_dirty"))
            .field("counters", &self.counters.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.counters {
            writeln!(f, "{name} {value}")?;
        }
        for (name, value) in &self.reasons {
            writeln!(f, "vm_fault_{} {value}", name.to_lowercase())?;
        }
        for t in &self.stages {
            writeln!(f, "stage_{} count {} p50_ns {} p99_ns {}", t.name, t.count, t.p50_ns, t.p99_ns)?;
        }
        Ok(())
    }
}

/// What the captures of the process have done, and what they take.
fn captures() -> [(&'static str, u64); 6] {
    let (counts, relaxed) = (&area::COUNTS, std::sync::atomic::Ordering::Relaxed);
    [
        ("process_captures", counts.made.load(relaxed)),
        ("process_capture_held_ns", counts.held_ns.load(relaxed)),
        ("process_capture_saved_pages", counts.saved.load(relaxed)),
        ("process_capture_spilled_pages", counts.spilled.load(relaxed)),
        ("process_capture_walked_pages", counts.walked.load(relaxed)),
        ("process_capture_frame_bytes", area::frame_bytes()),
    ]
}

fn stage_latency(rt: &RuntimeInner, stage: Stage, name: &'static str) -> StageLatency {
    let buckets: Vec<u64> = (0..NR_BUCKETS).map(|b| rt.stat.bucket(stage, b)).collect();
    let count: u64 = buckets.iter().sum();
    let at = |q: f64| -> u64 {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a quantile of a count, between 0 and the count"
        )]
        let rank = (count as f64 * q).ceil() as u64;
        let mut seen = 0;
        for (b, n) in buckets.iter().enumerate() {
            seen += n;
            if *n > 0 && seen >= rank {
                return ticks_to_ns(1u64 << b.min(62));
            }
        }
        0
    };
    StageLatency { name, count, p50_ns: at(0.5), p99_ns: at(0.99) }
}

/// Converts clock ticks to nanoseconds, by a rate measured once.
pub(crate) fn ticks_to_ns(ticks: u64) -> u64 {
    static RATE: OnceLock<f64> = OnceLock::new();
    let rate = RATE.get_or_init(|| {
        let (t0, c0) = (Instant::now(), thread::rdtsc());
        while t0.elapsed().as_micros() < 2_000 {
            std::hint::spin_loop();
        }
        let ticks = thread::rdtsc().wrapping_sub(c0).max(1);
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let rate = t0.elapsed().as_nanos() as f64 / ticks as f64;
        rate
    });
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a duration for people"
    )]
    let ns = (ticks as f64 * rate) as u64;
    ns
}
