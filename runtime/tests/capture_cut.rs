//! The proof of the consistent cut: while many threads store, and whatever else goes on beside them, each image is of one moment;
//! and where a rule of the cut is broken, images are not.
#![cfg(feature = "userfaultfd")]
#![allow(unsafe_code, reason = "stores to arenas by address")]
#![allow(clippy::cast_possible_truncation, reason = "patterns and addresses; 64-bit only")]

mod cut;

use cut::{Make, Plan, World, anonymous, file};
use softfault::{Error, MinorDelegate, MinorFault, MinorVerdict, Runtime, RuntimeBuilder};
use std::convert::Infallible;
use std::sync::atomic::Ordering;

const EIGHT: Plan = Plan { writers: 8, own: 43, first_by_call: false, punches: false };
const CUTS: u32 = 12;

fn roomy() -> RuntimeBuilder {
    Runtime::builder().cache_limit(256 << 20)
}

/// What goes on beside the writers.
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
    proves("one", Plan { writers: 1, own: 251, ..EIGHT }, anonymous, true, &[]);
}

#[test]
fn more_writers_than_processors() {
    let nr = std::thread::available_parallelism().map_or(2, usize::from) * 6;
    proves("many", Plan { writers: nr, own: 17, ..EIGHT }, anonymous, true, &[]);
}

/// Page-table entries of random pages go.
fn zap(world: &World) {
    each_random_page(world, |at| world.arena.zap(at..at + cut::PAGE).expect("it is mapped"));
}

/// The same by the call that programs make themselves.
fn refault(world: &World) {
    each_random_page(world, |at| {
        // SAFETY: a shared mapping: the entries go, the bytes stay.
        let r = unsafe { libc::madvise(world.arena.as_ptr().wrapping_add(at).cast(), cut::PAGE, libc::MADV_DONTNEED) };
        assert_eq!(r, 0, "madvise");
    });
}

/// Random pages leave the cache.
fn evict(world: &World) {
    each_random_page(world, |at| {
        let at = at as u64;
        world.object.evict(at..at + cut::PAGE as u64).expect("its store is well");
    });
}

fn each_random_page(world: &World, f: impl Fn(usize)) {
    let mut x = 7u64;
    while world.goes_on() {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        f((x >> 33) as usize % world.plan.nr_pages() * cut::PAGE);
        if x >> 62 == 0 {
            std::thread::yield_now();
        }
    }
}

#[test]
fn entries_are_zapped() {
    proves("zap", EIGHT, anonymous, true, &[&zap, &refault]);
    proves("zap of a file", EIGHT, file, false, &[&zap, &refault]);
}

/// The cache holds less than half of the object: most stores fill a page first, and reclaim takes others all the time.
#[test]
fn the_cache_is_smaller_than_what_is_captured() {
    let small = || Runtime::builder().cache_limit(256 * cut::PAGE as u64);
    let Some(world) = World::new("reclaim", EIGHT, small(), file) else { return };
    proved("reclaim", &world, false, &[&evict]);
    assert!(world.rt.stats()["pgsteal"] > 0, "nothing was reclaimed");
}

#[test]
fn anonymous_memory_is_swapped_meanwhile() {
    let swap = cut::folder("swapfile");
    let builder = Runtime::builder().cache_limit(256 * cut::PAGE as u64).swap(swap.join("swap"), 16 << 20);
    if let Some(world) = World::new("swap", EIGHT, builder, anonymous) {
        proved("swap", &world, false, &[&evict]);
    }
    let _ = std::fs::remove_dir_all(&swap);
}

#[test]
fn every_second_writer_stores_through_a_second_arena() {
    for make in [anonymous as Make, file] {
        let Some(world) = World::new("twice", EIGHT, roomy(), make) else { return };
        proved("twice", &world.twice(), true, &[&zap]);
    }
}

#[test]
fn one_of_the_writers_stores_by_calls() {
    let plan = Plan { first_by_call: true, ..EIGHT };
    proves("calls", plan, anonymous, true, &[]);
    proves("calls to a file", plan, file, true, &[&zap]);
}

/// The moment is one for all objects of a capture.
#[test]
fn chains_run_through_two_objects() {
    for (first, second) in [(anonymous as Make, anonymous as Make), (file, anonymous)] {
        let Some(world) = World::new("split", EIGHT, roomy(), first) else { return };
        proved("split", &world.split(second), true, &[&zap]);
    }
}

/// Images over images: what has not changed is the parent's.
#[test]
fn each_image_is_over_the_last_one() {
    let Some(mut world) = World::new("increments", EIGHT, roomy(), anonymous) else { return };
    world.increments = true;
    proved("increments", &world, true, &[]);
}

fn punch(world: &World) {
    world.fill_and_drop(0, |bytes| {
        world.object.punch_hole(bytes.start as u64..bytes.end as u64).expect("nobody pins it");
    });
}

fn truncate(world: &World) {
    world.fill_and_drop(1, |bytes| {
        world.object.set_len(bytes.start as u64).expect("nobody pins it");
        world.object.set_len(bytes.end as u64).expect("there is room");
    });
}

#[test]
fn holes_are_punched_and_the_end_is_moved() {
    // A closure that copies everything would look past the end.
    proves("holes", EIGHT, anonymous, false, &[&punch, &truncate]);
    proves("holes in a file", Plan { punches: true, ..EIGHT }, file, false, &[&punch, &truncate]);
}

/// What a delegate rewrites nobody holds: it is refused by name, and stores go on.
#[test]
fn what_a_delegate_rewrites_is_not_captured() {
    let _turn = cut::turn();
    let folder = cut::folder("delegate");
    let rt = roomy().build().expect("a runtime");
    let Some(arena) = cut::capturable(&rt, 16 * cut::PAGE) else { return };
    let object = anonymous(&rt, &folder, 16 * cut::PAGE);
    cut::map(&arena, &object, 16 * cut::PAGE);
    #[derive(Debug)]
    struct Same;
    impl MinorDelegate for Same {
        fn minor_fault(&self, _: &MinorFault<'_>) -> MinorVerdict {
            MinorVerdict::Continue
        }
    }
    if let Err(error) = arena.delegate_minor(0..16 * cut::PAGE, Box::new(Same)) {
        println!("a delegate is refused: {error}");
        return;
    }
    let nothing = || Ok::<(), Infallible>(());
    let refused = rt.capture().arena(&arena).begin(folder.join("a.sfi"), nothing);
    assert!(matches!(refused, Err(Error::Denied { what, .. }) if what.contains("delegate")), "{refused:?}");
    assert_eq!(std::fs::read_dir(&folder).expect("it").count(), 0, "no image, and nothing of one");
    cut::word(&arena, 0).store(1, Ordering::Relaxed);
    assert_eq!(cut::word(&arena, 0).load(Ordering::Relaxed), 1);
    let _ = std::fs::remove_dir_all(&folder);
}

/// The steps of a lift and of the cut take long, so that whatever can come between does.
#[cfg(debug_assertions)]
mod delayed {
    use super::*;
    use softfault::mm::cut::naive;
    use softfault::mm::trace::{Point, arm_spin, hits};
    use std::time::Duration;

    /// Turns of the spin loop; some hundred microseconds.
    const LONG: u32 = 5_000;

    #[test]
    fn lifts_and_cuts_take_long() {
        let points = [
            ("admitted", Point::CAPTURE_ADMITTED, LONG / 20),
            ("copied", Point::CAPTURE_COPIED, LONG),
            ("walked", Point::CAPTURE_WALKED, LONG / 5),
            ("cutting", Point::CAPTURE_CUT, 10 * LONG),
        ];
        for (name, point, turns) in points {
            let plan = Plan { own: 29, ..EIGHT };
            let Some(world) = World::new(name, plan, roomy(), anonymous) else { return };
            let before = hits(point);
            arm_spin(point, turns);
            proved(name, &world, true, &[&zap]);
            assert!(hits(point) > before, "{name}: nobody came by");
        }
    }

    /// A rule, what is to go on beside the writers so that it is needed, and whatever shows it.
    struct Rule<'a> {
        name: &'a str,
        broken: u32,
        plan: Plan,
        make: Make,
        others: &'a [Other<'a>],
        twice: bool,
    }

    /// How many cuts a broken rule may take to be seen, by the dozen; most break an image of each.
    const DOZENS: usize = 8;

    /// Returns how many images of how many are of several moments where a rule is broken, as soon as there is one.
    fn break_it(rule: &Rule<'_>) -> Option<(usize, usize)> {
        for dozen in 1..=DOZENS {
            let world = World::new(rule.name, rule.plan, roomy(), rule.make)?;
            let mut world = if rule.twice { world.twice() } else { world };
            world.lingers = Duration::from_millis(3);
            naive::set(rule.broken);
            arm_spin(Point::CAPTURE_WALKED, LONG / 5);
            let wrong = world.cuts(12, false, rule.others);
            if !wrong.is_empty() || dozen == DOZENS {
                return Some((wrong.len(), 12 * dozen));
            }
        }
        None
    }

    #[test]
    fn without_its_rules_the_cut_is_none() {
        let plan = Plan { own: 29, ..EIGHT };
        let rule = |name, broken| Rule { name, broken, plan, make: anonymous, others: &[], twice: false };
        let (by_call, punches) = (Plan { first_by_call: true, ..plan }, Plan { punches: true, ..plan });
        let rules = [
            rule("stores do not wait", naive::NO_WAIT),
            rule("the naive cut", naive::NO_WAIT | naive::NO_CREDITS | naive::NO_GRACE | naive::WP_OFF),
            Rule { others: &[&zap], ..rule("installs are not protected", naive::WP_OFF) },
            Rule { twice: true, ..rule("one mapping is protected", naive::ONE_VMA) },
            Rule { plan: by_call, ..rule("calls do not look", naive::NO_WRITE_AT) },
            Rule { plan: punches, make: file, others: &[&punch, &truncate], ..rule("holes", naive::NO_PRESERVE) },
        ];
        for rule in rules {
            let Some((wrong, of)) = break_it(&rule) else { return };
            println!("{}: {wrong} of {of} images are of several moments", rule.name);
            assert!(wrong > 0, "{}: all of {of} images are of one moment without it", rule.name);
        }
    }
}
