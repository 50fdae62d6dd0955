//! No allocation in a handler: the process's allocator aborts when a thread that is resolving a fault calls it.
//!
//! A fault may come while the thread holds the allocator's own lock; a handler that allocates then waits for itself. The same goes
//! for threads of the runtime's that a fault, or exit(3), may wait for: what they allocate in their rounds is counted.

mod common;

use common::{
    EXTENT, PAGE, TempFile, arena, child, each_mode, each_of, each_userfaultfd, ended, knob_object, map, said,
};
use common::{load, on_small_stack, runtime, same, store};
use softfault::{
    Access, Delivery, Errno, HandlerStore, MinorDelegate, MinorFault, MinorVerdict, Object, PageMut, PageRef, Prot,
    Runtime, RuntimeBuilder, Sharing, Store, StoreError,
};
use softfault_platform::{section, trap};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

struct NotInFaults;

#[global_allocator]
static ALLOCATOR: NotInFaults = NotInFaults;

const LINE: &[u8] = b"the allocator was called by a thread that is resolving a fault\n";

thread_local! {
    /// The thread is one of the runtime's that are not to allocate, in its rounds.
    static IS_WATCHED: Cell<bool> = const { Cell::new(false) };
    /// The thread is not to allocate while a change of what a range permits is under way: it alone makes such.
    static IS_CHANGING: Cell<bool> = const { Cell::new(false) };
}

/// How often watched threads have called the allocator.
static NR_CALLS: AtomicUsize = AtomicUsize::new(0);

fn check() {
    let changes = || IS_CHANGING.try_with(Cell::get).unwrap_or(false) && trap::is_changing();
    if IS_WATCHED.try_with(Cell::get).unwrap_or(false) || changes() {
        NR_CALLS.fetch_add(1, Ordering::Relaxed);
    }
    if section::in_fault() {
        // SAFETY: a constant line to standard error; an error cannot be helped.
        unsafe { libc::write(2, LINE.as_ptr().cast(), LINE.len()) };
        // SAFETY: ends the process.
        unsafe { libc::abort() };
    }
}

// SAFETY: the system's allocator, unless the process ends.
unsafe impl GlobalAlloc for NotInFaults {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check();
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        check();
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(ptr, layout) }
    }
}

const LEN: usize = 2 * EXTENT + 5 * PAGE + 77;

#[test]
fn files_read_and_copied() {
    each_mode("files", |rt, mode| {
        let file = TempFile::new(LEN);
        let object = rt.open_file(&file.path).expect("object");
        let span = LEN.next_multiple_of(EXTENT);
        let a = arena(rt, mode, 2 * span);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        map(&a, span, &object, Prot::ReadWrite, Sharing::Private);
        for at in (0..LEN).step_by(PAGE).rev() {
            // A first store to an uncached page, then a load of what the cache has by now, then a cached copy.
            store(&a, span + at, 1).expect("a private copy");
            assert_eq!(load(&a, at), Ok(file.data[at]));
        }
        a.unmap(0..span).expect("unmap");
        assert!(load(&a, 0).is_err(), "refused, and passed on");
        let major = rt.stats()["pgmajfault"];
        assert!(major > 0, "{}", rt.stats());
    });
}

#[test]
fn stores_in_the_handler_and_on_fillers() {
    each_mode("stores", |rt, mode| {
        for in_handler in [true, false] {
            let (object, knobs) = knob_object(rt, LEN as u64, in_handler);
            let a = arena(rt, mode, LEN);
            map(&a, 0, &object, Prot::Read, Sharing::Shared);
            knobs.fail(3, 1);
            assert_eq!(load(&a, 3 * PAGE), Err(libc::SIGBUS), "poisoned");
            knobs.recover();
            assert!(load(&a, 3 * PAGE).is_ok(), "healed");
            for at in (0..LEN).step_by(PAGE) {
                assert!(load(&a, at).is_ok());
            }
            a.fault_in(0..2 * PAGE, Access::Read).expect("fault_in");
        }
    });
}

#[test]
fn shared_stores_noted_and_synchronous() {
    each_mode("shared stores", |rt, mode| {
        // A monitor's arena refuses synchronous writes.
        for synchronous in [false, true].into_iter().take(if mode == Delivery::Monitor { 1 } else { 2 }) {
            let object = rt.object(LEN as u64).writable(true).synchronous_writes(synchronous).anonymous();
            let object = object.expect("object");
            let a = arena(rt, mode, LEN);
            map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
            for at in (0..LEN).step_by(PAGE) {
                assert_eq!(load(&a, at), Ok(0));
                store(&a, at, 7).expect("a shared store");
            }
            let mut back = vec![0; LEN];
            object.read_at(0, &mut back).expect("read_at");
            assert!((0..LEN).all(|i| back[i] == if i % PAGE == 0 { 7 } else { 0 }));
        }
    });
}

#[test]
fn whole_extents_handed_over() {
    each_userfaultfd("extents", |rt, mode| {
        let (object, _) = knob_object(rt, 4 * EXTENT as u64, true);
        object.populate(0..4 * EXTENT as u64).expect("populate");
        let a = arena(rt, mode, 4 * EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        for at in (0..4 * EXTENT).step_by(PAGE) {
            assert!(load(&a, at).is_ok());
        }
        // The monitor counts after it has answered.
        common::until("extents are promoted", || rt.stats()["extent_promote"] > 0);
    });
}

/// Continues with every page, having read it.
struct Look;

impl MinorDelegate for Look {
    fn minor_fault(&self, fault: &MinorFault<'_>) -> MinorVerdict {
        let mut head = [0; 16];
        if fault.read(0, &mut head).is_ok() { MinorVerdict::Continue } else { MinorVerdict::Delay }
    }
}

#[test]
fn delegates_told_in_the_handler_and_by_workers() {
    each_userfaultfd("delegates", |rt, mode| {
        for in_handler in [true, false] {
            let (object, _) = knob_object(rt, LEN as u64, true);
            object.populate(0..LEN as u64).expect("populate");
            let a = arena(rt, mode, LEN);
            map(&a, 0, &object, Prot::Read, Sharing::Shared);
            let range = 0..LEN.next_multiple_of(PAGE);
            if in_handler {
                // SAFETY: `Look` copies 16 bytes to its stack, and nothing else.
                unsafe { a.delegate_minor_in_handler(range, Box::new(Look)) }.expect("delegate");
            } else {
                a.delegate_minor(range, Box::new(Look)).expect("delegate");
            }
            for at in (0..LEN).step_by(PAGE) {
                assert!(load(&a, at).is_ok());
            }
        }
    });
}

/// A store whose bytes lie in another arena: reading them faults inside the handler.
struct Through(usize);

impl Store for Through {
    fn read(&self, pos_bytes: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        let len = page.len_bytes();
        let from = usize::try_from(pos_bytes).map_err(|_| StoreError::Short)? + self.0;
        // SAFETY: the test keeps the lower arena mapped, as long as this object; the page is ours to write.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, page.as_mut_ptr(), len) };
        Ok(())
    }
}

// SAFETY: one copy, from an arena whose own store is handler-safe.
unsafe impl HandlerStore for Through {
    fn touches_arenas(&self) -> bool {
        true
    }
}

#[test]
fn faults_inside_faults() {
    each_of("nested", &[Delivery::InThread, Delivery::Segv], |rt, mode| {
        let (below, _) = knob_object(rt, LEN as u64, true);
        let lower = arena(rt, mode, LEN);
        map(&lower, 0, &below, Prot::Read, Sharing::Shared);
        let through = rt.object(LEN as u64).handler_store(Box::new(Through(lower.as_ptr() as usize)));
        let through = through.expect("object");
        let upper = arena(rt, mode, LEN);
        map(&upper, 0, &through, Prot::Read, Sharing::Shared);
        // Without optimisation two faults need more than the 8 KiB that std gives a thread.
        on_small_stack(|| {
            for at in (0..LEN).step_by(PAGE) {
                assert!(load(&upper, at).is_ok());
            }
        });
        assert!(rt.stats()["handler_nested"] > 0, "{}", rt.stats());
        same("nested", &common::bytes(&upper, 0..LEN), &common::bytes(&lower, 0..LEN));
    });
}

/// A store that breaks its promise.
struct Allocates;

impl Store for Allocates {
    fn read(&self, _pos_bytes: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        let bytes = std::hint::black_box(vec![5; page.len_bytes()]);
        page.as_mut_slice().copy_from_slice(&bytes);
        Ok(())
    }
}

// SAFETY: none: this is the lie that the test is about.
unsafe impl HandlerStore for Allocates {}

/// The proof that the tests above can fail.
#[test]
fn a_handler_that_allocates_aborts() {
    for mode in [Delivery::InThread, Delivery::Segv] {
        if !runtime().delivery().is_available(mode) {
            println!("{mode:?} skipped: {}", runtime().delivery());
            continue;
        }
        let out = child("a_handler_that_allocates_aborts", &format!("{mode:?}"), || {
            common::no_core();
            let rt = runtime();
            let object = rt.object(PAGE as u64).handler_store(Box::new(Allocates)).expect("object");
            let a = arena(&rt, mode, PAGE);
            map(&a, 0, &object, Prot::Read, Sharing::Shared);
            let _ = load(&a, 0);
        });
        if let Some(out) = &out {
            assert!(said(out).contains("the allocator was called"), "it said:\n{}", said(out));
        }
        ended(out, Err(libc::SIGABRT));
    }
}

/// The name of the calling thread, as the kernel has it.
fn thread_name() -> [u8; 16] {
    let mut name = [0; 16];
    // SAFETY: the kernel writes 16 bytes at most.
    assert_eq!(unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) }, 0);
    name
}

/// How often a store has failed on the thread that is watched.
static NR_FAILED: AtomicUsize = AtomicUsize::new(0);
/// How often it fails there.
const FAILURES: usize = 3;

/// Watches the calling thread from here on if it has this name; then it fails, [`FAILURES`] times.
fn fail_on(name: &str) -> Result<(), StoreError> {
    if !thread_name().starts_with(name.as_bytes()) {
        return Ok(());
    }
    IS_WATCHED.set(true);
    if NR_FAILED.fetch_add(1, Ordering::SeqCst) < FAILURES { Err(StoreError::Io(Errno::EIO)) } else { Ok(()) }
}

/// A store that allocates nothing, and gives what it took after a flush; its writes fail on the one thread, its flushes on the
/// other.
#[derive(Debug)]
struct Fails {
    write_on: &'static str,
    flush_on: &'static str,
}

impl Store for Fails {
    fn read(&self, _pos_bytes: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        page.as_mut_slice().fill(0);
        Ok(())
    }
    fn write(&self, _pos_bytes: u64, _page: &PageRef<'_>) -> Result<(), StoreError> {
        fail_on(self.write_on)
    }
    fn flush(&self) -> Result<(), StoreError> {
        fail_on(self.flush_on)
    }
    fn rereads_unflushed(&self) -> bool {
        false
    }
}

/// Runs `body` in a child over an object whose store fails on a thread; nothing was allocated there by the end of it.
fn fails_on(test: &str, builder: RuntimeBuilder, store: Fails, body: impl Fn(&Runtime, &Object)) {
    let run = child(test, "it", || {
        let rt = builder.build().expect("a runtime");
        let object = rt.object((4 * EXTENT) as u64).writable(true).store(Box::new(store)).expect("an object");
        body(&rt, &object);
        assert!(NR_FAILED.load(Ordering::SeqCst) >= FAILURES, "the store did not fail there");
        assert_eq!(NR_CALLS.load(Ordering::SeqCst), 0, "calls of the allocator by the thread");
        // SAFETY: ends the process: what the thread does when it ends is another matter.
        unsafe { libc::_exit(0) };
    });
    ended(run, Ok(0));
}

/// Reclaim, and with it a fault under malloc's lock, waits for the flusher's flush: also for one that fails.
#[test]
fn a_flush_that_fails_allocates_nothing_on_the_flusher() {
    common::setup();
    let builder = Runtime::builder().cache_limit((64 * PAGE) as u64).fill_window_pages(1);
    let builder = builder.writeback(Duration::from_millis(10), Duration::from_millis(10));
    let test = "a_flush_that_fails_allocates_nothing_on_the_flusher";
    fails_on(test, builder, Fails { write_on: "nobody", flush_on: "softfault-flush" }, |rt, object| {
        let p = Cell::new(0);
        // One more than fail: what came after the last failure is over then, too.
        common::until("the flusher's flushes fail", || {
            let _ = object.write_at((p.get() * PAGE) as u64, &[1]);
            p.set((p.get() + 1) % (4 * EXTENT / PAGE));
            NR_FAILED.load(Ordering::SeqCst) > FAILURES
        });
        assert!(rt.stats()["flush_errors"] >= FAILURES as u64, "{}", rt.stats());
    });
}

/// Who exits may hold malloc's lock, and waits for the thread that writes at exit: also where the store fails.
#[test]
fn a_write_that_fails_allocates_nothing_at_exit() {
    common::setup();
    let hour = Duration::from_secs(3600);
    let builder = Runtime::builder().writeback(hour, hour).fillers(1);
    let test = "a_write_that_fails_allocates_nothing_at_exit";
    fails_on(test, builder, Fails { write_on: "softfault-exit", flush_on: "nobody" }, |rt, object| {
        assert_eq!(object.write_at(0, &[1]).ok(), Some(1));
        // A filler writes it first, and then the thread has nothing to write: a pinned page is left to it.
        let arena = arena(rt, Delivery::Segv, 4 * EXTENT);
        map(&arena, 0, object, Prot::ReadWrite, Sharing::Shared);
        let _pin = arena.pin(0..PAGE, Access::Write).expect("a pin");
        assert_eq!(rt.write_back(Duration::from_secs(60)).ok(), Some(true));
    });
}

/// Who touches a range while it permits something else may hold malloc's lock, if its heap is there, and waits for the change.
#[test]
fn a_change_of_what_a_range_permits_allocates_nothing_while_it_is_under_way() {
    let run = child("a_change_of_what_a_range_permits_allocates_nothing_while_it_is_under_way", "it", || {
        each_mode("changes", |rt, mode| {
            let object = rt.anonymous((4 * EXTENT) as u64).expect("object");
            let a = arena(rt, mode, 4 * EXTENT);
            IS_CHANGING.set(true);
            map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
            // More entries than a node of a tree has, of every kind of edge.
            for page in (0..4 * EXTENT / PAGE).step_by(EXTENT / PAGE / 8) {
                a.protect(page * PAGE..(page + 3) * PAGE, Prot::Read).expect("protect");
                a.protect((page + 1) * PAGE..(page + 2) * PAGE, Prot::ReadWrite).expect("protect");
            }
            a.protect(0..4 * EXTENT, Prot::Read).expect("protect");
            IS_CHANGING.set(false);
        });
        assert_eq!(NR_CALLS.load(Ordering::SeqCst), 0, "calls of the allocator while a change was under way");
    });
    ended(run, Ok(0));
}
