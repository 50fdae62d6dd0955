//! What the tests on the real kernel share: files of known content, probes that survive a signal, child processes.
#![allow(dead_code, reason = "each test binary uses a part of this")]
#![allow(unsafe_code, reason = "touches arenas by address, and installs signal handlers")]
#![allow(clippy::cast_possible_truncation, reason = "patterns and addresses; 64-bit only")]

use softfault::{Arena, Delivery, Errno, HandlerStore, Object, PageMut, Prot, Runtime, Sharing, Store, StoreError};
use std::ffi::c_void;
use std::io::Write;
use std::ops::Range;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

pub(crate) const PAGE: usize = 4096;
pub(crate) const EXTENT: usize = 2 << 20;
pub(crate) const MODES: [Delivery; 3] = [Delivery::InThread, Delivery::Segv, Delivery::Monitor];

// ---- probes: a load and a store whose signal comes back as a value -------------------------------------------------

std::arch::global_asm!(
    // (address, *mut u8) -> signal number, or 0 with the byte stored
    ".globl sf_probe_load",
    ".globl sf_probe_load_at",
    ".globl sf_probe_load_next",
    "sf_probe_load:",
    "xor eax, eax",
    "sf_probe_load_at:",
    "mov cl, byte ptr [rdi]",
    "sf_probe_load_next:",
    "test eax, eax",
    "jne 2f",
    "mov byte ptr [rsi], cl",
    "2:",
    "ret",
    // (address, u8) -> signal number, or 0
    ".globl sf_probe_store",
    ".globl sf_probe_store_at",
    ".globl sf_probe_store_next",
    "sf_probe_store:",
    "xor eax, eax",
    "sf_probe_store_at:",
    "mov byte ptr [rdi], sil",
    "sf_probe_store_next:",
    "ret",
    // A signal handler that takes no stack.
    ".globl sf_only_return",
    "sf_only_return:",
    "ret",
);

unsafe extern "C" {
    fn sf_probe_load(address: usize, out: *mut u8) -> i32;
    fn sf_probe_store(address: usize, value: u8) -> i32;
    fn sf_only_return(signo: i32);
    static sf_probe_load_at: u8;
    static sf_probe_load_next: u8;
    static sf_probe_store_at: u8;
    static sf_probe_store_next: u8;
}

/// Indices into the interrupted registers.
const RIP: usize = libc::REG_RIP.cast_unsigned() as usize;
const RAX: usize = libc::REG_RAX.cast_unsigned() as usize;

/// How many signals the foreign handler got, and the address of the last.
pub(crate) static FOREIGN: AtomicUsize = AtomicUsize::new(0);
pub(crate) static FOREIGN_ADDR: AtomicUsize = AtomicUsize::new(0);

/// The handler that was there before the runtime: it skips a probe's instruction and returns the signal's number.
extern "C" fn foreign(signo: i32, info: *mut libc::siginfo_t, uc: *mut c_void) {
    FOREIGN.fetch_add(1, Ordering::SeqCst);
    // SAFETY: the kernel's second argument.
    let info = unsafe { &*info };
    // SAFETY: a fault's siginfo carries an address; of another signal's the number is garbage, and unused.
    let address = unsafe { info.si_addr() };
    FOREIGN_ADDR.store(address as usize, Ordering::SeqCst);
    if skip_probe(uc, signo) {
        return;
    }
    // Not a probe: die of it, as without us.
    // SAFETY: the default disposition is no function.
    unsafe { libc::signal(signo, libc::SIG_DFL) };
}

/// Has an interrupted probe return `signo` without its access; `false`: it was no probe.
pub(crate) fn skip_probe(uc: *mut c_void, signo: i32) -> bool {
    let context = uc.cast::<libc::ucontext_t>();
    // SAFETY: the kernel's third argument, of the handler that is running.
    let gregs = unsafe { &mut (*context).uc_mcontext.gregs };
    let rip = gregs[RIP].cast_unsigned() as usize;
    let at = |p: *const u8| p as usize;
    let skips = [
        (at(&raw const sf_probe_load_at), at(&raw const sf_probe_load_next)),
        (at(&raw const sf_probe_store_at), at(&raw const sf_probe_store_next)),
    ];
    let Some((_, to)) = skips.into_iter().find(|(from, _)| rip == *from) else { return false };
    gregs[RIP] = (to as u64).cast_signed();
    gregs[RAX] = i64::from(signo);
    true
}

/// Installs the foreign handler, before the first runtime of the process.
pub(crate) fn setup() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for signo in [libc::SIGBUS, libc::SIGSEGV] {
            install(signo, foreign as *const () as usize, libc::SA_SIGINFO | libc::SA_ONSTACK);
        }
    });
}

/// sigaction(2).
pub(crate) fn install(signo: i32, handler: usize, flags: i32) -> libc::sigaction {
    // SAFETY: a plain C structure; all-zero is the default disposition.
    let mut act: libc::sigaction = unsafe { std::mem::zeroed() };
    act.sa_sigaction = handler;
    act.sa_flags = flags;
    // SAFETY: as above.
    let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: both structures live; the tests' handlers fit their flags.
    let r = unsafe { libc::sigaction(signo, &raw const act, &raw mut old) };
    assert_eq!(r, 0, "sigaction");
    old
}

/// Loads a byte; the signal's number if that raised one which was not ours.
pub(crate) fn load_at(address: usize) -> Result<u8, i32> {
    let mut byte = 0;
    // SAFETY: a fault of the load is answered by the foreign handler; `byte` is ours.
    match unsafe { sf_probe_load(address, &raw mut byte) } {
        0 => Ok(byte),
        signo => Err(signo),
    }
}

/// Stores a byte; the signal's number if that raised one which was not ours.
pub(crate) fn store_at(address: usize, value: u8) -> Result<(), i32> {
    // SAFETY: the address is in an arena (the callers check), of which no reference exists.
    match unsafe { sf_probe_store(address, value) } {
        0 => Ok(()),
        signo => Err(signo),
    }
}

pub(crate) fn load(arena: &Arena, offset: usize) -> Result<u8, i32> {
    assert!(offset < arena.len());
    load_at(arena.as_ptr() as usize + offset)
}

pub(crate) fn store(arena: &Arena, offset: usize, value: u8) -> Result<(), i32> {
    assert!(offset < arena.len());
    store_at(arena.as_ptr() as usize + offset, value)
}

/// Copies a range out of an arena by ordinary loads.
pub(crate) fn bytes(arena: &Arena, range: Range<usize>) -> Vec<u8> {
    assert!(range.end <= arena.len());
    let mut out = vec![0u8; range.len()];
    let src = arena.as_ptr().wrapping_add(range.start);
    // SAFETY: inside the arena; a page that cannot be had kills the test, which is what it deserves.
    unsafe { std::ptr::copy_nonoverlapping(src, out.as_mut_ptr(), out.len()) };
    out
}

/// Panics with the first difference, not with megabytes.
#[track_caller]
pub(crate) fn same(what: &str, got: &[u8], want: &[u8]) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    // The whole first: byte by byte is slow without optimisation.
    if got != want
        && let Some(i) = got.iter().zip(want).position(|(a, b)| a != b)
    {
        panic!("{what}: byte {i:#x} (page {}) is {:#x}, not {:#x}", i / PAGE, got[i], want[i]);
    }
}

// ---- content -------------------------------------------------------------------------------------------------------

/// The byte at `offset` of content `seed`: never zero, and different in neighbouring pages.
pub(crate) fn byte_of(seed: u64, offset: u64) -> u8 {
    let x = (offset / PAGE as u64).wrapping_mul(0x9e37_79b9).wrapping_add(offset.wrapping_mul(7)).wrapping_add(seed);
    (x % 251) as u8 + 1
}

pub(crate) fn content(seed: u64, range: Range<u64>) -> Vec<u8> {
    range.map(|i| byte_of(seed, i)).collect()
}

/// A file of known content, removed on drop.
#[derive(Debug)]
pub(crate) struct TempFile {
    pub(crate) path: PathBuf,
    pub(crate) data: Vec<u8>,
}

impl TempFile {
    pub(crate) fn new(len: usize) -> Self {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let n = SERIAL.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("softfault-test-{}-{n}", std::process::id()));
        let data = content(n, 0..len as u64);
        let mut file = std::fs::File::create(&path).expect("temp file");
        file.write_all(&data).expect("write temp file");
        Self { path, data }
    }
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

// ---- stores --------------------------------------------------------------------------------------------------------

/// What a test does to its store while it runs. One for each store.
#[derive(Debug, Default)]
pub(crate) struct Knobs {
    /// Reads made.
    pub(crate) reads: AtomicUsize,
    /// Bytes asked for.
    pub(crate) bytes: AtomicUsize,
    /// The page that fails, plus 1; 0: none.
    pub(crate) bad_page: AtomicUsize,
    /// How: 1 I/O error, 2 short, 3 corrupt.
    pub(crate) how: AtomicUsize,
    /// Reads wait while this is set.
    pub(crate) block: AtomicBool,
    /// Reads take this much longer.
    pub(crate) slow_us: AtomicU64,
    /// Reads that wait now.
    pub(crate) blocked: AtomicUsize,
    /// The content's seed.
    pub(crate) seed: AtomicU64,
}

impl Knobs {
    pub(crate) fn fail(&self, page: usize, how: usize) {
        self.how.store(how, Ordering::SeqCst);
        self.bad_page.store(page + 1, Ordering::SeqCst);
    }
    pub(crate) fn recover(&self) {
        self.bad_page.store(0, Ordering::SeqCst);
    }
    pub(crate) fn nr_reads(&self) -> usize {
        self.reads.load(Ordering::SeqCst)
    }
}

/// A store of computed content with knobs. It allocates nothing and takes no lock: it may run in a handler.
#[derive(Debug)]
pub(crate) struct KnobStore(pub(crate) Arc<Knobs>);

impl Store for KnobStore {
    fn read(&self, pos_bytes: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        let k = &self.0;
        k.reads.fetch_add(1, Ordering::SeqCst);
        k.bytes.fetch_add(page.len_bytes(), Ordering::SeqCst);
        let seed = k.seed.load(Ordering::SeqCst);
        if k.block.load(Ordering::SeqCst) {
            k.blocked.fetch_add(1, Ordering::SeqCst);
            while k.block.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
            k.blocked.fetch_sub(1, Ordering::SeqCst);
        }
        let slow_us = k.slow_us.load(Ordering::SeqCst);
        if slow_us > 0 {
            std::thread::sleep(Duration::from_micros(slow_us));
        }
        for (i, b) in (pos_bytes..).zip(page.as_mut_slice()) {
            *b = byte_of(seed, i);
        }
        let bad = k.bad_page.load(Ordering::SeqCst);
        let pages = pos_bytes / PAGE as u64..(pos_bytes + page.len_bytes() as u64).div_ceil(PAGE as u64);
        if bad > 0 && pages.contains(&(bad as u64 - 1)) {
            return Err(match k.how.load(Ordering::SeqCst) {
                2 => StoreError::Short,
                3 => StoreError::Corrupt,
                _ => StoreError::Io(Errno::EIO),
            });
        }
        Ok(())
    }
}

// SAFETY: atomics and stores to the page alone; tests that block a store use it on fillers only.
unsafe impl HandlerStore for KnobStore {}

/// An object of `len` bytes over a [`KnobStore`]: in the handler, or on a filler.
pub(crate) fn knob_object(rt: &Runtime, len: u64, in_handler: bool) -> (Object, Arc<Knobs>) {
    let knobs = Arc::new(Knobs::default());
    let store = Box::new(KnobStore(Arc::clone(&knobs)));
    let builder = rt.object(len);
    let object = if in_handler { builder.handler_store(store) } else { builder.store(store) }.expect("object");
    (object, knobs)
}

// ---- runtimes and modes --------------------------------------------------------------------------------------------

/// A runtime, with the foreign handler below it.
pub(crate) fn runtime() -> Runtime {
    setup();
    Runtime::new().expect("runtime")
}

/// Runs one scenario in every mode that can be had, each with a runtime of its own; fails if there is none.
pub(crate) fn each_mode(what: &str, f: impl Fn(&Runtime, Delivery)) {
    each_of(what, &MODES, f);
}

pub(crate) fn each_of(what: &str, modes: &[Delivery], f: impl Fn(&Runtime, Delivery)) {
    let mut ran = 0;
    for mode in modes {
        let rt = runtime();
        if let Some(finding) = rt.delivery().finding(*mode).filter(|f| !f.available) {
            println!("{what}: {mode:?} skipped: {}", finding.why);
            continue;
        }
        f(&rt, *mode);
        println!("{what}: {mode:?} ok");
        ran += 1;
    }
    assert!(ran > 0, "{what}: every mode was skipped");
}

/// As [`each_of`], but it may run nowhere (userfaultfd forbidden): then it says so.
pub(crate) fn each_userfaultfd(what: &str, f: impl Fn(&Runtime, Delivery)) {
    let rt = runtime();
    let modes: Vec<_> =
        [Delivery::InThread, Delivery::Monitor].into_iter().filter(|m| rt.delivery().is_available(*m)).collect();
    if modes.is_empty() {
        println!("{what} skipped: {}", rt.delivery());
        return;
    }
    each_of(what, &modes, f);
}

pub(crate) fn arena(rt: &Runtime, mode: Delivery, len: usize) -> Arena {
    rt.arena(len).delivery(mode).build().expect("arena")
}

/// Maps a whole object at `offset`.
#[track_caller]
pub(crate) fn map(arena: &Arena, offset: usize, object: &Object, prot: Prot, sharing: Sharing) {
    arena.map(offset, object, 0, object.len() as usize, prot, sharing).expect("map");
}

/// Tells helper threads of a scope to stop: when the test is done, and when it fails.
#[derive(Debug)]
pub(crate) struct StopOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Keeps tests of one binary apart that look at what is one per process (failpoints, budget, dispositions).
pub(crate) fn serial() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until `f` holds; panics after half a minute. For conditions that must come, never for ones that might.
#[track_caller]
pub(crate) fn until(what: &str, f: impl Fn() -> bool) {
    let began = Instant::now();
    while !f() {
        assert!(began.elapsed() < Duration::from_secs(30), "waited in vain: {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Evicts a range until `want` pages of it went: a monitor drops its pins a little after it has woken whom it serves.
#[track_caller]
pub(crate) fn evict(object: &Object, range: Range<u64>, want: u64) {
    let gone = AtomicU64::new(0);
    until("evicted", || {
        gone.fetch_add(object.evict(range.clone()).expect("evict"), Ordering::SeqCst);
        gone.load(Ordering::SeqCst) >= want
    });
    assert_eq!(gone.into_inner(), want, "evicted pages");
}

/// Evicts whatever an object has cached, until nothing is left. Reclaim may take a part meanwhile: how many pages went
/// by whom is no matter.
#[track_caller]
pub(crate) fn evict_whole(object: &Object) {
    until("everything is evicted", || {
        object.evict(0..object.len()).expect("evict");
        object.cached_pages() == 0
    });
}

/// A small generator of numbers that need not be good.
#[derive(Debug)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

// ---- children ------------------------------------------------------------------------------------------------------

const CHILD: &str = "SOFTFAULT_TEST_CHILD";

/// Returns whether this is a process that [`child`] made.
pub(crate) fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// A path that a test and its children know by `name`, and no other process: tests of several checkouts share a folder.
pub(crate) fn path_of(name: &str) -> PathBuf {
    let id = if is_child() { std::os::unix::process::parent_id() } else { std::process::id() };
    std::env::temp_dir().join(format!("softfault-{id}-{name}"))
}

/// Runs `body` in a fresh process of this binary, in the test named `test`; returns what became of it.
///
/// In that process the call does not return. `None`: this is a child made for another call of the same test.
pub(crate) fn child(test: &str, key: &str, body: impl FnOnce()) -> Option<Output> {
    child_beside(test, key, |_| (), body)
}

/// As [`child`]; meanwhile the parent does something with it.
pub(crate) fn child_beside(
    test: &str,
    key: &str,
    beside: impl FnOnce(&mut Child),
    body: impl FnOnce(),
) -> Option<Output> {
    let name = format!("{test}/{key}");
    if let Ok(wanted) = std::env::var(CHILD) {
        if wanted == name {
            no_core();
            body();
            std::process::exit(0);
        }
        return None;
    }
    let mut child = Command::new(std::env::current_exe().expect("current_exe"))
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, &name)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("spawn");
    beside(&mut child);
    let began = Instant::now();
    while child.try_wait().expect("wait").is_none() {
        // It is for hangs alone: a busy machine takes as long as it takes.
        if began.elapsed() > Duration::from_secs(300) {
            let _ = child.kill();
            let out = child.wait_with_output().expect("output");
            panic!("{name} hangs; it said:\n{}", said(&out));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Some(child.wait_with_output().expect("output"))
}

/// What a child wrote.
pub(crate) fn said(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

/// Asserts how a child ended: `Ok(code)` or `Err(signal)`.
#[track_caller]
pub(crate) fn ended(out: Option<Output>, want: Result<i32, i32>) -> String {
    let Some(out) = out else { return String::new() };
    let got = out.status.signal().map_or_else(|| Ok(out.status.code().unwrap_or(-1)), Err);
    assert_eq!(got, want, "the child said:\n{}", said(&out));
    said(&out)
}

/// Children that are meant to die leave no core file.
pub(crate) fn no_core() {
    limit(libc::RLIMIT_CORE, 0);
}

/// setrlimit(2): the soft limit.
pub(crate) fn limit(what: libc::__rlimit_resource_t, soft: u64) {
    let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes one structure of ours.
    assert_eq!(unsafe { libc::getrlimit(what, &raw mut now) }, 0);
    now.rlim_cur = soft.min(now.rlim_max);
    // SAFETY: reads one structure of ours.
    assert_eq!(unsafe { libc::setrlimit(what, &raw const now) }, 0);
}

/// getrlimit(2): the soft limit.
pub(crate) fn rlimit(what: libc::__rlimit_resource_t) -> u64 {
    let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes one structure of ours.
    assert_eq!(unsafe { libc::getrlimit(what, &raw mut now) }, 0);
    now.rlim_cur
}

/// Forks by the raw call; the child runs `body` and leaves by `_exit`. Returns the wait status.
pub(crate) fn fork(body: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child does what little its body does, and leaves by _exit.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork");
    if pid == 0 {
        let code = body();
        // SAFETY: ends the child.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: writes one number of ours.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    status
}

// ---- stacks ---------------------------------------------------------------------------------------------------------

/// The alternate stack of the calling thread.
pub(crate) fn alternate_stack() -> (*mut u8, usize) {
    let mut now = libc::stack_t { ss_sp: std::ptr::null_mut(), ss_flags: 0, ss_size: 0 };
    // SAFETY: writes one structure of ours.
    assert_eq!(unsafe { libc::sigaltstack(std::ptr::null(), &raw mut now) }, 0, "sigaltstack");
    assert_eq!(now.ss_flags, 0, "an alternate stack is set, and nobody is on it");
    (now.ss_sp.cast(), now.ss_size)
}

/// Blocks or unblocks one signal for the calling thread.
pub(crate) fn mask(how: i32, signo: i32) {
    // SAFETY: a plain C structure; all-zero is a set.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: a set of ours and a signal that exists.
    unsafe { libc::sigaddset(&raw mut set, signo) };
    // SAFETY: a set of ours.
    unsafe { libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut()) };
}

/// Runs `f` on an alternate stack with room for a signal frame and for a small handler of the program's, between
/// inaccessible pages.
pub(crate) fn on_small_stack<R>(f: impl FnOnce() -> R) -> R {
    on_stack_of(min_frame() + (4 << 10), f)
}

/// The bytes that the kernel needs for a signal frame here.
pub(crate) fn min_frame() -> usize {
    const AT_MINSIGSTKSZ: u64 = 51;
    // SAFETY: reads the auxiliary vector.
    usize::try_from(unsafe { libc::getauxval(AT_MINSIGSTKSZ) }).expect("a size")
}

/// Has the thread get a SIGUSR1 whose handler takes no stack: what is used afterwards is the kernel's.
pub(crate) fn install_empty_handler() {
    install(libc::SIGUSR1, sf_only_return as *const () as usize, libc::SA_SIGINFO | libc::SA_ONSTACK);
}

/// Runs `f` with an alternate stack of `bytes`, right above an inaccessible page.
pub(crate) fn on_stack_of<R>(bytes: usize, f: impl FnOnce() -> R) -> R {
    let size = bytes.next_multiple_of(PAGE);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a fresh mapping.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), size + 2 * PAGE, libc::PROT_NONE, flags, -1, 0) };
    let stack = at.wrapping_byte_add(PAGE);
    // SAFETY: the middle of the mapping above.
    unsafe { libc::mprotect(stack, size, libc::PROT_READ | libc::PROT_WRITE) };
    let ours = libc::stack_t { ss_sp: stack, ss_flags: 0, ss_size: bytes };
    let mut before = libc::stack_t { ss_sp: std::ptr::null_mut(), ss_flags: 0, ss_size: 0 };
    // SAFETY: the stack lives until the former one is back.
    assert_eq!(unsafe { libc::sigaltstack(&raw const ours, &raw mut before) }, 0, "sigaltstack");
    let r = f();
    // SAFETY: what was there before.
    assert_eq!(unsafe { libc::sigaltstack(&raw const before, std::ptr::null_mut()) }, 0);
    // SAFETY: nobody is on it any more.
    unsafe { libc::munmap(at, size + 2 * PAGE) };
    r
}

/// Maps pages of alternating protection until the kernel's table of mappings is full.
#[must_use = "the table is full until this is dropped"]
pub(crate) fn fill_the_table() -> FullTable {
    let max = std::fs::read_to_string("/proc/sys/vm/max_map_count").expect("max_map_count");
    let max: usize = max.trim().parse().expect("a number");
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a fresh mapping, which nobody uses.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), 2 * max * PAGE, libc::PROT_NONE, flags, -1, 0) };
    assert_ne!(base, libc::MAP_FAILED);
    let mut full = FullTable { base: base as usize, len_bytes: 2 * max * PAGE, nr: 0 };
    full.take_what_is_free();
    full
}

/// What fills the kernel's table of mappings.
#[derive(Debug)]
pub(crate) struct FullTable {
    base: usize,
    len_bytes: usize,
    /// Pages that stand alone.
    nr: usize,
}

impl FullTable {
    /// Takes the mappings that somebody has given back meanwhile.
    pub(crate) fn take_what_is_free(&mut self) {
        while 2 * self.nr * PAGE < self.len_bytes {
            let at = (self.base + 2 * self.nr * PAGE) as *mut c_void;
            // SAFETY: inside the mapping of `fill_the_table`, which nobody uses.
            if unsafe { libc::mprotect(at, PAGE, libc::PROT_READ) } != 0 {
                return;
            }
            self.nr += 1;
        }
        panic!("the table never fills");
    }
}

impl Drop for FullTable {
    fn drop(&mut self) {
        // SAFETY: the mapping of `fill_the_table`, which nobody uses.
        unsafe { libc::munmap(self.base as *mut c_void, self.len_bytes) };
    }
}
