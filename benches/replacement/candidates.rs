//! The policies that are compared, and the tunings of the staged one.

use softfault_benches::replacement::Policy;
use softfault_benches::replacement::clock::Clock;
use softfault_benches::replacement::clock_pro::ClockPro;
use softfault_benches::replacement::decide::{Shadows, Window};
use softfault_benches::replacement::lru::Lru;
use softfault_benches::replacement::opt::Opt;
use softfault_benches::replacement::s3_fifo::S3Fifo;
use softfault_benches::replacement::staged::{Staged, Tuning};
use softfault_benches::replacement::staged_two_lists::StagedTwoLists;
use softfault_benches::replacement::two_lists::TwoLists;

/// What a candidate may know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    /// Every access, or even the future: yardsticks.
    Sees,
    /// Faults only.
    Faults,
}

/// Makes a policy for an object of so many pages, a limit in pages, and a trace.
type Make = Box<dyn Fn(usize, usize, &[u32]) -> Box<dyn Policy>>;

/// A policy with its parameters.
pub(crate) struct Candidate {
    pub(crate) name: &'static str,
    pub(crate) group: Group,
    pub(crate) make: Make,
}

fn sees<P: Policy + 'static>(name: &'static str, make: impl Fn(usize, usize, &[u32]) -> P + 'static) -> Candidate {
    Candidate { name, group: Group::Sees, make: Box::new(move |n, limit, trace| Box::new(make(n, limit, trace))) }
}

fn faults<P: Policy + 'static>(name: &'static str, make: impl Fn(usize, usize) -> P + 'static) -> Candidate {
    Candidate { name, group: Group::Faults, make: Box::new(move |n, limit, _| Box::new(make(n, limit))) }
}

fn staged(name: &'static str, tuning: Tuning) -> Candidate {
    faults(name, move |n, limit| Staged::new(n, limit, tuning))
}

/// Returns all candidates in the order of the report.
pub(crate) fn all() -> Vec<Candidate> {
    let plain = Tuning::PLAIN;
    let best = Tuning::RECOMMENDED;
    vec![
        sees("opt", Opt::new),
        sees("lru", |n, limit, _| Lru::new(n, limit)),
        sees("clock", |n, limit, _| Clock::new(n, limit, false)),
        sees("s3_fifo", |n, limit, _| S3Fifo::new(n, limit, 10)),
        sees("clock_pro", |n, limit, _| ClockPro::new(n, limit, None)),
        sees("two_lists", |n, limit, _| TwoLists::new(n, limit)),
        faults("fifo", |n, limit| Clock::new(n, limit, true)),
        faults("staged_clock_pro", |n, limit| ClockPro::new(n, limit, Some(12))),
        faults("staged_two_lists", |n, limit| StagedTwoLists::new(n, limit, 12)),
        staged("two_hands", Tuning { small_pct: 0, window: Window::None, ..plain }),
        staged("plain", plain),
        staged("plain_window_100", Tuning { window: Window::Percent(100), ..plain }),
        staged("plain_tenure_3", Tuning { max_tenure: 3, ..plain }),
        staged("plain_blind_main", Tuning { ask_main: false, ..plain }),
        staged("recommended", best),
        staged("small_10", Tuning { small_pct: 10, ..best }),
        staged("small_20", Tuning { small_pct: 20, ..best }),
        staged("probation_3", Tuning { probation_pct: 3, ..best }),
        staged("probation_12", Tuning { probation_pct: 12, ..best }),
        staged("probation_25", Tuning { probation_pct: 25, ..best }),
        staged("window_0", Tuning { window: Window::None, ..best }),
        staged("window_main_len", Tuning { window: Window::MainLen, ..best }),
        staged("window_50", Tuning { window: Window::Percent(50), ..best }),
        staged("window_200", Tuning { window: Window::Percent(200), ..best }),
        staged("shadows_of_main", Tuning { shadows: Shadows::Main, ..best }),
        staged("shadows_of_small", Tuning { shadows: Shadows::Small, ..best }),
        staged("admit_all", Tuning { admit_every: 1, ..best }),
        staged("admit_4", Tuning { admit_every: 4, ..best }),
        staged("admit_64", Tuning { admit_every: 64, ..best }),
        staged("regret_0", Tuning { regret_pct: 0, ..best }),
        staged("regret_50", Tuning { regret_pct: 50, ..best }),
        staged("blind_main", Tuning { ask_main: false, ..best }),
        staged("small_twice", Tuning { small_twice: true, ..best }),
        staged("tenure_1", Tuning { max_tenure: 1, ..best }),
        staged("tenure_3", Tuning { max_tenure: 3, ..best }),
    ]
}
