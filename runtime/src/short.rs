//! What `Debug` says is for a person, or a log: at most a kilobyte, however large what it is about.
//!
//! # Context: any that may format

use std::fmt::{self, Write};
use std::ops::Range;

/// How long a text is that may go on for ever: a path, the words of an error.
const TEXT_MAX: usize = 500;

/// Text of which as much is written as a person reads.
pub(crate) struct Short<T>(pub(crate) T);

impl<T: fmt::Display> fmt::Debug for Short<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cut = Cut { to: f, left: TEXT_MAX };
        // What `Cut` refuses is that it is full.
        let full = write!(cut, "{}", self.0).is_err();
        if full { f.write_str("..") } else { Ok(()) }
    }
}

struct Cut<'a, 'f> {
    to: &'a mut fmt::Formatter<'f>,
    left: usize,
}

impl Write for Cut<'_, '_> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let mut end = s.len().min(self.left);
        while !s.is_char_boundary(end) {
            end -= 1;
        }
        self.to.write_str(&s[..end])?;
        self.left -= end;
        if end < s.len() { Err(fmt::Error) } else { Ok(()) }
    }
}

/// How many ranges are written out.
const RANGES_MAX: usize = 8;

/// The first of some ranges, and how many there are.
pub(crate) struct Ranges<'a>(pub(crate) &'a [Range<u64>]);

impl fmt::Display for Ranges<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = &self.0[..self.0.len().min(RANGES_MAX)];
        write!(f, "{first:x?}")?;
        let more = self.0.len() - first.len();
        if more > 0 { write!(f, " and {more} more ranges") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_characters() {
        let (short, long) = ("äöü", "ä".repeat(5_000));
        assert_eq!(format!("{:?}", Short(short)), short);
        let text = format!("{:?}", Short(&*long));
        assert!(text.len() <= TEXT_MAX + 2 && text.ends_with("ä.."), "{text}");
        let one = std::iter::once(0..4096).collect::<Vec<_>>();
        assert_eq!(Ranges(&one).to_string(), "[0..1000]");
        assert_eq!(Ranges(&vec![0..1; 10]).to_string().matches("0..1").count(), RANGES_MAX);
    }
}
