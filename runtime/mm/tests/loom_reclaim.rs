//! Reclaim and write-back against faults, stores and each other, under loom. Each rule has a model that fails without it.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p softfault-mm --release --test 'loom_*'`
#![cfg(loom)]
#![forbid(unsafe_code)]

#[path = "support/loom.rs"]
mod support;

use softfault_mm::extent::ExtentState;
use softfault_mm::folio::{DIRTY, FolioWord, REFERENCED, State, UNMAPPED};
use softfault_mm::huge_memory::promote_run;
use softfault_mm::lru::{Entry, Fifo, Lruvec};
use softfault_mm::memcontrol::CacheAccount;
use softfault_mm::page::{EXTENT_PAGES, EXTENT_SIZE};
use softfault_mm::sync::{AtomicU32, AtomicU64, Ordering, fence};
use softfault_mm::types::VmFlags;
use std::sync::Arc;
use support::{Broken, Setup, Step, World, check, spawn};

const RO: VmFlags = VmFlags::READ.union(VmFlags::SHARED);
const RW: VmFlags = RO.union(VmFlags::WRITE).union(VmFlags::MAYWRITE);

fn setup(flags: VmFlags, nr_pages: usize, broken: Broken) -> Setup {
    Setup { flags, nr_pages, cached: nr_pages, fill_window: 1, broken }
}

fn one_page(flags: VmFlags, broken: Broken) -> Setup {
    setup(flags | VmFlags::RAND_READ, 1, broken)
}

// --- Two stages -------------------------------------------------------------------------------------------------------

/// ```text
/// reclaim                                 a thread
/// pin: UNMAPPED, -REFERENCED
/// zap everywhere, unpin
///                                         maps it: REFERENCED with its pin
/// UNMAPPED and not REFERENCED? -> evicting: nobody has it mapped, and the punch loses no note
/// ```
fn fault_between_the_stages(broken: Broken) {
    let w = World::new(one_page(RO, broken));
    w.strict();
    let t = spawn(move || w.evict(0, 1));
    assert_eq!(w.load(0, 0), 5);
    t.join().expect("the reclaimer");
    assert_eq!(w.load(0, 0), 5);
    assert_eq!(w.settle(0), 5);
}

#[test]
fn a_page_that_was_missed_is_not_dropped() {
    check(2, || fault_between_the_stages(Broken::No));
}

#[test]
#[should_panic(expected = "a page is dropped while mapped")]
fn without_referenced_a_page_is_dropped_while_mapped() {
    check(2, || fault_between_the_stages(Broken::NoReferenced));
}

/// The touched page's neighbour: a window must not map what waits to be missed.
fn window_between_the_stages(broken: Broken) {
    let w = World::new(setup(RO, 2, broken));
    w.strict();
    let t = spawn(move || w.evict(1, 2));
    assert_eq!(w.load(0, 0), 5);
    t.join().expect("the reclaimer");
    let _ = w.try_load(0, 1);
    assert_eq!((w.settle(0), w.settle(1)), (5, 5));
}

#[test]
fn a_window_passes_over_what_reclaim_has_unmapped() {
    check(2, || window_between_the_stages(Broken::No));
}

#[test]
#[should_panic(expected = "a page is dropped while mapped")]
fn a_window_that_does_not_hides_the_miss() {
    check(2, || window_between_the_stages(Broken::AroundUnmapped));
}

/// ```text
/// reclaim A                               others
/// verdict: missed (REFERENCED)
///                                         truncated, filled again; B: UNMAPPED in the new life
/// keep()
/// ```
/// `UNMAPPED` is B's: taking it away would let windows map the page between B's look and its zap.
#[test]
fn a_late_verdict_leaves_the_pages_next_life_alone() {
    check(3, || {
        let word = Arc::new(FolioWord::new());
        word.try_claim().expect("absent");
        let _ = word.publish(REFERENCED | UNMAPPED);
        let seen = word.load();
        let t = spawn({
            let word = Arc::clone(&word);
            move || word.keep(seen.version())
        });
        if word.try_discard().is_ok() {
            let _ = word.evicted(0);
            word.try_claim().expect("absent");
            let _ = word.publish(0);
            word.try_unmap().expect("a new page");
            t.join().expect("the late verdict");
            assert!(word.load().has(UNMAPPED), "another reclaimer's mark is gone");
        }
    });
}

// --- Write-back -------------------------------------------------------------------------------------------------------

/// ```text
/// flusher                              a thread
/// writeback, -DIRTY
/// protects everywhere
///                                      stores: noted, or +DIRTY under a pin
/// reads the bytes; -> uptodate
/// ```
fn store_against(wp: VmFlags, flush: fn(&World)) {
    let w = World::new(one_page(RW | wp, Broken::No));
    // Dirty, and open to stores.
    w.store(0, 0, 6);
    let t = spawn(move || w.store(0, 0, 7));
    flush(w);
    t.join().expect("the writer");
    assert_eq!(w.settle(0), 7, "a store is missing from the store");
}

fn in_order(w: &World, steps: [Step; 4]) {
    let mut bytes = 0;
    steps.into_iter().for_each(|step| w.write_back_step(0, step, &mut bytes));
}

#[test]
fn a_store_during_write_back_is_not_lost() {
    for wp in [VmFlags::WP_SYNC, VmFlags::WP_ASYNC] {
        check(2, move || store_against(wp, |w| _ = w.write_back(0)));
        check(2, move || store_against(wp, |w| in_order(w, [Step::Clear, Step::Protect, Step::Read, Step::End])));
    }
}

#[test]
#[should_panic(expected = "a store is missing from the store")]
fn protecting_before_clearing_loses_a_store() {
    check(2, || {
        store_against(VmFlags::WP_SYNC, |w| in_order(w, [Step::Protect, Step::Clear, Step::Read, Step::End]));
    });
}

#[test]
#[should_panic(expected = "a store is missing from the store")]
fn reading_before_protecting_loses_a_store() {
    check(2, || {
        store_against(VmFlags::WP_ASYNC, |w| in_order(w, [Step::Clear, Step::Read, Step::Protect, Step::End]));
    });
}

// --- Notes of stores against unmapping --------------------------------------------------------------------------------

/// ```text
/// reclaim                          a thread
/// look: clean
///                                  writes: noted in the PTE
/// zap: the note is gone
/// look: no marker -> dirty
/// ```
fn noted_store_against_unmap(broken: Broken) {
    let w = World::new(one_page(RW | VmFlags::WP_ASYNC, broken));
    assert_eq!(w.load(0, 0), 5, "mapped, protected");
    let t = spawn(move || w.evict(0, 1));
    let stored = w.try_store(0, 0, 7);
    t.join().expect("the reclaimer");
    assert_eq!(w.settle(0), if stored { 7 } else { 5 }, "a store is missing from the store");
}

#[test]
fn a_noted_store_survives_unmapping() {
    check(2, || noted_store_against_unmap(Broken::No));
}

#[test]
#[should_panic(expected = "a store is missing from the store")]
fn without_the_second_look_a_noted_store_is_lost() {
    check(2, || noted_store_against_unmap(Broken::NoSecondLook));
}

/// ```text
/// reclaim                          a thread
/// look: nothing mapped
///                                  maps it for a load (REFERENCED), writes: noted
/// zap: the note is gone
/// look: no marker, REFERENCED -> dirty
/// ```
fn mapped_and_written_against_unmap(broken: Broken) {
    let w = World::new(one_page(RW | VmFlags::WP_ASYNC, broken));
    let t = spawn(move || w.evict(0, 1));
    assert_eq!(w.load(0, 0), 5);
    let stored = w.try_store(0, 0, 7);
    t.join().expect("the reclaimer");
    assert_eq!(w.settle(0), if stored { 7 } else { 5 }, "a store is missing from the store");
}

#[test]
fn a_store_to_a_page_that_was_not_mapped_yet_survives_unmapping() {
    check(2, || mapped_and_written_against_unmap(Broken::No));
}

#[test]
#[should_panic(expected = "a store is missing from the store")]
fn without_referenced_a_store_between_the_looks_is_lost() {
    check(2, || mapped_and_written_against_unmap(Broken::NoReferenced));
}

// --- Entries that the kernel empties by itself ------------------------------------------------------------------------

/// ```text
/// a thread                         the kernel                       flusher
/// maps it, writes: noted
///                                  reclaims: the note is gone
///                                                                   scans: empty, once mapped -> dirty
/// ```
fn emptied_after_a_store(broken: Broken) {
    let w = World::new(one_page(RW | VmFlags::WP_ASYNC, broken));
    let t = spawn(move || {
        w.load(0, 0);
        let stored = w.try_store(0, 0, 7);
        w.empty(0, 0);
        stored
    });
    w.write_back(0);
    let stored = t.join().expect("the writer");
    assert_eq!(w.settle(0), if stored { 7 } else { 5 }, "a store is missing from the store");
}

#[test]
fn a_store_survives_that_the_kernel_empties_its_entry() {
    check(2, || emptied_after_a_store(Broken::No));
}

#[test]
#[should_panic(expected = "a store is missing from the store")]
fn an_empty_entry_that_counts_as_clean_loses_a_store() {
    check(2, || emptied_after_a_store(Broken::EmptyIsClean));
}

/// ```text
/// who maps                         another, who stores, and then syncs
/// [bit]
/// maps
///                                  stores: noted; the kernel reclaims: the note is gone
///                                  scans: empty, no bit: clean
/// bit
/// ```
fn emptied_before_the_install_is_over(broken: Broken) {
    let w = World::new(one_page(RW | VmFlags::WP_ASYNC, broken));
    let t = spawn(move || w.load(0, 0));
    if w.try_store(0, 0, 7) {
        w.empty(0, 0);
        assert!(w.finds_dirty(0), "a store before the scan was not found");
    }
    t.join().expect("who maps");
    let _ = w.settle(0);
}

#[test]
fn what_is_noted_before_the_install_is_found() {
    check(2, || emptied_before_the_install_is_over(Broken::No));
}

#[test]
#[should_panic(expected = "a store before the scan was not found")]
fn what_is_noted_after_the_install_alone_is_not() {
    check(2, || emptied_before_the_install_is_over(Broken::LateBit));
}

/// The kernel empties an entry while our own reclaim looks at it and zaps it.
#[test]
fn a_store_survives_that_both_unmap() {
    for mapped in [false, true] {
        check(2, move || {
            let w = World::new(one_page(RW | VmFlags::WP_ASYNC, Broken::No));
            if mapped {
                w.load(0, 0);
            }
            let t = spawn(move || w.evict(0, 1));
            if !mapped {
                w.load(0, 0);
            }
            let stored = w.try_store(0, 0, 7);
            w.empty(0, 0);
            t.join().expect("the reclaimer");
            assert_eq!(w.settle(0), if stored { 7 } else { 5 }, "a store is missing from the store");
        });
    }
}

// --- Queues -----------------------------------------------------------------------------------------------------------

/// A cached page has one entry that names it as it is, whoever dropped it and brought it back: with none it would stay for
/// ever, with two it would be looked at twice as often.
fn refault_against_shrink(w: &'static World, refault: fn(&World)) {
    // A page that is cached waits on probation: the thread drops it, or finds that it was missed.
    w.shrink();
    let t = spawn(move || w.shrink());
    refault(w);
    t.join().expect("the reclaimer");
    let cached = w.word(0).load().is_mappable();
    assert_eq!(w.nr_entries(0), usize::from(cached), "entries that name the page");
    // Round the queues, past entries of nothing: what lies outside of their ends is found.
    for _ in 0..4 {
        let lru = &w.mapping.account.lru;
        let _ = [&lru.small, &lru.main, &lru.probation].map(|q| q.push(Entry::named(1, 1 << 20, 0).0));
        w.shrink();
    }
    assert_eq!(w.word(0).load().state(), State::Absent, "reclaim does not see the page");
    assert_eq!(w.settle(0), 5);
}

#[test]
fn a_refault_enters_the_queues_once() {
    // One preemption: a batch of reclaim has too many steps for two to be walked to the end in minutes.
    check(1, || {
        let w = World::with_queues(one_page(RO, Broken::No), 2);
        refault_against_shrink(w, |w| assert_eq!(w.load(0, 0), 5));
    });
}

/// The entry comes after the page is published: who pops that of a page still being filled takes it for a stale one.
#[test]
#[should_panic(expected = "entries that name the page")]
fn an_entry_before_the_page_is_lost() {
    check(2, || {
        let w = World::with_queues(Setup { cached: 0, ..one_page(RO, Broken::No) }, 2);
        refault_against_shrink(w, |w| {
            let account = w.mapping.account;
            assert!(account.charge(1));
            w.word(0).try_claim().expect("absent");
            assert!(account.lru.add(Entry::new(1, 0, w.word(0).load()), false));
            w.mapping.a_ops.read_folio(0, 1).expect("the store is well");
            w.mapping.chunks[0].add_uptodate(1);
            let _ = w.word(0).publish(0);
        });
    });
}

/// A shadow is left by the evictor with the state, so that a refault finds it or the page, and is never taken for pins.
#[test]
fn a_shadow_is_found_by_the_next_claim() {
    check(3, || {
        let word = Arc::new(FolioWord::new());
        word.try_claim().expect("absent");
        let _ = word.publish(UNMAPPED);
        word.try_evict().expect("idle");
        let t = spawn({
            let word = Arc::clone(&word);
            move || word.try_claim()
        });
        let _ = word.evicted(0x8001);
        match t.join().expect("the fault") {
            Ok(old) => {
                assert_eq!((old.shadow(), old.pins()), (0x8001, 0));
                assert_eq!((word.load().shadow(), word.load().pins()), (0, 0), "a claim has neither");
            }
            Err(seen) => assert_eq!(seen.state(), State::Evicting),
        }
    });
}

trait Queue: Send + Sync {
    fn push(&self, item: u64) -> bool;
    fn pop(&self) -> Option<u64>;
}

impl Queue for Fifo<'static> {
    fn push(&self, item: u64) -> bool {
        Fifo::push(self, item)
    }
    fn pop(&self) -> Option<u64> {
        Fifo::pop(self)
    }
}

fn cells(n: usize) -> &'static [AtomicU64] {
    Box::leak((0..n).map(|_| AtomicU64::new(0)).collect())
}

/// The same with the ends moved first and the cells filled and emptied afterwards.
struct EndsFirst {
    cells: &'static [AtomicU64],
    head: AtomicU64,
    tail: AtomicU64,
}

impl EndsFirst {
    fn at(&self, end: &AtomicU64) -> &'static AtomicU64 {
        let at = usize::try_from(end.fetch_add(1, Ordering::AcqRel)).expect("small");
        &self.cells[at % self.cells.len()]
    }
}

impl Queue for EndsFirst {
    fn push(&self, item: u64) -> bool {
        if self.tail.load(Ordering::Acquire) - self.head.load(Ordering::Acquire) >= self.cells.len() as u64 {
            return false;
        }
        self.at(&self.tail).store(item, Ordering::Release);
        true
    }
    fn pop(&self) -> Option<u64> {
        if self.tail.load(Ordering::Acquire) <= self.head.load(Ordering::Acquire) {
            return None;
        }
        Some(self.at(&self.head).swap(0, Ordering::AcqRel)).filter(|item| *item != 0)
    }
}

/// Two producers and two consumers, in two cells.
fn push_against_pop(q: &'static dyn Queue) {
    assert!(q.push(1));
    let a = spawn(move || (q.push(2), q.pop()));
    let (pushed, popped) = (q.push(3), q.pop());
    let (other_pushed, other_popped) = a.join().expect("the other thread");
    let mut got: Vec<u64> = [popped, other_popped].into_iter().flatten().collect();
    // What lies outside of the ends is found when they come round.
    for turn in 0..4 {
        got.extend(q.pop());
        if q.push(10 + turn) {
            got.extend(q.pop());
        }
    }
    got.retain(|item| *item < 10);
    got.sort_unstable();
    let want = [Some(1), other_pushed.then_some(2), pushed.then_some(3)];
    assert_eq!(got, want.into_iter().flatten().collect::<Vec<_>>(), "an item is lost or doubled");
}

#[test]
fn a_queue_neither_loses_nor_doubles() {
    check(3, || push_against_pop(Box::leak(Box::new(Fifo::new(cells(2), 2)))));
}

#[test]
#[should_panic(expected = "an item is lost or doubled")]
fn a_queue_that_moves_its_ends_first_loses() {
    check(3, || {
        let q = EndsFirst { cells: cells(2), head: AtomicU64::new(0), tail: AtomicU64::new(0) };
        push_against_pop(Box::leak(Box::new(q)));
    });
}

// --- Native extents ---------------------------------------------------------------------------------------------------

/// ```text
/// reclaim                              promoter
/// page: UNMAPPED, zapped
///                                      hands the extent over; the kernel maps the page, unasked
/// demotes; UNMAPPED and not REFERENCED -> evicting: dropped while it is mapped
/// ```
fn promote_against_shrink(promote: fn(&World)) {
    let w = World::with_queues(setup(RO | VmFlags::NATIVE_OK, EXTENT_PAGES, Broken::No), 2);
    w.strict();
    let t = spawn(move || w.shrink());
    promote(w);
    let _ = w.try_load(0, 0);
    t.join().expect("the reclaimer");
    w.shrink();
    let _ = w.try_load(0, 0);
}

#[test]
fn an_extent_with_an_unmapped_page_is_not_handed_over() {
    // One preemption, as above.
    check(1, || promote_against_shrink(|w| _ = promote_run(&w.vmas[0], 0, w.vmas[0].start, 1)));
}

/// The drawing above, in order: the search for it among all interleavings of a whole batch takes minutes.
fn promote_between_the_stages(promote: fn(&World)) {
    let w = World::with_queues(setup(RO | VmFlags::NATIVE_OK, EXTENT_PAGES, Broken::No), 2);
    w.strict();
    w.shrink();
    promote(w);
    let _ = w.try_load(0, 0);
    w.shrink();
    let _ = w.try_load(0, 0);
}

#[test]
fn an_extent_is_not_handed_over_between_the_stages() {
    check(1, || promote_between_the_stages(|w| _ = promote_run(&w.vmas[0], 0, w.vmas[0].start, 1)));
}

#[test]
#[should_panic(expected = "a page is dropped while mapped")]
fn handing_it_over_all_the_same_maps_what_is_dropped() {
    check(1, || {
        promote_between_the_stages(|w| {
            let (vma, chunk) = (&w.vmas[0], &w.mapping.chunks[0]);
            assert!(chunk.try_get_native(), "nobody evicts");
            assert!(vma.extents[0].begin(ExtentState::Trapped), "nobody else promotes");
            vma.mmu.release_extents(vma.start, EXTENT_SIZE, false).expect("the fake always can");
            vma.extents[0].finish(ExtentState::Native);
        });
    });
}

/// ```text
/// who finds a store                        flusher
/// pin, DIRTY
///                                          writes it? it is pinned
/// counts it dirty, unpin
///                                          writeback, counts it clean
/// ```
/// Without the pin the flusher takes from a number that is 0 and stays so, and the page is counted afterwards, for ever.
fn found_against_write_back(mark: fn(&World)) {
    let w = World::new(one_page(RW | VmFlags::WP_SYNC, Broken::No));
    let t = spawn(move || _ = w.write_back(0));
    mark(w);
    t.join().expect("the flusher");
    w.settle(0);
    assert_eq!(w.mapping.account.nr_dirty.load(Ordering::Relaxed), 0, "no page is dirty, and some are counted");
}

#[test]
fn a_page_that_is_found_dirty_is_counted_before_it_is_clean() {
    check(2, || found_against_write_back(|w| _ = w.mapping.mark_dirty(w.word(0))));
}

#[test]
#[should_panic(expected = "no page is dirty, and some are counted")]
fn without_the_pin_it_is_counted_for_ever() {
    check(2, || {
        found_against_write_back(|w| {
            w.word(0).try_dirty().expect("cached");
            w.mapping.account_dirtied(1);
        });
    });
}

// --- Flushes ----------------------------------------------------------------------------------------------------------

fn dirty_page(broken: Broken) -> &'static World {
    let w = World::new(one_page(RW | VmFlags::WP_SYNC, broken));
    w.store(0, 0, 7);
    w
}

/// ```text
/// flush                                flusher
/// turn a -> b
///                                      the store has a page: +b
/// fdatasync: does it cover that page?
/// -a: the page stays unsynced
/// ```
fn flush_against_write_back(broken: Broken) {
    let w = dirty_page(broken);
    let t = spawn(move || w.write_back(0));
    w.flush(true);
    t.join().expect("the flusher");
    let seen = w.word(0).load();
    if !seen.has(DIRTY) && !seen.is_unsynced() {
        assert_eq!(w.durable(0), 7, "a page counts as durable and is not");
    }
    // Two more, and it is: one may have begun before the page was marked.
    w.write_back(0);
    w.flush(true);
    w.flush(true);
    assert!(!w.word(0).load().is_unsynced(), "the page is never durable");
    assert_eq!(w.durable(0), 7);
}

#[test]
fn a_flush_takes_away_only_what_it_covers() {
    check(3, || flush_against_write_back(Broken::No));
}

#[test]
#[should_panic(expected = "a page counts as durable and is not")]
fn a_turn_that_is_taken_late_takes_too_much() {
    check(3, || flush_against_write_back(Broken::LateTurn));
}

/// ```text
/// flush                                flusher
///                                      writeback, -DIRTY; the store has the page
/// fdatasync fails: the store has dropped it
/// unsynced -> dirty again: not marked yet, hence by its state
///                                      -> uptodate, unsynced
/// ```
fn failed_flush_against_write_back(broken: Broken) {
    let w = dirty_page(broken);
    let t = spawn(move || w.write_back(0));
    assert_eq!(w.flush(false), [0u64; 0], "the page is in the cache");
    t.join().expect("the flusher");
    w.write_back(0);
    w.flush(true);
    assert_eq!(w.durable(0), 7, "what a failed flush took away is not written again");
}

#[test]
fn a_failed_flush_makes_its_pages_dirty_again() {
    check(3, || failed_flush_against_write_back(Broken::No));
}

#[test]
#[should_panic(expected = "is not written again")]
fn a_page_in_write_back_must_not_be_forgotten() {
    check(3, || failed_flush_against_write_back(Broken::WritebackForgotten));
}

/// A page that leaves the cache while the flush fails is dirty again, or reported lost.
#[test]
fn a_page_that_left_before_the_flush_failed_is_reported() {
    check(2, || {
        let w = dirty_page(Broken::No);
        assert!(w.write_back(0));
        let t = spawn(move || w.evict(0, 1));
        let lost = w.flush(false);
        t.join().expect("the reclaimer");
        if lost.is_empty() {
            assert!(w.write_back(0), "cached, and dirty again");
            w.flush(true);
            assert_eq!(w.durable(0), 7, "a page is lost, and nobody was told");
        } else {
            assert_eq!(lost, [0]);
            assert!(!w.word(0).load().is_unsynced(), "reported once");
        }
    });
}

// --- The end of an object ---------------------------------------------------------------------------------------------

/// ```text
/// reclaim                                 the object's end
/// section: finds the object by its number
///                                         users 0 -> DYING; unpublishes; waits for sections; frees
/// try_hold: refused (or: it came first, and there is a user)
/// leaves the section, works on the object
/// ```
fn hold_against_end(hold: fn(&World) -> bool) {
    let w = World::new(one_page(RO, Broken::No));
    let inside = Arc::new(AtomicU32::new(0));
    let published = Arc::new(AtomicU32::new(1));
    let freed = Arc::new(AtomicU32::new(0));
    let t = spawn({
        let (inside, published, freed) = (inside.clone(), published.clone(), freed.clone());
        move || {
            inside.store(1, Ordering::Release);
            // The platform's accesses are SeqCst; loom has that only as a fence.
            fence(Ordering::SeqCst);
            let held = published.load(Ordering::Acquire) == 1 && hold(w);
            inside.store(0, Ordering::Release);
            if held {
                assert_eq!(freed.load(Ordering::Relaxed), 0, "an object that somebody uses was freed");
                assert_eq!(freed.load(Ordering::Relaxed), 0, "an object that somebody uses was freed");
                w.mapping.users.fetch_sub(1, Ordering::Release);
            }
        }
    });
    let users = &w.mapping.users;
    while users.compare_exchange(0, softfault_mm::mapping::DYING, Ordering::AcqRel, Ordering::Acquire).is_err() {
        loom::thread::yield_now();
    }
    published.store(0, Ordering::Release);
    fence(Ordering::SeqCst);
    while inside.load(Ordering::Acquire) != 0 {
        loom::thread::yield_now();
    }
    freed.store(1, Ordering::Relaxed);
    t.join().expect("the reclaimer");
}

#[test]
fn who_finds_an_object_by_number_does_not_outlive_it() {
    check(3, || hold_against_end(|w| w.mapping.try_hold()));
}

#[test]
#[should_panic(expected = "an object that somebody uses was freed")]
fn without_the_mark_of_death_it_is_freed_below_its_user() {
    check(3, || {
        hold_against_end(|w| {
            w.mapping.users.fetch_add(1, Ordering::Relaxed);
            true
        });
    });
}

// --- What is being written --------------------------------------------------------------------------------------------

/// A slow store has a page in hand, whatever becomes of the pages of one that fails, and is given them again meanwhile: whoever
/// looks sees the slow one.
#[test]
fn a_slow_write_is_seen_beside_one_that_is_tried_again() {
    check(3, || {
        let account: &CacheAccount<'_> = Box::leak(Box::new(CacheAccount::new(8, Lruvec::new(&[], &[], &[], 8))));
        account.writeback_begins(1, true);
        let retries = spawn(move || {
            account.writeback_begins(64, false);
            account.writeback_ends(64, false);
        });
        assert!(account.is_being_written(), "the slow one is not seen");
        retries.join().expect("a retry");
        account.writeback_ends(1, true);
        assert!(!account.is_being_written());
    });
}
