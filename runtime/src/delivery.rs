//! Which way faults arrive: what can be had here, what was chosen, and why.

use std::fmt;

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
#[derive(Clone, Debug, PartialEq, Eq)]
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
    #[must_use]
    pub fn finding(&self, mode: Delivery) -> Option<&Finding> {
        self.findings.iter().find(|f| f.mode == mode)
    }
    /// Returns whether `mode` can be had.
    #[must_use]
    pub fn is_available(&self, mode: Delivery) -> bool {
        mode == Delivery::Auto || self.finding(mode).is_some_and(|f| f.available)
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

/// Probes every mode by opening what it needs. `InThread` is absent only if a user-mode-only userfaultfd fails.
#[must_use]
pub(crate) fn probe() -> DeliveryReport {
    let mut findings = Vec::new();
    #[cfg(feature = "userfaultfd")]
    for (mode, kind) in [
        (Delivery::InThread, softfault_platform::mmu::uffd::Kind::Async),
        (Delivery::Monitor, softfault_platform::mmu::uffd::Kind::Monitor),
    ] {
        findings.push(probe_uffd(mode, kind));
    }
    #[cfg(not(feature = "userfaultfd"))]
    for mode in [Delivery::InThread, Delivery::Monitor] {
        findings.push(Finding { mode, available: false, why: "built without the feature `userfaultfd`".into() });
    }
    findings.push(Finding {
        mode: Delivery::Segv,
        available: true,
        why: "needs nothing; a granule is exposed at once".into(),
    });
    let has = |m| findings.iter().any(|f: &Finding| f.mode == m && f.available);
    let chosen = if has(Delivery::InThread) { Delivery::InThread } else { Delivery::Segv };
    let kernel_access = has(Delivery::Monitor).then_some(Delivery::Monitor);
    DeliveryReport { findings, chosen, kernel_access }
}

#[cfg(feature = "userfaultfd")]
fn probe_uffd(mode: Delivery, kind: softfault_platform::mmu::uffd::Kind) -> Finding {
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
        Err(e) => (false, format!("{who} userfaultfd: {e}")),
    };
    Finding { mode, available, why }
}
