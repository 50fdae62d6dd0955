//! The disk that crash tests run on: it loses what a real one may lose, and nothing else.
#![allow(clippy::cast_possible_truncation, reason = "64-bit offsets of small disks")]

mod disk;

use disk::{Behaviour, Disk, Event, SECTOR, VolatileStore};
use softfault::{Errno, PageMut, PageRef, Store, StoreError};
use std::collections::BTreeSet;
use std::sync::Arc;

const PAGE: usize = 4096;
const EIO: Result<(), StoreError> = Err(StoreError::Io(Errno::EIO));

fn disk(len: usize, behaviour: Behaviour) -> (Arc<Disk>, VolatileStore) {
    let disk = Disk::new(&vec![1; len], behaviour);
    (Arc::clone(&disk), VolatileStore(disk))
}

fn write(store: &VolatileStore, pos: usize, bytes: &[u8]) -> Result<(), StoreError> {
    store.write(pos as u64, &PageRef::from(bytes))
}

fn read(store: &VolatileStore, pos: usize, len: usize) -> Result<Vec<u8>, StoreError> {
    let mut bytes = vec![0xa5; len];
    store.read(pos as u64, &mut PageMut::from(bytes.as_mut_slice())).map(|()| bytes)
}

/// The byte that each sector is made of; panics where a sector is torn.
#[track_caller]
fn sectors(bytes: &[u8]) -> Vec<u8> {
    let whole = |s: &[u8]| {
        assert!(s.iter().all(|b| *b == s[0]), "a sector is torn");
        s[0]
    };
    bytes.chunks(SECTOR).map(whole).collect()
}

#[test]
fn what_was_flushed_survives_every_crash() {
    let (disk, store) = disk(4 * PAGE, Behaviour::default());
    write(&store, PAGE, &[2; PAGE]).unwrap();
    store.punch(2 * PAGE as u64, PAGE as u64).unwrap();
    write(&store, 4 * PAGE, &[3; 100]).unwrap();
    store.flush().unwrap();
    assert_eq!(disk.nr_volatile(), 0);
    let want = [vec![1; PAGE], vec![2; PAGE], vec![0; PAGE], vec![1; PAGE], vec![3; 100]].concat();
    for seed in 0..50 {
        assert!(disk.crash(seed).content() == want, "crash {seed}");
    }
    assert!(read(&store, 0, want.len()).unwrap() == want);
}

#[test]
fn a_crash_keeps_what_it_likes_of_each_sector_in_any_order() {
    let (disk, store) = disk(2 * PAGE, Behaviour::default());
    for byte in 2..5 {
        write(&store, 0, &[byte; 2 * PAGE]).unwrap();
    }
    assert!(disk.content() == vec![4; 2 * PAGE] && disk.durable() == vec![1; 2 * PAGE]);
    let (mut seen, mut torn, mut reordered) = (BTreeSet::new(), 0, 0);
    for seed in 0..200 {
        let after = sectors(&disk.crash(seed).content());
        assert!(after.iter().all(|b| (1..5).contains(b)), "crash {seed}: {after:?}");
        torn += u32::from(after[..8].iter().any(|b| *b != after[0]));
        reordered += u32::from(after.windows(2).any(|w| w[0] < w[1]) && after.windows(2).any(|w| w[0] > w[1]));
        seen.insert(after);
    }
    assert!(seen.contains(&vec![1; 16]), "a crash that loses everything");
    assert!(seen.len() > 100 && torn > 50 && reordered > 50, "{} kinds, {torn} torn, {reordered} mixed", seen.len());
    assert!(disk.crash(7).content() == disk.crash(7).content(), "a seed is a crash");
    assert!(disk.reopen().content() == vec![4; 2 * PAGE], "a killed process loses nothing");
}

#[test]
fn parts_of_a_sector_are_written_as_the_kernels_cache_would() {
    let (disk, store) = disk(SECTOR, Behaviour::default());
    write(&store, 0, &[2; 100]).unwrap();
    write(&store, 100, &[3; 100]).unwrap();
    let mut seen = BTreeSet::new();
    for seed in 0..100 {
        let c = disk.crash(seed).content();
        seen.insert((c[0], c[100], c[200]));
    }
    let all: Vec<_> = seen.into_iter().collect();
    assert_eq!(all, [(1, 1, 1), (2, 1, 1), (2, 3, 1)], "the second never without the first: they share a sector");
}

#[test]
fn the_end_is_volatile_too() {
    let (disk, store) = disk(PAGE, Behaviour::default());
    store.set_len(100).unwrap();
    store.set_len(3 * PAGE as u64).unwrap();
    let want = [vec![1; 100], vec![0; 3 * PAGE - 100]].concat();
    assert!(disk.content() == want, "what was past the end is zero");
    let ends: BTreeSet<_> = (0..100).map(|seed| disk.crash(seed).content().len()).collect();
    assert_eq!(ends.into_iter().collect::<Vec<_>>(), [100, PAGE, 3 * PAGE]);
    let crashes = (0..100).map(|seed| disk.crash(seed).content()).filter(|c| c.len() == 3 * PAGE);
    assert!(
        crashes.into_iter().all(|c| c[SECTOR..].iter().all(|b| *b == 0)),
        "what was cut off shows under a later end"
    );
    store.flush().unwrap();
    assert!((0..20).all(|seed| disk.crash(seed).content() == want));
    assert_eq!(read(&store, 3 * PAGE - 1, 2), Err(StoreError::Short));
}

#[test]
fn a_flush_that_failed_forgets_and_the_next_one_lies() {
    let mut lost = 0;
    for seed in 1..40 {
        let (disk, store) = disk(4 * PAGE, Behaviour { seed, ..Behaviour::default() });
        disk.fail_flush(1);
        write(&store, 0, &[2; PAGE]).unwrap();
        store.flush().unwrap();
        write(&store, PAGE, &[3; PAGE]).unwrap();
        assert_eq!(store.flush(), EIO);
        assert_eq!(read(&store, PAGE, PAGE).unwrap(), [3; PAGE], "still in the kernel's cache");
        store.flush().unwrap();
        let after = disk.crash(0).content();
        assert!(after[..PAGE] == [2; PAGE] && after[2 * PAGE..] == [1; 2 * PAGE], "nothing else");
        lost += u32::from(after[PAGE..2 * PAGE] != [3; PAGE]);
        write(&store, PAGE, &[3; PAGE]).unwrap();
        store.flush().unwrap();
        assert!(disk.crash(0).content()[PAGE..2 * PAGE] == [3; PAGE], "rewriting helps");
    }
    assert!(lost > 0, "the second flush said yes, and what the first should have written is lost");
}

#[test]
fn one_that_does_not_forget_keeps_it_for_the_next() {
    let (disk, store) = disk(PAGE, Behaviour { forgets: false, ..Behaviour::default() });
    disk.fail_flush(0);
    write(&store, 0, &[2; PAGE]).unwrap();
    assert_eq!((store.flush(), disk.nr_volatile()), (EIO, 8));
    store.flush().unwrap();
    assert!(disk.crash(3).content() == [2; PAGE]);
}

#[test]
fn what_was_forgotten_may_read_as_before() {
    let mut old = 0;
    for seed in 1..40 {
        let (disk, store) = disk(PAGE, Behaviour { seed, reverts: true, ..Behaviour::default() });
        disk.fail_flush(0);
        write(&store, 0, &[2; PAGE]).unwrap();
        assert_eq!(store.flush(), EIO);
        let got = sectors(&read(&store, 0, PAGE).unwrap());
        assert!(got.iter().all(|b| [1, 2].contains(b)), "{got:?}");
        old += got.iter().filter(|b| **b == 1).count();
    }
    assert!(old > 0, "something was lost");
}

#[test]
fn reads_may_wait_for_the_flush() {
    let (_disk, store) = disk(PAGE, Behaviour { rereads_unflushed: false, ..Behaviour::default() });
    assert!(!store.rereads_unflushed());
    write(&store, 0, &[2; PAGE]).unwrap();
    assert_eq!(read(&store, 0, PAGE).unwrap(), [1; PAGE]);
    store.flush().unwrap();
    assert_eq!(read(&store, 0, PAGE).unwrap(), [2; PAGE]);
}

#[test]
fn errors_come_by_the_seed_and_are_told_apart() {
    let behaviour = Behaviour {
        seed: 11,
        read_error_in: 5,
        write_error_in: 5,
        flush_error_in: 5,
        delay_in: 50,
        ..Behaviour::default()
    };
    let run = || {
        let (disk, store) = disk(8 * PAGE, behaviour.clone());
        let (mut kinds, mut part) = (BTreeSet::new(), 0);
        for i in 0..200u8 {
            let before = disk.content();
            let r = write(&store, PAGE, &[i; 2 * PAGE]);
            let taken = disk.content()[PAGE..3 * PAGE].iter().take_while(|b| **b == i).count();
            assert!(r.is_err() || taken == 2 * PAGE, "a write that says so is whole");
            part += u32::from(r.is_err() && taken > 0 && before != disk.content());
            let read = read(&store, 0, 8 * PAGE);
            assert!(read.as_ref().is_err() || read == Ok(disk.content()));
            kinds.extend(
                [("write", r.err()), ("read", read.err()), ("flush", store.flush().err())].map(|k| format!("{k:?}")),
            );
        }
        (kinds, part, disk.events())
    };
    let (kinds, part, events) = run();
    let short = format!("{:?}", ("read", Some(StoreError::Short)));
    assert!(kinds.len() == 7 && kinds.contains(&short) && part > 0, "{kinds:?}, {part} in part");
    assert!((kinds, part, events) == run(), "a seed is a run");
}

#[test]
fn writes_in_flight_are_done_in_any_order_but_those_of_one_sector() {
    let orders: BTreeSet<Vec<u64>> = (1..40)
        .map(|seed| {
            let (disk, _) = disk(4 * PAGE, Behaviour { seed, ..Behaviour::default() });
            let [a, b, c] = [[2; PAGE], [3; PAGE], [4; PAGE]];
            let (half, far) = ((PAGE / 2) as u64, 2 * PAGE as u64);
            disk.write_together(&[(0, &a), (far, &a), (half, &b), (far + PAGE as u64, &b), (0, &c[..SECTOR])]);
            let want = [vec![4], vec![2; 3], vec![3; 8], vec![1; 4], vec![2; 8], vec![3; 8]].concat();
            assert_eq!(sectors(&disk.content()), want, "seed {seed}");
            disk.events().iter().filter_map(|e| if let Event::Write(pos, ..) = e { Some(*pos) } else { None }).collect()
        })
        .collect();
    assert!(orders.len() > 5, "{} orders", orders.len());
}

#[test]
fn writers_that_wait_for_each_other_all_get_through() {
    let (disk, store) = disk(64 * PAGE, Behaviour { reorders: true, ..Behaviour::default() });
    std::thread::scope(|s| {
        for t in 0..4usize {
            let store = &store;
            s.spawn(move || (0..16).for_each(|i| write(store, (t * 16 + i) * PAGE, &[2; PAGE]).unwrap()));
        }
    });
    assert_eq!(disk.nr_volatile(), 64 * 8, "each was done once, and none is durable");
    store.flush().unwrap();
    assert!(disk.durable() == vec![2; 64 * PAGE]);
}

#[test]
fn the_order_is_remembered() {
    let (disk, store) = disk(PAGE, Behaviour::default());
    store.dsync(0, 10).unwrap();
    write(&store, 0, &[2; 7]).unwrap();
    store.flush().unwrap();
    store.punch(1, 2).unwrap();
    store.set_len(5).unwrap();
    assert_eq!(read(&store, 0, 6), Err(StoreError::Short));
    let want = [
        Event::Dsync(0, 10),
        Event::Write(0, 7, true),
        Event::Flush(true),
        Event::Punch(1, 2),
        Event::SetLen(5),
        Event::Read(0, 6, false),
    ];
    assert_eq!(disk.events(), want);
    disk.clear_events();
    assert_eq!(disk.events(), []);
}
