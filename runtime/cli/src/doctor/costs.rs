//! What a fault on a page that is in the cache costs here, measured.

use crate::finding::Finding;
use crate::units::micros;
use softfault::{Delivery, Runtime};

/// Above this a fault takes many times what it should: something traces, emulates or throttles the process.
const SLOW_NS: u64 = 100_000;

pub(crate) fn look() -> Vec<Finding> {
    let modes = [Delivery::InThread, Delivery::Segv, Delivery::Monitor];
    // Without a runtime `delivery` says why.
    modes.into_iter().filter_map(|mode| measure(mode).map(|(delivery, total)| judge(mode, delivery, total))).collect()
}

/// Returns the medians of the delivery and of the handler, in nanoseconds; `None`: the mode cannot be had, or has no handler in the
/// thread that faults.
fn measure(mode: Delivery) -> Option<(u64, u64)> {
    // The histograms are a runtime's: each mode has one of its own.
    let runtime = Runtime::new().ok()?;
    if !runtime.delivery().is_available(mode) || runtime.measure_delivery(mode).ok()? == 0 {
        return None;
    }
    let stats = runtime.stats();
    Some((stats.stage("delivery")?.p50_ns, stats.stage("total")?.p50_ns))
}

fn judge(mode: Delivery, delivery: u64, total: u64) -> Finding {
    let (all, delivery, total) = (delivery + total, micros(delivery), micros(total));
    let says = format!(
        "{mode:?}: a cached page costs at most {} us: {delivery} to arrive, {total} in the handler",
        micros(all)
    );
    match all > SLOW_NS {
        false => Finding::ok(says),
        true => {
            Finding::note(says, "look for a tracer (strace, gdb), for an emulated kernel, or for a throttled group")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Level;

    #[test]
    fn a_fault_that_takes_far_too_long_is_remarked() {
        assert_eq!(judge(Delivery::InThread, 2_000, 4_500).level, Level::Ok);
        let slow = judge(Delivery::Segv, 90_000, 20_000);
        assert_eq!(slow.level, Level::Note);
        assert!(slow.says.contains("110.0 us"), "{slow:?}");
    }
}
