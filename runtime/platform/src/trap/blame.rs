//! What is said of an access that ends in a signal: among the runtime's failures, and on standard error where that is wanted.
//!
//! # Context: handler

use crate::host::Host;
use crate::sys::{file, text, thread};
use softfault_mm::ctx::Ctx;
use softfault_mm::failures::FailedOp;
use softfault_mm::page::{PAGE_MASK, PAGE_SHIFT, page_align_down};
use softfault_mm::types::{FillError, VmFaultReason};
use softfault_mm::vma::Vma;

/// Notes why the access at `address` failed, of which object, and at which byte.
#[cold]
#[inline(never)]
pub(super) fn note(host: &Host, ctx: &Ctx<'_>, address: usize) {
    let _ = host.env().mm.with_vma(address, &mut |vma| {
        write_down(vma, ctx.cause(), address);
        VmFaultReason::empty()
    });
}

// Apart from the caller's frame: the line has room of its own.
#[inline(never)]
fn write_down(vma: &Vma<'_>, cause: Option<FillError>, address: usize) {
    let m = vma.mapping;
    let pgoff = vma.pgoff_at(page_align_down(address));
    m.record_failure(FailedOp::Touch, cause.unwrap_or(FillError::Refused), pgoff, address, thread::monotonic_ns());
    if m.stat.failures.is_speaking() {
        let mut line = Line::new();
        line.text("softfault: SIGBUS at ");
        line.hex(address as u64);
        line.text(": byte ");
        line.hex((pgoff << PAGE_SHIFT) + (address & PAGE_MASK) as u64);
        line.text(" of ");
        line.text(m.label);
        line.text(": ");
        line.text(cause.map_or("refused by its vtable", FillError::text));
        line.end();
    }
}

/// A line that is put together without the formatting machinery; what does not fit is left out.
struct Line {
    bytes: [u8; Self::MAX],
    len: usize,
}

impl Line {
    const MAX: usize = 400;

    fn new() -> Self {
        Self { bytes: [0; Self::MAX], len: 0 }
    }

    fn text(&mut self, text: &str) {
        let room = self.bytes.get_mut(self.len..Self::MAX - 1).unwrap_or(&mut []);
        let mut nr = 0;
        for (to, from) in room.iter_mut().zip(text.as_bytes()) {
            *to = *from;
            nr += 1;
        }
        self.len += nr;
    }

    fn hex(&mut self, n: u64) {
        let mut digits = *b"0x                ";
        let nr = text::put_hex(digits.get_mut(2..), n);
        self.text(digits.get(..nr + 2).and_then(|d| core::str::from_utf8(d).ok()).unwrap_or("?"));
    }

    fn end(mut self) {
        if let Some(last) = self.bytes.get_mut(self.len) {
            *last = b'\n';
        }
        let _ = file::write(2, self.bytes.get(..=self.len).unwrap_or(&[]));
    }
}
