//! Numbers of bytes, as people write and read them.

use std::error::Error;

/// Reads a number with K, M or G behind it, or with nothing; `name` is the option that it belongs to.
pub(crate) fn parse(name: &str, text: &str) -> Result<u64, Box<dyn Error + Send + Sync>> {
    let (digits, shift) = match text.char_indices().last() {
        Some((i, 'k' | 'K')) => (&text[..i], 10),
        Some((i, 'm' | 'M')) => (&text[..i], 20),
        Some((i, 'g' | 'G')) => (&text[..i], 30),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| format!("{name} {text}: not a number of bytes"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{name} {text}: too many bytes").into())
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
pub(crate) fn to_mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

pub(crate) fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", to_mib(bytes))
}
