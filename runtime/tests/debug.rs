//! `Debug` is for a person, or a log: no public type's passes a kilobyte, however large what it is about.
#![allow(clippy::cast_possible_truncation, reason = "64-bit offsets")]

mod common;

use common::{EXTENT, PAGE, arena, each_mode, map, store};
use softfault::{Access, Errno, Error, FillError, Prot, Runtime, Sharing, StoreError, VmFault, VmFaultReason, VmOps};
use std::fmt::Debug;
use std::sync::{Arc, Mutex};

const MOST: usize = 1024;

#[track_caller]
fn short(what: impl Debug) {
    for text in [format!("{what:?}"), format!("{what:#?}")] {
        let first: String = text.chars().take(200).collect();
        assert!(text.len() <= MOST, "{} bytes of Debug: {first}", text.len());
        assert!(!text.is_empty());
    }
}

/// Says what its faults look like; in a handler, which tests may.
#[derive(Debug)]
struct Teller(Arc<Mutex<Vec<usize>>>);

impl VmOps for Teller {
    fn fault(&self, vmf: &mut VmFault<'_>) -> VmFaultReason {
        let lens =
            [format!("{vmf:?}"), format!("{:?}", vmf.vma()), format!("{:?}", vmf.vma().mapping)].map(|s| s.len());
        self.0.lock().unwrap().extend(lens);
        softfault::shmem::fault(vmf)
    }
}

#[test]
fn no_debug_passes_a_kilobyte() {
    let long = std::env::temp_dir().join("d".repeat(200)).join("e".repeat(200)).join("f".repeat(200));
    std::fs::create_dir_all(&long).unwrap();
    let path = long.join("g".repeat(250));
    std::fs::write(&path, vec![0u8; 4 * PAGE]).unwrap();
    each_mode("debug", |rt, mode| {
        let huge = rt.object(1 << 40).max_len(2 << 40).label("x".repeat(5_000));
        short(&huge);
        let huge = huge.anonymous().unwrap();
        let file = rt.file_options().writable(true).with(|o| o.label("y".repeat(5_000)));
        short(&file);
        let file = file.open(&path).unwrap();
        let a = arena(rt, mode, 64 * EXTENT);
        map(&a, 0, &file, Prot::ReadWrite, Sharing::Shared);
        a.map(EXTENT, &huge, 0, 32 * EXTENT, Prot::ReadWrite, Sharing::Shared).unwrap();
        for extent in 1..32 {
            store(&a, extent * EXTENT, 1).unwrap();
        }
        let pin = a.pin(2 * EXTENT..3 * EXTENT, Access::Write).unwrap();
        short(&pin);
        let held = file.hold_dirty(0..u64::MAX).unwrap();
        short(&held);
        short((rt.stats().stages.first(), rt.stats().reasons.first()));
        short(rt);
        short(rt.stats());
        short(rt.delivery());
        short(rt.delivery().findings.first());
        short(rt.audit_threads().unwrap());
        short(&huge);
        short(&file);
        short(&a);
        short(rt.arena(1 << 40).kernel_access(false));
        short(Runtime::builder().swap(&path, 1 << 30));
        short(file.sync_all());
        short(file.read_at(3 * PAGE as u64, &mut [0; 9]));
        short(rt.open_file(path.with_file_name("z".repeat(250))));
        short(a.fault_in(40 * EXTENT..41 * EXTENT, Access::Read));
        short(a.map(0, &file, 0, PAGE, Prot::Read, Sharing::Shared));
    });
    let label: Arc<str> = "l".repeat(5_000).into();
    let op = "op";
    short(Error::Lost { op, object: Arc::clone(&label), ranges: vec![0..u64::MAX; 10_000] });
    short(Error::Held { op, object: Arc::clone(&label), range: 0..1 });
    short(Error::Flush { op, object: Arc::clone(&label), error: StoreError::Io(Errno::EIO), source: None });
    short((StoreError::Corrupt, FillError::Io(Errno::EIO), Access::Read, VmFaultReason::ERROR));
    std::fs::remove_dir_all(std::env::temp_dir().join("d".repeat(200))).unwrap();
}

/// What a vtable of the program's is given.
#[test]
#[expect(unsafe_code, reason = "a vtable of the test's own")]
fn the_walk_s_own_words_are_short() {
    common::setup();
    let rt = Runtime::new().unwrap();
    let lens = Arc::<Mutex<Vec<usize>>>::default();
    // SAFETY: it allocates and locks in a handler, which no lock of this test's thread is held around.
    let object = unsafe { rt.object(1 << 40).vm_ops(Box::new(Teller(Arc::clone(&lens)))) }.unwrap();
    let a = rt.arena(1 << 40).build().unwrap();
    a.map(0, &object, 0, 1 << 40, Prot::Read, Sharing::Shared).unwrap();
    a.fault_in(0..PAGE, Access::Read).unwrap();
    let lens = lens.lock().unwrap();
    assert!(!lens.is_empty() && lens.iter().all(|len| (1..=MOST).contains(len)), "{lens:?}");
}
