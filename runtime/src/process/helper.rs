//! Helper threads: fillers, which call stores and delegates, and the monitor, which reads userfaultfd messages.
//!
//! A helper never touches an arena (a fault it raises is refused), and takes no lock that a program may hold while it
//! touches one. The runtime's own code on them does not allocate after start; what a store does is the store's affair.
//!
//! # Context: control plane; what each thread may is said where it begins

use crate::by_std;
use crate::error::{Error, Result};
use crate::masked;
use crossbeam_utils::Backoff;
use crossbeam_utils::sync::{Parker, Unparker};
use softfault_mm::ctx::Ctx;
use softfault_mm::fault;
use softfault_mm::vmscan;
#[cfg(feature = "userfaultfd")]
use softfault_platform::bell;
use softfault_platform::host::{self, Host, Job};
#[cfg(feature = "userfaultfd")]
use softfault_platform::mmu::uffd::UffdMmu;
use softfault_platform::section;
#[cfg(feature = "userfaultfd")]
use softfault_platform::sys::{Errno, fd};
#[cfg(feature = "userfaultfd")]
use softfault_platform::trap::monitor;
use std::sync::Arc;
#[cfg(feature = "userfaultfd")]
use std::sync::atomic::AtomicBool;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// The most fillers there will ever be.
const NR_FILLERS_MAX: usize = 64;

/// The filler threads of the process, and the one that starts more of them.
#[derive(Debug)]
pub(crate) struct Pool {
    stop: Arc<AtomicU32>,
    threads: Arc<masked::Mutex<Vec<JoinHandle<()>>>>,
    starter: Option<JoinHandle<()>>,
}

impl Pool {
    /// Starts `nr` fillers, and the thread that starts more.
    ///
    /// # Errors
    /// [`Error::Io`] where a thread cannot be started.
    pub(crate) fn start(nr: usize) -> Result<Self> {
        let mut pool = Self { stop: Arc::default(), threads: Arc::default(), starter: None };
        pool.grow(nr)?;
        let (stop, threads) = (Arc::clone(&pool.stop), Arc::clone(&pool.threads));
        let (running, is_running) = started();
        let starter = spawn("softfault-start", move || run_starter(&stop, &threads, &running));
        pool.starter =
            Some(starter.map_err(|source| Error::Io { op: "Runtime::build: start a thread", path: None, source })?);
        is_running.wait();
        Ok(pool)
    }

    /// Raises the number of fillers to `nr`, and waits until they run.
    ///
    /// The standard library allocates while a thread starts. A program that faults while it holds the allocator's lock
    /// waits for a filler, so no filler may be on its way to that lock by then.
    pub(crate) fn grow(&mut self, nr: usize) -> Result<()> {
        let mut threads = masked::lock(&self.threads);
        while threads.len() < nr {
            threads.push(start_filler(&self.stop)?);
        }
        Ok(())
    }
}

fn start_filler(stop: &Arc<AtomicU32>) -> Result<JoinHandle<()>> {
    let stop = Arc::clone(stop);
    let (running, is_running) = started();
    let thread = spawn("softfault-fill", move || run_filler(&stop, &running)).map_err(|source| Error::Io {
        op: "Runtime::build: start a filler",
        path: None,
        source,
    })?;
    is_running.wait();
    Ok(thread)
}

/// Starts a filler whenever work waits although every one there is has been busy for a moment: a store that hangs
/// keeps its own pages waiting, and nobody else's, as long as it has fewer than all fillers. Reclaim gives one object's store to
/// some of them at most (`mm::pageout`); its reads are not counted.
///
/// This thread allocates, so it is not one that a fault waits for.
fn run_starter(stop: &Arc<AtomicU32>, threads: &masked::Mutex<Vec<JoinHandle<()>>>, running: &Running) {
    host::mask_signals();
    running.say();
    // Acquire, here and below, pairs with `Pool::drop`.
    while stop.load(Ordering::Acquire) == 0 {
        host::wait_for_starvation(stop);
        let taken = host::jobs_taken();
        std::thread::sleep(Duration::from_millis(20));
        // Busy is not stuck: helpers that take jobs meanwhile will get to the rest.
        if !host::is_starved() || host::jobs_taken() != taken || stop.load(Ordering::Acquire) != 0 {
            continue;
        }
        let mut threads = masked::lock(threads);
        match threads.len() < NR_FILLERS_MAX {
            true => threads.extend(start_filler(stop)),
            false => {
                drop(threads);
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let starter = self.starter.take();
        if softfault_platform::child::in_child() {
            std::mem::forget((starter, Arc::clone(&self.threads)));
            return;
        }
        // Release pairs with `run_starter` and `next_job`.
        self.stop.store(1, Ordering::Release);
        let fillers = std::mem::take(&mut *masked::lock(&self.threads));
        for thread in starter.into_iter().chain(fillers) {
            // Each turn wakes whoever sleeps; a filler that is inside a store which never returns is left behind.
            let mut patience = 200;
            while !thread.is_finished() && patience > 0 {
                host::ring_all();
                std::thread::sleep(Duration::from_millis(1));
                patience -= 1;
            }
            if thread.is_finished() {
                let _ = thread.join();
            }
        }
    }
}

/// Starts a thread of the runtime's.
pub(crate) fn spawn(name: &str, f: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    by_std::spawn(std::thread::Builder::new().name(name.into()), f)
}

/// A thread that runs until it is told to end, and is joined then. Whoever owns it says in its drop what wakes it.
#[derive(Debug)]
pub(crate) struct Thread {
    /// 1: it is to end.
    stop: Arc<AtomicU32>,
    handle: Option<JoinHandle<()>>,
}

impl Thread {
    /// Starts a thread that takes no signals, and that ends when `stop`, which it is given, is not 0.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn start(
        name: &str,
        stop: Arc<AtomicU32>,
        f: impl FnOnce(&AtomicU32) + Send + 'static,
    ) -> std::io::Result<Self> {
        let stopped = Arc::clone(&stop);
        let handle = spawn(name, move || {
            host::mask_signals();
            f(&stopped);
        })?;
        Ok(Self { stop, handle: Some(handle) })
    }

    /// Starts a helper: a fault that it raises on an arena is refused. It runs when this returns, so that a fault may wait for
    /// it: it has been through what the standard library allocates for a thread that starts.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn start_helper(name: &str, f: impl FnOnce(&AtomicU32) + Send + 'static) -> std::io::Result<Self> {
        let (running, is_running) = started();
        let thread = Self::start(name, Arc::default(), move |stop| {
            section::register_helper();
            running.say();
            f(stop);
            section::unregister_helper();
        })?;
        is_running.wait();
        Ok(thread)
    }

    /// Ends the thread, which `ring` wakes. In a forked child there is no such thread: nothing is done.
    pub(crate) fn end(&mut self, ring: impl FnOnce()) {
        if let Some(handle) = self.tell() {
            ring();
            let _ = handle.join();
        }
    }

    /// The same where who is about to sleep does not see that it was woken: `ring` is called until the thread has ended.
    pub(crate) fn end_ringing(&mut self, ring: impl Fn()) {
        if let Some(handle) = self.tell() {
            let backoff = Backoff::new();
            while !handle.is_finished() {
                ring();
                backoff.snooze();
            }
            let _ = handle.join();
        }
    }

    /// Tells the thread to end; `None`: there is none.
    fn tell(&mut self) -> Option<JoinHandle<()>> {
        let handle = self.handle.take();
        if softfault_platform::child::in_child() {
            std::mem::forget((handle, Arc::clone(&self.stop)));
            return None;
        }
        // Release pairs with `kswapd::run`, `next_round`, `exit::run` and `monitor::serve`.
        self.stop.store(1, Ordering::Release);
        handle
    }
}

/// A thread's end of "this thread runs". It stays with the thread until that ends: to drop it frees memory, and a helper that
/// runs does not touch the allocator.
struct Running(Unparker);

impl Running {
    /// Says that the thread runs, and has been through all that the standard library allocates for it.
    fn say(&self) {
        self.0.unpark();
    }
}

/// The other end, of who starts the thread.
struct IsRunning(Parker);

impl IsRunning {
    /// Waits until the thread has said that it runs.
    fn wait(self) {
        self.0.park();
    }
}

/// Makes the two ends of "this thread runs".
fn started() -> (Running, IsRunning) {
    let parker = Parker::new();
    (Running(parker.unparker().clone()), IsRunning(parker))
}

fn run_filler(stop: &AtomicU32, running: &Running) {
    host::mask_signals();
    section::register_helper();
    host::count_helper(true);
    running.say();
    let host = Host::detached();
    let mut ctx = Ctx::thread(0);
    ctx.is_helper = true;
    while let Some(job) = host::next_job(stop) {
        match job {
            Job::Fill(claim) => fault::fill_here(host.env(), &ctx, claim),
            Job::Tell(telling) => fault::tell_here(host.env(), 0, telling),
            Job::Writeback(claim) => vmscan::write_here(host.env(), 0, claim),
        }
        host::job_done();
    }
    host::count_helper(false);
    section::unregister_helper();
}

/// The thread that reads the monitor context's messages.
#[cfg(feature = "userfaultfd")]
#[derive(Debug)]
pub(crate) struct Monitor(Thread);

#[cfg(feature = "userfaultfd")]
impl Monitor {
    pub(crate) fn start(mmu: &'static UffdMmu) -> std::result::Result<Self, Errno> {
        let _ = bell::get()?;
        let thread = Thread::start_helper("softfault-monitor", move |stop| {
            // An error here means that the program has closed the descriptor, and it could not be taken back.
            if monitor::serve(mmu, stop).is_err() {
                monitor::give_up();
            }
        });
        thread.map(Self).map_err(|_| Errno::EAGAIN)
    }
}

#[cfg(feature = "userfaultfd")]
impl Drop for Monitor {
    fn drop(&mut self) {
        self.0.end(bell::ring);
    }
}

/// The thread whose descriptor table keeps the userfaultfd contexts: were the program's own table the only one, closing
/// them would unregister every arena, and its holes would be zeros.
#[cfg(feature = "userfaultfd")]
#[derive(Debug)]
pub(crate) struct Keeper(Option<JoinHandle<()>>);

#[cfg(feature = "userfaultfd")]
impl Keeper {
    /// Starts it; the one before ends. `None`: the kernel has no close_range(2), or a filter forbids it.
    pub(crate) fn start(mut numbers: Vec<i32>) -> Option<Self> {
        numbers.sort_unstable();
        let (running, is_running) = started();
        let failed = Arc::<AtomicBool>::default();
        let fails = Arc::clone(&failed);
        let thread = std::thread::Builder::new().name("softfault-keep".into()).stack_size(64 << 10);
        let thread = by_std::spawn(thread, move || {
            host::mask_signals();
            if fd::keep(&numbers, || running.say()).is_err() {
                // Release pairs with the Acquire of `Keeper::start`: who is told that it runs sees that it does not.
                fails.store(true, Ordering::Release);
                running.say();
            }
        });
        let thread = thread.ok()?;
        is_running.wait();
        (!failed.load(Ordering::Acquire)).then_some(Self(Some(thread)))
    }
}

#[cfg(feature = "userfaultfd")]
impl Drop for Keeper {
    /// It has been told to end: by the next one, or by [`fd::let_go`].
    fn drop(&mut self) {
        let thread = self.0.take();
        if softfault_platform::child::in_child() {
            std::mem::forget(thread);
            return;
        }
        thread.map(JoinHandle::join);
    }
}
