//! A process whose memory is locked, limited or counted: the runtime takes what it uses, leaves the rest to the program, and
//! names the limit where there is not enough.
#![allow(unsafe_code, reason = "mlockall, setrlimit and mmap")]
#![allow(clippy::cast_possible_truncation, reason = "sizes; 64-bit only")]

mod common;

use common::{EXTENT, MODES, PAGE, TempFile, arena, bytes, child, ended, limit, map, same, store};
use softfault::{Arena, Delivery, Error, Object, PageMut, PageRef, Prot, Runtime, Sharing, Store, StoreError};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// A number of `/proc/self/status`, in bytes.
fn status(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("/proc");
    let line = text.lines().find_map(|l| l.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    line.unwrap_or_else(|| panic!("no {name}")) << 10
}

/// Ends this process where it is about to take the machine's memory: a regression is to fail, not to kill others.
fn watch_memory() {
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    std::thread::spawn(|| {
        loop {
            if status("VmRSS:") > 1024 * MIB {
                eprintln!("more than 1 GiB is resident");
                // SAFETY: ends the process.
                unsafe { libc::_exit(42) };
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    });
}

fn mlockall(flags: i32) -> std::io::Result<()> {
    // SAFETY: changes no byte.
    if unsafe { libc::mlockall(flags) } == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Returns whether what the tests lock may be locked; says so if not.
fn may_lock() -> bool {
    // SAFETY: takes nothing.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        println!("skipped: locking more than RLIMIT_MEMLOCK needs CAP_IPC_LOCK");
    }
    root
}

struct Used {
    _object: Object,
    arena: Arena,
}

/// An object of 1 MiB, a file, each in an arena, and a byte of each page.
fn used(rt: &Runtime, mode: Delivery, file: &TempFile) -> [Used; 2] {
    let memory = rt.anonymous(MIB).expect("memory");
    let file = rt.open_file(file.path()).expect("the file");
    [(memory, Prot::ReadWrite), (file, Prot::Read)].map(|(object, prot)| {
        let arena = arena(rt, mode, EXTENT);
        map(&arena, 0, &object, prot, Sharing::Shared);
        Used { _object: object, arena }
    })
}

fn touch(used: &[Used; 2], file: &TempFile) {
    let [memory, of_file] = used;
    for p in 0..256 {
        assert_eq!(store(&memory.arena, p * PAGE, p as u8), Ok(()));
    }
    assert!((0..256).all(|p| common::load(&memory.arena, p * PAGE) == Ok(p as u8)));
    same("the file", &bytes(&of_file.arena, 0..file.data.len()), &file.data);
}

/// The modes that can be had here: asked in a process of its own, so that the child's runtime is its first.
fn modes() -> Vec<Delivery> {
    if std::env::var_os("SOFTFAULT_TEST_CHILD").is_some() {
        return MODES.to_vec();
    }
    let rt = common::runtime();
    MODES.into_iter().filter(|m| rt.delivery().is_available(*m)).collect()
}

/// More than this a runtime, two small objects and their arenas do not make resident: most of it are the stacks of its threads,
/// which the C library maps.
const RESIDENT: u64 = 96 * MIB;

#[test]
fn what_is_locked_beforehand_is_what_is_used() {
    if !may_lock() {
        return;
    }
    for (mode, flags, key) in modes().into_iter().flat_map(|m| {
        let onfault = libc::MCL_FUTURE | libc::MCL_ONFAULT;
        [(m, libc::MCL_CURRENT | libc::MCL_FUTURE, "future"), (m, onfault, "onfault")]
    }) {
        let run = child("what_is_locked_beforehand_is_what_is_used", &format!("{mode:?}-{key}"), || {
            common::setup();
            watch_memory();
            let file = TempFile::new(MIB as usize);
            mlockall(flags).expect("mlockall");
            let before = status("VmRSS:");
            let rt = Runtime::builder().cache_limit(64 * MIB).build().expect("a runtime");
            let used = used(&rt, mode, &file);
            touch(&used, &file);
            let grown = status("VmRSS:").saturating_sub(before);
            println!("{mode:?}, {key}: {} MiB", grown / MIB);
            assert!(grown < RESIDENT, "{mode:?}: {} MiB became resident", grown / MIB);
        });
        println!("{}", ended(run, Ok(0)));
    }
}

#[test]
fn what_is_locked_afterwards_is_what_is_used() {
    if !may_lock() {
        return;
    }
    for mode in modes() {
        let run = child("what_is_locked_afterwards_is_what_is_used", &format!("{mode:?}"), || {
            common::setup();
            watch_memory();
            let file = TempFile::new(MIB as usize);
            let rt = Runtime::builder().cache_limit(64 * MIB).build().expect("a runtime");
            // What was large and is gone is closed again.
            drop(rt.anonymous(8 << 30).expect("address space"));
            let before = status("VmRSS:");
            let first = used(&rt, mode, &file);
            mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE).expect("mlockall");
            touch(&first, &file);
            let second = used(&rt, mode, &file);
            touch(&second, &file);
            rt.set_cache_limit(128 * MIB);
            let grown = status("VmRSS:").saturating_sub(before);
            println!("{mode:?}: {} MiB", grown / MIB);
            assert!(grown < RESIDENT, "{mode:?}: {} MiB became resident", grown / MIB);
        });
        println!("{}", ended(run, Ok(0)));
    }
}

/// An object is long, and nothing of it is used: locking what is there makes all of it resident, whatever the cache's limit.
/// Pages that come in use and leave the cache are given back, one by one; those that never do stay.
#[test]
fn what_is_locked_afterwards_is_resident_past_the_limit() {
    const LEN: usize = 16 * MIB as usize;
    const LIMIT: u64 = 2 * MIB;
    if !may_lock() {
        return;
    }
    for mode in modes() {
        let run = child("what_is_locked_afterwards_is_resident_past_the_limit", &format!("{mode:?}"), || {
            common::setup();
            watch_memory();
            let file = TempFile::new(LEN);
            let rt = Runtime::builder().cache_limit(LIMIT).build().expect("a runtime");
            let object = rt.open_file(file.path()).expect("the file");
            let before = status("RssShmem:");
            mlockall(libc::MCL_CURRENT).expect("mlockall");
            let grown = status("RssShmem:") - before;
            assert!(grown >= LEN as u64, "{mode:?}: {grown} bytes of {LEN} became resident");
            assert!(grown < LEN as u64 + MIB, "{mode:?}: {grown} bytes became resident for {LEN}");
            assert_eq!(object.cached_pages(), 0, "{mode:?}: what the kernel made resident is not cached");
            // A quarter is read: its pages are cached, leave by the limit, and are the kernel's again.
            let arena = arena(&rt, mode, LEN);
            map(&arena, 0, &object, Prot::Read, Sharing::Shared);
            same("the file", &bytes(&arena, 0..LEN / 4), &file.data[..LEN / 4]);
            common::evict_whole(&object);
            let left = status("RssShmem:").saturating_sub(before);
            println!("{mode:?}: {} KiB, then {} KiB", grown >> 10, left >> 10);
            assert!(
                left < LEN as u64 / 4 * 3 + MIB,
                "{mode:?}: {left} bytes are left after a quarter has left the cache"
            );
            assert!(left + MIB > LEN as u64 / 4 * 3, "{mode:?}: {left} bytes are left: what is not in use went, too");
        });
        println!("{}", ended(run, Ok(0)));
    }
}

/// How many bytes the program can still map.
fn space_left() -> u64 {
    let (mut lo, mut hi) = (0u64, 1 << 46);
    while hi - lo > MIB {
        let len = lo.midpoint(hi) as usize;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a fresh mapping.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            hi = len as u64;
        } else {
            // SAFETY: mapped above.
            unsafe { libc::munmap(at, len) };
            lo = len as u64;
        }
    }
    lo
}

#[test]
fn three_quarters_of_the_address_space_are_the_programs() {
    for mib in [600u64, 1500, 4000, 20_000] {
        let run = child("three_quarters_of_the_address_space_are_the_programs", &mib.to_string(), || {
            common::setup();
            let file = TempFile::new(MIB as usize);
            // The heaps of malloc, 64 MiB of address space for each of some threads, are not ours to count: one is for all.
            // SAFETY: sets a number of the C library's.
            assert_eq!(unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) }, 1);
            limit(libc::RLIMIT_AS, status("VmSize:") + mib * MIB);
            let before = space_left();
            let rt = Runtime::builder().cache_limit(8 * MIB).build().expect("a runtime");
            let used = used(&rt, Delivery::Segv, &file);
            touch(&used, &file);
            let left = space_left();
            println!("{mib} MiB: {} of {} are left", left / MIB, before / MIB);
            // And 32 MiB for the stacks of threads and the buffers, however little there is.
            assert!(left + 48 * MIB >= before / 4 * 3, "{} of {} MiB are left", left / MIB, before / MIB);
        });
        println!("{}", ended(run, Ok(0)));
    }
}

/// One line of `/proc/self/smaps`, and what it says.
struct Mapping {
    range: String,
    name: String,
    len: u64,
    flags: Vec<String>,
}

fn mappings() -> Vec<Mapping> {
    let text = std::fs::read_to_string("/proc/self/smaps").expect("/proc");
    let mut found: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or("");
        if let Some((start, end)) = first.split_once('-')
            && let (Ok(start), Ok(end)) = (u64::from_str_radix(start, 16), u64::from_str_radix(end, 16))
        {
            let name = words.nth(4).unwrap_or("").to_owned();
            found.push(Mapping { range: first.to_owned(), name, len: end - start, flags: Vec::new() });
        } else if first == "VmFlags:"
            && let Some(last) = found.last_mut()
        {
            last.flags = words.map(str::to_owned).collect();
        }
    }
    found
}

impl Mapping {
    fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|f| f == flag)
    }
}

/// A runtime with objects of several kinds, to look at its mappings. Without zswap: its memory is asked for, and malloc's.
fn with_everything(look: impl FnOnce()) {
    let file = TempFile::new(MIB as usize);
    let builder = Runtime::builder().cache_limit(64 * MIB).swap(std::env::temp_dir(), 64 * MIB);
    let rt = builder.build().expect("a runtime");
    let used = used(&rt, Delivery::Segv, &file);
    touch(&used, &file);
    let (own, _) = common::knob_object(&rt, MIB, false);
    own.populate(0..MIB).expect("populate");
    look();
}

/// The stacks of threads, and malloc's.
const LIBC_BYTES: u64 = 48 * MIB;

/// What `vm.overcommit_memory=2` charges is what is private and writable, `MAP_NORESERVE` or not.
#[test]
fn what_may_be_committed_is_not_taken_by_tables() {
    let run = child("what_may_be_committed_is_not_taken_by_tables", "it", || {
        common::setup();
        let charged = || -> u64 {
            let is_charged = |m: &&Mapping| m.has("wr") && !m.has("sh");
            mappings().iter().filter(is_charged).map(|m| m.len).sum()
        };
        let before = charged();
        with_everything(|| {
            let grown = charged().saturating_sub(before);
            println!("{} MiB", grown / MIB);
            assert!(grown < LIBC_BYTES, "{} MiB would be charged", grown / MIB);
        });
    });
    println!("{}", ended(run, Ok(0)));
}

#[test]
fn data_is_limited_and_the_runtime_gets_on() {
    let run = child("data_is_limited_and_the_runtime_gets_on", "it", || {
        common::setup();
        limit(libc::RLIMIT_DATA, status("VmData:") + 64 * MIB);
        with_everything(|| {});
    });
    ended(run, Ok(0));
}

#[test]
fn core_dumps_have_none_of_the_tables() {
    let run = child("core_dumps_have_none_of_the_tables", "it", || {
        common::setup();
        let before: Vec<String> = mappings().into_iter().map(|m| m.range).collect();
        with_everything(|| {
            let new = mappings().into_iter().filter(|m| !before.contains(&m.range));
            let dumped: Vec<_> = new.filter(|m| (m.has("rd") || m.has("wr")) && !m.has("dd")).collect();
            for m in &dumped {
                println!("{} {} KiB {}", m.range, m.len >> 10, m.name);
                assert!(!m.name.contains("memfd"), "the cache is in core dumps");
                // A thread's stack has 2 MiB and a bit; a heap of malloc as much as it has used.
                assert!(m.len <= 3 * MIB, "{} has {} KiB, and is in core dumps", m.range, m.len >> 10);
            }
            let bytes: u64 = dumped.iter().map(|m| m.len).sum();
            assert!(bytes < LIBC_BYTES, "{} MiB would be dumped", bytes / MIB);
        });
    });
    println!("{}", ended(run, Ok(0)));
}

/// A user who may lock little, in a program that locks whatever it maps: the limit and what it must be are said, and with that it
/// works.
#[test]
fn an_error_names_the_limit_of_locked_memory_and_what_is_needed() {
    let run = child("an_error_names_the_limit_of_locked_memory_and_what_is_needed", "it", || {
        common::setup();
        // SAFETY: takes nothing.
        if unsafe { libc::geteuid() } == 0 {
            // SAFETY: takes no pointer.
            assert_eq!(unsafe { libc::setuid(65534) }, 0);
        }
        let file = TempFile::new(MIB as usize);
        limit(libc::RLIMIT_MEMLOCK, 8 * MIB);
        mlockall(libc::MCL_FUTURE).expect("mlockall");
        let builder = Runtime::builder().cache_limit(16 * MIB);
        let refused = builder.clone().build().expect_err("8 MiB are too little");
        println!("{refused}");
        let Error::Limit { what, limit: is, needed, .. } = refused else { panic!("{refused}") };
        assert!(what.starts_with("RLIMIT_MEMLOCK") && is == 8 * MIB && needed > is, "{refused}");
        limit(libc::RLIMIT_MEMLOCK, needed);
        let now = common::rlimit(libc::RLIMIT_MEMLOCK);
        if now < needed {
            return println!("the rest skipped: the hard limit is {now}");
        }
        let rt = builder.build().expect("as much as was said to be needed");
        let used = used(&rt, Delivery::Segv, &file);
        touch(&used, &file);
        let much = rt.arena(64 << 30).delivery(Delivery::Segv).build().expect_err("64 GiB");
        assert!(matches!(much, Error::Limit { needed, .. } if needed >= 64 << 30), "{much}");
    });
    println!("{}", ended(run, Ok(0)));
}

#[test]
fn an_error_names_the_limit_of_address_space_and_what_is_needed() {
    let run = child("an_error_names_the_limit_of_address_space_and_what_is_needed", "it", || {
        common::setup();
        let file = TempFile::new(MIB as usize);
        let is = status("VmSize:") + 16 * MIB;
        limit(libc::RLIMIT_AS, is);
        let builder = Runtime::builder().cache_limit(16 * MIB);
        let refused = builder.clone().build().expect_err("16 MiB are too little");
        println!("{refused}");
        let Error::Limit { what, limit: said, needed, .. } = refused else { panic!("{refused}") };
        assert!(what == "RLIMIT_AS" && said == is && needed > is, "{refused}");
        limit(libc::RLIMIT_AS, needed);
        let rt = builder.build().expect("as much as was said to be needed");
        let used = used(&rt, Delivery::Segv, &file);
        touch(&used, &file);
    });
    println!("{}", ended(run, Ok(0)));
}

/// Puts this process into a memory group of its own with a limit; `Err`: why there is none to be had.
fn join_group(limit_bytes: u64) -> Result<PathBuf, String> {
    let (v1, v2) = (Path::new("/sys/fs/cgroup/memory"), Path::new("/sys/fs/cgroup"));
    let (root, file) = if v1.is_dir() { (v1, "memory.limit_in_bytes") } else { (v2, "memory.max") };
    let dir = root.join(format!("softfault-limits-{}", std::process::id()));
    std::fs::create_dir(&dir).map_err(|e| format!("a memory group: {e}"))?;
    let write = |name: &str, text: String| std::fs::write(dir.join(name), text).map_err(|e| format!("{name}: {e}"));
    let joined =
        write(file, limit_bytes.to_string()).and_then(|()| write("cgroup.procs", std::process::id().to_string()));
    if joined.is_err() {
        let _ = std::fs::remove_dir(&dir);
    }
    joined.map(|()| dir)
}

/// Runtimes that set no limit divide one share, half of what the process may have; those that set one have it.
#[test]
fn runtimes_without_a_limit_share_one() {
    let run = child("runtimes_without_a_limit_share_one", "it", || {
        common::setup();
        let limit_of = |rt: &Runtime| rt.stats().get("nr_cache_limit_pages").expect("a counter");
        let group = join_group(256 * MIB);
        let first = Runtime::new().expect("a runtime");
        let share = limit_of(&first);
        match group {
            Ok(dir) => {
                println!("group: {}", dir.display());
                assert_eq!(share, 128 * MIB / PAGE as u64, "half of what the group may have");
            }
            Err(why) => println!("half of a group's limit: skipped: {why}"),
        }
        let own = Runtime::builder().cache_limit(4 * MIB).build().expect("a runtime");
        assert_eq!(
            (limit_of(&first), limit_of(&own)),
            (share, 1024),
            "a limit of its own takes nothing from the share"
        );
        let (second, third) = (Runtime::new().expect("a runtime"), Runtime::new().expect("a runtime"));
        let all = [&first, &second, &third].map(limit_of);
        assert!(all.iter().all(|l| l.abs_diff(share / 3) <= 1), "{all:?} of {share}");
        drop(third);
        assert!(limit_of(&first).abs_diff(share / 2) <= 1, "what ends gives its part to the others");
        second.set_cache_limit(4 * MIB);
        assert_eq!((limit_of(&first), limit_of(&second)), (share, 1024), "and so does who sets a limit");
        own.set_cache_limit(8 * MIB);
        assert_eq!((limit_of(&first), limit_of(&own)), (share, 2048));
    });
    // A group goes when nobody is in it, which may be a moment after the process has ended.
    let dir_in = |out: &Output| {
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        said.lines().find_map(|line| line.strip_prefix("group: ").map(str::to_owned))
    };
    if let Some(dir) = run.as_ref().and_then(dir_in) {
        common::until("the group is removed", || std::fs::remove_dir(&dir).is_ok());
    }
    print!("{}", ended(run, Ok(0)));
}

/// A store of the program's, over a file.
#[derive(Debug)]
struct Own(std::fs::File);

impl Store for Own {
    fn read(&self, pos_bytes: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        page.fill_from(self.0.as_raw_fd(), pos_bytes)
    }
    fn write(&self, pos_bytes: u64, page: &PageRef<'_>) -> Result<(), StoreError> {
        page.write_to(self.0.as_raw_fd(), pos_bytes)
    }
}

/// A limit on the size of files that is lowered while everything runs: what the cache does in its own files does not count, and
/// what is written to the program's is an error. The signal, which ends the process, never comes.
#[test]
fn a_lower_limit_on_files_is_an_error_and_no_signal() {
    let run = child("a_lower_limit_on_files_is_an_error_and_no_signal", "it", || {
        common::setup();
        let hour = Duration::from_secs(3600);
        let builder = Runtime::builder().cache_limit(64 * MIB).swap(std::env::temp_dir(), 64 * MIB);
        let rt = builder.writeback(hour, hour).build().expect("a runtime");
        let files = [0; 3].map(|_| TempFile::new(2 << 20));
        let buffered = rt.open_file_rw(files[0].path()).expect("the file");
        let direct = rt.file_options().writable(true).direct(true).open(files[1].path()).expect("the file");
        let memory = rt.anonymous(2 * MIB).expect("memory");
        let own = std::fs::File::options().read(true).write(true).open(files[2].path()).expect("the file");
        let own = rt.object(2 * MIB).writable(true).store(Box::new(Own(own))).expect("an object");
        let arena = arena(&rt, Delivery::Segv, 4 * EXTENT);
        for (i, object) in [&buffered, &direct, &memory, &own].into_iter().enumerate() {
            map(&arena, i * EXTENT, object, Prot::ReadWrite, Sharing::Shared);
        }
        limit(libc::RLIMIT_FSIZE, PAGE as u64);
        for p in 0..128 {
            assert_eq!(common::load(&arena, p * PAGE), Ok(files[0].data[p * PAGE]), "buffered, page {p}");
            assert_eq!(common::load(&arena, EXTENT + p * PAGE), Ok(files[1].data[p * PAGE]), "direct, page {p}");
            assert_eq!(common::load(&arena, 3 * EXTENT + p * PAGE), Ok(files[2].data[p * PAGE]), "own, page {p}");
        }
        for p in 0..16 {
            assert_eq!(store(&arena, p * PAGE, 1), Ok(()));
            assert_eq!(store(&arena, EXTENT + p * PAGE, 1), Ok(()));
            assert_eq!(store(&arena, 2 * EXTENT + p * PAGE, 1), Ok(()));
            assert_eq!(store(&arena, 3 * EXTENT + p * PAGE, 1), Ok(()));
        }
        for object in [&buffered, &direct, &own] {
            let refused = object.sync_all().expect_err("past the limit");
            let words = refused.to_string();
            assert!(words.contains("EFBIG") || words.contains("File too large"), "{words}");
            assert!(object.set_len(object.len() + 1).is_err(), "growth past the limit");
        }
        let _ = memory.evict(0..memory.len());
        limit(libc::RLIMIT_FSIZE, u64::MAX);
        for (file, object) in files.iter().zip([&buffered, &direct, &own]) {
            object.sync_all().expect("nothing is in the way any more");
            let now = std::fs::read(file.path()).expect("the file");
            assert!((0..16).all(|p| now[p * PAGE] == 1), "what was stored is in the file");
        }
        assert!((0..16).all(|p| common::load(&arena, 2 * EXTENT + p * PAGE) == Ok(1)));
    });
    ended(run, Ok(0));
}
