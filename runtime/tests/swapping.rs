//! Anonymous memory that is larger than the cache: it goes to a swap file, and comes back as it was.
#![allow(clippy::cast_possible_truncation, reason = "64-bit offsets of small objects")]
#![allow(unsafe_code, reason = "stores to arenas by address; exchanges descriptors")]

mod common;

use common::{PAGE, arena, bytes, each_mode, map, setup};
use softfault::{Arena, Delivery, Error, Object, Prot, Runtime, RuntimeBuilder, Sharing};

const LIMIT: usize = 2 << 20;
/// Four times the cache.
const PAGES: usize = 4 * LIMIT / PAGE;

fn builder() -> RuntimeBuilder {
    setup();
    let builder = Runtime::builder().cache_limit(LIMIT as u64).report_signals(true);
    builder.swap(std::env::temp_dir(), 4 * (PAGES * PAGE) as u64)
}

fn fill(a: &Arena, page: usize, bytes: &[u8]) {
    let dst = a.as_ptr().wrapping_add(page * PAGE);
    // SAFETY: one page inside the arena; nobody else stores to it.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), dst, PAGE) };
}

/// Bytes that lz4 cannot make smaller.
fn noise(page: usize, round: u64) -> Vec<u8> {
    let mut x = (page as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ round.wrapping_mul(0x1234_5678_9abc_def1);
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()
    };
    (0..PAGE / 8).flat_map(|_| next()).collect()
}

/// Bytes that it can.
fn text(page: usize, round: u64) -> Vec<u8> {
    format!("page {page} in round {round}. ").bytes().cycle().take(PAGE).collect()
}

fn memory(rt: &Runtime, mode: Delivery) -> (Object, Arena) {
    let object = rt.anonymous((PAGES * PAGE) as u64).expect("anonymous");
    let a = arena(rt, mode, PAGES * PAGE);
    map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
    (object, a)
}

fn check(what: &str, a: &Arena, page: usize, want: &[u8]) {
    common::same(&format!("{what}: page {page}"), &bytes(a, page * PAGE..(page + 1) * PAGE), want);
}

#[test]
fn four_times_the_cache_comes_back_identical() {
    each_mode("swap", |_, mode| {
        for zswap in [0, 1 << 20] {
            let builder = if zswap > 0 { builder().zswap(zswap) } else { builder() };
            let rt = builder.build().expect("runtime");
            let (object, a) = memory(&rt, mode);
            let what = format!("{mode:?}, zswap {zswap}");
            for round in 0..2 {
                for p in 0..PAGES {
                    fill(&a, p, &if p % 2 == 0 { noise(p, round) } else { text(p, round) });
                }
                for p in (0..PAGES).rev() {
                    check(&what, &a, p, &if p % 2 == 0 { noise(p, round) } else { text(p, round) });
                }
            }
            let stats = rt.stats();
            assert!(stats["nr_cached_pages"] <= (LIMIT / PAGE) as u64, "{stats}");
            assert!(stats["pswpin"] > 0 && stats["nr_swap_slots_used"] > 0, "{what}: {stats}");
            assert!(zswap == 0 || stats["zswap_stored_pages"] > 0, "{what}: {stats}");
            drop((a, object));
            assert_eq!(rt.stats()["nr_swap_slots_used"], 0, "{what}: slots are given back");
        }
    });
}

#[test]
fn pages_of_zeros_cost_no_io() {
    each_mode("zeros", |_, mode| {
        let rt = builder().build().expect("runtime");
        let (_object, a) = memory(&rt, mode);
        let zeros = vec![0; PAGE];
        for round in 0..2 {
            (0..PAGES).for_each(|p| fill(&a, p, &zeros));
            (0..PAGES).for_each(|p| check(&format!("{mode:?} {round}"), &a, p, &zeros));
        }
        let stats = rt.stats();
        assert!(stats["swpout_zero"] > 0 && stats["pgsteal"] > 0, "{stats}");
        assert_eq!((stats["pswpin"], stats["nr_swap_slots_used"]), (0, 0), "{stats}");
    });
}

#[test]
fn what_lz4_makes_small_costs_no_io() {
    each_mode("zswap", |_, mode| {
        let rt = builder().zswap((PAGES * PAGE) as u64).build().expect("runtime");
        let (_object, a) = memory(&rt, mode);
        (0..PAGES).for_each(|p| fill(&a, p, &text(p, 1)));
        (0..PAGES).for_each(|p| check(&format!("{mode:?}"), &a, p, &text(p, 1)));
        let stats = rt.stats();
        assert!(stats["zswap_stored_pages"] > 0, "{stats}");
        assert_eq!((stats["pswpin"], stats["nr_swap_slots_used"]), (0, 0), "{stats}");
    });
}

#[test]
fn threads_and_private_clones_of_swapped_memory() {
    each_mode("swap_threads", |_, mode| {
        let rt = builder().build().expect("runtime");
        let (object, a) = memory(&rt, mode);
        std::thread::scope(|s| {
            for t in 0..4usize {
                let a = &a;
                s.spawn(move || {
                    for round in 0..2u64 {
                        for p in (t..PAGES).step_by(4) {
                            fill(a, p, &noise(p, round));
                        }
                        for p in (t..PAGES).step_by(4) {
                            check(&format!("{mode:?} {round}"), a, p, &noise(p, round));
                        }
                    }
                });
            }
        });
        let c = arena(&rt, mode, PAGES * PAGE);
        map(&c, 0, &object, Prot::ReadWrite, Sharing::Private);
        for p in (0..PAGES).step_by(7) {
            fill(&c, p, &text(p, 9));
        }
        for p in 0..PAGES {
            let own = p % 7 == 0;
            check(&format!("{mode:?}, a clone"), &c, p, &if own { text(p, 9) } else { noise(p, 1) });
            check(&format!("{mode:?}, the memory"), &a, p, &noise(p, 1));
        }
    });
}

#[test]
fn a_full_swap_file_is_out_of_memory_and_loses_nothing() {
    // One way is enough: being out of memory takes seconds.
    let mode = Delivery::Auto;
    setup();
    // Room for the cache and a half of it more.
    let swap = (LIMIT / 2) as u64;
    let rt = Runtime::builder().cache_limit(LIMIT as u64).swap(std::env::temp_dir(), swap).build().expect("runtime");
    let (object, a) = memory(&rt, mode);
    let mut there = 0;
    for p in 0..PAGES {
        if common::store(&a, p * PAGE, 1).is_err() {
            break;
        }
        there = p + 1;
        if object.write_at((p * PAGE) as u64, &noise(p, 3)).is_err() {
            break;
        }
    }
    assert!((LIMIT / PAGE..PAGES).contains(&there), "{mode:?}: {there} pages fit");
    // To read what went out something has to go, or there must be more room. The last page may be half written.
    rt.set_cache_limit(2 * LIMIT as u64);
    (0..there - 1).for_each(|p| {
        let mut got = vec![0; PAGE];
        object.read_at((p * PAGE) as u64, &mut got).expect("read_at");
        common::same(&format!("{mode:?}: page {p}"), &got, &noise(p, 3));
    });
}

/// A swap file whose descriptors can be exchanged for ones that fail.
struct FailingFile {
    path: std::path::PathBuf,
    /// The runtime's, and what they were.
    fds: Vec<(i32, std::os::fd::OwnedFd)>,
}

impl FailingFile {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("softfault-swap-that-fails-{}", std::process::id()));
        Self { path, fds: Vec::new() }
    }
    fn builder(&self) -> RuntimeBuilder {
        setup();
        Runtime::builder().cache_limit(LIMIT as u64).swap(&self.path, 4 * (PAGES * PAGE) as u64)
    }
    /// Has reads, or writes, fail from here on.
    fn fail(&mut self, reads: bool) {
        use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
        let other = std::fs::File::options().read(!reads).write(reads).open(&self.path).expect("open");
        for entry in std::fs::read_dir("/proc/self/fd").expect("fds") {
            let entry = entry.expect("an entry");
            if std::fs::read_link(entry.path()).is_ok_and(|to| to == self.path) {
                let fd: i32 = entry.file_name().to_str().and_then(|n| n.parse().ok()).expect("a number");
                if fd == other.as_raw_fd() {
                    continue;
                }
                // SAFETY: duplicates a descriptor that the runtime keeps open.
                let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) };
                // SAFETY: the descriptor made above, which nobody else has.
                let kept = unsafe { OwnedFd::from_raw_fd(copy) };
                // SAFETY: the number goes on naming the same file, opened otherwise.
                assert_eq!(unsafe { libc::dup2(other.as_raw_fd(), fd) }, fd);
                self.fds.push((fd, kept));
            }
        }
        assert!(!self.fds.is_empty(), "the runtime has no descriptor of its swap file");
    }
    fn recover(&mut self) {
        use std::os::fd::AsRawFd;
        for (fd, kept) in self.fds.drain(..) {
            // SAFETY: as in fail().
            assert_eq!(unsafe { libc::dup2(kept.as_raw_fd(), fd) }, fd);
        }
    }
}

impl Drop for FailingFile {
    fn drop(&mut self) {
        self.recover();
        let _ = std::fs::remove_file(&self.path);
    }
}

#[test]
fn a_swap_file_that_cannot_be_read_is_told_of_and_loses_nothing() {
    let mut file = FailingFile::new();
    for mode in common::MODES {
        let rt = file.builder().build().expect("runtime");
        if !rt.delivery().is_available(mode) {
            println!("skipped: {}", rt.delivery());
            continue;
        }
        let (object, a) = memory(&rt, mode);
        (0..PAGES).for_each(|p| fill(&a, p, &noise(p, 5)));
        file.fail(true);
        let (mut there, mut gone) = (0, 0);
        for p in (0..PAGES).step_by(5) {
            match common::load(&a, p * PAGE + 8) {
                Ok(byte) => {
                    assert_eq!(byte, noise(p, 5)[8], "{mode:?}: page {p}");
                    there += 1;
                }
                Err(signo) => {
                    assert_eq!(signo, libc::SIGBUS, "{mode:?}: page {p}");
                    gone += 1;
                }
            }
            let mut got = vec![0; PAGE];
            match object.read_at((p * PAGE) as u64, &mut got) {
                Ok(n) => common::same(&format!("{mode:?}: page {p}"), &got[..n], &noise(p, 5)),
                Err(e) => assert!(matches!(e, Error::Fault { .. }), "{mode:?}: page {p}: {e}"),
            }
        }
        assert!(there > 0 && gone > PAGES / 10, "{mode:?}: {there} pages were there, {gone} were not");
        file.recover();
        (0..PAGES).for_each(|p| check(&format!("{mode:?}, afterwards"), &a, p, &noise(p, 5)));
    }
}

/// Pages that cannot be written stay. The others come and go as before, and all do once the file is well, however often it failed.
#[test]
fn a_swap_file_that_cannot_be_written_keeps_what_was_stored_and_nothing_else() {
    let mut file = FailingFile::new();
    file.path.set_extension("written");
    // By protection whole granules count as written.
    for mode in [Delivery::InThread, Delivery::Monitor] {
        let rt = file.builder().build().expect("runtime");
        if !rt.delivery().is_available(mode) {
            println!("skipped: {}", rt.delivery());
            continue;
        }
        let (_object, a) = memory(&rt, mode);
        let is_new = |p: usize| p.is_multiple_of(16);
        (0..PAGES).for_each(|p| fill(&a, p, &noise(p, 6)));
        // Everything that is cached is in the file, too.
        (0..PAGES).for_each(|p| check(&format!("{mode:?}, before"), &a, p, &noise(p, 6)));
        file.fail(false);
        (0..PAGES).filter(|p| is_new(*p)).for_each(|p| fill(&a, p, &noise(p, 7)));
        for round in 0..2 {
            let want = |p: usize| noise(p, if is_new(p) { 7 } else { 6 });
            (0..PAGES).for_each(|p| check(&format!("{mode:?}, round {round}"), &a, p, &want(p)));
            file.recover();
        }
        assert!(rt.stats()["writeback_errors"] >= 16, "{mode:?}: it failed often\n{}", rt.stats());
        (0..PAGES).for_each(|p| fill(&a, p, &noise(p, 8)));
        (0..PAGES).for_each(|p| check(&format!("{mode:?}, afterwards"), &a, p, &noise(p, 8)));
    }
}
