//! The sort: loads and stores in two arenas, and nothing else.
//!
//! ```text
//! count     each thread reads a stripe of the source: how many records go into which bucket
//! scatter   each thread reads its stripe again and writes each record to the next place that is its own
//! sort      each thread takes the next bucket, and sorts it where it lies
//! sync      what is dirty goes to the file, which is flushed
//! ```

use crate::options::Options;
use crate::record::{self, RECORD_BYTES, Record};
use crate::units::Result;
use crate::watch::{Phase, Progress};
use softfault::{Advice, Arena, Object, Prot, Runtime, Sharing};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Every how many records the progress is told.
const TELL: usize = 1 << 12;

/// A file of records, mapped.
pub(crate) struct Table {
    arena: Arena,
    object: Object,
    bytes: usize,
}

impl Table {
    pub(crate) fn map(rt: &Runtime, object: &Object, writable: bool) -> Result<Self> {
        let bytes = usize::try_from(object.len())?;
        let arena = rt.arena(bytes).build()?;
        let prot = if writable { Prot::ReadWrite } else { Prot::Read };
        arena.map(0, object, 0, bytes, prot, Sharing::Shared)?;
        Ok(Self { arena, object: object.clone(), bytes })
    }

    fn nr(&self) -> usize {
        self.bytes / RECORD_BYTES
    }

    fn advise(&self, advice: Advice) -> Result<()> {
        Ok(self.arena.advise(0..self.bytes, advice)?)
    }

    /// Returns the bytes of a read-only table.
    fn read(&self, records: &Range<usize>) -> &[u8] {
        // SAFETY: `map` mapped the range readable and nothing unmaps it; only read-only tables are read this way, and
        // this program does not write to their file.
        unsafe { self.arena.as_slice(records.start * RECORD_BYTES..records.end * RECORD_BYTES) }
    }

    fn place(&self, index: usize) -> *mut Record {
        debug_assert!(index <= self.nr());
        self.arena.as_ptr().cast::<Record>().wrapping_add(index)
    }
}

pub(crate) fn run(source: &Table, sorted: &Table, options: &Options, progress: &Progress) -> Result<()> {
    let shift = u64::BITS - options.bucket_bits();
    let stripes = stripes(source.nr(), options.threads);
    source.advise(Advice::Sequential)?;

    progress.begin(Phase::Count, source.nr());
    let counts = each(&stripes, |stripe| count(source, stripe, shift, progress))?;

    progress.begin(Phase::Scatter, source.nr());
    let (places, buckets) = layout(&counts);
    let work: Vec<_> = stripes.into_iter().zip(places).collect();
    each(&work, |(stripe, places)| scatter(source, sorted, stripe, places.clone(), shift, progress))?;
    source.advise(Advice::Cold)?;

    progress.begin(Phase::Sort, sorted.nr());
    let next = AtomicUsize::new(0);
    each(&vec![(); options.threads], |()| sort_buckets(sorted, &buckets, &next, progress))?
        .into_iter()
        .collect::<Result<()>>()?;

    progress.begin(Phase::Sync, sorted.nr());
    sorted.object.sync_all()?;
    progress.end();
    Ok(())
}

/// Cuts `0..nr` into as many stripes as there are threads.
fn stripes(nr: usize, threads: usize) -> Vec<Range<usize>> {
    let len = nr.div_ceil(threads);
    (0..threads).map(|t| (t * len).min(nr)..((t + 1) * len).min(nr)).collect()
}

/// Runs `f` on each item, each on a thread of its own.
fn each<T: Sync, R: Send>(items: &[T], f: impl Fn(&T) -> R + Sync) -> Result<Vec<R>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = items.iter().map(|item| scope.spawn(|| f(item))).collect();
        threads.into_iter().map(|t| t.join().map_err(|_| "a sorting thread panicked".into())).collect()
    })
}

fn bucket_of(record: &Record, shift: u32) -> usize {
    usize::try_from(record.key >> shift).unwrap_or(0)
}

/// Counts the records of each bucket in a stripe.
fn count(source: &Table, stripe: &Range<usize>, shift: u32, progress: &Progress) -> Vec<usize> {
    let mut counts = vec![0; 1 << (u64::BITS - shift)];
    for from in stripe.clone().step_by(TELL) {
        let part = from..(from + TELL).min(stripe.end);
        for record in record::records(source.read(&part)) {
            counts[bucket_of(&record, shift)] += 1;
        }
        progress.add(part.len());
    }
    counts
}

/// Says where each thread writes the first record of each bucket, and where the buckets lie.
fn layout(counts: &[Vec<usize>]) -> (Vec<Vec<usize>>, Vec<Range<usize>>) {
    let nr_buckets = counts.first().map_or(0, Vec::len);
    let mut places = vec![vec![0; nr_buckets]; counts.len()];
    let mut buckets = Vec::with_capacity(nr_buckets);
    let mut at = 0;
    for b in 0..nr_buckets {
        let start = at;
        for (places, counts) in places.iter_mut().zip(counts) {
            places[b] = at;
            at += counts[b];
        }
        buckets.push(start..at);
    }
    (places, buckets)
}

/// Writes each record of a stripe to the next place of its bucket.
fn scatter(
    source: &Table,
    sorted: &Table,
    stripe: &Range<usize>,
    mut places: Vec<usize>,
    shift: u32,
    progress: &Progress,
) {
    for from in stripe.clone().step_by(TELL) {
        let part = from..(from + TELL).min(stripe.end);
        for record in record::records(source.read(&part)) {
            let place = &mut places[bucket_of(&record, shift)];
            // SAFETY: inside the mapping, which is writable: as many places were counted as there are records. No other
            // thread has this place, and nobody reads it before the threads are joined.
            unsafe { sorted.place(*place).write(record) };
            *place += 1;
        }
        progress.add(part.len());
    }
}

/// Sorts buckets until there are no more.
fn sort_buckets(sorted: &Table, buckets: &[Range<usize>], next: &AtomicUsize, progress: &Progress) -> Result<()> {
    while let Some(bucket) = buckets.get(next.fetch_add(1, Ordering::Relaxed)) {
        // SAFETY: mapped and writable, every record was written, and the counter gave this bucket to this thread alone.
        let records = unsafe { std::slice::from_raw_parts_mut(sorted.place(bucket.start), bucket.len()) };
        records.sort_unstable();
        progress.add(bucket.len());
    }
    Ok(())
}
