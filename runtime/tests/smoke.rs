//! One file, read and privately written, over each delivery mode: the shortest way through everything.

use softfault::{Delivery, Prot, Runtime, Sharing};

const PRIVATE: usize = 8 << 20;

fn byte(i: usize) -> u8 {
    u8::try_from((i / 4096 * 7 + i % 251) % 256).expect("below 256")
}

fn run(mode: Delivery) {
    let rt = Runtime::new().expect("a runtime");
    if !rt.delivery().is_available(mode) {
        eprintln!("skipped: {}", rt.delivery().finding(mode).expect("every mode has a finding").why);
        return;
    }
    let data: Vec<u8> = (0..(5 << 20) + 1234).map(byte).collect();
    let path = std::env::temp_dir().join(format!("softfault-smoke-{mode:?}-{}", std::process::id()));
    std::fs::write(&path, &data).expect("a file in the temp folder");
    let object = rt.open_file(&path).expect("the file");
    std::fs::remove_file(&path).expect("the file's name");

    let arena = rt.arena(16 << 20).delivery(mode).build().expect("an arena");
    arena.map(0, &object, 0, data.len(), Prot::Read, Sharing::Shared).expect("the shared mapping");
    // SAFETY: mapped readable, to its last page's end, until the arena goes; the private stores below go elsewhere.
    let shared = unsafe { arena.as_slice(0..data.len().next_multiple_of(4096)) };
    assert!(shared[..data.len()] == data, "the file's bytes");
    assert!(shared[data.len()..].iter().all(|b| *b == 0), "zeros behind its end");

    arena.map(PRIVATE, &object, 0, data.len(), Prot::ReadWrite, Sharing::Private).expect("the private mapping");
    for i in (0..data.len()).step_by(4096) {
        let at = arena.as_ptr().wrapping_add(PRIVATE + i);
        // SAFETY: mapped for stores, and this thread's alone.
        unsafe { at.write_volatile(9) };
        // SAFETY: as above.
        assert_eq!(unsafe { at.read_volatile() }, 9);
        // SAFETY: as above; the file has more than one byte in each page.
        assert_eq!(unsafe { at.wrapping_add(1).read_volatile() }, data[i + 1]);
    }
    assert!(shared[..data.len()] == data, "the file's bytes, after private stores");
}

#[test]
fn in_thread() {
    run(Delivery::InThread);
}

#[test]
fn segv() {
    run(Delivery::Segv);
}

#[test]
fn monitor() {
    run(Delivery::Monitor);
}
