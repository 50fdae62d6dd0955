//! Was a page changed since it was filled? A keyed digest of its bytes answers.
//!
//! Why not the page tables: UFFDIO_MOVE drops the write-protect bit on its way in, so `PAGEMAP_SCAN` calls every moved
//! page written; protecting afterwards leaves a window in which a store goes unseen, and costs a system call and a
//! signal a page; and between a scan and the MOVE that takes the page out there is another such window. What was moved
//! out is in nobody's hands: comparing it with what was moved in has no window, and costs a look at 4 KiB.
//!
//! The digest is NH (Black, Halevi, Krawczyk, Krovetz, Rogaway: UMAC, 1999) over 64-bit words: for two different pages
//! the chance of one digest, over the choice of the key, is at most 2^-64. The key is random, one a runtime, and never
//! leaves the process. A page that was stored to and has its old bytes again is, rightly, unchanged.
//!
//! # Context: handler

use softfault_mm::page::PAGE_SIZE;

const NR_WORDS: usize = PAGE_SIZE / size_of::<u64>();

/// A random key; as long as a page.
#[derive(Clone)]
pub struct Key([u64; NR_WORDS]);

impl core::fmt::Debug for Key {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    /// Returns the key made of these random words.
    ///
    /// # Context: handler
    #[must_use]
    pub fn new(words: [u64; NR_WORDS]) -> Self {
        Self(words)
    }

    /// Returns the digest of a page.
    ///
    /// # Context: handler
    #[inline]
    #[must_use]
    pub fn digest(&self, page: &[u8; PAGE_SIZE]) -> [u64; 2] {
        // SAFETY: a page that is borrowed.
        unsafe { self.digest_racy(page.as_ptr()) }
    }

    /// Returns the digest of the page at `page`, to which others may be storing: each word is read once.
    ///
    /// In assembly because it runs on signal stacks of 8 KiB: in a debug build the same loop in Rust takes 1 KiB of one.
    ///
    /// # Context: handler
    ///
    /// # Safety
    /// `page` is mapped for loads during the call.
    #[inline]
    #[must_use]
    pub unsafe fn digest_racy(&self, page: *const u8) -> [u64; 2] {
        let (mut lo, mut hi) = (0u64, 0u64);
        // sum of (m[2i] + k[2i] mod 2^64) * (m[2i+1] + k[2i+1] mod 2^64), mod 2^128.
        // SAFETY: reads the 4096 bytes of the page (contract) and as many of the key, borrowed; writes registers alone.
        unsafe {
            core::arch::asm!(
                "2:",
                "mov rax, [{page} + {i}]",
                "add rax, [{key} + {i}]",
                "mov rdx, [{page} + {i} + 8]",
                "add rdx, [{key} + {i} + 8]",
                "mul rdx",
                "add {lo}, rax",
                "adc {hi}, rdx",
                "add {i}, 16",
                "cmp {i}, 4096",
                "jne 2b",
                page = in(reg) page,
                key = in(reg) self.0.as_ptr(),
                i = inout(reg) 0usize => _,
                lo = inout(reg) lo,
                hi = inout(reg) hi,
                out("rax") _, out("rdx") _,
                options(nostack, readonly)
            );
        }
        [lo, hi]
    }
}

/// The loop above counts on it.
const _: () = assert!(PAGE_SIZE == 4096);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_changed_bit_changes_the_digest() {
        let mut words = [0u64; NR_WORDS];
        let mut x = 0x1234_5678_9abc_def1u64;
        for w in &mut words {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *w = x ^ (x >> 29);
        }
        let key = Key::new(words);
        let mut page = [0u8; PAGE_SIZE];
        let before = key.digest(&page);
        assert_eq!(before, key.digest(&page), "a function of the bytes");
        for bit in 0..PAGE_SIZE * 8 {
            let mut changed = page;
            changed.iter_mut().skip(bit / 8).take(1).for_each(|b| *b ^= 1 << (bit % 8));
            assert_ne!(before, key.digest(&changed), "bit {bit}");
        }
        page[0] = 1;
        page[8] = 255;
        assert_ne!(before, key.digest(&page), "two words of one pair");
    }
}
