//! The proof of the consistent cut: while many threads store, and whatever else goes on beside them, each image is of one moment;
//! and where a rule of the cut is broken, images are not.
#![cfg(feature = "userfaultfd")]
#![allow(unsafe_code, reason = "stores to arenas by address")]
#![allow(clippy::cast_possible_truncation, reason = "patterns and addresses; 64-bit only")]

mod cut;

use cut::{Make, Plan, World, anonymous, file};
use softfault::{Advice, Runtime, RuntimeBuilder};

const EIGHT: Plan = Plan { writers: 8, own: 113, first_by_call: false };
const CUTS: u32 = 16;

fn roomy() -> RuntimeBuilder {
    Runtime::builder().cache_limit(256 << 20)
}

type Other<'a> = &'a (dyn Fn(&World) + Sync);

/// Every image of [`CUTS`] is of one moment.
fn proves(name: &str, plan: Plan, make: Make, mirrors: bool, others: &[Other<'_>]) {
    let Some(world) = World::new(name, plan, roomy(), make) else { return };
    proved(name, &world, mirrors, others);
}

fn proved(name: &str, world: &World, mirrors: bool, others: &[Other<'_>]) {
    let began = std::time::Instant::now();
    let wrong = world.cuts(CUTS, mirrors, others);
    println!("{name}: {CUTS} cuts in {:?}", began.elapsed());
    assert!(wrong.is_empty(), "{name}: {} of {CUTS} images are of several moments: {}", wrong.len(), wrong[0]);
}

#[test]
fn eight_writers() {
    proves("anonymous", EIGHT, anonymous, true, &[]);
    proves("file", EIGHT, file, true, &[]);
}

#[test]
fn one_writer() {
    proves("one", Plan { writers: 1, own: 509, ..EIGHT }, anonymous, true, &[]);
}

#[test]
fn more_writers_than_processors() {
    let nr = std::thread::available_parallelism().map_or(2, usize::from) * 12;
    proves("many", Plan { writers: nr, own: 37, ..EIGHT }, anonymous, true, &[]);
}
