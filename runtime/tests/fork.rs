//! Forked children: their ioctls would act on the parent, so they make none; and nothing of the parent's is theirs.
#![allow(unsafe_code, reason = "fork")]

mod common;

use common::{
    EXTENT, PAGE, arena, byte_of, bytes, child, content, each_mode, ended, fork, knob_object, load, map, runtime, same,
    store, until,
};
use softfault::{Arena, Delivery, Object, Prot, Runtime, Sharing};

const LEN: u64 = 64 * PAGE as u64;

fn signal_of(status: i32) -> i32 {
    if libc::WIFSIGNALED(status) { libc::WTERMSIG(status) } else { 0 }
}

struct Parent {
    rt: Runtime,
    object: Object,
    a: Arena,
}

/// An object with every other page cached and mapped, writable.
fn parent(rt: &Runtime, mode: Delivery) -> Parent {
    let knobs = std::sync::Arc::new(common::Knobs::default());
    let builder = rt.object(LEN).writable(true).fill_window_pages(1);
    let object = builder.handler_store(Box::new(common::KnobStore(knobs))).unwrap();
    let a = rt.arena(EXTENT).delivery(mode).fault_around(false).granule(PAGE).build().unwrap();
    map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
    for p in (0..64).step_by(2) {
        assert_eq!(load(&a, p * PAGE), Ok(byte_of(0, (p * PAGE) as u64)));
    }
    // A monitor counts after it has woken whom it serves.
    until("32 pages are counted", || rt.stats()["pgmapped"] >= 32);
    Parent { rt: rt.clone(), object, a }
}

#[test]
fn a_child_that_touches_an_arena_dies_and_harms_nobody() {
    each_mode("touch", |rt, mode| {
        let p = parent(rt, mode);
        let address = p.a.as_ptr() as usize;
        // Cached and mapped, cached by nobody, written; loads and stores.
        for (page, write) in [(0, false), (1, false), (2, true), (3, true)] {
            let (cached, mapped) = (p.object.cached_pages(), p.rt.stats()["pgmapped"]);
            let status = fork(|| {
                // The handlers are inherited; only the default is left behind them.
                common::install(libc::SIGALRM, libc::SIG_DFL, 0);
                // SAFETY: a child that traps for ever ends by the alarm instead.
                unsafe { libc::alarm(20) };
                let at = (address + page * PAGE) as *mut u8;
                if write {
                    // SAFETY: not mapped in the child: it dies here.
                    unsafe { at.write_volatile(0) };
                } else {
                    // SAFETY: as above.
                    unsafe { at.read_volatile() };
                }
                0
            });
            assert_eq!(signal_of(status), libc::SIGSEGV, "{mode:?} page {page}: status {status:#x}");
            assert_eq!(p.object.cached_pages(), cached, "the child filled nothing");
            assert_eq!(p.rt.stats()["pgmapped"], mapped, "the child mapped nothing");
        }
        same("the parent's content", &bytes(&p.a, 0..64 * PAGE), &content(0, 0..LEN));
        assert_eq!(store(&p.a, 5 * PAGE, 7), Ok(()), "and the parent goes on");
        assert_eq!(load(&p.a, 5 * PAGE), Ok(7));
    });
}

#[test]
fn a_child_that_maps_something_at_the_arenas_address() {
    // The handlers still think of an arena there: no ioctl may reach the parent from the child's own memory.
    each_mode("reuse", |rt, mode| {
        let p = parent(rt, mode);
        let address = p.a.as_ptr();
        let cached = p.object.cached_pages();
        let status = fork(|| {
            // SAFETY: nothing is mapped there in the child (MADV_DONTFORK).
            let at = unsafe {
                libc::mmap(
                    address.cast(),
                    EXTENT,
                    libc::PROT_NONE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                    -1,
                    0,
                )
            };
            // SAFETY: a child that traps for ever ends by the alarm instead.
            unsafe { libc::alarm(20) };
            let signo = common::load_at(at as usize + PAGE).err().unwrap_or(0);
            i32::from(signo != libc::SIGSEGV)
        });
        assert_eq!(status, 0, "the foreign handler got the child's own fault");
        assert_eq!(p.object.cached_pages(), cached);
        assert_eq!(load(&p.a, PAGE), Ok(byte_of(0, PAGE as u64)));
    });
}

#[test]
fn dropping_everything_in_the_child_is_harmless() {
    each_mode("drop", |rt, mode| {
        let p = parent(rt, mode);
        let pin = p.a.pin(0..2 * PAGE, softfault::Access::Read).unwrap();
        let (clone, object, a) = (p.rt.clone(), p.object.clone(), p.a.clone());
        // Handles are moved into the child's closure and dropped there, and once more by the parent's own.
        let mut boxed = Some((pin, a, object, clone));
        let status = fork(|| {
            // SAFETY: a child that hangs ends by the alarm instead.
            unsafe { libc::alarm(20) };
            drop(boxed.take());
            0
        });
        assert_eq!(status, 0, "{mode:?}");
        same("the parent's content", &bytes(&p.a, 0..64 * PAGE), &content(0, 0..LEN));
        assert!(p.a.unmap(0..EXTENT).is_err(), "the parent's pin still holds");
        drop(boxed);
        p.a.unmap(0..EXTENT).unwrap();
    });
}

#[test]
fn dropping_the_last_handles_in_the_child_is_harmless() {
    // In a process of its own: the child drops the only handles, as a program that forks and then exits normally does.
    for mode in common::MODES {
        let out = child("dropping_the_last_handles_in_the_child_is_harmless", &format!("{mode:?}"), || {
            let rt = runtime();
            if !rt.delivery().is_available(mode) {
                println!("skipped: {}", rt.delivery());
                return;
            }
            let p = parent(&rt, mode);
            let mut boxed = Some((p, rt));
            let status = fork(|| {
                // SAFETY: a child that hangs ends by the alarm instead.
                unsafe { libc::alarm(20) };
                drop(boxed.take());
                0
            });
            assert_eq!(status, 0, "{mode:?}");
            let (p, rt) = boxed.unwrap();
            same("the parent's content", &bytes(&p.a, 0..64 * PAGE), &content(0, 0..LEN));
            drop((p, rt));
            // And a new life in the same process.
            let p = parent(&runtime(), mode);
            same("afterwards", &bytes(&p.a, 0..64 * PAGE), &content(0, 0..LEN));
        });
        ended(out, Ok(0));
    }
}

#[test]
fn a_child_has_no_copy_of_arena_or_alias() {
    each_mode("maps", |rt, mode| {
        let p = parent(rt, mode);
        let base = p.a.as_ptr() as usize;
        let reach = |at: usize| {
            let mut byte = 0u8;
            let to = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
            let from = libc::iovec { iov_base: at as *mut libc::c_void, iov_len: 1 };
            let me = std::process::id().cast_signed();
            // SAFETY: reads a byte of this very process, by the kernel, which checks the address.
            unsafe { libc::process_vm_readv(me, &raw const to, 1, &raw const from, 1, 0) }
        };
        let status = fork(|| i32::from(reach(base) != -1));
        assert_eq!(status, 0, "page 0 is resident in the parent and absent in the child");
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let (mut name, mut nr) = (String::new(), 0);
        for line in smaps.lines() {
            if line.contains("softfault-cache") {
                name = line.to_owned();
            } else if let Some(flags) = line.strip_prefix("VmFlags:")
                && !name.is_empty()
            {
                assert!(flags.contains(" dc"), "{name}: would be copied by fork: {flags}");
                name.clear();
                nr += 1;
            }
        }
        assert!(nr >= 2, "the alias and the mapping were looked at");
    });
}

#[test]
fn fork_while_other_threads_fault() {
    each_mode("storm", |rt, mode| {
        let (object, _) = knob_object(rt, 4 * EXTENT as u64, true);
        let a = arena(rt, mode, 4 * EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        std::thread::scope(|s| {
            for t in 0..2 {
                let (a, object) = (&a, &object);
                s.spawn(move || {
                    for round in 0..10 {
                        for p in (t..2048).step_by(37) {
                            assert_eq!(load(a, p * PAGE), Ok(byte_of(0, (p * PAGE) as u64)), "round {round}");
                        }
                        object.evict(0..object.len()).unwrap();
                    }
                });
            }
            for _ in 0..20 {
                assert_eq!(fork(|| 0), 0);
            }
        });
        same("afterwards", &bytes(&a, 0..4 * EXTENT), &content(0, 0..4 * EXTENT as u64));
    });
}

#[test]
fn exec_from_a_program_with_arenas() {
    each_mode("exec", |rt, mode| {
        let p = parent(rt, mode);
        let script = "ls -l /proc/self/fd; kill -BUS $$";
        let out = std::process::Command::new("/bin/sh").args(["-c", script]).output().expect("sh");
        let list = common::said(&out);
        for name in ["memfd", "userfaultfd"] {
            assert!(!list.contains(name), "not close-on-exec:\n{list}");
        }
        let signo = std::os::unix::process::ExitStatusExt::signal(&out.status);
        assert_eq!(signo, Some(libc::SIGBUS), "handlers do not survive exec, and no signal is left blocked or ignored");
        same("the parent's content", &bytes(&p.a, 0..64 * PAGE), &content(0, 0..LEN));
    });
}

#[test]
fn a_childs_calls_are_refused_and_change_nothing() {
    each_mode("calls", |rt, mode| {
        let p = parent(rt, mode);
        store(&p.a, 0, 0x77).unwrap();
        let cached = p.object.cached_pages();
        let status = fork(|| {
            let range = 0..2 * PAGE;
            let refused = [
                p.object.read_at(0, &mut [0; 8]).is_err(),
                p.object.write_at(0, &[1; 8]).is_err(),
                p.object.populate(0..LEN).is_err(),
                p.object.evict(0..LEN).is_err(),
                p.object.set_len(PAGE as u64).is_err(),
                p.a.fault_in(range.clone(), softfault::Access::Write).is_err(),
                p.a.pin(range.clone(), softfault::Access::Read).is_err(),
                p.a.zap(range.clone()).is_err(),
                p.a.promote(0..EXTENT).is_err(),
                p.a.protect(range.clone(), Prot::Read).is_err(),
                p.a.unmap(range).is_err(),
                p.rt.anonymous(LEN).is_err(),
            ];
            i32::from(refused.contains(&false))
        });
        assert_eq!(status, 0, "a call of the child's went through (or it died: {})", signal_of(status));
        assert_eq!(p.object.cached_pages(), cached);
        assert_eq!((load(&p.a, 0), load(&p.a, PAGE)), (Ok(0x77), Ok(byte_of(0, PAGE as u64))), "the parent's own");
    });
}
