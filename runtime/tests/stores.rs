//! Files that may be written, files read past the kernel's cache, and swap files, as objects of a runtime.
#![allow(clippy::cast_possible_truncation, reason = "64-bit offsets of small objects")]
#![allow(unsafe_code, reason = "a store for handlers, and a limit of the process")]

mod common;

use common::{EXTENT, PAGE, TempFile, arena, bytes, each_mode, map, same, setup, store};
use softfault::{Error, HandlerStore, Object, PageMut, PageRef, Prot, Runtime, Sharing, Store, StoreError};
use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

#[test]
fn a_file_read_directly_is_the_file() {
    // The last page is a partial one.
    let file = TempFile::new(300 * PAGE + 77);
    each_mode("direct", |rt, mode| {
        let fallbacks = rt.stats()["process_direct_fallbacks"];
        let object = rt.file_options().direct(true).open(file.path()).expect("open");
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        same("by loads", &bytes(&a, 0..file.data.len()), &file.data);
        let tail = bytes(&a, file.data.len()..301 * PAGE);
        assert!(tail.iter().all(|b| *b == 0), "behind the end");
        let object = rt.file_options().direct(true).file(&File::open(file.path()).expect("open")).expect("file");
        let mut got = vec![0; file.data.len()];
        assert_eq!(object.read_at(0, &mut got).expect("read_at"), got.len());
        same("by calls", &got, &file.data);
        if rt.stats()["process_direct_fallbacks"] > fallbacks {
            println!("the temporary folder refuses O_DIRECT: it was read through the kernel's cache");
        }
    });
}

#[test]
fn a_file_that_may_be_written_takes_stores() {
    let file = TempFile::new(16 * PAGE);
    each_mode("file_rw", |rt, mode| {
        let opened = File::options().read(true).write(true).open(file.path()).expect("open");
        for object in [rt.open_file_rw(file.path()).expect("open"), rt.file_rw(&opened).expect("file_rw")] {
            let a = arena(rt, mode, EXTENT);
            map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
            assert_eq!(store(&a, 5 * PAGE + 3, 0xee), Ok(()));
            let mut got = [0; 2];
            object.read_at(5 * PAGE as u64 + 3, &mut got).expect("read_at");
            assert_eq!(got, [0xee, file.data[5 * PAGE + 4]]);
            object.write_at(9, &[1, 2, 3]).expect("write_at");
            same("by loads", &bytes(&a, 8..13), &[file.data[8], 1, 2, 3, file.data[12]]);
        }
        // Open for reading only: it cannot be an object that is written.
        let opened = File::open(file.path()).expect("open");
        let denied = rt.open_file(file.path()).expect("open").write_at(0, &[1]);
        assert!(matches!(denied, Err(Error::Denied { .. })), "{denied:?}");
        assert!(rt.file(&opened).is_ok());
    });
}

#[test]
fn anonymous_memory_over_a_swap_file_begins_as_zeros() {
    setup();
    for zswap in [0, 1 << 20] {
        let builder = Runtime::builder().swap(std::env::temp_dir(), 64 << 20);
        let builder = if zswap > 0 { builder.zswap(zswap) } else { builder };
        let rt = builder.build().expect("runtime");
        assert_eq!(rt.stats()["nr_swap_slots"], (64 << 20) / PAGE as u64);
        let object = rt.anonymous(EXTENT as u64).expect("anonymous");
        let mode = softfault::Delivery::Auto;
        let a = arena(&rt, mode, EXTENT);
        map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
        assert_eq!(store(&a, 7, 9), Ok(()));
        let mut want = vec![0; EXTENT];
        want[7] = 9;
        same("zeros", &bytes(&a, 0..EXTENT), &want);
        let stats = rt.stats();
        assert!(stats["swpin_zero"] >= 512, "zswap {zswap}: {stats}");
        assert_eq!((stats["pswpin"], stats["nr_swap_slots_used"]), (0, 0), "no I/O");
    }
}

#[test]
fn a_swap_file_that_cannot_be_is_refused() {
    setup();
    let file = TempFile::new(3 * PAGE);
    let taken = Runtime::builder().swap(file.path(), 1 << 20).build().expect("a file");
    assert_eq!(std::fs::metadata(file.path()).expect("metadata").len(), 1 << 20, "its length");
    let refused = [
        ("too small", Runtime::builder().swap(std::env::temp_dir(), 4095)),
        ("too large", Runtime::builder().swap(std::env::temp_dir(), 1 << 45)),
        ("no file behind it", Runtime::builder().zswap(1 << 20)),
    ];
    for (what, builder) in refused {
        let r = builder.build();
        assert!(matches!(r, Err(Error::Argument { op: "RuntimeBuilder::swap", .. })), "{what}: {r:?}");
    }
    let r = Runtime::builder().swap(file.path(), 1 << 20).build();
    assert!(matches!(r, Err(Error::Io { .. })), "another runtime swaps there: {r:?}");
    drop(taken);
    assert!(Runtime::builder().swap(file.path(), 2 << 20).build().is_ok(), "it is free again");
    let r = Runtime::builder().swap("/nonexistent/swap", 1 << 20).build();
    assert!(matches!(r, Err(Error::Io { .. })), "{r:?}");
}

/// Bytes of one's own; says whether the pages that it was given had a descriptor.
#[derive(Debug)]
struct Own {
    bytes: Mutex<Vec<u8>>,
    uses_descriptors: bool,
    with: AtomicU32,
    without: AtomicU32,
    fails: AtomicBool,
}

#[derive(Debug)]
struct OwnStore(Arc<Own>);

impl Own {
    fn new(len: usize, uses_descriptors: bool) -> Arc<Self> {
        let bytes = Mutex::new(common::content(5, 0..len as u64));
        let (with, without, fails) = <(AtomicU32, AtomicU32, AtomicBool)>::default();
        Arc::new(Self { bytes, uses_descriptors, with, without, fails })
    }
    fn see(&self, fd: i32) {
        if fd < 0 { &self.without } else { &self.with }.fetch_add(1, Ordering::SeqCst);
    }
    /// Whether every page came with a descriptor, or without.
    fn check(&self, what: &str) {
        let [with, without] = [&self.with, &self.without].map(|n| n.swap(0, Ordering::SeqCst));
        let (wanted, other) = if self.uses_descriptors { (with, without) } else { (without, with) };
        assert!(wanted > 0 && other == 0, "{what}: {with} with a descriptor, {without} without");
    }
}

impl Store for OwnStore {
    fn read(&self, pos_bytes: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        self.0.see(page.fd_offset().0);
        let at = pos_bytes as usize;
        let len = page.len_bytes();
        if self.0.fails.load(Ordering::SeqCst) {
            page.as_mut_slice().fill(0xee);
            return Err(StoreError::Corrupt);
        }
        page.as_mut_slice().copy_from_slice(&self.0.bytes.lock().expect("bytes")[at..at + len]);
        Ok(())
    }
    fn write(&self, pos_bytes: u64, pages: &PageRef<'_>) -> Result<(), StoreError> {
        self.0.see(pages.fd_offset().0);
        let at = pos_bytes as usize;
        pages.copy_to(0, &mut self.0.bytes.lock().expect("bytes")[at..at + pages.len_bytes()]);
        Ok(())
    }
    fn uses_descriptors(&self) -> bool {
        self.0.uses_descriptors
    }
}

// SAFETY: no thread of these tests touches an arena while it has the lock, which allocates nothing.
unsafe impl HandlerStore for OwnStore {}

fn over(rt: &Runtime, own: &Arc<Own>, in_handler: bool) -> Object {
    let len = own.bytes.lock().expect("bytes").len();
    let builder = rt.object(len as u64).writable(true);
    let store = Box::new(OwnStore(Arc::clone(own)));
    if in_handler { builder.handler_store(store) } else { builder.store(store) }.expect("object")
}

/// Whether a store is given the cache's pages or a buffer is its own affair: the object is the same.
#[test]
fn a_store_is_given_a_buffer_or_the_pages_themselves() {
    // Windows of every length, and a page that ends early.
    let len = 300 * PAGE + 100;
    each_mode("buffers", |rt, mode| {
        for (uses_descriptors, in_handler) in [(false, false), (false, true), (true, false), (true, true)] {
            let what = format!("{mode:?}, descriptors {uses_descriptors}, in the handler {in_handler}");
            let own = Own::new(len, uses_descriptors);
            let object = over(rt, &own, in_handler);
            let a = arena(rt, mode, EXTENT);
            map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
            // What is discarded when a read fails is not seen, nor left behind the end.
            own.fails.store(true, Ordering::SeqCst);
            object.read_at(300 * PAGE as u64, &mut [0; 4]).expect_err("a read that fails");
            own.fails.store(false, Ordering::SeqCst);
            let mut model = common::content(5, 0..len as u64);
            same(&what, &bytes(&a, 0..len), &model);
            assert!(bytes(&a, len..301 * PAGE).iter().all(|b| *b == 0), "{what}: behind the end");
            for p in (0..300).step_by(7) {
                assert_eq!(store(&a, p * PAGE + 3, 9), Ok(()));
                model[p * PAGE + 3] = 9;
            }
            // Past the end of the object, and so never the store's.
            assert_eq!(store(&a, len + 5, 9), Ok(()));
            object.sync_all().expect("sync_all");
            same(&what, &own.bytes.lock().expect("bytes"), &model);
            let dropped = object.evict(0..object.len()).expect("evict");
            assert!(dropped > 290, "{what}: {dropped}");
            same(&what, &bytes(&a, 0..len), &model);
            own.check(&what);
            assert_eq!(rt.stats()["process_buffer_bytes"], 16 * (256 << 10), "{what}: the buffers are counted");
        }
    });
}

/// The kernel would end the process for a write(2) to the cache past the limit.
#[test]
fn a_limit_on_the_size_of_files_ends_nobody() {
    let out = common::child("a_limit_on_the_size_of_files_ends_nobody", "limited", || {
        let limit = libc::rlimit { rlim_cur: PAGE as u64, rlim_max: libc::RLIM_INFINITY };
        setup();
        let rt = Runtime::new().expect("runtime");
        let own = Own::new(64 * PAGE, false);
        let object = over(&rt, &own, false);
        // SAFETY: the limit of a process of our own.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) }, 0);
        let mut got = vec![0; 64 * PAGE];
        assert_eq!(object.read_at(0, &mut got).expect("read_at"), got.len());
        same("read", &got, &common::content(5, 0..64 * PAGE as u64));
        object.write_at(9 * PAGE as u64, &[1; 10]).expect("write_at");
        object.sync_all().expect("sync_all");
        assert_eq!(own.bytes.lock().expect("bytes")[9 * PAGE], 1);
    });
    common::ended(out, Ok(0));
}
