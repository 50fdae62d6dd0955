//! OCI layouts: what is exported is what the specification says, read by who knows nothing of us; what is made to deceive is
//! refused.
#![allow(clippy::cast_possible_truncation, reason = "small images")]

mod common;

use common::{Model, filled, read_all};
use serde_json::{Value, json};
use softfault_image::workingset::{Resolution, WorkingSet};
use softfault_image::{Codec, Error, Image, PAGE_SIZE, Writer, oci, write_sidecar};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

/// A full image, a child of it, and the child's memory.
fn family(folder: &Path) -> (Image, Model) {
    let mut model = filled(300, 3);
    let mut w = Writer::create(folder.join("base.sfi"), 300).expect("create").codec(Codec::Lz4);
    w.write(0, &model.concat()).expect("write");
    w.finish().expect("finish");
    let base = Arc::new(Image::open(folder.join("base.sfi")).expect("open"));
    let mut w = Writer::over(folder.join("child.sfi"), 300, base).expect("create");
    model[7] = [7; PAGE_SIZE];
    w.write(7, &model[7]).expect("write");
    w.finish().expect("finish");
    (Image::open(folder.join("child.sfi")).expect("open"), model)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("read")).expect("JSON")
}

/// The SHA-256 by another program than ours.
fn sha256sum(path: &Path) -> String {
    let out = Command::new("sha256sum").arg(path).output().expect("sha256sum");
    String::from_utf8(out.stdout).expect("text").split_whitespace().next().expect("a digest").to_owned()
}

/// Returns the bytes of a blob, after each word of its descriptor was checked.
fn blob(layout: &Path, descriptor: &Value) -> Vec<u8> {
    let digest = descriptor["digest"].as_str().expect("a digest");
    let path = layout.join("blobs").join(digest.replace(':', "/"));
    assert_eq!(format!("sha256:{}", sha256sum(&path)), digest);
    let bytes = fs::read(&path).expect("the blob");
    assert_eq!(descriptor["size"].as_u64(), Some(bytes.len() as u64));
    assert!(descriptor["mediaType"].as_str().is_some_and(|t| t.starts_with("application/vnd.")));
    bytes
}

/// Reads a layout as the specification says; returns the files of each name, by their titles.
fn read_layout(layout: &Path) -> BTreeMap<String, BTreeMap<String, Vec<u8>>> {
    assert_eq!(json(&layout.join("oci-layout")), json!({ "imageLayoutVersion": "1.0.0" }));
    let index = json(&layout.join("index.json"));
    assert_eq!(
        (&index["schemaVersion"], &index["mediaType"]),
        (&json!(2), &json!("application/vnd.oci.image.index.v1+json"))
    );
    let mut all = BTreeMap::new();
    for entry in index["manifests"].as_array().expect("a list") {
        assert_eq!(entry["mediaType"], "application/vnd.oci.image.manifest.v1+json");
        let manifest: Value = serde_json::from_slice(&blob(layout, entry)).expect("JSON");
        assert_eq!((&manifest["schemaVersion"], &manifest["mediaType"]), (&json!(2), &entry["mediaType"]));
        assert_eq!(manifest["config"]["mediaType"], "application/vnd.oci.empty.v1+json");
        assert_eq!(blob(layout, &manifest["config"]), b"{}");
        assert_eq!(
            manifest["artifactType"], "application/vnd.softfault.image.v1",
            "as the empty configuration asks for"
        );
        let mut files = BTreeMap::new();
        for layer in manifest["layers"].as_array().expect("layers") {
            let title = layer["annotations"]["org.opencontainers.image.title"].as_str().expect("a title");
            files.insert(title.to_owned(), blob(layout, layer));
        }
        let name = entry["annotations"]["org.opencontainers.image.ref.name"].as_str().expect("a name");
        assert!(all.insert(name.to_owned(), files).is_none(), "two of one name");
    }
    all
}

#[test]
fn a_layout_is_what_the_specification_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let layout = folder.path().join("layout");
    let (image, model) = family(folder.path());
    let mut set = WorkingSet::of(&image, Resolution::PAGE).expect("a digest");
    set.push(0..9, [7, 8]).expect("push");
    let ws = set.save_beside(&image).expect("save");
    let digest = oci::export(&image, &layout, "app/web:1.4").expect("export");
    assert_eq!(oci::export(&image, &layout, "app/web:1.4").expect("once more"), digest);
    let base = Image::open(folder.path().join("base.sfi")).expect("open");
    oci::export(&base, &layout, "base").expect("another one");

    let all = read_layout(&layout);
    let file = |name: &str| fs::read(folder.path().join(name)).expect("read");
    let titles = |name: &str| all[name].keys().cloned().collect::<Vec<_>>();
    let ws_name = ws.file_name().expect("a name").to_string_lossy().into_owned();
    let mut wanted = vec!["base.sfi".to_owned(), "child.sfi".to_owned(), ws_name.clone()];
    wanted.sort();
    assert_eq!((titles("app/web:1.4"), titles("base")), (wanted, vec!["base.sfi".to_owned()]));
    for (title, bytes) in &all["app/web:1.4"] {
        assert_eq!(*bytes, file(title), "{title}");
    }
    // Two manifests, one configuration, two images, a working set: each once, and nothing else.
    assert_eq!(fs::read_dir(layout.join("blobs/sha256")).expect("dir").count(), 6);
    assert_eq!(oci::names(&layout).expect("names"), ["app/web:1.4", "base"]);

    let other = tempfile::tempdir().expect("a folder");
    for name in ["app/web:1.4", &digest] {
        let path = oci::import(&layout, name, other.path()).expect("import");
        let image = Image::open(&path).expect("open");
        assert_eq!(read_all(&image), model);
        image.verify(&mut |_| ()).expect("verify");
        assert_eq!(WorkingSet::find(&image).expect("find").as_ref(), Some(&set));
    }
    assert_eq!(fs::read_dir(other.path()).expect("dir").count(), 3);
    assert!(matches!(oci::import(&layout, "none", other.path()), Err(Error::Io { .. })));
    // A file of another's that has the name is not replaced.
    fs::write(other.path().join("base.sfi"), "somebody's").expect("write");
    assert!(matches!(oci::import(&layout, "base", other.path()), Err(Error::InUse { .. })));
    assert_eq!(fs::read(other.path().join("base.sfi")).expect("read"), b"somebody's");
}

#[test]
fn only_what_has_digests_travels() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let layout = at("layout");
    let model = filled(100, 4);
    fs::write(at("m.raw"), model.concat()).expect("write");
    let raw = Arc::new(Image::open(at("m.raw")).expect("open"));
    assert!(matches!(oci::export(&raw, &layout, "x"), Err(Error::Unsupported { .. })), "a raw file");
    Writer::over(at("child.sfi"), 100, Arc::clone(&raw)).expect("create").write(3, &[1; PAGE_SIZE]).expect("write");
    let mut w = Writer::over(at("child.sfi"), 100, Arc::clone(&raw)).expect("create");
    w.write(3, &[1; PAGE_SIZE]).expect("write");
    w.finish().expect("finish");
    let child = Image::open(at("child.sfi")).expect("open");
    assert!(matches!(oci::export(&child, &layout, "x"), Err(Error::Unsupported { .. })), "its parent is a raw file");
    assert!(!layout.exists());
    write_sidecar(&raw, at("m.sfi")).expect("sidecar");
    let side = Image::open(at("m.sfi")).expect("open");
    oci::export(&side, &layout, "x").expect("a sidecar, and what it is of");
    assert_eq!(read_layout(&layout)["x"].keys().cloned().collect::<Vec<_>>(), ["m.raw", "m.sfi"]);
    let other = tempfile::tempdir().expect("a folder");
    let path = oci::import(&layout, "x", other.path()).expect("import");
    assert_eq!(read_all(&Image::open(path).expect("open")), model);
    for bad in ["", "a b", "é", &"x".repeat(129)] {
        assert!(matches!(oci::export(&side, &layout, bad), Err(Error::Argument { .. })), "{bad}");
    }
}

#[test]
fn what_is_made_to_deceive_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let layout = folder.path().join("layout");
    let (image, _) = family(folder.path());
    oci::export(&image, &layout, "x").expect("export");
    let index = json(&layout.join("index.json"));
    let manifest: Value = serde_json::from_slice(&blob(&layout, &index["manifests"][0])).expect("JSON");
    let into = folder.path().join("into");
    fs::create_dir(&into).expect("a folder");
    let put = |manifest: &Value| {
        let bytes = manifest.to_string();
        let temp = layout.join("blobs/new");
        fs::write(&temp, &bytes).expect("write");
        let sha = sha256sum(&temp);
        fs::rename(&temp, layout.join("blobs/sha256").join(&sha)).expect("rename");
        let mut index = index.clone();
        index["manifests"][0]["digest"] = json!(format!("sha256:{sha}"));
        index["manifests"][0]["size"] = json!(bytes.len());
        fs::write(layout.join("index.json"), index.to_string()).expect("write");
    };
    let refused = |manifest: &Value, wanted: &str| {
        put(manifest);
        let error = oci::import(&layout, "x", &into).expect_err(wanted).to_string();
        assert!(error.contains(wanted), "{error}, and not {wanted}");
        assert_eq!(fs::read_dir(&into).expect("dir").count(), 0, "{wanted}: nothing has come");
    };
    let with = |path: &str, value: Value| {
        let mut m = manifest.clone();
        *m.pointer_mut(path).expect(path) = value;
        m
    };
    let title = "/layers/0/annotations/org.opencontainers.image.title";
    for bad in ["../x.sfi", "/etc/x.sfi", "", ".hidden", "a\0b"] {
        refused(&with(title, json!(bad)), "no name of a file");
    }
    refused(&with(title, json!("base.sfi")), "two layers are called");
    refused(&with("/layers/0/mediaType", json!("application/vnd.oci.image.layer.v1.tar")), "layer 0 is a");
    refused(&with("/layers/1/size", json!(5)), "the descriptor says 5");
    refused(&with("/layers/1/size", json!("5")), "has no `size`");
    refused(&with("/layers/1/digest", json!("sha512:00")), "is no SHA-256");
    refused(&with("/layers/1/digest", json!(format!("sha256:{}", "../".repeat(21) + "x"))), "is no SHA-256");
    refused(&with("/layers/1/digest", manifest["layers"][0]["digest"].clone()), "");
    refused(&with("/layers", json!([])), "has no layers");
    refused(&with("/layers", json!(7)), "has no layers");
    refused(&with("/artifactType", json!("application/vnd.cncf.helm")), "of no image of memory");
    fs::write(layout.join("index.json"), index.to_string()).expect("write");
    // A blob that is another one.
    let base = layout.join("blobs").join(manifest["layers"][1]["digest"].as_str().expect("text").replace(':', "/"));
    let good = fs::read(&base).expect("read");
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    fs::write(&base, &bad).expect("write");
    let error = oci::import(&layout, "x", &into).expect_err("damaged");
    assert!(error.is_corruption() && error.to_string().contains("SHA-256"), "{error}");
    assert_eq!(fs::read_dir(&into).expect("dir").count(), 0);
    // An export mends it.
    oci::export(&image, &layout, "x").expect("export");
    oci::import(&layout, "x", &into).expect("import");
    // A tool that knows no types of artifacts has copied it.
    let mut m = manifest.clone();
    m.as_object_mut().expect("an object").remove("artifactType");
    put(&m);
    oci::import(&layout, "x", &into).expect("import");
    // A parent that is no layer, and not there either.
    let lone = folder.path().join("lone");
    fs::create_dir(&lone).expect("a folder");
    m["layers"].as_array_mut().expect("a list").truncate(1);
    put(&m);
    let error = oci::import(&layout, "x", &lone).expect_err("no parent").to_string();
    assert!(error.contains("base.sfi"), "{error}");
    for (file, bytes, wanted) in [
        ("index.json", "{}", "no list of manifests"),
        ("index.json", "[", "no JSON"),
        ("oci-layout", "{\"imageLayoutVersion\":\"2.0.0\"}", "version `2.0.0`"),
    ] {
        fs::write(layout.join(file), bytes).expect("write");
        for error in [oci::names(&layout).expect_err(wanted), oci::import(&layout, "x", &lone).expect_err(wanted)] {
            assert!(error.to_string().contains(wanted), "{error}");
        }
    }
}
