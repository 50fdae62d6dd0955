//! Stores that are read by whole blocks (`Store::read_align_bytes`), over the real kernel: every read is of whole blocks, and
//! every byte is right, whatever of a block is cached, dirty, evicted or failed.
#![allow(clippy::cast_possible_truncation, reason = "64-bit offsets of small objects")]
#![allow(unsafe_code, reason = "a store for handlers")]

mod common;

use common::{EXTENT, PAGE, Rng, arena, byte_of, bytes, content, each_mode, each_userfaultfd, evict, load, map, same};
use softfault::{
    Delivery, Error, FailurePolicy, HandlerStore, Object, ObjectBuilder, PageMut, PageRef, Prot, Runtime, Sharing,
    Store, StoreError,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

/// Bytes that are read by blocks; what a read that is none was, is kept.
#[derive(Debug)]
struct Framed {
    /// Eight bytes a word, the last perhaps in part: byte by byte is slow without optimisation.
    words: Vec<AtomicU64>,
    len: usize,
    align: u64,
    uses_descriptors: bool,
    reads: AtomicU64,
    /// First byte and length of a read that was not of whole blocks, the length plus 1.
    torn: [AtomicU64; 2],
    is_ill: AtomicBool,
}

#[derive(Debug)]
struct FramedStore(Arc<Framed>);

impl Framed {
    fn new(len: usize, align: u64, uses_descriptors: bool) -> Arc<Self> {
        let mut bytes = content(0, 0..len as u64);
        bytes.resize(len.next_multiple_of(8), 0);
        let word = |b: &[u8]| AtomicU64::new(u64::from_ne_bytes(b.try_into().expect("eight")));
        let words = bytes.chunks(8).map(word).collect();
        let (reads, torn, is_ill) = <(AtomicU64, [AtomicU64; 2], AtomicBool)>::default();
        Arc::new(Self { words, len, align, uses_descriptors, reads, torn, is_ill })
    }
    fn nr_reads(&self) -> u64 {
        self.reads.swap(0, Ordering::SeqCst)
    }
    #[track_caller]
    fn check(&self) {
        let [at, len] = self.torn.each_ref().map(|n| n.load(Ordering::SeqCst));
        assert_eq!(len, 0, "a read of {} bytes at {at:#x} is not of whole blocks of {:#x}", len.max(1) - 1, self.align);
    }
    fn content(&self) -> Vec<u8> {
        let mut all: Vec<u8> = self.words.iter().flat_map(|w| w.load(Ordering::Relaxed).to_ne_bytes()).collect();
        all.truncate(self.len);
        all
    }
    fn builder(&self, rt: &Runtime) -> ObjectBuilder {
        rt.object(self.len as u64).writable(true)
    }
    fn object(self: &Arc<Self>, builder: ObjectBuilder, in_handler: bool) -> Object {
        let store = Box::new(FramedStore(Arc::clone(self)));
        if in_handler { builder.handler_store(store) } else { builder.store(store) }.expect("object")
    }
}

impl Store for FramedStore {
    fn read(&self, pos_bytes: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        let (all, len, s) = (self.0.len as u64, page.len_bytes() as u64, &self.0);
        s.reads.fetch_add(1, Ordering::SeqCst);
        let ends = len.is_multiple_of(s.align) || pos_bytes + len == all;
        if !pos_bytes.is_multiple_of(s.align) || !ends || len == 0 {
            s.torn[0].store(pos_bytes, Ordering::SeqCst);
            s.torn[1].store(len + 1, Ordering::SeqCst);
        }
        let from = s.words.get(pos_bytes as usize / 8..).ok_or(StoreError::Short)?;
        for (to, word) in page.as_mut_slice().chunks_mut(8).zip(from) {
            to.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes()[..to.len()]);
        }
        if s.is_ill.load(Ordering::SeqCst) { Err(StoreError::Corrupt) } else { Ok(()) }
    }
    fn write(&self, pos_bytes: u64, pages: &PageRef<'_>) -> Result<(), StoreError> {
        let mut some = [0; 64];
        let mut done = 0;
        while done < pages.len_bytes() {
            let n = pages.copy_to(done, &mut some);
            some[n..].fill(0);
            let to = &self.0.words[(pos_bytes as usize + done) / 8..];
            for (word, bytes) in to.iter().zip(some[..n.next_multiple_of(8)].chunks_exact(8)) {
                word.store(u64::from_ne_bytes(bytes.try_into().expect("eight")), Ordering::Relaxed);
            }
            done += n;
        }
        Ok(())
    }
    fn read_align_bytes(&self) -> u64 {
        self.0.align
    }
    fn uses_descriptors(&self) -> bool {
        self.0.uses_descriptors
    }
}

// SAFETY: atomics and stores to the page alone.
unsafe impl HandlerStore for FramedStore {}

#[test]
fn every_read_is_of_whole_blocks_and_every_byte_is_right() {
    // A last block that is cut, and a last page that is.
    const LEN: usize = 301 * PAGE + 77;
    for (align, in_handler, uses_descriptors) in
        [(16 * PAGE, true, false), (16 * PAGE, false, true), (64 * PAGE, true, false), (2 * PAGE, false, false)]
    {
        each_mode("every_read_is_of_whole_blocks", |_, mode| {
            let rt = Runtime::builder().cache_limit(96 * PAGE as u64).writeback(HOUR, HOUR).build().expect("runtime");
            let framed = Framed::new(LEN, align as u64, uses_descriptors);
            let object = framed.object(framed.builder(&rt), in_handler);
            let a = arena(&rt, mode, EXTENT);
            map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
            let (mut model, mut rng) = (framed.content(), Rng(0x5eed ^ align as u64));
            for step in 0..500u32 {
                let at = rng.below(LEN);
                match step % 8 {
                    0 => {
                        common::store(&a, at, step as u8).expect("a store");
                        model[at] = step as u8;
                    }
                    1 => {
                        object.write_at(at as u64, &[step as u8]).expect("write_at");
                        model[at] = step as u8;
                    }
                    2 => {
                        let mut got = [0; 1];
                        object.read_at(at as u64, &mut got).expect("read_at");
                        assert_eq!(got[0], model[at], "{mode:?} step {step}: byte {at:#x}, by a call");
                    }
                    3 if step % 64 == 3 => {
                        let from = (at / PAGE * PAGE) as u64;
                        object.evict(from..(from + 3 * PAGE as u64).min(LEN as u64)).expect("evict");
                    }
                    _ => assert_eq!(load(&a, at), Ok(model[at]), "{mode:?} step {step}: byte {at:#x}"),
                }
            }
            same("in order", &bytes(&a, 0..LEN), &model);
            object.sync_all().expect("sync");
            same("the store", &framed.content(), &model);
            framed.check();
            let stats = rt.stats();
            assert!(stats["fill_discarded"] > 0, "nothing was read of which a part was cached\n{stats}");
        });
    }
}

#[test]
fn a_block_that_is_not_cached_is_read_once() {
    each_mode("a_block_is_read_once", |rt, mode| {
        let framed = Framed::new(256 * PAGE, 32 * PAGE as u64, false);
        let object = framed.object(framed.builder(rt).readahead_pages(0).fill_window_pages(1), true);
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        same("all", &bytes(&a, 0..256 * PAGE), &content(0, 0..256 * PAGE as u64));
        assert_eq!(framed.nr_reads(), 8, "one read a block");
        assert_eq!(rt.stats()["fill_discarded"], 0);
        // One page of a block goes: the block is read again for it, and what was kept is not touched.
        object.write_at(33 * PAGE as u64, &[99]).expect("write_at");
        evict(&object, 34 * PAGE as u64..35 * PAGE as u64, 1);
        assert_eq!(load(&a, 34 * PAGE), Ok(byte_of(0, 34 * PAGE as u64)));
        assert_eq!(load(&a, 33 * PAGE), Ok(99), "what was stored to is not read over");
        assert_eq!((framed.nr_reads(), rt.stats()["fill_discarded"]), (1, 31));
        framed.check();
    });
}

#[test]
fn readahead_and_advice_are_of_whole_blocks() {
    each_mode("readahead_and_advice", |rt, mode| {
        let framed = Framed::new(2 * EXTENT, 64 * PAGE as u64, false);
        let object = framed.object(framed.builder(rt).readahead_pages(48), true);
        let a = arena(rt, mode, 2 * EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        for p in 0..512 {
            assert_eq!(load(&a, p * PAGE), Ok(byte_of(0, (p * PAGE) as u64)), "page {p}");
        }
        object
            .advise((EXTENT + 7 * PAGE) as u64..(EXTENT + 9 * PAGE) as u64, softfault::Advice::WillNeed)
            .expect("advise");
        common::until("the block is there", || object.is_cached(EXTENT as u64));
        let stats = rt.stats();
        assert!(stats["readahead_pages"] >= 64, "{stats}");
        framed.check();
    });
}

#[test]
fn a_block_that_fails_is_asked_for_once_a_touch_and_heals_whole() {
    each_mode("a_block_that_fails", |rt, mode| {
        let framed = Framed::new(64 * PAGE, 64 * PAGE as u64, false);
        let object = framed.object(framed.builder(rt).readahead_pages(0), true);
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        framed.is_ill.store(true, Ordering::SeqCst);
        assert_eq!(load(&a, 63 * PAGE), Err(libc::SIGBUS));
        // The window, and once more by blocks, so that others of it are not lost with one.
        // By Monitor the poison is met once more, by the signal that it raises.
        assert!(framed.nr_reads() <= 4, "a verdict on one block takes no more reads");
        let poisoned = rt.stats()["pgpoison"];
        assert!(poisoned >= 64 && poisoned.is_multiple_of(64), "{poisoned} pages");
        framed.is_ill.store(false, Ordering::SeqCst);
        assert_eq!(load(&a, 5 * PAGE), Ok(byte_of(0, 5 * PAGE as u64)));
        assert_eq!((framed.nr_reads(), object.cached_pages()), (1, 64), "it heals whole");
        framed.check();
    });
}

#[test]
fn private_copies_and_zeros_for_failures_are_of_whole_blocks() {
    each_mode("private_copies", |rt, mode| {
        let framed = Framed::new(64 * PAGE, 16 * PAGE as u64, false);
        let object = framed.object(framed.builder(rt).on_failure(FailurePolicy::Zero), true);
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::ReadWrite, Sharing::Private);
        common::store(&a, 17 * PAGE, 7).expect("a private store");
        assert_eq!(load(&a, 17 * PAGE), Ok(7));
        assert_eq!(load(&a, 17 * PAGE + 1), Ok(byte_of(0, 17 * PAGE as u64 + 1)));
        framed.is_ill.store(true, Ordering::SeqCst);
        assert_eq!(load(&a, 40 * PAGE), Ok(0), "zeros instead");
        framed.check();
    });
}

#[test]
fn exclusive_objects_are_read_by_whole_blocks() {
    each_userfaultfd("exclusive_objects", |_, mode| {
        if mode != Delivery::InThread {
            println!("exclusive objects need InThread");
            return;
        }
        let rt = Runtime::builder().cache_limit(96 * PAGE as u64).build().expect("runtime");
        let framed = Framed::new(301 * PAGE + 5, 16 * PAGE as u64, false);
        let object = framed.object(framed.builder(&rt).exclusive(true), true);
        let a = arena(&rt, mode, EXTENT);
        map(&a, 0, &object, Prot::ReadWrite, Sharing::Private);
        let (mut model, mut rng) = (framed.content(), Rng(77));
        for step in 0..800u32 {
            let at = rng.below(model.len());
            if step % 4 == 0 {
                common::store(&a, at, step as u8).expect("a store");
                model[at] = step as u8;
            } else {
                assert_eq!(load(&a, at), Ok(model[at]), "step {step}: byte {at:#x}");
            }
        }
        object.sync_all().expect("sync");
        same("the store", &framed.content(), &model);
        framed.check();
        assert!(rt.stats()["fill_discarded"] > 0);
    });
}

#[test]
fn an_end_that_moves_leaves_reads_whole() {
    each_mode("an_end_that_moves", |rt, mode| {
        let framed = Framed::new(40 * PAGE, 16 * PAGE as u64, false);
        // The store has more than the object shows at first: a read of the cut block ends where the object does then.
        let builder = rt.object(20 * PAGE as u64).max_len(40 * PAGE as u64).writable(true);
        let object = builder.handler_store(Box::new(FramedStore(Arc::clone(&framed)))).expect("object");
        let a = arena(rt, mode, EXTENT);
        a.map(0, &object, 0, 40 * PAGE, Prot::Read, Sharing::Shared).expect("map");
        assert_eq!(load(&a, 19 * PAGE), Ok(byte_of(0, 19 * PAGE as u64)));
        assert_eq!(framed.torn[1].swap(0, Ordering::SeqCst), 4 * PAGE as u64 + 1, "cut where the object ends");
        object.set_len(40 * PAGE as u64).expect("set_len");
        same("all", &bytes(&a, 0..40 * PAGE), &content(0, 0..40 * PAGE as u64));
        framed.check();
    });
}

#[test]
fn alignments_that_are_none_are_refused() {
    let rt = common::runtime();
    for align in [0, 512, 3 * PAGE as u64, 4 << 20] {
        let framed = Framed::new(PAGE, align, false);
        for in_handler in [false, true] {
            let store = Box::new(FramedStore(Arc::clone(&framed)));
            let builder = rt.object(PAGE as u64);
            let r = if in_handler { builder.handler_store(store) } else { builder.store(store) };
            assert!(
                matches!(r, Err(Error::Argument { arg: "read_align_bytes", value, .. }) if value == align),
                "{align}: {r:?}"
            );
        }
    }
}

/// Who was told that a block is bad, and has mended it, is not told of the old verdict again by another page of it.
#[test]
fn a_block_that_was_mended_is_read_whole() {
    let rt = common::runtime();
    let framed = Framed::new(16 * PAGE, 16 * PAGE as u64, false);
    let object = framed.object(framed.builder(&rt).readahead_pages(0), false);
    let mut all = vec![0; 16 * PAGE];
    for round in 0..500 {
        framed.is_ill.store(true, Ordering::SeqCst);
        let r = object.read_at(0, &mut all[..1]);
        assert!(matches!(r, Err(Error::Fault { .. })), "round {round}: {r:?}");
        framed.is_ill.store(false, Ordering::SeqCst);
        object.read_at(0, &mut all).unwrap_or_else(|e| panic!("round {round}: {e}"));
        same("mended", &all, &content(0, 0..16 * PAGE as u64));
        evict(&object, 0..16 * PAGE as u64, 16);
    }
    framed.check();
}
