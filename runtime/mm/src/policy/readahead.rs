//! How much to read when a page is missing, and how much before anybody asks. Linux: `mm/readahead.c`.
//!
//! The kernel's formulas, numbers in, numbers out. Which stream an access belongs to is `streams`' to say, who claims the
//! pages is `filemap`, who passes them to the fillers `read_pages`.
//!
//! ```text
//!                |<----- async_size ---------|
//! |------------------- size -------------------|
//! |==================#===========================|
//! ^ start            ^ the marker: who maps or pins this page has the next window read
//! ```
//! A window is read in two parts: the one that the miss waits for, by who missed, and the rest by the fillers. A stream
//! that runs down is the mirror image: its marker is the last page of the part that was read ahead.
//!
//! # Context: handler

/// The largest window, in pages.
pub const RA_PAGES_MAX: u32 = 1 << 13;
/// No page: a window without a marker.
pub const NO_MARKER: u64 = u64::MAX;

/// How an object, or a range of an arena, is said to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Mode {
    /// Nothing is known: streams are recognised.
    #[default]
    Normal,
    /// In ascending order: windows of twice the size, from the first miss on.
    Sequential,
    /// In no order: what is asked for, and nothing else.
    Random,
}

/// One window: `size` pages from `start`, of which the last `async_size` lie behind the marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First page.
    pub start: u64,
    /// Pages.
    pub size: u32,
    /// Pages read before anybody asks for them.
    pub async_size: u32,
}

/// Returns the size of a stream's first window for an access of `req` pages. Linux: `get_init_ra_size`.
///
/// # Context: handler
#[must_use]
pub fn get_init_ra_size(req: u32, max: u32) -> u32 {
    let size = req.clamp(1, RA_PAGES_MAX).next_power_of_two();
    if size <= max / 32 {
        size.saturating_mul(4)
    } else if size <= max / 4 {
        size.saturating_mul(2)
    } else {
        max
    }
}

/// Returns the size of the window after one of `cur` pages. Linux: `get_next_ra_size`.
///
/// # Context: handler
#[must_use]
pub fn get_next_ra_size(cur: u32, max: u32) -> u32 {
    if cur < max / 16 {
        cur.saturating_mul(4)
    } else if cur <= max / 2 {
        cur.saturating_mul(2)
    } else {
        max
    }
}

impl Window {
    /// Returns the first window of a stream that begins at `index`.
    ///
    /// # Context: handler
    #[must_use]
    pub fn initial(index: u64, req: u32, max: u32) -> Self {
        Self::sized(index, req, get_init_ra_size(req, max))
    }

    /// Returns a window of `size` pages of which `req` are asked for.
    ///
    /// # Context: handler
    #[must_use]
    pub fn sized(index: u64, req: u32, size: u32) -> Self {
        Self { start: index, size, async_size: if size > req { size - req } else { size / 2 } }
    }

    /// Returns the window for a miss at `index` behind `contig` cached pages, which begin the object if
    /// `from_start`; `None`: no more than what is asked for is known, so it is a random access.
    ///
    /// # Context: handler
    #[must_use]
    pub fn behind(index: u64, req: u32, contig: u32, from_start: bool, max: u32) -> Option<Self> {
        if contig <= req {
            return None;
        }
        let contig = if from_start { contig.saturating_mul(2) } else { contig };
        Some(Self { start: index, size: contig.saturating_add(req).min(max), async_size: 1 })
    }

    /// Returns the window after this one, all of it read ahead.
    ///
    /// # Context: handler
    #[must_use]
    pub fn next(self, max: u32) -> Self {
        let size = get_next_ra_size(self.size, max);
        Self { start: self.start.saturating_add(u64::from(self.size)), size, async_size: size }
    }

    /// Returns the window for a marker at `index` of which no stream knows, `next_miss` being the next missing page.
    ///
    /// # Context: handler
    #[must_use]
    pub fn resumed(index: u64, next_miss: u64, req: u32, max: u32) -> Self {
        let known = u32::try_from(next_miss.saturating_sub(index)).unwrap_or(max);
        let size = get_next_ra_size(known.saturating_add(req), max);
        Self { start: next_miss, size, async_size: size }
    }

    /// Returns the page that sets the next window off.
    ///
    /// # Context: handler
    #[must_use]
    pub fn marker(self) -> u64 {
        self.start.saturating_add(u64::from(self.size.saturating_sub(self.async_size)))
    }

    /// Returns the page behind the last one.
    ///
    /// # Context: handler
    #[must_use]
    pub fn end(self) -> u64 {
        self.start.saturating_add(u64::from(self.size))
    }

    /// Cuts the window at `end`; the marker stays where it is.
    ///
    /// # Context: handler
    #[must_use]
    pub fn cut(self, end: u64) -> Self {
        let size = pages(self.start, self.end().min(end));
        let before_marker = pages(self.start, self.marker());
        Self { size, async_size: size.saturating_sub(before_marker), ..self }
    }
}

/// Returns how many pages `from..to` are, 0 if it runs backwards.
///
/// # Context: handler
#[must_use]
pub fn pages(from: u64, to: u64) -> u32 {
    u32::try_from(to.saturating_sub(from)).unwrap_or(RA_PAGES_MAX)
}

/// An access to the object.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Its first page: the missing one, or the marker.
    pub index: u64,
    /// How many pages are asked for, 1 at least.
    pub req: u32,
    /// How many of them one thread reads at once at most: the fill window, a power of two.
    pub sync_max: u32,
    /// The first page that may be read.
    pub floor: u64,
    /// The page behind the last one that may be read.
    pub end: u64,
}

/// Pages to be read by the fillers: `nr` runs of `width` pages, the first at `start`, each `step` pages behind the one
/// before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ahead {
    /// First page of the first run.
    pub start: u64,
    /// Runs.
    pub nr: u32,
    /// From run to run.
    pub step: i64,
    /// Pages a run.
    pub width: u32,
    /// The page that sets the next window off, or [`NO_MARKER`].
    pub marker: u64,
}

impl Ahead {
    /// Returns the one run `from..to`, unless it is empty.
    ///
    /// # Context: handler
    #[must_use]
    pub fn run(from: u64, to: u64, marker: u64) -> Option<Self> {
        (from < to).then(|| Self { start: from, nr: 1, step: 0, width: pages(from, to), marker })
    }

    /// Returns the pages `from..to` of run `i`.
    ///
    /// # Context: handler
    #[must_use]
    pub fn pages(&self, i: u32) -> Option<(u64, u64)> {
        let from = self.start.checked_add_signed(self.step.checked_mul(i64::from(i))?)?;
        (i < self.nr).then(|| (from, from.saturating_add(u64::from(self.width))))
    }
}

/// What one miss reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The first page that is read now.
    pub start: u64,
    /// The page behind the last one that is read now. The missing page lies between the two.
    pub end: u64,
    /// The page that sets the next window off, or [`NO_MARKER`].
    pub marker: u64,
    /// What the fillers read.
    pub ahead: Option<Ahead>,
    /// Nothing is known of this access: it counts as a miss.
    pub is_miss: bool,
}

impl Plan {
    /// Returns the read of `start..end` and nothing else.
    ///
    /// # Context: handler
    #[must_use]
    pub fn just(start: u64, end: u64) -> Self {
        Self { start, end, marker: NO_MARKER, ahead: None, is_miss: false }
    }
}

/// The aligned fill window around a miss.
///
/// # Context: handler
#[must_use]
pub fn around(rq: &Request) -> Plan {
    let window = u64::from(rq.sync_max.max(1));
    let start = rq.index & !(window - 1);
    Plan::just(start.max(rq.floor), start.saturating_add(window).min(rq.end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_the_kernels() {
        let init: Vec<u32> = [1, 2, 3, 8, 9, 32, 100].map(|req| get_init_ra_size(req, 32)).into();
        assert_eq!(init, [4, 4, 8, 16, 32, 32, 32], "get_init_ra_size at 128 KiB");
        assert_eq!(get_init_ra_size(1, 512), 4);
        assert_eq!(get_init_ra_size(17, 512), 64);
        let next: Vec<u32> = [1, 2, 4, 16, 17, 32].map(|cur| get_next_ra_size(cur, 32)).into();
        assert_eq!(next, [4, 4, 8, 32, 32, 32], "get_next_ra_size at 128 KiB");
    }

    #[test]
    fn the_first_windows_of_a_scan_by_single_pages() {
        let w = Window::initial(0, 1, 32);
        assert_eq!((w, w.marker()), (Window { start: 0, size: 4, async_size: 3 }, 1));
        let w = w.next(32);
        assert_eq!((w, w.marker()), (Window { start: 4, size: 8, async_size: 8 }, 4), "the marker is its first page");
        let sizes: Vec<u32> = std::iter::successors(Some(w), |w| Some(w.next(32))).take(4).map(|w| w.size).collect();
        assert_eq!(sizes, [8, 16, 32, 32]);
    }

    #[test]
    fn a_request_as_large_as_the_window_leaves_half_of_it_behind_the_marker() {
        let w = Window::initial(7, 32, 32);
        assert_eq!((w.size, w.async_size, w.marker()), (32, 16, 23));
    }

    #[test]
    fn what_is_cached_in_front_tells_a_stream_from_a_random_access() {
        assert_eq!(Window::behind(100, 4, 4, false, 32), None, "no longer than the request: random");
        assert_eq!(Window::behind(100, 4, 5, false, 32), Some(Window { start: 100, size: 9, async_size: 1 }));
        assert_eq!(Window::behind(8, 1, 8, true, 32).map(|w| w.size), Some(17), "twice, from the object's start");
        assert_eq!(Window::behind(100, 1, 90, false, 32).map(|w| w.size), Some(32));
    }

    #[test]
    fn a_marker_without_a_stream_goes_on_at_the_next_miss() {
        let w = Window::resumed(10, 14, 1, 32);
        assert_eq!(w, Window { start: 14, size: 10, async_size: 10 }, "next size of 4 known pages and the request");
    }

    #[test]
    fn a_cut_moves_no_marker() {
        let w = Window::initial(0, 8, 32).cut(12);
        assert_eq!((w.end(), w.marker(), w.async_size), (12, 8, 4));
        let w = Window::initial(0, 8, 32).cut(6);
        assert_eq!((w.end(), w.async_size), (6, 0), "its page is gone");
    }
}
