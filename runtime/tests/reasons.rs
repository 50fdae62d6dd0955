//! Each bit of `VmFaultReason` that means something here, produced by a real fault on a real arena.
#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

mod common;

use common::{
    EXTENT, KnobStore, Knobs, PAGE, TempFile, arena, byte_of, each_mode, knob_object, load, map, store, until,
};
use softfault::{Access, Delivery, HandlerStore, PageMut, Prot, Runtime, Sharing, Store, StoreError, VmFaultReason};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const BUS: i32 = libc::SIGBUS;

/// Runs `f` and asserts that the walk returned `bit` at least once in it, and not before.
fn produces(what: &str, bit: VmFaultReason, f: impl Fn(&Runtime, Delivery)) {
    produces_in(&common::MODES, what, bit, f);
}

fn produces_in(modes: &[Delivery], what: &str, bit: VmFaultReason, f: impl Fn(&Runtime, Delivery)) {
    common::each_of(what, modes, |rt, mode| {
        assert_eq!(rt.stats().reason(bit), 0, "{what}, {mode:?}: before");
        f(rt, mode);
        // A monitor counts a little after it has woken whom it serves.
        until(what, || rt.stats().reason(bit) > 0);
    });
}

#[test]
fn oom_the_caches_limit() {
    produces("OOM", VmFaultReason::OOM, |rt, mode| {
        rt.set_cache_limit(64 * PAGE as u64);
        let (object, _) = knob_object(rt, 65 * PAGE as u64, true);
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        let _pin = a.pin(0..64 * PAGE, Access::Read).unwrap();
        assert_eq!(load(&a, 64 * PAGE), Err(BUS));
    });
}

#[test]
fn sigbus_past_the_end() {
    produces("SIGBUS", VmFaultReason::SIGBUS, |rt, mode| {
        let (object, _) = knob_object(rt, PAGE as u64, true);
        let a = arena(rt, mode, EXTENT);
        a.map(0, &object, 0, 2 * PAGE, Prot::Read, Sharing::Shared).unwrap();
        assert_eq!(load(&a, PAGE), Err(BUS));
    });
}

#[test]
fn major_and_retry_the_page_comes_from_the_store() {
    for bit in [VmFaultReason::MAJOR, VmFaultReason::RETRY] {
        produces("MAJOR, RETRY", bit, |rt, mode| {
            let (object, _) = knob_object(rt, PAGE as u64, false);
            let a = arena(rt, mode, EXTENT);
            map(&a, 0, &object, Prot::Read, Sharing::Shared);
            assert_eq!(load(&a, 0), Ok(byte_of(0, 0)));
            until("it is a major fault", || rt.stats()["pgmajfault"] == 1);
        });
    }
}

#[test]
fn hwpoison_the_content_fails_its_check() {
    produces("HWPOISON", VmFaultReason::HWPOISON, |rt, mode| {
        let (object, knobs) = knob_object(rt, PAGE as u64, true);
        knobs.fail(0, 3);
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        assert_eq!(load(&a, 0), Err(BUS), "never wrong data");
    });
}

#[test]
fn sigsegv_the_mapping_does_not_permit_it() {
    produces("SIGSEGV", VmFaultReason::SIGSEGV, |rt, mode| {
        let (object, _) = knob_object(rt, PAGE as u64, true);
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        assert_eq!(store(&a, 0, 1), Err(libc::SIGSEGV));
    });
}

#[test]
fn nopage_a_window_maps_the_page_itself() {
    produces("NOPAGE", VmFaultReason::NOPAGE, |rt, mode| {
        let (object, _) = knob_object(rt, 16 * PAGE as u64, true);
        object.populate(0..object.len()).unwrap();
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        assert_eq!(load(&a, 0), Ok(byte_of(0, 0)));
        until("a minor fault", || rt.stats()["pgminfault"] >= 1);
    });
}

#[test]
fn fallback_no_huge_mapping() {
    common::each_userfaultfd("FALLBACK", |rt, mode| {
        let (object, _) = knob_object(rt, PAGE as u64, true);
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        assert_eq!(load(&a, 0), Ok(byte_of(0, 0)), "small pages it is");
        until("FALLBACK", || rt.stats().reason(VmFaultReason::FALLBACK) > 0);
    });
}

#[test]
fn done_cow_past_the_cache() {
    common::each_userfaultfd("DONE_COW", |rt, mode| {
        let (object, _) = knob_object(rt, PAGE as u64, true);
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::ReadWrite, Sharing::Private);
        assert_eq!(store(&a, 0, 1), Ok(()));
        until("DONE_COW", || rt.stats().reason(VmFaultReason::DONE_COW) == 1);
        assert_eq!((load(&a, 0), load(&a, 1)), (Ok(1), Ok(byte_of(0, 1))));
    });
}

/// A store that counts what it made durable.
struct Durable(Arc<AtomicUsize>, KnobStore);

impl Store for Durable {
    fn read(&self, pos_bytes: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        self.1.read(pos_bytes, page)
    }
    fn dsync(&self, pos_bytes: u64, len_bytes: u64) -> Result<(), StoreError> {
        assert_eq!((pos_bytes % PAGE as u64, len_bytes), (0, PAGE as u64));
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

// SAFETY: an atomic and the page.
unsafe impl HandlerStore for Durable {}

#[test]
fn needdsync_before_the_first_store_lands() {
    produces_in(&[Delivery::InThread, Delivery::Segv], "NEEDDSYNC", VmFaultReason::NEEDDSYNC, |rt, mode| {
        let synced = Arc::new(AtomicUsize::new(0));
        let store_of = Box::new(Durable(Arc::clone(&synced), KnobStore(Arc::new(Knobs::default()))));
        let object = rt.object(8 * PAGE as u64).writable(true).dsync(true).handler_store(store_of).unwrap();
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
        assert_eq!(load(&a, 0), Ok(byte_of(0, 0)));
        assert_eq!(synced.load(Ordering::SeqCst), 0, "a load needs nothing");
        assert_eq!(store(&a, 3 * PAGE, 1), Ok(()));
        assert_eq!(synced.load(Ordering::SeqCst), 1, "{mode:?}: durable before the store landed");
        assert_eq!(store(&a, 3 * PAGE + 9, 1), Ok(()));
        assert_eq!(synced.load(Ordering::SeqCst), 1, "once");
        assert_eq!(store(&a, 0, 1), Ok(()));
        assert_eq!(synced.load(Ordering::SeqCst), 2, "{mode:?}: also where a load mapped it first");
        assert_eq!((load(&a, 0).is_ok(), load(&a, 3 * PAGE)), (true, Ok(1)));
    });
}

#[cfg(feature = "userfaultfd")]
#[test]
fn uffd_minor_the_delegate_is_asked() {
    struct Go;
    impl softfault::MinorDelegate for Go {
        fn minor_fault(&self, _: &softfault::MinorFault<'_>) -> softfault::MinorVerdict {
            softfault::MinorVerdict::Continue
        }
    }
    produces("UFFD_MINOR", VmFaultReason::UFFD_MINOR, |rt, mode| {
        let (object, _) = knob_object(rt, PAGE as u64, true);
        object.populate(0..PAGE as u64).unwrap();
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        a.delegate_minor(0..PAGE, Box::new(Go)).unwrap();
        assert_eq!(load(&a, 0), Ok(byte_of(0, 0)));
    });
}

#[test]
fn locked_fault_returns_its_page_pinned() {
    produces("LOCKED", VmFaultReason::LOCKED, |rt, mode| {
        let (object, _) = knob_object(rt, PAGE as u64, true);
        let a = rt.arena(EXTENT).delivery(mode).fault_around(false).build().unwrap();
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        assert_eq!(load(&a, 0), Ok(byte_of(0, 0)));
    });
}

#[test]
fn what_is_carried_has_no_producer() {
    each_mode("carried", |rt, mode| {
        let (object, _) = knob_object(rt, 4 * EXTENT as u64, true);
        let a = arena(rt, mode, 4 * EXTENT);
        map(&a, 0, &object, Prot::ReadWrite, Sharing::Private);
        (0..2048).step_by(7).for_each(|p| store(&a, p * PAGE, 1).unwrap());
        (0..2048).for_each(|p| assert!(load(&a, p * PAGE).is_ok()));
        assert_eq!(rt.stats().reason(VmFaultReason::HWPOISON_LARGE), 0);
    });
}

#[test]
fn statistics_are_printed_by_name() {
    each_mode("print", |rt, mode| {
        let (object, _) = knob_object(rt, PAGE as u64, true);
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        load(&a, 0).unwrap();
        until("counted", || rt.stats()["pgfault"] >= 1);
        let (text, json) = (rt.stats().to_string(), rt.stats().to_json());
        for name in ["pgfault", "pgmajfault", "pgminfault", "handler_entry", "nr_cached_pages"] {
            assert!(text.lines().any(|l| l.starts_with(&format!("{name} "))), "{name} in\n{text}");
            assert!(json.contains(&format!("\"{name}\":")), "{name} in\n{json}");
        }
        for (name, _) in VmFaultReason::NAMES.iter().filter(|(_, b)| b.0.count_ones() == 1 && b.0 < 1 << 16) {
            assert!(text.contains(&format!("vm_fault_{} ", name.to_lowercase())), "{name} in\n{text}");
            assert!(json.contains(&format!("\"{name}\":")), "{name} in\n{json}");
        }
        assert_eq!(json.matches('{').count(), json.matches('}').count());
        let stats = rt.stats();
        for name in stats.to_string().lines().filter_map(|l| l.split(' ').next()) {
            assert!(stats.get(name).is_some(), "{name} is printed, and cannot be asked for");
        }
        assert_eq!(stats.get("vm_fault_major"), Some(stats.reason(VmFaultReason::MAJOR)));
        assert_eq!((stats.get("pgfualt"), stats.get("vm_fault_"), stats.get("stage_")), (None, None, None));
    });
}

/// `COMPLETED`: the store is through, and its thread waited because too much is dirty.
#[test]
fn writers_of_too_many_dirty_pages_wait() {
    common::setup();
    let rt = Runtime::builder().cache_limit(256 * PAGE as u64).dirty_limits(1, 2).build().unwrap();
    let file = TempFile::new(1024 * PAGE);
    let object = rt.open_file_rw(file.path()).unwrap();
    let a = arena(&rt, rt.delivery().chosen, 2 * EXTENT);
    map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
    (0..1024).for_each(|p| assert_eq!(store(&a, p * PAGE, p as u8), Ok(())));
    let stats = rt.stats();
    assert!(stats.reason(VmFaultReason::COMPLETED) > 0, "{stats}");
    assert!(stats["balance_dirty_pages"] > 0);
    object.sync_all().unwrap();
    let written = std::fs::read(file.path()).unwrap();
    (0..1024).for_each(|p| assert_eq!(written[p * PAGE], p as u8, "page {p}"));
}
