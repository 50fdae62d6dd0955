//! The monitor's bell, and programs that close it and have files of their own under its numbers.
#![allow(clippy::unwrap_used, clippy::expect_used, unsafe_code, reason = "duplicates descriptors by number")]

use softfault_platform::bell;
use softfault_platform::sys::file;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::UnixStream;

/// The numbers that name sockets.
fn sockets() -> Vec<i32> {
    let all =
        std::fs::read_dir("/proc/self/fd").expect("/proc").filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
    let is_one = |n: &i32| {
        std::fs::read_link(format!("/proc/self/fd/{n}")).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"))
    };
    all.filter(is_one).collect()
}

fn is_rung(hears: i32) -> bool {
    file::poll_in([hears, -1], 0).expect("poll") == 1
}

/// Gives `number` to what `file` names; the result closes it.
fn take(number: i32, file: &impl AsRawFd) -> File {
    // SAFETY: duplicates a descriptor of ours over a number that this test takes from the bell.
    assert_eq!(unsafe { libc::dup2(file.as_raw_fd(), number) }, number);
    // SAFETY: nobody else owns the number now.
    unsafe { File::from_raw_fd(number) }
}

// One test: the bell is the process's.
#[test]
fn a_number_that_names_another_file_is_not_rung() {
    let before = sockets();
    let hears = bell::get().expect("a bell");
    assert_eq!(bell::get(), Ok(hears), "it stays");
    let both: Vec<_> = sockets().into_iter().filter(|n| !before.contains(n)).collect();
    assert_eq!(both.len(), 2);
    let rings = both[usize::from(both[0] == hears)];
    for number in &both {
        // SAFETY: touches no memory.
        assert_eq!(unsafe { libc::fcntl(*number, libc::F_GETFD) }, libc::FD_CLOEXEC, "no bell in another program");
    }
    bell::ring();
    assert!(is_rung(hears));
    bell::hush();
    assert!(!is_rung(hears));
    for _ in 0..100_000 {
        bell::ring();
    }
    assert!(is_rung(hears), "and nobody waits for a monitor that does not come");

    // A socket of the program's, and a file, under the number that is rung.
    let (mut theirs, other) = UnixStream::pair().expect("a pair");
    theirs.set_nonblocking(true).expect("non-blocking");
    let taken = take(rings, &other);
    bell::ring();
    let heard = theirs.read(&mut [0; 8]).map_err(|e| e.kind());
    assert_eq!(heard, Err(ErrorKind::WouldBlock), "the program's socket is no bell");
    drop(taken);
    let mut file = File::open("/proc/self/comm").expect("a file");
    let taken = take(rings, &file);
    bell::ring();
    assert!(file::send(rings, &[1]).is_err(), "also if it was opened after the look");
    assert_eq!(file.stream_position().expect("position"), 0);

    // An end hung up, which wakes who polls the other; the next bell is another one, and the program's file stays.
    assert!(is_rung(hears));
    let again = bell::get().expect("another bell");
    assert!(!is_rung(again));
    bell::ring();
    assert!(is_rung(again));
    file.read_to_end(&mut vec![]).expect("the program's file is open");
    drop(taken);
}
