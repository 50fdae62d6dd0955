//! Pages exposed here and there, by protection: each costs the process two of the kernel's mappings, of which it may have
//! `vm.max_map_count`. They are bounded; no touch is a signal, and the program's own mmap goes on working.
#![allow(clippy::cast_possible_truncation, reason = "64-bit offsets of small objects")]

mod common;

use common::{EXTENT, PAGE, child, ended, fill_the_table, load, setup, store};
use softfault::{Access, Arena, Delivery, Object, Prot, Runtime, Sharing};
use std::io::{Seek, SeekFrom, Write};

fn max_map_count() -> usize {
    std::fs::read_to_string("/proc/sys/vm/max_map_count").expect("max_map_count").trim().parse().expect("a number")
}

fn nr_mappings() -> usize {
    std::fs::read("/proc/self/maps").expect("/proc/self/maps").iter().filter(|b| **b == b'\n').count()
}

/// A sparse file in which every `STRIDE`th page says which it is.
const STRIDE: usize = 64;

struct World {
    rt: Runtime,
    object: Object,
    arena: Arena,
    nr: usize,
}

fn world(nr: usize, writable: bool, sharing: Sharing) -> World {
    setup();
    let path = std::env::temp_dir().join(format!("softfault-exposure-{}", std::process::id()));
    let mut file =
        std::fs::File::options().read(true).write(true).create(true).truncate(true).open(&path).expect("file");
    std::fs::remove_file(&path).expect("unlink");
    file.set_len((nr * PAGE) as u64).expect("set_len");
    for p in (0..nr).step_by(STRIDE) {
        file.seek(SeekFrom::Start((p * PAGE) as u64)).expect("seek");
        file.write_all(&[(p / STRIDE) as u8 | 1]).expect("write");
    }
    let rt = Runtime::builder().cache_limit(1 << 30).build().expect("runtime");
    let options = rt.file_options().writable(writable).with(|o| o.fill_window_pages(1).readahead_pages(0));
    let object = options.file(&file).expect("object");
    let arena = rt.arena(nr * PAGE).delivery(Delivery::Segv).build().expect("arena");
    let prot = if writable { Prot::ReadWrite } else { Prot::Read };
    arena.map(0, &object, 0, nr * PAGE, prot, sharing).expect("map");
    World { rt, object, arena, nr }
}

impl World {
    fn want(p: usize) -> u8 {
        if p.is_multiple_of(STRIDE) { (p / STRIDE) as u8 | 1 } else { 0 }
    }

    /// Every second page, in an order that jumps about.
    fn touch(&self, what: &str, steps: usize, mut each: impl FnMut(usize)) {
        let half = self.nr / 2;
        for i in 0..steps {
            let p = (i.wrapping_mul(0x9e37_79b1) % half) * 2;
            assert_eq!(load(&self.arena, p * PAGE), Ok(Self::want(p)), "{what}: page {p}, touch {i}");
            each(i);
        }
    }
}

fn bounded(what: &str) {
    let (nr, max) = (nr_mappings(), max_map_count());
    assert!(nr <= max / 4 * 3, "{what}: {nr} mappings of {max}");
    let more: Vec<_> = (0..64).map(|_| vec![1u8; 1 << 20]).collect();
    assert_eq!(more.len(), 64);
}

#[test]
fn far_more_pages_than_there_may_be_mappings() {
    for sharing in [Sharing::Shared, Sharing::Private] {
        let key = format!("{sharing:?}");
        ended(
            child("far_more_pages_than_there_may_be_mappings", &key, || {
                let w = world(2 * max_map_count(), false, sharing);
                let pin = w.arena.pin(0..PAGE, Access::Read).expect("pin");
                w.touch("touch", max_map_count() / 3 * 2, |i| {
                    if i % 16384 == 0 {
                        bounded("meanwhile");
                    }
                });
                bounded("afterwards");
                let stats = w.rt.stats();
                assert!(stats["process_exposed_vmas_hidden"] > 0, "{stats}");
                assert!(stats["process_exposed_vmas"] <= stats["process_exposed_vmas_max"] + 64, "{stats}");
                // What is pinned was not hidden: a system call finds it.
                let mut pipe = [0; 2];
                // SAFETY: writes two numbers.
                assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
                // SAFETY: the pinned page.
                assert_eq!(unsafe { libc::write(pipe[1], pin.as_ptr().cast(), PAGE) }, PAGE.cast_signed());
            }),
            Ok(0),
        );
    }
}

#[test]
fn stores_among_pages_that_are_exposed_for_loads() {
    let out = child("stores_among_pages_that_are_exposed_for_loads", "write", || {
        let w = world(2 * max_map_count(), true, Sharing::Shared);
        for p in (0..w.nr / 3 * 2).step_by(2) {
            assert_eq!(store(&w.arena, p * PAGE + 9, 7), Ok(()), "page {p}");
        }
        bounded("afterwards");
        w.object.sync_all().expect("sync");
        for p in (0..w.nr / 3 * 2).step_by(2 * 31) {
            assert_eq!(load(&w.arena, p * PAGE + 9), Ok(7), "page {p}");
            assert_eq!(load(&w.arena, p * PAGE), Ok(World::want(p)), "page {p}");
        }
    });
    ended(out, Ok(0));
}

#[test]
fn the_program_fills_the_table_before_and_meanwhile() {
    for key in ["before", "meanwhile"] {
        let out = child("the_program_fills_the_table_before_and_meanwhile", key, || {
            let w = world(max_map_count(), false, Sharing::Shared);
            if key == "meanwhile" {
                w.touch("before", 4096, |_| ());
            }
            let full = fill_the_table();
            w.touch("full", 1024, |_| ());
            drop(full);
            w.touch("empty again", 4096, |_| ());
        });
        ended(out, Ok(0));
    }
}

#[test]
fn many_threads() {
    let out = child("many_threads", "threads", || {
        let w = world(2 * max_map_count(), false, Sharing::Shared);
        let full = fill_the_table();
        std::thread::scope(|s| {
            drop(full);
            for t in 0..4 {
                let w = &w;
                s.spawn(move || w.touch("thread", 12_000 + t, |_| ()));
            }
        });
        bounded("afterwards");
        assert!(w.arena.len() >= EXTENT);
    });
    ended(out, Ok(0));
}
