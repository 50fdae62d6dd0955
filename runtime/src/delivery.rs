//! Which way faults arrive: what can be had here, what was chosen, and why.
//!
//! # Context: control plane

use crate::short::Short;
use std::fmt;
use std::sync::OnceLock;

/// How the faults of an arena arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Delivery {
    /// userfaultfd with the SIGBUS feature: the faulting thread resolves its own fault.
    InThread,
    /// `PROT_NONE` and SIGSEGV: works everywhere, exposes a granule at once.
    Segv,
    /// A userfaultfd monitor thread: also serves system calls, `O_DIRECT` and KVM.
    Monitor,
    /// The best that can be had: `InThread`, else `Segv`; `Monitor` where kernel access is asked for.
    Auto,
}

/// What was found out about one mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The mode.
    pub mode: Delivery,
    /// Whether it can be had.
    pub available: bool,
    /// How that is known.
    pub why: String,
}

/// What was found out about all of them, and what `Auto` means here.
#[derive(Clone, PartialEq, Eq)]
pub struct DeliveryReport {
    /// One finding a mode.
    pub findings: Vec<Finding>,
    /// What arenas get that do not ask for a mode.
    pub chosen: Delivery,
    /// What arenas get that ask for kernel access, if any.
    pub kernel_access: Option<Delivery>,
}

impl DeliveryReport {
    /// Returns the finding about `mode`.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn finding(&self, mode: Delivery) -> Option<&Finding> {
        self.findings.iter().find(|f| f.mode == mode)
    }
    /// Returns whether `mode` can be had.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn is_available(&self, mode: Delivery) -> bool {
        mode == Delivery::Auto || self.finding(mode).is_some_and(|f| f.available)
    }
}

impl fmt::Debug for DeliveryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DeliveryReport").field(&Short(self)).finish()
    }
}

impl fmt::Display for DeliveryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "delivery: {:?}", self.chosen)?;
        for x in &self.findings {
            let mark = if x.available { "yes" } else { "no" };
            writeln!(f, "  {:<9} {mark:<4} {}", format!("{:?}", x.mode), x.why)?;
        }
        Ok(())
    }
}

/// What a runtime has found out so far. A mode is looked at when it is asked for: a filter of system calls may kill who opens
/// a userfaultfd, and a program that asks for `Segv` opens none.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    in_thread: OnceLock<Finding>,
    monitor: OnceLock<Finding>,
    report: OnceLock<DeliveryReport>,
}

impl Findings {
    /// Finds out about one mode, by opening what it needs.
    pub(crate) fn of(&self, mode: Delivery) -> Finding {
        match mode {
            Delivery::InThread => known_or_probed(&self.in_thread, mode),
            Delivery::Monitor => known_or_probed(&self.monitor, mode),
            Delivery::Segv | Delivery::Auto => {
                Finding { mode, available: true, why: "needs nothing; a granule is exposed at once".into() }
            }
        }
    }

    /// Finds out about all of them.
    pub(crate) fn report(&self) -> &DeliveryReport {
        self.report.get_or_init(|| {
            let findings = [Delivery::InThread, Delivery::Monitor, Delivery::Segv].map(|m| self.of(m)).to_vec();
            DeliveryReport { findings, chosen: self.choose(), kernel_access: self.choose_for_kernel_access() }
        })
    }

    /// Returns what arenas get that do not ask for a mode.
    pub(crate) fn choose(&self) -> Delivery {
        if self.of(Delivery::InThread).available { Delivery::InThread } else { Delivery::Segv }
    }

    /// Returns what arenas get that ask for kernel access, if any.
    pub(crate) fn choose_for_kernel_access(&self) -> Option<Delivery> {
        self.of(Delivery::Monitor).available.then_some(Delivery::Monitor)
    }
}

/// Returns what is known of a mode, or finds it out. What a lack of descriptors or memory says is not remembered.
fn known_or_probed(known: &OnceLock<Finding>, mode: Delivery) -> Finding {
    if let Some(finding) = known.get() {
        return finding.clone();
    }
    match probe(mode) {
        Ok(finding) => known.get_or_init(|| finding).clone(),
        Err(finding) => finding,
    }
}

/// Probes a mode that needs userfaultfd; `Err`: for now. `InThread` is absent only if a user-mode-only userfaultfd fails.
#[cfg(feature = "userfaultfd")]
fn probe(mode: Delivery) -> Result<Finding, Finding> {
    use softfault_platform::mmu::uffd::Kind;
    probe_uffd(mode, if mode == Delivery::Monitor { Kind::Monitor } else { Kind::Async })
}

#[cfg(not(feature = "userfaultfd"))]
#[expect(clippy::unnecessary_wraps, reason = "the other build may find out nothing for now")]
fn probe(mode: Delivery) -> Result<Finding, Finding> {
    Ok(Finding { mode, available: false, why: "built without the feature `userfaultfd`".into() })
}

#[cfg(feature = "userfaultfd")]
fn probe_uffd(mode: Delivery, kind: softfault_platform::mmu::uffd::Kind) -> Result<Finding, Finding> {
    use softfault_platform::sys::Errno;
    use softfault_platform::sys::uffd::Uffd;
    let who = if kind.open_flags() == 0 { "a kernel-capable" } else { "a user-mode-only" };
    let (available, why) = match Uffd::probe(kind.open_flags()) {
        Ok(have) if have & kind.features().0 == kind.features().0 => {
            (true, format!("{who} userfaultfd opens, features {have:#x}"))
        }
        Ok(have) => {
            let missing = kind.features().0 & !have;
            (false, format!("{who} userfaultfd opens, but the kernel lacks the features {missing:#x}"))
        }
        Err(Errno::EPERM) => {
            (false, format!("{who} userfaultfd: EPERM (CAP_SYS_PTRACE, or vm.unprivileged_userfaultfd=1)"))
        }
        Err(Errno::ENOSYS) => (false, format!("{who} userfaultfd: ENOSYS (no such system call here)")),
        Err(e @ (Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM)) => {
            return Err(Finding { mode, available: false, why: format!("{who} userfaultfd, for now: {e}") });
        }
        Err(e) => (false, format!("{who} userfaultfd: {e}")),
    };
    Ok(Finding { mode, available, why })
}
