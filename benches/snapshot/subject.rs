//! The side that is measured: the only file here that names softfault.

use softfault::image::workingset::WorkingSet;
use softfault::image::{Codec, Image, Integrity, Prot, Reader, Region};
use softfault::{OpenImage, Prot as Access, Restore, Runtime, Sharing};
use softfault_benches::area::{View, ViewMut};
use softfault_benches::{Error, PAGE, Result};
use std::convert::Infallible;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

fn wrong(error: impl std::fmt::Display) -> Error {
    Error::Wrong(error.to_string())
}

/// The one region of the images here.
fn region(len_bytes: u64) -> Region {
    let prot = Prot::READ | Prot::WRITE;
    Region { name: "memory".into(), address: 1 << 45, offset: 0, len_bytes, prot }
}

/// Writes a container.
#[derive(Debug)]
pub(crate) struct Writer(softfault::image::Writer);

impl Writer {
    pub(crate) fn create(path: &Path, len_bytes: usize, compressed: bool) -> Result<Self> {
        let codec = if compressed { Codec::Lz4 } else { Codec::Raw };
        let mut writer = softfault::image::Writer::create(path, (len_bytes / PAGE) as u64).map_err(wrong)?.codec(codec);
        writer.region(region(len_bytes as u64)).map_err(wrong)?;
        Ok(Self(writer))
    }

    pub(crate) fn write(&mut self, page: usize, block: &[u8]) -> Result<()> {
        self.0.write(page as u64, block).map_err(wrong)
    }

    pub(crate) fn finish(self) -> Result<()> {
        self.0.finish().map(|_| ()).map_err(wrong)
    }
}

/// Opens a file as an image of one region, whatever it is.
fn open(file: &Path, len_bytes: u64) -> Result<Image> {
    let image = Image::open(file).map_err(wrong)?;
    if image.regions().is_empty() { image.with_regions(vec![region(len_bytes)]).map_err(wrong) } else { Ok(image) }
}

/// A runtime without a bound that has an image open.
#[derive(Debug)]
pub(crate) struct Subject {
    runtime: Runtime,
    image: OpenImage,
}

/// A session, and the view of its one region.
#[derive(Debug)]
pub(crate) struct Session {
    session: softfault::Session,
}

/// How long each part of a session's life took, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Life {
    pub(crate) open: f64,
    pub(crate) ready: f64,
    pub(crate) dropped: f64,
}

fn runtime() -> Result<Runtime> {
    Runtime::builder().cache_limit(u64::MAX).build().map_err(wrong)
}

/// Opens an image in a runtime that is there, makes a session of it and drops that.
pub(crate) fn live(host: &Host, file: &Path, len_bytes: u64) -> Result<Life> {
    let start = Instant::now();
    let image = host.0.image(open(file, len_bytes)?).map_err(wrong)?;
    let opened = Instant::now();
    let session = Restore::new(&image).build().map_err(wrong)?;
    let ready = Instant::now();
    drop(session);
    let dropped = Instant::now();
    let ns = |d: Duration| d.as_nanos() as f64;
    Ok(Life { open: ns(opened - start), ready: ns(ready - opened), dropped: ns(dropped - ready) })
}

/// A runtime that has been at work before: a process restores into one that is there.
#[derive(Debug)]
pub(crate) struct Host(Runtime);

impl Host {
    pub(crate) fn start() -> Result<Self> {
        runtime().map(Self)
    }
}

impl Subject {
    /// Opens `file` in a runtime of its own.
    pub(crate) fn open(file: &Path, len_bytes: usize) -> Result<Self> {
        let runtime = runtime()?;
        let image = runtime.image(open(file, len_bytes as u64)?).map_err(wrong)?;
        Ok(Self { runtime, image })
    }

    /// Opens `file` in a runtime of its own, as one that is trusted.
    pub(crate) fn open_trusted(file: &Path, len_bytes: usize) -> Result<Self> {
        let runtime = runtime()?;
        let image = open(file, len_bytes as u64)?.with_integrity(Integrity::Trusted);
        let image = runtime.image(image).map_err(wrong)?;
        Ok(Self { runtime, image })
    }

    /// Makes a session that maps the file itself.
    pub(crate) fn direct(&self) -> Result<Session> {
        let session = Restore::new(&self.image).direct(true).build().map_err(wrong)?;
        match session.progress().direct_extents {
            0 => Err(Error::Absent("no extent is mapped from the file itself here".into())),
            _ => Ok(Session { session }),
        }
    }

    /// Makes a session.
    pub(crate) fn session(&self) -> Result<Session> {
        Restore::new(&self.image).build().map(|session| Session { session }).map_err(wrong)
    }

    /// Makes a session that replays what was touched first.
    pub(crate) fn replaying(&self, set: &WorkingSet) -> Result<Session> {
        let session = Restore::new(&self.image).replay(set.clone()).build().map_err(wrong)?;
        Ok(Session { session })
    }

    /// Records which pages `touch` touches first.
    pub(crate) fn record(&self, touch: impl FnOnce(&Session) -> Result<()>) -> Result<WorkingSet> {
        let session = Restore::new(&self.image).record(Duration::from_secs(3600)).build().map_err(wrong)?;
        let session = Session { session };
        touch(&session)?;
        session.session.mark().map_err(wrong)?.ok_or_else(|| wrong("nothing was recorded"))
    }

    /// Drops what is cached of the image.
    pub(crate) fn evict(&self) -> Result<()> {
        let object = self.image.object();
        let began = Instant::now();
        while object.cached_pages() > 0 {
            object.evict(0..object.len()).map_err(wrong)?;
            if began.elapsed() > Duration::from_secs(60) {
                return Err(wrong("pages of the image cannot be evicted"));
            }
        }
        Ok(())
    }

    /// Returns the bytes of memory that the image's cached pages are.
    pub(crate) fn cached_bytes(&self) -> u64 {
        self.image.object().cached_pages() * PAGE as u64
    }

    /// Reads and decodes one of so many equal parts of the image, on the calling thread and without a cache.
    pub(crate) fn decode(&self, part: u64, parts: u64) -> Result<()> {
        let image = self.image.image();
        let mut reader: Reader<'_> = image.reader();
        let nr = image.nr_pages();
        let (from, to) = (nr * part / parts, nr * (part + 1) / parts);
        let mut page = vec![0; PAGE];
        for p in from..to {
            reader.read(p, &mut page).map_err(wrong)?;
        }
        Ok(())
    }

    /// Returns one line of what the runtime counted.
    pub(crate) fn counters(&self) -> String {
        let stats = self.runtime.stats();
        let names = ["pgfault", "pgmajfault", "image_frames", "image_raw_pages", "image_zero_pages"];
        let told = names.iter().filter_map(|n| stats.get(n).map(|v| format!("{n} {v}")));
        told.collect::<Vec<_>>().join(", ")
    }
}

impl Session {
    pub(crate) fn view(&self) -> Result<View<'_>> {
        let region = self.session.regions().first().ok_or_else(|| wrong("an image without a region"))?;
        // SAFETY: the region is mapped while the session lives, which the view borrows.
        Ok(unsafe { View::new(region.as_ptr() as usize, region.len()) })
    }
}

/// Verifies all of an image.
pub(crate) fn verify(file: &Path) -> Result<()> {
    Image::open(file).and_then(|image| image.verify(&mut |_| ())).map_err(wrong)
}

/// A memory that can be captured, all of it touched.
#[derive(Debug)]
pub(crate) struct Capturable {
    runtime: Runtime,
    arena: softfault::Arena,
    /// Where a copy goes: as long, and touched.
    copy: Mutex<Vec<u8>>,
}

impl Capturable {
    pub(crate) fn new(len_bytes: usize) -> Result<Self> {
        let runtime = runtime()?;
        let arena = match runtime.arena(len_bytes).capturable(true).build() {
            Ok(arena) => arena,
            Err(softfault::Error::Delivery { why, .. }) => return Err(Error::Absent(why.to_string())),
            Err(error) => return Err(wrong(error)),
        };
        let object = runtime.anonymous(len_bytes as u64).map_err(wrong)?;
        arena.map(0, &object, 0, len_bytes, Access::ReadWrite, Sharing::Shared).map_err(wrong)?;
        let subject = Self { runtime, arena, copy: Mutex::new(vec![1; len_bytes]) };
        let view = subject.view();
        (0..len_bytes / PAGE).for_each(|p| view.store(p));
        Ok(subject)
    }

    pub(crate) fn view(&self) -> ViewMut<'_> {
        // SAFETY: the arena is mapped for stores while `self` lives, and nothing refers to its bytes but views.
        unsafe { ViewMut::new(self.arena.as_ptr() as usize, self.arena.len()) }
    }

    /// Copies the memory while nobody stores; nanoseconds.
    pub(crate) fn copy(&self) -> Result<f64> {
        let mut copy = self.copy.lock().map_err(wrong)?;
        let start = Instant::now();
        let (from, to, len) = (self.arena.as_ptr(), copy.as_mut_ptr(), copy.len());
        // SAFETY: both are that long, mapped, and apart; the threads that store have ended.
        unsafe { std::ptr::copy_nonoverlapping(from, to, len) };
        Ok(start.elapsed().as_nanos() as f64)
    }

    /// Captures the memory into an image that is durable.
    pub(crate) fn capture(&self, image: &Path) -> Result<()> {
        let capture = self.runtime.capture().arena(&self.arena);
        let capture = capture.begin(image, || Ok::<(), Infallible>(())).map_err(wrong)?;
        capture.commit().map(|_| ()).map_err(wrong)
    }
}
