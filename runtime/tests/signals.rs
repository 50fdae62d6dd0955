//! Signals: whose they are, what the program had before us, and what a fault may find the thread in the middle of.
#![allow(unsafe_code, reason = "signal dispositions, alternate stacks and a global allocator")]

mod common;

use common::{
    EXTENT, FOREIGN, FOREIGN_ADDR, Knobs, PAGE, arena, byte_of, child, each_mode, each_of, ended, install, knob_object,
    load, load_at, map, mask, on_small_stack, on_stack_of, runtime, said, serial, until,
};
use softfault::{Arena, Delivery, HandlerStore, PageMut, Prot, Runtime, Sharing, Store, StoreError};
use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};

const BUS: i32 = libc::SIGBUS;
const SEGV: i32 = libc::SIGSEGV;
const IN_HANDLER: [Delivery; 2] = [Delivery::InThread, Delivery::Segv];

// ---- an allocator whose lock is held while it touches an arena -----------------------------------------------------

struct Locked;

static HEAP_LOCK: AtomicBool = AtomicBool::new(false);
/// The address to load from under the lock, and the thread (by errno's address) that does; 0: none.
static TOUCH: AtomicUsize = AtomicUsize::new(0);
static TOUCHER: AtomicUsize = AtomicUsize::new(0);
static TOUCHED: AtomicUsize = AtomicUsize::new(0);

fn me() -> usize {
    // SAFETY: always valid; the address names the thread.
    unsafe { libc::__errno_location() as usize }
}

/// The thread (as above) that asks at its next allocation whether a sync gets on, and who answers.
static ASKER: AtomicUsize = AtomicUsize::new(0);
static ASKED: AtomicUsize = AtomicUsize::new(0);
static ANSWERED: AtomicUsize = AtomicUsize::new(0);
static STUCK: AtomicUsize = AtomicUsize::new(0);

fn ask() {
    ASKED.fetch_add(1, Ordering::SeqCst);
    let began = std::time::Instant::now();
    while ANSWERED.load(Ordering::SeqCst) != ASKED.load(Ordering::SeqCst) {
        if began.elapsed() > std::time::Duration::from_secs(10) {
            STUCK.fetch_add(1, Ordering::SeqCst);
            return;
        }
        std::thread::yield_now();
    }
}

fn locked<R>(f: impl FnOnce() -> R) -> R {
    if ASKER.load(Ordering::SeqCst) == me() {
        ASKER.store(0, Ordering::SeqCst);
        ask();
    }
    while HEAP_LOCK.swap(true, Ordering::Acquire) {
        std::thread::yield_now();
    }
    if TOUCHER.load(Ordering::SeqCst) == me() {
        let address = TOUCH.swap(0, Ordering::SeqCst);
        if address != 0 {
            let byte = load_at(address).map_or(0, usize::from);
            TOUCHED.store(byte, Ordering::SeqCst);
        }
    }
    let r = f();
    HEAP_LOCK.store(false, Ordering::Release);
    r
}

// SAFETY: the system's allocator, one call at a time.
unsafe impl GlobalAlloc for Locked {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract.
        locked(|| unsafe { System.alloc(layout) })
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        locked(|| unsafe { System.dealloc(ptr, layout) });
    }
}

#[global_allocator]
static HEAP: Locked = Locked;

#[test]
fn a_fault_while_the_thread_holds_the_allocators_lock() {
    let _serial = serial();
    each_mode("allocator", |rt, mode| {
        for in_handler in [true, false] {
            let (object, _) = knob_object(rt, EXTENT as u64, in_handler);
            let a = arena(rt, mode, EXTENT);
            map(&a, 0, &object, Prot::Read, Sharing::Shared);
            for p in [0, 100, 300] {
                TOUCHED.store(0, Ordering::SeqCst);
                TOUCHER.store(me(), Ordering::SeqCst);
                TOUCH.store(a.as_ptr() as usize + p * PAGE, Ordering::SeqCst);
                drop(std::hint::black_box(vec![1u8; 100]));
                TOUCHER.store(0, Ordering::SeqCst);
                let want = usize::from(byte_of(0, (p * PAGE) as u64));
                assert_eq!(TOUCHED.load(Ordering::SeqCst), want, "filled while nobody could allocate");
            }
        }
    });
}

#[test]
fn a_fault_while_the_thread_holds_a_lock() {
    let _serial = serial();
    each_mode("locks", |rt, mode| {
        let (object, _) = knob_object(rt, 16 * PAGE as u64, false);
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        let touch = |p: usize| assert_eq!(load(&a, p * PAGE), Ok(byte_of(0, (p * PAGE) as u64)));
        let (mutex, shard) = (Mutex::new(()), RwLock::new(()));
        let held = mutex.lock().unwrap();
        touch(0);
        drop(held);
        let held = shard.write().unwrap();
        object.evict(0..object.len()).unwrap();
        touch(1);
        drop(held);
        let mut held = std::io::stdout().lock();
        object.evict(0..object.len()).unwrap();
        touch(2);
        let _ = writeln!(held, "stdout was ours");
    });
}

/// A store that refuses another end, or a flush, once: what its caller allocates from then on is asked about.
#[derive(Default)]
struct Refuses {
    /// The thread that is refused; 0: nobody.
    end_of: AtomicUsize,
    flush_of: AtomicUsize,
}

impl Refuses {
    fn refuse(whom: &AtomicUsize) -> Result<(), StoreError> {
        if whom.compare_exchange(me(), 0, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            return Ok(());
        }
        ASKER.store(me(), Ordering::SeqCst);
        Err(StoreError::Io(softfault::Errno::EIO))
    }
}

struct RefusesOnce(Arc<Refuses>);

impl Store for RefusesOnce {
    fn read(&self, _: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        page.as_mut_slice().fill(1);
        Ok(())
    }
    fn write(&self, _: u64, _: &softfault::PageRef<'_>) -> Result<(), StoreError> {
        Ok(())
    }
    fn flush(&self) -> Result<(), StoreError> {
        Refuses::refuse(&self.0.flush_of)
    }
    fn set_len(&self, _: u64) -> Result<(), StoreError> {
        Refuses::refuse(&self.0.end_of)
    }
    fn rereads_unflushed(&self) -> bool {
        false
    }
}

/// Faults may wait for who has an object's turn: for memory it would wait for the thread that has the allocator's lock, and faults.
#[test]
fn an_error_of_the_stores_end_is_made_when_the_turn_is_given_back() {
    let _serial = serial();
    let rt = runtime();
    let refuses = Arc::new(Refuses::default());
    let builder = rt.object(64 * PAGE as u64).max_len(128 * PAGE as u64).writable(true);
    let object = builder.store(Box::new(RefusesOnce(Arc::clone(&refuses)))).expect("object");
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                if ASKED.load(Ordering::SeqCst) != ANSWERED.load(Ordering::SeqCst) {
                    // Its turn comes, or never.
                    let _ = object.sync_all();
                    ANSWERED.store(ASKED.load(Ordering::SeqCst), Ordering::SeqCst);
                }
                std::thread::yield_now();
            }
        });
        let _stop = common::StopOnDrop(&done);
        for (what, whom, pages) in [
            ("to grow", &refuses.end_of, 96),
            ("to grow, and to show it", &refuses.flush_of, 80),
            ("to be cut", &refuses.end_of, 32),
            ("to be cut, and to show it", &refuses.flush_of, 16),
        ] {
            let asked = ASKED.load(Ordering::SeqCst);
            object.write_at(0, &[7]).expect("something to flush");
            whom.store(me(), Ordering::SeqCst);
            let refused = object.set_len(pages * PAGE as u64);
            assert!(refused.is_err(), "{what}");
            assert_eq!(ASKED.load(Ordering::SeqCst), asked + 1, "{what}: an error takes memory");
            assert_eq!(STUCK.load(Ordering::SeqCst), 0, "{what}: the error was made under the turn");
        }
    });
}

// ---- what is not ours ----------------------------------------------------------------------------------------------

/// A page of a kernel mapping outside all arenas: without access, or past the end of a file.
fn not_ours(past_end: bool) -> usize {
    let (flags, prot, fd) = if past_end {
        // SAFETY: a fresh descriptor.
        let fd = unsafe { libc::memfd_create(c"empty".as_ptr(), libc::MFD_CLOEXEC) };
        (libc::MAP_SHARED, libc::PROT_READ, fd)
    } else {
        (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, libc::PROT_NONE, -1)
    };
    // SAFETY: a fresh mapping where the kernel likes.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), PAGE, prot, flags, fd, 0) };
    assert_ne!(at, libc::MAP_FAILED);
    at as usize
}

#[test]
fn a_foreign_handler_gets_the_faults_that_are_not_ours() {
    let _serial = serial();
    each_mode("foreign", |rt, mode| {
        let (object, _) = knob_object(rt, 4 * PAGE as u64, true);
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        let before = FOREIGN.load(Ordering::SeqCst);
        assert_eq!(load(&a, 0), Ok(byte_of(0, 0)));
        assert_eq!(FOREIGN.load(Ordering::SeqCst), before, "ours is ours");
        let chained = rt.stats()["process_handler_chained"];
        for (past_end, signo) in [(false, SEGV), (true, BUS)] {
            let address = not_ours(past_end);
            assert_eq!(load_at(address + 77), Err(signo));
            assert_eq!(FOREIGN_ADDR.load(Ordering::SeqCst), address + 77, "with its address");
        }
        assert_eq!(FOREIGN.load(Ordering::SeqCst), before + 2);
        assert_eq!(rt.stats()["process_handler_chained"], chained + 2);
        assert_eq!(load(&a, PAGE), Ok(byte_of(0, PAGE as u64)), "and ours goes on");
    });
}

#[test]
fn handlers_are_restored_on_drop() {
    let _serial = serial();
    common::setup();
    let now = |signo| {
        let old = install(signo, libc::SIG_DFL, 0);
        install(signo, old.sa_sigaction, old.sa_flags);
        (old.sa_sigaction, old.sa_flags & !0x0400_0000)
    };
    let before = [now(BUS), now(SEGV)];
    let rt = runtime();
    let (object, _) = knob_object(&rt, PAGE as u64, true);
    let a = arena(&rt, Delivery::Segv, EXTENT);
    assert_ne!([now(BUS).0, now(SEGV).0], [before[0].0, before[1].0], "ours are in place");
    drop((rt, object));
    assert_ne!(now(BUS).0, before[0].0, "an arena keeps them");
    drop(a);
    assert_eq!([now(BUS), now(SEGV)], before);
}

/// Not only its address: without its return trampoline it runs once, and returns to nowhere. Go's is such a handler.
#[test]
fn a_restored_handler_returns() {
    let out = child("a_restored_handler_returns", "", || {
        drop(runtime());
        for (past_end, signo) in [(false, SEGV), (true, BUS)] {
            assert_eq!(load_at(not_ours(past_end)), Err(signo));
        }
    });
    ended(out, Ok(0));
}

#[test]
fn a_handler_that_comes_later_can_be_put_behind_us() {
    let out = child("a_handler_that_comes_later_can_be_put_behind_us", "", || {
        let rt = runtime();
        let (object, _) = knob_object(&rt, 4 * PAGE as u64, true);
        let a = rt.arena(EXTENT).build().unwrap();
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        extern "C" fn late(_: i32) {
            // SAFETY: leaves at once, from a handler.
            unsafe { libc::_exit(9) };
        }
        install(BUS, late as *const () as usize, 0);
        let audit = rt.audit_threads().unwrap();
        assert!(audit.to_string().contains("reinstall_handlers"), "{audit}");
        rt.reinstall_handlers().unwrap();
        // A thread that is just creating another has everything blocked for a moment: not for long.
        until("nobody offends", || rt.audit_threads().unwrap().offenders.is_empty());
        assert_eq!(load(&a, 0), Ok(byte_of(0, 0)));
        // What is not ours goes to the newcomer.
        let _ = load_at(not_ours(true));
    });
    ended(out, Ok(9));
}

#[test]
fn a_handler_that_calls_us_in_turn_makes_no_circle() {
    use std::ffi::c_void;
    type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut c_void);
    static BEFORE: AtomicUsize = AtomicUsize::new(0);
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn polite(signo: i32, info: *mut libc::siginfo_t, uc: *mut c_void) {
        CALLS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: what stood there before, installed with SA_SIGINFO.
        let before: Handler = unsafe { std::mem::transmute(BEFORE.load(Ordering::SeqCst)) };
        before(signo, info, uc);
    }
    let out = child("a_handler_that_calls_us_in_turn_makes_no_circle", "", || {
        // The probes' handler is there before us; the polite one after us, and passes on to us what it gets.
        let rt = runtime();
        let polite = polite as *const () as usize;
        BEFORE.store(install(BUS, polite, libc::SA_SIGINFO | libc::SA_ONSTACK).sa_sigaction, Ordering::SeqCst);
        rt.reinstall_handlers().unwrap();
        for turn in 1..=3 {
            assert_eq!(load_at(not_ours(true)), Err(BUS), "it ends with who was there first");
            assert_eq!(CALLS.load(Ordering::SeqCst), turn, "and asks the newcomer once");
        }
    });
    ended(out, Ok(0));
}

/// What was the handler of SIGSEGV and SIGBUS before the one of the test, and calls it meanwhile.
static OURS: AtomicUsize = AtomicUsize::new(0);
/// Calls of the handlers below.
static CHAINED: AtomicUsize = AtomicUsize::new(0);
/// The bytes of the caller's frame that were not what it had put there; and signals that came while ours ran.
static BROKEN: AtomicUsize = AtomicUsize::new(0);

type Three = extern "C" fn(i32, *mut libc::siginfo_t, *mut std::ffi::c_void);

/// Calls ours as a function, with something on its own stack that nobody else is to write to.
extern "C" fn chains(signo: i32, info: *mut libc::siginfo_t, uc: *mut std::ffi::c_void) {
    CHAINED.fetch_add(1, Ordering::SeqCst);
    let mut mine = [0xa5u8; 2048];
    std::hint::black_box(&mut mine);
    // SAFETY: what stood there before, installed with SA_SIGINFO.
    let ours: Three = unsafe { std::mem::transmute(OURS.load(Ordering::SeqCst)) };
    ours(signo, info, uc);
    let broken = std::hint::black_box(&mine).iter().filter(|b| **b != 0xa5).count();
    BROKEN.fetch_add(broken, Ordering::SeqCst);
}

std::arch::global_asm!(
    // The same by a jump, as a compiler makes of a call that is the last thing a function does.
    ".globl sf_chains_by_jump",
    "sf_chains_by_jump:",
    "lock inc qword ptr [rip + {chained}]",
    "jmp qword ptr [rip + {ours}]",
    chained = sym CHAINED,
    ours = sym OURS,
);

unsafe extern "C" {
    fn sf_chains_by_jump(signo: i32, info: *mut libc::siginfo_t, uc: *mut std::ffi::c_void);
}

static TICKS: AtomicUsize = AtomicUsize::new(0);

/// Ticks that came while the thread was on neither its own stack nor its alternate one; and where those are.
static WALKED: AtomicUsize = AtomicUsize::new(0);
static STACKS: [[AtomicUsize; 2]; 2] = [const { [const { AtomicUsize::new(0) }; 2] }; 2];

extern "C" fn tick(_: i32, _: *mut libc::siginfo_t, uc: *mut std::ffi::c_void) {
    // SAFETY: the kernel's third argument.
    let gregs = unsafe { &(*uc.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let sp = usize::try_from(gregs[libc::REG_RSP.cast_unsigned() as usize]).unwrap_or(0);
    let is_in = |s: &[AtomicUsize; 2]| s[0].load(Ordering::SeqCst) <= sp && sp < s[1].load(Ordering::SeqCst);
    if !STACKS.iter().any(is_in) {
        WALKED.fetch_add(1, Ordering::SeqCst);
    }
    TICKS.fetch_add(1, Ordering::SeqCst);
}

/// Notes the calling thread's stacks.
fn note_stacks() {
    let (alternate, len) = common::alternate_stack();
    let here = &raw const len as usize;
    let stacks = [[alternate as usize, alternate as usize + len], [here - (1 << 20), here + (1 << 20)]];
    for (to, from) in STACKS.iter().flatten().zip(stacks.into_iter().flatten()) {
        to.store(from, Ordering::SeqCst);
    }
}

/// Touches pages in each mode while `handler` stands before ours, and alarms come.
fn chained_faults(handler: usize) {
    let rt = runtime();
    note_stacks();
    for mode in IN_HANDLER.into_iter().filter(|m| rt.delivery().is_available(*m)) {
        let (object, knobs) = knob_object(&rt, 4 * EXTENT as u64, true);
        let a = arena(&rt, mode, 4 * EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        knobs.slow_us.store(3_000, Ordering::SeqCst);
        for signo in [BUS, SEGV] {
            let old = install(signo, handler, libc::SA_SIGINFO | libc::SA_ONSTACK);
            if old.sa_sigaction != handler {
                OURS.store(old.sa_sigaction, Ordering::SeqCst);
            }
        }
        // Its frame goes to the alternate stack, too.
        install(libc::SIGALRM, tick as *const () as usize, libc::SA_SIGINFO | libc::SA_ONSTACK);
        TICKS.store(0, Ordering::SeqCst);
        CHAINED.store(0, Ordering::SeqCst);
        let done = AtomicBool::new(false);
        // SAFETY: no argument.
        let tid = unsafe { libc::gettid() };
        std::thread::scope(|s| {
            s.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    // SAFETY: a signal to a thread of this process, which waits for us.
                    unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), tid, libc::SIGALRM) };
                    std::thread::sleep(std::time::Duration::from_micros(300));
                }
            });
            let _stop = common::StopOnDrop(&done);
            for p in (0..32).map(|p| 64 * p) {
                let want = byte_of(0, (p * PAGE) as u64);
                assert_eq!(load(&a, p * PAGE), Ok(want), "{mode:?}");
                // The mask is what it was: the signals that waited come.
                let before = TICKS.load(Ordering::SeqCst);
                until("a tick", || TICKS.load(Ordering::SeqCst) > before);
            }
        });
        done.store(true, Ordering::SeqCst);
        assert!(CHAINED.load(Ordering::SeqCst) >= 8, "{mode:?}: it was called");
        assert_eq!(WALKED.load(Ordering::SeqCst), 0, "{mode:?}: signals came on a walk stack");
        assert_eq!(BROKEN.load(Ordering::SeqCst), 0, "{mode:?}: bytes of the caller's frame were written over");
        println!("{mode:?}: {} ticks", TICKS.load(Ordering::SeqCst));
    }
}

/// A library that came after us, passes on what is not its own, and has an empty mask: its signals stay open, and their frames
/// would begin at the top of the alternate stack, over its own, while we are on a walk stack.
#[test]
fn signals_wait_while_a_handler_with_an_empty_mask_calls_ours() {
    for (key, handler) in [("call", chains as *const () as usize), ("jump", sf_chains_by_jump as *const () as usize)] {
        let out = child("signals_wait_while_a_handler_with_an_empty_mask_calls_ours", key, || {
            // Two frames, and what a handler takes between them.
            on_stack_of(1 << 16, || chained_faults(handler));
        });
        print!("{}", ended(out, Ok(0)));
    }
}

/// Python's faulthandler: it reports, puts back who was there before it, and sends itself the signal once more.
#[test]
fn a_handler_that_sends_the_signal_again_is_asked_once() {
    static BEFORE: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn reports(signo: i32) {
        let words = b"reported\n";
        // SAFETY: writes nine bytes of ours.
        unsafe { libc::write(1, words.as_ptr().cast(), words.len()) };
        install(signo, BEFORE.load(Ordering::SeqCst), libc::SA_SIGINFO | libc::SA_ONSTACK);
        // SAFETY: sends the signal to this thread; it is not blocked.
        unsafe { libc::raise(signo) };
    }
    for signo in [BUS, SEGV] {
        let out = child("a_handler_that_sends_the_signal_again_is_asked_once", &signo.to_string(), || {
            install(BUS, libc::SIG_DFL, 0);
            install(SEGV, libc::SIG_DFL, 0);
            let rt = Runtime::new().unwrap();
            let reports = reports as *const () as usize;
            BEFORE.store(install(signo, reports, libc::SA_NODEFER | libc::SA_ONSTACK).sa_sigaction, Ordering::SeqCst);
            rt.reinstall_handlers().unwrap();
            // Two frames, as faulthandler's own stack has room for.
            let _ = on_stack_of(1 << 16, || load_at(not_ours(signo == BUS)));
        });
        let text = ended(out, Err(signo));
        assert!(text.is_empty() || text.matches("reported").count() == 1, "{text}");
    }
}

/// A runtime with one mapping that ends at `PAGE`, in `mode`; `None` after saying why not.
fn small(mode: Delivery) -> Option<(Runtime, Arena)> {
    let rt = Runtime::new().unwrap();
    if !rt.delivery().is_available(mode) {
        println!("skipped: {}", rt.delivery());
        return None;
    }
    let knobs = Arc::new(Knobs::default());
    let object = rt.object(PAGE as u64).handler_store(Box::new(common::KnobStore(knobs))).unwrap();
    let a = arena(&rt, mode, EXTENT);
    a.map(0, &object, 0, 2 * PAGE, Prot::Read, Sharing::Shared).unwrap();
    assert_eq!(load(&a, 0), Ok(byte_of(0, 0)));
    Some((rt, a))
}

#[test]
fn the_default_action_kills_with_the_right_signal() {
    for mode in common::MODES {
        // As the standard library leaves it (its handler looks for stack overflows), and the bare default.
        for bare in [false, true] {
            for (what, at, signo) in [("eof", PAGE, BUS), ("unmapped", 8 * PAGE, SEGV)] {
                let key = format!("{mode:?}-{bare}-{what}");
                let out = child("the_default_action_kills_with_the_right_signal", &key, || {
                    if bare {
                        install(BUS, libc::SIG_DFL, 0);
                        install(SEGV, libc::SIG_DFL, 0);
                    }
                    if let Some((_rt, a)) = small(mode) {
                        let _ = load(&a, at);
                    }
                });
                let skipped = out.as_ref().is_some_and(|o| said(o).contains("skipped"));
                ended(out, if skipped { Ok(0) } else { Err(signo) });
            }
        }
    }
}

#[test]
fn a_signal_from_outside() {
    for mode in common::MODES {
        for (what, want) in [("default", Err(BUS)), ("ignored", Ok(0)), ("handled", Ok(7))] {
            let out = child("a_signal_from_outside", &format!("{mode:?}-{what}"), || {
                extern "C" fn handled(_: i32) {
                    // SAFETY: leaves at once, from a handler.
                    unsafe { libc::_exit(7) };
                }
                let handler = match what {
                    "default" => libc::SIG_DFL,
                    "ignored" => libc::SIG_IGN,
                    _ => handled as *const () as usize,
                };
                install(BUS, handler, 0);
                let _runtime = small(mode);
                let pid = std::process::id().cast_signed();
                // SAFETY: a signal to this process, as kill(1) sends it.
                unsafe { libc::kill(pid, BUS) };
                // Delivered before kill returns or a little later, but not after this.
                std::thread::sleep(std::time::Duration::from_millis(50));
            });
            ended(out, want);
        }
    }
}

#[test]
fn the_stack_overflow_handler_of_the_standard_library_still_works() {
    #[inline(never)]
    fn deep(n: u64) -> u64 {
        let frame = std::hint::black_box([n; 512]);
        if n == u64::MAX { 0 } else { deep(n + 1) + frame[7] }
    }
    for mode in common::MODES {
        let out = child("the_stack_overflow_handler_of_the_standard_library_still_works", &format!("{mode:?}"), || {
            let _runtime = small(mode);
            let thread = std::thread::Builder::new().name("diver".into()).stack_size(256 << 10);
            let _ = thread.spawn(|| deep(std::hint::black_box(1))).unwrap().join();
        });
        let Some(out) = out else { continue };
        let text = said(&out);
        ended(Some(out), Err(libc::SIGABRT));
        assert!(text.contains("has overflowed its stack") && text.contains("diver"), "{text}");
    }
}

// ---- the interrupted thread ----------------------------------------------------------------------------------------

#[test]
fn errno_is_untouched() {
    let _serial = serial();
    let file = common::TempFile::new(64 * PAGE);
    each_mode("errno", |rt, mode| {
        let object = rt.open_file(&file.path).unwrap();
        let (failing, knobs) = knob_object(rt, 4 * PAGE as u64, true);
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        map(&a, 128 * PAGE, &failing, Prot::Read, Sharing::Shared);
        knobs.fail(0, 1);
        for (p, want) in [(0, Ok(file.data[0])), (63, Ok(file.data[63 * PAGE])), (128, Err(BUS)), (200, Err(SEGV))] {
            // SAFETY: returns this thread's errno.
            let errno = unsafe { libc::__errno_location() };
            // SAFETY: an int, and this thread's alone.
            let errno = unsafe { &mut *errno };
            *errno = 4242;
            let got = load(&a, p * PAGE);
            assert_eq!((got, *errno), (want, 4242), "page {p}");
        }
    });
}

unsafe extern "C" {
    fn pthread_setcancelstate(state: i32, old: *mut i32) -> i32;
}

#[test]
fn a_pending_cancellation_is_not_acted_on_in_a_fault() {
    let _serial = serial();
    let file = common::TempFile::new(64 * PAGE);
    each_mode("cancel", |rt, mode| {
        let object = rt.open_file(&file.path).unwrap();
        let (slow, _) = knob_object(rt, 64 * PAGE as u64, false);
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        map(&a, 64 * PAGE, &slow, Prot::Read, Sharing::Shared);
        let base = a.as_ptr() as usize;
        let thread = std::thread::spawn(move || {
            // SAFETY: touches nothing.
            let this = unsafe { libc::pthread_self() };
            // SAFETY: this thread; cancellation is deferred, so it is only noted.
            unsafe { libc::pthread_cancel(this) };
            let got = [0, 40, 64, 100].map(|p| load_at(base + p * PAGE));
            // SAFETY: 1 is PTHREAD_CANCEL_DISABLE; from here nothing acts on it.
            unsafe { pthread_setcancelstate(1, std::ptr::null_mut()) };
            got
        });
        let got = thread.join().expect("the thread was not cancelled");
        let want = [Ok(file.data[0]), Ok(file.data[40 * PAGE]), Ok(byte_of(0, 0)), Ok(byte_of(0, 36 * PAGE as u64))];
        assert_eq!(got, want);
    });
}

#[test]
fn the_audit_names_threads_that_cannot_take_our_signals() {
    let _serial = serial();
    let rt = runtime();
    until("nobody offends", || rt.audit_threads().unwrap().offenders.is_empty());
    let (ready, done) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|s| {
        let blocked = std::thread::Builder::new().name("deaf".into());
        blocked
            .spawn_scoped(s, || {
                mask(libc::SIG_BLOCK, BUS);
                ready.store(true, Ordering::SeqCst);
                until("the audit is done", || done.load(Ordering::SeqCst));
            })
            .unwrap();
        until("the thread is deaf", || ready.load(Ordering::SeqCst));
        let audit = rt.audit_threads();
        done.store(true, Ordering::SeqCst);
        let audit = audit.unwrap();
        let o = audit.offenders.iter().find(|o| o.name == "deaf").expect("named");
        assert!(o.tid != 0 && o.why.contains("SIGBUS") && !o.why.contains("SIGSEGV"), "{audit}");
    });
    let out = child("the_audit_names_threads_that_cannot_take_our_signals", "ignored", || {
        let rt = Runtime::new().unwrap();
        install(BUS, libc::SIG_IGN, 0);
        let audit = rt.audit_threads().unwrap();
        assert!(audit.offenders.iter().any(|o| o.why.contains("ignores SIGBUS")), "{audit}");
        assert!(audit.offenders.iter().any(|o| o.tid == 0), "{audit}");
    });
    ended(out, Ok(0));
}

#[test]
fn a_thread_with_the_signal_blocked_dies_of_it_and_says_nothing_wrong() {
    // Not a wish: the kernel kills, and nothing can be done at fault time. That is why there is an audit.
    for (mode, signo) in [(Delivery::InThread, BUS), (Delivery::Segv, SEGV)] {
        let key = format!("{mode:?}");
        let out = child("a_thread_with_the_signal_blocked_dies_of_it_and_says_nothing_wrong", &key, || {
            let Some((rt, a)) = small(mode) else { return };
            let (object, _) = knob_object(&rt, PAGE as u64, true);
            map(&a, 64 * PAGE, &object, Prot::Read, Sharing::Shared);
            mask(libc::SIG_BLOCK, signo);
            let _ = load(&a, 64 * PAGE);
        });
        let skipped = out.as_ref().is_some_and(|o| said(o).contains("skipped"));
        ended(out, if skipped { Ok(0) } else { Err(signo) });
    }
}

// ---- nesting -------------------------------------------------------------------------------------------------------

/// A store that copies from memory, perhaps an arena's; a signal on the way is an I/O error.
struct MemoryStore(usize);

impl Store for MemoryStore {
    fn read(&self, pos_bytes: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        let from = self.0 + usize::try_from(pos_bytes).map_err(|_| StoreError::Short)?;
        for (i, b) in page.as_mut_slice().iter_mut().enumerate() {
            *b = load_at(from + i).map_err(|_| StoreError::Corrupt)?;
        }
        Ok(())
    }
}

// SAFETY: one load after the other.
unsafe impl HandlerStore for MemoryStore {
    fn touches_arenas(&self) -> bool {
        true
    }
}

#[test]
fn a_store_in_the_handler_may_fault_on_another_arena() {
    let _serial = serial();
    each_of("nested", &IN_HANDLER, |rt, outer| {
        for inner in IN_HANDLER.into_iter().filter(|m| rt.delivery().is_available(*m)) {
            let (source, _) = knob_object(rt, 16 * PAGE as u64, true);
            let b = arena(rt, inner, EXTENT);
            map(&b, 0, &source, Prot::Read, Sharing::Shared);
            let store = Box::new(MemoryStore(b.as_ptr() as usize));
            let object = rt.object(16 * PAGE as u64).fill_window_pages(1).handler_store(store).unwrap();
            let a = arena(rt, outer, EXTENT);
            map(&a, 0, &object, Prot::Read, Sharing::Shared);
            let nested = rt.stats()["handler_nested"];
            on_small_stack(|| {
                for p in 0..16 {
                    assert_eq!(load(&a, p * PAGE), Ok(byte_of(0, (p * PAGE) as u64)), "{outer:?} over {inner:?}");
                }
            });
            assert!(rt.stats()["handler_nested"] > nested, "it did nest");
        }
    });
}

#[test]
fn deeper_is_refused_with_a_reason_and_not_a_crash() {
    let _serial = serial();
    each_of("too_deep", &IN_HANDLER, |rt, mode| {
        let (source, _) = knob_object(rt, PAGE as u64, true);
        let mut arenas = Vec::new();
        let mut object = source;
        // d over c over b over a: the fault on d needs three more.
        for _ in 0..4 {
            let next = arena(rt, mode, EXTENT);
            map(&next, 0, &object, Prot::Read, Sharing::Shared);
            let store = Box::new(MemoryStore(next.as_ptr() as usize));
            arenas.push(next);
            object = rt.object(PAGE as u64).handler_store(store).unwrap();
        }
        let refused = rt.stats()["process_handler_refused"];
        on_small_stack(|| assert_eq!(load(&arenas[3], 0), Err(BUS)));
        assert!(rt.stats()["process_handler_refused"] > refused);
        assert_ne!(rt.stats()["process_refusal_reasons"], 0);
        // From below it works, one level at a time.
        on_small_stack(|| {
            for a in &arenas {
                assert_eq!(load(a, 0), Ok(byte_of(0, 0)));
            }
        });
    });
}

#[test]
fn a_fault_on_a_helper_thread_is_refused() {
    let _serial = serial();
    each_of("helper", &IN_HANDLER, |rt, mode| {
        let (source, _) = knob_object(rt, 4 * PAGE as u64, true);
        let b = arena(rt, mode, EXTENT);
        map(&b, 0, &source, Prot::Read, Sharing::Shared);
        // Not handler-safe: a filler reads it, and a filler never touches an arena.
        let store = Box::new(MemoryStore(b.as_ptr() as usize));
        let object = rt.object(4 * PAGE as u64).store(store).unwrap();
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        let refused = rt.stats()["process_handler_refused"];
        assert_eq!(load(&a, 0), Err(BUS));
        assert!(rt.stats()["process_handler_refused"] > refused);
        assert_ne!(rt.stats()["process_refusal_reasons"] & 4, 0, "raised on a helper");
        assert_eq!(source.cached_pages(), 0);
        assert_eq!(load(&b, 0), Ok(byte_of(0, 0)), "from here it works");
        assert_eq!(load(&a, 0), Ok(byte_of(0, 0)), "and then there too");
    });
}

/// setuid(2) waits for every thread of the process, those of the runtime too.
#[test]
fn a_process_with_a_runtime_may_become_another_user() {
    let out = child("a_process_with_a_runtime_may_become_another_user", "setuid", || {
        let rt = runtime();
        let (object, _) = knob_object(&rt, 8 * PAGE as u64, false);
        let mut got = [0; 8];
        object.read_at(0, &mut got).expect("a filler has worked, and waits for work");
        // SAFETY: no memory is touched.
        let me = unsafe { libc::geteuid() };
        // SAFETY: it stays the user that it is; the C library asks every thread all the same.
        assert_eq!(unsafe { libc::setuid(me) }, 0);
    });
    ended(out, Ok(0));
}

/// Who makes or maps something with our signals blocked is told, before it dies of a touch.
#[test]
fn a_caller_that_blocks_the_signals_is_named() {
    for mode in common::MODES {
        let rt = runtime();
        if !rt.delivery().is_available(mode) {
            println!("{mode:?} skipped: it cannot be had here");
            continue;
        }
        assert_eq!(rt.warnings(), [], "nobody blocks anything");
        let object = rt.anonymous(PAGE as u64).expect("an object");
        let a = arena(&rt, mode, EXTENT);
        let map_blind = || {
            // SAFETY: all-zero is a value of that plain C structure.
            let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
            // SAFETY: writes the set; likewise below.
            unsafe { libc::sigemptyset(&raw mut set) };
            // SAFETY: as above.
            unsafe { libc::sigaddset(&raw mut set, libc::SIGSEGV) };
            // SAFETY: reads the set, of a thread that ends soon.
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
            map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
            a.unmap(0..PAGE).expect("unmap");
            map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
            a.replace(0, &object, 0, PAGE, Prot::ReadWrite, Sharing::Shared).expect("replace");
            Runtime::builder().cache_limit(1 << 20).build().expect("a runtime")
        };
        let other = std::thread::scope(|s| {
            let thread = std::thread::Builder::new().name("blind".into());
            thread.spawn_scoped(s, map_blind).expect("a thread").join().expect("it ends")
        });
        // A monitor's faults arrive by messages.
        let calls: &[&str] = if mode == Delivery::Monitor { &[] } else { &["Arena::map", "Arena::replace"] };
        let said = rt.warnings();
        assert_eq!(said.len(), calls.len(), "{mode:?}: once for a thread and a call: {said:?}");
        assert_eq!(rt.stats().get("nr_warnings"), Some(calls.len() as u64));
        for (warning, call) in said.iter().zip(calls) {
            assert!(
                warning.name == "blind" && warning.why.contains("SIGSEGV") && warning.why.contains(call),
                "{said:?}"
            );
        }
        let made = other.warnings();
        assert!(made.len() == 1 && made[0].why.contains("RuntimeBuilder::build"), "{made:?}");
    }
}
