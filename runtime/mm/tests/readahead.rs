//! Readahead over a cache that is a set of pages: what is read, by whom, and how far that leads.
#![cfg(not(loom))]

use proptest::collection::vec;
use proptest::prelude::*;
use softfault_mm::readahead::{Ahead, Mode, NO_MARKER};
use softfault_mm::readahead::{Request, Window};
use softfault_mm::streams::{MMAP_LOTSAMISS, Readahead, STOPS_MAX};
use std::collections::BTreeSet;

const FILL_WINDOW: u32 = 16;
const RA_PAGES: u32 = 32;

/// An object with nothing but pages that are cached and pages that are marked.
struct Cache {
    ra: Readahead,
    mode: Mode,
    nr: u64,
    cached: BTreeSet<u64>,
    marked: BTreeSet<u64>,
    /// Reads that an access waited for, as (first, pages).
    waited: Vec<(u64, u64)>,
    /// Pages that the fillers read.
    ahead: u64,
    windows: Vec<Ahead>,
}

impl Cache {
    fn new(nr: u64) -> Self {
        Self {
            ra: Readahead::new(RA_PAGES),
            mode: Mode::Normal,
            nr,
            cached: BTreeSet::new(),
            marked: BTreeSet::new(),
            waited: Vec::new(),
            ahead: 0,
            windows: Vec::new(),
        }
    }
    fn request(&self, index: u64, req: u32) -> Request {
        Request { index, req, sync_max: FILL_WINDOW, floor: 0, end: self.nr }
    }
    fn add(&mut self, from: u64, to: u64, marker: u64) -> u64 {
        assert!(from < to && to <= self.nr, "{from}..{to} leaves the object of {} pages", self.nr);
        let new: Vec<u64> = (from..to).filter(|p| self.cached.insert(*p)).collect();
        self.marked.extend(new.iter().filter(|p| **p == marker));
        new.len() as u64
    }
    fn submit(&mut self, ahead: Option<Ahead>) {
        let Some(ahead) = ahead else { return };
        self.windows.push(ahead);
        assert!(ahead.nr > 0 && ahead.width > 0 && ahead.nr <= STOPS_MAX, "{ahead:?}");
        let mut inside = ahead.marker == NO_MARKER;
        for (from, to) in (0..ahead.nr).map(|i| ahead.pages(i).expect("a run of its own")) {
            inside |= (from..to).contains(&ahead.marker) || self.marked.contains(&ahead.marker);
            self.ahead += self.add(from, to, ahead.marker);
        }
        assert!(inside || self.cached.contains(&ahead.marker), "the marker lies in what was planned: {ahead:?}");
        assert_eq!(ahead.pages(ahead.nr), None);
    }
    /// Touches a page by a fault, or by a call for the first of `req` pages.
    fn touch(&mut self, p: u64, req: Option<u32>) {
        let rq = self.request(p, req.unwrap_or(1));
        if self.cached.contains(&p) {
            self.ra.note_hit();
            if self.marked.remove(&p) {
                let ahead = self.ra.on_marker(&rq, self.mode, &|p| self.cached.contains(&p));
                self.submit(ahead);
            }
            return;
        }
        let plan = match req {
            None => self.ra.sync_mmap(&rq, self.mode, &|p| self.cached.contains(&p)),
            Some(_) => self.ra.sync(&rq, self.mode, &|p| self.cached.contains(&p)),
        };
        assert!((plan.start..plan.end).contains(&p), "page {p} is not in its own read: {plan:?}");
        assert!(
            plan.end - plan.start <= u64::from(FILL_WINDOW),
            "nobody waits for more than the fill window: {plan:?}"
        );
        self.waited.push((p, plan.end - plan.start));
        self.add(plan.start, plan.end, plan.marker);
        self.submit(plan.ahead);
    }
    fn read_pages(&self) -> u64 {
        self.cached.len() as u64
    }
}

#[test]
fn a_scan_by_faults_waits_twice_and_streams_then() {
    let mut c = Cache::new(4096);
    (0..4096).for_each(|p| c.touch(p, None));
    assert_eq!(c.waited, [(0, 16), (16, 16)], "the second miss makes it a stream; after that the fillers are ahead");
    assert!(c.windows[1..c.windows.len() - 1].iter().all(|w| w.width == RA_PAGES), "full windows: {:?}", c.windows);
    assert_eq!(c.read_pages(), 4096);
}

#[test]
fn a_scan_by_calls_has_the_kernels_windows() {
    let mut c = Cache::new(4096);
    (0..4096).for_each(|p| c.touch(p, Some(1)));
    assert_eq!(c.waited, [(0, 1)], "the first window is read from the first page on");
    let kernel = [(1, 3, 1), (4, 8, 4), (12, 16, 12), (28, 32, 28), (60, 32, 60)];
    let ours: Vec<_> = c.windows.iter().take(5).map(|w| (w.start, w.width, w.marker)).collect();
    assert_eq!(ours, kernel, "start, pages, marker");
}

#[test]
fn a_sequential_range_begins_with_the_largest_window() {
    let mut c = Cache::new(4096);
    c.mode = Mode::Sequential;
    (0..4096).for_each(|p| c.touch(p, None));
    assert_eq!(c.waited, [(0, 16)]);
    assert!(c.windows.iter().skip(1).all(|w| w.width == 2 * RA_PAGES || w.start + u64::from(w.width) == 4096));
}

#[test]
fn a_random_range_reads_what_is_touched() {
    for req in [None, Some(3)] {
        let mut c = Cache::new(4096);
        c.mode = Mode::Random;
        (0..1000).for_each(|i| c.touch(i * 4, req));
        assert_eq!((c.read_pages(), c.ahead), (1000 * u64::from(req.unwrap_or(1)), 0));
    }
}

#[test]
fn off_is_the_aligned_fill_window() {
    let mut c = Cache { ra: Readahead::new(0), ..Cache::new(100) };
    [37, 99].into_iter().for_each(|p| c.touch(p, None));
    assert_eq!(c.cached, (32..48).chain(96..100).collect());
    assert!(c.ra.mode() == Mode::Normal && !c.ra.is_on() && !Readahead::never().is_on());
}

#[test]
fn two_scans_side_by_side_are_two_streams() {
    let mut c = Cache::new(1 << 16);
    for i in 0..2000 {
        c.touch(i, None);
        c.touch(20_000 + i, None);
        c.touch(60_000 - i, None);
    }
    assert!(c.waited.len() <= 6, "each waits twice: {:?}", c.waited);
}

#[test]
fn a_stream_survives_random_accesses_around_it() {
    let mut c = Cache::new(1 << 20);
    let mut x = 12345u64;
    for i in 0..2000 {
        c.touch(i, None);
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        c.touch(10_000 + (x >> 20) % 1_000_000, None);
    }
    let waits = c.waited.iter().filter(|(p, _)| *p < 2000).count();
    assert!(waits <= 4, "the scan waited {waits} times");
}

fn accesses() -> impl Strategy<Value = Vec<(u64, u32, u64, bool)>> {
    // Start, how many, from one to the next, and whether by calls.
    vec((0..2000u64, 1..60u32, 0..70u64, any::<bool>()), 1..20)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 50 } else { 1000 }))]

    #[test]
    fn windows_never_leave_the_object(nr in 1..2000u64, runs in accesses(), drop_every in 1..50u64) {
        let mut c = Cache::new(nr);
        for (start, count, step, by_call) in runs {
            for i in 0..u64::from(count) {
                // `add` and `submit` check every window.
                let p = if start % 2 == 0 { start + i * step } else { (start + nr * step).wrapping_sub(i * step) };
                c.touch(p % nr, by_call.then_some(1 + u32::try_from(start % 40).unwrap_or(0)));
                if i % drop_every == 0 {
                    c.cached.pop_first();
                }
            }
        }
    }

    #[test]
    fn scans_converge_to_the_largest_window(start in 0..1000u64, by_call: bool, req in 1..8u32) {
        let mut c = Cache::new(5000);
        (start..5000).for_each(|p| c.touch(p, by_call.then_some(req)));
        prop_assert!(c.waited.len() <= 3, "{:?}", c.waited);
        let settled = c.windows.iter().skip(5).all(|w| w.width == RA_PAGES || w.start + u64::from(w.width) == 5000);
        prop_assert!(settled, "{:?}", c.windows);
        prop_assert!(c.windows.iter().skip(1).all(|w| w.marker == w.start), "a window read ahead is marked at its start");
    }

    #[test]
    fn descending_scans_are_streams(start in 500..5000u64, by_call: bool) {
        let mut c = Cache::new(5000);
        (0..start).rev().for_each(|p| c.touch(p, by_call.then_some(1)));
        prop_assert!(c.waited.len() <= 3, "{:?}", c.waited);
        let full = c.windows.iter().filter(|w| w.width == RA_PAGES).count();
        prop_assert!(full as u64 + 6 >= start / u64::from(RA_PAGES), "{:?}", c.windows);
    }

    #[test]
    fn strides_are_recognised(start in 0..100u64, step in 40..400u64, down: bool) {
        let mut c = Cache::new(100_000);
        let stops: Vec<u64> = (0..200).map(|i| start + i * step).collect();
        let order: Vec<u64> = if down { stops.into_iter().rev().collect() } else { stops };
        order.iter().for_each(|p| c.touch(*p, None));
        prop_assert!(c.waited.len() <= 4, "{:?}", c.waited);
        prop_assert!(c.read_pages() <= 200 + 2 * u64::from(FILL_WINDOW) + u64::from(STOPS_MAX) * 2, "{}", c.read_pages());
    }

    #[test]
    fn wide_stops_are_read_whole(step in 40..400u64, width in 2..8u64) {
        let mut c = Cache::new(100_000);
        for i in 0..100 {
            (0..width).for_each(|j| c.touch(i * step + j, None));
        }
        prop_assert!(c.waited.len() <= 40, "{:?}", c.waited);
        prop_assert!(c.read_pages() <= 100 * 2 * width + 600, "{} pages for {width} a stop", c.read_pages());
    }

    #[test]
    fn random_faults_settle_on_one_page(seed: u64) {
        let mut c = Cache::new(1 << 24);
        let mut x = seed | 1;
        let mut next = || {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 8) % (1 << 24)
        };
        (0..2 * MMAP_LOTSAMISS).for_each(|_| c.touch(next(), None));
        let (pages, waits) = (c.read_pages(), c.waited.len());
        (0..1000).for_each(|_| c.touch(next(), None));
        let each = (c.read_pages() - pages) as f64 / (c.waited.len() - waits).max(1) as f64;
        prop_assert!(each < 1.1, "{each} pages a miss");
    }

    #[test]
    fn markers_lie_where_the_kernel_puts_them(index in 0..1000u64, req in 1..64u32, max in 1..128u32) {
        let w = Window::initial(index, req, max);
        let asked = if w.size > req { u64::from(req) } else { u64::from(w.size - w.size / 2) };
        prop_assert_eq!(w.marker(), index + asked);
        let n = w.next(max);
        prop_assert_eq!((n.start, n.marker()), (w.end(), w.end()));
    }
}
