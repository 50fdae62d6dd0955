//! Captures: what a fault does in each phase, and what the cutter protects.
#![cfg(not(loom))]
#![forbid(unsafe_code)]

mod support;

use softfault_mm::capture;
use softfault_mm::ctx::Ctx;
use softfault_mm::cut::{Capture, Phase, naive, tables};
use softfault_mm::host::{AddressSpace, Woken};
use softfault_mm::page::{EXTENT_PAGES, PAGE_SHIFT};
use softfault_mm::shmem::ShmemVmOps;
use softfault_mm::types::VmFlags;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use support::{Content, MapSpec, ObjectSpec, World, arena_base, lock};

const RW: VmFlags = VmFlags::READ.union(VmFlags::WRITE).union(VmFlags::MAYWRITE).union(VmFlags::SHARED);
const SYNC: VmFlags = RW.union(VmFlags::WP_SYNC).union(VmFlags::CAPTURABLE);

static PLAIN: ShmemVmOps = ShmemVmOps { mkwrite: false };

/// An object in two arenas, and the capture of it; captures are the process's, so there is one at a time.
struct Cut {
    w: World,
    capture: &'static Capture,
    _turn: MutexGuard<'static, ()>,
}

impl Cut {
    fn new(flags: VmFlags, always_dirty: bool) -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        naive::set(0);
        let nr = EXTENT_PAGES;
        let w = World::new(&[ObjectSpec { always_dirty, ..ObjectSpec::pages(nr) }], 2);
        for arena in 0..2 {
            let (at, object, pgoff, ops) = (0, 0, 0, &PLAIN);
            assert!(w.map(MapSpec { arena, at, nr, object, pgoff, flags, ops, granule_pages: 0, delegation: None }));
        }
        let capture = tables().and_then(|t| t.capture(0)).expect("the first one");
        capture.set_phase(Phase::Idle);
        Self { w, capture, _turn: turn }
    }
    fn store(&self, addr: usize, value: u8) {
        let (byte, seen) = self.w.access(&Ctx::handler(0, false, 0, None), addr, Some(value));
        assert_eq!(byte, Some(value), "{addr:#x}: {seen:?}");
    }
    /// Announces the capture and protects everything.
    fn arm(&self) {
        let m = self.w.objects[0].mapping;
        m.captured.bits.clear(EXTENT_PAGES as u64);
        self.capture.set_phase(Phase::Arming);
        m.captured.set_number(Some(0));
        m.captured.set_end(EXTENT_PAGES as u64);
        assert!(self.w.with_rmap(&mut |r| assert!(capture::arm_chunk(r, m, 0))));
    }
    fn sweep(&self, half: usize) -> u64 {
        let mut nr = 0;
        for word in 0..EXTENT_PAGES / 64 {
            let m = self.w.objects[0].mapping;
            assert!(self.w.with_rmap(&mut |r| assert!(capture::sweep_word(r, m, half, word, &mut nr))));
        }
        nr
    }
    fn drain(&self, credits: u32) -> u64 {
        self.capture.set_credits(credits);
        self.capture.set_phase(Phase::Draining);
        self.sweep(self.capture.swap_halves())
    }
    fn kept(&self, p: u64) -> Option<u8> {
        lock(&self.w.objects[0].store.kept).get(&p).map(|bytes| bytes[0])
    }
    fn end(&self) {
        let m = self.w.objects[0].mapping;
        self.capture.set_phase(Phase::Idle);
        self.w.with_rmap(&mut |r| capture::disarm_chunk(r, m, 0));
        m.captured.set_number(None);
        self.w.check_quiescent();
    }
}

fn at(arena: usize, p: usize) -> usize {
    arena_base(arena) + (p << PAGE_SHIFT)
}

/// A page whose protection a store took off is noted nowhere but in its extent.
#[test]
fn a_lifted_page_is_armed_again() {
    for broken in [0, naive::HINTS] {
        let cut = Cut::new(SYNC | VmFlags::MAP_SINGLE, false);
        cut.w.read(at(0, 3));
        cut.store(at(0, 3), 9);
        assert!(!cut.w.kernel.is_protected(at(0, 3)), "it is open to stores");
        naive::set(broken);
        cut.arm();
        assert_eq!(cut.w.kernel.is_protected(at(0, 3)), broken == 0, "the rule makes the difference");
        cut.end();
    }
}

#[test]
fn what_comes_while_a_capture_is_open_is_protected() {
    for (always_dirty, broken) in [(false, 0), (true, 0), (true, naive::WP_OFF)] {
        let cut = Cut::new(SYNC, always_dirty);
        cut.arm();
        naive::set(broken);
        cut.w.read(at(0, 3));
        assert_eq!(cut.w.kernel.is_protected(at(0, 3)), broken == 0, "the page of a load");
        cut.end();
    }
}

/// A store to a page that is left out goes on in every phase, and what is mapped around it is protected all the same.
#[test]
fn the_window_of_an_excluded_page_is_protected() {
    let cut = Cut::new(SYNC, true);
    cut.w.populate(0, 0, 16);
    cut.arm();
    assert!(cut.w.objects[0].mapping.captured.bits.save(3), "left out");
    cut.capture.set_phase(Phase::Cutting);
    cut.store(at(0, 3), 9);
    assert!(cut.w.kernel.is_mapped(at(0, 4)) && cut.w.kernel.is_protected(at(0, 4)), "its neighbour");
    assert_eq!(cut.kept(3), None, "nobody wants its bytes");
    cut.end();
}

#[test]
fn rounds_protect_what_was_noted_in_every_mapping() {
    for broken in [0, naive::ONE_VMA] {
        let cut = Cut::new(SYNC | VmFlags::MAP_SINGLE, true);
        cut.arm();
        for p in [0, 63, 64, 200] {
            cut.store(at(0, p), 1);
            cut.store(at(1, p), 2);
        }
        naive::set(broken);
        assert_eq!(cut.drain(u32::MAX / 2), 4, "each page once");
        for p in [0, 63, 64, 200] {
            assert!(cut.w.kernel.is_protected(at(0, p)), "page {p}");
            assert_eq!(cut.w.kernel.is_protected(at(1, p)), broken == 0, "page {p} of the second mapping");
        }
        assert_eq!(cut.drain(0), 0, "nothing was stored to since");
        cut.end();
    }
}

/// A round lets through as many stores to pages as it has credits; the next waits until there is one.
#[test]
fn a_store_waits_for_credit() {
    let cut = Cut::new(SYNC | VmFlags::MAP_SINGLE, true);
    cut.w.populate(0, 0, 4);
    cut.arm();
    cut.drain(1);
    cut.store(at(0, 0), 1);
    cut.store(at(1, 0), 1);
    let (slept, capture) = (Arc::new(Mutex::new(0)), cut.capture);
    let counted = Arc::clone(&slept);
    cut.w.set_sleep(move |key| {
        *lock(&counted) += 1;
        assert_eq!((key.addr, key.seen), capture.credit_key(), "it sleeps on the credits");
        capture.give_credits(1);
        Woken::LookAgain
    });
    cut.store(at(0, 1), 1);
    assert_eq!(*lock(&slept), 1, "the third store waited, the second was to a page that is noted");
    assert_eq!(cut.drain(0), 2, "pages for the next round");
    cut.end();
}

/// A store waits while the cut is made, and then has the old bytes kept, once.
#[test]
fn a_store_waits_for_the_cut_and_saves_first() {
    for (always_dirty, broken) in [(true, 0), (false, 0), (true, naive::NO_WAIT)] {
        let cut = Cut::new(SYNC, always_dirty);
        cut.store(at(0, 5), 1);
        cut.arm();
        cut.capture.set_phase(Phase::Cutting);
        naive::set(broken);
        let (slept, capture) = (Arc::new(Mutex::new(0)), cut.capture);
        let counted = Arc::clone(&slept);
        cut.w.set_sleep(move |key| {
            *lock(&counted) += 1;
            assert_eq!((key.addr, key.seen), capture.phase_key(Phase::Cutting), "it sleeps on the phase");
            assert!(capture.change_phase(Phase::Cutting, Phase::Copying), "the cut");
            Woken::LookAgain
        });
        cut.store(at(0, 5), 2);
        let waits = usize::from(broken == 0);
        assert_eq!(*lock(&slept), waits, "it waited once");
        assert_eq!(cut.kept(5), (broken == 0).then_some(1), "the byte at the cut");
        cut.store(at(1, 5), 3);
        cut.store(at(0, 6), 4);
        if broken == 0 {
            assert_eq!(cut.kept(5), Some(1), "a second store keeps nothing");
            assert_eq!(cut.kept(6), Some(Content::pattern(0, 6)), "a page that was not mapped");
        }
        cut.end();
    }
}

#[test]
fn a_store_waits_for_room_for_saved_bytes() {
    let cut = Cut::new(SYNC, true);
    cut.arm();
    cut.capture.set_phase(Phase::Copying);
    cut.w.objects[0].store.no_room.store(2, Ordering::Relaxed);
    let (slept, capture) = (Arc::new(Mutex::new(0)), cut.capture);
    let counted = Arc::clone(&slept);
    cut.w.populate(0, 0, 8);
    cut.w.set_sleep(move |key| {
        *lock(&counted) += 1;
        assert_eq!((key.addr, key.seen), capture.room_key(), "it sleeps on the room");
        capture.note_room();
        Woken::LookAgain
    });
    cut.store(at(0, 5), 2);
    assert_eq!(*lock(&slept), 2);
    assert_eq!(cut.kept(5), Some(Content::pattern(0, 5)));
    cut.end();
}

/// Pages past the end that the object had at the cut are in no capture, and a capture that failed keeps nothing.
#[test]
fn nothing_is_kept_of_what_is_not_captured() {
    let cut = Cut::new(SYNC, true);
    cut.arm();
    cut.w.objects[0].mapping.captured.set_end(4);
    cut.capture.set_phase(Phase::Copying);
    cut.store(at(0, 4), 2);
    assert_eq!(cut.kept(4), None, "past the end");
    cut.capture.set_phase(Phase::Failed);
    cut.store(at(0, 1), 2);
    assert_eq!(cut.kept(1), None, "failed");
    cut.end();
}

/// What was protected for the capture alone is open afterwards; where protection tracks stores it stays.
#[test]
fn protection_goes_where_nobody_needs_it() {
    for (always_dirty, broken) in [(true, 0), (true, naive::KEEP_WP), (false, 0), (false, naive::UNWP_FILES)] {
        let cut = Cut::new(SYNC | VmFlags::MAP_SINGLE, always_dirty);
        cut.store(at(0, 1), 1);
        cut.arm();
        naive::set(broken);
        let stays = (always_dirty && broken != 0) || (!always_dirty && broken == 0);
        cut.capture.set_phase(Phase::Copying);
        cut.end();
        assert_eq!(cut.w.kernel.is_protected(at(0, 1)), stays, "always dirty: {always_dirty}, broken: {broken}");
    }
}

/// An arena that is not capturable does not look at captures: its faults cost what they did.
#[test]
fn other_mappings_do_not_look() {
    let cut = Cut::new(RW | VmFlags::WP_ASYNC, true);
    cut.arm();
    cut.capture.set_phase(Phase::Cutting);
    cut.store(at(0, 1), 1);
    cut.end();
}
