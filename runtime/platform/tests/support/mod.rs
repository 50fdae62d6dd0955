//! What the store tests share: files without a name, buffers aligned as pages, numbers that need not be good.
#![allow(dead_code, reason = "each test binary uses a part of this")]

use softfault_platform::store::{PageMut, PageRef, Store, StoreError};
use std::fs::{File, OpenOptions};
use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) const PAGE: usize = 4096;

/// A file without a name.
pub(crate) fn temp_file(len: u64) -> File {
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    let n = SERIAL.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("softfault-store-{}-{n}", std::process::id()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).expect("temp file");
    std::fs::remove_file(&path).expect("remove");
    file.set_len(len).expect("set_len");
    file
}

#[derive(Clone, Debug)]
#[repr(align(4096))]
struct Block([u8; PAGE]);

/// Bytes that begin at a page boundary, as the cache's do.
#[derive(Clone, Debug)]
pub(crate) struct Pages(Vec<Block>, usize);

impl Pages {
    pub(crate) fn zeroed(len: usize) -> Self {
        Self(vec![Block([0; PAGE]); len.div_ceil(PAGE)], len)
    }
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let mut pages = Self::zeroed(bytes.len());
        pages.bytes_mut().copy_from_slice(bytes);
        pages
    }
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0.as_flattened_bytes()[..self.1]
    }
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let len = self.1;
        // SAFETY: blocks are arrays of bytes without padding, one behind the other, exclusively borrowed.
        let all = unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast::<u8>(), self.0.len() * PAGE) };
        &mut all[..len]
    }
}

trait Flat {
    fn as_flattened_bytes(&self) -> &[u8];
}

impl Flat for Vec<Block> {
    fn as_flattened_bytes(&self) -> &[u8] {
        // SAFETY: blocks are arrays of bytes without padding, one behind the other.
        unsafe { std::slice::from_raw_parts(self.as_ptr().cast::<u8>(), self.len() * PAGE) }
    }
}

pub(crate) fn write(store: &dyn Store, pos: usize, bytes: &[u8]) -> Result<(), StoreError> {
    store.write(pos as u64, &PageRef::from(Pages::of(bytes).bytes()))
}

pub(crate) fn read(store: &dyn Store, pos: usize, len: usize) -> Result<Vec<u8>, StoreError> {
    let mut pages = Pages::zeroed(len);
    // What was there before is unspecified.
    pages.bytes_mut().fill(0xa5);
    store.read(pos as u64, &mut PageMut::from(pages.bytes_mut()))?;
    Ok(pages.bytes().to_vec())
}

/// Panics with the first difference, not with megabytes.
#[track_caller]
pub(crate) fn same(what: &str, got: &[u8], want: &[u8]) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    if let Some(i) = got.iter().zip(want).position(|(a, b)| a != b) {
        panic!("{what}: byte {i:#x} (page {}) is {:#x}, not {:#x}", i / PAGE, got[i], want[i]);
    }
}

#[derive(Debug)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).expect("below n")
    }
    /// Returns bytes that do not compress.
    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next().to_le_bytes()[3]).collect()
    }
}
