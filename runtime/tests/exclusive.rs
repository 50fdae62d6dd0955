//! Exclusive objects on the real kernel: pages that are moved into their arena and out of it.
#![allow(unsafe_code, reason = "handler stores, and stores by address")]
#![allow(clippy::cast_possible_truncation, reason = "patterns; 64-bit only")]

mod common;

#[cfg(not(feature = "userfaultfd"))]
#[test]
fn without_the_feature_asking_for_one_is_a_typed_error() {
    let rt = common::runtime();
    let r = rt.object(4096).exclusive(true).anonymous();
    assert!(matches!(r, Err(softfault::Error::Delivery { .. })), "{r:?}");
    rt.object(4096).exclusive(false).anonymous().expect("an ordinary object");
}

#[cfg(feature = "userfaultfd")]
mod on {
    use crate::common::{self, EXTENT, Knobs, PAGE, Rng, arena, bytes, load, same, store};
    use softfault::{
        Access, Arena, Delivery, Errno, Error, HandlerStore, MinorDelegate, MinorFault, MinorVerdict, Object,
        ObjectBuilder, PageMut, PageRef, Prot, Runtime, Sharing, Store, StoreError,
    };
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
    use std::time::Duration;

    /// A store in memory, that says how often it was asked. It allocates nothing and takes no lock.
    #[derive(Debug)]
    struct Memory {
        bytes: Box<[AtomicU8]>,
        reads: AtomicUsize,
        writes: AtomicUsize,
        refuse: AtomicBool,
        /// Flushes wait while this is set, and then fail if the next is.
        hold_flush: AtomicBool,
        fail_flush: AtomicBool,
        /// Flushes that wait now.
        flushing: AtomicUsize,
        /// Reads from this page on wait; 0: none.
        hold_reads: AtomicUsize,
        reading: AtomicUsize,
    }

    impl Memory {
        fn new(len: usize) -> Arc<Self> {
            let bytes = (0..len as u64).map(|i| AtomicU8::new(common::byte_of(3, i))).collect();
            let zero = AtomicUsize::default;
            let (hold_flush, fail_flush, refuse) = Default::default();
            let (flushing, hold_reads, reading) = (zero(), zero(), zero());
            let (reads, writes) = (zero(), zero());
            Arc::new(Self { bytes, reads, writes, refuse, hold_flush, fail_flush, flushing, hold_reads, reading })
        }
        fn content(&self) -> Vec<u8> {
            self.bytes.iter().map(|b| b.load(Ordering::SeqCst)).collect()
        }
    }

    struct MemoryStore(Arc<Memory>);

    impl Store for MemoryStore {
        fn read(&self, pos_bytes: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
            self.0.reads.fetch_add(1, Ordering::SeqCst);
            let held = || {
                let from = self.0.hold_reads.load(Ordering::SeqCst);
                from != 0 && pos_bytes as usize >= from * PAGE
            };
            while held() {
                self.0.reading.store(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(1));
            }
            let from = self.0.bytes.get(pos_bytes as usize..).ok_or(StoreError::Short)?;
            if from.len() < page.len_bytes() {
                return Err(StoreError::Short);
            }
            for (to, from) in page.as_mut_slice().iter_mut().zip(from) {
                *to = from.load(Ordering::Relaxed);
            }
            Ok(())
        }
        fn write(&self, pos_bytes: u64, pages: &PageRef<'_>) -> Result<(), StoreError> {
            if self.0.refuse.load(Ordering::SeqCst) {
                return Err(StoreError::Io(Errno::EIO));
            }
            self.0.writes.fetch_add(1, Ordering::SeqCst);
            // On a signal stack.
            let mut copy = [0u8; 128];
            let mut done = 0;
            while done < pages.len_bytes() {
                let n = pages.copy_to(done, &mut copy);
                let to = self.0.bytes.get(pos_bytes as usize + done..).ok_or(StoreError::Short)?;
                to.iter().zip(&copy[..n]).for_each(|(to, from)| to.store(*from, Ordering::Relaxed));
                done += n;
            }
            Ok(())
        }
        fn flush(&self) -> Result<(), StoreError> {
            self.0.flushing.fetch_add(1, Ordering::SeqCst);
            while self.0.hold_flush.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
            self.0.flushing.fetch_sub(1, Ordering::SeqCst);
            if self.0.fail_flush.load(Ordering::SeqCst) { Err(StoreError::Io(Errno::EIO)) } else { Ok(()) }
        }
        fn punch(&self, pos_bytes: u64, len_bytes: u64) -> Result<(), StoreError> {
            let from = self.0.bytes.get(pos_bytes as usize..).ok_or(StoreError::Short)?;
            from.iter().take(len_bytes as usize).for_each(|b| b.store(0, Ordering::Relaxed));
            Ok(())
        }
    }

    // SAFETY: atomics and stores to the page alone.
    unsafe impl HandlerStore for MemoryStore {}

    /// How a test's object is made.
    #[derive(Clone, Copy, Debug)]
    struct Way {
        by_copy: bool,
        in_handler: bool,
        window: u32,
    }

    const WAYS: [Way; 4] = [
        Way { by_copy: false, in_handler: true, window: 1 },
        Way { by_copy: false, in_handler: false, window: 16 },
        Way { by_copy: true, in_handler: true, window: 16 },
        Way { by_copy: true, in_handler: false, window: 1 },
    ];

    impl Way {
        fn builder(self, rt: &Runtime, len: usize) -> ObjectBuilder {
            let b = rt.object(len as u64).fill_window_pages(self.window);
            if self.by_copy { b.exclusive_by_copy() } else { b.exclusive(true) }
        }
        fn object(self, rt: &Runtime, memory: &Arc<Memory>, writable: bool) -> Object {
            let b = self.builder(rt, memory.bytes.len()).writable(writable);
            let store = Box::new(MemoryStore(Arc::clone(memory)));
            if self.in_handler { b.handler_store(store) } else { b.store(store) }.expect("object")
        }
    }

    /// Runs `f` each way; nowhere where userfaultfd is forbidden.
    fn each_way(what: &str, f: impl Fn(&Runtime, Way)) {
        for way in WAYS {
            let rt = common::runtime();
            if !rt.delivery().is_available(Delivery::InThread) {
                println!("{what} skipped: {}", rt.delivery());
                return;
            }
            f(&rt, way);
            let s = rt.stats();
            let pool = s["exclusive_pool_bytes"];
            assert_eq!(s["exclusive_frames"] * PAGE as u64, pool, "{what}: {way:?}: pages of nobody's");
            assert!(pool <= 8 << 20, "{what}: {way:?}: the pool holds {pool} bytes");
            assert_eq!(s["nr_cached_pages"], 0, "{what}: {way:?}: pages are charged to nobody");
            println!("{what}: {way:?} ok");
        }
    }

    fn mapped(rt: &Runtime, object: &Object, prot: Prot) -> Arena {
        let arena = arena(rt, Delivery::InThread, object.len() as usize);
        arena.map(0, object, 0, object.len() as usize, prot, Sharing::Private).expect("map");
        arena
    }

    fn pages_in_arenas(rt: &Runtime) -> u64 {
        let s = rt.stats();
        s["exclusive_frames"] - s["exclusive_pool_bytes"] / PAGE as u64
    }

    #[test]
    fn random_stores_and_evictions_agree_with_a_model() {
        each_way("model", |rt, way| {
            const LEN: usize = 200 * PAGE - 1000;
            let memory = Memory::new(LEN);
            let object = way.object(rt, &memory, true);
            let arena = mapped(rt, &object, Prot::ReadWrite);
            let mut model = memory.content();
            let mut rng = Rng(0x5eed + u64::from(way.window));
            for step in 0..6_000u32 {
                let at = rng.below(LEN);
                match rng.below(16) {
                    0 => {
                        let end = (at + rng.below(64 * PAGE)) as u64;
                        object.evict(at as u64..end).expect("evict");
                    }
                    1 => {
                        let data = [step as u8; 5000];
                        let n = object.write_at(at as u64, &data).expect("write_at");
                        assert_eq!(n, data.len().min(LEN - at), "short at the end only");
                        model[at..at + n].copy_from_slice(&data[..n]);
                    }
                    2 => {
                        let mut got = [0u8; 5000];
                        let n = object.read_at(at as u64, &mut got).expect("read_at");
                        same("read_at", &got[..n], &model[at..at + n]);
                    }
                    3 => {
                        let mut data = [0u8; 300];
                        let n = data.len().min(LEN - at);
                        arena.read_at(at, &mut data[..n]).expect("Arena::read_at");
                        same("Arena::read_at", &data[..n], &model[at..at + n]);
                        data.fill(step as u8);
                        arena.write_at(at, &data[..n]).expect("Arena::write_at");
                        model[at..at + n].copy_from_slice(&data[..n]);
                    }
                    4..10 => {
                        store(&arena, at, step as u8).expect("store");
                        model[at] = step as u8;
                    }
                    _ => assert_eq!(load(&arena, at), Ok(model[at]), "{way:?}: step {step}, byte {at:#x}"),
                }
            }
            // A filler may have pages in the arena that it has not published yet.
            common::until("every page is published", || pages_in_arenas(rt) == object.cached_pages());
            same("the mapping", &bytes(&arena, 0..LEN), &model);
            assert!(memory.writes.load(Ordering::SeqCst) > 0, "nothing was written back");
            arena.unmap(0..arena.len().min(200 * PAGE)).expect("unmap");
            same("the store", &memory.content(), &model);
            assert_eq!(object.cached_pages(), 0);
        });
    }

    #[test]
    fn threads_lose_nothing_to_an_evictor() {
        each_way("threads", |rt, way| {
            const PAGES: usize = 96;
            let memory = Memory::new(PAGES * PAGE);
            let object = way.object(rt, &memory, true);
            let arena = mapped(rt, &object, Prot::ReadWrite);
            let stop = AtomicBool::new(false);
            let evicted = AtomicUsize::new(0);
            std::thread::scope(|s| {
                let _stop = common::StopOnDrop(&stop);
                for seed in 0..2 {
                    let (object, stop, evicted) = (&object, &stop, &evicted);
                    s.spawn(move || {
                        let mut rng = Rng(77 + seed);
                        while !stop.load(Ordering::Relaxed) {
                            let p = rng.below(PAGES);
                            let end = ((p + 1 + rng.below(20)) * PAGE) as u64;
                            let n = object.evict((p * PAGE) as u64..end).expect("evict");
                            evicted.fetch_add(n as usize, Ordering::Relaxed);
                            std::thread::yield_now();
                        }
                    });
                }
                let writers: Vec<_> = (0..3usize)
                    .map(|t| {
                        let (arena, evicted) = (&arena, &evicted);
                        s.spawn(move || {
                            let mut rng = Rng(9 + t as u64);
                            let mut model = vec![None; PAGES * PAGE];
                            let mut step = 0u32;
                            // Bytes t, t + 3, ... are this thread's: all three store to every page.
                            while step < 20_000 || evicted.load(Ordering::Relaxed) < 500 {
                                let at = rng.below(PAGES * PAGE / 3) * 3 + t;
                                let want = model[at].unwrap_or_else(|| common::byte_of(3, at as u64));
                                assert_eq!(load(arena, at), Ok(want), "{way:?}: thread {t}, step {step}, byte {at:#x}");
                                store(arena, at, step as u8).expect("store");
                                model[at] = Some(step as u8);
                                step += 1;
                            }
                            model
                        })
                    })
                    .collect();
                let models: Vec<_> = writers.into_iter().map(|w| w.join().expect("writer")).collect();
                stop.store(true, Ordering::Relaxed);
                let want: Vec<u8> = (0..PAGES * PAGE)
                    .map(|at| models[at % 3][at].unwrap_or_else(|| common::byte_of(3, at as u64)))
                    .collect();
                arena.unmap(0..PAGES * PAGE).expect("unmap");
                same("the store", &memory.content(), &want);
            });
        });
    }

    #[test]
    fn pages_are_mapped_by_their_fill() {
        each_way("one fault a window", |rt, way| {
            let memory = Memory::new(64 * PAGE);
            let object = way.object(rt, &memory, false);
            let arena = mapped(rt, &object, Prot::ReadWrite);
            same("all", &bytes(&arena, 0..64 * PAGE), &memory.content());
            let faults = rt.stats()["pgmajfault"];
            // Readahead may spare some.
            assert!(faults <= 64 / u64::from(way.window), "{way:?}: {faults}: a page of a window faulted by itself");
            object.populate(0..object.len()).expect("all are published");
            assert_eq!(object.evict(0..object.len()).expect("evict"), 64, "{way:?}: nothing was written");
            assert_eq!(memory.writes.load(Ordering::SeqCst), 0);
            same("again", &bytes(&arena, 0..64 * PAGE), &memory.content());
        });
    }

    #[test]
    fn what_was_written_to_a_read_only_object_stays_until_it_is_unmapped() {
        each_way("private", |rt, way| {
            const N: u64 = 40;
            let memory = Memory::new(N as usize * PAGE);
            let object = way.object(rt, &memory, false);
            let arena = mapped(rt, &object, Prot::ReadWrite);
            // Page 3 by a store that faults, page 7 by one that does not, page 9 by one that changes nothing.
            store(&arena, 3 * PAGE + 5, 0).expect("store");
            let seven = load(&arena, 7 * PAGE).expect("load");
            store(&arena, 7 * PAGE, !seven).expect("store");
            let nine = load(&arena, 9 * PAGE).expect("load");
            store(&arena, 9 * PAGE, nine).expect("store");
            object.populate(0..object.len()).expect("populate");
            assert_eq!(object.evict(0..object.len()).expect("evict"), N - 2, "{way:?}");
            assert!(object.is_cached(3 * PAGE as u64) && object.is_cached(7 * PAGE as u64));
            assert_eq!(load(&arena, 3 * PAGE + 5), Ok(0), "{way:?}");
            assert_eq!(load(&arena, 7 * PAGE), Ok(!seven), "{way:?}");
            store(&arena, 7 * PAGE + 1, 1).expect("a page that stays is open to stores");
            arena.unmap(0..N as usize * PAGE).expect("unmap");
            arena.map(0, &object, 0, N as usize * PAGE, Prot::ReadWrite, Sharing::Private).expect("map again");
            same("fresh", &bytes(&arena, 0..N as usize * PAGE), &memory.content());
            assert_eq!(memory.writes.load(Ordering::SeqCst), 0, "a read-only object was written");
        });
    }

    #[test]
    fn a_mapping_for_loads_refuses_stores_and_evicts() {
        each_way("loads", |rt, way| {
            let memory = Memory::new(32 * PAGE);
            let object = way.object(rt, &memory, true);
            let arena = mapped(rt, &object, Prot::Read);
            same("all", &bytes(&arena, 0..32 * PAGE), &memory.content());
            assert_eq!(store(&arena, 5, 1), Err(libc::SIGSEGV), "{way:?}");
            let r = object.write_at(0, b"x");
            assert!(matches!(r, Err(Error::Denied { .. })), "{r:?}");
            object.populate(0..object.len()).expect("all are published");
            assert_eq!(object.evict(0..object.len()).expect("evict"), 32, "{way:?}");
            assert_eq!(pages_in_arenas(rt), 0);
            same("again", &bytes(&arena, 0..32 * PAGE), &memory.content());
            object.set_len(10 * PAGE as u64 + 7).expect("set_len");
            assert_eq!(load(&arena, 10 * PAGE + 7), Ok(0), "{way:?}: the tail reads as zero");
            assert_eq!(load(&arena, 11 * PAGE), Err(libc::SIGBUS), "{way:?}: past the end");
        });
    }

    #[test]
    fn pinned_pages_stay() {
        each_way("pins", |rt, way| {
            let memory = Memory::new(16 * PAGE);
            let object = way.object(rt, &memory, true);
            let arena = mapped(rt, &object, Prot::ReadWrite);
            let pin = arena.pin(4 * PAGE..6 * PAGE, Access::Write).expect("pin");
            object.populate(0..object.len()).expect("populate");
            assert_eq!(object.evict(0..object.len()).expect("evict"), 14, "{way:?}");
            let r = arena.unmap(0..16 * PAGE);
            assert!(matches!(r, Err(Error::Pinned { .. })), "{r:?}");
            // SAFETY: pinned for writing, and no reference into it exists.
            unsafe { pin.as_ptr().write_volatile(99) };
            drop(pin);
            assert_eq!(object.evict(0..object.len()).expect("evict"), 2, "{way:?}");
            assert_eq!(memory.content()[4 * PAGE], 99, "{way:?}: written on its way out");
        });
    }

    #[test]
    fn what_the_store_refuses_stays_and_is_not_lost_silently() {
        each_way("refused writes", |rt, way| {
            let memory = Memory::new(16 * PAGE);
            let object = way.object(rt, &memory, true);
            let arena = mapped(rt, &object, Prot::ReadWrite);
            object.populate(0..object.len()).expect("populate");
            store(&arena, 8 * PAGE, 0).expect("store");
            memory.refuse.store(true, Ordering::SeqCst);
            assert_eq!(object.evict(0..object.len()).expect("evict"), 15, "{way:?}: only the changed page stays");
            assert_eq!(load(&arena, 8 * PAGE), Ok(0), "{way:?}");
            store(&arena, 8 * PAGE + 1, 0).expect("store");
            memory.refuse.store(false, Ordering::SeqCst);
            assert_eq!(object.evict(0..object.len()).expect("evict"), 1, "{way:?}");
            assert_eq!(memory.content()[8 * PAGE..8 * PAGE + 2], [0, 0], "{way:?}");
            store(&arena, 9 * PAGE, 0).expect("store");
            memory.refuse.store(true, Ordering::SeqCst);
            let r = arena.unmap(0..16 * PAGE);
            assert!(matches!(r, Err(Error::Fault { offset, .. }) if offset == 9 * PAGE as u64), "{way:?}: {r:?}");
            assert_eq!(load(&arena, 9 * PAGE), Err(libc::SIGSEGV), "{way:?}: it is unmapped all the same");
            assert_eq!(object.cached_pages(), 0);
        });
    }

    #[test]
    fn unmapping_during_a_flush_loses_nothing() {
        for fails in [false, true] {
            each_way("unmap during a flush", |rt, way| {
                let memory = Memory::new(16 * PAGE);
                let object = way.object(rt, &memory, true);
                let arena = mapped(rt, &object, Prot::ReadWrite);
                object.populate(0..object.len()).expect("populate");
                let mut model = memory.content();
                store(&arena, 3 * PAGE, 77).expect("store");
                memory.hold_flush.store(true, Ordering::SeqCst);
                memory.fail_flush.store(fails, Ordering::SeqCst);
                std::thread::scope(|s| {
                    let sync = s.spawn(|| object.sync(3 * PAGE as u64..4 * PAGE as u64));
                    common::until("the store flushes", || memory.flushing.load(Ordering::SeqCst) > 0);
                    for (page, value) in [(3, 78), (5, 79)] {
                        store(&arena, page * PAGE, value).expect("store");
                        model[page * PAGE] = value;
                    }
                    s.spawn(|| {
                        // Longer than anybody waits for a page that is merely pinned.
                        std::thread::sleep(Duration::from_millis(500));
                        memory.hold_flush.store(false, Ordering::SeqCst);
                    });
                    drop(arena);
                    memory.fail_flush.store(false, Ordering::SeqCst);
                    let _ = sync.join().expect("no panic");
                });
                same("the store", &memory.content(), &model);
                // Where the flush failed a second one may have, after the pages went: then they are named.
                assert!(fails || object.lost().is_empty(), "{way:?}");
                object.forget_lost(0..object.len());
                object.sync_all().expect("all of it is there");
            });
        }
    }

    #[test]
    fn what_the_store_refuses_at_the_end_is_lost_by_name() {
        each_way("lost at the end", |rt, way| {
            let memory = Memory::new(16 * PAGE);
            let object = way.object(rt, &memory, true);
            let arena = mapped(rt, &object, Prot::ReadWrite);
            object.populate(0..object.len()).expect("populate");
            for p in [3, 4, 9] {
                store(&arena, p * PAGE, 77).expect("store");
            }
            memory.refuse.store(true, Ordering::SeqCst);
            drop(arena);
            memory.refuse.store(false, Ordering::SeqCst);
            let bytes = |from: u64, to: u64| from * PAGE as u64..to * PAGE as u64;
            let want = [bytes(3, 5), bytes(9, 10)];
            assert_eq!(object.lost(), want, "{way:?}");
            let r = object.sync_all();
            assert!(matches!(&r, Err(Error::Lost { ranges, .. }) if *ranges == want), "{way:?}: {r:?}");
            object.sync(bytes(5, 9)).expect("the others are well");
            let arena = mapped(rt, &object, Prot::ReadWrite);
            store(&arena, 9 * PAGE, 78).expect("store");
            drop(arena);
            object.sync(bytes(9, 10)).expect("it is written again, by who was told");
            assert_eq!(object.lost(), [bytes(3, 5)], "{way:?}");
            object.forget_lost(bytes(0, 16));
            object.sync_all().expect("sync_all");
        });
    }

    #[test]
    fn what_is_stored_to_while_its_neighbours_are_read_is_kept() {
        for by_copy in [false, true] {
            let rt = common::runtime();
            if !rt.delivery().is_available(Delivery::InThread) {
                println!("skipped: {}", rt.delivery());
                return;
            }
            // A claim of two runs: the first is mapped while the second is read.
            let way = Way { by_copy, in_handler: false, window: 128 };
            let memory = Memory::new(128 * PAGE);
            let store_of = Box::new(MemoryStore(Arc::clone(&memory)));
            let builder = way.builder(&rt, 128 * PAGE).writable(true).readahead_pages(0);
            let object = builder.store(store_of).expect("object");
            let arena = mapped(&rt, &object, Prot::ReadWrite);
            memory.hold_reads.store(64, Ordering::SeqCst);
            std::thread::scope(|s| {
                // Perhaps it is unmapped before it gets its page.
                s.spawn(|| _ = load(&arena, 0));
                common::until("the second run is read", || memory.reading.load(Ordering::SeqCst) > 0);
                store(&arena, 5 * PAGE, 77).expect("it is mapped");
                assert!(!object.is_cached(5 * PAGE as u64), "and not published");
                s.spawn(|| {
                    std::thread::sleep(Duration::from_millis(100));
                    memory.hold_reads.store(0, Ordering::SeqCst);
                });
                arena.unmap(0..128 * PAGE).expect("unmap");
            });
            assert_eq!(memory.content()[5 * PAGE], 77, "by_copy: {by_copy}");
        }
    }

    #[test]
    fn the_end_moves() {
        each_way("set_len", |rt, way| {
            let memory = Memory::new(32 * PAGE);
            let object = way.object(rt, &memory, true);
            let arena = mapped(rt, &object, Prot::ReadWrite);
            object.populate(0..object.len()).expect("populate");
            store(&arena, 20 * PAGE, 0).expect("store");
            object.set_len(10 * PAGE as u64 + 100).expect("set_len");
            assert_eq!(memory.content()[20 * PAGE], common::byte_of(3, 20 * PAGE as u64), "void bytes were written");
            assert_eq!(load(&arena, 11 * PAGE), Err(libc::SIGBUS), "{way:?}");
            assert_eq!(load(&arena, 10 * PAGE + 100), Ok(0), "{way:?}: the tail");
            assert_eq!(pages_in_arenas(rt), 11, "{way:?}");
            object.set_len(32 * PAGE as u64).expect("set_len");
            assert_eq!(load(&arena, 20 * PAGE), Ok(common::byte_of(3, 20 * PAGE as u64)), "{way:?}");
        });
    }

    #[test]
    fn anonymous_memory_begins_as_zeros_and_stays() {
        each_way("anonymous", |rt, way| {
            let object = way.builder(rt, 64 * PAGE).anonymous().expect("anonymous");
            let arena = mapped(rt, &object, Prot::ReadWrite);
            same("zeros", &bytes(&arena, 0..64 * PAGE), &[0; 64 * PAGE]);
            for p in 0..64 {
                store(&arena, p * PAGE + p, p as u8).expect("store");
            }
            assert_eq!(object.evict(0..object.len()).expect("evict"), 0, "{way:?}: its bytes are nowhere else");
            assert!((0..64).all(|p| load(&arena, p * PAGE + p) == Ok(p as u8)), "{way:?}");
            arena.unmap(0..64 * PAGE).expect("unmap");
            // Recycled frames must not show what they held.
            let object = way.builder(rt, 64 * PAGE).anonymous().expect("anonymous");
            arena.map(0, &object, 0, 64 * PAGE, Prot::ReadWrite, Sharing::Private).expect("map");
            same("zeros again", &bytes(&arena, 0..64 * PAGE), &[0; 64 * PAGE]);
        });
    }

    struct Never;
    impl MinorDelegate for Never {
        fn minor_fault(&self, _fault: &MinorFault<'_>) -> MinorVerdict {
            MinorVerdict::Continue
        }
    }

    #[test]
    fn what_it_cannot_do_is_refused_with_a_type() {
        each_way("refusals", |rt, way| {
            let memory = Memory::new(2 * EXTENT);
            let object = way.object(rt, &memory, true);
            let denied = |r: Result<(), Error>, what: &str| {
                assert!(matches!(r, Err(Error::Denied { .. })), "{way:?}: {what}: {r:?}");
            };
            let (rw, private) = (Prot::ReadWrite, Sharing::Private);
            let a = arena(rt, Delivery::InThread, 4 * EXTENT);
            denied(object.read_at(0, &mut [0]).map(drop), "read_at, unmapped");
            denied(object.write_at(0, &[0]).map(drop), "write_at, unmapped");
            denied(object.populate(0..10), "populate, unmapped");
            denied(a.map(0, &object, 0, EXTENT, rw, Sharing::Shared), "shared");
            denied(a.map(0, &object, 0, EXTENT, Prot::None, private), "no access");
            for mode in [Delivery::Segv, Delivery::Monitor] {
                if rt.delivery().is_available(mode) {
                    denied(arena(rt, mode, EXTENT).map(0, &object, 0, EXTENT, rw, private), "delivery");
                }
            }
            a.map(0, &object, 0, 2 * EXTENT, rw, private).expect("map");
            denied(a.map(2 * EXTENT, &object, 0, EXTENT, rw, private), "twice");
            denied(arena(rt, Delivery::InThread, EXTENT).map(0, &object, 0, EXTENT, rw, private), "in two arenas");
            denied(a.protect(0..EXTENT, Prot::Read), "protect");
            denied(a.unmap(0..EXTENT), "half of it");
            denied(a.zap(0..EXTENT), "zap");
            denied(a.delegate_minor(0..EXTENT, Box::new(Never)), "delegate");
            a.fault_in(0..EXTENT, Access::Read).expect("fault_in");
            assert_eq!(a.promote(0..EXTENT).expect("promote"), 0, "native extents");
            same("still there", &bytes(&a, 0..PAGE), &memory.content()[..PAGE]);
            let r = way.builder(rt, PAGE).synchronous_writes(true).anonymous();
            assert!(matches!(r, Err(Error::Argument { .. })), "{r:?}");
            drop(a);
            let other = mapped(rt, &object, rw);
            assert_eq!(load(&other, 0), Ok(common::byte_of(3, 0)), "mapped again when the first mapping is gone");
        });
    }

    #[test]
    fn unmapping_waits_for_no_read() {
        each_way("unmap during a fill", |rt, way| {
            let knobs = Arc::new(Knobs::default());
            let store = Box::new(common::KnobStore(Arc::clone(&knobs)));
            let object = way.builder(rt, 16 * PAGE).store(store).expect("object");
            let a = mapped(rt, &object, Prot::ReadWrite);
            knobs.block.store(true, Ordering::SeqCst);
            std::thread::scope(|s| {
                let reader = s.spawn(|| object.populate(0..PAGE as u64));
                common::until("the store is asked", || knobs.blocked.load(Ordering::SeqCst) > 0);
                a.unmap(0..16 * PAGE).expect("unmap");
                knobs.block.store(false, Ordering::SeqCst);
                let r = reader.join().expect("no panic");
                assert!(r.is_err(), "{way:?}: the page has nowhere to be");
            });
            a.map(0, &object, 0, 16 * PAGE, Prot::ReadWrite, Sharing::Private).expect("map again");
            same("content", &bytes(&a, 0..16 * PAGE), &common::content(0, 0..16 * PAGE as u64));
        });
    }

    #[test]
    fn a_bad_page_fails_alone_and_heals() {
        each_way("bad page", |rt, way| {
            let knobs = Arc::new(Knobs::default());
            let store = Box::new(common::KnobStore(Arc::clone(&knobs)));
            let b = way.builder(rt, 16 * PAGE);
            let object = if way.in_handler { b.handler_store(store) } else { b.store(store) }.expect("object");
            let a = mapped(rt, &object, Prot::ReadWrite);
            knobs.fail(5, 1);
            assert_eq!(load(&a, 4 * PAGE), Ok(common::byte_of(0, 4 * PAGE as u64)), "{way:?}");
            assert_eq!(load(&a, 5 * PAGE), Err(libc::SIGBUS), "{way:?}");
            knobs.recover();
            same("healed", &bytes(&a, 0..16 * PAGE), &common::content(0, 0..16 * PAGE as u64));
            assert_eq!(pages_in_arenas(rt), 16);
        });
    }

    #[test]
    fn the_limit_counts_and_evictions_make_room() {
        each_way("limit", |_, way| {
            common::setup();
            let rt = Runtime::builder().cache_limit(64 * PAGE as u64).build().expect("runtime");
            let memory = Memory::new(256 * PAGE);
            let object = way.object(&rt, &memory, true);
            let a = mapped(&rt, &object, Prot::ReadWrite);
            let mut rng = Rng(4);
            let mut model = memory.content();
            for step in 0..3_000u32 {
                // What is charged, not what is published: a filler may be at the end of its window still.
                if rt.stats()["nr_cached_pages"] + u64::from(way.window) > 64 {
                    let from = (rng.below(256) * PAGE) as u64;
                    object.evict(from..from + 32 * PAGE as u64).expect("evict");
                    continue;
                }
                let at = rng.below(256 * PAGE);
                assert_eq!(load(&a, at), Ok(model[at]), "{way:?}: step {step}");
                store(&a, at, step as u8).expect("store");
                model[at] = step as u8;
                assert!(pages_in_arenas(&rt) <= 64, "{way:?}: above the limit");
            }
            drop(a);
            same("the store", &memory.content(), &model);
            assert_eq!(pages_in_arenas(&rt), 0);
        });
    }

    fn bounded(pages: usize) -> Runtime {
        common::setup();
        Runtime::builder().cache_limit((pages * PAGE) as u64).build().expect("runtime")
    }

    /// Several threads, each with bytes of its own in every page; returns what all of them wrote.
    fn scribble(arena: &Arena, pages: usize, first: &(dyn Fn(usize) -> u8 + Sync)) -> Vec<u8> {
        const THREADS: usize = 3;
        let models: Vec<Vec<Option<u8>>> = std::thread::scope(|s| {
            let threads: Vec<_> = (0..THREADS)
                .map(|t| {
                    s.spawn(move || {
                        let mut rng = Rng(31 + t as u64);
                        let mut model = vec![None; pages * PAGE];
                        for step in 0..6_000u32 {
                            let at = rng.below(pages * PAGE / THREADS) * THREADS + t;
                            let want = model[at].unwrap_or_else(|| first(at));
                            assert_eq!(load(arena, at), Ok(want), "thread {t}, step {step}, byte {at:#x}");
                            if rng.below(2) == 0 {
                                store(arena, at, step as u8).expect("store");
                                model[at] = Some(step as u8);
                            }
                        }
                        model
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().expect("thread")).collect()
        });
        (0..pages * PAGE).map(|at| models[at % THREADS][at].unwrap_or_else(|| first(at))).collect()
    }

    #[test]
    fn reclaim_loses_nothing() {
        each_way("reclaim", |_, way| {
            const PAGES: usize = 400;
            let rt = bounded(96);
            let memory = Memory::new(PAGES * PAGE);
            let object = way.object(&rt, &memory, true);
            let arena = mapped(&rt, &object, Prot::ReadWrite);
            let want = scribble(&arena, PAGES, &|at| common::byte_of(3, at as u64));
            let s = rt.stats();
            assert!(s["pgsteal"] > PAGES as u64, "{way:?}: {} pages were reclaimed", s["pgsteal"]);
            assert!(pages_in_arenas(&rt) <= 96, "{way:?}: above the limit");
            drop(arena);
            same("the store", &memory.content(), &want);
            assert_eq!(pages_in_arenas(&rt), 0);
            assert_eq!(rt.stats()["nr_cached_pages"], 0);
        });
    }

    #[test]
    fn a_mapping_for_loads_is_reclaimed() {
        each_way("reclaim of loads", |_, way| {
            const PAGES: usize = 400;
            let rt = bounded(96);
            let memory = Memory::new(PAGES * PAGE);
            let object = way.object(&rt, &memory, false);
            let arena = mapped(&rt, &object, Prot::Read);
            for lap in 0..3 {
                same(&format!("lap {lap}"), &bytes(&arena, 0..PAGES * PAGE), &memory.content());
                assert!(pages_in_arenas(&rt) <= 96, "{way:?}: above the limit");
            }
            assert!(memory.reads.load(Ordering::SeqCst) * way.window as usize >= 3 * (PAGES - 96), "{way:?}");
        });
    }

    #[test]
    fn changes_to_a_read_only_object_fill_the_cache_and_stay() {
        each_way("reclaim of private changes", |_, way| {
            const PAGES: usize = 400;
            let rt = bounded(96);
            let memory = Memory::new(PAGES * PAGE);
            let object = way.object(&rt, &memory, false);
            let arena = mapped(&rt, &object, Prot::ReadWrite);
            for p in 0..40 {
                let at = p * 10 * PAGE;
                store(&arena, at, !common::byte_of(3, at as u64)).expect("store");
            }
            for p in 0..PAGES {
                let (at, changed) = (p * PAGE, p % 10 == 0);
                let first = common::byte_of(3, at as u64);
                assert_eq!(load(&arena, at), Ok(if changed { !first } else { first }), "{way:?}: page {p}");
            }
            assert_eq!(memory.writes.load(Ordering::SeqCst), 0, "a read-only object was written");
        });
    }

    #[test]
    fn sync_writes_what_changed_and_leaves_it_where_it_is() {
        each_way("sync", |rt, way| {
            let memory = Memory::new(64 * PAGE);
            let object = way.object(rt, &memory, true);
            let arena = mapped(rt, &object, Prot::ReadWrite);
            let mut model = memory.content();
            same("all", &bytes(&arena, 0..64 * PAGE), &model);
            object.populate(0..object.len()).expect("all are published");
            for round in 0..3u8 {
                for p in [3, 4, 5, 40] {
                    let at = p * PAGE + usize::from(round);
                    store(&arena, at, !model[at]).expect("store");
                    model[at] = !model[at];
                }
                let n = object.write_at(50 * PAGE as u64, &[round; 10]).expect("write_at");
                model[50 * PAGE..50 * PAGE + n].fill(round);
                let before = memory.writes.load(Ordering::SeqCst);
                object.sync_all().expect("sync_all");
                same("the store", &memory.content(), &model);
                let writes = memory.writes.load(Ordering::SeqCst) - before;
                assert!((1..=5).contains(&writes), "{way:?}: {writes} writes");
                assert_eq!(object.cached_pages(), 64, "{way:?}: pages left");
            }
            let before = memory.writes.load(Ordering::SeqCst);
            object.sync_all().expect("sync_all");
            assert_eq!(memory.writes.load(Ordering::SeqCst), before, "{way:?}: nothing was changed");
            assert_eq!(object.evict(0..object.len()).expect("evict"), 64, "{way:?}");
            assert_eq!(memory.writes.load(Ordering::SeqCst), before, "{way:?}: what was synced was clean");
            memory.refuse.store(true, Ordering::SeqCst);
            store(&arena, 7, !model[7]).expect("store");
            assert!(matches!(object.sync_all(), Err(Error::Writeback { .. })), "{way:?}");
            memory.refuse.store(false, Ordering::SeqCst);
            object.sync_all().expect("again");
            assert_eq!(memory.content()[7], !model[7], "{way:?}: written by the second call");
            assert!(matches!(object.hold_dirty(0..1), Err(Error::Denied { .. })));
        });
    }

    #[test]
    fn sync_under_stores_misses_nothing_that_came_before_it() {
        each_way("sync under stores", |_, way| {
            const PAGES: usize = 200;
            let rt = bounded(96);
            let memory = Memory::new(PAGES * PAGE);
            let object = way.object(&rt, &memory, true);
            let arena = mapped(&rt, &object, Prot::ReadWrite);
            let stop = AtomicBool::new(false);
            std::thread::scope(|s| {
                let _stop = common::StopOnDrop(&stop);
                let (arena, stop) = (&arena, &stop);
                s.spawn(move || {
                    let mut rng = Rng(5);
                    while !stop.load(Ordering::Relaxed) {
                        store(arena, rng.below(PAGES) * PAGE + 1, rng.below(256) as u8).expect("store");
                    }
                });
                let mut rng = Rng(6);
                for round in 0..60u8 {
                    let at = rng.below(PAGES) * PAGE;
                    store(arena, at, round).expect("store");
                    object.sync_all().expect("sync_all");
                    assert_eq!(memory.content()[at], round, "{way:?}: round {round}, byte {at:#x}");
                }
            });
        });
    }

    #[test]
    fn invalidation_keeps_what_was_written_and_rereads_the_rest() {
        each_way("invalidate", |rt, way| {
            let memory = Memory::new(16 * PAGE);
            let object = way.object(rt, &memory, true);
            let arena = mapped(rt, &object, Prot::ReadWrite);
            object.populate(0..object.len()).expect("populate");
            store(&arena, 3 * PAGE, 77).expect("store");
            memory.bytes.iter().for_each(|b| b.store(9, Ordering::SeqCst));
            let done = object.invalidate(0..object.len()).expect("invalidate");
            assert_eq!((done.dropped, done.kept), (15, 1), "{way:?}");
            assert_eq!(memory.writes.load(Ordering::SeqCst), 0, "{way:?}");
            assert_eq!(load(&arena, 3 * PAGE), Ok(77), "{way:?}");
            assert_eq!(load(&arena, 4 * PAGE), Ok(9), "{way:?}");
        });
    }

    #[test]
    fn a_hole_is_not_written_over() {
        each_way("hole", |rt, way| {
            let memory = Memory::new(16 * PAGE);
            let object = way.object(rt, &memory, true);
            let arena = mapped(rt, &object, Prot::ReadWrite);
            let mut model = memory.content();
            store(&arena, 3 * PAGE, 77).expect("store");
            object.punch_hole(2 * PAGE as u64 + 5..6 * PAGE as u64).expect("punch_hole");
            model[2 * PAGE + 5..6 * PAGE].fill(0);
            same("the mapping", &bytes(&arena, 0..16 * PAGE), &model);
            drop(arena);
            same("the store", &memory.content(), &model);
        });
    }

    /// Locks the arena's pages in memory as they come; `false`, with the reason: this process may not.
    fn lock_in_memory(arena: &Arena) -> bool {
        // SAFETY: the arena's range: its pages stay where they are, and nothing is read.
        let r = unsafe { libc::mlock2(arena.as_ptr().cast(), arena.len(), libc::MLOCK_ONFAULT) };
        if r != 0 {
            println!("skipped: mlock2: {}", std::io::Error::last_os_error());
        }
        r == 0
    }

    /// Sees to it that pages that are dropped are gone, whatever `hide` has done to them before.
    fn what_is_dropped_is_gone(rt: &Runtime, way: Way, hide: &dyn Fn(&Arena) -> bool) {
        for prot in [Prot::ReadWrite, Prot::Read] {
            let memory = Memory::new(32 * PAGE);
            let object = way.object(rt, &memory, true);
            let arena = mapped(rt, &object, prot);
            let mut model = memory.content();
            same("before", &bytes(&arena, 0..32 * PAGE), &model);
            object.populate(0..object.len()).expect("all are published");
            if prot == Prot::ReadWrite {
                store(&arena, 3 * PAGE, 77).expect("store");
                store(&arena, 20 * PAGE, 77).expect("store");
            }
            if !hide(&arena) {
                return;
            }
            object.punch_hole(2 * PAGE as u64..6 * PAGE as u64).expect("punch_hole");
            model[2 * PAGE..6 * PAGE].fill(0);
            assert_eq!(load(&arena, 3 * PAGE), Ok(0), "{way:?}, {prot:?}: the hole reads as before");
            if prot == Prot::ReadWrite {
                // What is stored there is the hole's, and not forgotten with the old page.
                store(&arena, 4 * PAGE, 5).expect("store");
                model[4 * PAGE] = 5;
            }
            object.set_len(10 * PAGE as u64).expect("set_len");
            assert_eq!(load(&arena, 20 * PAGE), Err(libc::SIGBUS), "{way:?}, {prot:?}: past the end");
            object.set_len(32 * PAGE as u64).expect("set_len");
            assert_eq!(load(&arena, 20 * PAGE), Ok(common::byte_of(3, 20 * PAGE as u64)), "{way:?}, {prot:?}");
            object.populate(0..object.len()).expect("all are published");
            assert_eq!(pages_in_arenas(rt), 32, "{way:?}, {prot:?}: pages are counted as they are");
            if !hide(&arena) {
                return;
            }
            assert_eq!(object.evict(0..object.len()).expect("evict"), 32, "{way:?}, {prot:?}: they can leave");
            assert_eq!(pages_in_arenas(rt), 0, "{way:?}, {prot:?}");
            same("after", &bytes(&arena, 0..32 * PAGE), &model);
            drop(arena);
            same("the store", &memory.content(), &model);
        }
    }

    #[test]
    fn what_is_locked_in_memory_is_dropped_all_the_same() {
        each_way("locked", |rt, way| what_is_dropped_is_gone(rt, way, &lock_in_memory));
    }

    /// Has the kernel refuse this thread to drop pages, as one before Linux 5.18 does where they are locked in memory.
    fn refuse_drops() -> bool {
        const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
        const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
        const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
        /// `struct seccomp_data`: the number, and the low half of the third argument.
        const NR: u32 = 0;
        const ADVICE: u32 = 32;
        const DONTNEED_LOCKED: u32 = 24;
        let op = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
        let mut filter = [
            op(LOAD, 0, 0, NR),
            op(EQUAL, 0, 4, libc::SYS_madvise as u32),
            op(LOAD, 0, 0, ADVICE),
            op(EQUAL, 1, 0, libc::MADV_DONTNEED as u32),
            op(EQUAL, 0, 1, DONTNEED_LOCKED),
            op(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EINVAL as u32),
            op(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: no pointer; what this process may not do any more it does not do.
        let r = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        // SAFETY: the program lives until the call returns.
        let r = r | unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
        if r != 0 {
            println!("skipped: seccomp: {}", std::io::Error::last_os_error());
        }
        r == 0
    }

    #[test]
    fn a_page_that_cannot_be_dropped_stays_and_is_open_to_stores() {
        // Without the page's protection taken back its next store faults for ever.
        for way in WAYS {
            let out = common::child(
                "on::a_page_that_cannot_be_dropped_stays_and_is_open_to_stores",
                &format!("{way:?}"),
                || {
                    let rt = common::runtime();
                    if !rt.delivery().is_available(Delivery::InThread) {
                        println!("skipped: {}", rt.delivery());
                        return;
                    }
                    let memory = Memory::new(16 * PAGE);
                    let object = way.object(&rt, &memory, true);
                    let arena = mapped(&rt, &object, Prot::ReadWrite);
                    object.populate(0..object.len()).expect("populate");
                    store(&arena, 3 * PAGE, 77).expect("store");
                    if !lock_in_memory(&arena) || !refuse_drops() {
                        return;
                    }
                    assert_eq!(object.evict(0..object.len()).expect("evict"), 0);
                    assert_eq!(memory.content()[3 * PAGE], 77, "written before it was found to stay");
                    for p in 0..16 {
                        store(&arena, p * PAGE + 1, 5).expect("store");
                    }
                    assert_eq!(load(&arena, 3 * PAGE), Ok(77));
                    object.punch_hole(2 * PAGE as u64..4 * PAGE as u64).expect("punch_hole");
                    assert_eq!(load(&arena, 3 * PAGE), Ok(0), "zeros are written where nothing can be dropped");
                    store(&arena, 3 * PAGE, 78).expect("store");
                    arena.unmap(0..16 * PAGE).expect("unmap");
                    let mut model = common::content(3, 0..16 * PAGE as u64);
                    (0..16).for_each(|p| model[p * PAGE + 1] = 5);
                    model[2 * PAGE..4 * PAGE].fill(0);
                    model[3 * PAGE] = 78;
                    same("the store", &memory.content(), &model);
                },
            );
            common::ended(out, Ok(0));
        }
    }

    #[test]
    fn what_the_kernel_has_swapped_out_is_dropped_all_the_same() {
        let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
        if swaps.lines().count() < 2 {
            println!("swapped out skipped: this system has no swap");
            return;
        }
        each_way("swapped out", |rt, way| {
            what_is_dropped_is_gone(rt, way, &|arena| {
                // SAFETY: the arena's range: its pages leave memory, and keep their bytes.
                let r = unsafe { libc::madvise(arena.as_ptr().cast(), arena.len(), libc::MADV_PAGEOUT) };
                assert_eq!(r, 0, "madvise: {}", std::io::Error::last_os_error());
                // They stay in the kernel's swap cache until somebody needs the memory, and count as resident.
                let mut resident = [0u8; 32];
                for _ in 0..200 {
                    let out = resident.as_mut_ptr();
                    // SAFETY: writes one byte a page.
                    unsafe { libc::mincore(arena.as_ptr().cast(), resident.len() * PAGE, out) };
                    if resident.iter().all(|r| r & 1 == 0) {
                        return true;
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
                println!("skipped: the kernel keeps swapped pages in memory");
                false
            });
        });
    }

    #[test]
    fn anonymous_memory_goes_to_swap_and_comes_back() {
        const PAGES: usize = 400;
        for (by_copy, zswap) in [(false, 0), (true, 0), (false, 64 * PAGE as u64)] {
            common::setup();
            let dir = std::env::temp_dir();
            let b = Runtime::builder().cache_limit(96 * PAGE as u64).swap(dir, (2 * PAGES * PAGE) as u64);
            let rt = if zswap > 0 { b.zswap(zswap) } else { b }.build().expect("runtime");
            if !rt.delivery().is_available(Delivery::InThread) {
                println!("swap skipped: {}", rt.delivery());
                return;
            }
            let way = Way { by_copy, in_handler: true, window: 1 };
            let object = way.builder(&rt, PAGES * PAGE).anonymous().expect("object");
            let arena = mapped(&rt, &object, Prot::ReadWrite);
            let want = scribble(&arena, PAGES, &|_| 0);
            same("the mapping", &bytes(&arena, 0..PAGES * PAGE), &want);
            assert!(rt.stats()["pgsteal"] > PAGES as u64, "by_copy {by_copy}, zswap {zswap}: nothing left");
            arena.unmap(0..PAGES * PAGE).expect("unmap");
            assert_eq!(rt.stats()["nr_swap_slots_used"], 0, "what was unmapped is still in swap");
            arena.map(0, &object, 0, PAGES * PAGE, Prot::ReadWrite, Sharing::Private).expect("map again");
            assert!(bytes(&arena, 0..PAGES * PAGE).iter().all(|b| *b == 0), "unmapping drops its pages");
        }
    }
}
