//! A file as a store, through the kernel's cache and past it: what was written is what is read, here and in the file.

mod support;

use softfault_platform::store::file::FileStore;
use softfault_platform::store::{PageMut, PageRef, Store, StoreError};
use softfault_platform::sys::Errno;
use std::fs::File;
use std::os::fd::IntoRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use support::{PAGE, Rng, read, same, temp_file, write};

/// Runs `f` over a file of `len` bytes, buffered and direct; `true`: direct was had.
fn each_way(len: usize, f: impl Fn(&FileStore, &File, bool)) {
    for direct in [false, true] {
        let file = temp_file(len as u64);
        let fd = file.try_clone().expect("dup").into_raw_fd();
        let store = if direct { FileStore::direct(fd, 0, true) } else { FileStore::new(fd, 0) };
        if direct && !store.is_direct() {
            println!("direct skipped: the file system of the temporary folder refuses O_DIRECT");
            continue;
        }
        f(&store, &file, direct);
        assert_eq!(store.is_direct(), direct, "nothing fell back on the way");
    }
}

fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.metadata().expect("metadata").len()).expect("a length")];
    file.read_exact_at(&mut bytes, 0).expect("read");
    bytes
}

#[test]
fn what_is_written_is_read_here_and_in_the_file() {
    // The last page is a partial one.
    let len = 37 * PAGE + 1234;
    each_way(len, |store, file, direct| {
        let mut rng = Rng(7);
        let mut model = vec![0; len];
        for i in 0..300 {
            let page = rng.below(len.div_ceil(PAGE));
            let pages = 1 + rng.below(9);
            let range = page * PAGE..((page + pages) * PAGE).min(len);
            if rng.below(2) == 0 {
                let bytes = rng.bytes(range.len());
                write(store, range.start, &bytes).expect("write");
                model[range].copy_from_slice(&bytes);
            } else {
                let got = read(store, range.start, range.len()).expect("read");
                same(&format!("step {i}, direct {direct}"), &got, &model[range]);
            }
        }
        store.flush().expect("flush");
        same("the file", &content(file), &model);
    });
}

#[test]
fn reads_past_the_end_of_the_file_are_short() {
    each_way(PAGE + 100, |store, _, direct| {
        for (pos, len) in [(PAGE, PAGE), (0, 2 * PAGE), (0, 3 * PAGE), (2 * PAGE, PAGE), (PAGE, 101)] {
            assert_eq!(read(store, pos, len), Err(StoreError::Short), "{pos}+{len}, direct {direct}");
        }
        assert_eq!(read(store, PAGE, 100), Ok(vec![0; 100]), "the last bytes, direct {direct}");
    });
}

#[test]
fn a_punched_range_reads_as_zeros_and_gives_its_blocks_back() {
    let len = 64 * PAGE;
    each_way(len, |store, file, direct| {
        let mut model = Rng(9).bytes(len);
        write(store, 0, &model).expect("write");
        store.flush().expect("flush");
        let blocks = file.metadata().expect("metadata").blocks();
        // Page-aligned, then parts of pages.
        for (pos, n) in [(8 * PAGE, 40 * PAGE), (100, 3 * PAGE), (60 * PAGE + 1, 1), (5, 0)] {
            match store.punch(pos as u64, n as u64) {
                Err(StoreError::Unsupported) => return println!("skipped: no punch in the temporary folder"),
                r => r.expect("punch"),
            }
            model[pos..pos + n].fill(0);
        }
        same(&format!("direct {direct}"), &read(store, 0, len).expect("read"), &model);
        assert_eq!(content(file).len(), len, "the length stays");
        store.flush().expect("flush");
        assert!(file.metadata().expect("metadata").blocks() < blocks, "direct {direct}: blocks went");
    });
}

#[test]
fn the_end_moves_and_what_was_past_it_is_zero_when_it_comes_back() {
    each_way(4 * PAGE, |store, file, direct| {
        let bytes = Rng(3).bytes(4 * PAGE);
        write(store, 0, &bytes).expect("write");
        store.set_len(PAGE as u64 + 700).expect("shrink");
        assert_eq!(content(file).len(), PAGE + 700);
        store.set_len(6 * PAGE as u64).expect("grow");
        let mut want = bytes[..PAGE + 700].to_vec();
        want.resize(6 * PAGE, 0);
        same(&format!("direct {direct}"), &read(store, 0, 6 * PAGE).expect("read"), &want);
        let tail = Rng(4).bytes(PAGE);
        write(store, 5 * PAGE, &tail).expect("write behind the hole");
        same("behind the hole", &read(store, 5 * PAGE, PAGE).expect("read"), &tail);
    });
}

#[test]
fn dsync_allocates_without_changing_bytes_or_length() {
    each_way(3 * PAGE + 5, |store, file, direct| {
        let bytes = Rng(5).bytes(PAGE);
        write(store, PAGE, &bytes).expect("write");
        store.flush().expect("flush");
        let before = file.metadata().expect("metadata").blocks();
        match store.dsync(0, 4 * PAGE as u64) {
            Err(StoreError::Unsupported) => return println!("skipped: no fallocate in the temporary folder"),
            r => r.expect("dsync"),
        }
        assert!(file.metadata().expect("metadata").blocks() > before, "direct {direct}: blocks were allocated");
        assert_eq!(content(file).len(), 3 * PAGE + 5, "the length stays");
        same("bytes stay", &read(store, PAGE, PAGE).expect("read"), &bytes);
        store.dsync(0, 0).expect("an empty range");
    });
}

#[test]
fn an_object_inside_a_file_stays_there() {
    for (base, direct) in [(PAGE, false), (PAGE, true), (777, true)] {
        let file = temp_file(10 * PAGE as u64);
        let fd = file.try_clone().expect("dup").into_raw_fd();
        let (base, bytes) = (base as u64, Rng(6).bytes(2 * PAGE));
        let store = if direct { FileStore::direct(fd, base, true) } else { FileStore::new(fd, base) };
        write(&store, PAGE, &bytes).expect("write");
        same("by the store", &read(&store, PAGE, 2 * PAGE).expect("read"), &bytes);
        let mut got = vec![0; 2 * PAGE];
        file.read_exact_at(&mut got, base + PAGE as u64).expect("read");
        same("by the file", &got, &bytes);
    }
}

#[test]
fn memory_that_is_not_aligned_goes_through_the_kernels_cache() {
    each_way(4 * PAGE, |store, file, _| {
        let mut buffer = vec![0u8; 4 * PAGE];
        let bytes = Rng(8).bytes(2 * PAGE);
        let odd = if (buffer.as_ptr() as usize).is_multiple_of(2) { 1 } else { 2 };
        buffer[odd..odd + 2 * PAGE].copy_from_slice(&bytes);
        store.write(0, &PageRef::from(&buffer[odd..odd + 2 * PAGE])).expect("write");
        buffer.fill(0);
        store.read(0, &mut PageMut::from(&mut buffer[odd..odd + 2 * PAGE])).expect("read");
        same("odd memory", &buffer[odd..odd + 2 * PAGE], &bytes);
        same("the file", &content(file)[..2 * PAGE], &bytes);
    });
}

/// Whoever else has the file open moves its end, too.
#[test]
fn an_end_that_another_moved_is_left_where_it_is() {
    each_way(4 * PAGE, |store, file, direct| {
        file.set_len(9 * PAGE as u64).expect("append");
        store.set_len(4 * PAGE as u64).expect("said again, as after a flush that failed");
        assert_eq!(content(file).len(), 9 * PAGE, "direct {direct}");
        file.set_len(PAGE as u64 + 5).expect("cut");
        store.set_len(4 * PAGE as u64).expect("said again");
        assert_eq!(write(store, PAGE, &[7; PAGE]), Err(StoreError::Short), "direct {direct}");
        assert_eq!(write(store, PAGE, &[7; 5]), Ok(()), "up to the end");
        assert_eq!(content(file).len(), PAGE + 5, "direct {direct}");
        assert_eq!(store.len_bytes(), Ok(PAGE as u64 + 5));
        store.adopt_len(PAGE as u64 + 5);
        store.set_len(4 * PAGE as u64).expect("grow");
        assert_eq!(write(store, PAGE, &[7; PAGE]), Ok(()), "the program has said so");
        assert_eq!(content(file).len(), 4 * PAGE, "direct {direct}");
    });
}

#[test]
fn errors_are_the_kernels() {
    let read_only = {
        let file = temp_file(PAGE as u64);
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        FileStore::new(File::open(path).expect("open").into_raw_fd(), 0)
    };
    let refused = Err(StoreError::Io(Errno::EBADF));
    assert_eq!(write(&read_only, 0, &[1; PAGE]), refused);
    assert_eq!(read_only.punch(0, 1), refused);
    assert_eq!(read(&read_only, 0, PAGE), Ok(vec![0; PAGE]));
    let file = FileStore::new(temp_file(0).into_raw_fd(), u64::MAX - 5);
    assert_eq!(file.set_len(10), Err(StoreError::Io(Errno::EFBIG)), "past the end of numbers");
}
