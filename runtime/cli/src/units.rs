//! How numbers are written for people, and read from them.

use softfault_image::PAGE_SIZE;
use std::ops::Range;

/// Returns bytes as a person reads them: `4.0 KiB`, `1.5 GiB`.
pub(crate) fn bytes(n: u64) -> String {
    let mut unit = 0;
    let mut whole = n as f64;
    while whole >= 1024.0 && unit < 6 {
        whole /= 1024.0;
        unit += 1;
    }
    let name = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"].get(unit).copied().unwrap_or_default();
    if unit == 0 { format!("{n} {name}") } else { format!("{whole:.1} {name}") }
}

/// Returns pages in bytes.
pub(crate) fn of_pages(pages: u64) -> u64 {
    pages.saturating_mul(PAGE_SIZE as u64)
}

/// Returns nanoseconds in milliseconds.
pub(crate) fn millis(ns: u64) -> String {
    format!("{:.1}", ns as f64 / 1e6)
}

/// Returns nanoseconds in microseconds.
pub(crate) fn micros(ns: u64) -> String {
    format!("{:.1}", ns as f64 / 1e3)
}

/// Returns a number and the word for so many: `1 page`, `2 pages`.
pub(crate) fn count(n: u64, word: &str) -> String {
    if n == 1 { format!("1 {word}") } else { format!("{n} {word}s") }
}

/// Reads a size: `65536`, `64K`, `64KiB`, `2M`.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn parse_bytes(text: &str) -> Result<usize, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text.get(digits.len()..).unwrap_or_default() {
        "" | "B" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        unit => return Err(format!("`{unit}` is no unit: K, M or G")),
    };
    let number: usize = digits.parse().map_err(|_| format!("`{text}` is no size"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("`{text}` is more than there is"))
}

/// Reads pages: `FIRST..END`, each of which may be left out.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn parse_pages(text: &str) -> Result<Range<u64>, String> {
    let number = |part: &str, other: u64| match part {
        "" => Ok(other),
        _ => part.parse().map_err(|_| format!("`{part}` is no page")),
    };
    let (first, end) = text.split_once("..").ok_or("pages are written FIRST..END")?;
    let pages = number(first, 0)?..number(end, u64::MAX)?;
    if pages.is_empty() { Err(format!("no page is in {text}")) } else { Ok(pages) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_they_are_written() {
        for (text, wanted) in [("4096", 4096), ("64K", 65536), ("64KiB", 65536), ("2M", 2 << 20), ("1GiB", 1 << 30)] {
            assert_eq!(parse_bytes(text), Ok(wanted), "{text}");
        }
        for bad in ["", "K", "4k", "-1", "4 K", "99999999999999999999", "18446744073709551615G"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
        assert_eq!([0, 1023, 1024, 1536 << 20].map(bytes), ["0 B", "1023 B", "1.0 KiB", "1.5 GiB"]);
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
    }

    #[test]
    fn ranges_of_pages_may_be_open() {
        assert_eq!(parse_pages("3..9"), Ok(3..9));
        assert_eq!(parse_pages("..9"), Ok(0..9));
        assert_eq!(parse_pages("3.."), Ok(3..u64::MAX));
        for bad in ["3", "9..3", "3..3", "a..b", "-1..2"] {
            assert!(parse_pages(bad).is_err(), "{bad}");
        }
    }
}
