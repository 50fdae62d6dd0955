//! Which stream an access continues, and so which pages are read: the state of readahead. Linux: `struct file_ra_state`.
//!
//! What the kernel keeps in each `struct file` is kept for each object here, for [`NR_STREAMS`] streams: a mapping has
//! no file to its name. An access belongs to the stream that it continues; else it begins one in the place of the one
//! unused for longest.
//!
//! # Races
//! The words of a stream are written and read without any order. Two threads in one stream may lose one's update, or
//! see half of the other's: the window is then a wrong guess, cut to the object like any other. It costs reads, never
//! bytes: what may be claimed is decided by the folio words alone.
//!
//! # Differences
//! - Fault-around maps a marker along with its neighbours and counts that as the touch; the kernel leaves the page out,
//!   which costs a fault a window. So a window that was read around a miss, of whose stream nothing is known, has no
//!   marker: its own fault would set it off. The miss behind such a window makes the stream a sequential one.
//! - Streams that run down or in strides are recognised for faults as for reads.
//!
//! # Context: handler

use crate::readahead::{self, Ahead, Mode, NO_MARKER, Plan, RA_PAGES_MAX, Request, Window, pages};
// Not loom's, under loom either: nothing but a guess is decided by these words.
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Misses without hits after which only the faulting page is read. Linux: `MMAP_LOTSAMISS`.
pub const MMAP_LOTSAMISS: u32 = 100;
/// How many streams an object remembers.
pub const NR_STREAMS: usize = 8;
/// How many stops of a stride are read ahead at most.
pub const STOPS_MAX: u32 = 8;

/// How many accesses longer a stream that proved itself is kept than one that did not.
const PROVEN_BONUS: u64 = 64;

/// What is known of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Unused,
    /// One access, and what was read around it.
    Around,
    Forward,
    Reverse,
    Strided,
}

/// One look at a stream.
#[derive(Clone, Copy, Debug)]
struct Seen {
    kind: Kind,
    /// The window; of strides: the first stop read ahead, and how many.
    window: Window,
    /// Pages a stop.
    width: u32,
    /// The last page asked for, as far as it was noticed.
    prev: u64,
    /// From stop to stop; of other kinds: from the stream nearest when this one began.
    delta: i64,
}

/// A stream in words: `start`, `size | async_size | width | kind` (16 bits each), `prev`, `delta`, the time of its last
/// use.
#[derive(Debug, Default)]
struct Stream {
    start: AtomicU64,
    shape: AtomicU64,
    prev: AtomicU64,
    delta: AtomicU64,
    stamp: AtomicU64,
}

impl Stream {
    fn load(&self) -> Seen {
        let shape = self.shape.load(Ordering::Relaxed);
        let part = |i: u32| u32::try_from((shape >> (16 * i)) & 0xffff).unwrap_or(0);
        let kind = match part(3) {
            1 => Kind::Around,
            2 => Kind::Forward,
            3 => Kind::Reverse,
            4 => Kind::Strided,
            _ => Kind::Unused,
        };
        let start = self.start.load(Ordering::Relaxed);
        Seen {
            kind,
            window: Window { start, size: part(0), async_size: part(1) },
            width: part(2),
            prev: self.prev.load(Ordering::Relaxed),
            delta: self.delta.load(Ordering::Relaxed).cast_signed(),
        }
    }

    fn store(&self, s: &Seen, now: u64) {
        let part = |v: u32, i: u32| u64::from(v.min(0xffff)) << (16 * i);
        let kind = match s.kind {
            Kind::Unused => 0,
            Kind::Around => 1,
            Kind::Forward => 2,
            Kind::Reverse => 3,
            Kind::Strided => 4,
        };
        let shape = part(s.window.size, 0) | part(s.window.async_size, 1) | part(s.width, 2) | part(kind, 3);
        self.start.store(s.window.start, Ordering::Relaxed);
        self.shape.store(shape, Ordering::Relaxed);
        self.prev.store(s.prev, Ordering::Relaxed);
        self.delta.store(s.delta.cast_unsigned(), Ordering::Relaxed);
        self.stamp.store(now, Ordering::Relaxed);
    }
}

impl Stream {
    /// Returns when the stream was used last, plus what it earned by proving itself.
    fn age(&self) -> u64 {
        let bonus = if self.load().kind == Kind::Around { 0 } else { PROVEN_BONUS };
        let stamp = self.stamp.load(Ordering::Relaxed);
        if stamp == 0 { 0 } else { stamp.saturating_add(bonus) }
    }
}

impl Seen {
    /// Returns whether a miss goes on upwards: behind the last page, behind the window, or inside it where what was to
    /// be read ahead was not.
    fn goes_up(&self, rq: &Request) -> bool {
        let next = rq.index == self.window.end() || rq.index == self.prev.wrapping_add(1);
        match self.kind {
            Kind::Around => next,
            Kind::Forward => next || (rq.index > self.prev && rq.index < self.window.end()),
            _ => false,
        }
    }

    /// The mirror image.
    fn goes_down(&self, rq: &Request) -> bool {
        let end = rq.index.saturating_add(u64::from(rq.req));
        let next = end == self.window.start || end == self.prev;
        let small = rq.req <= rq.sync_max;
        match self.kind {
            Kind::Around => small && next,
            Kind::Reverse => small && (next || (rq.index < self.prev && rq.index >= self.window.start)),
            _ => false,
        }
    }

    /// Returns the page that sets the next window off, or [`NO_MARKER`].
    fn marker(&self) -> u64 {
        match self.kind {
            Kind::Forward => self.window.marker(),
            Kind::Reverse if self.window.async_size > 0 => {
                self.window.start.saturating_add(u64::from(self.window.async_size - 1))
            }
            Kind::Strided => self.window.start,
            _ => NO_MARKER,
        }
    }

    /// Returns the window for a miss that goes on with the stream, as a first or a further one.
    fn larger(&self, kind: Kind, rq: &Request, req: u32, max: u32) -> Window {
        let grown = if self.kind == kind { readahead::get_next_ra_size(self.window.size, max) } else { 0 };
        Window::sized(rq.index, req, readahead::get_init_ra_size(req, max).max(grown))
    }

    /// Returns how far a miss lies behind a stop of the stride.
    fn behind_stop(&self, rq: &Request) -> Option<u32> {
        let step = self.delta;
        if step.unsigned_abs() < 2 {
            return None;
        }
        if self.kind == Kind::Around {
            return (self.prev.checked_add_signed(step) == Some(rq.index)).then_some(0);
        }
        let off = i64::try_from(rq.index).ok()?.checked_sub(i64::try_from(self.window.start).ok()?)?;
        let reach = u64::from(self.window.size).saturating_add(2).saturating_mul(step.unsigned_abs());
        let behind = u32::try_from(off.checked_rem_euclid(step)?).ok()?;
        (self.kind == Kind::Strided && off.unsigned_abs() <= reach && behind < rq.sync_max).then_some(behind)
    }
}

/// The readahead state of one object. Linux: `struct file_ra_state`.
#[derive(Debug, Default)]
pub struct Readahead {
    streams: [Stream; NR_STREAMS],
    /// The largest window; 0: nothing is read ahead, a miss reads the aligned fill window.
    ra_pages: AtomicU32,
    /// [`Mode`], in this order.
    mode: AtomicU32,
    mmap_miss: AtomicU32,
    clock: AtomicU64,
    /// Nothing may be read that was not asked for.
    never: bool,
}

impl Readahead {
    /// Returns the state of an object none of whose windows exceeds `ra_pages`; 0: readahead is off.
    ///
    /// # Context: handler
    #[must_use]
    pub fn new(ra_pages: u32) -> Self {
        Self { ra_pages: AtomicU32::new(ra_pages.min(RA_PAGES_MAX)), ..Self::default() }
    }

    /// Returns the state of an object of which nothing may ever be read ahead: filling a page has effects.
    ///
    /// # Context: handler
    #[must_use]
    pub fn never() -> Self {
        Self { never: true, ..Self::default() }
    }

    /// Returns whether nothing may ever be read ahead.
    ///
    /// # Context: handler
    #[must_use]
    pub fn is_never(&self) -> bool {
        self.never
    }

    /// Returns whether anything is read ahead, or around what is missing.
    ///
    /// # Context: handler
    #[must_use]
    pub fn is_on(&self) -> bool {
        !self.never && self.ra_pages() > 0
    }

    /// Returns the largest window in pages; 0: off.
    ///
    /// # Context: handler
    #[must_use]
    pub fn ra_pages(&self) -> u32 {
        self.ra_pages.load(Ordering::Relaxed)
    }

    /// Says how the object is read.
    ///
    /// # Context: handler
    pub fn set_mode(&self, mode: Mode) {
        let mode = match mode {
            Mode::Normal => 0,
            Mode::Sequential => 1,
            Mode::Random => 2,
        };
        self.mode.store(mode, Ordering::Relaxed);
        self.mmap_miss.store(0, Ordering::Relaxed);
    }

    /// Returns how the object is said to be read.
    ///
    /// # Context: handler
    #[must_use]
    pub fn mode(&self) -> Mode {
        match self.mode.load(Ordering::Relaxed) {
            1 => Mode::Sequential,
            2 => Mode::Random,
            _ => Mode::Normal,
        }
    }

    /// Notes a page that was found in the cache.
    ///
    /// # Context: handler
    #[inline]
    pub fn note_hit(&self) {
        let misses = self.mmap_miss.load(Ordering::Relaxed);
        if misses > 0 {
            self.mmap_miss.store(misses - 1, Ordering::Relaxed);
        }
    }

    /// The largest window, given how it is read; 0: off. No smaller than what a miss reads anyway.
    fn max(&self, rq: &Request, mode: Mode) -> u32 {
        let max = self.ra_pages();
        if max == 0 || self.never {
            return 0;
        }
        let max = if mode == Mode::Sequential { max.saturating_mul(2) } else { max };
        max.max(rq.sync_max).min(RA_PAGES_MAX)
    }

    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }

    // Plain loops here and below: in debug builds every adapter of an iterator is a frame, on a signal stack.
    fn find(&self, f: impl Fn(&Seen) -> bool) -> Option<(&Stream, Seen)> {
        for stream in &self.streams {
            let seen = stream.load();
            if seen.kind != Kind::Unused && f(&seen) {
                return Some((stream, seen));
            }
        }
        None
    }

    /// Returns the stream that was unused for longest.
    fn victim(&self) -> &Stream {
        let [mut oldest, ..] = self.streams.each_ref();
        let mut age = u64::MAX;
        for stream in &self.streams {
            let now = stream.age();
            if now < age {
                (oldest, age) = (stream, now);
            }
        }
        oldest
    }

    /// Returns how far `index` lies from the nearest stream's last access.
    fn distance(&self, index: u64) -> i64 {
        let mut nearest = 0;
        for stream in &self.streams {
            let delta = index.wrapping_sub(stream.prev.load(Ordering::Relaxed)).cast_signed();
            let closer = nearest == 0 || delta.unsigned_abs() < i64::unsigned_abs(nearest);
            if stream.stamp.load(Ordering::Relaxed) > 0 && delta != 0 && closer {
                nearest = delta;
            }
        }
        nearest
    }

    /// Remembers an access that continues no stream: `start..end` was read for it.
    fn begin(&self, rq: &Request, start: u64, end: u64) {
        let window = Window { start, size: pages(start, end), async_size: 0 };
        let delta = self.distance(rq.index);
        self.victim().store(&Seen { kind: Kind::Around, window, width: 1, prev: rq.index, delta }, self.now());
    }

    /// Plans the read for a fault whose page is missing. Linux: `do_sync_mmap_readahead`.
    ///
    /// Where no stream is known, more than a fill window of cached pages in front of the miss is one all the same: it was
    /// forgotten among many others.
    ///
    /// # Context: handler
    pub fn sync_mmap(&self, rq: &Request, mode: Mode, cached: &dyn Fn(u64) -> bool) -> Plan {
        let max = self.max(rq, mode);
        if mode == Mode::Random {
            return Plan::just(rq.index, rq.index.saturating_add(1));
        }
        if max == 0 {
            return readahead::around(rq);
        }
        if mode == Mode::Sequential {
            let known = self.find(|s| s.goes_up(rq)).map(|(s, _)| s);
            return self.forward(known, rq, Window::initial(rq.index, max, max));
        }
        if let Some(plan) = self.continued(rq, rq.sync_max, max) {
            return plan;
        }
        if let Some(window) = behind(rq, rq.sync_max, max, cached) {
            return self.forward(None, rq, window);
        }
        let misses = self.mmap_miss.load(Ordering::Relaxed);
        if misses < MMAP_LOTSAMISS * 10 {
            self.mmap_miss.store(misses + 1, Ordering::Relaxed);
        }
        let plan = if misses > MMAP_LOTSAMISS {
            Plan::just(rq.index, rq.index.saturating_add(1))
        } else {
            readahead::around(rq)
        };
        self.begin(rq, plan.start, plan.end);
        Plan { is_miss: true, ..plan }
    }

    /// Plans the read for a call that found page `index` missing. Linux: `page_cache_sync_ra`.
    ///
    /// # Context: handler
    pub fn sync(&self, rq: &Request, mode: Mode, cached: &dyn Fn(u64) -> bool) -> Plan {
        let max = self.max(rq, mode);
        let plain = Plan::just(rq.index, rq.index.saturating_add(u64::from(rq.req.min(rq.sync_max))).min(rq.end));
        if mode == Mode::Random {
            return plain;
        }
        if max == 0 {
            return readahead::around(rq);
        }
        if let Some(plan) = self.continued(rq, rq.req, max) {
            return plan;
        }
        if rq.index == 0 || rq.req > max {
            return self.forward(None, rq, Window::initial(rq.index, rq.req, max));
        }
        if let Some(window) = behind(rq, rq.req, max, cached) {
            return self.forward(None, rq, window);
        }
        self.begin(rq, plain.start, plain.end);
        Plan { is_miss: true, ..plain }
    }

    /// Plans the read for a marker that was mapped or pinned. Linux: `page_cache_async_ra`.
    ///
    /// # Context: handler
    pub fn on_marker(&self, rq: &Request, mode: Mode, cached: &dyn Fn(u64) -> bool) -> Option<Ahead> {
        let max = self.max(rq, mode);
        if max == 0 || mode == Mode::Random {
            return None;
        }
        for stream in &self.streams {
            let seen = stream.load();
            if seen.kind != Kind::Unused && seen.marker() == rq.index {
                return self.go_on(stream, &seen, rq, max);
            }
        }
        self.resume(rq, max, cached)
    }

    /// The marker of a stream was met: its next window.
    fn go_on(&self, stream: &Stream, seen: &Seen, rq: &Request, max: u32) -> Option<Ahead> {
        // A stream of a sequential range has larger windows than its object.
        let max = max.max(seen.window.size);
        if seen.kind == Kind::Strided {
            let over = seen.delta.checked_mul(i64::from(seen.window.size))?;
            let first = rq.index.checked_add_signed(over)?;
            let nr = seen.window.size.saturating_mul(2).clamp(2, STOPS_MAX);
            return stops(stream, &Seen { prev: rq.index, ..*seen }, rq, first, nr, self.now());
        }
        let mut window = seen.window.next(max).cut(rq.end);
        let mut marker = window.start;
        if seen.kind == Kind::Reverse {
            let size = readahead::get_next_ra_size(seen.window.size, max).min(pages(rq.floor, seen.window.start));
            window = Window { start: seen.window.start.saturating_sub(u64::from(size)), size, async_size: size };
            marker = window.end().saturating_sub(1);
        }
        stream.store(&Seen { window, prev: rq.index, ..*seen }, self.now());
        Ahead::run(window.start, window.end(), marker)
    }

    /// A marker was met of which no stream knows: its window begins at the next missing page.
    fn resume(&self, rq: &Request, max: u32, cached: &dyn Fn(u64) -> bool) -> Option<Ahead> {
        let last = rq.index.saturating_add(u64::from(max)).min(rq.end.saturating_sub(1));
        let mut miss = rq.index.saturating_add(1);
        while miss <= last && cached(miss) {
            miss += 1;
        }
        if miss > last {
            return None;
        }
        let window = Window::resumed(rq.index, miss, rq.req, max).cut(rq.end);
        let seen = Seen { kind: Kind::Forward, window, width: 1, prev: rq.index, delta: 0 };
        self.victim().store(&seen, self.now());
        Ahead::run(window.start, window.end(), window.start)
    }

    /// Plans the read for a miss that continues a stream, which should ask for `req` pages.
    fn continued(&self, rq: &Request, req: u32, max: u32) -> Option<Plan> {
        if let Some((stream, seen)) = self.find(|s| s.goes_up(rq)) {
            return Some(self.forward(Some(stream), rq, seen.larger(Kind::Forward, rq, req, max)));
        }
        if let Some((stream, seen)) = self.find(|s| s.goes_down(rq)) {
            return Some(self.reverse(stream, rq, seen.larger(Kind::Reverse, rq, req, max)));
        }
        let (stream, seen) = self.find(|s| s.behind_stop(rq).is_some())?;
        Some(self.strided(stream, &seen, rq))
    }

    fn forward(&self, stream: Option<&Stream>, rq: &Request, window: Window) -> Plan {
        let window = window.cut(rq.end);
        let seen = Seen { kind: Kind::Forward, window, width: 1, prev: rq.index, delta: 0 };
        stream.unwrap_or_else(|| self.victim()).store(&seen, self.now());
        let now = window.size.saturating_sub(window.async_size).clamp(1, rq.sync_max.max(1));
        let end = rq.index.saturating_add(u64::from(now)).min(rq.end);
        let marker = if window.marker() < window.end() { window.marker() } else { NO_MARKER };
        Plan { marker, ahead: Ahead::run(end, window.end(), marker), ..Plan::just(rq.index, end) }
    }

    /// The mirror image of `window`, which begins at the miss: it ends with the pages asked for.
    fn reverse(&self, stream: &Stream, rq: &Request, window: Window) -> Plan {
        let end = rq.index.saturating_add(u64::from(rq.req)).min(rq.end);
        let size = window.size.min(pages(rq.floor, end));
        let now = window.size.saturating_sub(window.async_size).max(rq.req).min(size);
        let window = Window { start: end.saturating_sub(u64::from(size)), size, async_size: size - now };
        let seen = Seen { kind: Kind::Reverse, window, width: 1, prev: rq.index, delta: 0 };
        stream.store(&seen, self.now());
        let marker = window.start.saturating_add(u64::from(window.async_size));
        let marker = if window.async_size > 0 { marker - 1 } else { NO_MARKER };
        let start = end.saturating_sub(u64::from(now.min(rq.sync_max))).min(rq.index);
        Plan { marker, ahead: Ahead::run(window.start, start, marker), ..Plan::just(start, end) }
    }

    /// A miss at a stop, or a little behind it: the stops ahead are read, as wide as stops turned out to be.
    fn strided(&self, stream: &Stream, seen: &Seen, rq: &Request) -> Plan {
        let behind = seen.behind_stop(rq).unwrap_or(0);
        let width = if seen.kind == Kind::Strided { seen.width.max(1) } else { rq.req };
        let width = width.max(behind.saturating_add(rq.req)).min(rq.sync_max).max(1);
        let end = rq.index.saturating_add(u64::from(width.saturating_sub(behind).max(1))).min(rq.end);
        let plan = Plan::just(rq.index, end);
        let seen = Seen { kind: Kind::Strided, width, prev: rq.index, ..*seen };
        if behind > 0 {
            stream.store(&seen, self.now());
            return plan;
        }
        let Some(first) = rq.index.checked_add_signed(seen.delta) else { return plan };
        let nr = if seen.window.size <= STOPS_MAX { seen.window.size.max(2) } else { 2 };
        let ahead = stops(stream, &seen, rq, first, nr, self.now());
        Plan { ahead, ..plan }
    }
}

/// Returns the window for a miss behind cached pages, if they are more than `req`.
fn behind(rq: &Request, req: u32, max: u32, cached: &dyn Fn(u64) -> bool) -> Option<Window> {
    let mut contig = 0;
    while contig < max && u64::from(contig) < rq.index && cached(rq.index - u64::from(contig) - 1) {
        contig += 1;
    }
    Window::behind(rq.index, req, contig, u64::from(contig) == rq.index, max)
}

/// Reads `nr` stops from `first` on, as far as they lie in the object.
fn stops(stream: &Stream, seen: &Seen, rq: &Request, first: u64, nr: u32, now: u64) -> Option<Ahead> {
    let (mut inside, mut at) = (0, Some(first));
    while let Some(p) = at {
        if inside == nr.min(STOPS_MAX) || p < rq.floor || p.saturating_add(u64::from(seen.width)) > rq.end {
            break;
        }
        inside += 1;
        at = p.checked_add_signed(seen.delta);
    }
    let nr = inside;
    let window = Window { start: first, size: nr, async_size: nr };
    stream.store(&Seen { window, ..*seen }, now);
    (nr > 0).then_some(Ahead { start: first, nr, step: seen.delta, width: seen.width, marker: first })
}
