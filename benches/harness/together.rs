//! Several threads at once, timed by the clock on the wall.

use crate::machine::{Cpus, Pinned};
use crate::{Error, Result};
use std::sync::Barrier;
use std::time::Instant;

/// Runs each of `works`, one or two, on a thread and a processor of its own; returns the nanoseconds from the first one's
/// beginning to the last one's end, and what each returned.
///
/// # Errors
/// [`Error::Wrong`] when there are more of them than processors, or one panicked; the kernel's.
pub fn together<T: Send>(cpus: Cpus, works: Vec<impl FnOnce() -> T + Send>) -> Result<(f64, Vec<T>)> {
    let places: Vec<usize> = [Some(cpus.measuring), cpus.other].into_iter().flatten().collect();
    if works.len() > places.len() {
        return Err(Error::Wrong(format!("{} threads need as many processors", works.len())));
    }
    let start = Barrier::new(works.len());
    let done = std::thread::scope(|scope| {
        let spawn = |(work, cpu)| {
            let start = &start;
            scope.spawn(move || one(work, cpu, start))
        };
        let threads: Vec<_> = works.into_iter().zip(places).map(spawn).collect();
        let panicked = |_| Err(Error::Wrong("a measuring thread panicked".to_owned()));
        threads.into_iter().map(|t| t.join().unwrap_or_else(panicked)).collect::<Result<Vec<_>>>()
    })?;
    let wall = done.iter().map(|d| d.0).min().zip(done.iter().map(|d| d.1).max());
    let ns = wall.map_or(f64::NAN, |(first, last)| (last - first).as_nanos() as f64);
    Ok((ns, done.into_iter().map(|d| d.2).collect()))
}

/// One thread's part: when it began, when it ended, and what came of it.
fn one<T>(work: impl FnOnce() -> T, cpu: usize, start: &Barrier) -> Result<(Instant, Instant, T)> {
    let pinned = Pinned::to(cpu);
    // Before any error: the other thread waits here too.
    start.wait();
    let _pinned = pinned?;
    let begin = Instant::now();
    let value = work();
    Ok((begin, Instant::now(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_back_in_order() {
        let cpus = Cpus::find().expect("a processor");
        let count = if cpus.other.is_some() { 2 } else { 1 };
        let (ns, values) = together(cpus, (0..count).map(|i| move || i * 10).collect()).expect("ran");
        assert!(ns >= 0.0);
        assert_eq!(values, (0..count).map(|i| i * 10).collect::<Vec<_>>());
        let alone = Cpus { other: None, ..cpus };
        assert!(matches!(together(alone, vec![|| (), || ()]), Err(Error::Wrong(_))));
    }
}
