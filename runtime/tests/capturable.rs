//! Arenas that can be captured: what they refuse, and that they are as others are while nobody captures them.
#![cfg(feature = "userfaultfd")]
#![allow(unsafe_code, reason = "stores to arenas by address")]
#![allow(clippy::cast_possible_truncation, reason = "patterns")]

use softfault::{Access, Arena, Delivery, Error, Object, Prot, Runtime, Sharing};

const PAGE: usize = 4096;

fn arena(rt: &Runtime, len: usize) -> Option<Arena> {
    match rt.arena(len).capturable(true).build() {
        Ok(arena) => Some(arena),
        Err(Error::Delivery { why, .. }) => {
            println!("skipped: {why}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn store(arena: &Arena, at: usize, byte: u8) {
    // SAFETY: mapped for stores by each test, which is the only one to touch it.
    unsafe { arena.as_ptr().wrapping_add(at).write_volatile(byte) }
}

fn load(arena: &Arena, at: usize) -> u8 {
    // SAFETY: as above.
    unsafe { arena.as_ptr().wrapping_add(at).read_volatile() }
}

#[test]
fn what_no_capture_could_hold_is_refused() {
    let rt = Runtime::new().expect("a runtime");
    for mode in [Delivery::Segv, Delivery::Monitor] {
        let refused = rt.arena(PAGE).delivery(mode).capturable(true).build();
        assert!(matches!(refused, Err(Error::Delivery { .. })), "{mode:?}: {refused:?}");
    }
    let refused = rt.arena(PAGE).kernel_access(true).capturable(true).build();
    assert!(matches!(refused, Err(Error::Delivery { .. })), "{refused:?}");
    let Some(arena) = arena(&rt, 4 << 20) else { return };
    let memory = rt.anonymous(1 << 20).expect("memory");
    let refused = arena.map(0, &memory, 0, PAGE, Prot::Read, Sharing::Private);
    assert!(matches!(refused, Err(Error::Denied { .. })), "{refused:?}");
    let huge = rt.object(4 << 20).huge_pages(true).anonymous().expect("memory");
    let refused = arena.map(0, &huge, 0, PAGE, Prot::ReadWrite, Sharing::Shared);
    assert!(matches!(refused, Err(Error::Denied { .. })), "{refused:?}");
}

fn touch_all(arena: &Arena, object: &Object, nr: usize) {
    for p in 0..nr {
        store(arena, p * PAGE, p as u8);
    }
    object.write_at(5 * PAGE as u64 + 1, b"by a call").expect("room");
    for p in 0..nr {
        assert_eq!(load(arena, p * PAGE), p as u8, "page {p}");
    }
    let mut bytes = [0; 9];
    arena.read_at(5 * PAGE + 1, &mut bytes).expect("mapped");
    assert_eq!(&bytes, b"by a call");
}

#[test]
fn memory_is_stored_to_pinned_and_unmapped_as_elsewhere() {
    let rt = Runtime::new().expect("a runtime");
    let Some(arena) = arena(&rt, 4 << 20) else { return };
    let memory = rt.anonymous(2 << 20).expect("memory");
    arena.map(0, &memory, 0, 2 << 20, Prot::ReadWrite, Sharing::Shared).expect("room");
    arena.map(2 << 20, &memory, 0, 2 << 20, Prot::Read, Sharing::Shared).expect("room");
    touch_all(&arena, &memory, 512);
    assert_eq!(load(&arena, (2 << 20) + 9 * PAGE), 9, "through the other mapping");
    let pin = arena.pin(0..PAGE, Access::Write).expect("room");
    assert!(matches!(arena.unmap(0..PAGE), Err(Error::Pinned { .. })));
    drop(pin);
    memory.punch_hole(0..2 * PAGE as u64).expect("nobody pins it");
    assert_eq!((load(&arena, 0), load(&arena, 2 * PAGE)), (0, 2));
    arena.unmap(0..2 << 20).expect("nobody pins it");
}

/// The page tables say nothing of first stores here: each is a fault, and the page is written back.
#[test]
fn a_file_that_is_stored_to_is_synced() {
    let path = std::env::temp_dir().join(format!("softfault-capturable-{}", std::process::id()));
    std::fs::write(&path, vec![7u8; 64 * PAGE]).expect("room");
    let rt = Runtime::new().expect("a runtime");
    if let Some(arena) = arena(&rt, 2 << 20) {
        let file = rt.open_file_rw(&path).expect("it is there");
        arena.map(0, &file, 0, 64 * PAGE, Prot::ReadWrite, Sharing::Shared).expect("room");
        for round in 1..4u8 {
            for p in 0..64 {
                assert_eq!(load(&arena, p * PAGE + 1), 7);
                store(&arena, p * PAGE, round);
            }
            file.sync(0..64 * PAGE as u64).expect("the disk is well");
            let bytes = std::fs::read(&path).expect("it is there");
            assert!(bytes.chunks(PAGE).all(|page| page[0] == round && page[1] == 7), "round {round}");
        }
    }
    std::fs::remove_file(&path).expect("it is there");
}
