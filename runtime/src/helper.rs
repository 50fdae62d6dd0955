//! Helper threads: fillers, which call stores and delegates, and the monitor, which reads userfaultfd messages.
//!
//! A helper never touches an arena (a fault it raises is refused), and takes no lock that a program may hold while it
//! touches one. The runtime's own code on them does not allocate after start; what a store does is the store's affair.

use crate::error::{Error, Result};
use softfault_mm::ctx::Ctx;
use softfault_mm::fault;
use softfault_platform::host::{self, Host, Job};
#[cfg(feature = "userfaultfd")]
use softfault_platform::mmu::uffd::UffdMmu;
use softfault_platform::section;
#[cfg(feature = "userfaultfd")]
use softfault_platform::sys::{Errno, file};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

/// The filler threads of the process.
#[derive(Debug)]
pub(crate) struct Pool {
    stop: Arc<AtomicU32>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    pub(crate) fn start(nr: usize) -> Result<Self> {
        let mut pool = Self { stop: Arc::new(AtomicU32::new(0)), threads: Vec::new() };
        pool.grow(nr)?;
        Ok(pool)
    }

    /// Raises the number of fillers to `nr`, and waits until they run.
    ///
    /// The standard library allocates while a thread starts. A program that faults while it holds the allocator's lock
    /// waits for a filler, so no filler may be on its way to that lock by then.
    pub(crate) fn grow(&mut self, nr: usize) -> Result<()> {
        while self.threads.len() < nr {
            let stop = Arc::clone(&self.stop);
            let (running, is_running) = started();
            let thread = std::thread::Builder::new()
                .name("softfault-fill".into())
                .spawn(move || run_filler(&stop, &running))
                .map_err(|source| Error::Io { op: "Runtime::build: start a filler", source })?;
            wait_until_running(&is_running);
            self.threads.push(thread);
        }
        Ok(())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if softfault_platform::child::in_child() {
            self.threads.drain(..).for_each(std::mem::forget);
            return;
        }
        self.stop.store(1, Ordering::Release);
        for thread in self.threads.drain(..) {
            // Each turn wakes whoever sleeps; a filler that is inside a store which never returns is left behind.
            let mut patience = 200;
            while !thread.is_finished() && patience > 0 {
                host::ring();
                std::thread::sleep(std::time::Duration::from_millis(1));
                patience -= 1;
            }
            if thread.is_finished() {
                let _ = thread.join();
            }
        }
    }
}

/// Makes the two ends of "this thread runs".
fn started() -> (Arc<AtomicU32>, Arc<AtomicU32>) {
    let running = Arc::new(AtomicU32::new(0));
    (Arc::clone(&running), running)
}

fn wait_until_running(running: &AtomicU32) {
    while running.load(Ordering::Acquire) == 0 {
        std::thread::yield_now();
    }
}

fn run_filler(stop: &AtomicU32, running: &AtomicU32) {
    section::register_helper();
    host::count_helper(true);
    running.store(1, Ordering::Release);
    let host = Host::detached();
    let ctx = Ctx::thread(0);
    while let Some(job) = host::next_job(stop) {
        match job {
            Job::Fill(claim) => fault::fill_here(host.env(), &ctx, claim),
            Job::Tell(telling) => fault::tell_here(host.env(), 0, telling),
        }
    }
    host::count_helper(false);
    section::unregister_helper();
}

/// The thread that reads the monitor context's messages.
#[cfg(feature = "userfaultfd")]
#[derive(Debug)]
pub(crate) struct Monitor {
    stop_fd: i32,
    thread: Option<JoinHandle<()>>,
}

#[cfg(feature = "userfaultfd")]
impl Monitor {
    pub(crate) fn start(mmu: &'static UffdMmu) -> std::result::Result<Self, Errno> {
        let stop_fd = file::eventfd()?;
        let (running, is_running) = started();
        let thread = std::thread::Builder::new()
            .name("softfault-monitor".into())
            .spawn(move || {
                section::register_helper();
                running.store(1, Ordering::Release);
                // An error here means that the descriptor is gone: the process is ending.
                let _ = softfault_platform::trap::monitor::serve(mmu, stop_fd);
                section::unregister_helper();
            })
            .map_err(|_| Errno::EAGAIN)?;
        wait_until_running(&is_running);
        Ok(Self { stop_fd, thread: Some(thread) })
    }
}

#[cfg(feature = "userfaultfd")]
impl Drop for Monitor {
    fn drop(&mut self) {
        let thread = self.thread.take();
        if softfault_platform::child::in_child() {
            std::mem::forget(thread);
            return;
        }
        let _ = file::write(self.stop_fd, &1u64.to_ne_bytes());
        if let Some(thread) = thread {
            let _ = thread.join();
        }
        file::close(self.stop_fd);
    }
}
