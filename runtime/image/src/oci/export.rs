//! Putting an image into a layout.
//!
//! # Context: control plane; allocates, and waits for files

use super::blob::{self, Descriptor, EMPTY_TYPE, INDEX, INDEX_TYPE, LAYOUT, MANIFEST_TYPE, REF_NAME};
use super::{ARTIFACT_TYPE, RAW_TYPE, SFI_TYPE, WORKING_SET_TYPE};
use crate::durable;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::layer::Layer;
use crate::workingset::WorkingSet;
use serde_json::{Value, json};
use std::fs::File;
use std::path::Path;

/// The most that a name has.
const NAME_MAX: usize = 128;

/// Adds an image, the files that it needs, and its working set if there is one beside it, to the layout in `folder`, which is made
/// if there is none. `name` is the image's from then on, and none's that had it before. Returns the digest of the manifest, as it is
/// written there.
///
/// The name is given last: until then the layout is as it was, but for blobs that nothing names.
///
/// # Errors
/// [`Error::Unsupported`]: the image is no `.sfi`, or not every byte of it has a digest; [`Error::Argument`]: no such name can be;
/// [`Error::Corrupt`]: the folder has something else in it; [`Error::Changed`]; [`Error::Io`].
pub fn export(image: &Image, folder: impl AsRef<Path>, name: &str) -> Result<String> {
    let folder = folder.as_ref();
    check_name(name)?;
    if image.file_digest().is_none() || !image.is_verifiable()? {
        let why = "convert it, or write a sidecar of digests, and export that";
        return Err(Error::Unsupported { path: image.path().into(), what: "bytes without digests".into(), why });
    }
    let blobs = blob::folder(folder);
    durable::create_folders(&blobs)?;
    // Two that export at once read and write one index.
    let lock = File::open(folder).map_err(Error::io("open", folder))?;
    lock.lock().map_err(Error::io("lock", folder))?;
    durable::remove_left(folder)?;
    durable::remove_left(&blobs)?;
    let mut index = open_index(folder)?;
    let mut layers = Vec::new();
    for (file, is_sfi) in image.open_files()? {
        let title = file.path().file_name().and_then(|n| n.to_str()).unwrap_or_default();
        layers.push(blob::add_file(folder, file, if is_sfi { SFI_TYPE } else { RAW_TYPE }, title)?);
    }
    if WorkingSet::find(image)?.is_some() {
        let file = Layer::open(WorkingSet::path_beside(image)?)?;
        let title = file.path().file_name().and_then(|n| n.to_str()).unwrap_or_default();
        layers.push(blob::add_file(folder, &file, WORKING_SET_TYPE, title)?);
    }
    let config = blob::add_bytes(folder, b"{}", EMPTY_TYPE)?;
    let manifest = manifest(image, &config, &layers);
    let manifest = blob::add_bytes(folder, manifest.to_string().as_bytes(), MANIFEST_TYPE)?;
    put(&mut index, &manifest, name);
    durable::replace(&folder.join(INDEX), index.to_string().as_bytes())?;
    Ok(format!("sha256:{}", manifest.sha256))
}

fn check_name(name: &str) -> Result<()> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._:@/+".contains(c);
    if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(is_plain) {
        let why = "a name has 1 to 128 letters, digits and `-._:@/+`";
        return Err(Error::Argument { op: "oci::export", arg: "name", value: name.len() as u64, why });
    }
    Ok(())
}

/// Reads the index of a layout, or begins one where there is none.
fn open_index(folder: &Path) -> Result<Value> {
    let (path, layout) = (folder.join(INDEX), folder.join(LAYOUT));
    if path.symlink_metadata().is_err() {
        durable::replace(&layout, json!({ "imageLayoutVersion": "1.0.0" }).to_string().as_bytes())?;
        return Ok(json!({ "schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [] }));
    }
    let index = blob::read_plain_json(&path)?;
    if index.get("manifests").is_none_or(|list| !list.is_array()) {
        let why = "it has no list of manifests".into();
        return Err(Error::Corrupt { path, what: "the layout", offset: 0, why });
    }
    Ok(index)
}

fn manifest(image: &Image, config: &Descriptor, layers: &[Descriptor]) -> Value {
    let digest = |d: Option<crate::Digest>| d.map_or_else(String::new, |d| format!("blake3:{d}"));
    json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": config.to_json(),
        "layers": layers.iter().map(Descriptor::to_json).collect::<Vec<_>>(),
        "annotations": {
            "dev.softfault.image.file-digest": digest(image.file_digest()),
            "dev.softfault.image.content-digest": digest(image.content_digest()),
            "dev.softfault.image.pages": image.nr_pages().to_string(),
        },
    })
}

/// Has `name` name a manifest, and no other.
fn put(index: &mut Value, manifest: &Descriptor, name: &str) {
    let Some(list) = index.get_mut("manifests").and_then(Value::as_array_mut) else { return };
    list.retain(|m| m.get("annotations").and_then(|a| a.get(REF_NAME)).and_then(Value::as_str) != Some(name));
    let mut entry = manifest.to_json();
    if let Some(map) = entry.as_object_mut() {
        map.insert("artifactType".into(), json!(ARTIFACT_TYPE));
        map.insert("annotations".into(), json!({ REF_NAME: name }));
    }
    list.push(entry);
}
