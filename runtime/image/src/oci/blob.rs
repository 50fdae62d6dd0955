//! Blobs: files that are called by the SHA-256 of their bytes.
//!
//! # Context: control plane; allocates, and waits for files

use crate::durable::Temp;
use crate::error::{Error, Result};
use crate::layer::Layer;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

pub(super) const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
pub(super) const TITLE: &str = "org.opencontainers.image.title";
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";
pub(super) const INDEX: &str = "index.json";
pub(super) const LAYOUT: &str = "oci-layout";
/// A larger manifest or index than this no registry takes.
const JSON_MAX: usize = 4 << 20;

/// Bytes that are copied in one go.
const PART: u64 = 1 << 20;

/// What names a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub(super) media_type: String,
    /// 64 hexadecimal digits.
    pub(super) sha256: String,
    pub(super) size: u64,
    /// The name of the file that it is.
    pub(super) title: Option<String>,
}

impl Descriptor {
    pub(super) fn to_json(&self) -> Value {
        let mut json = json!({
            "mediaType": self.media_type,
            "digest": format!("sha256:{}", self.sha256),
            "size": self.size,
        });
        if let (Some(title), Some(map)) = (&self.title, json.as_object_mut()) {
            map.insert("annotations".into(), json!({ TITLE: title }));
        }
        json
    }

    /// Reads a descriptor, and says what is wrong with it.
    pub(super) fn from_json(json: &Value) -> Result<Self, String> {
        let text =
            |name: &str| json.get(name).and_then(Value::as_str).ok_or_else(|| format!("a descriptor has no `{name}`"));
        let digest = text("digest")?;
        let is_hex = |s: &str| s.len() == 64 && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let Some(sha256) = digest.strip_prefix("sha256:").filter(|hex| is_hex(hex)) else {
            return Err(format!("`{digest}` is no SHA-256"));
        };
        let Some(size) = json.get("size").and_then(Value::as_u64) else {
            return Err("a descriptor has no `size`".into());
        };
        let title = json.get("annotations").and_then(|a| a.get(TITLE)).and_then(Value::as_str);
        let (media_type, title) = (text("mediaType")?.to_owned(), title.map(str::to_owned));
        Ok(Self { media_type, sha256: sha256.to_owned(), size, title })
    }

    /// Returns the blob's file.
    pub(super) fn path_in(&self, layout: &Path) -> PathBuf {
        folder(layout).join(&self.sha256)
    }
}

pub(super) fn folder(layout: &Path) -> PathBuf {
    layout.join("blobs").join("sha256")
}

fn hex(hasher: Sha256) -> String {
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Copies a file into the blobs of a layout; it is there once. Returns what names it.
pub(super) fn add_file(layout: &Path, from: &Layer, media_type: &str, title: &str) -> Result<Descriptor> {
    let folder = folder(layout);
    let temp = Temp::beside(&folder.join("blob"))?;
    let sha256 = copy(from, &temp)?;
    from.check()?;
    let (media_type, title, size) = (media_type.to_owned(), Some(title.to_owned()), from.len_bytes());
    let descriptor = Descriptor { media_type, sha256, size, title };
    // Over one that is there: it has the same bytes, unless it is damaged.
    temp.called(&folder.join(&descriptor.sha256)).name_over()?;
    Ok(descriptor)
}

/// The same of bytes.
pub(super) fn add_bytes(layout: &Path, bytes: &[u8], media_type: &str) -> Result<Descriptor> {
    let mut hasher = Sha256::new();
    hasher.update(bytes);
    let descriptor =
        Descriptor { media_type: media_type.to_owned(), sha256: hex(hasher), size: bytes.len() as u64, title: None };
    let path = descriptor.path_in(layout);
    let temp = Temp::beside(&path)?;
    temp.write_at(bytes, 0)?;
    temp.name_over()?;
    Ok(descriptor)
}

/// Copies a blob out of a layout into a file that must not be there, or has the same bytes.
pub(super) fn take_file(layout: &Path, blob: &Descriptor, to: &Path) -> Result<()> {
    let from = open(layout, blob)?;
    let temp = Temp::beside(to)?;
    check(&from, blob, copy(&from, &temp)?)?;
    match temp.name_new() {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::AlreadyExists => {
            let there = Layer::open(to)?;
            if there.len_bytes() == blob.size && hash(&there)? == blob.sha256 {
                return Ok(());
            }
            Err(Error::InUse { path: to.into(), why: "a file of that name has other bytes".into() })
        }
        named => named,
    }
}

/// Reads a blob that is JSON.
pub(super) fn read_json(layout: &Path, blob: &Descriptor) -> Result<Value> {
    let from = open(layout, blob)?;
    let bytes = from.read_vec("a manifest", 0, from.len_bytes(), JSON_MAX)?;
    let mut hasher = Sha256::new();
    hasher.update(&bytes);
    check(&from, blob, hex(hasher))?;
    serde_json::from_slice(&bytes).map_err(|e| from.corrupt("a manifest", 0, format!("no JSON: {e}")))
}

/// Reads a file of the layout that has no digest.
pub(super) fn read_plain_json(path: &Path) -> Result<Value> {
    let from = Layer::open(path)?;
    let bytes = from.read_vec("the layout", 0, from.len_bytes(), JSON_MAX)?;
    serde_json::from_slice(&bytes).map_err(|e| from.corrupt("the layout", 0, format!("no JSON: {e}")))
}

fn open(layout: &Path, blob: &Descriptor) -> Result<Layer> {
    let from = Layer::open(blob.path_in(layout))?;
    if from.len_bytes() == blob.size {
        return Ok(from);
    }
    let why = format!("it is {} bytes long, and the descriptor says {}", from.len_bytes(), blob.size);
    Err(from.corrupt("a blob", 0, why))
}

fn check(from: &Layer, blob: &Descriptor, found: String) -> Result<()> {
    if found == blob.sha256 {
        return Ok(());
    }
    Err(from.corrupt("a blob", 0, format!("its SHA-256 is {found}")))
}

/// Copies all bytes of a file; returns their SHA-256. Zeros become holes.
fn copy(from: &Layer, to: &Temp) -> Result<String> {
    let hash = each_part(from, |pos, part| match crate::digest::is_zero(part) {
        true => Ok(()),
        false => to.write_at(part, pos),
    })?;
    to.set_len(from.len_bytes())?;
    Ok(hash)
}

fn hash(from: &Layer) -> Result<String> {
    each_part(from, |_, _| Ok(()))
}

fn each_part(from: &Layer, mut f: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<String> {
    let (mut hasher, mut bytes, mut pos) = (Sha256::new(), vec![0; PART as usize], 0);
    while pos < from.len_bytes() {
        bytes.truncate((from.len_bytes() - pos).min(PART) as usize);
        from.read("the file", pos, &mut bytes)?;
        hasher.update(&bytes);
        f(pos, &bytes)?;
        pos += bytes.len() as u64;
    }
    Ok(hex(hasher))
}
