//! Anonymous memory in a swap file comes back identical, and costs no more slots and no more I/O than it must.

mod support;

use softfault_platform::store::direct::DirectFile;
use softfault_platform::store::swap::{Frontswap, SwapStore};
use softfault_platform::store::swapfile::SwapFile;
use softfault_platform::store::{PageMut, PageRef, Store, StoreError};
use softfault_platform::sys::Errno;
use std::collections::BTreeMap;
use std::os::fd::IntoRawFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Barrier, Mutex};
use support::{PAGE, Rng, read, same, temp_file, write};

fn swap_file(nr_slots: usize, direct: bool) -> SwapFile {
    let len = (nr_slots * PAGE) as u64;
    let fd = temp_file(len).into_raw_fd();
    let file = if direct { DirectFile::direct(fd, true) } else { DirectFile::buffered(fd) };
    SwapFile::new(file, len).expect("a swap file")
}

fn of(n: &AtomicU64) -> u64 {
    n.load(Ordering::Relaxed)
}

/// Keeps pages whose first byte is even, by a copy.
#[derive(Debug, Default)]
struct Keep {
    pages: Mutex<BTreeMap<u32, Vec<u8>>>,
    serial: AtomicU32,
}

impl Frontswap for &Keep {
    const STABLE: bool = true;
    fn store(&self, page: &PageRef<'_>) -> Option<u32> {
        let mut bytes = vec![0; PAGE];
        page.copy_to(0, &mut bytes);
        let handle = self.serial.fetch_add(1, Ordering::Relaxed);
        bytes[0].is_multiple_of(2).then(|| {
            self.pages.lock().expect("lock").insert(handle, bytes);
            handle
        })
    }
    fn load(&self, handle: u32, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        let pages = self.pages.lock().expect("lock");
        let bytes = pages.get(&handle).ok_or(StoreError::Corrupt)?;
        let len = page.len_bytes();
        page.as_mut_slice().copy_from_slice(&bytes[..len]);
        Ok(())
    }
    fn invalidate(&self, handle: u32) {
        assert!(self.pages.lock().expect("lock").remove(&handle).is_some(), "given back once");
    }
}

/// Random writes, reads, punches and ends against a vector; `max` pages.
fn model(store: &dyn Store, seed: u64, max: usize, steps: usize) {
    let mut rng = Rng(seed);
    let (mut bytes, mut len) = (vec![0u8; max * PAGE], max * PAGE - 1000);
    for step in 0..steps {
        let what = format!("seed {seed}, step {step}");
        let page = rng.below(len.div_ceil(PAGE));
        let range = page * PAGE..((page + 1 + rng.below(12)) * PAGE).min(len);
        match rng.below(10) {
            0..4 => {
                // Some of the pages are zeros.
                let mut new = rng.bytes(range.len());
                new.chunks_mut(PAGE).filter(|_| rng.below(4) == 0).for_each(|p| p.fill(0));
                write(store, range.start, &new).unwrap_or_else(|e| panic!("{what}: {e}"));
                bytes[range].copy_from_slice(&new);
            }
            4..8 => {
                let got = read(store, range.start, range.len()).unwrap_or_else(|e| panic!("{what}: {e}"));
                same(&what, &got, &bytes[range]);
            }
            8 => {
                let range = if rng.below(2) == 0 { range } else { range.start + 17..range.end.max(range.start + 18) };
                let range = range.start..range.end.min(len);
                if !range.is_empty() {
                    store.punch(range.start as u64, range.len() as u64).expect("punch");
                    bytes[range].fill(0);
                }
            }
            _ => {
                len = 1 + rng.below(max * PAGE);
                store.set_len(len as u64).expect("set_len");
                bytes[len..].fill(0);
            }
        }
    }
    same(&format!("seed {seed}, all of it"), &read(store, 0, bytes.len()).expect("read"), &bytes);
}

#[test]
fn it_behaves_as_memory() {
    for (seed, direct) in [(1, false), (2, false), (3, true)] {
        // Hardly more slots than pages, so that holes are all there is.
        let file = swap_file(110, direct);
        let store = SwapStore::new(&file, 100 * PAGE as u64).expect("store");
        assert!(!store.is_stable());
        model(&store, seed, 100, if direct { 800 } else { 2000 });
        drop(store);
        assert_eq!(file.nr_used(), 0, "a store that is dropped gives its slots back");
    }
}

#[test]
fn it_behaves_as_memory_with_something_in_front() {
    let (file, keep) = (swap_file(110, false), Keep::default());
    for seed in 10..13 {
        let store = SwapStore::with_front(&file, &keep, 100 * PAGE as u64).expect("store");
        assert!(store.is_stable());
        model(&store, seed, 100, 2000);
        drop(store);
        assert_eq!((file.nr_used(), keep.pages.lock().expect("lock").len()), (0, 0), "all given back");
    }
    assert!(of(&file.stat.pswpout) > 0, "both were used");
}

#[test]
fn zeros_cost_neither_slots_nor_io() {
    let file = swap_file(64, false);
    let store = SwapStore::new(&file, 64 * PAGE as u64).expect("store");
    assert_eq!(read(&store, 0, 8 * PAGE), Ok(vec![0; 8 * PAGE]), "never written");
    write(&store, 0, &vec![0; 8 * PAGE]).expect("write zeros");
    assert_eq!((file.nr_used(), of(&file.stat.pswpout), of(&file.stat.pswpin)), (0, 0, 0));
    assert_eq!((of(&file.stat.swpin_zero), of(&file.stat.swpout_zero)), (8, 8));
    write(&store, 0, &vec![7; 8 * PAGE]).expect("write");
    assert_eq!((file.nr_used(), of(&file.stat.pswpout)), (8, 8));
    write(&store, 2 * PAGE, &vec![0; 3 * PAGE]).expect("write zeros over them");
    assert_eq!((file.nr_used(), of(&file.stat.pswpout)), (5, 8), "slots came back");
    store.punch(0, PAGE as u64).expect("punch");
    assert_eq!(file.nr_used(), 4);
    store.set_len(7 * PAGE as u64).expect("set_len");
    assert_eq!(file.nr_used(), 3);
}

#[test]
fn what_is_behind_a_short_last_page_is_nobodys() {
    let file = swap_file(1, false);
    let store = SwapStore::new(&file, PAGE as u64).expect("store");
    write(&store, 0, &[0xee; PAGE]).expect("write");
    store.punch(0, PAGE as u64).expect("punch");
    write(&store, 0, &[0x11; 904]).expect("the same slot, a shorter page");
    let got = read(&store, 0, PAGE).expect("the object grew");
    assert!(got[..904].iter().all(|b| *b == 0x11) && got[904..].iter().all(|b| *b == 0), "the slot's old bytes show");
}

#[test]
fn a_full_file_is_a_typed_error_and_rewriting_still_works() {
    let file = swap_file(10, false);
    let store = SwapStore::new(&file, 64 * PAGE as u64).expect("store");
    let bytes = Rng(21).bytes(10 * PAGE);
    write(&store, 0, &bytes).expect("ten pages");
    let full = Err(StoreError::Io(Errno::ENOSPC));
    assert_eq!(write(&store, 20 * PAGE, &[1; PAGE]), full);
    same("nothing was lost", &read(&store, 0, 10 * PAGE).expect("read"), &bytes);
    assert_eq!(read(&store, 20 * PAGE, PAGE), Ok(vec![0; PAGE]), "nothing was taken");
    let again = Rng(22).bytes(10 * PAGE);
    write(&store, 0, &again).expect("in place");
    same("in place", &read(&store, 0, 10 * PAGE).expect("read"), &again);
    store.punch(0, PAGE as u64).expect("punch");
    write(&store, 20 * PAGE, &[1; PAGE]).expect("the slot that came back");
    // Rewriting pages that lie scattered, with not one slot free.
    write(&store, PAGE, &again[..9 * PAGE]).expect("in place again");
    same("scattered", &read(&store, PAGE, 9 * PAGE).expect("read"), &again[..9 * PAGE]);
    assert_eq!(write(&store, 64 * PAGE, &[1; PAGE]), Err(StoreError::Io(Errno::EINVAL)), "past the maximal length");
    assert_eq!(write(&store, 5, &[1; PAGE]), Err(StoreError::Io(Errno::EINVAL)), "in the middle of a page");
}

#[test]
fn a_failed_write_leaves_the_old_page_and_no_slot_taken() {
    let file = temp_file(4 * PAGE as u64);
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    let read_only = std::fs::File::open(path).expect("open").into_raw_fd();
    let file = SwapFile::new(DirectFile::buffered(read_only), 4 * PAGE as u64).expect("a swap file");
    let store = SwapStore::new(&file, 4 * PAGE as u64).expect("store");
    assert_eq!(write(&store, 0, &[1; PAGE]), Err(StoreError::Io(Errno::EBADF)));
    assert_eq!((file.nr_used(), read(&store, 0, PAGE)), (0, Ok(vec![0; PAGE])));
}

/// Threads on pages of their own in one file that is nearly full: no thread ever sees another's bytes.
#[test]
fn stores_and_threads_do_not_mix_their_pages() {
    let file = swap_file(8 * 40 + 4, false);
    std::thread::scope(|s| {
        for seed in 100..108 {
            let file = &file;
            s.spawn(move || {
                let store = SwapStore::new(file, 40 * PAGE as u64).expect("store");
                model(&store, seed, 40, 800);
            });
        }
    });
    assert_eq!(file.nr_used(), 0);
}

/// Takes pages whose first byte is even; a load waits while the page is rewritten, and then gives bytes of nobody's.
struct Slow(Barrier);

impl Frontswap for &Slow {
    const STABLE: bool = true;
    fn store(&self, page: &PageRef<'_>) -> Option<u32> {
        let mut first = [0];
        page.copy_to(0, &mut first);
        first[0].is_multiple_of(2).then_some(5)
    }
    fn load(&self, _: u32, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        self.0.wait();
        self.0.wait();
        page.as_mut_slice().fill(0xee);
        Ok(())
    }
    fn invalidate(&self, _: u32) {}
}

#[test]
fn a_page_that_went_elsewhere_during_a_read_is_read_again() {
    let (file, slow) = (swap_file(6, false), Slow(Barrier::new(2)));
    for new in [[3; PAGE], [0; PAGE]] {
        let store = SwapStore::with_front(&file, &slow, 4 * PAGE as u64).expect("store");
        write(&store, PAGE, &[2; PAGE]).expect("write");
        std::thread::scope(|s| {
            let reader = s.spawn(|| read(&store, 0, 3 * PAGE).expect("read"));
            slow.0.wait();
            write(&store, PAGE, &new).expect("the page goes to the file, or becomes zeros");
            slow.0.wait();
            let want = [[0; PAGE], new, [0; PAGE]].concat();
            same("read again", &reader.join().expect("reader"), &want);
        });
    }
}

/// Reads of a page race its punch and rewrite, and another store takes the slots that come free: what is read was once
/// that page's, or zeros. The pages of each store carry its own byte.
#[test]
fn a_slot_that_changes_hands_during_a_read_does_not_show() {
    let file = swap_file(6, false);
    let ours = SwapStore::new(&file, 4 * PAGE as u64).expect("store");
    let theirs = SwapStore::new(&file, 4 * PAGE as u64).expect("store");
    let left = AtomicU32::new(2);
    let churn = |store: &SwapStore<&SwapFile>, byte: u8| {
        let mut rng = Rng(u64::from(byte));
        for _ in 0..20_000 {
            let page = rng.below(4);
            // A full file is no error here.
            let _ = write(store, page * PAGE, &vec![byte; PAGE * (1 + rng.below(4 - page))]);
            store.punch((rng.below(4) * PAGE) as u64, PAGE as u64).expect("punch");
        }
        left.fetch_sub(1, Ordering::Relaxed);
    };
    std::thread::scope(|s| {
        s.spawn(|| churn(&ours, 1));
        s.spawn(|| churn(&theirs, 2));
        s.spawn(|| {
            while left.load(Ordering::Relaxed) > 0 {
                let got = read(&ours, 0, 4 * PAGE).expect("read");
                let bad = got.iter().position(|b| *b > 1);
                assert_eq!(bad, None, "a byte of the other store's");
            }
        });
    });
}
