//! Memory that is measured: objects with known bytes, mappings of them, and the loads that touch those.

use crate::{Context, EXTENT, Error, MIB, PAGE, Result};
use softfault_platform::sys::{file, mem};
use std::arch::asm;
use std::fs::File;
use std::io::{Read, Write};
use std::marker::PhantomData;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Where in a page the loads land: not at its start, where a handler could confuse an address with its page.
const TOUCH_OFFSET: usize = 8;

/// Where in a page the stores land: a byte that no load of the pattern looks at.
const WRITE_OFFSET: usize = 72;

/// Returns the byte that fills page `index` of every object here. It is never 0, which a hole would read as.
#[must_use]
pub fn page_byte(index: usize) -> u8 {
    u8::try_from(index % 251).map_or(1, |b| b + 1)
}

/// Returns the byte that a store leaves in page `index`: never the one that was there.
#[must_use]
pub fn written_byte(index: usize) -> u8 {
    !page_byte(index)
}

/// Writes `len_bytes` bytes of the pattern, a mebibyte at a time.
fn write_pattern(len_bytes: usize, mut write: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut block = vec![0u8; MIB];
    for at in (0..len_bytes).step_by(MIB) {
        for (i, page) in block.chunks_exact_mut(PAGE).enumerate() {
            page.fill(page_byte(at / PAGE + i));
        }
        write(&block)?;
    }
    Ok(())
}

/// A memfd; closed on drop.
#[derive(Debug)]
pub struct Memfd {
    fd: i32,
    len_bytes: usize,
}

impl Memfd {
    /// Creates a memfd that is one hole of `len_bytes` bytes, a multiple of a mebibyte.
    ///
    /// # Errors
    /// The kernel's.
    pub fn sparse(len_bytes: usize) -> Result<Self> {
        let fd = mem::memfd_create(c"softfault-bench").context("memfd_create")?;
        let memfd = Self { fd, len_bytes };
        file::ftruncate(fd, len_bytes as u64).context("ftruncate")?;
        Ok(memfd)
    }

    /// Creates a memfd full of the pattern of [`page_byte`].
    ///
    /// # Errors
    /// The kernel's.
    pub fn filled(len_bytes: usize) -> Result<Self> {
        let memfd = Self::sparse(len_bytes)?;
        write_pattern(len_bytes, |block| match file::write(memfd.fd, block).context("write")? {
            n if n == block.len() => Ok(()),
            n => Err(Error::Wrong(format!("short write to a memfd: {n} bytes"))),
        })?;
        Ok(memfd)
    }

    /// Returns the descriptor, still owned by `self`.
    #[must_use]
    pub fn fd(&self) -> i32 {
        self.fd
    }

    /// Returns the size.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Gives every page back; the memfd is one hole afterwards, unmapped everywhere.
    ///
    /// # Errors
    /// The kernel's.
    pub fn punch(&self) -> Result<()> {
        // SAFETY: the bytes are this benchmark's own, and no reference into a mapping of them exists.
        unsafe { mem::punch_hole(self.fd, 0, self.len_bytes as u64) }.context("punch_hole")
    }
}

impl Drop for Memfd {
    fn drop(&mut self) {
        file::close(self.fd);
    }
}

/// A file of the pattern, hot in the kernel's page cache and clean; removed on drop.
#[derive(Debug)]
pub struct HotFile {
    path: PathBuf,
    file: File,
    len_bytes: usize,
}

impl HotFile {
    /// Writes `dir/name`, syncs it and reads it once.
    ///
    /// # Errors
    /// The file system's.
    pub fn create(dir: &Path, name: &str, len_bytes: usize) -> Result<Self> {
        let path = dir.join(format!("{name}.{}", std::process::id()));
        let open = File::options().read(true).write(true).create_new(true).open(&path);
        let mut hot = Self { file: open.context("creating the file")?, path, len_bytes };
        write_pattern(len_bytes, |block| hot.file.write_all(block).context("writing the file"))?;
        // Clean pages: write-back in the middle of a measurement would be charged to whoever is measured.
        hot.file.sync_all().context("syncing the file")?;
        let mut reader = File::open(&hot.path).context("reopening the file")?;
        let mut block = vec![0u8; MIB];
        while reader.read(&mut block).context("reading the file")? > 0 {}
        Ok(hot)
    }

    /// Makes the file cold: written back, and out of the kernel's page cache.
    ///
    /// # Errors
    /// The file system's.
    pub fn cool(&self) -> Result<()> {
        self.file.sync_all().context("syncing the file")?;
        file::fadvise_dontneed(self.fd()).context("posix_fadvise")
    }

    /// Returns where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the open file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Returns the descriptor, still owned by `self`.
    #[must_use]
    pub fn fd(&self) -> i32 {
        self.file.as_raw_fd()
    }

    /// Returns the size.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }
}

impl Drop for HotFile {
    fn drop(&mut self) {
        // A file left behind costs space in a temporary directory, nothing more.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A mapping of a whole object, aligned to an extent; unmapped on drop.
#[derive(Debug)]
pub struct Mapping {
    base: usize,
    len_bytes: usize,
}

impl Mapping {
    /// Maps the first `len_bytes` bytes of `fd`, without huge pages.
    ///
    /// # Errors
    /// The kernel's.
    pub fn shared(fd: i32, len_bytes: usize, prot: i32) -> Result<Self> {
        let mapping = Self::plain(fd, len_bytes, prot)?;
        mapping.advise(mem::MADV_NOHUGEPAGE)?;
        Ok(mapping)
    }

    /// Maps the first `len_bytes` bytes of `fd`, as any program would.
    ///
    /// # Errors
    /// The kernel's.
    pub fn plain(fd: i32, len_bytes: usize, prot: i32) -> Result<Self> {
        Self::of(fd, len_bytes, prot, mem::MAP_SHARED)
    }

    /// Maps the first `len_bytes` bytes of `fd` privately, as who restores a memory from a file does.
    ///
    /// # Errors
    /// The kernel's.
    pub fn private(fd: i32, len_bytes: usize, prot: i32) -> Result<Self> {
        Self::of(fd, len_bytes, prot, mem::MAP_PRIVATE)
    }

    /// Maps `len_bytes` bytes of private memory that costs nothing until it is touched, without huge pages.
    ///
    /// # Errors
    /// The kernel's.
    pub fn anonymous(len_bytes: usize) -> Result<Self> {
        let flags = mem::MAP_PRIVATE | mem::MAP_ANONYMOUS | mem::MAP_NORESERVE;
        let mapping = Self::of(-1, len_bytes, mem::PROT_READ | mem::PROT_WRITE, flags)?;
        mapping.advise(mem::MADV_NOHUGEPAGE)?;
        Ok(mapping)
    }

    fn of(fd: i32, len_bytes: usize, prot: i32, flags: i32) -> Result<Self> {
        let base = mem::reserve(len_bytes, EXTENT).context("reserving address space")?;
        let mapping = Self { base, len_bytes };
        // SAFETY: the range was reserved two lines above; nobody else knows it.
        unsafe { mem::mmap(base, len_bytes, prot, flags | mem::MAP_FIXED, fd, 0) }.context("mmap")?;
        Ok(mapping)
    }

    /// Returns its address.
    #[must_use]
    pub fn base(&self) -> usize {
        self.base
    }

    /// Returns its size.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Drops every page-table entry; the pages stay in the object.
    ///
    /// # Errors
    /// The kernel's.
    pub fn zap(&self) -> Result<()> {
        self.advise(mem::MADV_DONTNEED)
    }

    /// Gives advice about the whole mapping.
    ///
    /// # Errors
    /// The kernel's.
    pub fn advise(&self, advice: i32) -> Result<()> {
        // SAFETY: the mapping is ours and shared: dropped entries come back with the object's bytes.
        unsafe { mem::madvise(self.base, self.len_bytes, advice) }.context("madvise")
    }

    /// Changes the protection of the whole mapping.
    ///
    /// # Errors
    /// The kernel's.
    pub fn protect(&self, prot: i32) -> Result<()> {
        // SAFETY: the mapping is ours; it is accessed through `View` only, never by reference.
        unsafe { mem::mprotect(self.base, self.len_bytes, prot) }.context("mprotect")
    }

    /// Returns the mapping as something to load from.
    #[must_use]
    pub fn view(&self) -> View<'_> {
        // SAFETY: the mapping outlives the view, which borrows it.
        unsafe { View::new(self.base, self.len_bytes) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is ours; views of it borrow `self`, so none is left.
        let _ = unsafe { mem::munmap(self.base, self.len_bytes) };
    }
}

/// Pages to load from, whoever resolves their faults.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    base: usize,
    pages: usize,
    owner: PhantomData<&'a ()>,
}

impl View<'_> {
    /// Makes a view of raw memory.
    ///
    /// # Safety
    /// `base..base+len_bytes` stays one mapping, or several, for `'a`. A load may fault; what a load returns is
    /// unspecified when a handler skips it.
    #[must_use]
    pub unsafe fn new(base: usize, len_bytes: usize) -> Self {
        Self { base, pages: len_bytes / PAGE, owner: PhantomData }
    }

    /// Returns how many pages it has.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Loads one byte of page `index`.
    ///
    /// # Panics
    /// When there is no such page.
    #[inline(always)]
    #[must_use]
    pub fn touch(&self, index: usize) -> u8 {
        assert!(index < self.pages, "page {index} of {}", self.pages);
        // SAFETY: inside the view, which `new`'s caller keeps mapped.
        unsafe { load(self.base + index * PAGE + TOUCH_OFFSET) }
    }

    /// Loads one byte of each page in `order`, checks the bytes, and returns nanoseconds a page.
    ///
    /// # Errors
    /// [`Error::Wrong`] when the pages do not hold the pattern.
    pub fn time_touches(&self, order: &[u32]) -> Result<f64> {
        let start = Instant::now();
        let sum = self.sum(order);
        let ns = start.elapsed().as_nanos() as f64 / order.len() as f64;
        check_sum(sum, order)?;
        Ok(ns)
    }

    /// Loads one byte of each page in `order` and returns their sum, for [`check_sum`].
    #[must_use]
    pub fn sum(&self, order: &[u32]) -> u64 {
        order.iter().map(|&p| u64::from(self.touch(p as usize))).sum()
    }

    /// Loads `count` bytes at random addresses and returns nanoseconds a load.
    ///
    /// # Errors
    /// [`Error::Wrong`] when a page does not hold the pattern.
    pub fn time_random_loads(&self, count: usize) -> Result<f64> {
        let (mut random, mut sum) = (Random::new(7), 0u64);
        let start = Instant::now();
        for _ in 0..count {
            let at = random.below(self.pages * PAGE);
            // SAFETY: `below` keeps the address inside the view, which `new`'s caller keeps mapped.
            sum += u64::from(unsafe { load(self.base + at) });
        }
        let ns = start.elapsed().as_nanos() as f64 / count as f64;
        let mut random = Random::new(7);
        let expected: u64 = (0..count).map(|_| u64::from(page_byte(random.below(self.pages * PAGE) / PAGE))).sum();
        if sum == expected { Ok(ns) } else { Err(Error::Wrong("random loads read wrong bytes".to_owned())) }
    }
}

/// Pages to load from and to store to, whoever resolves their faults.
#[derive(Clone, Copy, Debug)]
pub struct ViewMut<'a> {
    view: View<'a>,
}

impl<'a> ViewMut<'a> {
    /// Makes a view of raw memory.
    ///
    /// # Safety
    /// As [`View::new`]. Whoever calls [`ViewMut::store`] has seen to it that the memory is mapped writable, and that no
    /// reference into it exists.
    #[must_use]
    pub unsafe fn new(base: usize, len_bytes: usize) -> Self {
        // SAFETY: the caller's contract.
        Self { view: unsafe { View::new(base, len_bytes) } }
    }

    /// Returns the same pages, to load from.
    #[must_use]
    pub fn view(&self) -> View<'a> {
        self.view
    }

    /// Stores [`written_byte`] into page `index`.
    ///
    /// # Panics
    /// When there is no such page.
    #[inline(always)]
    pub fn store(&self, index: usize) {
        assert!(index < self.view.pages, "page {index} of {}", self.view.pages);
        // SAFETY: inside the view, which `new`'s caller keeps mapped, and writable for whoever stores.
        unsafe { store(self.view.base + index * PAGE + WRITE_OFFSET, written_byte(index)) }
    }

    /// Loads the byte that [`ViewMut::store`] writes.
    ///
    /// # Panics
    /// When there is no such page.
    #[must_use]
    pub fn stored(&self, index: usize) -> u8 {
        assert!(index < self.view.pages, "page {index} of {}", self.view.pages);
        // SAFETY: inside the view, which `new`'s caller keeps mapped.
        unsafe { load(self.view.base + index * PAGE + WRITE_OFFSET) }
    }
}

/// Returns the bytes of `page` that loads and [`ViewMut::stored`] look at, of a page that is at hand as a slice.
#[must_use]
pub fn bytes_of(page: &[u8; PAGE]) -> (u8, u8) {
    (page[TOUCH_OFFSET], page[WRITE_OFFSET])
}

/// Does to a page that is at hand as a slice what [`ViewMut::store`] does to one in memory.
pub fn store_into(page: &mut [u8; PAGE], index: usize) {
    page[WRITE_OFFSET] = written_byte(index);
}

/// The length in bytes of the instruction in `load`, which a handler adds to the instruction pointer to skip it.
pub const LOAD_LEN: usize = 3;

/// Loads a byte by an instruction of known length (`0f b6 08`).
///
/// # Safety
/// `addr` is mapped; a fault there has somebody to resolve or skip it.
#[inline(always)]
unsafe fn load(addr: usize) -> u8 {
    let value: u32;
    // SAFETY: one load from memory that the caller vouches for; nothing else is read, written or clobbered. It is not
    // `pure`: it must happen even when nobody uses the byte.
    unsafe { asm!("movzx ecx, byte ptr [rax]", in("rax") addr, out("ecx") value, options(nostack, preserves_flags)) };
    // The instruction zero-extends: only one byte of the register can be set.
    value.to_le_bytes()[0]
}

/// Stores a byte by one instruction that the compiler cannot see into.
///
/// # Safety
/// `addr` is mapped writable and nothing refers to it; a fault there has somebody to resolve it.
#[inline(always)]
unsafe fn store(addr: usize, byte: u8) {
    // SAFETY: one store to memory that the caller vouches for; nothing else is read, written or clobbered.
    unsafe { asm!("mov byte ptr [rax], cl", in("rax") addr, in("cl") byte, options(nostack, preserves_flags)) };
}

/// Compares the sum of the bytes loaded in `order` with what the pattern gives.
///
/// # Errors
/// [`Error::Wrong`] when they differ: somebody mapped a wrong page.
pub fn check_sum(sum: u64, order: &[u32]) -> Result<()> {
    let expected: u64 = order.iter().map(|&p| u64::from(page_byte(p as usize))).sum();
    if sum == expected { Ok(()) } else { Err(Error::Wrong(format!("loads summed to {sum}, not to {expected}"))) }
}

/// The pages `0..pages` in ascending order.
#[must_use]
pub fn ascending(pages: usize) -> Vec<u32> {
    (0..u32::try_from(pages).unwrap_or(u32::MAX)).collect()
}

/// The pages `0..pages` in an order that is random, and the same in every run.
#[must_use]
pub fn shuffled(pages: usize) -> Vec<u32> {
    let mut order = ascending(pages);
    let mut random = Random::new(1);
    for i in (1..order.len()).rev() {
        order.swap(i, random.below(i + 1));
    }
    order
}

/// A linear congruential generator: cheap enough to run inside a timed loop.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Starts a sequence.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns a number below `limit`, which fits in 32 bits, without a division.
    ///
    /// # Panics
    /// In debug builds, when `limit` is larger.
    #[inline(always)]
    pub fn below(&mut self, limit: usize) -> usize {
        debug_assert!(u32::try_from(limit).is_ok(), "{limit} is more than 32 random bits can reach");
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // The upper half: the low bits of such a generator repeat soon.
        (((self.0 >> 32) * limit as u64) >> 32) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_hold_the_pattern() {
        let memfd = Memfd::filled(4 * MIB).expect("memory");
        let map = Mapping::shared(memfd.fd(), memfd.len_bytes(), mem::PROT_READ).expect("mapped");
        assert_eq!(map.base() % EXTENT, 0);
        let order = shuffled(map.view().pages());
        map.view().time_touches(&order).expect("right bytes");
        map.view().time_random_loads(1000).expect("right bytes");
        memfd.punch().expect("punched");
        assert_eq!(map.view().touch(5), 0);
        map.view().time_touches(&order).expect_err("zeros are not the pattern");
    }

    #[test]
    fn stores_are_seen_and_leave_the_pattern() {
        let map = Mapping::anonymous(2 * MIB).expect("memory");
        // SAFETY: the mapping is writable and outlives the view.
        let view = unsafe { ViewMut::new(map.base(), map.len_bytes()) };
        view.store(3);
        assert_eq!((view.stored(3), view.stored(4), view.view().touch(3)), (written_byte(3), 0, 0));
        let mut page = [page_byte(3); PAGE];
        store_into(&mut page, 3);
        assert_eq!(bytes_of(&page), (page_byte(3), written_byte(3)));
    }

    #[test]
    fn a_shuffle_keeps_every_page() {
        let mut order = shuffled(1000);
        assert_ne!(order, ascending(1000));
        order.sort_unstable();
        assert_eq!(order, ascending(1000));
    }
}
