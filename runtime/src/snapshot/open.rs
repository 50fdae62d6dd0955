//! Opening an image: once in a runtime, as one object, however many ask for it.
//!
//! # Context: control plane

use super::here::{Here, Shared};
use super::store::{ImageStore, LastFailure};
use crate::cache::state::RuntimeInner;
use crate::error::{Result, image as image_error, parent_only};
use crate::object::{Object, ObjectBuilder};
use softfault_image::{Digest, Identity, Image, Integrity, PAGE_SIZE};
use softfault_mm::shmem::ShmemVmOps;
use softfault_mm::vma::VmOps;
use softfault_platform::store::blocks;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// What an image is known by.
#[derive(Clone, Debug, PartialEq)]
enum Known {
    /// Its file's digest, which covers everything in it.
    Digest(Digest),
    /// The files that it lies in, as they were when it was opened.
    Files(Vec<(PathBuf, Identity)>),
}

/// An image that is open as an object, whichever values refer to it.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) image: Arc<Image>,
    pub(super) object: Object,
    failure: Arc<LastFailure>,
    known: Known,
}

/// An image that a runtime has opened: what sessions are restored from ([`Restore`](crate::Restore)). Cheap to clone; the last clone and session close it.
///
/// The same image, opened in the same runtime again, is the same object: its pages are in memory once.
#[derive(Clone, Debug)]
pub struct OpenImage {
    pub(super) inner: Arc<Opened>,
}

/// The images that are open. Who has the lock may make an object, and so takes any other lock but an arena's or an object's.
static OPEN: Mutex<Vec<Weak<Opened>>> = Mutex::new(Vec::new());

fn open_images() -> MutexGuard<'static, Vec<Weak<Opened>>> {
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    open.retain(|image| image.strong_count() > 0);
    open
}

/// Makes an object whose pages are an image's.
fn make(
    op: &'static str,
    rt: &Arc<RuntimeInner>,
    image: &Arc<Image>,
    failure: &Arc<LastFailure>,
    ops: Box<dyn VmOps>,
) -> Result<Object> {
    let unit_bytes = image.unit_bytes().map_err(image_error(op))?;
    let unit_bytes = if blocks::is_alignment(unit_bytes as u64) { unit_bytes } else { PAGE_SIZE };
    let here = Arc::new(Here::new(Arc::clone(image), rt.stat));
    let store = ImageStore::new(Arc::clone(image), Arc::clone(failure), rt.stat, unit_bytes, Arc::clone(&here));
    let builder = ObjectBuilder::new(Arc::clone(rt), image.nr_pages() * PAGE_SIZE as u64);
    builder.label(image.path().display().to_string()).store_with(Box::new(store), ops, Some(Box::new(Shared(here))))
}

impl Opened {
    /// Makes another object of the image, for one session, whose faults `ops` sees.
    pub(super) fn object_of_its_own(&self, op: &'static str, ops: Box<dyn VmOps>) -> Result<Object> {
        make(op, &self.object.inner.rt, &self.image, &self.failure, ops)
    }
}

impl OpenImage {
    /// Opens an image as an object, or finds the object that it is open as.
    ///
    /// # Errors
    /// [`Error::Image`](crate::Error::Image), and those of making an object.
    pub(crate) fn new(op: &'static str, rt: &Arc<RuntimeInner>, image: Image) -> Result<Self> {
        parent_only(op)?;
        let failed = image_error(op);
        let known = match image.file_digest() {
            Some(digest) => Known::Digest(digest),
            None => Known::Files(image.identities().map_err(&failed)?),
        };
        let integrity = image.integrity();
        let mut open = open_images();
        let is_same = |o: &Arc<Opened>| {
            Arc::ptr_eq(&o.object.inner.rt, rt) && o.known == known && o.image.integrity() == integrity
        };
        let same_regions = |o: &Arc<Opened>| o.image.regions() == image.regions();
        if let Some(inner) = open.iter().filter_map(Weak::upgrade).find(|o| is_same(o) && same_regions(o)) {
            return Ok(Self { inner });
        }
        let (image, failure) = (Arc::new(image), Arc::<LastFailure>::default());
        let object = make(op, rt, &image, &failure, Box::new(ShmemVmOps::default()))?;
        let inner = Arc::new(Opened { image, object, failure, known });
        open.push(Arc::downgrade(&inner));
        Ok(Self { inner })
    }

    /// Returns the image: its regions, its keys, its digests.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn image(&self) -> &Arc<Image> {
        &self.inner.image
    }

    /// Returns the object whose pages are the image's: page n of the one is page n of the other. It cannot be written.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn object(&self) -> &Object {
        &self.inner.object
    }

    /// Returns the image's own file.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn path(&self) -> &Path {
        self.inner.image.path()
    }

    /// Returns how often bytes are verified before they are shown: what the image was opened with.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn integrity(&self) -> Integrity {
        self.inner.image.integrity()
    }

    /// Returns why the last read of the image that failed did: which byte of which file, and what is wrong with it.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn last_failure(&self) -> Option<Arc<softfault_image::Error>> {
        self.inner.failure.get()
    }
}
