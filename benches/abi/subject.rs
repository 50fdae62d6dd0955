//! The Rust side: the only file here that names softfault. `fault.c` does the same, line by line, through the C ABI.

use softfault::{Access, Object, Prot, Runtime, Sharing, VmFault, VmFaultReason, VmOps, filemap};
use softfault_benches::area::{View, page_byte};
use softfault_benches::{Error, PAGE, Result};
use std::path::Path;

/// What is touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Pages of a file, all cached.
    Minor,
    /// Pages that are filled by a vtable of the program's when they are touched.
    Custom,
}

impl Kind {
    pub(crate) const ALL: [Self; 2] = [Self::Minor, Self::Custom];

    /// Its name as an argument.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Minor => "minor",
            Self::Custom => "custom",
        }
    }
}

/// A vtable that fills each page with its byte of the pattern.
#[derive(Debug)]
struct Pattern;

impl VmOps for Pattern {
    fn fault(&self, vmf: &mut VmFault<'_>) -> VmFaultReason {
        let byte = usize::try_from(vmf.pgoff()).map_or(0, page_byte);
        filemap::fill_with(vmf, &mut |page| page.fill(byte))
    }
}

/// A runtime with one arena that maps one object, page by page, and is never handed to the kernel.
#[derive(Debug)]
pub(crate) struct Side {
    kind: Kind,
    arena: softfault::Arena,
    object: Object,
    order: Vec<u32>,
    // Goes last.
    _runtime: Runtime,
}

fn wrong(error: softfault::Error) -> Error {
    Error::Wrong(error.to_string())
}

/// The order of the touches: simple enough to be the same in C. It is a permutation, since the number of pages is a power of
/// two and the factor odd.
fn order(pages: usize) -> Result<Vec<u32>> {
    let pages = u32::try_from(pages).ok().filter(|p| p.is_power_of_two());
    let pages = pages.ok_or_else(|| Error::Usage("the number of pages must be a power of two".to_owned()))?;
    Ok((0..pages).map(|i| i.wrapping_mul(0x9e37_79b1) % pages).collect())
}

impl Side {
    /// Maps the first `len_bytes` of the file, cached; or as many that [`Pattern`] makes up.
    pub(crate) fn new(kind: Kind, path: &Path, len_bytes: usize) -> Result<Self> {
        let runtime = Runtime::new().map_err(wrong)?;
        let object = match kind {
            Kind::Minor => runtime.open_file(path),
            // SAFETY: `Pattern` is fit for a signal handler: it stores to the bytes it is lent, and nothing else.
            Kind::Custom => unsafe { runtime.object(len_bytes as u64).vm_ops(Box::new(Pattern)) },
        };
        let object = object.map_err(wrong)?;
        let arena = runtime.arena(len_bytes).fault_around(false).native_extents(false).build().map_err(wrong)?;
        arena.map(0, &object, 0, len_bytes, Prot::Read, Sharing::Shared).map_err(wrong)?;
        if kind == Kind::Minor {
            arena.fault_in(0..len_bytes, Access::Read).map_err(wrong)?;
        }
        Ok(Self { kind, arena, object, order: order(len_bytes / PAGE)?, _runtime: runtime })
    }

    /// Takes the pages out of the page table, or out of the cache, and times a first touch of each.
    pub(crate) fn run(&self) -> Result<f64> {
        match self.kind {
            Kind::Minor => self.arena.zap(0..self.arena.len()).map_err(wrong)?,
            Kind::Custom => self.evict()?,
        }
        // SAFETY: the pages of `order` are mapped readable until `self` is dropped, and nobody writes to them.
        let view = unsafe { View::new(self.arena.as_ptr() as usize, self.order.len() * PAGE) };
        view.time_touches(&self.order)
    }

    fn evict(&self) -> Result<()> {
        self.object.evict(0..u64::MAX).map_err(wrong)?;
        match self.object.cached_pages() {
            0 => Ok(()),
            n => Err(Error::Wrong(format!("{n} pages stayed in the cache"))),
        }
    }
}
