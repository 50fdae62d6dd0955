//! Images in an OCI image layout: the folder that registries, and the tools that push to and pull from them, understand.
//!
//! ```text
//! oci-layout                 which version of the layout
//! index.json                 a manifest for each name
//! blobs/sha256/DIGEST        the manifests, and each file of an image as it is
//! ```
//! A manifest's first layer is the image's own `.sfi` file; its parents follow, each with the name of its file. Files that several
//! images need are there once. Only images of which every byte has a digest are exported: the time of a raw file, which is what
//! else it would be known by, does not travel.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use softfault_image::{Image, PAGE_SIZE, Writer, oci};
//!
//! let folder = tempfile::tempdir()?;
//! let mut writer = Writer::create(folder.path().join("heap.sfi"), 64)?;
//! writer.write(7, &[42; PAGE_SIZE])?;
//! writer.finish()?;
//! let image = Image::open(folder.path().join("heap.sfi"))?;
//!
//! let layout = folder.path().join("layout");
//! oci::export(&image, &layout, "1.4")?;
//! let other = tempfile::tempdir()?;
//! let path = oci::import(&layout, "1.4", other.path())?;
//! assert_eq!(Image::open(path)?.file_digest(), image.file_digest());
//! # Ok(())
//! # }
//! ```
//!
//! # Context: control plane; allocates, and waits for files

mod blob;
mod export;
mod import;

pub use export::export;
pub use import::{import, names};

/// The kind of artifact that a manifest is of.
pub const ARTIFACT_TYPE: &str = "application/vnd.softfault.image.v1";
/// The type of a layer that is an `.sfi` file.
pub const SFI_TYPE: &str = "application/vnd.softfault.sfi.v1";
/// The type of a layer that is a raw file, of which the image has the digests.
pub const RAW_TYPE: &str = "application/vnd.softfault.raw.v1";
/// The type of a layer that is a working set.
pub const WORKING_SET_TYPE: &str = "application/vnd.softfault.workingset.v1";
