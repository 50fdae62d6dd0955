//! Systems whose `shmem_enabled` makes huge pages of everything in a memfd: the cache's limit holds, and nothing is lost when the
//! kernel takes a huge page apart.
#![allow(clippy::cast_possible_truncation, reason = "64-bit offsets of small objects")]

mod common;

use common::{EXTENT, KnobStore, MODES, PAGE, load, map, serial, setup, store};
use softfault::{Delivery, Object, Prot, Runtime, Sharing};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

const SETTING: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
const HOUR: Duration = Duration::from_secs(3600);

/// The system's setting, put back on drop.
struct Setting(String);

impl Setting {
    /// `None`, with the reason printed, where it cannot be changed.
    fn change(to: &str) -> Option<Self> {
        let skip = |why: &dyn std::fmt::Display| println!("skipped: {SETTING} cannot be changed: {why}");
        let text = std::fs::read_to_string(SETTING).map_err(|e| skip(&e)).ok()?;
        let was = text.split(['[', ']']).nth(1).expect("a choice in brackets").to_owned();
        std::fs::write(SETTING, to).map_err(|e| skip(&e)).ok()?;
        Some(Self(was))
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        if let Err(e) = std::fs::write(SETTING, &self.0) {
            println!("{SETTING} stays changed: {e}");
        }
    }
}

/// Nothing happens by itself: the setting is read when the first object is made, and not again.
fn quiet() -> Runtime {
    setup();
    let builder = Runtime::builder().cache_limit(64 << 20).writeback(HOUR, HOUR);
    builder.fill_window_pages(1).build().expect("runtime")
}

fn modes(rt: &Runtime) -> impl Iterator<Item = Delivery> {
    let has = |m: &Delivery| rt.delivery().is_available(*m);
    MODES.into_iter().filter(has).collect::<Vec<_>>().into_iter()
}

struct Sparse(PathBuf);

impl Sparse {
    fn new(name: &str, len: usize) -> Self {
        let path = std::env::temp_dir().join(format!("softfault-huge-{}-{name}", std::process::id()));
        File::create(&path).and_then(|f| f.set_len(len as u64)).expect("a sparse file");
        Self(path)
    }
    fn first_byte(&self, p: usize) -> u8 {
        let mut byte = [0];
        File::open(&self.0).and_then(|f| f.read_exact_at(&mut byte, (p * PAGE) as u64)).expect("read");
        byte[0]
    }
}

impl Drop for Sparse {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// What the cache has taken, and what it says that it has, in pages.
fn taken(rt: &Runtime) -> (u64, u64) {
    let s = rt.stats();
    let get = |name| s.get(name).expect("a counter");
    (get("cache_bytes_allocated") / PAGE as u64, get("nr_cached_pages"))
}

#[test]
fn a_page_that_is_filled_takes_a_page() {
    const LEN: usize = 32 * EXTENT;
    let _serial = serial();
    for setting in ["advise", "within_size", "always", "force"] {
        let Some(_changed) = Setting::change(setting) else { return };
        let rt = quiet();
        for mode in modes(&rt) {
            let rt = quiet();
            let sparse = Sparse::new(setting, LEN);
            let file = rt.open_file_rw(&sparse.0).expect("open");
            let computed = rt.object(LEN as u64).store(Box::new(KnobStore(Arc::default()))).expect("object");
            let anonymous = rt.object(LEN as u64).anonymous().expect("anonymous");
            let objects: [(&str, &Object, Prot); 3] = [
                ("file", &file, Prot::ReadWrite),
                ("store", &computed, Prot::Read),
                ("anon", &anonymous, Prot::ReadWrite),
            ];
            for (what, object, prot) in objects {
                let a = rt.arena(LEN).delivery(mode).build().expect("arena");
                map(&a, 0, object, prot, Sharing::Shared);
                // Twice a chunk: the second time there is a small page beside.
                for at in (0..LEN).step_by(EXTENT / 2) {
                    load(&a, at + 3 * PAGE).expect("load");
                    if prot == Prot::ReadWrite {
                        assert_eq!(store(&a, at + 9 * PAGE, 1), Ok(()));
                    }
                }
                let (allocated, cached) = taken(&rt);
                assert_eq!(allocated, cached, "{setting} {mode:?} {what}: pages allocated, and pages that are cached");
            }
        }
    }
}

#[test]
fn a_huge_page_that_is_taken_apart_loses_no_store() {
    const NR: usize = 2 * EXTENT / PAGE;
    let _serial = serial();
    for mode in modes(&quiet()) {
        let Some(_never) = Setting::change("never") else { return };
        let rt = quiet();
        let sparse = Sparse::new("split", NR * PAGE);
        let file = rt.open_file_rw(&sparse.0).expect("open");
        // Changed below a runtime that runs: it does not know yet.
        let Some(_always) = Setting::change("always") else { return };
        file.populate(0..file.len()).expect("populate");
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        println!("{mode:?}: {:?}", memory.lines().find(|l| l.starts_with("ShmemHugePages")));
        let a = rt.arena(NR * PAGE).delivery(mode).native_extents(false).build().expect("arena");
        map(&a, 0, &file, Prot::ReadWrite, Sharing::Shared);
        // Mapped for loads first: the kernel alone knows of the stores, where it can.
        (0..NR).for_each(|p| assert_eq!(load(&a, p * PAGE), Ok(0)));
        let stored = |p: usize| p % 512 != 100;
        (0..NR).filter(|p| stored(*p)).for_each(|p| assert_eq!(store(&a, p * PAGE, 5), Ok(())));
        // One page of each goes: the kernel splits what it is a part of, and unmaps all of that.
        for p in (0..NR).filter(|p| !stored(*p)) {
            let _ = file.evict((p * PAGE) as u64..((p + 1) * PAGE) as u64).expect("evict");
        }
        file.sync_all().expect("sync_all");
        let old = (0..NR).filter(|p| stored(*p) && sparse.first_byte(*p) != 5).count();
        assert_eq!(old, 0, "{mode:?}: {old} stores are not in the file");
        file.evict(0..file.len()).expect("evict");
        let gone = (0..NR).filter(|p| stored(*p) && load(&a, p * PAGE) != Ok(5)).count();
        assert_eq!(gone, 0, "{mode:?}: {gone} stores are gone");
        drop(a);
    }
}
