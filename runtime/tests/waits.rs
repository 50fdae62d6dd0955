//! Touches that wait, and the program's signals meanwhile: where its handlers run, how soon, and what they may do.
#![allow(unsafe_code, reason = "signal handlers, timers, and stacks of odd sizes")]
#![allow(clippy::cast_possible_truncation, reason = "numbers of pages are small")]

mod common;

use common::{
    EXTENT, Knobs, PAGE, arena, byte_of, child, each_mode, each_of, ended, install, knob_object, load, load_at, map,
    min_frame, on_stack_of, serial, store, until,
};
use softfault::{Access, Arena, Delivery, Object, PageMut, PageRef, Prot, Runtime, Sharing, Store, StoreError};
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const IN_HANDLER: [Delivery; 2] = [Delivery::InThread, Delivery::Segv];
/// Below the stack pointer of interrupted code the kernel leaves this much alone.
const RED_ZONE: usize = 128;
const BUS: i32 = libc::SIGBUS;

/// Calls of the test's handler of SIGALRM.
static ALARMS: AtomicUsize = AtomicUsize::new(0);
/// What the handler does.
static USES: AtomicUsize = AtomicUsize::new(0);
static LOADS_FROM: AtomicUsize = AtomicUsize::new(0);
static LOADED: AtomicUsize = AtomicUsize::new(0);
/// What the handler makes false, if it is not 0: the address of an `AtomicBool`.
static UNBLOCKS: AtomicUsize = AtomicUsize::new(0);

#[inline(never)]
fn use_stack(bytes: usize) -> u8 {
    let mut frame = [0u8; 1024];
    std::hint::black_box(&mut frame);
    if bytes <= 1024 { frame[7] } else { use_stack(bytes - 1024) + std::hint::black_box(&frame)[9] }
}

extern "C" fn on_alarm(_: i32) {
    std::hint::black_box(use_stack(USES.load(Ordering::SeqCst)));
    let from = LOADS_FROM.load(Ordering::SeqCst);
    if from != 0 {
        LOADED.store(load_at(from).map_or(0, usize::from), Ordering::SeqCst);
    }
    let flag = UNBLOCKS.load(Ordering::SeqCst);
    if flag != 0 {
        // SAFETY: the test keeps it alive until the timer is off.
        unsafe { &*(flag as *const AtomicBool) }.store(false, Ordering::SeqCst);
    }
    ALARMS.fetch_add(1, Ordering::SeqCst);
}

/// Sends the calling thread SIGALRM every `every`, until dropped.
struct Storm(libc::timer_t);

impl Storm {
    fn begin(every: Duration, flags: i32) -> Self {
        ALARMS.store(0, Ordering::SeqCst);
        install(libc::SIGALRM, on_alarm as *const () as usize, flags);
        // SAFETY: a plain C structure.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = libc::SIGALRM;
        // SAFETY: no argument.
        event.sigev_notify_thread_id = unsafe { libc::gettid() };
        let mut timer: libc::timer_t = std::ptr::null_mut();
        // SAFETY: reads and writes structures of ours.
        let r = unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) };
        assert_eq!(r, 0, "timer_create");
        let every = libc::timespec { tv_sec: 0, tv_nsec: i64::try_from(every.as_nanos()).expect("below a second") };
        let spec = libc::itimerspec { it_interval: every, it_value: every };
        // SAFETY: the timer made above.
        assert_eq!(unsafe { libc::timer_settime(timer, 0, &raw const spec, std::ptr::null_mut()) }, 0);
        Self(timer)
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        // SAFETY: the timer of `begin`.
        unsafe { libc::timer_delete(self.0) };
        for what in [&USES, &LOADS_FROM, &UNBLOCKS] {
            what.store(0, Ordering::SeqCst);
        }
        install(libc::SIGALRM, libc::SIG_IGN, 0);
    }
}

/// An object of one page a window whose reads wait on a filler while `block` is set, mapped.
fn blocked(rt: &Runtime, mode: Delivery, nr: usize) -> (Object, Arc<Knobs>, Arena) {
    let (object, knobs) = knob_object(rt, (nr * PAGE) as u64, false);
    let a = arena(rt, mode, (nr * PAGE).next_multiple_of(EXTENT));
    map(&a, 0, &object, Prot::Read, Sharing::Shared);
    knobs.block.store(true, Ordering::SeqCst);
    (object, knobs, a)
}

/// Unblocks the store when `n` alarms have come, or in the end.
fn unblock_after(knobs: &Knobs, n: usize) {
    let began = Instant::now();
    while ALARMS.load(Ordering::SeqCst) < n && began.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(1));
    }
    knobs.block.store(false, Ordering::SeqCst);
}

// ---- where the program's handler runs --------------------------------------------------------------------------------

#[test]
fn a_storm_of_signals_whose_handler_is_larger_than_the_alternate_stack() {
    let _serial = serial();
    each_mode("storm", |rt, mode| {
        let (_object, knobs, a) = blocked(rt, mode, 1);
        // A stack for a frame, and none of its handler's: what lies below it is no memory.
        on_stack_of(min_frame(), || {
            USES.store(32 << 10, Ordering::SeqCst);
            let storm = Storm::begin(Duration::from_millis(1), libc::SA_RESTART);
            std::thread::scope(|s| {
                s.spawn(|| unblock_after(&knobs, 100));
                assert_eq!(load(&a, 0), Ok(byte_of(0, 0)), "{mode:?}");
            });
            assert!(ALARMS.load(Ordering::SeqCst) >= 100, "{mode:?}: they came while it waited");
            drop(storm);
        });
        if mode != Delivery::Monitor {
            assert!(rt.stats()["process_fault_signal_pending"] >= 50, "{}", rt.stats());
        }
    });
}

#[test]
fn a_handler_on_the_alternate_stack_begins_at_its_top() {
    let _serial = serial();
    each_mode("on its stack", |rt, mode| {
        let (_object, knobs, a) = blocked(rt, mode, 1);
        // One frame and 4 KiB, of which the handler takes 2: two frames would not fit.
        on_stack_of(min_frame() + (5 << 10), || {
            USES.store(1 << 10, Ordering::SeqCst);
            let storm = Storm::begin(Duration::from_millis(1), libc::SA_RESTART | libc::SA_ONSTACK);
            std::thread::scope(|s| {
                s.spawn(|| unblock_after(&knobs, 50));
                assert_eq!(load(&a, 0), Ok(byte_of(0, 0)), "{mode:?}");
            });
            assert!(ALARMS.load(Ordering::SeqCst) >= 50, "{mode:?}");
            drop(storm);
        });
    });
}

std::arch::global_asm!(
    // (address, top of a stack, *mut u8): loads a byte there, on that stack; 0 if all is well
    ".globl sf_load_on_stack",
    "sf_load_on_stack:",
    "push rbx",
    "mov rbx, rsp",
    "mov rsp, rsi",
    "mov cl, byte ptr [rdi]",
    "mov rsp, rbx",
    "mov byte ptr [rdx], cl",
    "pop rbx",
    "ret",
    // (top of a stack): sends the thread SIGUSR1 on that stack, whose handler is one instruction
    ".globl sf_signal_on_stack",
    "sf_signal_on_stack:",
    "push rbx",
    "push r12",
    "mov rbx, rsp",
    "mov rsp, rdi",
    "mov eax, 39",
    "syscall",
    "mov r12, rax",
    "mov eax, 186",
    "syscall",
    "mov rdi, r12",
    "mov rsi, rax",
    "mov edx, 10",
    "mov eax, 234",
    "syscall",
    "mov rsp, rbx",
    "pop r12",
    "pop rbx",
    "ret",
);

unsafe extern "C" {
    fn sf_load_on_stack(address: usize, top: usize, out: *mut u8);
    fn sf_signal_on_stack(top: usize);
}

/// Runs `f(top)` with a painted stack of `bytes` above an inaccessible page; returns how many were used.
fn on_bare_stack(bytes: usize, f: impl FnOnce(usize)) -> usize {
    const PAINT: u8 = 0xa5;
    let len = bytes.next_multiple_of(PAGE);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a fresh mapping.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len + PAGE, libc::PROT_NONE, flags, -1, 0) };
    assert_ne!(at, libc::MAP_FAILED);
    let base = at.wrapping_byte_add(PAGE);
    // SAFETY: the upper part of the mapping above.
    assert_eq!(unsafe { libc::mprotect(base, len, libc::PROT_READ | libc::PROT_WRITE) }, 0);
    // SAFETY: as above.
    unsafe { base.cast::<u8>().write_bytes(PAINT, len) };
    f((base as usize + bytes) & !15);
    // SAFETY: as above.
    let left = unsafe { std::slice::from_raw_parts(base.cast::<u8>(), bytes) };
    let used = bytes - left.iter().position(|b| *b != PAINT).unwrap_or(bytes);
    // SAFETY: nobody is on it.
    unsafe { libc::munmap(at, len + PAGE) };
    used
}

/// Runs `f` on a thread without an alternate stack: a signal's frame goes to the stack that the thread is on.
fn without_altstack<R>(f: impl FnOnce() -> R) -> R {
    let none = libc::stack_t { ss_sp: std::ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
    let mut before = none;
    // SAFETY: structures of ours.
    assert_eq!(unsafe { libc::sigaltstack(&raw const none, &raw mut before) }, 0);
    let r = f();
    // SAFETY: what was there before.
    assert_eq!(unsafe { libc::sigaltstack(&raw const before, std::ptr::null_mut()) }, 0);
    r
}

/// The bytes below the stack pointer that a signal takes whose handler takes nothing.
fn kernels_bytes() -> usize {
    common::install_empty_handler();
    // SAFETY: the stack has room for any frame.
    on_bare_stack(64 << 10, |top| unsafe { sf_signal_on_stack(top) })
}

#[test]
fn a_coroutine_without_an_alternate_stack() {
    let _serial = serial();
    each_of("coroutine", &IN_HANDLER, |rt, mode| {
        let (object, knobs, a) = blocked(rt, mode, 8);
        without_altstack(|| {
            let kernels = kernels_bytes();
            assert!(kernels <= min_frame() + RED_ZONE, "{kernels} of {} and the red zone", min_frame());
            let on = |bytes: usize, p: usize| {
                let mut byte = 0;
                knobs.block.store(true, Ordering::SeqCst);
                std::thread::scope(|s| {
                    s.spawn(|| {
                        std::thread::sleep(Duration::from_millis(20));
                        knobs.block.store(false, Ordering::SeqCst);
                    });
                    let at = a.as_ptr() as usize + p * PAGE;
                    // SAFETY: inside the arena, and a byte of ours; the stack has room for the kernel's frame.
                    let used = on_bare_stack(bytes, |top| unsafe { sf_load_on_stack(at, top, &raw mut byte) });
                    println!("{mode:?}: {used} of {bytes} bytes, {kernels} of them the kernel's");
                });
                assert_eq!(byte, byte_of(0, (p * PAGE) as u64), "{mode:?}");
            };
            // Waits, is filled elsewhere, and is mapped; then it is merely mapped.
            for bytes in [kernels.next_multiple_of(16), kernels.next_multiple_of(16) + 512, 4096.max(kernels)] {
                object.evict(0..object.len()).expect("evict");
                on(bytes, 3);
                a.zap(0..8 * PAGE).expect("zap");
                on(bytes, 3);
            }
        });
    });
}

#[test]
fn a_thread_with_tiles_in_use() {
    let _serial = serial();
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    let cpu = std::fs::read_to_string("/proc/cpuinfo").expect("cpuinfo");
    if !cpu.contains("amx_tile") {
        println!("skipped: this processor has no tiles (AMX); the other tests here shorten the stacks instead");
        return;
    }
    // SAFETY: asks for a feature of the processor.
    if unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) } != 0 {
        println!("skipped: the kernel does not permit tiles: {}", std::io::Error::last_os_error());
        return;
    }
    each_of("tiles", &IN_HANDLER, |rt, mode| {
        let (object, knobs, a) = blocked(rt, mode, 8);
        // A thread of its own: tiles in use stay in use, and grow every later frame.
        std::thread::scope(|s| {
            s.spawn(|| {
                let mut config = [0u8; 64];
                // One palette; tile 0 has 16 rows of 64 bytes.
                (config[0], config[16], config[48]) = (1, 64, 16);
                // SAFETY: AMX was asked for above; the configuration is valid, and the tiles are nobody else's.
                unsafe {
                    std::arch::asm!("ldtilecfg [{}]", ".byte 0xc4, 0xe2, 0x7b, 0x49, 0xc0", in(reg) config.as_ptr());
                }
                on_stack_of(min_frame(), || {
                    let storm = Storm::begin(Duration::from_millis(1), libc::SA_RESTART);
                    std::thread::scope(|s| {
                        s.spawn(|| unblock_after(&knobs, 20));
                        assert_eq!(load(&a, 0), Ok(byte_of(0, 0)), "{mode:?}");
                    });
                    drop(storm);
                    for p in 1..8 {
                        assert_eq!(load(&a, p * PAGE), Ok(byte_of(0, (p * PAGE) as u64)), "{mode:?}");
                    }
                });
                // SAFETY: as above.
                unsafe { std::arch::asm!(".byte 0xc4, 0xe2, 0x78, 0x49, 0xc0") };
            });
        });
        drop(object);
    });
}

#[test]
fn more_sleepers_than_stacks() {
    const SLEEPERS: usize = 300;
    let _serial = serial();
    each_of("sleepers", &IN_HANDLER, |rt, mode| {
        let (_object, knobs, a) = blocked(rt, mode, SLEEPERS);
        let (cached, _) = knob_object(rt, PAGE as u64, true);
        let b = arena(rt, mode, EXTENT);
        map(&b, 0, &cached, Prot::Read, Sharing::Shared);
        let touching = AtomicUsize::new(0);
        std::thread::scope(|s| {
            for p in 0..SLEEPERS {
                let (a, touching) = (&a, &touching);
                let small = std::thread::Builder::new().stack_size(128 << 10);
                let body = move || {
                    touching.fetch_add(1, Ordering::SeqCst);
                    assert_eq!(load(a, p * PAGE), Ok(byte_of(0, (p * PAGE) as u64)), "{mode:?}");
                };
                small.spawn_scoped(s, body).expect("thread");
            }
            until("they touch", || touching.load(Ordering::SeqCst) == SLEEPERS);
            until("the store is asked", || knobs.blocked.load(Ordering::SeqCst) > 0);
            // They sleep by now, or soon: whoever does not wait gets on.
            for _ in 0..100 {
                b.zap(0..PAGE).expect("zap");
                assert_eq!(load(&b, 0), Ok(byte_of(0, 0)));
                std::thread::sleep(Duration::from_micros(200));
            }
            knobs.block.store(false, Ordering::SeqCst);
        });
    });
}

// ---- what the handler may do -----------------------------------------------------------------------------------------

#[test]
fn the_handler_is_what_ends_the_wait() {
    let _serial = serial();
    each_mode("handler unblocks", |rt, mode| {
        let (_object, knobs, a) = blocked(rt, mode, 1);
        UNBLOCKS.store(&raw const knobs.block as usize, Ordering::SeqCst);
        let storm = Storm::begin(Duration::from_millis(50), 0);
        assert_eq!(load(&a, 0), Ok(byte_of(0, 0)), "{mode:?}: nobody else would have");
        drop(storm);
    });
}

#[test]
fn a_handler_touches_the_page_that_its_thread_waits_for() {
    let _serial = serial();
    each_mode("the same page", |rt, mode| {
        let (_object, knobs, a) = blocked(rt, mode, 1);
        LOADED.store(0, Ordering::SeqCst);
        LOADS_FROM.store(a.as_ptr() as usize, Ordering::SeqCst);
        let storm = Storm::begin(Duration::from_millis(5), 0);
        std::thread::scope(|s| {
            s.spawn(|| {
                std::thread::sleep(Duration::from_millis(100));
                knobs.block.store(false, Ordering::SeqCst);
            });
            assert_eq!(load(&a, 0), Ok(byte_of(0, 0)), "{mode:?}");
        });
        until("the handler has run", || ALARMS.load(Ordering::SeqCst) > 0);
        drop(storm);
        assert_eq!(LOADED.load(Ordering::SeqCst), usize::from(byte_of(0, 0)), "{mode:?}: it saw the page");
    });
}

#[test]
fn a_handler_leaves_the_touch_for_good() {
    /// Goes on behind the probe's load, as a `siglongjmp` out of the handler would.
    extern "C" fn jump(_: i32, _: *mut libc::siginfo_t, uc: *mut c_void) {
        if common::skip_probe(uc, libc::SIGALRM) {
            ALARMS.fetch_add(1, Ordering::SeqCst);
        }
    }
    let _serial = serial();
    each_of("jump", &IN_HANDLER, |rt, mode| {
        let (_object, knobs, a) = blocked(rt, mode, 4);
        on_stack_of(min_frame() + (4 << 10), || {
            let stack = common::alternate_stack();
            let storm = Storm::begin(Duration::from_millis(20), 0);
            install(libc::SIGALRM, jump as *const () as usize, libc::SA_SIGINFO | libc::SA_ONSTACK);
            for _ in 0..10 {
                assert_eq!(load(&a, 0), Err(libc::SIGALRM), "{mode:?}: it left");
                assert_eq!(common::alternate_stack(), stack, "{mode:?}: and the stack is enabled");
            }
            drop(storm);
            knobs.block.store(false, Ordering::SeqCst);
            // Nothing of those that left is in the way: what was claimed gets filled.
            for p in 0..4 {
                assert_eq!(load(&a, p * PAGE), Ok(byte_of(0, (p * PAGE) as u64)), "{mode:?}");
            }
        });
    });
}

#[test]
fn a_deadline_passes_in_a_storm() {
    let _serial = serial();
    each_of("deadline", &IN_HANDLER, |rt, mode| {
        let knobs = Arc::new(Knobs::default());
        let builder = rt.object(PAGE as u64).deadline(Duration::from_millis(300));
        let object = builder.store(Box::new(common::KnobStore(Arc::clone(&knobs)))).expect("object");
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        knobs.block.store(true, Ordering::SeqCst);
        let storm = Storm::begin(Duration::from_millis(1), libc::SA_RESTART);
        assert_eq!(load(&a, 0), Err(BUS), "{mode:?}");
        assert!(ALARMS.load(Ordering::SeqCst) > 10, "{mode:?}: a storm it was");
        drop(storm);
        knobs.block.store(false, Ordering::SeqCst);
    });
}

/// Each look ends with a signal: what was seen counts on in the next one.
#[test]
fn a_full_cache_says_so_in_a_storm() {
    const LIMIT: usize = 64;
    let _serial = serial();
    each_of("full", &IN_HANDLER, |_, mode| {
        for own in [false, true] {
            let limit = (LIMIT * PAGE) as u64;
            let rt = Runtime::builder().cache_limit(if own { u64::MAX } else { limit }).fill_window_pages(1).build();
            let rt = rt.expect("runtime");
            let builder = rt.object(2 * limit).cache_limit(if own { limit } else { u64::MAX });
            let object = builder.store(Box::new(common::KnobStore(Arc::default()))).expect("object");
            let a = arena(&rt, mode, EXTENT);
            map(&a, 0, &object, Prot::Read, Sharing::Shared);
            let pin = a.pin(0..LIMIT * PAGE, Access::Read).expect("pin");
            let told = AtomicBool::new(false);
            std::thread::scope(|s| {
                let _told = common::StopOnDrop(&told);
                s.spawn(|| {
                    // A minute of alarms: who has not been told then never is.
                    while ALARMS.load(Ordering::SeqCst) < 120_000 && !told.load(Ordering::SeqCst) {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    drop(pin);
                });
                let storm = Storm::begin(Duration::from_micros(500), libc::SA_RESTART);
                assert_eq!(load(&a, LIMIT * PAGE), Err(BUS), "{mode:?}, own limit: {own}");
                assert!(ALARMS.load(Ordering::SeqCst) > 10, "{mode:?}: a storm it was");
                drop(storm);
            });
        }
    });
}

#[test]
fn signals_that_the_thread_has_blocked_wait() {
    let _serial = serial();
    each_mode("blocked", |rt, mode| {
        let (_object, knobs, a) = blocked(rt, mode, 1);
        let storm = Storm::begin(Duration::from_millis(1), 0);
        common::mask(libc::SIG_BLOCK, libc::SIGALRM);
        let before = ALARMS.load(Ordering::SeqCst);
        std::thread::scope(|s| {
            s.spawn(|| {
                std::thread::sleep(Duration::from_millis(50));
                knobs.block.store(false, Ordering::SeqCst);
            });
            assert_eq!(load(&a, 0), Ok(byte_of(0, 0)), "{mode:?}");
        });
        assert_eq!(ALARMS.load(Ordering::SeqCst), before, "{mode:?}: none came");
        drop(storm);
        common::mask(libc::SIG_UNBLOCK, libc::SIGALRM);
    });
}

// ---- calls that claim what the handler wants ---------------------------------------------------------------------------

/// Calls `call` again and again while a handler loads from page 0 of `a` every half millisecond.
fn with_a_handler_that_loads(a: &Arena, rounds: usize, mut call: impl FnMut(usize)) {
    LOADS_FROM.store(a.as_ptr() as usize, Ordering::SeqCst);
    let storm = Storm::begin(Duration::from_micros(500), libc::SA_RESTART);
    let began = Instant::now();
    let mut n = 0;
    while n < rounds || (ALARMS.load(Ordering::SeqCst) < 20 && began.elapsed() < Duration::from_secs(20)) {
        call(n);
        n += 1;
    }
    drop(storm);
    assert!(ALARMS.load(Ordering::SeqCst) >= 20, "handlers ran");
}

#[test]
fn a_handler_touches_the_page_that_its_thread_reads() {
    for mode in common::MODES {
        let out = child("a_handler_touches_the_page_that_its_thread_reads", &format!("{mode:?}"), || {
            let rt = common::runtime();
            if !rt.delivery().is_available(mode) {
                println!("skipped: {}", rt.delivery());
                return;
            }
            for in_handler in [true, false] {
                let (object, knobs) = knob_object(&rt, PAGE as u64, in_handler);
                let a = arena(&rt, mode, EXTENT);
                map(&a, 0, &object, Prot::Read, Sharing::Shared);
                knobs.slow_us.store(1_000, Ordering::SeqCst);
                with_a_handler_that_loads(&a, 20, |n| {
                    let _ = object.evict(0..object.len());
                    let mut byte = [0u8];
                    match n % 3 {
                        0 => assert_eq!(object.read_at(0, &mut byte).expect("read"), 1),
                        1 => object.populate(0..PAGE as u64).expect("populate"),
                        _ => a.fault_in(0..PAGE, Access::Read).expect("fault_in"),
                    }
                });
            }
        });
        ended(out, Ok(0));
    }
}

#[test]
fn a_handler_touches_the_page_that_its_thread_writes_or_drops() {
    for mode in common::MODES {
        let out = child("a_handler_touches_the_page_that_its_thread_writes_or_drops", &format!("{mode:?}"), || {
            let rt = common::runtime();
            if !rt.delivery().is_available(mode) {
                println!("skipped: {}", rt.delivery());
                return;
            }
            let file = common::TempFile::new(4 * PAGE);
            let object = rt.open_file_rw(&file.path).expect("object");
            let a = arena(&rt, mode, EXTENT);
            map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
            with_a_handler_that_loads(&a, 40, |n| {
                assert_eq!(store(&a, PAGE, n as u8), Ok(()));
                object.write_at(0, &[n as u8]).expect("write");
                match n % 4 {
                    0 => object.sync_all().expect("sync"),
                    1 => object.punch_hole(0..2 * PAGE as u64).expect("punch"),
                    2 => {
                        object.sync_all().expect("sync");
                        object.invalidate(0..object.len()).expect("invalidate");
                        // The page is unsynced and not cached: a flush keeps it away.
                        object.sync_all().expect("sync");
                    }
                    _ => {
                        object.set_len(2 * PAGE as u64).expect("shrink");
                        object.set_len(4 * PAGE as u64).expect("grow");
                    }
                }
            });
        });
        ended(out, Ok(0));
    }
}

#[test]
fn a_call_that_waits_for_a_store_can_be_interrupted() {
    let _serial = serial();
    each_mode("interrupted call", |rt, mode| {
        let (object, knobs, a) = blocked(rt, mode, 4);
        for p in 0..2 {
            knobs.block.store(true, Ordering::SeqCst);
            UNBLOCKS.store(&raw const knobs.block as usize, Ordering::SeqCst);
            let storm = Storm::begin(Duration::from_millis(50), libc::SA_RESTART);
            let mut byte = [0u8];
            match p {
                0 => assert_eq!(object.read_at(0, &mut byte).expect("read"), 1),
                _ => a.fault_in(0..PAGE, Access::Read).expect("fault_in"),
            }
            object.evict(0..object.len()).expect("evict");
            assert_ne!(ALARMS.load(Ordering::SeqCst), 0, "{mode:?}: nobody else would have ended it");
            drop(storm);
        }
    });
}

/// A store whose flush takes until the flag is false.
struct Flushes(Arc<Knobs>);

impl Store for Flushes {
    fn read(&self, _: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        page.as_mut_slice().fill(1);
        Ok(())
    }
    fn write(&self, _: u64, _: &PageRef<'_>) -> Result<(), StoreError> {
        Ok(())
    }
    fn flush(&self) -> Result<(), StoreError> {
        self.0.blocked.fetch_add(1, Ordering::SeqCst);
        while self.0.block.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
    fn set_len(&self, _: u64) -> Result<(), StoreError> {
        Ok(())
    }
}

#[test]
fn a_call_that_waits_for_another_can_be_interrupted() {
    for key in ["sync", "set_len", "punch_hole"] {
        let out = child("a_call_that_waits_for_another_can_be_interrupted", key, || {
            let rt = common::runtime();
            let knobs = Arc::new(Knobs::default());
            let builder = rt.object(8 * PAGE as u64).writable(true);
            let object = builder.store(Box::new(Flushes(Arc::clone(&knobs)))).expect("object");
            object.write_at(0, &[2]).expect("write");
            knobs.block.store(true, Ordering::SeqCst);
            std::thread::scope(|s| {
                s.spawn(|| object.sync_all().expect("the first sync"));
                until("it flushes", || knobs.blocked.load(Ordering::SeqCst) > 0);
                // Whoever else wants the object's turn waits; a signal of the waiter's is what ends the flush.
                UNBLOCKS.store(&raw const knobs.block as usize, Ordering::SeqCst);
                let storm = Storm::begin(Duration::from_millis(50), libc::SA_RESTART);
                match key {
                    "sync" => object.sync_all().expect("sync"),
                    "set_len" => object.set_len(4 * PAGE as u64).expect("set_len"),
                    _ => object.punch_hole(0..2 * PAGE as u64).expect("punch_hole"),
                }
                assert_ne!(ALARMS.load(Ordering::SeqCst), 0, "nobody else would have ended it");
                drop(storm);
            });
        });
        ended(out, Ok(0));
    }
}

/// An exclusive object is not mapped again before the readers of its former mapping are done.
#[cfg(feature = "userfaultfd")]
#[test]
fn a_mapping_that_waits_for_the_former_ones_readers_can_be_interrupted() {
    let _serial = serial();
    each_mode("interrupted map", |rt, mode| {
        if mode != Delivery::InThread {
            return;
        }
        let knobs = Arc::new(Knobs::default());
        let builder = rt.object(4 * PAGE as u64).exclusive(true);
        let object = builder.store(Box::new(common::KnobStore(Arc::clone(&knobs)))).expect("object");
        let a = arena(rt, mode, EXTENT);
        let map = || a.map(0, &object, 0, 4 * PAGE, Prot::ReadWrite, Sharing::Private);
        map().expect("map");
        knobs.block.store(true, Ordering::SeqCst);
        std::thread::scope(|s| {
            let reader = s.spawn(|| object.populate(0..PAGE as u64));
            until("the store is asked", || knobs.blocked.load(Ordering::SeqCst) > 0);
            a.unmap(0..4 * PAGE).expect("unmap");
            UNBLOCKS.store(&raw const knobs.block as usize, Ordering::SeqCst);
            let storm = Storm::begin(Duration::from_millis(50), libc::SA_RESTART);
            map().expect("a signal of the caller's is what ends the read");
            drop(storm);
            assert!(reader.join().expect("no panic").is_err(), "the page has nowhere to be");
        });
        assert_eq!(load(&a, 0), Ok(byte_of(0, 0)));
    });
}

/// A store whose second half is read for as long as the flag is true.
#[cfg(feature = "userfaultfd")]
struct SecondHalf(Arc<Knobs>);

#[cfg(feature = "userfaultfd")]
impl Store for SecondHalf {
    fn read(&self, at: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        while at >= 64 * PAGE as u64 && self.0.block.load(Ordering::SeqCst) {
            self.0.blocked.store(1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(1));
        }
        page.as_mut_slice().fill(1);
        Ok(())
    }
    fn write(&self, at: u64, page: &PageRef<'_>) -> Result<(), StoreError> {
        let mut byte = [0];
        let _ = page.copy_to(0, &mut byte);
        self.0.seed.store(u64::from(byte[0]), Ordering::SeqCst);
        assert_eq!(at, 5 * PAGE as u64, "the page that was stored to, alone");
        Ok(())
    }
}

/// A page of an exclusive object lies in the arena before its neighbours are read, and may be stored to: who unmaps it waits.
#[cfg(feature = "userfaultfd")]
#[test]
fn an_unmapping_that_waits_for_a_read_can_be_interrupted() {
    let _serial = serial();
    each_mode("interrupted unmap", |rt, mode| {
        if mode != Delivery::InThread {
            return;
        }
        let knobs = Arc::new(Knobs::default());
        let builder = rt.object(128 * PAGE as u64).exclusive(true).writable(true);
        let builder = builder.fill_window_pages(128).readahead_pages(0);
        let object = builder.store(Box::new(SecondHalf(Arc::clone(&knobs)))).expect("object");
        let a = arena(rt, mode, EXTENT);
        a.map(0, &object, 0, 128 * PAGE, Prot::ReadWrite, Sharing::Private).expect("map");
        knobs.block.store(true, Ordering::SeqCst);
        std::thread::scope(|s| {
            // Perhaps it is unmapped before it gets its page.
            s.spawn(|| _ = load(&a, 0));
            until("the second half is read", || knobs.blocked.load(Ordering::SeqCst) > 0);
            store(&a, 5 * PAGE, 77).expect("it lies in the arena");
            UNBLOCKS.store(&raw const knobs.block as usize, Ordering::SeqCst);
            let storm = Storm::begin(Duration::from_millis(50), libc::SA_RESTART);
            a.unmap(0..128 * PAGE).expect("a signal of the caller's is what ends the read");
            drop(storm);
        });
        assert_eq!(knobs.seed.load(Ordering::SeqCst), 77, "what was stored is written");
    });
}

// ---- hosts that do not say what kind of access it was ------------------------------------------------------------------

#[test]
fn a_host_without_error_codes() {
    static OURS: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];
    extern "C" fn forget(signo: i32, info: *mut libc::siginfo_t, uc: *mut c_void) {
        type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut c_void);
        // SAFETY: the kernel's third argument.
        let gregs = unsafe { &mut (*uc.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
        gregs[libc::REG_ERR.cast_unsigned() as usize] = 0;
        // SAFETY: what stood there before, installed with SA_SIGINFO.
        let ours: Handler = unsafe { std::mem::transmute(OURS[usize::from(signo == BUS)].load(Ordering::SeqCst)) };
        ours(signo, info, uc);
    }
    for mode in IN_HANDLER {
        let out = child("a_host_without_error_codes", &format!("{mode:?}"), || {
            let rt = common::runtime();
            if !rt.delivery().is_available(mode) {
                println!("skipped: {}", rt.delivery());
                return;
            }
            for signo in [BUS, libc::SIGSEGV] {
                let flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                let before = install(signo, forget as *const () as usize, flags);
                OURS[usize::from(signo == BUS)].store(before.sa_sigaction, Ordering::SeqCst);
            }
            let file = common::TempFile::new(64 * PAGE);
            let object = rt.open_file_rw(&file.path).expect("object");
            let a = arena(&rt, mode, 2 * EXTENT);
            map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
            map(&a, EXTENT, &object, Prot::ReadWrite, Sharing::Private);
            on_stack_of(min_frame() + (8 << 10), || {
                for p in 0..64 {
                    for base in [EXTENT, 0] {
                        let at = base + p * PAGE;
                        if p % 2 == 0 {
                            assert_eq!(load(&a, at), Ok(file.data[p * PAGE]), "{mode:?}");
                        }
                        assert_eq!(store(&a, at + 1, 7), Ok(()), "{mode:?}");
                        assert_eq!((load(&a, at), load(&a, at + 1)), (Ok(file.data[p * PAGE]), Ok(7)), "{mode:?}");
                    }
                }
                object.sync_all().expect("sync");
                a.protect(0..64 * PAGE, Prot::Read).expect("protect");
                a.zap(0..64 * PAGE).expect("zap");
                // A load that comes again at once stays one where stores are not permitted.
                for _ in 0..3 {
                    a.zap(0..64 * PAGE).expect("zap");
                    assert_eq!(load(&a, 0), Ok(file.data[0]), "{mode:?}");
                }
                assert_eq!(store(&a, 0, 1), Err(libc::SIGSEGV), "{mode:?}: a store that is not permitted");
            });
            assert_eq!(std::fs::read(&file.path).expect("file")[PAGE + 1], 7, "{mode:?}: stores were noted");
        });
        ended(out, Ok(0));
    }
}
