//! Structures of images and sessions that the caller fills, or has filled.
//!
//! # Context: control plane

use crate::args::{bytes, elements, known, path, text};
use crate::error::{Failure, softfault_digest};
use crate::handle::{softfault_arena, softfault_image, softfault_working_set};
use crate::options::{ArenaChoice, Versioned, check_flags, check_reserved, read, softfault_arena_options};
use softfault::image::ops::Stored;
use softfault::image::{Codec, Image, Integrity, Prot, Region, import};
use std::ffi::{c_char, c_void};
use std::path::Path;

/// Bytes are verified each time that they are read, where there are digests.
pub const SOFTFAULT_INTEGRITY_LAZY: u32 = 0;
/// Bytes are verified the first time: who can change the file afterwards is trusted, or cannot.
pub const SOFTFAULT_INTEGRITY_ONCE: u32 = 1;
/// Bytes are never verified: the file is what it was when it was written.
pub const SOFTFAULT_INTEGRITY_TRUSTED: u32 = 2;

/// An .sfi file, or else a raw image, with sparse diffs over it if there are any.
pub const SOFTFAULT_IMAGE_FORMAT_AUTO: u32 = 0;
/// A folder that CRIU dumped; process_id says which of its processes.
pub const SOFTFAULT_IMAGE_FORMAT_CRIU: u32 = 1;
/// A folder of a Cloud Hypervisor snapshot.
pub const SOFTFAULT_IMAGE_FORMAT_CLOUD_HYPERVISOR: u32 = 2;
/// A migration that QEMU wrote with mapped-ram.
pub const SOFTFAULT_IMAGE_FORMAT_QEMU: u32 = 3;

/// The image has a digest of its file.
pub const SOFTFAULT_IMAGE_HAS_FILE_DIGEST: u32 = 0x1;
/// The image knows the digest of its contents.
pub const SOFTFAULT_IMAGE_HAS_CONTENT_DIGEST: u32 = 0x2;

/// Each region is mapped at the address that it had, where nothing may be mapped within the 2 MiB around its ends.
pub const SOFTFAULT_RESTORE_AT_ORIGINAL_ADDRESSES: u32 = 0x1;

/// Extents (2 MiB) that lie in a file as they are are mapped from there: the kernel's page cache serves them, outside the cache and
/// its limit, and unverified. The image must have been opened with SOFTFAULT_INTEGRITY_TRUSTED. Needs in-thread delivery.
pub const SOFTFAULT_RESTORE_DIRECT: u32 = 0x2;

const RESTORE_FLAGS: u32 = 0x3;

/// A range of memory that an image is of, and where its pages are in the image.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct softfault_region {
    /// What it is called, unique in the image; NULL: nothing. Where a call fills the structure it is NULL, and the call has a
    /// buffer for the name.
    pub name: *const c_char,
    /// Where it was.
    pub address: u64,
    /// Where it begins in the image, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub len_bytes: u64,
    /// What was permitted there: the bits of mmap(2), 1 to read, 2 to write, 4 to execute.
    pub prot: u32,
    /// Must be 0.
    pub reserved: u32,
}

impl softfault_region {
    /// # Safety
    /// The name is null or a string.
    pub(crate) unsafe fn region(&self) -> Result<Region, Failure> {
        check_reserved("softfault_region", self.reserved)?;
        let name = if self.name.is_null() {
            ""
        } else {
            // SAFETY: the caller's contract.
            unsafe { text(self.name, "softfault_region.name") }?
        };
        let (address, offset, len_bytes) = (self.address, self.offset, self.len_bytes);
        Ok(Region { name: name.to_owned(), address, offset, len_bytes, prot: Prot::from_bits(self.prot) })
    }
}

impl From<&Region> for softfault_region {
    fn from(r: &Region) -> Self {
        let (address, offset, len_bytes, prot) = (r.address, r.offset, r.len_bytes, r.prot.bits());
        Self { name: std::ptr::null(), address, offset, len_bytes, prot, reserved: 0 }
    }
}

/// Options of softfault_image_open(). Fields that are 0 have their defaults.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct softfault_image_options {
    /// sizeof(struct softfault_image_options).
    pub size: usize,
    /// How often bytes are verified: SOFTFAULT_INTEGRITY_*.
    pub integrity: u32,
    /// What the path names: SOFTFAULT_IMAGE_FORMAT_*.
    pub format: u32,
    /// Sparse files over a raw image, the oldest first: their data replaces what is below.
    pub diffs: *const *const c_char,
    /// How many there are.
    pub nr_diffs: usize,
    /// Regions instead of those that the image says, in the order of their offsets: of a raw image, where it was.
    pub regions: *const softfault_region,
    /// How many there are; 0: those that the image says.
    pub nr_regions: usize,
    /// With SOFTFAULT_IMAGE_FORMAT_CRIU: the process.
    pub process_id: u32,
    /// Must be 0.
    pub reserved: u32,
}

/// What an image is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct softfault_image_properties {
    /// sizeof(struct softfault_image_properties), which the caller sets.
    pub size: usize,
    /// Its length in bytes.
    pub len_bytes: u64,
    /// How many regions it has: softfault_image_region().
    pub nr_regions: usize,
    /// How many keys it has: softfault_image_key_name().
    pub nr_keys: usize,
    /// How often bytes are verified: SOFTFAULT_INTEGRITY_*.
    pub integrity: u32,
    /// SOFTFAULT_IMAGE_HAS_* together.
    pub flags: u32,
    /// The digest of its file, which covers everything in it.
    pub file_digest: softfault_digest,
    /// The digest of the memory, whatever file it lies in.
    pub content_digest: softfault_digest,
}

/// Pages are stored as they are.
pub const SOFTFAULT_CODEC_RAW: u32 = 0;
/// Frames are LZ4 blocks.
pub const SOFTFAULT_CODEC_LZ4: u32 = 1;
/// Frames are of Zstandard, where the library was built with it.
pub const SOFTFAULT_CODEC_ZSTD: u32 = 2;

/// Files of the parent that have no digests are read, and the new image has digests of them.
pub const SOFTFAULT_WRITER_DIGEST_PARENT: u32 = 0x1;

pub(crate) const WRITER_FLAGS: u32 = 0x1;

/// How a new image stores its pages. Fields that are 0 have their defaults.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct softfault_image_writer_options {
    /// sizeof(struct softfault_image_writer_options).
    pub size: usize,
    /// SOFTFAULT_WRITER_* together.
    pub flags: u32,
    /// SOFTFAULT_CODEC_*.
    pub codec: u32,
    /// Of SOFTFAULT_CODEC_ZSTD: 1 (fast) to 22 (small); default 3.
    pub level: i32,
    /// Must be 0.
    pub reserved: u32,
    /// How many bytes are compressed together: whole pages, 2 MiB at most; default 64 KiB.
    pub frame_bytes: usize,
    /// The image whose pages are shared; NULL: none.
    pub parent: *mut softfault_image,
}

/// Pages that a session is given when it is restored, instead of the image's: entropy, a generation number, a mailbox.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct softfault_overlay {
    /// What it is called.
    pub name: *const c_char,
    /// The image's byte from which on it lies.
    pub offset: u64,
    /// The bytes, read during the call only: whole pages, of one region that may be written.
    pub bytes: *const c_void,
    /// How many there are.
    pub len_bytes: usize,
}

/// Options of softfault_restore(). Fields that are 0 have their defaults.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct softfault_restore_options {
    /// sizeof(struct softfault_restore_options).
    pub size: usize,
    /// SOFTFAULT_RESTORE_* together.
    pub flags: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Options of the session's arenas; NULL: defaults. The address must be NULL: it is the session's.
    pub arena: *const softfault_arena_options,
    /// Pages that the session is given instead of the image's.
    pub overlays: *const softfault_overlay,
    /// How many there are.
    pub nr_overlays: usize,
    /// Records which pages are touched first, in windows of this length, until softfault_session_mark(); 0: does not. A session that
    /// records has pages of its own, and each touch of a page is a fault.
    pub record_window_ns: u64,
    /// Reads the pages of a working set before they are touched, in the background; NULL: none.
    pub replay: *mut softfault_working_set,
}

/// How far a session has come.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct softfault_progress {
    /// sizeof(struct softfault_progress), which the caller sets.
    pub size: usize,
    /// Pages of all regions.
    pub pages: u64,
    /// Pages of the image that are cached, for whichever session.
    pub cached: u64,
    /// Extents (2 MiB) that the kernel serves by itself.
    pub native_extents: u64,
    /// Extents that are mapped from the image's file itself.
    pub direct_extents: u64,
    /// Pages that a replay has read.
    pub replayed: u64,
    /// 1: the replay has read what it was to, or found no room for more, or there is none.
    pub replay_ended: u32,
    /// 0.
    pub reserved: u32,
}

/// What softfault_session_complete() has reached.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct softfault_completion {
    /// sizeof(struct softfault_completion), which the caller sets.
    pub size: usize,
    /// Bytes that are resident for the session: all of its regions.
    pub resident_bytes: u64,
    /// Extents (2 MiB) that the kernel serves by itself.
    pub native_extents: u64,
    /// Extents, or parts of such, whose pages are mapped but still ours.
    pub trapped_extents: u64,
    /// Extents that are mapped from the image's file itself; not among the resident bytes.
    pub direct_extents: u64,
}

/// softfault_capture_begin() fails where it would wait for pins for writing, or for another capture of an arena.
pub const SOFTFAULT_CAPTURE_NO_WAIT: u32 = 0x1;

const CAPTURE_FLAGS: u32 = 0x1;

/// Bytes of an arena that a capture leaves out, rounded outwards to pages: they are zero in the image.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct softfault_excluded {
    /// Which arena.
    pub arena: *mut softfault_arena,
    /// Where they begin in it.
    pub offset: usize,
    /// How many there are.
    pub len_bytes: usize,
}

/// Options of softfault_capture_begin(). Fields that are 0 have their defaults.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct softfault_capture_options {
    /// sizeof(struct softfault_capture_options).
    pub size: usize,
    /// SOFTFAULT_CAPTURE_* together.
    pub flags: u32,
    /// How the image stores its pages: SOFTFAULT_CODEC_*.
    pub codec: u32,
    /// Of SOFTFAULT_CODEC_ZSTD: 1 (fast) to 22 (small); default 3.
    pub level: i32,
    /// Must be 0.
    pub reserved: u32,
    /// An image in the same folder: only what differs from it is written, and it is needed from then on. NULL: none.
    pub parent: *mut softfault_image,
    /// What is left out: secrets, what is made anew.
    pub excluded: *const softfault_excluded,
    /// How many there are.
    pub nr_excluded: usize,
    /// How many bytes of memory old contents of pages may take that are stored to before they are written; when it is full they go to a
    /// file beside the image. Default: an eighth of what is captured, 256 KiB to 64 MiB.
    pub budget_bytes: usize,
}

/// How far a capture is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct softfault_capture_state {
    /// sizeof(struct softfault_capture_state), which the caller sets.
    pub size: usize,
    /// Pages of the image that are written.
    pub done_pages: u64,
    /// Pages of the image.
    pub nr_pages: u64,
    /// Pages whose old bytes went to the file beside the image.
    pub spilled_pages: u64,
    /// Pages that were protected while stores waited.
    pub last_pages: u64,
    /// How long stores waited for the cut, at most.
    pub held_ns: u64,
}

/// What a working set is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct softfault_working_set_properties {
    /// sizeof(struct softfault_working_set_properties), which the caller sets.
    pub size: usize,
    /// Pages that were touched.
    pub nr_pages: u64,
    /// Pages of the image that it is of.
    pub image_pages: u64,
    /// How many windows of time it has: softfault_working_set_window().
    pub nr_windows: usize,
    /// How many neighbouring pages count as one: 1 where it was recorded exactly.
    pub resolution_pages: u32,
    /// How many recordings it was made of.
    pub recordings: u32,
    /// The digest of the contents that it is of.
    pub content_digest: softfault_digest,
}

// SAFETY: numbers and pointers, the size first.
unsafe impl Versioned for softfault_image_options {
    const NAME: &'static str = "softfault_image_options";
    const FIRST: usize = 56;
}
// SAFETY: numbers and an address, the size first.
unsafe impl Versioned for softfault_image_writer_options {
    const NAME: &'static str = "softfault_image_writer_options";
    const FIRST: usize = 40;
}
// SAFETY: numbers, the size first.
unsafe impl Versioned for softfault_image_properties {
    const NAME: &'static str = "softfault_image_properties";
    const FIRST: usize = 104;
}
// SAFETY: numbers and pointers, the size first.
unsafe impl Versioned for softfault_restore_options {
    const NAME: &'static str = "softfault_restore_options";
    const FIRST: usize = 56;
}
// SAFETY: numbers, the size first.
unsafe impl Versioned for softfault_progress {
    const NAME: &'static str = "softfault_progress";
    const FIRST: usize = 56;
}
// SAFETY: numbers, the size first.
unsafe impl Versioned for softfault_completion {
    const NAME: &'static str = "softfault_completion";
    const FIRST: usize = 40;
}
// SAFETY: numbers and pointers, the size first.
unsafe impl Versioned for softfault_capture_options {
    const NAME: &'static str = "softfault_capture_options";
    const FIRST: usize = 56;
}
// SAFETY: numbers, the size first.
unsafe impl Versioned for softfault_capture_state {
    const NAME: &'static str = "softfault_capture_state";
    const FIRST: usize = 48;
}
// SAFETY: numbers, the size first.
unsafe impl Versioned for softfault_working_set_properties {
    const NAME: &'static str = "softfault_working_set_properties";
    const FIRST: usize = 72;
}

pub(crate) fn integrity_number(integrity: Integrity) -> u32 {
    match integrity {
        Integrity::Lazy => SOFTFAULT_INTEGRITY_LAZY,
        Integrity::Once => SOFTFAULT_INTEGRITY_ONCE,
        Integrity::Trusted => SOFTFAULT_INTEGRITY_TRUSTED,
    }
}

fn integrity(n: u32) -> Option<Integrity> {
    match n {
        SOFTFAULT_INTEGRITY_LAZY => Some(Integrity::Lazy),
        SOFTFAULT_INTEGRITY_ONCE => Some(Integrity::Once),
        SOFTFAULT_INTEGRITY_TRUSTED => Some(Integrity::Trusted),
        _ => None,
    }
}

impl softfault_image_options {
    /// Opens an image.
    ///
    /// # Safety
    /// What the fields name may be read, as they say.
    pub(crate) unsafe fn open(&self, path: &Path) -> Result<Image, Failure> {
        check_reserved(Self::NAME, self.reserved)?;
        let integrity = known(integrity(self.integrity), "integrity", self.integrity)?;
        // SAFETY: the caller's contract.
        let diffs = unsafe { elements(self.diffs, self.nr_diffs, "diffs") }?;
        // SAFETY: the caller's contract: each is a string.
        let diffs: Vec<&Path> = diffs.iter().map(|p| unsafe { self::path(*p) }).collect::<Result<_, _>>()?;
        if self.format != SOFTFAULT_IMAGE_FORMAT_AUTO && !diffs.is_empty() {
            return Err(Failure::argument("diffs are for raw images: SOFTFAULT_IMAGE_FORMAT_AUTO"));
        }
        let image = match self.format {
            SOFTFAULT_IMAGE_FORMAT_AUTO if diffs.is_empty() => Image::open(path),
            SOFTFAULT_IMAGE_FORMAT_AUTO => Image::raw_stack(path, &diffs),
            SOFTFAULT_IMAGE_FORMAT_CRIU => import::criu::open(path, self.process_id),
            SOFTFAULT_IMAGE_FORMAT_CLOUD_HYPERVISOR => import::cloud_hypervisor::open(path),
            SOFTFAULT_IMAGE_FORMAT_QEMU => import::qemu::open(path),
            other => return known(None, "format", other),
        }?;
        let image = image.with_integrity(integrity);
        if self.nr_regions == 0 {
            return Ok(image);
        }
        // SAFETY: the caller's contract.
        let regions = unsafe { elements(self.regions, self.nr_regions, "regions") }?;
        // SAFETY: the caller's contract.
        let regions = regions.iter().map(|r| unsafe { r.region() }).collect::<Result<_, _>>()?;
        Ok(image.with_regions(regions)?)
    }
}

fn codec(number: u32, level: i32) -> Result<Codec, Failure> {
    match number {
        SOFTFAULT_CODEC_RAW => Ok(Codec::Raw),
        SOFTFAULT_CODEC_LZ4 => Ok(Codec::Lz4),
        SOFTFAULT_CODEC_ZSTD => Ok(Codec::Zstd { level: if level == 0 { 3 } else { level } }),
        other => known(None, "codec", other),
    }
}

impl softfault_capture_options {
    /// Checks the numbers; returns how pages are stored, if not as they are.
    pub(crate) fn codec(&self) -> Result<Option<Codec>, Failure> {
        check_flags(Self::NAME, self.flags, CAPTURE_FLAGS)?;
        check_reserved(Self::NAME, self.reserved)?;
        codec(self.codec, self.level).map(|codec| Some(codec).filter(|_| self.codec != SOFTFAULT_CODEC_RAW))
    }
}

impl softfault_image_writer_options {
    pub(crate) fn stored(&self) -> Result<Stored, Failure> {
        check_reserved(Self::NAME, self.reserved)?;
        let codec = codec(self.codec, self.level)?;
        let frame_bytes = if self.frame_bytes == 0 { Stored::default().frame_bytes } else { self.frame_bytes };
        Ok(Stored { codec, frame_bytes })
    }
}

impl softfault_restore_options {
    pub(crate) fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Checks the numbers; returns what is asked of the arenas.
    ///
    /// # Safety
    /// `arena` is null, or has the size that it says.
    pub(crate) unsafe fn check(&self) -> Result<Option<ArenaChoice>, Failure> {
        check_flags(Self::NAME, self.flags, RESTORE_FLAGS)?;
        check_reserved(Self::NAME, self.reserved)?;
        if self.arena.is_null() {
            return Ok(None);
        }
        // SAFETY: the caller's contract.
        let arena = unsafe { read(self.arena) }?;
        if !arena.address.is_null() {
            return Err(Failure::argument(
                "softfault_restore_options.arena has an address: it is the session's to choose",
            ));
        }
        arena.choice().map(Some)
    }

    /// Returns the overlays: name, offset, bytes.
    ///
    /// # Safety
    /// What the overlays name may be read, as they say.
    pub(crate) unsafe fn overlays(&self) -> Result<Vec<(String, u64, Vec<u8>)>, Failure> {
        // SAFETY: the caller's contract.
        let overlays = unsafe { elements(self.overlays, self.nr_overlays, "overlays") }?;
        let own = |o: &softfault_overlay| {
            // SAFETY: the caller's contract: a string.
            let name = unsafe { text(o.name, "softfault_overlay.name") }?;
            // SAFETY: the caller's contract: as many bytes as it says.
            let bytes = unsafe { bytes(o.bytes, o.len_bytes) }?;
            Ok((name.to_owned(), o.offset, bytes.to_vec()))
        };
        overlays.iter().map(own).collect()
    }
}
