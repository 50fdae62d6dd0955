//! Filters of system calls (seccomp(2)): a process that may make no other calls than those that the README lists for its
//! delivery mode gets on. Whoever writes a filter copies the list; so the list is what is tested.
#![allow(unsafe_code, reason = "installs a filter of system calls")]
#![allow(clippy::cast_possible_truncation, reason = "small numbers; 64-bit only")]

mod common;

use common::{EXTENT, MODES, PAGE, Rng, TempFile, child, ended, load, map, store};
use softfault::{Access, Advice, Delivery, Errno, Error, Prot, Runtime, Sharing};
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::Duration;

macro_rules! numbers {
    ($($name:ident)*) => {
        BTreeMap::from([$((stringify!($name).trim_start_matches("SYS_"), libc::$name)),*])
    };
}

/// The numbers of the system calls that the README may name.
fn numbers() -> BTreeMap<&'static str, libc::c_long> {
    numbers! {
        SYS_sysinfo
        SYS_brk SYS_clock_gettime SYS_clock_nanosleep SYS_clone SYS_clone3 SYS_close SYS_dup SYS_exit SYS_socketpair
        SYS_exit_group SYS_fadvise64 SYS_fallocate SYS_fcntl SYS_fdatasync SYS_fstat SYS_ftruncate SYS_futex SYS_getdents64
        SYS_getpid SYS_getrandom SYS_gettid SYS_getrlimit SYS_ioctl SYS_lseek SYS_madvise SYS_memfd_create SYS_mincore
        SYS_mlock2 SYS_mmap SYS_mprotect SYS_mremap SYS_munmap SYS_nanosleep SYS_newfstatat SYS_open SYS_openat SYS_poll
        SYS_prctl SYS_pread64 SYS_prlimit64 SYS_process_madvise SYS_pwrite64 SYS_read SYS_restart_syscall SYS_rseq
        SYS_rt_sigaction SYS_rt_sigpending SYS_rt_sigprocmask SYS_rt_sigreturn SYS_sched_getaffinity SYS_sched_setaffinity
        SYS_sched_yield SYS_sendfile SYS_set_robust_list SYS_sigaltstack SYS_statx SYS_tgkill SYS_unlink SYS_userfaultfd
        SYS_close_range SYS_faccessat2 SYS_readlink SYS_pidfd_open SYS_pidfd_getfd SYS_write SYS_munlock SYS_mlock SYS_fstatfs
        SYS_copy_file_range SYS_sendto SYS_recvfrom
    }
}

/// The calls that the README lists for a mode: those of the row for every mode, and of the mode's own.
fn listed(mode: Delivery) -> Vec<(String, libc::c_long)> {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").join("README.md");
    let text = std::fs::read_to_string(readme).expect("README.md");
    let table = text.split("## System calls").nth(1).and_then(|s| s.split("\n## ").next()).expect("the section");
    let numbers = numbers();
    let mut found = Vec::new();
    for row in table.lines().filter(|l| l.starts_with("| ")) {
        let mut cells = row.trim_matches('|').split('|').map(str::trim);
        let (who, calls) = (cells.next().unwrap_or(""), cells.next().unwrap_or(""));
        if who != "every mode" && who != format!("`{mode:?}`") {
            continue;
        }
        for name in calls.split('`').skip(1).step_by(2) {
            let number = numbers.get(name).unwrap_or_else(|| panic!("README.md names `{name}`, which is no call here"));
            found.push((name.to_owned(), *number));
        }
    }
    assert!(found.len() > 20, "{mode:?}: {found:?}");
    found
}

/// Kills the process if this thread, or one that it starts, makes another call.
fn forbid_all_but(calls: &[(String, libc::c_long)]) {
    filter(calls, libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_KILL_PROCESS);
}

/// One action for the calls, and another for those that are not among them.
fn filter(calls: &[(String, libc::c_long)], listed: u32, others: u32) {
    let op = |code: u32, k: u32, jt: usize| libc::sock_filter {
        code: u16::try_from(code).expect("a code"),
        jt: u8::try_from(jt).expect("a short list"),
        jf: 0,
        k,
    };
    // seccomp_data: the number is its first field.
    let mut program = vec![op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0)];
    for (i, (_, nr)) in calls.iter().enumerate() {
        let to_listed = calls.len() - i;
        program.push(op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, u32::try_from(*nr).expect("a number"), to_listed));
    }
    program.push(op(libc::BPF_RET | libc::BPF_K, others, 0));
    program.push(op(libc::BPF_RET | libc::BPF_K, listed, 0));
    let filter =
        libc::sock_fprog { len: u16::try_from(program.len()).expect("a short one"), filter: program.as_mut_ptr() };
    // SAFETY: takes no pointer.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    // SAFETY: a filter whose program lives; it is copied.
    let r = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) };
    assert_eq!(r, 0, "{}", std::io::Error::last_os_error());
}

/// What programs do with a runtime, from its beginning to its end.
fn scenario(mode: Delivery, path: &Path, folder: &Path) {
    let limit = 256 * PAGE as u64;
    let builder = Runtime::builder().cache_limit(limit).swap(folder, 16 << 20).zswap(1 << 20);
    let rt = builder.writeback(Duration::from_millis(5), Duration::from_millis(20)).build().expect("a runtime");
    let file = rt.open_file_rw(path).expect("the file");
    let direct = rt.file_options().writable(true).direct(true).open(path.with_extension("direct")).ok();
    let memory = rt.anonymous(4 << 20).expect("memory");
    let (own, _) = common::knob_object(&rt, 64 * PAGE as u64, false);
    let len = file.len() as usize;
    let arena = rt.arena(8 * EXTENT).delivery(mode).build().expect("an arena");
    map(&arena, 0, &file, Prot::ReadWrite, Sharing::Shared);
    map(&arena, 2 * EXTENT, &memory, Prot::ReadWrite, Sharing::Shared);
    map(&arena, 4 * EXTENT, &own, Prot::ReadWrite, Sharing::Private);
    if let Some(direct) = &direct {
        map(&arena, 5 * EXTENT, direct, Prot::Read, Sharing::Shared);
    }
    // Far more than the cache: reclaim, by handlers and in the background, swap, write-back.
    let mut rng = Rng(0x9e37_79b9_7f4a_7c15);
    for _ in 0..6_000 {
        let (at, n) = (rng.below(2), rng.below(1024));
        let offset = if at == 0 { n * PAGE % len } else { 2 * EXTENT + n * PAGE };
        assert!(store(&arena, offset, n as u8).is_ok() && load(&arena, offset).is_ok(), "page {n}");
        if rng.below(16) == 0 {
            assert!(load(&arena, 5 * EXTENT + n * PAGE % len).is_ok() || direct.is_none());
        }
    }
    for p in 0..64 {
        assert_eq!(store(&arena, 4 * EXTENT + p * PAGE, 1), Ok(()), "a private copy");
    }
    let pin = arena.pin(0..8 * PAGE, Access::Write).expect("a pin");
    drop(pin);
    let mut some = [0; 100];
    arena.read_at(PAGE, &mut some).expect("read_at");
    file.write_at(PAGE as u64, &some).expect("write_at");
    file.advise(0..file.len(), Advice::WillNeed).expect("advice");
    file.populate(0..16 * PAGE as u64).expect("populate");
    file.sync_all().expect("sync");
    file.set_len(file.len() - PAGE as u64).expect("set_len");
    file.punch_hole(0..PAGE as u64).expect("punch_hole");
    file.evict(0..file.len()).expect("evict");
    memory.evict(0..memory.len()).expect("evict");
    arena.protect(0..PAGE, Prot::Read).expect("protect");
    arena.zap(0..PAGE).expect("zap");
    arena.unmap(2 * EXTENT..2 * EXTENT + (4 << 20)).expect("unmap");
    let audit = rt.audit_threads().expect("audit");
    assert!(audit.offenders.is_empty(), "{audit}");
    assert!(rt.write_back(Duration::from_secs(30)).expect("write_back"));
    assert!(rt.stats().get("pgmajfault").is_some_and(|n| n > 0));
    println!("{}", rt.stats());
}

#[test]
fn the_calls_of_the_readme_are_all_that_is_needed() {
    for mode in MODES {
        // The child makes its first runtime under the filter.
        let in_child = std::env::var_os("SOFTFAULT_TEST_CHILD").is_some();
        if !in_child && mode != Delivery::Segv && !common::runtime().delivery().is_available(mode) {
            println!("{mode:?} skipped: it cannot be had here");
            continue;
        }
        let file = TempFile::new(2 << 20);
        let path = common::path_of(&format!("sandbox-{mode:?}"));
        if !in_child {
            std::fs::copy(file.path(), &path).expect("a copy");
            std::fs::copy(file.path(), path.with_extension("direct")).expect("a copy");
        }
        let run = child("the_calls_of_the_readme_are_all_that_is_needed", &format!("{mode:?}"), || {
            common::setup();
            if std::env::var_os("SOFTFAULT_TEST_NO_FILTER").is_none() {
                forbid_all_but(&listed(mode));
            }
            scenario(mode, &path, &std::env::temp_dir());
            // By exit(3), with everything that is done then.
        });
        let killed = run.as_ref().is_some_and(|out| out.status.signal() == Some(libc::SIGSYS));
        assert!(!killed, "{mode:?}: a call that the README does not list; `strace -f` names it");
        ended(run, Ok(0));
        if !in_child {
            std::fs::remove_file(&path).expect("removed");
            std::fs::remove_file(path.with_extension("direct")).expect("removed");
        }
    }
}

/// A filter that kills whoever opens a userfaultfd kills nobody who asks for `Segv`.
#[test]
fn segv_opens_no_userfaultfd() {
    let calls = listed(Delivery::Segv);
    assert!(calls.iter().all(|(name, _)| name != "userfaultfd"), "{calls:?}");
    let run = child("segv_opens_no_userfaultfd", "it", || {
        common::setup();
        forbid_all_but(&calls);
        let rt = Runtime::new().expect("a runtime");
        let object = rt.anonymous(PAGE as u64).expect("memory");
        let arena = rt.arena(EXTENT).delivery(Delivery::Segv).build().expect("an arena");
        map(&arena, 0, &object, Prot::ReadWrite, Sharing::Shared);
        assert_eq!(store(&arena, 0, 7), Ok(()));
    });
    ended(run, Ok(0));
}

/// What a filter refuses is called by its name, in every step of making the cache's memory.
#[test]
fn a_refused_call_is_named() {
    for call in ["memfd_create", "ftruncate", "madvise"] {
        let run = child("a_refused_call_is_named", call, || {
            common::setup();
            let rt = Runtime::builder().cache_limit(64 << 20).build().expect("a runtime");
            let refused = [(call.to_owned(), numbers()[call])];
            filter(&refused, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32, libc::SECCOMP_RET_ALLOW);
            match rt.anonymous(PAGE as u64) {
                Err(Error::System { call: named, errno: Errno::EPERM, .. }) => assert_eq!(named, call),
                other => panic!("{other:?}"),
            }
        });
        if run.is_some() {
            ended(run, Ok(0));
        }
    }
}
