//! Taking an image out of a layout, which is somebody else's.
//!
//! # Context: control plane; allocates, and waits for files

use super::blob::{self, Descriptor, INDEX, LAYOUT, MANIFEST_TYPE, REF_NAME};
use super::{ARTIFACT_TYPE, RAW_TYPE, SFI_TYPE, WORKING_SET_TYPE};
use crate::error::{Error, Result};
use crate::image::Image;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// More layers than an image has.
const LAYERS_MAX: usize = 1 << 16;

/// Returns the names of the images in a layout, in order; other artifacts are passed over.
///
/// # Errors
/// [`Error::Corrupt`], [`Error::Unsupported`]: it is none, or of another version; [`Error::Io`].
pub fn names(folder: impl AsRef<Path>) -> Result<Vec<String>> {
    let list = manifests(folder.as_ref())?;
    let mut names: Vec<String> = list.iter().filter_map(|m| name_of(m).map(str::to_owned)).collect();
    names.sort();
    Ok(names)
}

/// Copies the image called `name`, or whose manifest has that digest (`sha256:...`), and the files that it needs, from the layout
/// in `folder` into the folder `into`; the image last. Every blob is checked by its SHA-256, and no file is replaced: one that is
/// there is the same, or else the import is refused. Returns the image's file.
///
/// # Errors
/// [`Error::Corrupt`], [`Error::Unsupported`]: the layout, a manifest or a blob is not what it should be; [`Error::InUse`]: a file of
/// another's has the name; [`Error::Io`]: there is no such image, and so on; errors of [`Image::open`].
pub fn import(folder: impl AsRef<Path>, name: &str, into: impl AsRef<Path>) -> Result<PathBuf> {
    let (folder, into) = (folder.as_ref(), into.as_ref());
    let path = folder.join(INDEX);
    let corrupt = |path: &Path, why: String| Error::Corrupt { path: path.into(), what: "the layout", offset: 0, why };
    let list = manifests(folder)?;
    let is_it = |m: &&Value| name_of(m) == Some(name) || m.get("digest").and_then(Value::as_str) == Some(name);
    let Some(found) = list.iter().find(is_it) else {
        let what = format!("no image is called `{name}`");
        return Err(Error::io("look in", &path)(std::io::Error::new(std::io::ErrorKind::NotFound, what)));
    };
    let manifest = Descriptor::from_json(found).map_err(|why| corrupt(&path, why))?;
    let path = manifest.path_in(folder);
    let layers = layers(&blob::read_json(folder, &manifest)?).map_err(|why| corrupt(&path, why))?;
    let Some(((own, title), others)) = layers.split_first() else {
        return Err(corrupt(&path, "the manifest has no layers".into()));
    };
    for (layer, title) in others {
        if layer.media_type == WORKING_SET_TYPE && into.join(title).exists() {
            // Of the same contents, and recorded here.
            continue;
        }
        blob::take_file(folder, layer, &into.join(title))?;
    }
    let own_path = into.join(title);
    blob::take_file(folder, own, &own_path)?;
    let image = Image::open(&own_path)?;
    if let Some(missing) = image.needs().iter().find(|needed| !needed.exists()) {
        return Err(corrupt(&path, format!("the image needs {}, which is no layer", missing.display())));
    }
    Ok(own_path)
}

/// Returns the entries of the index, after a look at the version.
fn manifests(folder: &Path) -> Result<Vec<Value>> {
    let layout = folder.join(LAYOUT);
    let version = blob::read_plain_json(&layout)?;
    let version = version.get("imageLayoutVersion").and_then(Value::as_str).unwrap_or_default();
    if version != "1.0.0" {
        let (what, why) = (format!("version `{version}` of the layout"), "version 1.0.0 is known");
        return Err(Error::Unsupported { path: layout, what, why });
    }
    let path = folder.join(INDEX);
    match blob::read_plain_json(&path)?.get_mut("manifests").map(Value::take) {
        Some(Value::Array(list)) => Ok(list),
        _ => {
            let why = "it has no list of manifests".into();
            Err(Error::Corrupt { path, what: "the layout", offset: 0, why })
        }
    }
}

/// Returns the name of an entry that is of an image.
fn name_of(entry: &Value) -> Option<&str> {
    let is_image = entry.get("artifactType").and_then(Value::as_str).is_none_or(|t| t == ARTIFACT_TYPE);
    let is_manifest = entry.get("mediaType").and_then(Value::as_str) == Some(MANIFEST_TYPE);
    entry.get("annotations")?.get(REF_NAME)?.as_str().filter(|_| is_image && is_manifest)
}

/// Returns the layers of a manifest and the files that they become, the image's own first.
fn layers(manifest: &Value) -> Result<Vec<(Descriptor, String)>, String> {
    // Tools that are older than the field drop it: then the type of the first layer says what it is.
    let kind = manifest.get("artifactType").and_then(Value::as_str);
    if let Some(kind) = kind.filter(|kind| *kind != ARTIFACT_TYPE) {
        return Err(format!("it is a manifest of `{kind}`, and of no image of memory"));
    }
    let Some(list) = manifest.get("layers").and_then(Value::as_array).filter(|list| list.len() <= LAYERS_MAX) else {
        return Err("the manifest has no layers, or too many".into());
    };
    let mut layers: Vec<(Descriptor, String)> = Vec::new();
    for (i, json) in list.iter().enumerate() {
        let layer = Descriptor::from_json(json)?;
        let kinds = [SFI_TYPE, RAW_TYPE, WORKING_SET_TYPE];
        if !kinds.contains(&layer.media_type.as_str()) || i == 0 && layer.media_type != SFI_TYPE {
            return Err(format!("layer {i} is a `{}`", layer.media_type));
        }
        // A name with a folder in it could become any file of the machine, and one that begins with a dot a file that is hidden.
        let is_plain = |name: &str| !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
        let Some(title) = layer.title.clone().filter(|name| is_plain(name)) else {
            return Err(format!("layer {i} has no name of a file"));
        };
        if layers.iter().any(|(_, other)| *other == title) {
            return Err(format!("two layers are called `{title}`"));
        }
        layers.push((layer, title));
    }
    Ok(layers)
}
