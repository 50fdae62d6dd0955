//! Every decoder over its corpus, and over mutations of it: the same ones in each run.
//!
//! `SOFTFAULT_FUZZ_CASES=200000` runs so many instead of some thousand, over each target.
//! `SOFTFAULT_WRITE_CORPUS=1 cargo test -p softfault-image --test decoders` writes the corpus anew.
#![allow(clippy::cast_possible_truncation, reason = "files of kilobytes")]

mod fuzz;

use fuzz::{TARGETS, joined};
use softfault_image::workingset::{Resolution, WorkingSet};
use softfault_image::{Codec, Image, PAGE_SIZE, Prot, Region, Writer, write_sidecar};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Mutations of each target's corpus.
fn cases() -> u64 {
    std::env::var("SOFTFAULT_FUZZ_CASES").ok().map_or(2_000, |nr| nr.parse().expect("a number"))
}

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target)
}

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// Numbers at which something ends.
const EDGES: [u64; 16] = [
    0,
    1,
    2,
    511,
    512,
    4095,
    4096,
    65_535,
    65_536,
    u32::MAX as u64,
    1 << 36,
    1 << 48,
    i64::MAX as u64,
    1 << 63,
    u64::MAX - 4095,
    u64::MAX,
];

/// What may come in place of a number in a text.
const WORDS: [&str; 9] = ["null", "[]", "{}", "-1", "../", "/", "\\u0000", "1e9", "."];

/// Changes bytes in up to four places; `near` says where there is something to change.
fn mutate(bytes: &mut Vec<u8>, near: &[usize], other: &[u8], rng: &mut Rng) {
    for _ in 0..=rng.below(4) {
        // Most of an image is padding.
        let any = rng.below(bytes.len());
        let at = if rng.below(4) == 0 || near.is_empty() { any } else { near[rng.below(near.len())] };
        // What is not zero may be the end of a number, or its beginning.
        let at = (at + [0, 0, 1, 4][rng.below(4)]).saturating_sub([0, 0, 3, 7, 6][rng.below(5)]);
        let at = at.min(bytes.len().saturating_sub(1));
        match rng.below(10) {
            0 | 1 if !bytes.is_empty() => bytes[at] ^= 1 << rng.below(8),
            2 if !bytes.is_empty() => bytes[at] = rng.next() as u8,
            3 | 4 => {
                let (len, value) = ([1, 2, 4, 8][rng.below(4)], EDGES[rng.below(EDGES.len())]);
                let value = if rng.below(2) == 0 { value.to_le_bytes() } else { value.swap_bytes().to_le_bytes() };
                let part = if value[0] == 0 { &value[8 - len..] } else { &value[..len] };
                if let Some(room) = bytes.get_mut(at..at + len) {
                    room.copy_from_slice(part);
                }
            }
            5 => bytes.truncate(bytes.len() - rng.below(bytes.len().min(200) + 1)),
            6 => {
                let end = (at + rng.below(32)).min(bytes.len());
                bytes.drain(at.min(end)..end);
            }
            7 => {
                let end = (at + rng.below(32)).min(bytes.len());
                let part = bytes.get(at..end).unwrap_or_default().to_vec();
                bytes.splice(at..at, part);
            }
            8 => {
                // A number in a text, or a word of it.
                let is_digit = |b: &u8| b.is_ascii_digit();
                let from = bytes.iter().skip(at).position(is_digit).map_or(at, |n| at + n);
                let nr = bytes.iter().skip(from).take_while(|b| is_digit(b)).count();
                let word =
                    WORDS.get(rng.below(20)).map_or_else(|| EDGES[rng.below(EDGES.len())].to_string(), |w| (*w).into());
                bytes.splice(from..from + nr, word.into_bytes());
            }
            _ => {
                let from = rng.below(other.len());
                let part = &other[from..(from + rng.below(64)).min(other.len())];
                let end = (at + part.len()).min(bytes.len());
                bytes.splice(at.min(end)..end, part.iter().copied());
            }
        }
    }
}

/// Whether few bytes are not zero: then a number may be anywhere.
fn is_small(seed: &[u8]) -> bool {
    seed.iter().filter(|b| **b != 0).count() < 300
}

/// Returns the places where a number may be: not in digests, nor in what is zero, nor in a text. In large files they are aligned.
fn numbers(seed: &[u8]) -> Vec<usize> {
    let is_text = seed.iter().filter(|b| b.is_ascii_graphic()).count() > seed.len() * 9 / 10;
    let most = if is_small(seed) { 8 } else { 4 };
    let is_number = |at: &usize| {
        let word = &seed[*at..(*at + 8).min(seed.len())];
        !is_text && (1..=most).contains(&word.iter().filter(|b| **b != 0).count())
    };
    (0..seed.len()).step_by(if is_small(seed) { 1 } else { 4 }).filter(is_number).collect()
}

/// Calls `f` with the seed, each of its numbers replaced by each edge.
fn sweep(seed: &[u8], mut f: impl FnMut(&[u8])) {
    let lens: &[usize] = if is_small(seed) { &[1, 2, 4, 8] } else { &[4, 8] };
    for at in numbers(seed).into_iter().filter(|at| at + 8 <= seed.len()) {
        // In a large file a third of them at each place.
        let (skip, step) = if is_small(seed) { (0, 1) } else { (at / 4 % 3, 3) };
        let edges = EDGES.into_iter().skip(skip).step_by(step);
        for (len, edge) in lens.iter().flat_map(|len| edges.clone().map(|edge| (*len, edge))) {
            let (le, be) = (edge.to_le_bytes(), edge.to_be_bytes());
            let parts = [&le[..len], &be[8 - len..]];
            for part in &parts[..if is_small(seed) { 2 } else { 1 }] {
                let mut bytes = seed.to_vec();
                bytes[at..at + len].copy_from_slice(part);
                f(&bytes);
            }
        }
    }
    // Numbers of Protocol Buffers, which the corpus has in ten bytes each.
    for at in 0..seed.len().saturating_sub(9) {
        if seed[at..at + 9].iter().all(|b| b & 0x80 != 0) {
            for edge in EDGES {
                let mut bytes = seed.to_vec();
                bytes[at..at + 10].copy_from_slice(&varint(edge));
                f(&bytes);
            }
        }
    }
    let mut at = 0;
    while let Some(from) = seed.iter().skip(at).position(u8::is_ascii_digit).map(|n| at + n) {
        let nr = seed.iter().skip(from).take_while(|b| b.is_ascii_digit()).count();
        for word in EDGES.map(|edge| edge.to_string()).into_iter().chain(WORDS.map(str::to_owned)) {
            f(&[&seed[..from], word.as_bytes(), &seed[from + nr..]].concat());
        }
        at = from + nr;
    }
}

fn run(name: &str) {
    let (_, target) = TARGETS.into_iter().find(|(n, _)| *n == name).expect("a target");
    if std::env::var_os("SOFTFAULT_WRITE_CORPUS").is_some() {
        write_corpus(name);
    }
    let mut files: Vec<PathBuf> =
        fs::read_dir(corpus(name)).expect("a corpus").map(|e| e.expect("file").path()).collect();
    files.sort();
    let seeds: Vec<Vec<u8>> = files.iter().map(|path| fs::read(path).expect("read")).collect();
    assert!(!seeds.is_empty(), "{name} has no corpus");
    let try_one = |what: &str, bytes: &[u8]| {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(bytes))) {
            let at = std::env::temp_dir().join(format!("softfault-{name}-failed"));
            fs::write(&at, bytes).expect("write");
            eprintln!("{name}: {what}: the bytes are in {}", at.display());
            std::panic::resume_unwind(panic);
        }
    };
    target(&[]);
    for (path, seed) in files.iter().zip(&seeds) {
        try_one(&path.display().to_string(), seed);
    }
    for seed in &seeds {
        sweep(seed, |bytes| try_one("a number replaced", bytes));
    }
    let near: Vec<Vec<usize>> = seeds.iter().map(|s| (0..s.len()).filter(|i| s[*i] != 0).collect()).collect();
    let mut rng = Rng(0x5eed_0000_0000_0001 | (name.len() as u64) << 8);
    for case in 0..cases() {
        let (n, other) = (rng.below(seeds.len()), rng.below(seeds.len()));
        let mut bytes = seeds[n].clone();
        mutate(&mut bytes, &near[n], &seeds[other], &mut rng);
        try_one(&format!("case {case}"), &bytes);
    }
}

macro_rules! targets {
    ($($name:ident)*) => { $(
        #[test]
        fn $name() {
            run(stringify!($name));
        }
    )*

    #[test]
    fn every_target_is_run() {
        let names = [$(stringify!($name)),*];
        assert_eq!(TARGETS.map(|(name, _)| name), names);
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/Cargo.toml");
        // The published crate has no libFuzzer's.
        if let Ok(text) = fs::read_to_string(fuzz) {
            assert!(names.iter().all(|name| text.contains(&format!("name = \"{name}\""))), "a target is missing in fuzz/Cargo.toml");
        }
    } };
}

targets! { sfi sfi_sealed sidecar criu cloud_hypervisor qemu working_set working_set_sealed tags oci }

// ---- The corpus -----------------------------------------------------------------------------------------------------------

fn image(path: &Path, codec: Codec) {
    let nr = 600;
    let mut w = Writer::create(path, nr).expect("create").codec(codec).frame_bytes(4 * PAGE_SIZE);
    let region = |name: &str, offset: u64, len_bytes: u64| {
        let address = 0x7000_0000 + offset;
        Region { name: name.into(), address, offset, len_bytes, prot: Prot::READ | Prot::WRITE }
    };
    w.region(region("low", 0, 8 << 12)).expect("region");
    w.region(region("high", 512 << 12, 88 << 12)).expect("region");
    w.key("cpu", b"some");
    let page = |n: u64| std::array::from_fn::<u8, PAGE_SIZE, _>(|i| if i < 20 { n as u8 + 1 } else { 0 });
    for p in [0, 1, 2, 5, 6, 599] {
        if codec != Codec::Raw || p % 2 == 0 {
            w.write(p, &page(p)).expect("write");
        }
    }
    w.finish().expect("finish");
}

fn write_corpus(name: &str) {
    let (to, made) = (corpus(name), tempfile::tempdir().expect("a folder"));
    fs::create_dir_all(&to).expect("a folder");
    let put = |file: &str, bytes: &[u8]| fs::write(to.join(file), bytes).expect("write");
    let at = |file: &str| made.path().join(file);
    match name {
        "sfi" | "sfi_sealed" => {
            for codec in [Codec::Raw, Codec::Lz4, Codec::Zstd { level: 3 }] {
                let path = at(&format!("{codec}.sfi"));
                image(&path, codec);
                put(&codec.to_string(), &fs::read(&path).expect("read"));
            }
        }
        "sidecar" => {
            fs::write(at("m.raw"), [[1; PAGE_SIZE], [0; PAGE_SIZE], [3; PAGE_SIZE]].concat()).expect("write");
            let raw = Arc::new(Image::open(at("m.raw")).expect("open"));
            write_sidecar(&raw, at("m.sfi")).expect("sidecar");
            let mut w = Writer::over(at("child.sfi"), 4, raw).expect("create");
            w.write(1, &[7; PAGE_SIZE]).expect("write");
            w.finish().expect("finish");
            for file in ["m.sfi", "child.sfi"] {
                put(file, &joined(&fs::read(at(file)).expect("read"), &fs::read(at("m.raw")).expect("read")));
            }
        }
        "working_set" | "working_set_sealed" => {
            for (file, resolution) in [("page", Resolution::PAGE), ("rounded", Resolution::ROUNDED)] {
                let mut set = WorkingSet::new(softfault_image::Digest::of(b"x"), 1 << 33, resolution);
                set.push(0..10, [1, 2, 3, 900]).expect("push");
                set.push(10..30, (0..9).map(|n| (1 << 32) + n * 70_000)).expect("push");
                set.save(at(file)).expect("save");
                put(file, &fs::read(at(file)).expect("read"));
            }
        }
        "criu" => put("dump", &criu_files()),
        "qemu" => put("stream", &qemu_file()),
        "cloud_hypervisor" => {
            let inner = r#"{\"memory_ranges\":{\"data\":[{\"gpa\":0,\"length\":65536},{\"gpa\":4294967296,\"length\":65536}]}}"#;
            let state = format!(r#"{{"snapshots":{{"memory-manager":{{"snapshot_data":{{"state":"{inner}"}}}}}}}}"#);
            put("state", state.as_bytes());
        }
        "tags" => {
            put("digest", format!("{}\n", softfault_image::Digest::of(b"x")).as_bytes());
            put("name", b"release:1.4");
        }
        "oci" => {
            image(&at("x.sfi"), Codec::Raw);
            let image = Image::open(at("x.sfi")).expect("open");
            let manifest = softfault_image::oci::export(&image, at("layout"), "x").expect("export");
            let blob = at("layout").join("blobs").join(manifest.replace(':', "/"));
            let index = fs::read(at("layout/index.json")).expect("read");
            put("layout", &joined(&index, &fs::read(blob).expect("read")));
            let layer = |title: &str, kind: &str| {
                let digest = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
                serde_json::json!({
                    "mediaType": format!("application/vnd.softfault.{kind}.v1"), "digest": digest, "size": 2,
                    "annotations": { "org.opencontainers.image.title": title },
                })
            };
            let manifest = serde_json::json!({ "layers": [layer("1.sfi", "sfi"), layer("2", "raw")] });
            put("empty", &joined(b"{}", manifest.to_string().as_bytes()));
        }
        name => panic!("{name}: no such target"),
    }
}

/// A number as Protocol Buffers have it, longer than it must be: so another one may come in its place.
fn varint(n: u64) -> [u8; 10] {
    std::array::from_fn(|i| (n >> (7 * i) & 0x7f) as u8 | if i < 9 { 0x80 } else { 0 })
}

fn message(fields: &[(u8, u64)]) -> Vec<u8> {
    fields.iter().flat_map(|(field, n)| [&[field << 3][..], &varint(*n)].concat()).collect()
}

/// A pagemap, mappings, and how many pages there are.
fn criu_files() -> Vec<u8> {
    let img = |magic: u32, messages: &[Vec<u8>]| {
        let mut all = [0x5456_4319u32.to_le_bytes(), magic.to_le_bytes()].concat();
        for m in messages {
            all.extend((m.len() as u32).to_le_bytes());
            all.extend(m);
        }
        all
    };
    let entry = |vaddr, nr, flags| message(&[(1, vaddr), (2, 0), (4, flags), (5, nr)]);
    let pagemap = [message(&[(1, 1)]), entry(0x40_0000, 3, 4), entry(0x50_0000, 2, 1), entry(0x7fff_0000_0000, 1, 4)];
    let vma = |start, end, prot| {
        let vma = message(&[(1, start), (2, end), (5, prot)]);
        [vec![14 << 3 | 2, vma.len() as u8], vma].concat()
    };
    let mm = [vma(0x40_0000, 0x48_0000, 3), vma(0x50_0000, 0x60_0000, 0), vma(0x7fff_0000_0000, 0x7fff_0000_2000, 3)];
    joined(&img(0x5608_4025, &pagemap), &joined(&img(0x5749_2820, &[mm.concat()]), &[0; 4]))
}

/// A stream with a block that was saved, and one that was not.
fn qemu_file() -> Vec<u8> {
    let mut file = [0x5145_564du32.to_be_bytes(), 3u32.to_be_bytes()].concat();
    file.extend(b"\x07\0\0\0\x02pc\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04");
    file.extend((8 * 4096u64 + 4).to_be_bytes());
    let block = |file: &mut Vec<u8>, name: &str, nr: u64, bitmap: u64, pages: u64| {
        file.push(name.len() as u8);
        file.extend(name.as_bytes());
        file.extend((nr * 4096).to_be_bytes());
        file.extend(1u32.to_be_bytes());
        [4096, bitmap, pages].iter().for_each(|n: &u64| file.extend(n.to_be_bytes()));
    };
    block(&mut file, "flash", 6, 0, 0);
    block(&mut file, "pc.ram", 2, 200, 4096);
    file.resize(200, 0);
    file.push(0b10);
    file.resize(2 * 4096, 0);
    file.extend([0x81; 20]);
    file.resize(3 * 4096, 0);
    file
}
