//! Minor delegates: the kernel's `minor` and `minor-wp` self-tests (`mm/uffd-unit-tests.c`), over each mode.
#![allow(unsafe_code, reason = "delegates in the handler are promised to be safe there")]
#![allow(clippy::cast_possible_truncation, reason = "small numbers")]
#![cfg(feature = "userfaultfd")]

mod common;

use common::{EXTENT, KnobStore, Knobs, PAGE, byte_of, content, each_mode, knob_object, load, map, store, until};
use softfault::{
    Arena, Delivery, Error, MinorDelegate, MinorError, MinorFault, MinorVerdict, Object, Prot, Runtime, Sharing,
    VmFaultReason,
};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

const NR: usize = 128;
const LEN: u64 = (NR * PAGE) as u64;

/// Flips every byte of the page, counting calls by page.
#[derive(Debug)]
struct Flip(Arc<Vec<AtomicUsize>>);

impl MinorDelegate for Flip {
    fn minor_fault(&self, fault: &MinorFault<'_>) -> MinorVerdict {
        self.0[fault.pgoff() as usize].fetch_add(1, Ordering::SeqCst);
        match fault.rewrite(&mut |bytes| bytes.iter_mut().for_each(|b| *b = !*b)) {
            Ok(()) => MinorVerdict::Continue,
            Err(_) => MinorVerdict::Refuse,
        }
    }
}

fn counts() -> Arc<Vec<AtomicUsize>> {
    Arc::new((0..NR).map(|_| AtomicUsize::new(0)).collect())
}

fn total(counts: &[AtomicUsize]) -> usize {
    counts.iter().map(|c| c.load(Ordering::SeqCst)).sum()
}

/// Delegates the whole mapping, to a worker or in the handler.
fn delegate(a: &Arena, d: Box<dyn MinorDelegate>, in_handler: bool) -> softfault::Result<()> {
    let range = 0..NR * PAGE;
    if in_handler {
        // SAFETY: the delegates of this file use atomics and the page alone.
        unsafe { a.delegate_minor_in_handler(range, d) }
    } else {
        a.delegate_minor(range, d)
    }
}

/// Every mode, both designs, delegate on a worker and in the handler.
fn each_way(what: &str, f: impl Fn(&Runtime, Delivery, &Arena, bool)) {
    each_mode(what, |rt, mode| {
        for (lookup_first, in_handler) in [(false, false), (false, true), (true, false), (true, true)] {
            let a = rt.arena(EXTENT).delivery(mode).lookup_first(lookup_first).build().unwrap();
            f(rt, mode, &a, in_handler);
        }
    });
}

/// An object that was filled through the other side: by `write_at`, as the self-test does by its alias.
fn populated(rt: &Runtime) -> Object {
    let object = rt.anonymous(LEN).unwrap();
    assert_eq!(object.write_at(0, &content(0, 0..LEN)).unwrap() as u64, LEN);
    object
}

#[test]
fn the_kernels_minor_test() {
    each_way("minor", |rt, mode, a, in_handler| {
        let object = populated(rt);
        let before = rt.stats();
        map(a, 0, &object, Prot::ReadWrite, Sharing::Shared);
        let counts = counts();
        delegate(a, Box::new(Flip(Arc::clone(&counts))), in_handler).unwrap();
        // Eight threads race on each page.
        let together = Barrier::new(8);
        std::thread::scope(|s| {
            for _ in 0..8 {
                s.spawn(|| {
                    for p in 0..NR {
                        together.wait();
                        for at in [p * PAGE, p * PAGE + 4095] {
                            assert_eq!(load(a, at), Ok(!byte_of(0, at as u64)), "{mode:?}: page {p} flipped once");
                        }
                    }
                });
            }
        });
        let flipped: Vec<u8> = content(0, 0..LEN).iter().map(|b| !b).collect();
        common::same("flipped", &common::bytes(a, 0..NR * PAGE), &flipped);
        assert!(counts.iter().all(|c| c.load(Ordering::SeqCst) == 1), "{mode:?}: each page told once");
        let after = rt.stats();
        let delta = |name: &str| after[name] - before[name];
        assert_eq!(delta("uffd_minor_told"), NR as u64, "{mode:?}: minor faults are exact");
        assert_eq!(delta("uffd_missing"), 0, "{mode:?}: and none was missing");
    });
}

#[test]
fn a_page_from_the_store_is_told_of_too() {
    each_way("missing", |rt, mode, a, in_handler| {
        let (object, _) = knob_object(rt, LEN, true);
        map(a, 0, &object, Prot::Read, Sharing::Shared);
        let counts = counts();
        delegate(a, Box::new(Flip(Arc::clone(&counts))), in_handler).unwrap();
        let before = rt.stats()["uffd_missing"];
        assert_eq!(load(a, 5 * PAGE), Ok(!byte_of(0, 5 * PAGE as u64)), "{mode:?}");
        until("it was missing", || rt.stats()["uffd_missing"] == before + 1);
        assert_eq!(total(&counts), 1, "{mode:?}: only what was touched");
    });
}

#[test]
fn pages_that_were_mapped_before_do_not_escape() {
    each_way("escape", |rt, mode, a, in_handler| {
        let object = populated(rt);
        map(a, 0, &object, Prot::ReadWrite, Sharing::Shared);
        (0..NR).for_each(|p| assert_eq!(load(a, p * PAGE), Ok(byte_of(0, (p * PAGE) as u64))));
        let counts = counts();
        delegate(a, Box::new(Flip(Arc::clone(&counts))), in_handler).unwrap();
        (0..NR).for_each(|p| assert_eq!(load(a, p * PAGE), Ok(!byte_of(0, (p * PAGE) as u64)), "{mode:?} page {p}"));
        a.zap(0..NR * PAGE).unwrap();
        (0..NR).for_each(|p| assert_eq!(load(a, p * PAGE), Ok(!byte_of(0, (p * PAGE) as u64)), "{mode:?} page {p}"));
        assert_eq!(total(&counts), NR, "{mode:?}: told stays told");
    });
}

/// Refuses odd pages, and delays every page twice.
#[derive(Debug)]
struct Picky(Arc<Vec<AtomicUsize>>);

impl MinorDelegate for Picky {
    fn minor_fault(&self, fault: &MinorFault<'_>) -> MinorVerdict {
        let page = fault.pgoff() as usize;
        let seen = self.0[page].fetch_add(1, Ordering::SeqCst);
        let mut first = [0];
        let read = fault.read(0, &mut first);
        if read.is_err() || first[0] != byte_of(0, fault.pgoff() * PAGE as u64) {
            return MinorVerdict::Refuse;
        }
        match (seen, page % 2) {
            (0 | 1, _) => MinorVerdict::Delay,
            (_, 0) => MinorVerdict::Continue,
            _ => MinorVerdict::Refuse,
        }
    }
}

#[test]
fn refused_and_delayed_pages() {
    each_way("refuse", |rt, mode, a, in_handler| {
        let object = populated(rt);
        map(a, 0, &object, Prot::ReadWrite, Sharing::Shared);
        let counts = counts();
        delegate(a, Box::new(Picky(Arc::clone(&counts))), in_handler).unwrap();
        for p in 0..NR {
            let want = if p % 2 == 0 { Ok(byte_of(0, (p * PAGE) as u64)) } else { Err(libc::SIGBUS) };
            assert_eq!(load(a, p * PAGE), want, "{mode:?} page {p}");
            assert_eq!(load(a, p * PAGE), want, "{mode:?} page {p}, again");
            assert_eq!(counts[p].load(Ordering::SeqCst), 3, "{mode:?} page {p}: delayed twice, decided once");
        }
        assert!(rt.stats().reason(VmFaultReason::UFFD_MINOR) > 0 || rt.stats()["uffd_minor_told"] > 0);
        object.read_at(PAGE as u64, &mut [0; 8]).unwrap();
    });
}

/// What a delegate is told, and what it may not do.
#[derive(Debug, Default)]
struct Notes {
    address: AtomicUsize,
    write: AtomicUsize,
    errors: AtomicUsize,
}

#[derive(Debug)]
struct Noter(Arc<Notes>);

impl MinorDelegate for Noter {
    fn minor_fault(&self, fault: &MinorFault<'_>) -> MinorVerdict {
        self.0.address.store(fault.address(), Ordering::SeqCst);
        self.0.write.store(usize::from(fault.is_write()), Ordering::SeqCst);
        let errors = [
            fault.read(4000, &mut [0; 97]) == Err(MinorError::Range),
            fault.read(usize::MAX, &mut [0; 2]) == Err(MinorError::Range),
            fault.read(4000, &mut [0; 96]) == Ok(()),
            fault.rewrite(&mut |_| ()) == Err(MinorError::Busy),
        ];
        self.0.errors.store(errors.iter().filter(|e| !**e).count(), Ordering::SeqCst);
        MinorVerdict::Continue
    }
}

#[test]
fn what_a_delegate_is_told() {
    each_way("told", |rt, mode, a, in_handler| {
        let object = populated(rt);
        map(a, 0, &object, Prot::ReadWrite, Sharing::Shared);
        // Another mapping of the object: nobody may rewrite pages that are mapped elsewhere.
        let other = common::arena(rt, mode, EXTENT);
        map(&other, 0, &object, Prot::Read, Sharing::Shared);
        let notes = Arc::new(Notes::default());
        delegate(a, Box::new(Noter(Arc::clone(&notes))), in_handler).unwrap();
        for (page, write) in [(3, false), (4, true)] {
            if write {
                store(a, page * PAGE + 17, 1).unwrap();
            } else {
                load(a, page * PAGE + 17).unwrap();
            }
            let address = a.as_ptr() as usize + page * PAGE;
            assert_eq!(notes.address.load(Ordering::SeqCst) & !(PAGE - 1), address, "{mode:?}");
            assert_eq!(notes.write.load(Ordering::SeqCst), usize::from(write), "{mode:?}");
            assert_eq!(notes.errors.load(Ordering::SeqCst), 0, "{mode:?}: range, busy");
        }
        assert_eq!(load(&other, 3 * PAGE), Ok(byte_of(0, 3 * PAGE as u64)), "the other mapping asks nobody");
    });
}

#[test]
fn where_a_delegate_cannot_be() {
    each_mode("denied", |rt, mode| {
        let object = populated(rt);
        let a = common::arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::ReadWrite, Sharing::Private);
        let r = delegate(&a, Box::new(Flip(counts())), false);
        assert!(matches!(r, Err(Error::Denied { op: "Arena::delegate_minor", .. })), "{r:?}");
        a.unmap(0..EXTENT).unwrap();
        let r = delegate(&a, Box::new(Flip(counts())), false);
        assert!(matches!(r, Err(Error::NotMapped { .. })), "{r:?}");
        assert_eq!(load(&a, 0), Err(libc::SIGSEGV));
    });
}

#[test]
fn a_delegated_range_among_others() {
    each_way("part", |rt, mode, a, in_handler| {
        let object = populated(rt);
        map(a, 0, &object, Prot::ReadWrite, Sharing::Shared);
        let seen = counts();
        let boxed = Box::new(Picky(Arc::clone(&seen)));
        let range = 10 * PAGE..20 * PAGE;
        if in_handler {
            // SAFETY: atomics and the page alone.
            unsafe { a.delegate_minor_in_handler(range, boxed) }.unwrap();
        } else {
            a.delegate_minor(range, boxed).unwrap();
        }
        for p in 0..NR {
            let odd = (10..20).contains(&p) && p % 2 == 1;
            let want = if odd { Err(libc::SIGBUS) } else { Ok(byte_of(0, (p * PAGE) as u64)) };
            assert_eq!(load(a, p * PAGE), want, "{mode:?} page {p}");
        }
        assert_eq!(total(&seen), 30, "{mode:?}: ten pages, each three times");
        a.unmap(12 * PAGE..14 * PAGE).unwrap();
        a.unmap(0..EXTENT).unwrap();
        map(a, 0, &object, Prot::ReadWrite, Sharing::Shared);
        (0..NR).for_each(|p| assert_eq!(load(a, p * PAGE), Ok(byte_of(0, (p * PAGE) as u64)), "{mode:?} page {p}"));
    });
}

/// The monitor's context notes first stores asynchronously: such objects are refused, not served wrongly.
fn denied_on_monitor(what: &str, a: &Arena, object: &Object) {
    let r = a.map(0, object, 0, PAGE, Prot::Read, Sharing::Shared);
    assert!(matches!(r, Err(Error::Denied { op: "Arena::map", .. })), "{what}: {r:?}");
    println!("{what}: Monitor skipped: {}", r.unwrap_err());
}

#[test]
fn the_kernels_minor_wp_test() {
    // Populate, delegate, read everything, then write everything: each page is told once and write-faults once.
    each_way("minor_wp", |rt, mode, a, in_handler| {
        let knobs = Arc::new(Knobs::default());
        let builder = rt.object(LEN).writable(true).synchronous_writes(true);
        let object = builder.handler_store(Box::new(KnobStore(knobs))).unwrap();
        object.populate(0..LEN).unwrap();
        if mode == Delivery::Monitor {
            return denied_on_monitor("minor_wp", a, &object);
        }
        map(a, 0, &object, Prot::ReadWrite, Sharing::Shared);
        let counts = counts();
        delegate(a, Box::new(Flip(Arc::clone(&counts))), in_handler).unwrap();
        (0..NR).for_each(|p| assert_eq!(load(a, p * PAGE), Ok(!byte_of(0, (p * PAGE) as u64)), "{mode:?} page {p}"));
        assert_eq!(total(&counts), NR);
        let before = rt.stats();
        let write_all = |value: u8| {
            for p in 0..NR {
                store(a, p * PAGE + 1, value).unwrap();
                assert_eq!(load(a, p * PAGE + 1), Ok(value), "{mode:?} page {p}");
            }
        };
        write_all(0x11);
        let delta = |name: &str| rt.stats()[name] - before[name];
        assert_eq!((delta("page_mkwrite"), delta("uffd_wp")), (NR as u64, NR as u64), "{mode:?}: once a page");
        let once = (delta("page_mkwrite"), delta("uffd_wp"));
        write_all(0x22);
        assert_eq!((delta("page_mkwrite"), delta("uffd_wp")), once, "{mode:?}: not again");
        assert_eq!(delta("uffd_minor_told"), 0, "{mode:?}: the delegate is not asked again");
        let mut got = vec![0; PAGE];
        object.read_at(0, &mut got).unwrap();
        assert_eq!((got[0], got[1]), (!byte_of(0, 0), 0x22));
    });
}

#[test]
fn synchronous_writes_without_a_delegate() {
    each_mode("sync_writes", |rt, mode| {
        let knobs = Arc::new(Knobs::default());
        let builder = rt.object(LEN).writable(true).synchronous_writes(true);
        let object = builder.handler_store(Box::new(KnobStore(knobs))).unwrap();
        let a = common::arena(rt, mode, EXTENT);
        if mode == Delivery::Monitor {
            return denied_on_monitor("sync_writes", &a, &object);
        }
        map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
        // Some are loaded first (then protected), some stored to at once; all with their neighbours around them.
        for p in 0..NR {
            if p % 3 == 0 {
                load(&a, p * PAGE).unwrap();
            }
            store(&a, p * PAGE, 0x5a).unwrap();
            store(&a, p * PAGE + 1, 0x5b).unwrap();
        }
        assert_eq!(rt.stats()["page_mkwrite"], NR as u64, "{mode:?}: the first store of each page, and no other");
        (0..NR).for_each(|p| assert_eq!(load(&a, p * PAGE), Ok(0x5a)));
    });
}

/// Rewrites slowly: says that it has begun, and ends when it may.
#[derive(Debug)]
struct Slow(Arc<[Barrier; 2]>);

impl MinorDelegate for Slow {
    fn minor_fault(&self, fault: &MinorFault<'_>) -> MinorVerdict {
        let rewrite = fault.rewrite(&mut |bytes| {
            self.0[0].wait();
            self.0[1].wait();
            bytes[1] = 2;
        });
        if rewrite.is_ok() { MinorVerdict::Continue } else { MinorVerdict::Refuse }
    }
}

/// What was stored before a sync is in the store after it, though a delegate has the page in its hands.
#[test]
fn a_sync_waits_for_a_page_that_is_being_rewritten() {
    each_mode("rewrite_sync", |rt, mode| {
        let file = common::TempFile::new(4 * PAGE);
        let object = rt.open_file_rw(file.path()).unwrap();
        let a = common::arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
        let gates = Arc::new([Barrier::new(2), Barrier::new(2)]);
        a.delegate_minor(0..4 * PAGE, Box::new(Slow(Arc::clone(&gates)))).unwrap();
        object.write_at(0, &[1]).unwrap();
        std::thread::scope(|s| {
            let touched = s.spawn(|| load(&a, 0));
            gates[0].wait();
            let synced = s.spawn(|| object.sync_all());
            // It has nothing else to do: without a wait it is done long since.
            std::thread::sleep(std::time::Duration::from_millis(100));
            let early = synced.is_finished();
            gates[1].wait();
            assert!(!early, "{mode:?}: it passed over the page");
            synced.join().unwrap().unwrap();
            assert_eq!(std::fs::read(file.path()).unwrap()[..2], [1, 2], "{mode:?}: in the file");
            assert_eq!(touched.join().unwrap(), Ok(1));
        });
    });
}

/// What its words cannot name is refused, by name.
#[test]
fn what_cannot_be_named_is_refused() {
    each_mode("too_large", |rt, mode| {
        let tib = 1u64 << 40;
        for object in [rt.object(64 * tib + 1), rt.object(1).max_len(65 * tib)] {
            let refused = object.anonymous();
            assert!(matches!(&refused, Err(Error::Argument { value, .. }) if *value > 64 * tib), "{refused:?}");
        }
        let len = 17usize << 40;
        let a = rt.arena(len).delivery(mode).build();
        let Ok(a) = a else { return eprintln!("skipped: {mode:?}: no arena of 17 TiB: {a:?}") };
        let gates = Arc::new([Barrier::new(1), Barrier::new(1)]);
        let refused = a.delegate_minor(0..len, Box::new(Slow(Arc::clone(&gates))));
        assert!(matches!(refused, Err(Error::Argument { arg: "range.end", .. })), "{mode:?}: {refused:?}");
        let nothing_there = a.delegate_minor(1 << 40..len, Box::new(Slow(gates)));
        assert!(matches!(nothing_there, Err(Error::NotMapped { .. })), "{mode:?}: {nothing_there:?}");
    });
}
