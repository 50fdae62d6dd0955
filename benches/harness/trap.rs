//! Bare fault handlers: the least that code can do about a fault, which is what softfault is judged by.
//!
//! Dispositions belong to the process. [`with_handler`] therefore lends one for the length of a closure and puts the
//! former one back; meanwhile nobody may touch memory whose faults somebody else resolves.

use crate::area::{LOAD_LEN, Mapping};
use crate::{Context, Error, PAGE, Result};
use core::ffi::c_void;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, Ordering};
use softfault_platform::sys::signal::{self, Frame, KernelSigaction, SIG_DFL, SIGBUS, SIGSEGV, SigInfo};
use softfault_platform::sys::uffd::{DONTWAKE, Filled, Uffd, bits};
use softfault_platform::sys::{file, mem};

/// What a bare handler does about a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Skips the load: the cost of delivery alone. Any page will do.
    Skip,
    /// Maps the window around the page, which is cached (CONTINUE).
    Continue,
    /// Reads the window from the file into the alias, then maps it (CONTINUE).
    Fill,
    /// Makes the window around the page accessible (mprotect).
    Expose,
    /// Reads the window from the file into the alias, then makes it accessible (mprotect).
    FillExpose,
}

/// Decides about the faults of a bare handler.
pub trait Resolve: Sync {
    /// Resolves the fault at `addr`; returns whether the instruction may run again.
    ///
    /// # Context: handler
    fn resolve(&self, addr: usize) -> bool;
}

/// What a handler needs to know.
#[derive(Debug)]
pub struct Target<'a> {
    /// The pages whose faults are ours.
    pub map: &'a Mapping,
    /// What is done about a fault.
    pub action: Action,
    /// Bytes resolved at once: a power of two.
    pub window_bytes: usize,
    /// The context that `map` is registered with, for the actions that CONTINUE.
    pub uffd: Option<&'a Uffd>,
    /// Another mapping of the same memfd, and the file with its bytes, for the actions that fill.
    pub source: Option<(&'a Mapping, i32)>,
}

/// Where the handler that is installed finds whom to ask; null when none is.
static CURRENT: AtomicPtr<&'static dyn Resolve> = AtomicPtr::new(null_mut());

/// Runs `f` while faults of `signo` go to a bare handler with `target`.
///
/// One at a time, and not from several threads at once: the disposition is the process's.
///
/// # Errors
/// Whatever `f` returns, or the kernel's; [`Error::Wrong`] when a handler is installed already.
pub fn with_handler<T>(signo: i32, target: &Target<'_>, f: impl FnOnce() -> Result<T>) -> Result<T> {
    let handler: Handler = match target.action {
        // Two functions, so that the floor of delivery does not pay for a look at what to do.
        Action::Skip => on_skip,
        _ => on_fault,
    };
    installed(signo, handler, target, f)
}

/// A handler as the kernel calls it.
type Handler = unsafe extern "C" fn(i32, *const SigInfo, *mut c_void);

fn installed<T>(signo: i32, handler: Handler, who: &dyn Resolve, f: impl FnOnce() -> Result<T>) -> Result<T> {
    let erased = core::ptr::from_ref(&who).cast_mut().cast::<&'static dyn Resolve>();
    if CURRENT.compare_exchange(null_mut(), erased, Ordering::AcqRel, Ordering::Relaxed).is_err() {
        return Err(Error::Wrong("a bare handler is installed already".to_owned()));
    }
    let flags = signal::SA_SIGINFO | signal::SA_NODEFER | signal::SA_ONSTACK;
    let act = KernelSigaction { handler: handler as usize, flags, restorer: 0, mask: 0 };
    // SAFETY: both functions have the SA_SIGINFO signature and find whom to ask, who outlives `Installed` below.
    let old = unsafe { signal::set(signo, &act) };
    let _installed = Installed { signo, old: old.context("sigaction")? };
    f()
}

/// Puts the former disposition back, also when the measured code panics.
struct Installed {
    signo: i32,
    old: KernelSigaction,
}

impl Drop for Installed {
    fn drop(&mut self) {
        // SAFETY: what the process had installed itself before.
        let _ = unsafe { signal::set(self.signo, &self.old) };
        CURRENT.store(null_mut(), Ordering::Release);
    }
}

/// # Safety
/// Called by the kernel, with its own arguments.
unsafe extern "C" fn on_skip(_: i32, _: *const SigInfo, uc: *mut c_void) {
    // SAFETY: the kernel's third argument, in the handler it was passed to.
    let frame = unsafe { Frame::new(uc) };
    // SAFETY: the only faulting instruction under this handler is `area::load`, LOAD_LEN bytes long; its result is
    // unspecified then, as `View` says.
    unsafe { frame.set_ip(frame.ip() + LOAD_LEN) };
}

/// # Safety
/// Called by the kernel, with its own arguments.
unsafe extern "C" fn on_fault(signo: i32, info: *const SigInfo, _: *mut c_void) {
    // SAFETY: the kernel's second argument, in the handler it was passed to.
    let addr = unsafe { (*info).addr };
    // SAFETY: null, or borrowed by the `installed` that is running until it has returned.
    let who = unsafe { CURRENT.load(Ordering::Acquire).as_ref() };
    if !who.is_some_and(|w| w.resolve(addr)) {
        // Not ours, or not resolved: let the same instruction die of it.
        // SAFETY: the default disposition is fit for any signal.
        let _ = unsafe { signal::set(signo, &KernelSigaction { handler: SIG_DFL, ..Default::default() }) };
    }
}

impl Resolve for Target<'_> {
    fn resolve(&self, addr: usize) -> bool {
        let offset = addr.wrapping_sub(self.map.base()) & !(self.window_bytes - 1);
        if offset >= self.map.len_bytes() {
            return false;
        }
        match self.action {
            Action::Skip => false,
            Action::Continue => self.cont(offset),
            Action::Fill => self.fill(offset) && self.cont(offset),
            Action::Expose => self.expose(offset),
            Action::FillExpose => self.fill(offset) && self.expose(offset),
        }
    }
}

impl Target<'_> {
    fn cont(&self, offset: usize) -> bool {
        let Some(uffd) = self.uffd else { return false };
        // Exists: another thread was faster with the same page.
        matches!(uffd.cont(self.map.base() + offset, self.window_bytes, DONTWAKE), Filled::All | Filled::Exists)
    }

    fn expose(&self, offset: usize) -> bool {
        // SAFETY: a window of our mapping, which is accessed through `View` only.
        unsafe { mem::mprotect(self.map.base() + offset, self.window_bytes, mem::PROT_READ) }.is_ok()
    }

    fn fill(&self, offset: usize) -> bool {
        let Some((alias, fd)) = self.source else { return false };
        // SAFETY: a window of the alias, which is not accessed otherwise and to which no reference exists.
        let read = unsafe { file::pread(fd, alias.base() + offset, self.window_bytes, offset as u64) };
        read == Ok(self.window_bytes)
    }
}

/// What delivers a fault of a [`Trapped`] mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// SIGBUS in the faulting thread.
    Sigbus,
    /// A message on the descriptor, while the faulting thread sleeps.
    Message,
}

/// A mapping that is registered with a userfaultfd of its own, for missing and minor faults.
#[derive(Debug)]
pub struct Trapped {
    // In this order: pages must not outlive their registration, or holes would turn into zeros.
    map: Mapping,
    uffd: Uffd,
}

impl Trapped {
    /// Registers `map`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(map: Mapping, delivery: Delivery) -> Result<Self> {
        // By signal only this program's own faults are served, which any user may do.
        let (flags, sigbus) =
            if delivery == Delivery::Sigbus { (bits::USER_MODE_ONLY, bits::FEATURE_SIGBUS) } else { (0, 0) };
        let features = bits::FEATURE_MISSING_SHMEM | bits::FEATURE_MINOR_SHMEM | sigbus;
        let uffd = Uffd::open(flags, features).context("userfaultfd")?;
        let mode = bits::REGISTER_MISSING | bits::REGISTER_MINOR;
        uffd.register(map.base(), map.len_bytes(), mode).context("UFFDIO_REGISTER")?;
        Ok(Self { map, uffd })
    }

    /// Returns the mapping.
    #[must_use]
    pub fn map(&self) -> &Mapping {
        &self.map
    }

    /// Returns the context.
    #[must_use]
    pub fn uffd(&self) -> &Uffd {
        &self.uffd
    }

    /// Returns a target that CONTINUEs `window_pages` at a time.
    #[must_use]
    pub fn continuing(&self, window_pages: usize) -> Target<'_> {
        let window_bytes = window_pages * PAGE;
        Target { map: &self.map, action: Action::Continue, window_bytes, uffd: Some(&self.uffd), source: None }
    }
}

/// Runs `f` while a bare handler resolves the faults that arrive as SIGBUS; see [`with_handler`].
///
/// # Errors
/// As [`with_handler`].
pub fn with_sigbus<T>(target: &Target<'_>, f: impl FnOnce() -> Result<T>) -> Result<T> {
    with_handler(SIGBUS, target, f)
}

/// Runs `f` while a bare handler asks `who` about the faults that arrive as SIGBUS; see [`with_handler`].
///
/// # Errors
/// As [`with_handler`].
pub fn with_resolver<T>(who: &dyn Resolve, f: impl FnOnce() -> Result<T>) -> Result<T> {
    installed(SIGBUS, on_fault, who, f)
}

/// Runs `f` while a bare handler resolves the faults that arrive as SIGSEGV; see [`with_handler`].
///
/// # Errors
/// As [`with_handler`].
pub fn with_sigsegv<T>(target: &Target<'_>, f: impl FnOnce() -> Result<T>) -> Result<T> {
    with_handler(SIGSEGV, target, f)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::area::{Memfd, shuffled};
    use crate::{EXTENT, MIB, WINDOW_PAGES};
    use std::sync::Mutex;

    /// Dispositions are the process's, and tests are threads of one.
    static ALONE: Mutex<()> = Mutex::new(());

    #[test]
    fn each_action_resolves_its_faults() {
        let _alone = ALONE.lock();
        let memfd = Memfd::filled(4 * MIB).expect("memory");
        let order = shuffled(memfd.len_bytes() / PAGE);
        let map = |prot| Mapping::shared(memfd.fd(), memfd.len_bytes(), prot).expect("mapped");
        let trapped = Trapped::new(map(mem::PROT_READ), Delivery::Sigbus).expect("userfaultfd");
        for pages in [1, WINDOW_PAGES] {
            trapped.map().zap().expect("zapped");
            with_sigbus(&trapped.continuing(pages), || trapped.map().view().time_touches(&order)).expect("right bytes");
        }
        let closed = map(mem::PROT_NONE);
        let target = Target { map: &closed, action: Action::Expose, window_bytes: EXTENT, uffd: None, source: None };
        with_sigsegv(&target, || closed.view().time_touches(&order)).expect("right bytes");
    }

    #[test]
    fn a_skipped_load_leaves_the_page_absent() {
        let _alone = ALONE.lock();
        // Not the default one: the standard library watches for stack overflows.
        let before = signal::current(SIGBUS).expect("valid").handler;
        let memfd = Memfd::filled(2 * MIB).expect("memory");
        let map = Mapping::shared(memfd.fd(), memfd.len_bytes(), mem::PROT_READ).expect("mapped");
        let trapped = Trapped::new(map, Delivery::Sigbus).expect("userfaultfd");
        let target = Target { action: Action::Skip, ..trapped.continuing(1) };
        with_sigbus(&target, || {
            let _unspecified = trapped.map().view().sum(&[0, 0, 0]);
            Ok(())
        })
        .expect("came back");
        assert_eq!(trapped.uffd().cont(trapped.map().base(), PAGE, DONTWAKE), Filled::All);
        assert_eq!(signal::current(SIGBUS).expect("valid").handler, before);
    }
}
