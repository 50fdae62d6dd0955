//! What is said of the numbers: each rule looks at a few, and says something or nothing.

use super::reading::Reading;
use crate::finding::Finding;
use crate::units::{bytes, count, micros, of_pages};

/// A rule, and what it is about.
type Rule = (&'static str, fn(&Reading) -> Option<Finding>);

const RULES: [Rule; 19] = [
    ("faults", faults),
    ("latency", latency),
    ("stores", store_errors),
    ("stores", lost),
    ("stores", overdue),
    ("cache", fullness),
    ("cache", refaults),
    ("cache", stalls),
    ("cache", no_memory),
    ("readahead", readahead),
    ("waits", fill_waits),
    ("writers", throttled),
    ("native", native),
    ("native", budget),
    ("huge", huge),
    ("images", images),
    ("signals", signals),
    ("signals", refused),
    ("files", files),
];

/// Says what every rule has to say, in their order.
pub(super) fn explain(r: &Reading) -> Vec<(&'static str, Finding)> {
    RULES.iter().filter_map(|(about, rule)| rule(r).map(|finding| (*about, finding))).collect()
}

/// Returns a share in percent; of nothing it is none.
fn percent(of: u64, all: u64) -> f64 {
    if all == 0 { 0.0 } else { 100.0 * of as f64 / all as f64 }
}

/// Returns a number, the word for so many, and the verb.
fn were(n: u64, word: &str) -> String {
    format!("{} {}", count(n, word), if n == 1 { "was" } else { "were" })
}

fn faults(r: &Reading) -> Option<Finding> {
    let (all, major) = (r.of("pgfault"), r.of("pgmajfault"));
    if all == 0 {
        return Some(Finding::note("there was no fault", "touch an arena of this runtime, then read its statistics"));
    }
    let (share, around) = (percent(major, all), r.of("pgmapped_around"));
    Some(Finding::ok(format!(
        "{}, {share:.1} % of them with a read; {around} neighbours were mapped with them",
        count(all, "fault")
    )))
}

fn latency(r: &Reading) -> Option<Finding> {
    let total = r.stage("total")?;
    let of = |name| r.stage(name).map(|l| format!(" {name} {},", micros(l.p50_ns))).unwrap_or_default();
    let parts: String = ["delivery", "lookup", "fill", "map"].map(of).concat();
    let (p50, p99) = (micros(total.p50_ns), micros(total.p99_ns));
    let says = format!(
        "half of the faults took at most {p50} us, 99 % at most {p99} us; medians:{}",
        parts.trim_end_matches(',')
    );
    let map = r.stage("map").map_or(0, |l| l.p99_ns);
    // A wait within the walk is a lock of the kernel's on the address space.
    match map > 1_000_000 {
        true => Some(Finding::note(
            says,
            "99 % of the walks take as long as 1 ms: others map and unmap much in this process meanwhile",
        )),
        false => Some(Finding::ok(says)),
    }
}

fn store_errors(r: &Reading) -> Option<Finding> {
    let (reads, writes, flushes) = (r.of("fill_errors"), r.of("writeback_errors"), r.of("flush_errors"));
    let all = reads + writes + flushes;
    (all > 0).then(|| {
        let says = format!(
            "stores have failed: {reads} reads, {writes} writes, {flushes} flushes; {} poisoned",
            count(r.of("pgpoison"), "page")
        );
        Finding::problem(says, "Runtime::recent_failures names the objects and what their stores said")
    })
}

fn lost(r: &Reading) -> Option<Finding> {
    let nr = r.of("flush_lost");
    (nr > 0).then(|| {
        let says = format!("failed flushes have lost what was written of {}", count(nr, "page"));
        Finding::problem(says, "write them again from what they were made of: what the disk has is not known")
    })
}

fn overdue(r: &Reading) -> Option<Finding> {
    let nr = r.of("fill_overdue");
    let mend = "look at the store: a network, a disk that sleeps; ObjectBuilder's deadline if it may take so long";
    (nr > 0).then(|| {
        Finding::problem(format!("{} took longer than the deadline while a thread waited", count(nr, "fill")), mend)
    })
}

fn fullness(r: &Reading) -> Option<Finding> {
    let (cached, limit) = (r.of("nr_cached_pages"), r.of("nr_cache_limit_pages"));
    (limit > 0).then(|| {
        let (has, may) = (bytes(of_pages(cached)), bytes(of_pages(limit)));
        Finding::ok(format!(
            "the cache holds {has} of {may} ({:.0} %), {} dirty",
            percent(cached, limit),
            bytes(of_pages(r.of("nr_dirty")))
        ))
    })
}

fn refaults(r: &Reading) -> Option<Finding> {
    let (dropped, back) = (r.of("pgsteal"), r.of("workingset_activate"));
    if dropped == 0 {
        return None;
    }
    let share = percent(back, dropped);
    let says = format!("{} dropped for others, {share:.0} % of them came back soon", were(dropped, "page"));
    match share >= 20.0 {
        true => Some(Finding::problem(
            says,
            "a higher cache_limit: what is in use does not fit; or Advice::Cold for what is read once",
        )),
        false => Some(Finding::ok(says)),
    }
}

fn stalls(r: &Reading) -> Option<Finding> {
    let (stalls, faults) = (r.of("allocstall"), r.of("pgfault"));
    let says = || format!("threads had to make room by themselves {}", count(stalls, "time"));
    let mend = "a higher cache_limit, or fewer threads that fill at once: the background reclaimer does not keep up";
    match percent(stalls, faults) {
        _ if stalls == 0 => None,
        share if share >= 1.0 => Some(Finding::problem(format!("{}, {share:.0} % of the faults", says()), mend)),
        _ => Some(Finding::ok(says())),
    }
}

fn no_memory(r: &Reading) -> Option<Finding> {
    let nr = r.reason("OOM");
    let mend = "a higher cache_limit, fewer pins, swap for anonymous objects (RuntimeBuilder::swap), a store that takes writes";
    (nr > 0).then(|| Finding::problem(format!("{} found no memory in the cache", count(nr, "fault")), mend))
}

fn readahead(r: &Reading) -> Option<Finding> {
    let (ahead, windows, hits) = (r.of("readahead_pages"), r.of("readahead_windows"), r.of("readahead_hits"));
    if ahead == 0 {
        return None;
    }
    let says = format!("{} read ahead in {}, {hits} of which were met", count(ahead, "page"), count(windows, "window"));
    match windows >= 100 && percent(hits, windows) < 10.0 {
        true => Some(Finding::note(says, "Advice::Random where reads are scattered, or a smaller readahead_pages")),
        false => Some(Finding::ok(says)),
    }
}

fn fill_waits(r: &Reading) -> Option<Finding> {
    let (waits, major) = (r.of("fill_waits"), r.of("pgmajfault"));
    (waits > 0).then(|| {
        let says = format!("{} waited for a page that somebody else was filling or evicting", count(waits, "fault"));
        match waits > major && waits >= 100 {
            true => Finding::note(
                says,
                "threads touch the same pages at once: populate them before, or record a working set",
            ),
            false => Finding::ok(says),
        }
    })
}

fn throttled(r: &Reading) -> Option<Finding> {
    let nr = r.of("balance_dirty_pages");
    let mend = "a faster store, more frequent syncs, or RuntimeBuilder::dirty_limits";
    (nr > 0).then(|| Finding::note(format!("writers waited {} because too much was dirty", count(nr, "time")), mend))
}

fn native(r: &Reading) -> Option<Finding> {
    let (up, down, failed) = (r.of("extent_promote"), r.of("extent_demote"), r.of("extent_promote_fail"));
    if up + failed == 0 {
        return None;
    }
    let says =
        format!("{} of 2 MiB handed to the kernel, {down} taken back, {failed} not handed over", count(up, "extent"));
    match down > up / 2 && up >= 16 {
        true => Some(Finding::note(says, "a higher cache_limit: extents that are evicted come back fault by fault")),
        false => Some(Finding::ok(says)),
    }
}

fn budget(r: &Reading) -> Option<Finding> {
    // Readings of other versions may not have it.
    let is_low = r.of("vma_budget_left") < 1024 && r.of("process_exposed_vmas_max") > 0;
    (is_low || r.of("process_exposed_vmas_hidden") > 0).then(|| {
        let says = format!(
            "{} left of the kernel's: {} were hidden again to make room",
            count(r.of("vma_budget_left"), "mapping"),
            r.of("process_exposed_vmas_hidden")
        );
        Finding::note(says, "sysctl -w vm.max_map_count=262144, or larger granules")
    })
}

fn huge(r: &Reading) -> Option<Finding> {
    let (made, refused, unable) =
        (r.of("thp_collapse_alloc"), r.of("thp_collapse_alloc_failed"), r.of("thp_unsupported"));
    if made + refused + unable == 0 {
        return None;
    }
    let says = format!(
        "{} made, {refused} refused by the kernel, {} cannot have any",
        count(made, "huge page"),
        count(unable, "object")
    );
    match unable > 0 || refused > made {
        true => Some(Finding::note(
            says,
            "huge_pages for read-only objects, or anonymous ones without swap; echo 1 > /proc/sys/vm/compact_memory",
        )),
        false => Some(Finding::ok(says)),
    }
}

fn images(r: &Reading) -> Option<Finding> {
    let (zero, raw, framed) = (r.of("image_zero_pages"), r.of("image_raw_pages"), r.of("image_frame_pages"));
    let errors = r.of("image_errors");
    let says = format!(
        "pages of images: {zero} zero, {raw} as they lie there, {framed} out of {}",
        count(r.of("image_frames_decoded"), "frame")
    );
    match errors {
        0 if zero + raw + framed == 0 => None,
        0 => Some(Finding::ok(says)),
        _ => Some(Finding::problem(
            format!("{says}; {} failed", count(errors, "read")),
            "softfault image verify says what is wrong with the image",
        )),
    }
}

fn signals(r: &Reading) -> Option<Finding> {
    let nr = r.of("nr_warnings");
    let mend = "Runtime::warnings names them; pthread_sigmask(3) with SIG_UNBLOCK";
    (nr > 0).then(|| {
        Finding::problem(
            format!("{} made or mapped something while it blocked SIGBUS or SIGSEGV", count(nr, "thread")),
            mend,
        )
    })
}

fn refused(r: &Reading) -> Option<Finding> {
    let (refused, chained) = (r.of("handler_refused"), r.of("process_handler_chained"));
    match (refused, chained) {
        (0, 0) => None,
        (0, _) => Some(Finding::note(
            format!("{} were not for an arena, and went to the handler before ours", count(chained, "signal")),
            "if the program has no handler of its own, look at who faults: Runtime::recent_failures",
        )),
        _ => Some(Finding::problem(
            format!("{} refused: on a thread of the runtime's own, or nested too deep", were(refused, "fault")),
            "stores and callbacks must not touch arenas of the same runtime",
        )),
    }
}

fn files(r: &Reading) -> Option<Finding> {
    let (lost, fallbacks) = (r.of("process_descriptors_lost"), r.of("process_direct_fallbacks"));
    match (lost, fallbacks) {
        (0, 0) => None,
        (0, _) => Some(Finding::note(
            format!("{} read through the kernel's cache, because direct I/O was not served", were(fallbacks, "file")),
            "softfault doctor FILE says whether its file system serves it",
        )),
        _ => Some(Finding::problem(
            format!("{} closed by the program, though they are the runtime's", were(lost, "descriptor")),
            "close what was opened, not every number: close_range(2) and loops over /proc/self/fd in libraries",
        )),
    }
}
