//! Snapshots of other programs, made here by writers of their formats that share no code with the readers.
#![allow(clippy::cast_possible_truncation, reason = "small images")]

mod common;

use common::{filled, read_all};
use softfault_image::import::{cloud_hypervisor, criu, qemu};
use softfault_image::{Error, Image, PAGE_SIZE, Prot};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

const PAGE: u64 = PAGE_SIZE as u64;

// ---- Protocol Buffers, as CRIU writes them ----------------------------------------------------------------------------

fn varint(mut n: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while n >= 0x80 {
        bytes.push(n as u8 | 0x80);
        n >>= 7;
    }
    bytes.push(n as u8);
    bytes
}

fn number(field: u64, n: u64) -> Vec<u8> {
    [varint(field << 3), varint(n)].concat()
}

fn nested(field: u64, inner: &[u8]) -> Vec<u8> {
    [varint(field << 3 | 2), varint(inner.len() as u64), inner.to_vec()].concat()
}

fn img(magic: u32, messages: &[Vec<u8>]) -> Vec<u8> {
    let mut all = [0x5456_4319u32.to_le_bytes(), magic.to_le_bytes()].concat();
    for m in messages {
        all.extend((m.len() as u32).to_le_bytes());
        all.extend(m);
    }
    all
}

/// vaddr, pages, flags: 1 in the parent, 2 lazy, 4 present.
fn pagemap(entries: &[(u64, u64, u64)], newer: bool) -> Vec<u8> {
    let mut messages = vec![number(1, 7)];
    for (vaddr, nr, flags) in entries {
        let pages = if newer { [number(2, 0), number(5, *nr)].concat() } else { number(2, *nr) };
        messages.push([number(1, *vaddr), pages, number(4, *flags)].concat());
    }
    img(0x5608_4025, &messages)
}

fn mm(vmas: &[(u64, u64, u64)]) -> Vec<u8> {
    mm_of(&vmas.iter().map(|(start, end, prot)| (*start, *end, *prot, 1 | 1 << 9)).collect::<Vec<_>>())
}

/// Mappings of several kinds.
fn mm_of(vmas: &[(u64, u64, u64, u64)]) -> Vec<u8> {
    let mut message = number(1, 0x40_0000);
    for (start, end, prot, status) in vmas {
        let vma = [number(1, *start), number(2, *end), number(3, 0), number(5, *prot), number(6, 0x22)].concat();
        let vma = [vma, number(7, *status)].concat();
        message.extend(nested(14, &vma));
    }
    img(0x5749_2820, &[message])
}

const HEAP: u64 = 0x5555_5555_5000;
const STACK: u64 = 0x7fff_ffff_0000;

fn dump(folder: &Path, entries: &[(u64, u64, u64)], pages: &[[u8; PAGE_SIZE]], newer: bool) {
    fs::create_dir_all(folder).expect("folder");
    fs::write(folder.join("pagemap-42.img"), pagemap(entries, newer)).expect("pagemap");
    fs::write(folder.join("pages-7.img"), pages.concat()).expect("pages");
    let vmas = [(HEAP, HEAP + 600 * PAGE, 3), (0x6000_0000_0000, 0x6100_0000_0000, 0), (STACK, STACK + 8 * PAGE, 3)];
    fs::write(folder.join("mm-42.img"), mm(&vmas)).expect("mm");
}

#[test]
fn a_dump_of_criu_is_an_image() {
    let folder = tempfile::tempdir().expect("a folder");
    let pages = filled(10, 4);
    dump(folder.path(), &[(HEAP + 5 * PAGE, 8, 4), (STACK + PAGE, 2, 4)], &pages, true);
    let image = criu::open(folder.path(), 42).expect("open");
    let all = read_all(&image);
    let [heap, stack] = image.regions() else { panic!("{:?}", image.regions()) };
    assert_eq!((heap.address, heap.len_bytes, stack.address), (HEAP, 600 * PAGE, STACK));
    assert_eq!(heap.prot, Prot::READ | Prot::WRITE);
    // An extent of the image is an extent of the addresses.
    assert!(image.regions().iter().all(|r| r.address % (2 << 20) == r.offset % (2 << 20)));
    let page = |region: &softfault_image::Region, n: u64| all[(region.offset / PAGE + n) as usize];
    assert_eq!((page(heap, 5), page(heap, 12), page(heap, 4)), (pages[0], pages[7], [0; PAGE_SIZE]));
    assert_eq!((page(stack, 1), page(stack, 2), page(stack, 3)), (pages[8], pages[9], [0; PAGE_SIZE]));
    assert!(image.file_digest().is_none() && !image.is_verifiable().expect("layers"));
}

#[test]
fn a_chain_of_dumps_shows_the_newest_pages() {
    let folder = tempfile::tempdir().expect("a folder");
    let (old, new) = (folder.path().join("old"), folder.path().join("new"));
    let pages = filled(10, 8);
    dump(&old, &[(HEAP, 6, 4)], &pages[..6], false);
    // Page 1 is new; 2 and 3 are the parent's; 4 and 5 are not in the process any more.
    dump(&new, &[(HEAP, 1, 1), (HEAP + PAGE, 1, 4), (HEAP + 2 * PAGE, 2, 1)], &pages[9..], true);
    symlink("../old", new.join("parent")).expect("symlink");
    let all = read_all(&criu::open(&new, 42).expect("open"));
    let at = |n: u64| all[((HEAP / PAGE) % 512 + n) as usize];
    assert_eq!([at(0), at(1), at(2), at(3)], [pages[0], pages[9], pages[2], pages[3]]);
    assert_eq!([at(4), at(5)], [[0; PAGE_SIZE]; 2]);
    symlink(".", old.join("parent")).expect("symlink");
    let error = criu::open(&new, 42).expect_err("a folder that is its own parent");
    assert!(error.is_corruption() && error.to_string().contains("parent of itself"), "{error}");
}

/// What of a file's mapping is not in the dump is in the file, and not zero; what the kernel has put there is nobody's.
#[test]
fn only_what_the_dump_knows_is_memory() {
    let folder = tempfile::tempdir().expect("a folder");
    let pages = filled(6, 4);
    let text = 0x40_0000;
    dump(folder.path(), &[(text + 2 * PAGE, 2, 4), (text + 5 * PAGE, 1, 4), (HEAP, 3, 4)], &pages, true);
    const FILE_PRIVATE: u64 = 1 << 6;
    const ANON_PRIVATE: u64 = 1 << 9;
    let vmas = [
        (text, text + 9 * PAGE, 5, 1 | FILE_PRIVATE),
        (HEAP, HEAP + 8 * PAGE, 3, 1 | ANON_PRIVATE),
        (STACK, STACK + PAGE, 3, 1 | 1 << 8),
        (STACK + PAGE, STACK + 3 * PAGE, 1, 1 | ANON_PRIVATE | 1 << 12),
        (0xffff_ffff_ff60_0000, 0xffff_ffff_ff60_1000, 4, 1 << 2),
        (HEAP + PAGE, HEAP + 2 * PAGE, 0, 1 << 16),
    ];
    fs::write(folder.path().join("mm-42.img"), mm_of(&vmas)).expect("mm");
    let image = criu::open(folder.path(), 42).expect("open");
    let shape: Vec<_> = image.regions().iter().map(|r| (r.address, r.len_bytes / PAGE)).collect();
    assert_eq!(shape, [(text + 2 * PAGE, 2), (text + 5 * PAGE, 1), (HEAP, 8)]);
    let all = read_all(&image);
    let of = |r: &softfault_image::Region| all[r.pages().start as usize..r.pages().end as usize].concat();
    let found: Vec<u8> = image.regions().iter().flat_map(of).collect();
    assert!(found == [pages.concat(), vec![0; 5 * PAGE_SIZE]].concat());
}

/// Address space that a process, or a file, only says that it has costs no time.
#[test]
fn a_mapping_of_exabytes_is_passed_over() {
    let folder = tempfile::tempdir().expect("a folder");
    let pages = filled(4, 2);
    dump(folder.path(), &[(HEAP, 4, 4)], &pages, true);
    fs::write(folder.path().join("mm-42.img"), mm(&[(HEAP, 1 << 62, 3)])).expect("mm");
    let image = criu::open(folder.path(), 42).expect("open");
    assert!(image.nr_pages() > 1 << 49);
    image.compute_content_digest().expect("what there is");
    let diff = softfault_image::ops::diff(&image, &image, softfault_image::ops::Compare::Pages).expect("diff");
    assert!(diff.runs().is_empty());
    let path = folder.path().join("x.sfi");
    let stored = softfault_image::ops::Stored::default();
    let error = softfault_image::ops::convert(&image, path, &stored).expect_err("too long");
    assert!(matches!(error, Error::Argument { .. }), "{error}");
}

#[test]
fn what_is_wrong_with_a_dump_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let (at, pages) = (folder.path(), filled(4, 2));
    let refused = |file: &str, bytes: &[u8], wanted: &str| {
        dump(at, &[(HEAP, 4, 4)], &pages, true);
        fs::write(at.join(file), bytes).expect("write");
        let error = criu::open(at, 42).expect_err(wanted).to_string();
        assert!(error.contains(wanted) && error.contains(file), "{error}, and not {wanted}");
    };
    refused("pagemap-42.img", &pagemap(&[(HEAP + PAGE, 2, 4), (HEAP, 1, 4)], true), "out of order");
    refused("pagemap-42.img", &pagemap(&[(HEAP, 2, 4), (HEAP + PAGE, 1, 1)], true), "out of order");
    refused("pagemap-42.img", b"\x19\x43\x56\x54\0\0\0\0", "it begins with 0x0");
    refused("pagemap-42.img", &pagemap(&[(HEAP, 5, 4)], true), "past the end of the pages' file");
    refused("pagemap-42.img", &pagemap(&[(HEAP + 1, 1, 4)], true), "no range of addresses");
    refused("pagemap-42.img", &pagemap(&[(HEAP, u64::MAX, 4)], true), "no range of addresses");
    refused("pagemap-42.img", &img(0x5608_4025, &[]), "it has no head");
    let compressed =
        img(0x5608_4025, &[number(1, 7), [number(1, HEAP), number(5, 1), number(4, 4), number(6, 1)].concat()]);
    refused("pagemap-42.img", &compressed, "compressed pages, perhaps");
    let whole = pagemap(&[(HEAP, 4, 4)], true);
    for len in 0..whole.len() {
        dump(at, &[(HEAP, 4, 4)], &pages, true);
        fs::write(at.join("pagemap-42.img"), &whole[..len]).expect("write");
        if let Ok(image) = criu::open(at, 42) {
            // Cut between two messages: the rest of them is no dump's.
            assert!(read_all(&image).iter().all(|p| *p == [0; PAGE_SIZE]), "{len}");
        }
    }
    refused("mm-42.img", &mm(&[(HEAP, HEAP, 3)]), "is no mapping");
    refused("mm-42.img", &mm(&[(STACK, STACK + PAGE, 3), (HEAP, HEAP + PAGE, 3)]), "out of order");
}

// ---- Cloud Hypervisor -------------------------------------------------------------------------------------------------

#[test]
fn a_snapshot_of_cloud_hypervisor_is_an_image() {
    let folder = tempfile::tempdir().expect("a folder");
    let pages = filled(24, 3);
    fs::write(folder.path().join("memory-ranges"), pages.concat()).expect("write");
    let inner = serde_json::json!({
        "memory_ranges": { "data": [{ "gpa": 0, "length": 16 * PAGE }, { "gpa": 1u64 << 32, "length": 8 * PAGE }] },
        "guest_ram_mappings": [], "boot_ram": 24 * PAGE,
    });
    let state = serde_json::json!({ "snapshots": {
        "cpu-manager": { "snapshots": {}, "snapshot_data": { "state": "{}" } },
        "memory-manager": { "snapshots": {}, "snapshot_data": { "state": inner.to_string() } },
    }});
    fs::write(folder.path().join("state.json"), state.to_string()).expect("write");
    let image = cloud_hypervisor::open(folder.path()).expect("open");
    assert_eq!(read_all(&image), pages);
    let [low, high] = image.regions() else { panic!("{:?}", image.regions()) };
    assert_eq!((low.address, low.len_bytes), (0, 16 * PAGE));
    assert_eq!((high.address, high.offset, high.len_bytes), (1 << 32, 16 * PAGE, 8 * PAGE));

    fs::write(folder.path().join("memory-ranges"), pages[..23].concat()).expect("write");
    let error = cloud_hypervisor::open(folder.path()).expect_err("it is too short").to_string();
    assert!(error.contains("ram1"), "{error}");
    fs::write(folder.path().join("state.json"), "{}").expect("write");
    let error = cloud_hypervisor::open(folder.path()).expect_err("no table").to_string();
    assert!(error.contains("memory_ranges"), "{error}");
    fs::write(folder.path().join("state.json"), &state.to_string()[..50]).expect("write");
    assert!(cloud_hypervisor::open(folder.path()).expect_err("cut short").is_corruption());
}

// ---- QEMU -------------------------------------------------------------------------------------------------------------

/// A migration file: each block is given with the pages that were written; a block without any was ignored. With `address` each
/// says where it lies.
fn mapped_ram(blocks: &[(&str, Option<&[[u8; PAGE_SIZE]]>)], address: Option<u64>) -> Vec<u8> {
    let mut file = [0x5145_564du32.to_be_bytes(), 3u32.to_be_bytes()].concat();
    // The configuration section, whose contents nobody looks at.
    file.extend(b"\x07\0\0\0\x09pc-q35-99");
    file.extend(b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04");
    let total: u64 = blocks.iter().map(|(_, pages)| pages.map_or(PAGE, |p| p.len() as u64 * PAGE)).sum();
    file.extend((total | 4).to_be_bytes());
    for (name, pages) in blocks {
        file.push(name.len() as u8);
        file.extend(name.as_bytes());
        let nr = pages.map_or(1, <[_]>::len) as u64;
        file.extend((nr * PAGE).to_be_bytes());
        address.iter().for_each(|a| file.extend(a.to_be_bytes()));
        file.extend(1u32.to_be_bytes());
        file.extend(PAGE.to_be_bytes());
        let Some(pages) = pages else {
            file.extend([0; 16]);
            continue;
        };
        let bitmap_at = file.len() as u64 + 16;
        let bitmap_len = nr.div_ceil(64) * 8;
        let pages_at = (bitmap_at + bitmap_len).next_multiple_of(1 << 20);
        file.extend(bitmap_at.to_be_bytes());
        file.extend(pages_at.to_be_bytes());
        let mut bitmap = vec![0u8; bitmap_len as usize];
        file.resize(pages_at as usize, 0);
        for (i, page) in pages.iter().enumerate() {
            let is_zero = page.iter().all(|b| *b == 0);
            bitmap[i / 8] |= u8::from(!is_zero) << (i % 8);
            // What is not in the bitmap may be anything: an older copy.
            file.extend(if is_zero { [0xee; PAGE_SIZE] } else { *page });
        }
        file[bitmap_at as usize..bitmap_at as usize + bitmap.len()].copy_from_slice(&bitmap);
    }
    file.extend(0u64.to_be_bytes());
    file
}

#[test]
fn a_migration_of_qemu_is_an_image() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("vm.mapped-ram");
    let (ram, rom) = (filled(700, 3), filled(9, 5));
    let file = mapped_ram(&[("pc.ram", Some(&ram)), ("shared", None), ("pc.bios", Some(&rom))], None);
    fs::write(&path, &file).expect("write");
    let image = qemu::open(&path).expect("open");
    let names: Vec<_> = image.regions().iter().map(|r| (r.name.as_str(), r.len_bytes)).collect();
    assert_eq!(names, [("pc.ram", 700 * PAGE), ("pc.bios", 9 * PAGE)]);
    let all = read_all(&image);
    assert_eq!(all[..700], ram[..]);
    assert_eq!(all[1024..1033], rom[..]);

    // Saved with `x-ignore-shared`; an address above 4 GiB looks as a version does.
    for address in [0, 1 << 32, (1 << 32) + 4096, u64::MAX] {
        let with = mapped_ram(&[("pc.ram", Some(&ram)), ("shared", None), ("pc.bios", Some(&rom))], Some(address));
        fs::write(&path, with).expect("write");
        assert_eq!(read_all(&qemu::open(&path).expect("open")), all, "{address:#x}");
    }

    for len in (0..4096).step_by(5).chain([file.len() - PAGE_SIZE - 9]) {
        fs::write(&path, &file[..len.min(file.len())]).expect("write");
        let error = qemu::open(&path).expect_err("it is cut short");
        assert!(error.is_corruption(), "{len} bytes: {error}");
    }
    let mut bad = file.clone();
    bad[7] = 4;
    fs::write(&path, &bad).expect("write");
    assert!(matches!(qemu::open(&path), Err(Error::Unsupported { .. })), "another version of the stream");
    for at in 8..120 {
        let mut bad = file.clone();
        bad[at] ^= 0x41;
        fs::write(&path, &bad).expect("write");
        // Whatever it says now: no panic, and no page from outside the file.
        if let Ok(image) = qemu::open(&path) {
            let _ = read_all(&image);
        }
    }
}

/// A stack of sparse files, ten thousand of them, is one flat map.
#[test]
fn many_diffs_are_one_map() {
    let folder = tempfile::tempdir().expect("a folder");
    let nr = 1000u64;
    let base = folder.path().join("base");
    fs::write(&base, vec![1; (nr * PAGE) as usize]).expect("write");
    let mut diffs = Vec::new();
    let mut model = vec![[1u8; PAGE_SIZE]; nr as usize];
    for n in 0..200u64 {
        let path = folder.path().join(format!("{n}"));
        let file = fs::File::create(&path).expect("create");
        file.set_len(nr * PAGE).expect("len");
        for p in [n * 7 % nr, n * 13 % nr] {
            let page = [n as u8 + 2; PAGE_SIZE];
            std::os::unix::fs::FileExt::write_all_at(&file, &page, p * PAGE).expect("write");
            model[p as usize] = page;
        }
        diffs.push(path);
    }
    let image = Image::raw_stack(&base, &diffs).expect("stack");
    assert_eq!(read_all(&image), model);
    assert!(image.map().expect("map").fragmentation().most <= 512);
}
