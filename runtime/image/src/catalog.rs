//! A folder of images: names for digests, and what may go because nobody needs it.
//!
//! # Context: control plane; allocates, and waits for files

use crate::digest::{Digest, NotADigest};
use crate::durable;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::lease::Alone;
use crate::workingset::EXTENSION;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

const TAGS: &str = "tags";
const LOCK: &str = ".lock";
/// The longest tag.
const TAG_MAX: usize = 128;

/// A folder with `.sfi` files in it, and a folder `tags` in which a file for each tag has the file digest of an image.
#[derive(Clone, Debug)]
pub struct Catalog {
    folder: PathBuf,
}

/// An image of a catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its file.
    pub path: PathBuf,
    /// The digest of the file.
    pub digest: Digest,
    /// That of its memory, if it knows it.
    pub content: Option<Digest>,
    /// Its length in bytes.
    pub len_bytes: u64,
    /// What names it.
    pub tags: Vec<String>,
    /// The files in the folder that it needs.
    pub needs: Vec<PathBuf>,
}

/// What a collection would remove, and what it keeps and why.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Images that nothing names, holds or needs; children before their parents.
    pub remove: Vec<Entry>,
    /// Working sets of contents that no image of the folder has, once those are removed.
    pub working_sets: Vec<PathBuf>,
    /// The others, and why.
    pub keep: Vec<(Entry, Kept)>,
    /// Files that call themselves images and cannot be read as such. They are left alone; since nobody knows what they need,
    /// nothing is removed while there is one.
    pub damaged: Vec<(PathBuf, String)>,
}

/// Why an image is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// A tag names it.
    Tagged,
    /// Somebody holds it: see [`Image::lease`].
    Held,
    /// Another image needs it.
    Needed(PathBuf),
}

impl Catalog {
    /// Opens a folder, which is made if there is none.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref().to_path_buf();
        durable::create_folders(&folder.join(TAGS))?;
        Ok(Self { folder })
    }

    /// Keeps other processes from changing tags, or collecting, meanwhile.
    fn lock(&self) -> Result<File> {
        let path = self.folder.join(LOCK);
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(Error::io("open", &path))?;
        file.lock().map_err(Error::io("lock", &path))?;
        Ok(file)
    }

    fn tag_path(&self, tag: &str) -> Result<PathBuf> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.:@".contains(c);
        if tag.is_empty() || tag.len() > TAG_MAX || tag.starts_with('.') || !tag.chars().all(is_plain) {
            let why = "a tag has 1 to 128 letters, digits and `-_.:@`, and does not begin with a dot";
            return Err(Error::Argument { op: "Catalog::tag", arg: "tag", value: tag.len() as u64, why });
        }
        Ok(self.folder.join(TAGS).join(tag))
    }

    /// Has a tag name an image of the folder, and none that it named before.
    ///
    /// # Errors
    /// [`Error::Argument`]: no such tag can be. [`Error::Io`]: there is no image of this digest.
    pub fn tag(&self, tag: &str, digest: &Digest) -> Result<()> {
        let path = self.tag_path(tag)?;
        let _lock = self.lock()?;
        self.find(digest)?;
        durable::replace(&path, format!("{digest}\n").as_bytes())
    }

    /// Takes a tag away.
    ///
    /// # Errors
    /// [`Error::Io`]: there is none.
    pub fn untag(&self, tag: &str) -> Result<()> {
        let path = self.tag_path(tag)?;
        let _lock = self.lock()?;
        durable::remove(&path)?;
        durable::sync_folder(&path)
    }

    /// Returns what each tag names, in order.
    ///
    /// # Errors
    /// [`Error::Corrupt`]: the file of a tag has no digest in it. [`Error::Io`].
    pub fn tags(&self) -> Result<BTreeMap<String, Digest>> {
        let folder = self.folder.join(TAGS);
        let mut tags = BTreeMap::new();
        for entry in std::fs::read_dir(&folder).map_err(Error::io("read the folder", &folder))? {
            let entry = entry.map_err(Error::io("read the folder", &folder))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name.starts_with('.') {
                continue;
            }
            let path = entry.path();
            let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
            let digest = text.trim().parse().map_err(|e: NotADigest| Error::Corrupt {
                path,
                what: "a tag",
                offset: 0,
                why: e.to_string(),
            })?;
            tags.insert(name, digest);
        }
        Ok(tags)
    }

    /// Opens the image that a tag names, or that has this digest.
    ///
    /// # Errors
    /// [`Error::Io`]: there is none; errors of [`Image::open`].
    pub fn image(&self, name: &str) -> Result<Image> {
        let digest = match name.parse() {
            Ok(digest) => digest,
            Err(_) => {
                let path = self.tag_path(name)?;
                let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
                let why = |_| Error::Corrupt { path, what: "a tag", offset: 0, why: "it has no digest in it".into() };
                text.trim().parse().map_err(why)?
            }
        };
        self.open_by(&digest).map(|(_, image)| image)
    }

    /// Returns the file of the image with this digest.
    ///
    /// # Errors
    /// [`Error::Io`]: there is none.
    pub fn find(&self, digest: &Digest) -> Result<PathBuf> {
        self.open_by(digest).map(|(path, _)| path)
    }

    /// Returns the image with this digest, and its file.
    fn open_by(&self, digest: &Digest) -> Result<(PathBuf, Image)> {
        let opened = self.files()?.into_iter().filter_map(|p| Image::open(&p).ok().map(|image| (p, image)));
        let mut found = opened.filter(|(_, image)| image.file_digest() == Some(*digest));
        found.next().ok_or_else(|| {
            let what = format!("no image with the digest {digest}");
            Error::io("look in the folder", &self.folder)(std::io::Error::new(std::io::ErrorKind::NotFound, what))
        })
    }

    /// Returns the `.sfi` files, in the order of their names.
    fn files(&self) -> Result<Vec<PathBuf>> {
        self.files_with("sfi")
    }

    /// Returns the working sets of contents that are not among `contents`. A file that has no digest for its name is somebody's.
    fn lone_sets(&self, contents: &[Digest]) -> Result<Vec<PathBuf>> {
        let mut sets = self.files_with(EXTENSION)?;
        sets.retain(|path| {
            let digest: Option<Digest> = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
            digest.is_some_and(|digest| !contents.contains(&digest))
        });
        Ok(sets)
    }

    /// Returns the files whose names end so, in the order of their names.
    fn files_with(&self, extension: &str) -> Result<Vec<PathBuf>> {
        let io = || Error::io("read the folder", &self.folder);
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(io())? {
            let path = entry.map_err(io())?.path();
            if path.extension().is_some_and(|e| e == extension) {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }

    /// Returns the images of the folder, and the files that are none though they are called so.
    ///
    /// # Errors
    /// As [`Catalog::tags`].
    #[expect(clippy::type_complexity, reason = "a list of files, and what is wrong with each")]
    pub fn entries(&self) -> Result<(Vec<Entry>, Vec<(PathBuf, String)>)> {
        let (tags, mut entries, mut damaged) = (self.tags()?, Vec::new(), Vec::new());
        for path in self.files()? {
            let entry = Image::open(&path).and_then(|image| {
                let digest = image.file_digest().unwrap_or_default();
                let len_bytes = std::fs::metadata(&path).map_err(Error::io("stat", &path))?.len();
                let tags = tags.iter().filter(|(_, d)| **d == digest).map(|(t, _)| t.clone()).collect();
                let (content, needs) = (image.content_digest(), image.needs());
                Ok(Entry { path: path.clone(), digest, content, len_bytes, tags, needs })
            });
            match entry {
                Ok(entry) => entries.push(entry),
                Err(e) => damaged.push((path, e.to_string())),
            }
        }
        Ok((entries, damaged))
    }

    /// Says what a collection would do now.
    ///
    /// # Errors
    /// As [`Catalog::tags`].
    pub fn plan(&self) -> Result<Plan> {
        let _lock = self.lock()?;
        self.decide().map(|(plan, _)| plan)
    }

    /// Removes what nothing names, holds or needs, and says what that was, and what was kept. Working sets of what is gone go with it,
    /// and what writers left behind that were killed.
    ///
    /// # Errors
    /// As [`Catalog::tags`]; [`Error::Io`]: a file could not be removed; those before it in [`Plan::remove`] were.
    pub fn collect(&self) -> Result<Plan> {
        let _lock = self.lock()?;
        let (plan, alone) = self.decide()?;
        // A child's name is gone for good before its parent's is.
        for (path, _alone) in &alone {
            durable::remove(path)?;
            durable::sync_folder(path)?;
        }
        for path in &plan.working_sets {
            durable::remove(path)?;
            durable::sync_folder(path)?;
        }
        durable::remove_left(&self.folder)?;
        durable::remove_left(&self.folder.join(TAGS))?;
        Ok(plan)
    }

    /// Decides what goes, and takes it for its own, so that nobody comes to hold it meanwhile.
    fn decide(&self) -> Result<(Plan, Vec<(PathBuf, Alone)>)> {
        let (entries, damaged) = self.entries()?;
        let mut why: BTreeMap<PathBuf, Kept> = BTreeMap::new();
        let mut alone: BTreeMap<PathBuf, Alone> = BTreeMap::new();
        for entry in &entries {
            if !entry.tags.is_empty() {
                why.insert(entry.path.clone(), Kept::Tagged);
            } else if let Some(file) = Alone::take(&entry.path)? {
                alone.insert(entry.path.clone(), file);
            } else {
                why.insert(entry.path.clone(), Kept::Held);
            }
        }
        let needs: BTreeMap<&Path, &Entry> = entries.iter().map(|e| (e.path.as_path(), e)).collect();
        let mut wanted: Vec<PathBuf> = why.keys().cloned().collect();
        while let Some(path) = wanted.pop() {
            for below in needs.get(path.as_path()).map(|e| e.needs.as_slice()).unwrap_or_default() {
                if !why.contains_key(below) {
                    why.insert(below.clone(), Kept::Needed(path.clone()));
                    alone.remove(below);
                    wanted.push(below.clone());
                }
            }
        }
        let mut plan = Plan { damaged, ..Plan::default() };
        let mut order = Vec::new();
        for entry in entries {
            match why.remove(&entry.path) {
                Some(kept) => plan.keep.push((entry, kept)),
                None => match plan.damaged.first() {
                    Some((by, _)) => plan.keep.push((entry, Kept::Needed(by.clone()))),
                    None => plan.remove.push(entry),
                },
            }
        }
        plan.remove = children_first(plan.remove);
        if plan.damaged.is_empty() {
            let contents: Vec<Digest> = plan.keep.iter().filter_map(|(entry, _)| entry.content).collect();
            plan.working_sets = self.lone_sets(&contents)?;
        }
        for entry in &plan.remove {
            order.extend(alone.remove_entry(&entry.path));
        }
        Ok((plan, order))
    }

    /// Removes one image.
    ///
    /// # Errors
    /// [`Error::InUse`] names the tag, or the image that needs it; or somebody holds it. [`Error::Io`]: there is none.
    pub fn remove(&self, digest: &Digest) -> Result<()> {
        let _lock = self.lock()?;
        let (entries, damaged) = self.entries()?;
        let path = self.find(digest)?;
        let in_use = |why: String| Err(Error::InUse { path: path.clone(), why });
        if let Some(tag) = entries.iter().find(|e| e.path == path).and_then(|e| e.tags.first()) {
            return in_use(format!("the tag `{tag}` names it"));
        }
        if let Some(child) = entries.iter().find(|e| e.needs.contains(&path)) {
            return in_use(format!("{} needs it", child.path.display()));
        }
        if let Some((by, _)) = damaged.first() {
            return in_use(format!("{} cannot be read, and may need it", by.display()));
        }
        match Alone::take(&path)? {
            Some(_alone) => {
                durable::remove(&path)?;
                durable::sync_folder(&path)
            }
            None => in_use("somebody holds it".into()),
        }
    }
}

/// Puts whoever needs others before them: where a collection ends half way, no image has lost what it needs.
fn children_first(mut left: Vec<Entry>) -> Vec<Entry> {
    let mut order = Vec::new();
    while !left.is_empty() {
        let is_needed = |e: &Entry| left.iter().any(|other| other.needs.contains(&e.path));
        // Files cannot need each other in a circle: each names the digests of those that it needs.
        let at = left.iter().position(|e| !is_needed(e)).unwrap_or(0);
        order.push(left.swap_remove(at));
    }
    order
}
