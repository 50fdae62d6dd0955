//! An image's other files: who holds them, and what a child of the image has to know of them.
//!
//! # Context: control plane; allocates, and waits for files

use super::Image;
use crate::digest::{Digest, GROUP_SIZE};
use crate::error::{Error, Result};
use crate::layer::{Identity, Layer};
use crate::lease::Lease;
use crate::sfi::Below;
use crate::slot::{File, Slot};
use std::path::{Path, PathBuf};

/// What says that two layers, of two images, are one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LayerId {
    Sfi(Digest),
    Raw(Identity),
}

impl Image {
    /// Returns which file a layer is.
    pub(crate) fn layer_id(&self, layer: u16) -> Result<LayerId> {
        let Some(slot) = self.files.get(usize::from(layer)) else {
            return Err(Error::Argument { op: "layer_id", arg: "layer", value: layer.into(), why: "there is none" });
        };
        if let Some(below) = slot.below.as_ref().filter(|below| below.is_sfi) {
            return Ok(LayerId::Sfi(below.digest));
        }
        Ok(match slot.get()? {
            File::Sfi(sfi) => LayerId::Sfi(sfi.file_digest()),
            File::Raw(layer) => LayerId::Raw(layer.identity()),
        })
    }

    /// Returns all files, open, the image's own first, and whether each is an `.sfi`.
    pub(crate) fn open_files(&self) -> Result<Vec<(&Layer, bool)>> {
        self.files
            .iter()
            .map(|slot| match slot.get()? {
                File::Sfi(sfi) => Ok((sfi.layer(), true)),
                File::Raw(layer) => Ok((layer, false)),
            })
            .collect()
    }

    /// Says whether the raw files that were opened are what they were then: who has read all of them asks.
    pub(crate) fn check_raw(&self) -> Result<()> {
        let mut raw = self.files.iter().filter_map(|slot| match slot.if_open() {
            Some(File::Raw(layer)) => Some(layer),
            _ => None,
        });
        raw.try_for_each(Layer::check)
    }

    /// Reads a raw layer, and returns the digests of its groups.
    pub(crate) fn digest_layer(&self, layer: u16) -> Result<Vec<Digest>> {
        let Some(File::Raw(layer)) = self.files.get(usize::from(layer)).map(Slot::get).transpose()? else {
            return Ok(Vec::new());
        };
        let (mut digests, mut bytes) = (Vec::new(), vec![0; GROUP_SIZE]);
        let mut pos = 0;
        while pos < layer.len_bytes() {
            bytes.truncate((layer.len_bytes() - pos).min(GROUP_SIZE as u64) as usize);
            layer.read("pages", pos, &mut bytes)?;
            digests.push(Digest::of(&bytes));
            pos += bytes.len() as u64;
        }
        // It is what was read only if nobody wrote to it meanwhile.
        layer.check()?;
        Ok(digests)
    }

    /// Holds the image's files: who collects in this or another process leaves them alone while the lease lives.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Changed`]: one of them has gone.
    pub fn lease(&self) -> Result<Lease> {
        let mut lease = Lease::default();
        for slot in &self.files {
            let held = lease.hold(&slot.path)?;
            let open = slot.if_open().map(|file| match file {
                File::Sfi(sfi) => sfi.layer().identity().inode,
                File::Raw(layer) => layer.identity().inode,
            });
            // What has not been opened yet is looked at when it is.
            if open.is_some_and(|open| open != held) {
                return Err(Error::Changed { path: slot.path.clone(), what: "the file of that name" });
            }
        }
        Ok(lease)
    }

    /// Returns the files that the image needs beside its own.
    #[must_use]
    pub fn needs(&self) -> Vec<PathBuf> {
        self.files.iter().skip(1).map(|slot| slot.path.clone()).collect()
    }

    /// Returns the number of layers.
    pub(crate) fn nr_layers(&self) -> usize {
        self.files.len()
    }

    /// Returns the file of a layer.
    pub(crate) fn layer_path(&self, layer: u16) -> Option<&Path> {
        self.files.get(usize::from(layer)).map(|s| s.path.as_path())
    }

    /// Returns what a child has to know of a layer: what it is, and its digests, if it is a raw file that has any.
    pub(crate) fn describe(&self, layer: u16) -> Result<(Below, Vec<Digest>)> {
        let Some(slot) = self.files.get(usize::from(layer)) else {
            return Err(Error::Argument { op: "describe", arg: "layer", value: layer.into(), why: "there is none" });
        };
        let name = slot.path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        let mut digests = Vec::new();
        let below = match slot.get()? {
            File::Sfi(sfi) => {
                let (digest, len_bytes) = (sfi.file_digest(), sfi.layer().len_bytes());
                Below { name, is_sfi: true, digest, len_bytes, groups: 0..0, mtime_ns: 0 }
            }
            File::Raw(layer) => {
                if let (Some(own), Some(below)) = (self.own(), &slot.below) {
                    own.each_stored_group(below.groups.clone(), |d| digests.push(d))?;
                }
                let groups = 0..digests.len() as u64;
                let mtime_ns = u64::try_from(layer.identity().mtime_ns).unwrap_or(0);
                Below { name, is_sfi: false, digest: Digest::ZERO, len_bytes: layer.len_bytes(), groups, mtime_ns }
            }
        };
        Ok((below, digests))
    }
}
