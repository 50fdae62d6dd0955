//! What takes long to build: which documents have which words, and the documents.
//!
//! Everything of it lies in the heap that it is given: blocks, and addresses of blocks. The allocator itself is nothing (a type
//! without fields), and the hashes have no key of the process, so that another process of the same program can go on with it.

use crate::texts;
use crate::units::Result;
use allocator_api2::alloc::Allocator;
use allocator_api2::boxed::Box;
use allocator_api2::vec::Vec;
use hashbrown::HashMap;
use std::fs::File;
use std::hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader};
use std::path::Path;

/// The same in every process: no key by chance.
type Hashes = BuildHasherDefault<DefaultHasher>;

/// Documents by number, and for each word the numbers of those that have it, rising.
pub(crate) struct Index<A: Allocator + Copy> {
    texts: Vec<Option<Box<[u8], A>>, A>,
    words: HashMap<Box<[u8], A>, Vec<u32, A>, Hashes, A>,
    heap: A,
}

impl<A: Allocator + Copy> Index<A> {
    /// Reads all documents.
    pub(crate) fn build(file: &Path, heap: A) -> Result<Self> {
        let words = HashMap::with_hasher_in(Hashes::default(), heap);
        let mut index = Self { texts: Vec::new_in(heap), words, heap };
        let mut lines = BufReader::new(File::open(file)?);
        let mut line = String::new();
        while lines.read_line(&mut line)? > 0 {
            index.append(line.trim_end())?;
            line.clear();
        }
        Ok(index)
    }

    /// Adds a document.
    pub(crate) fn append(&mut self, text: &str) -> Result<()> {
        let document = u32::try_from(self.texts.len())?;
        for word in text.split(' ').map(str::as_bytes) {
            if let Some(documents) = self.words.get_mut(word) {
                // A word that a document has twice.
                if documents.last() != Some(&document) {
                    documents.push(document);
                }
            } else {
                let mut documents = Vec::new_in(self.heap);
                documents.push(document);
                self.words.insert(copy(word, self.heap), documents);
            }
        }
        self.texts.push(Some(copy(text.as_bytes(), self.heap)));
        Ok(())
    }

    /// Removes a document, and the words that no other has.
    pub(crate) fn remove(&mut self, document: u32) {
        let Some(text) = self.texts.get_mut(document as usize).and_then(Option::take) else { return };
        for word in text.split(|b| *b == b' ') {
            let Some(documents) = self.words.get_mut(word) else { continue };
            if let Ok(at) = documents.binary_search(&document) {
                documents.remove(at);
            }
            if documents.is_empty() {
                self.words.remove(word);
            }
        }
    }

    /// Says which documents have both words. In memory that is not the heap's: a system call on memory of an arena that is not
    /// there yet fails, and what is printed goes to one.
    pub(crate) fn answer(&self, both: &[String; 2]) -> String {
        let [a, b] = both.each_ref().map(|w| self.words.get(w.as_bytes()).map_or(&[][..], |d| &d[..]));
        let found: std::vec::Vec<u32> = a.iter().copied().filter(|d| b.binary_search(d).is_ok()).collect();
        let text = found.first().and_then(|d| self.texts.get(*d as usize)).and_then(Option::as_deref);
        let text = text.map_or_else(|| "none".into(), String::from_utf8_lossy);
        format!("{} documents have \"{}\"; the first: {text}", found.len(), both.join(" "))
    }

    /// Documents that there are, or were.
    pub(crate) fn len(&self) -> u64 {
        self.texts.len() as u64
    }

    /// A number that depends on every document and every word, and not on where anything lies.
    pub(crate) fn fingerprint(&self) -> u64 {
        let mut all = DefaultHasher::new();
        self.texts.iter().for_each(|text| text.as_deref().hash(&mut all));
        let words = self.words.iter().map(|(word, documents)| {
            let mut one = DefaultHasher::new();
            (&word[..], &documents[..]).hash(&mut one);
            one.finish()
        });
        // A table has no order.
        words.fold(0, u64::wrapping_add).hash(&mut all);
        all.finish()
    }

    /// What a program goes on with: a tenth more documents; before that, some are removed if that is asked for.
    pub(crate) fn work(&mut self, removes: bool) -> Result<()> {
        let before = self.len();
        if removes {
            (0..u32::try_from(before)?).step_by(7).for_each(|document| self.remove(document));
        }
        (before..before + before / 10).try_for_each(|document| self.append(&texts::text(document)))
    }
}

fn copy<A: Allocator>(bytes: &[u8], heap: A) -> Box<[u8], A> {
    let mut copy = Vec::with_capacity_in(bytes.len(), heap);
    copy.extend_from_slice(bytes);
    copy.into_boxed_slice()
}
