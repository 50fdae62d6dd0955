//! Checks of the policies: against naive versions, against the optimum, and of what the staged one promises.

use super::clock::Clock;
use super::clock_pro::ClockPro;
use super::decide;
use super::lru::Lru;
use super::opt::Opt;
use super::s3_fifo::S3Fifo;
use super::staged::{Staged, Tuning};
use super::staged_two_lists::StagedTwoLists;
use super::trace::{Rng, Shape};
use super::two_lists::TwoLists;
use super::{Counts, Outcome, Policy, run};
use std::collections::VecDeque;

const NR_PAGES: u32 = 600;
const LIMIT: usize = 97;

fn policies(nr_pages: usize, limit: usize) -> Vec<(&'static str, Box<dyn Policy>)> {
    let twice = Tuning { small_twice: true, max_tenure: 3, ..Tuning::RECOMMENDED };
    let blind = Tuning { ask_main: false, ..Tuning::RECOMMENDED };
    vec![
        ("lru", Box::new(Lru::new(nr_pages, limit))),
        ("clock", Box::new(Clock::new(nr_pages, limit, false))),
        ("fifo", Box::new(Clock::new(nr_pages, limit, true))),
        ("s3_fifo", Box::new(S3Fifo::new(nr_pages, limit, 10))),
        ("two_lists", Box::new(TwoLists::new(nr_pages, limit))),
        ("clock_pro", Box::new(ClockPro::new(nr_pages, limit, None))),
        ("staged_clock_pro", Box::new(ClockPro::new(nr_pages, limit, Some(12)))),
        ("staged_two_lists", Box::new(StagedTwoLists::new(nr_pages, limit, 12))),
        ("plain", Box::new(Staged::new(nr_pages, limit, Tuning::PLAIN))),
        ("recommended", Box::new(Staged::new(nr_pages, limit, Tuning::RECOMMENDED))),
        ("twice", Box::new(Staged::new(nr_pages, limit, twice))),
        ("blind", Box::new(Staged::new(nr_pages, limit, blind))),
    ]
}

fn traces(limit: u32) -> impl Iterator<Item = (&'static str, Vec<u32>)> {
    Shape::ALL.iter().map(move |s| (s.name(), s.generate(NR_PAGES, limit, 10_000)))
}

#[test]
fn lru_does_what_a_naive_lru_does() {
    for (name, trace) in traces(97) {
        let mut lru = Lru::new(NR_PAGES as usize, LIMIT);
        let mut naive: VecDeque<u32> = VecDeque::new();
        for (i, &pgoff) in trace.iter().enumerate() {
            let at = naive.iter().position(|p| *p == pgoff);
            match at {
                Some(at) => drop(naive.remove(at)),
                None if naive.len() == LIMIT => drop(naive.pop_front()),
                None => {}
            }
            naive.push_back(pgoff);
            let want = if at.is_some() { Outcome::Hit } else { Outcome::Major };
            assert_eq!(lru.access(pgoff), want, "{name}: access {i} of page {pgoff}");
        }
    }
}

/// The optimum by looking through the rest of the trace at each eviction.
fn naive_opt(trace: &[u32], limit: usize) -> u64 {
    let mut cached: Vec<u32> = Vec::new();
    let mut major = 0;
    for (i, &pgoff) in trace.iter().enumerate() {
        if cached.contains(&pgoff) {
            continue;
        }
        major += 1;
        if cached.len() == limit {
            let next = |p: u32| trace[i..].iter().position(|t| *t == p).unwrap_or(usize::MAX);
            let victim = (0..limit).max_by_key(|k| next(cached[*k])).expect("a full cache has pages");
            cached.swap_remove(victim);
        }
        cached.push(pgoff);
    }
    major
}

#[test]
fn opt_is_the_optimum_of_a_naive_search() {
    let mut rng = Rng::new(7);
    for limit in [1, 2, 5, 9] {
        let trace: Vec<u32> = (0..600).map(|_| rng.below(16)).collect();
        let counts = run(&mut Opt::new(16, limit, &trace), &trace, 0);
        assert_eq!(counts.major, naive_opt(&trace, limit), "limit {limit}");
    }
}

#[test]
fn nobody_beats_the_optimum_and_no_cache_exceeds_its_limit() {
    for limit in [1u32, 2, 3, 10, 97] {
        for (trace_name, trace) in traces(limit) {
            let limit = limit as usize;
            let opt = run(&mut Opt::new(NR_PAGES as usize, limit, &trace), &trace, 0).major;
            for (name, mut policy) in policies(NR_PAGES as usize, limit) {
                let mut major = 0;
                for &pgoff in &trace {
                    major += u64::from(policy.access(pgoff) == Outcome::Major);
                    assert!(policy.nr_cached() <= limit, "{name} on {trace_name}: more than {limit} pages cached");
                }
                assert_eq!(policy.nr_cached(), limit, "{name} on {trace_name}: room left in a full cache");
                assert!(major >= opt, "{name} on {trace_name}, limit {limit}: {major} faults, optimum {opt}");
            }
        }
    }
}

#[test]
fn a_page_just_filled_is_cached_and_mapped() {
    for (trace_name, trace) in traces(97) {
        for (name, mut policy) in policies(NR_PAGES as usize, LIMIT) {
            for &pgoff in &trace {
                policy.access(pgoff);
                assert_eq!(policy.access(pgoff), Outcome::Hit, "{name} on {trace_name}: page {pgoff}, twice in a row");
            }
        }
    }
}

#[test]
fn a_minor_fault_needs_an_unmap_before() {
    for (trace_name, trace) in traces(97) {
        for (name, mut policy) in policies(NR_PAGES as usize, LIMIT) {
            let counts: Counts = run(policy.as_mut(), &trace, 0);
            assert!(
                counts.minor <= counts.unmapped,
                "{name} on {trace_name}: {} minor faults, {} unmaps",
                counts.minor,
                counts.unmapped
            );
        }
    }
}

#[test]
fn no_faults_and_no_unmaps_once_everything_fits() {
    let trace: Vec<u32> = (0..97).cycle().take(2000).collect();
    for (name, mut policy) in policies(NR_PAGES as usize, LIMIT) {
        let counts = run(policy.as_mut(), &trace, 97);
        assert_eq!((counts.major, counts.minor, counts.unmapped), (0, 0, 0), "{name}");
    }
}

#[test]
fn s3_fifo_drops_what_is_read_once_and_keeps_what_is_hot() {
    let hot = 0..50u32;
    let mut policy = S3Fifo::new(10_000, 100, 10);
    for _ in 0..4 {
        hot.clone().for_each(|p| assert!(policy.access(p) != Outcome::Minor, "page {p}"));
    }
    // A scan of a hundred caches, with the hot pages read in between.
    for (scan, hot) in (50..10_000).zip(hot.clone().cycle()) {
        policy.access(scan);
        assert_eq!(policy.access(hot), Outcome::Hit, "hot page {hot} was lost at {scan}");
    }
}

#[test]
fn staged_queues_keep_their_targets() {
    let limit = 2000;
    let trace = Shape::Zipf.generate(20_000, 2000, 200_000);
    let mut policy = Staged::new(20_000, limit, Tuning::RECOMMENDED);
    let probation = decide::target_len(limit, Tuning::RECOMMENDED.probation_pct);
    for &pgoff in &trace {
        policy.access(pgoff);
        let [_, _, nr] = policy.lens();
        assert!(
            nr <= probation + decide::batch_len(probation),
            "PROBATION holds {nr} pages, its target is {probation}"
        );
    }
    let [small, main, _] = policy.lens();
    assert!(small < limit / 4 && main > limit / 2, "a skewed trace leaves SMALL {small} and MAIN {main} of {limit}");
}

#[test]
fn staged_keeps_the_hot_set_through_a_scan() {
    let trace = Shape::ScanHot.generate(20_000, 2000, 320_000);
    let mut policy = Staged::new(20_000, 2000, Tuning::RECOMMENDED);
    let counts = run(&mut policy, &trace, trace.len() / 4);
    // Half of the accesses are of the scan, and none of those can hit; nearly all others must.
    assert!(counts.hit_rate() > 0.49, "hit rate {}", counts.hit_rate());
}

#[test]
fn the_guard_keeps_a_part_of_a_loop() {
    let trace = Shape::Loop110.generate(20_000, 2000, 320_000);
    let hit_rate = |tuning| run(&mut Staged::new(20_000, 2000, tuning), &trace, trace.len() / 4).hit_rate();
    let (guarded, open) = (hit_rate(Tuning::RECOMMENDED), hit_rate(Tuning { admit_every: 1, ..Tuning::RECOMMENDED }));
    assert!(guarded > 0.6 && open < 0.3, "guarded {guarded}, without the guard {open}");
}
