//! Causes travel from a store to whoever asked: what it said, of which object, at which byte of both.

mod common;

use common::{EXTENT, PAGE, TempFile, arena, child, each_mode, load, map, said};
use softfault::{
    Access, Errno, Error, FailedOp, FillError, Object, PageMut, PageRef, Prot, Runtime, Sharing, Store, StoreError,
    VmFaultReason,
};
use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

/// What networks, disks and file systems say.
const ERRNOS: [Errno; 8] = [
    Errno::EIO,
    Errno::ENOSPC,
    Errno::EDQUOT,
    Errno::ECONNRESET,
    Errno::ESTALE,
    Errno::ETIMEDOUT,
    Errno::EROFS,
    Errno::ENOMEM,
];

/// Fails with these error numbers; 0: not.
#[derive(Debug, Default)]
struct Ill {
    read: AtomicI32,
    write: AtomicI32,
    flush: AtomicI32,
}

fn answer(errno: &AtomicI32) -> Result<(), StoreError> {
    match errno.load(Ordering::Relaxed) {
        0 => Ok(()),
        errno => Err(StoreError::Io(Errno(errno))),
    }
}

struct IllStore(Arc<Ill>);

impl Store for IllStore {
    fn read(&self, _pos_bytes: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        page.as_mut_slice().fill(7);
        answer(&self.0.read)
    }
    fn write(&self, _pos_bytes: u64, _pages: &PageRef<'_>) -> Result<(), StoreError> {
        answer(&self.0.write)
    }
    fn flush(&self) -> Result<(), StoreError> {
        answer(&self.0.flush)
    }
}

fn ill_object(rt: &Runtime, pages: usize) -> (Object, Arc<Ill>) {
    let ill = Arc::<Ill>::default();
    let object = rt.object((pages * PAGE) as u64).writable(true).label("the ill one").fill_window_pages(1);
    (object.store(Box::new(IllStore(Arc::clone(&ill)))).unwrap(), ill)
}

/// Checks all that an error says.
#[track_caller]
fn tells(e: &Error, errno: Errno, at: u64, of_arena: Option<usize>) {
    let (text, io) = (e.to_string(), e.source().and_then(|s| s.downcast_ref::<std::io::Error>()));
    assert_eq!(io.and_then(std::io::Error::raw_os_error), Some(errno.0), "the source of {e:?}");
    assert!(text.contains(errno.text()) && text.contains("the ill one"), "{text}");
    match e {
        Error::Fault { reason, cause, object, object_offset, arena_offset, offset, .. } => {
            assert_eq!(*cause, Some(FillError::Io(errno)));
            assert_eq!(object.as_deref(), Some("the ill one"));
            assert_eq!((*object_offset, *arena_offset), (Some(at), of_arena), "{text}");
            assert_eq!(*offset, of_arena.map_or(at, |at| at as u64), "as the call counts");
            let want = if errno == Errno::ENOMEM { VmFaultReason::OOM } else { VmFaultReason::SIGBUS };
            assert!(reason.contains(want), "{reason:?} for {errno}");
            assert!(text.contains(&format!("byte {at:#x}")), "{text}");
        }
        Error::Writeback { range, .. } => assert!(range.contains(&at), "{range:x?}"),
        Error::Flush { .. } => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_errno_of_a_store_reaches_every_call() {
    each_mode("errnos", |rt, mode| {
        // Byte 0 of the arena is byte 2 PAGE of the object, and page 5 of the object fails.
        let (object, ill) = ill_object(rt, 16);
        let a = arena(rt, mode, EXTENT);
        a.map(3 * PAGE, &object, 2 * PAGE as u64, 14 * PAGE, Prot::ReadWrite, Sharing::Shared).unwrap();
        let (at, of_arena) = (5 * PAGE as u64, 6 * PAGE);
        for errno in ERRNOS {
            ill.read.store(errno.0, Ordering::Relaxed);
            let page = of_arena..of_arena + PAGE;
            tells(&object.read_at(at + 5, &mut [0; 8]).unwrap_err(), errno, at + 5, None);
            tells(&object.write_at(at, &[0; 8]).unwrap_err(), errno, at, None);
            tells(&object.populate(at..at + 1).unwrap_err(), errno, at, None);
            tells(&a.read_at(of_arena + 7, &mut [0; 8]).unwrap_err(), errno, at + 7, Some(of_arena + 7));
            tells(&a.write_at(of_arena, &[0; 8]).unwrap_err(), errno, at, Some(of_arena));
            tells(&a.fault_in(page.clone(), Access::Read).unwrap_err(), errno, at, Some(of_arena));
            tells(&a.fault_in(page.clone(), Access::Write).unwrap_err(), errno, at, Some(of_arena));
            tells(&a.pin(page, Access::Read).unwrap_err(), errno, at, Some(of_arena));
            ill.read.store(0, Ordering::Relaxed);

            ill.write.store(errno.0, Ordering::Relaxed);
            object.write_at(9 * PAGE as u64, &[1]).unwrap();
            tells(&object.sync_all().unwrap_err(), errno, 9 * PAGE as u64, None);
            ill.write.store(0, Ordering::Relaxed);
            ill.flush.store(errno.0, Ordering::Relaxed);
            tells(&object.sync_all().unwrap_err(), errno, 0, None);
            ill.flush.store(0, Ordering::Relaxed);
            object.sync_all().unwrap();
            object.evict(0..u64::MAX).unwrap();
            object.heal(0..u64::MAX).unwrap();
        }
    });
}

#[test]
fn what_is_no_errno_is_named_too() {
    each_mode("causes", |rt, mode| {
        let (object, _) = ill_object(rt, 4);
        let a = arena(rt, mode, EXTENT);
        a.map(0, &object, 0, 8 * PAGE, Prot::Read, Sharing::Shared).unwrap();
        let cause = |r: softfault::Result<()>| match r {
            Err(Error::Fault { cause, object, object_offset, arena_offset, source: None, .. }) => {
                (cause.unwrap(), object.is_some(), object_offset, arena_offset)
            }
            other => panic!("{other:?}"),
        };
        let page = |p: usize| p * PAGE..(p + 1) * PAGE;
        let past = (FillError::PastEnd, true, Some(5 * PAGE as u64), Some(5 * PAGE));
        assert_eq!(cause(a.fault_in(page(5), Access::Read)), past);
        assert_eq!(cause(a.read_at(5 * PAGE, &mut [0; 1])), past);
        let denied = (FillError::NotPermitted, true, Some(PAGE as u64), Some(PAGE));
        assert_eq!(cause(a.fault_in(page(1), Access::Write)), denied);
        let nothing = (FillError::NotMapped, false, None, Some(9 * PAGE));
        assert_eq!(cause(a.fault_in(page(9), Access::Read)), nothing);
    });
}

/// A call on an arena counts in the arena's bytes, and says which file that is.
#[test]
fn files_are_called_by_their_paths() {
    let file = TempFile::new(8 * PAGE);
    each_mode("paths", |rt, mode| {
        let object = rt.open_file(file.path()).unwrap();
        std::fs::File::options().write(true).open(file.path()).unwrap().set_len(PAGE as u64).unwrap();
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        let error = a.read_at(2 * PAGE, &mut [0; 4]).unwrap_err();
        let path = file.path().display().to_string();
        assert!(error.to_string().contains(&path), "{error}");
        assert!(matches!(&error, Error::Fault { cause: Some(FillError::Short), object: Some(o), .. } if **o == *path));
        std::fs::File::options().write(true).open(file.path()).unwrap().set_len(8 * PAGE as u64).unwrap();
    });
    let rt = common::runtime();
    let missing = rt.open_file("/no/such/file").unwrap_err().to_string();
    assert!(missing.contains("/no/such/file"), "{missing}");
}

/// A limit is named with the number that the call needs, instead of a signal or of "no memory".
#[test]
#[expect(unsafe_code, reason = "limits a process of its own")]
fn a_limit_on_the_size_of_files_says_what_is_needed() {
    let out = child("a_limit_on_the_size_of_files_says_what_is_needed", "limited", || {
        common::setup();
        let limit = libc::rlimit { rlim_cur: PAGE as u64, rlim_max: libc::RLIM_INFINITY };
        // SAFETY: the limit of a process of our own.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) }, 0);
        let tells = |e: &Error, bytes: usize| {
            let Error::Limit { what, limit, needed, .. } = e else { panic!("{e:?}") };
            assert_eq!((*limit, *needed), (PAGE as u64, bytes as u64), "{e}");
            assert!(what.contains("RLIMIT_FSIZE") && e.to_string().contains(&bytes.to_string()), "{e}");
        };
        let swap = Runtime::builder().swap(std::env::temp_dir(), 64 * PAGE as u64).build();
        tells(&swap.unwrap_err(), 64 * PAGE);
        let rt = Runtime::builder().build().unwrap();
        tells(&rt.anonymous(PAGE as u64).unwrap_err(), EXTENT);
    });
    if let Some(out) = out {
        assert!(out.status.success(), "{}", said(&out));
    }
}

/// Has no space for the block of a page.
struct NoBlocks(Errno);

impl Store for NoBlocks {
    fn read(&self, _pos_bytes: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        page.as_mut_slice().fill(7);
        Ok(())
    }
    fn write(&self, _pos_bytes: u64, _pages: &PageRef<'_>) -> Result<(), StoreError> {
        Ok(())
    }
    fn dsync(&self, _pos_bytes: u64, _len_bytes: u64) -> Result<(), StoreError> {
        Err(StoreError::Io(self.0))
    }
}

// SAFETY: nothing of it allocates, locks or waits.
#[expect(unsafe_code, reason = "says that it may run in a handler")]
unsafe impl softfault::HandlerStore for NoBlocks {}

/// Before the first store to a page its block has to be there: what the file system says is what the access says.
#[test]
fn a_refused_block_is_an_error_with_its_errno() {
    // Where the first store to a page is seen.
    common::each_of("dsync", &[softfault::Delivery::InThread, softfault::Delivery::Segv], |rt, mode| {
        for errno in [Errno::ENOSPC, Errno::EDQUOT] {
            let object =
                rt.object(16 * PAGE as u64).writable(true).label("the ill one").dsync(true).fill_window_pages(1);
            let object = object.handler_store(Box::new(NoBlocks(errno))).unwrap();
            let a = arena(rt, mode, EXTENT);
            a.map(PAGE, &object, 2 * PAGE as u64, 14 * PAGE, Prot::ReadWrite, Sharing::Shared).unwrap();
            a.fault_in(4 * PAGE..5 * PAGE, Access::Read).unwrap();
            let error = a.fault_in(4 * PAGE..5 * PAGE, Access::Write).unwrap_err();
            tells(&error, errno, 5 * PAGE as u64, Some(4 * PAGE));
            assert_eq!(common::store(&a, 4 * PAGE, 1), Err(libc::SIGBUS), "{mode:?}");
            let is_noted =
                || rt.recent_failures().iter().any(|f| f.op == FailedOp::Touch && f.cause == FillError::Io(errno));
            common::until("it is noted", is_noted);
        }
    });
}

/// Failures are kept, whoever was told of them, and a touch that becomes a signal with them.
#[test]
fn the_last_failures_can_be_read_at_any_time() {
    each_mode("failures", |_, mode| {
        let rt = Runtime::builder().build().unwrap();
        assert!(rt.recent_failures().is_empty());
        let (object, ill) = ill_object(&rt, 16);
        let a = arena(&rt, mode, EXTENT);
        a.map(PAGE, &object, 2 * PAGE as u64, 14 * PAGE, Prot::ReadWrite, Sharing::Shared).unwrap();
        ill.read.store(Errno::ECONNRESET.0, Ordering::Relaxed);
        assert_eq!(load(&a, 4 * PAGE + 9), Err(libc::SIGBUS));
        let touched = |rt: &Runtime| rt.recent_failures().iter().any(|f| f.op == FailedOp::Touch);
        common::until("it is noted", || touched(&rt));
        let all = rt.recent_failures();
        let of = |op| all.iter().find(|f| f.op == op).unwrap_or_else(|| panic!("{mode:?}: no {op:?} in {all:?}"));
        for (op, address) in [(FailedOp::Read, None), (FailedOp::Touch, Some(a.as_ptr() as usize + 4 * PAGE))] {
            let f = of(op);
            assert_eq!((f.cause, &*f.object), (FillError::Io(Errno::ECONNRESET), "the ill one"), "{f}");
            assert_eq!((f.object_offset, f.address.map(|at| at & !0xfff)), (5 * PAGE as u64, address), "{f}");
            assert!(f.age < std::time::Duration::from_secs(60), "{f}");
        }
        ill.read.store(0, Ordering::Relaxed);
        object.write_at(7 * PAGE as u64, &[1]).unwrap();
        ill.write.store(Errno::EDQUOT.0, Ordering::Relaxed);
        object.sync_all().unwrap_err();
        ill.write.store(0, Ordering::Relaxed);
        ill.flush.store(Errno::EIO.0, Ordering::Relaxed);
        object.sync_all().unwrap_err();
        ill.flush.store(0, Ordering::Relaxed);
        object.sync_all().unwrap();
        let all = rt.recent_failures();
        let has =
            |op, cause, at| all.iter().any(|f| (f.op, f.cause, f.object_offset) == (op, FillError::Io(cause), at));
        assert!(has(FailedOp::Write, Errno::EDQUOT, 7 * PAGE as u64) && has(FailedOp::Flush, Errno::EIO, 0), "{all:?}");
        assert!(all.windows(2).all(|w| w[0].number < w[1].number));
        (0..100).for_each(|_| _ = ill_object(&rt, 1).0.read_at(0, &mut [0; 1]).unwrap());
        ill.read.store(Errno::EIO.0, Ordering::Relaxed);
        (0..100).for_each(|_| _ = object.read_at(11 * PAGE as u64, &mut [0; 1]).unwrap_err());
        assert_eq!(rt.recent_failures().len(), 64, "the last ones");
    });
}

/// A signal comes with a line that says why, where that is asked for.
#[test]
fn a_sigbus_says_why_before_it_ends_the_process() {
    for (key, speaks) in [("spoken", true), ("silent", false)] {
        let out = child("a_sigbus_says_why_before_it_ends_the_process", key, || {
            common::no_core();
            let rt = Runtime::builder().report_signals(speaks).build().unwrap();
            let (object, ill) = ill_object(&rt, 16);
            let a = rt.arena(EXTENT).build().unwrap();
            a.map(PAGE, &object, 2 * PAGE as u64, 14 * PAGE, Prot::Read, Sharing::Shared).unwrap();
            ill.read.store(Errno::ECONNRESET.0, Ordering::Relaxed);
            let _ = common::load_at(a.as_ptr() as usize + 4 * PAGE + 9);
        });
        let Some(out) = out else { return };
        let text = said(&out);
        let line = "byte 0x5009 of the ill one: Connection reset by peer";
        assert_eq!(text.contains(line), speaks, "{text}");
    }
}
