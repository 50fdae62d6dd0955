//! Random stores, captures, sessions, and what can be done to images, against a model in memory: each image and each session is
//! compared with it whole.
#![cfg(feature = "userfaultfd")]
#![allow(unsafe_code, reason = "stores to arenas by address")]
#![allow(clippy::cast_possible_truncation, reason = "64-bit offsets of small images")]

mod cut;

use cut::{PAGE, anonymous, capturable, file, map};
use proptest::prelude::*;
use softfault::image::ops::{self, Compare, Stored};
use softfault::image::{Codec, Image};
use softfault::{Arena, Capture, Object, Restore, Runtime, Session};
use std::convert::Infallible;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Pages; more than an extent, and none that is whole.
const NR: usize = 700;
const LEN: usize = NR * PAGE;

#[derive(Clone, Debug)]
enum Act {
    /// Bytes are stored, through the arena or by a call.
    Store { at: usize, len: usize, value: u8, by_call: bool },
    /// Pages are made zero.
    Punch { first: usize, nr: usize },
    /// Pages leave the page tables, or the cache.
    Drop { first: usize, nr: usize, evicts: bool },
    /// A capture begins; over an image that there is, or not.
    Begin { over: Option<usize>, codec: usize },
    /// It is committed, or not.
    End { commits: bool },
    /// An image is written into one file, with so many pieces.
    Compact { image: usize, codec: usize, budget: Option<u32> },
    /// An image is written as a child of another one.
    Rebase { image: usize, parent: usize, codec: usize },
    /// Two are compared.
    Diff { old: usize, new: usize, believes: bool },
    /// A session of an image begins.
    Restore { image: usize },
    /// Bytes are stored to a session.
    StoreSession { session: usize, at: usize, len: usize, value: u8 },
    /// A session is compared, and ends.
    EndSession { session: usize },
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let (one, page) = (0usize..64, 0..NR);
    let len = prop_oneof![1usize..64, 1..6 * PAGE];
    let store = (0..LEN, len.clone(), any::<u8>(), any::<bool>());
    let act = prop_oneof![
        6 => store.prop_map(|(at, len, value, by_call)| Act::Store { at, len, value, by_call }),
        1 => (page.clone(), 1usize..40).prop_map(|(first, nr)| Act::Punch { first, nr }),
        1 => (page, 1..NR, any::<bool>()).prop_map(|(first, nr, evicts)| Act::Drop { first, nr, evicts }),
        4 => (prop::option::of(one.clone()), 0usize..3).prop_map(|(over, codec)| Act::Begin { over, codec }),
        3 => prop::bool::weighted(0.8).prop_map(|commits| Act::End { commits }),
        1 => (one.clone(), 0usize..3, prop::option::of(1u32..20))
            .prop_map(|(image, codec, budget)| Act::Compact { image, codec, budget }),
        1 => (one.clone(), one.clone(), 0usize..3)
            .prop_map(|(image, parent, codec)| Act::Rebase { image, parent, codec }),
        2 => (one.clone(), one.clone(), any::<bool>()).prop_map(|(old, new, believes)| Act::Diff { old, new, believes }),
        2 => one.clone().prop_map(|image| Act::Restore { image }),
        2 => (one.clone(), 0..LEN, len, any::<u8>())
            .prop_map(|(session, at, len, value)| Act::StoreSession { session, at, len, value }),
        1 => one.prop_map(|session| Act::EndSession { session }),
    ];
    prop::collection::vec(act, 1..48)
}

fn codec(number: usize) -> Codec {
    match number {
        1 => Codec::Lz4,
        2 if cfg!(feature = "zstd") => Codec::Zstd { level: 1 },
        _ => Codec::Raw,
    }
}

fn same(what: &str, got: &[u8], want: &[u8]) {
    if got != want {
        let at = got.iter().zip(want).position(|(a, b)| a != b);
        panic!("{what}: {} bytes for {}, other ones from {at:x?} on", got.len(), want.len());
    }
}

/// Everything, and what it should be.
struct Model {
    rt: Runtime,
    arena: Arena,
    object: Object,
    memory: Vec<u8>,
    folder: PathBuf,
    images: Vec<(PathBuf, Arc<Vec<u8>>)>,
    sessions: Vec<(Session, Vec<u8>)>,
    capture: Option<(Capture, PathBuf, Arc<Vec<u8>>)>,
    nr: usize,
}

impl Model {
    fn new(of_file: bool, folder: &Path) -> Option<Self> {
        // The cache does not hold everything.
        let rt = Runtime::builder()
            .cache_limit(if of_file { 512 * PAGE as u64 } else { 64 << 20 })
            .build()
            .expect("a runtime");
        let arena = capturable(&rt, LEN)?;
        let object = if of_file { file } else { anonymous }(&rt, folder, LEN);
        map(&arena, &object, LEN);
        let (memory, folder) = (vec![0; LEN], folder.to_path_buf());
        Some(Self { rt, arena, object, memory, folder, images: vec![], sessions: vec![], capture: None, nr: 0 })
    }

    fn act(&mut self, act: &Act) {
        match *act {
            Act::Store { at, len, value, by_call } => self.store(at, len, value, by_call),
            Act::Punch { first, nr } => {
                let range = bytes_of(first, nr);
                self.object.punch_hole(range.start as u64..range.end as u64).expect("nobody pins it");
                self.memory[range].fill(0);
            }
            Act::Drop { first, nr, evicts } => {
                let range = bytes_of(first, nr);
                if evicts {
                    self.object.evict(range.start as u64..range.end as u64).expect("its store is well");
                } else {
                    self.arena.zap(range).expect("it is mapped");
                }
            }
            Act::Begin { over, codec: number } => self.begin(over, codec(number)),
            Act::End { commits } => self.end(commits),
            Act::Compact { image, codec: number, budget } => self.compact(image, codec(number), budget),
            Act::Rebase { image, parent, codec: number } => self.rebase(image, parent, codec(number)),
            Act::Diff { old, new, believes } => self.diff(old, new, believes),
            Act::Restore { image } => self.restore(image),
            Act::StoreSession { session, at, len, value } => self.store_session(session, at, len, value),
            Act::EndSession { session } => {
                if !self.sessions.is_empty() {
                    let (session, model) = self.sessions.swap_remove(session % self.sessions.len());
                    same("a session", &bytes(&session), &model);
                }
            }
        }
    }

    fn store(&mut self, at: usize, len: usize, value: u8, by_call: bool) {
        let range = at..(at + len).min(LEN);
        let bytes = vec![value; range.len()];
        if by_call {
            assert_eq!(self.object.write_at(at as u64, &bytes).expect("room"), bytes.len());
        } else {
            // SAFETY: mapped for stores, and no other thread has it.
            unsafe { self.arena.as_ptr().wrapping_add(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        }
        self.memory[range].fill(value);
    }

    fn path(&mut self) -> PathBuf {
        self.nr += 1;
        self.folder.join(format!("{}.sfi", self.nr))
    }

    fn image(&self, number: usize) -> Option<(Image, Arc<Vec<u8>>)> {
        let (path, bytes) = self.images.get(number % self.images.len().max(1))?;
        Some((Image::open(path).expect("an image"), Arc::clone(bytes)))
    }

    /// An image that was just written has these bytes.
    fn keep(&mut self, path: PathBuf, bytes: Arc<Vec<u8>>) {
        same("an image", &cut::read(&path), &bytes);
        Image::open(&path).expect("an image").verify(&mut |_| {}).expect("it is whole");
        self.images.push((path, bytes));
    }

    fn begin(&mut self, over: Option<usize>, codec: Codec) {
        self.end(true);
        let path = self.path();
        let mut builder = self.rt.capture().arena(&self.arena).codec(codec);
        if let Some((parent, _)) = over.and_then(|number| self.image(number)) {
            builder = builder.over(Arc::new(parent));
        }
        let capture = builder.begin(&path, || Ok::<(), Infallible>(())).expect("a cut");
        self.capture = Some((capture, path, Arc::new(self.memory.clone())));
    }

    fn end(&mut self, commits: bool) {
        let Some((capture, path, bytes)) = self.capture.take() else { return };
        if commits {
            capture.commit().expect("an image");
            self.keep(path, bytes);
        } else {
            capture.cancel();
            assert!(!path.exists(), "a cancelled image is there");
        }
    }

    fn compact(&mut self, image: usize, codec: Codec, budget: Option<u32>) {
        let Some((image, bytes)) = self.image(image) else { return };
        let (path, stored) = (self.path(), Stored { codec, ..Stored::default() });
        match budget {
            Some(budget) => ops::compact(&image, &path, &stored, budget).expect("room"),
            None => ops::convert(&image, &path, &stored).expect("room"),
        };
        self.keep(path, bytes);
    }

    fn rebase(&mut self, image: usize, parent: usize, codec: Codec) {
        let Some(((image, bytes), (parent, _))) = self.image(image).zip(self.image(parent)) else { return };
        let (path, stored) = (self.path(), Stored { codec, ..Stored::default() });
        ops::rebase(&image, &Arc::new(parent), &path, &stored).expect("room");
        self.keep(path, bytes);
    }

    fn diff(&self, old: usize, new: usize, believes: bool) {
        let Some(((old, a), (new, b))) = self.image(old).zip(self.image(new)) else { return };
        let compare = if believes { Compare::Digests } else { Compare::Pages };
        let diff = ops::diff(&old, &new, compare).expect("both are whole");
        let told: Vec<u64> = diff.runs().iter().flat_map(Clone::clone).collect();
        let pages = a.chunks(PAGE).zip(b.chunks(PAGE)).enumerate();
        let differ: Vec<u64> = pages.filter(|(_, (a, b))| a != b).map(|(page, _)| page as u64).collect();
        assert_eq!(told, differ, "the pages that differ");
    }

    fn restore(&mut self, image: usize) {
        let Some((path, bytes)) = self.images.get(image % self.images.len().max(1)).cloned() else { return };
        let image = self.rt.open_image(&path).expect("an image");
        let session = Restore::new(&image).build().expect("a session");
        self.sessions.push((session, bytes.to_vec()));
    }

    fn store_session(&mut self, session: usize, at: usize, len: usize, value: u8) {
        if self.sessions.is_empty() {
            return;
        }
        let number = session % self.sessions.len();
        let (session, model) = &mut self.sessions[number];
        let range = at..(at + len).min(LEN);
        // SAFETY: the region is all of the image, mapped for stores, and no other thread has it.
        unsafe { session.regions()[0].as_ptr().wrapping_add(at).write_bytes(value, range.len()) };
        model[range].fill(value);
    }

    /// Everything that there is once more.
    fn check(mut self) {
        self.end(true);
        let memory = load(self.arena.as_ptr());
        same("the arena", &memory, &self.memory);
        for number in 0..self.images.len() {
            self.restore(number);
        }
        self.sessions.iter().for_each(|(session, model)| same("a session", &bytes(session), model));
        for (path, bytes) in &self.images {
            same("an image, at the end", &cut::read(path), bytes);
        }
    }
}

fn bytes_of(first: usize, nr: usize) -> Range<usize> {
    first * PAGE..(first + nr).min(NR) * PAGE
}

fn load(at: *const u8) -> Vec<u8> {
    let mut bytes = vec![0; LEN];
    // SAFETY: as long as what is mapped there, and no other thread stores to it.
    unsafe { at.copy_to_nonoverlapping(bytes.as_mut_ptr(), LEN) };
    bytes
}

/// Reads all of a session by plain loads.
fn bytes(session: &Session) -> Vec<u8> {
    assert_eq!((session.regions().len(), session.regions()[0].len()), (1, LEN), "one region, of all");
    load(session.regions()[0].as_ptr())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn images_and_sessions_are_what_the_model_says(acts in acts(), of_file in any::<bool>()) {
        let _turn = cut::turn();
        // Acts come in the middle of a capture.
        cut::slow_walker();
        let folder = cut::folder("model");
        let Some(mut model) = Model::new(of_file, &folder) else { return Ok(()) };
        acts.iter().for_each(|act| model.act(act));
        model.check();
        cut::quiet();
        let _ = std::fs::remove_dir_all(&folder);
    }
}
