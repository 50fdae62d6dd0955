//! Watching the cache while the program works: samples for the picture, and a line of progress.

use crate::bytes::to_mib;
use crate::units::{PAGE, hit_rate};
use softfault::Runtime;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// From sample to sample.
const TICK: Duration = Duration::from_millis(4);
/// From line to line, on a terminal and elsewhere.
const LINE_TICKS: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Count,
    Scatter,
    Sort,
    Sync,
}

impl Phase {
    pub(crate) const ALL: [(Self, &'static str); 4] =
        [(Self::Count, "count"), (Self::Scatter, "scatter"), (Self::Sort, "sort"), (Self::Sync, "sync")];

    pub(crate) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(p, _)| *p == self).map_or("", |(_, name)| name)
    }
}

/// How far the work is, as the threads that do it say.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    phase: AtomicUsize,
    done: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    pub(crate) fn begin(&self, phase: Phase, total: usize) {
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total as u64, Ordering::Relaxed);
        self.phase.store(phase as usize, Ordering::Relaxed);
    }
    pub(crate) fn add(&self, nr: usize) {
        self.done.fetch_add(nr as u64, Ordering::Relaxed);
    }
    pub(crate) fn end(&self) {
        self.done.store(self.total.load(Ordering::Relaxed), Ordering::Relaxed);
    }
    fn phase(&self) -> Phase {
        Phase::ALL.get(self.phase.load(Ordering::Relaxed)).map_or(Phase::Count, |(p, _)| *p)
    }
    fn percent(&self) -> u64 {
        let total = self.total.load(Ordering::Relaxed).max(1);
        (self.done.load(Ordering::Relaxed) * 100 / total).min(100)
    }
}

/// One look at the runtime.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) at: Duration,
    pub(crate) phase: Phase,
    pub(crate) faults: u64,
    pub(crate) major: u64,
    pub(crate) cached_bytes: u64,
    pub(crate) dirty_bytes: u64,
    pub(crate) allocated_bytes: u64,
}

/// Everything that was seen.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) samples: Vec<Sample>,
}

impl Seen {
    pub(crate) fn took(&self) -> Duration {
        self.samples.last().map_or(Duration::ZERO, |s| s.at)
    }

    pub(crate) fn peak(&self, of: impl Fn(&Sample) -> u64) -> u64 {
        self.samples.iter().map(of).max().unwrap_or(0)
    }

    /// Returns when each phase began and ended, those that no sample fell into left out.
    pub(crate) fn spans(&self) -> Vec<(&'static str, Duration, Duration)> {
        let first = |p: Phase| self.samples.iter().find(|s| s.phase == p).map(|s| s.at);
        let began: Vec<_> = Phase::ALL.iter().filter_map(|(p, name)| Some((*name, first(*p)?))).collect();
        let ends = began.iter().skip(1).map(|(_, at)| *at).chain([self.took()]);
        began.iter().zip(ends).map(|((name, from), to)| (*name, *from, to)).collect()
    }

    pub(crate) fn phases(&self) -> impl Iterator<Item = (&'static str, Duration)> {
        self.spans().into_iter().map(|(name, from, to)| (name, to - from))
    }
}

/// A thread that looks at a runtime.
#[derive(Debug)]
pub(crate) struct Watch<'a> {
    rt: &'a Runtime,
    progress: &'a Progress,
    limit_bytes: u64,
}

impl<'a> Watch<'a> {
    pub(crate) fn new(rt: &'a Runtime, progress: &'a Progress, limit_bytes: u64) -> Self {
        Self { rt, progress, limit_bytes }
    }

    /// Runs `f` and watches meanwhile.
    pub(crate) fn during<T>(&self, line: &mut Line, f: impl FnOnce() -> T) -> (T, Seen) {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let watcher = scope.spawn(|| self.watch(line, &stop));
            let result = f();
            stop.store(true, Ordering::Release);
            let samples = watcher.join().unwrap_or_default();
            (result, Seen { samples })
        })
    }

    fn watch(&self, line: &mut Line, stop: &AtomicBool) -> Vec<Sample> {
        let began = Instant::now();
        let mut samples: Vec<Sample> = Vec::with_capacity(1 << 12);
        loop {
            // Looked at before the sample, so that the last one is of the end.
            let over = stop.load(Ordering::Acquire);
            let now = self.sample(began.elapsed());
            let turned = samples.last().is_some_and(|s| s.phase != now.phase);
            if line.is_due() || turned || over {
                line.say(&self.text(&samples, &now));
            }
            samples.push(now);
            if over {
                line.end();
                return samples;
            }
            std::thread::sleep(TICK);
        }
    }

    fn sample(&self, at: Duration) -> Sample {
        let phase = self.progress.phase();
        let stats = self.rt.stats();
        Sample {
            at,
            phase,
            faults: stats["pgfault"],
            major: stats["pgmajfault"],
            cached_bytes: stats["nr_cached_pages"] * PAGE,
            dirty_bytes: stats["nr_dirty"] * PAGE,
            allocated_bytes: stats["cache_bytes_allocated"],
        }
    }

    /// Returns the line of progress: of the last tenth of a second.
    fn text(&self, samples: &[Sample], now: &Sample) -> String {
        let since = now.at.saturating_sub(LINE_TICKS[0]);
        let then = samples.iter().rev().find(|s| s.at <= since).or_else(|| samples.first()).copied().unwrap_or(*now);
        let (faults, major) = (now.faults - then.faults, now.major - then.major);
        let hits = match faults {
            0 => "no faults   ".into(),
            _ => format!("hits {:>5.1} %", 100.0 * hit_rate(faults, major)),
        };
        let percent = self.progress.percent();
        let filled = usize::try_from(percent / 8).unwrap_or(0);
        // Within 80 columns: a line that wraps cannot be written over.
        format!(
            "{:<8}[{:<12}] {percent:>3} %  {hits}  cached {:.1}/{:.1} MiB  dirty {:.1}",
            now.phase.name(),
            "#".repeat(filled),
            to_mib(now.cached_bytes),
            to_mib(self.limit_bytes),
            to_mib(now.dirty_bytes),
        )
    }
}

/// A line on standard error: written over itself on a terminal, one after the other elsewhere.
#[derive(Debug)]
pub(crate) struct Line {
    terminal: bool,
    last: Option<Instant>,
    open: bool,
}

impl Line {
    pub(crate) fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), last: None, open: false }
    }

    pub(crate) fn is_due(&self) -> bool {
        let tick = LINE_TICKS[usize::from(!self.terminal)];
        self.last.is_none_or(|last| last.elapsed() >= tick)
    }

    pub(crate) fn say(&mut self, text: &str) {
        self.last = Some(Instant::now());
        let mut err = std::io::stderr().lock();
        // Nobody is helped by an error of the line that says how far we are.
        let _ = if self.terminal { write!(err, "\r\x1b[K{text}") } else { writeln!(err, "{text}") };
        let _ = err.flush();
        self.open = self.terminal;
    }

    /// Ends the line: what comes next stands below it.
    pub(crate) fn end(&mut self) {
        if self.open {
            eprintln!();
        }
        self.open = false;
        self.last = None;
    }
}
