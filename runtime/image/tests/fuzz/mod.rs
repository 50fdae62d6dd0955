//! What is done with bytes that nobody vouches for: one function for each decoder, which must come back, whatever it is given.
//!
//! `tests/decoders.rs` runs them over the corpus and over mutations of it that are the same each time; the crate `fuzz` has libFuzzer
//! run them. A target may panic on nothing but what would be a fault of the crate.
#![allow(clippy::cast_possible_truncation, reason = "files of kilobytes")]

use sha2::Digest as _;
use softfault_image::import::{cloud_hypervisor, criu, qemu};
use softfault_image::workingset::WorkingSet;
use softfault_image::{Catalog, Digest, Error, Image, Integrity, PAGE_SIZE, oci};
use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};

/// What is run over bytes.
pub(crate) type Target = fn(&[u8]);

/// The targets, each with the name of the folder of its corpus.
pub(crate) const TARGETS: [(&str, Target); 10] = [
    ("sfi", sfi),
    ("sfi_sealed", sfi_sealed),
    ("sidecar", sidecar),
    ("criu", criu_dump),
    ("cloud_hypervisor", cloud_hypervisor_state),
    ("qemu", qemu_stream),
    ("working_set", working_set),
    ("working_set_sealed", working_set_sealed),
    ("tags", tags),
    ("oci", oci_layout),
];

thread_local! {
    static FOLDER: RefCell<Option<tempfile::TempDir>> = const { RefCell::new(None) };
}

/// A folder of this thread's, which is empty at first and is used again and again: in memory, where there is such a place.
fn folder() -> PathBuf {
    FOLDER.with_borrow_mut(|folder| {
        let new = || {
            let shm = Path::new("/dev/shm");
            if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.expect("a folder")
        };
        folder.get_or_insert_with(new).path().to_path_buf()
    })
}

fn put(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).expect("write");
}

/// Pages that are read of an image, at most.
const PAGES: u64 = 64;

/// Reads an image here and there: the first pages, and where runs begin.
fn look_at(image: &Image) {
    let mut reader = image.reader();
    let mut page = vec![0; PAGE_SIZE];
    for p in 0..image.nr_pages().min(PAGES) {
        let _ = reader.read(p, &mut page);
    }
    if let Ok(map) = image.map() {
        for run in map.runs().iter().take(PAGES as usize) {
            let _ = reader.read(run.page, &mut page);
            let _ = reader.read(run.page + run.nr - 1, &mut page);
        }
        let _ = map.fragmentation();
    }
    let _ = (image.regions(), image.keys(), image.needs(), image.identities(), image.is_verifiable());
}

/// What an image is that says of itself that all is well.
fn look_at_verified(image: &Image) {
    if image.verify(&mut |_| ()).is_err() {
        return;
    }
    let mut page = vec![0; PAGE_SIZE];
    let mut reader = image.reader();
    for p in 0..image.nr_pages().min(PAGES) {
        reader.read(p, &mut page).expect("an image that verifies can be read");
    }
    if image.content_digest().is_some() {
        let found = image.compute_content_digest().expect("an image that verifies has contents");
        assert_eq!(Some(found), image.content_digest(), "an image that verifies has the contents that it says");
    }
}

/// A file as it is: its header, and what its digests let through.
pub(crate) fn sfi(bytes: &[u8]) {
    let path = folder().join("x.sfi");
    put(&path, bytes);
    if let Ok(image) = Image::open(&path) {
        look_at(&image);
        look_at_verified(&image);
    }
}

/// A file whose digests are made to fit: its tables, and, by who trusts it, its frames and pages.
pub(crate) fn sfi_sealed(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    seal(&mut bytes);
    let path = folder().join("x.sfi");
    put(&path, &bytes);
    for integrity in [Integrity::Trusted, Integrity::Lazy] {
        if let Ok(image) = Image::open(&path) {
            look_at(&image.with_integrity(integrity));
        }
    }
    if let Ok(image) = Image::open(&path) {
        look_at_verified(&image);
    }
}

/// Two lengths, then an `.sfi`, sealed, and the raw file that it is over.
pub(crate) fn sidecar(bytes: &[u8]) {
    let (mut side, raw) = split(bytes);
    seal(&mut side);
    let folder = folder();
    put(&folder.join("m.raw"), &raw);
    let path = folder.join("x.sfi");
    put(&path, &side);
    if let Ok(image) = Image::open(&path) {
        look_at(&image);
        look_at_verified(&image);
    }
}

/// The pagemap, then the mappings and a page of data for each byte that is left.
pub(crate) fn criu_dump(bytes: &[u8]) {
    let folder = folder();
    let (pagemap, rest) = split(bytes);
    let (mm, rest) = split(&rest);
    put(&folder.join("pagemap-1.img"), &pagemap);
    put(&folder.join("mm-1.img"), &mm);
    put(&folder.join("pages-1.img"), &vec![7; rest.len().min(64) * PAGE_SIZE]);
    look_at_other(criu::open(&folder, 1));
}

/// The state; the file of memory has a page for each byte of it up to 32.
pub(crate) fn cloud_hypervisor_state(bytes: &[u8]) {
    let folder = folder();
    put(&folder.join("state.json"), bytes);
    put(&folder.join("memory-ranges"), &vec![7; bytes.len().min(32) * PAGE_SIZE]);
    look_at_other(cloud_hypervisor::open(&folder));
}

pub(crate) fn qemu_stream(bytes: &[u8]) {
    let path = folder().join("stream");
    put(&path, bytes);
    look_at_other(qemu::open(&path));
}

/// An image of another program: it may be had or not, but is never called verified.
fn look_at_other(image: Result<Image, Error>) {
    if let Ok(image) = image {
        look_at(&image);
        let is_nothing = image.nr_pages() == 0;
        assert!(is_nothing || !image.is_verifiable().unwrap_or(false), "nobody vouches for it");
        let sum: u64 = image.regions().iter().map(|r| r.len_bytes / PAGE_SIZE as u64).sum();
        assert!(sum <= image.nr_pages(), "regions lie side by side in the image");
        if image.nr_pages() < 1 << 40 {
            let _ = image.compute_content_digest();
        }
    }
}

pub(crate) fn working_set(bytes: &[u8]) {
    let path = folder().join("x.sws");
    put(&path, bytes);
    let Ok(set) = WorkingSet::open(&path) else { return };
    let runs: Vec<_> = set.windows().iter().flat_map(|w| w.runs()).take(10_000).collect();
    assert!(runs.iter().all(|run| run.start < run.end && run.end <= set.image_pages()), "no page past the image");
    let again = folder().join("y.sws");
    set.save(&again).expect("save");
    assert_eq!(WorkingSet::open(&again).expect("what was saved can be opened"), set);
}

/// The same, its digest and length made to fit.
pub(crate) fn working_set_sealed(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    if bytes.len() >= 128 {
        let len = bytes.len();
        bytes[64..72].copy_from_slice(&(len as u64).to_le_bytes());
        let digest = Digest::of(&bytes[..len - 32]);
        bytes[len - 32..].copy_from_slice(digest.as_bytes());
    }
    working_set(&bytes);
}

/// What a tag holds, and what it is called.
pub(crate) fn tags(bytes: &[u8]) {
    let folder = folder().join("catalog");
    fs::create_dir_all(&folder).expect("a folder");
    let catalog = Catalog::open(&folder).expect("open");
    put(&folder.join("tags/x"), bytes);
    match catalog.tags() {
        Ok(tags) => assert_eq!(tags.len(), 1),
        Err(e) => assert!(matches!(e, Error::Corrupt { .. } | Error::Io { .. }), "{e}"),
    }
    let _ = (catalog.image("x"), catalog.plan(), catalog.entries());
    let name = String::from_utf8_lossy(bytes);
    if let Ok(digest) = name.trim().parse::<Digest>() {
        assert_eq!(digest.to_string(), name.trim().to_ascii_lowercase());
    }
    assert!(catalog.image(&name).is_err() && catalog.untag(&name).is_err() || name == "x", "{name} is no tag here");
    // A name that was taken for a file elsewhere would have made one.
    assert!(catalog.tag(&name, &Digest::ZERO).is_err(), "there is no such image");
}

/// The index, then a manifest that the first entry of the index is made to name. There is a blob of two bytes, `{}`.
pub(crate) fn oci_layout(bytes: &[u8]) {
    const EMPTY: &str = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
    let (folder, blobs) = (folder().join("layout"), folder().join("layout/blobs/sha256"));
    let into = folder.join("into");
    for made in [&blobs, &into] {
        fs::create_dir_all(made).expect("a folder");
    }
    put(&blobs.join(EMPTY), b"{}");
    let (index, manifest) = split(bytes);
    put(&folder.join("oci-layout"), b"{\"imageLayoutVersion\":\"1.0.0\"}");
    put(&folder.join("index.json"), &index);
    let _ = (oci::names(&folder), oci::import(&folder, "x", &into));
    let hash = sha2::Sha256::digest(&manifest).iter().map(|b| format!("{b:02x}")).collect::<String>();
    let blob = blobs.join(&hash);
    put(&blob, &manifest);
    let index = format!(
        "{{\"manifests\":[{{\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"size\":{},\
         \"digest\":\"sha256:{hash}\",\"annotations\":{{\"org.opencontainers.image.ref.name\":\"x\"}}}}]}}",
        manifest.len()
    );
    put(&folder.join("index.json"), index.as_bytes());
    // A raw file of two bytes is none; any other is damaged.
    assert!(oci::import(&folder, "x", &into).is_err(), "there is no image");
    let names = |of: &Path| {
        let mut names: Vec<_> = fs::read_dir(of).expect("a folder").map(|e| e.expect("an entry").file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&folder), ["blobs", "index.json", "into", "oci-layout"], "nothing comes to lie elsewhere");
    assert_eq!(names(folder.parent().expect("a folder")), ["layout"], "nothing comes to lie elsewhere");
    assert!(names(&into).iter().all(|name| !name.to_string_lossy().starts_with('.')), "nothing is hidden or left");
    fs::remove_dir_all(&into).expect("remove");
    if hash != EMPTY {
        fs::remove_file(&blob).expect("remove");
    }
}

/// Splits bytes that begin with the length of the first part, in two bytes.
fn split(bytes: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (len, rest) = bytes.split_at(bytes.len().min(2));
    let len = len.iter().rev().fold(0usize, |n, b| n << 8 | usize::from(*b)).min(rest.len());
    (rest[..len].to_vec(), rest[len..].to_vec())
}

/// The reverse of [`split`].
pub(crate) fn joined(first: &[u8], second: &[u8]) -> Vec<u8> {
    let len = u16::try_from(first.len()).expect("a small file");
    [&len.to_le_bytes()[..], first, second].concat()
}

/// Makes the digests of an `.sfi` file fit what it has become, as far as it has the shape of one: header, root, levels.
pub(crate) fn seal(file: &mut [u8]) {
    const BLOCK: usize = 64 << 10;
    if file.len() < 4096 {
        return;
    }
    let word = |file: &[u8], at: usize| u64::from_le_bytes(file[at..at + 8].try_into().expect("eight bytes"));
    let (mut at, mut digests): (usize, Vec<Digest>) = (word(file, 56) as usize, Vec::new());
    for level in 0..6 {
        let len = word(file, 64 + 8 * level) as usize;
        let Some(end) = at.checked_add(len).filter(|end| *end <= file.len() && len > 0) else { break };
        for (digest, to) in digests.iter().zip(file[at..end].chunks_mut(32)) {
            to.copy_from_slice(&digest.as_bytes()[..to.len()]);
        }
        digests = file[at..end].chunks(BLOCK).map(Digest::of).collect();
        at = end;
    }
    if let [root] = digests[..] {
        file[112..144].copy_from_slice(root.as_bytes());
    }
    let digest = Digest::of(&file[..4064]);
    file[4064..4096].copy_from_slice(digest.as_bytes());
}
