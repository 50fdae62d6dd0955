//! The documents: lines of words, the same in each process.

use crate::units::Result;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Different words. The first ones are frequent, the last ones rare.
const WORDS: u64 = 50_000;
const WORDS_PER_TEXT: u64 = 24;

/// What the first query asks for: two words that many documents have, and few together.
pub(crate) fn query() -> [String; 2] {
    [word(20), word(21)]
}

/// Returns the word of that rank: syllables.
fn word(rank: u64) -> String {
    const CONSONANTS: &[u8] = b"bdfgklmnprstvz";
    const VOWELS: &[u8] = b"aeiou";
    let (mut left, mut word) = (rank + 70, String::new());
    while left > 0 {
        let syllable = (left % 70) as usize;
        left /= 70;
        word.push(char::from(CONSONANTS[syllable / VOWELS.len()]));
        word.push(char::from(VOWELS[syllable % VOWELS.len()]));
    }
    word
}

/// Returns the words of a document.
pub(crate) fn text(document: u64) -> String {
    let mut text = String::with_capacity(WORDS_PER_TEXT as usize * 8);
    for i in 0..WORDS_PER_TEXT {
        let dice = mix(document * WORDS_PER_TEXT + i) >> 40;
        // The square of a number below 1: small ones are frequent.
        let rank = (((dice * dice) >> 24) * WORDS) >> 24;
        if i > 0 {
            text.push(' ');
        }
        text.push_str(&word(rank));
    }
    text
}

/// Writes the documents into a file, a line each.
pub(crate) fn make(path: &Path, nr: u64) -> Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    for document in 0..nr {
        writeln!(file, "{}", text(document))?;
    }
    file.into_inner()?.sync_all()?;
    Ok(())
}

/// Numbers that look like dice (the finalizer of SplitMix64).
fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}
