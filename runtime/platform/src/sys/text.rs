//! Numbers as text, without the formatting machinery: for a last line on standard error, and for paths in `/proc`.
//!
//! # Context: handler

/// Writes `n` in decimal at the start of `field`, as far as it has room; the rest of the field stays as it is.
///
/// # Context: handler
pub fn put_decimal(field: Option<&mut [u8]>, mut n: u64) {
    let mut digits = [0u8; 20];
    let mut len = 0;
    for d in &mut digits {
        *d = b'0' + u8::try_from(n % 10).unwrap_or(0);
        n /= 10;
        len += 1;
        if n == 0 {
            break;
        }
    }
    if let Some(field) = field {
        for (to, from) in field.iter_mut().zip(digits.iter().take(len).rev()) {
            *to = *from;
        }
    }
}

/// Writes `n` in hexadecimal at the start of `field`, as far as it has room; returns how many digits that are.
///
/// # Context: handler
pub fn put_hex(field: Option<&mut [u8]>, n: u64) -> usize {
    let digits = (u64::BITS - n.leading_zeros()).div_ceil(4).max(1) as usize;
    if let Some(field) = field {
        for (to, i) in field.iter_mut().zip((0..digits).rev()) {
            let digit = u8::try_from(n >> (4 * i) & 0xf).unwrap_or(0);
            *to = if digit < 10 { b'0' + digit } else { b'a' - 10 + digit };
        }
    }
    digits
}

#[cfg(test)]
mod tests {
    use super::{put_decimal, put_hex};

    #[test]
    fn numbers_are_written_whole_and_leave_the_rest() {
        let mut field = *b"          ";
        put_decimal(Some(&mut field), 1203);
        assert_eq!(&field, b"1203      ");
        let mut long = [b' '; 20];
        put_decimal(Some(&mut long), u64::MAX);
        assert_eq!(&long, b"18446744073709551615");
        let mut hex = *b"      ";
        assert_eq!((put_hex(Some(&mut hex), 0xa_0f19), &hex), (5, b"a0f19 "));
        assert_eq!((put_hex(None, 0), put_hex(None, u64::MAX)), (1, 16));
        let mut zero = *b"  ";
        put_decimal(zero.get_mut(..), 0);
        assert_eq!(&zero, b"0 ");
    }
}
