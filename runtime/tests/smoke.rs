//! smoke
use softfault::*;
use std::io::Write;

fn file(len: usize) -> (std::path::PathBuf, Vec<u8>) {
    let p = std::env::temp_dir().join(format!("sf-smoke-{}-{:?}", std::process::id(), std::thread::current().id()));
    let data: Vec<u8> = (0..len).map(|i| (i / 4096 * 7 + i % 251) as u8).collect();
    std::fs::File::create(&p).unwrap().write_all(&data).unwrap();
    (p, data)
}

fn run(mode: Delivery) {
    let rt = Runtime::new().unwrap();
    println!("{}", rt.delivery());
    let (p, data) = file((5 << 20) + 1234);
    let obj = rt.open_file(&p).unwrap();
    let arena = rt.arena(16 << 20).delivery(mode).build().unwrap();
    arena.map(0, &obj, 0, data.len(), Prot::Read, Sharing::Shared).unwrap();
    let s = unsafe { arena.as_slice(0..data.len()) };
    assert!(s == &data[..], "content");
    let tail = unsafe { arena.as_slice(data.len()..data.len().next_multiple_of(4096)) };
    assert!(tail.iter().all(|b| *b == 0));
    arena.map(8 << 20, &obj, 0, data.len(), Prot::ReadWrite, Sharing::Private).unwrap();
    for i in (0..data.len()).step_by(4096) {
        let q = unsafe { arena.as_ptr().add((8 << 20) + i) };
        unsafe { q.write_volatile(9) };
        assert_eq!(unsafe { q.read_volatile() }, 9);
        assert_eq!(unsafe { q.add(1).read_volatile() }, data[i + 1]);
    }
    let s = unsafe { arena.as_slice(0..data.len()) };
    assert!(s == &data[..], "content unchanged");
    println!("{}", rt.stats());
    drop(arena);
    drop(obj);
    std::fs::remove_file(p).unwrap();
}

#[test]
fn in_thread() {
    run(Delivery::InThread)
}
#[test]
fn segv() {
    run(Delivery::Segv)
}
#[test]
fn monitor() {
    run(Delivery::Monitor)
}
