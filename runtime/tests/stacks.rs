//! How much every kind of fault takes of what the thread was on: the kernel's frame, and nothing else.
//!
//! The alternate stack has exactly the size that the kernel asks for a frame (`AT_MINSIGSTKSZ`), as std's has on
//! processors whose frames are larger than 8 KiB, and lies above a guard page: one byte more would end the process.
#![allow(unsafe_code, reason = "alternate stacks, and a delegate in the handler")]
#![allow(clippy::cast_possible_truncation, reason = "marks of pages are small")]

mod common;

#[cfg(feature = "userfaultfd")]
use common::runtime;
use common::{
    EXTENT, PAGE, TempFile, alternate_stack, arena, byte_of, each_of, knob_object, load, load_at, map, min_frame,
    on_stack_of, store,
};
use softfault::{Delivery, HandlerStore, PageMut, Prot, Runtime, Sharing, Store, StoreError};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

const PAINT: u8 = 0xa5;
const IN_HANDLER: [Delivery; 2] = [Delivery::InThread, Delivery::Segv];
const NR: usize = 64;
const LEN: usize = NR * PAGE;

/// Runs `f` with a painted stack that has room for a frame, and fails if no fault came on it.
#[track_caller]
fn measured(what: &str, mode: Delivery, f: impl FnOnce()) {
    measured_with(0, what, mode, f);
}

/// The same with `room` more, for a handler of the program's that gets the signal from us.
#[track_caller]
fn measured_with(room: usize, what: &str, mode: Delivery, f: impl FnOnce()) {
    let size = min_frame() + room;
    let (kernels, used) = on_stack_of(size, || {
        let (base, len) = alternate_stack();
        let used_by = |f: &mut dyn FnMut()| {
            // SAFETY: the stack's own bytes; nobody is on it.
            unsafe { base.write_bytes(PAINT, len) };
            f();
            // SAFETY: as above.
            let bytes = unsafe { std::slice::from_raw_parts(base, len) };
            len - bytes.iter().position(|b| *b != PAINT).unwrap_or(len)
        };
        common::install_empty_handler();
        // SAFETY: a signal to this thread, whose handler does nothing.
        let kernels = used_by(&mut || assert_eq!(unsafe { libc::raise(libc::SIGUSR1) }, 0));
        let mut f = Some(f);
        let used = used_by(&mut || f.take().into_iter().for_each(|f| f()));
        assert_eq!(alternate_stack(), (base, len), "{what}, {mode:?}: it is enabled as before");
        (kernels, used)
    });
    println!("{what}, {mode:?}: {used} of {size} bytes, {kernels} of them the kernel's");
    assert!(used > 0, "{what}, {mode:?}: no fault came on this stack");
    assert!(used <= kernels + room, "{what}, {mode:?}: {used} bytes, {kernels} of them the kernel's");
}

fn want(at: usize) -> Result<u8, i32> {
    Ok(byte_of(0, at as u64))
}

#[test]
fn faults_on_cached_and_uncached_pages() {
    each_of("read", &IN_HANDLER, |rt, mode| {
        let (object, _) = knob_object(rt, LEN as u64, true);
        let a = arena(rt, mode, LEN);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        let all = || (0..LEN).step_by(PAGE).for_each(|at| assert_eq!(load(&a, at), want(at)));
        measured("major, filled here", mode, all);
        a.zap(0..LEN).expect("zap");
        measured("minor", mode, all);

        let (object, _) = knob_object(rt, LEN as u64, false);
        let a = arena(rt, mode, LEN);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        measured("major, filled elsewhere", mode, || assert_eq!(load(&a, 0), want(0)));
        measured_with(8 << 10, "refused", mode, || assert_eq!(store(&a, 0, 1), Err(libc::SIGSEGV)));
    });
}

#[test]
fn faults_on_files() {
    each_of("files", &IN_HANDLER, |rt, mode| {
        let file = TempFile::new(LEN);
        let object = rt.open_file_rw(&file.path).expect("object");
        let a = arena(rt, mode, 2 * EXTENT);
        map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
        map(&a, EXTENT, &object, Prot::ReadWrite, Sharing::Private);
        let pages = || (0..LEN).step_by(PAGE);
        measured("private copy past the cache", mode, || assert_eq!(store(&a, EXTENT + 60 * PAGE, 1), Ok(())));
        measured("file, with readahead", mode, || pages().for_each(|at| assert_eq!(load(&a, at), Ok(file.data[at]))));
        if mode == Delivery::Segv {
            // Elsewhere the kernel notes first stores by itself.
            measured("write to a clean page", mode, || pages().for_each(|at| assert_eq!(store(&a, at, 9), Ok(()))));
        }
        measured("private copy", mode, || pages().for_each(|at| assert_eq!(store(&a, EXTENT + at, 1), Ok(()))));
    });
}

#[test]
fn synchronous_stores() {
    each_of("dsync", &IN_HANDLER, |rt, mode| {
        let builder = rt.object(LEN as u64).writable(true).synchronous_writes(true).dsync(true);
        let object = builder.handler_store(Box::new(Zeros)).expect("object");
        let a = arena(rt, mode, LEN);
        map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
        measured("synchronous store", mode, || {
            for at in (0..LEN).step_by(PAGE) {
                assert_eq!(store(&a, at, 1), Ok(()));
            }
        });
    });
}

#[test]
fn direct_reclaim_of_dirty_pages() {
    each_of("reclaim", &IN_HANDLER, |_, mode| {
        let swap = Runtime::builder().swap(std::env::temp_dir(), 64 * EXTENT as u64);
        let rt = swap.cache_limit(64 * PAGE as u64).fill_window_pages(1).build().expect("runtime");
        let object = rt.anonymous(4 * LEN as u64).expect("object");
        let a = arena(&rt, mode, 4 * LEN);
        map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
        let pages = || (0..4 * LEN).step_by(PAGE);
        let mark = |at: usize| (at / PAGE % 251) as u8 + 1;
        measured("reclaim of dirty pages", mode, || pages().for_each(|at| assert_eq!(store(&a, at, mark(at)), Ok(()))));
        measured("reclaim, read back", mode, || pages().for_each(|at| assert_eq!(load(&a, at), Ok(mark(at)))));
        assert!(rt.stats()["allocstall"] > 0, "{}", rt.stats());
    });
}

/// Nothing but zeros.
struct Zeros;

impl Store for Zeros {
    fn read(&self, _pos_bytes: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        page.as_mut_slice().fill(0);
        Ok(())
    }
}

// SAFETY: stores to the page alone.
unsafe impl HandlerStore for Zeros {}

/// A store whose bytes lie in an arena.
struct Through(usize);

impl Store for Through {
    fn read(&self, pos_bytes: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        let from = self.0 + usize::try_from(pos_bytes).map_err(|_| StoreError::Short)?;
        for (i, b) in page.as_mut_slice().iter_mut().enumerate().step_by(PAGE) {
            *b = load_at(from + i).map_err(|_| StoreError::Corrupt)?;
        }
        Ok(())
    }
}

// SAFETY: loads, from an arena whose own store is handler-safe.
unsafe impl HandlerStore for Through {
    fn touches_arenas(&self) -> bool {
        true
    }
}

#[test]
fn nested_faults() {
    each_of("nested", &IN_HANDLER, |rt, mode| {
        let (below, _) = knob_object(rt, LEN as u64, true);
        let lower = arena(rt, mode, LEN);
        map(&lower, 0, &below, Prot::Read, Sharing::Shared);
        let through = rt.object(LEN as u64).handler_store(Box::new(Through(lower.as_ptr() as usize)));
        let upper = arena(rt, mode, LEN);
        map(&upper, 0, &through.expect("object"), Prot::Read, Sharing::Shared);
        // The second frame goes to the walk stack.
        measured("nested", mode, || (0..LEN).step_by(PAGE).for_each(|at| assert_eq!(load(&upper, at), want(at))));
    });
}

#[cfg(feature = "userfaultfd")]
#[test]
fn delegates() {
    use softfault::{MinorDelegate, MinorFault, MinorVerdict};

    /// Flips the first byte of each page.
    struct Flip;

    impl MinorDelegate for Flip {
        fn minor_fault(&self, fault: &MinorFault<'_>) -> MinorVerdict {
            match fault.rewrite(&mut |bytes| bytes.iter_mut().take(1).for_each(|b| *b = !*b)) {
                Ok(()) => MinorVerdict::Continue,
                Err(_) => MinorVerdict::Delay,
            }
        }
    }

    let rt = runtime();
    if !rt.delivery().is_available(Delivery::InThread) {
        println!("delegates skipped: {}", rt.delivery());
        return;
    }
    for in_handler in [true, false] {
        let (object, _) = knob_object(&rt, LEN as u64, true);
        object.populate(0..LEN as u64).expect("populate");
        let a = arena(&rt, Delivery::InThread, LEN);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        if in_handler {
            // SAFETY: `Flip` stores to the page, and nothing else.
            unsafe { a.delegate_minor_in_handler(0..LEN, Box::new(Flip)) }.expect("delegate");
        } else {
            a.delegate_minor(0..LEN, Box::new(Flip)).expect("delegate");
        }
        measured(if in_handler { "told here" } else { "told elsewhere" }, Delivery::InThread, || {
            (0..LEN).step_by(PAGE).for_each(|at| assert_eq!(load(&a, at), want(at).map(|b| !b)));
        });
    }
}

/// A signal that another process might send, while the thread is on a walk stack: it waits.
#[test]
fn signals_sent_meanwhile() {
    const SENT: [i32; 4] = [libc::SIGBUS, libc::SIGSEGV, libc::SIGTRAP, libc::SIGILL];
    static GOT: AtomicUsize = AtomicUsize::new(0);
    // Its frame begins at the top of the alternate stack, unless the thread is on it.
    extern "C" fn count(_: i32) {
        GOT.fetch_add(1, Ordering::SeqCst);
    }
    let out = common::child("signals_sent_meanwhile", "sent", || {
        for signo in SENT {
            common::install(signo, count as *const () as usize, libc::SA_ONSTACK);
        }
        let rt = Runtime::new().expect("runtime");
        let mode = if rt.delivery().is_available(Delivery::InThread) { Delivery::InThread } else { Delivery::Segv };
        let (object, _) = knob_object(&rt, LEN as u64, true);
        let a = arena(&rt, mode, LEN);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        // SAFETY: no argument.
        let victim = unsafe { libc::pthread_self() };
        let done = AtomicBool::new(false);
        // As many signals as there are kinds may nest.
        on_stack_of(16 * (8 << 10) + 8 * min_frame(), || {
            std::thread::scope(|s| {
                let _stop = common::StopOnDrop(&done);
                s.spawn(|| {
                    for signo in SENT.into_iter().cycle() {
                        if done.load(Ordering::SeqCst) {
                            break;
                        }
                        // SAFETY: the thread waits for this scope to end.
                        unsafe { libc::pthread_kill(victim, signo) };
                    }
                });
                for _ in 0..200 {
                    a.zap(0..LEN).expect("zap");
                    for at in (0..LEN).step_by(PAGE) {
                        let from = a.as_ptr().wrapping_add(at);
                        // SAFETY: inside the arena.
                        assert_eq!(Ok(unsafe { from.read_volatile() }), want(at));
                    }
                }
            });
        });
        assert!(GOT.load(Ordering::SeqCst) > 0, "signals came");
    });
    common::ended(out, Ok(0));
}

/// A store whose reads wait, once told to, until as many of them have met as there are threads.
struct Meeting {
    wanted: &'static AtomicUsize,
    inside: &'static AtomicUsize,
}

impl Store for Meeting {
    fn read(&self, _pos_bytes: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        page.as_mut_slice().fill(0);
        let wanted = self.wanted.load(Ordering::SeqCst);
        if wanted > 0 {
            self.inside.fetch_add(1, Ordering::SeqCst);
            while self.inside.load(Ordering::SeqCst) < wanted {
                std::thread::sleep(Duration::from_millis(1));
            }
            // They leave one after the other, so that some walk while others read.
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

// SAFETY: stores to the page, atomics, and nanosleep(2).
unsafe impl HandlerStore for Meeting {}

/// More threads read than there are stacks for: the others still walk, and make room in the cache, on walk stacks.
#[test]
fn reads_that_take_long_leave_stacks_for_others() {
    const THREADS: usize = 96;
    const EACH: usize = 3;
    const LIMIT: usize = 160;
    for mode in IN_HANDLER {
        let out = common::child("reads_that_take_long_leave_stacks_for_others", &format!("{mode:?}"), || {
            static WANTED: AtomicUsize = AtomicUsize::new(0);
            static INSIDE: AtomicUsize = AtomicUsize::new(0);
            common::setup();
            let rt =
                Runtime::builder().cache_limit((LIMIT * PAGE) as u64).fill_window_pages(1).build().expect("runtime");
            if !rt.delivery().is_available(mode) {
                println!("skipped: {}", rt.delivery());
                return;
            }
            let len = (LIMIT + THREADS * EACH) * PAGE;
            let store = Meeting { wanted: &WANTED, inside: &INSIDE };
            let object = rt.object(len as u64).handler_store(Box::new(store)).expect("object");
            let a = arena(&rt, mode, len);
            map(&a, 0, &object, Prot::Read, Sharing::Shared);
            // The cache is full: who reads makes room first.
            (0..LIMIT).for_each(|p| assert_eq!(load(&a, p * PAGE), Ok(0)));
            WANTED.store(THREADS, Ordering::SeqCst);
            std::thread::scope(|s| {
                for t in 0..THREADS {
                    let a = &a;
                    s.spawn(move || {
                        measured("read with many others", mode, || {
                            for p in 0..EACH {
                                assert_eq!(load(a, (LIMIT + t * EACH + p) * PAGE), Ok(0));
                            }
                        });
                    });
                }
            });
            println!("{}", rt.stats());
        });
        common::ended(out, Ok(0));
    }
}
