//! Numbers as text, without the formatting machinery: for a last line on standard error, and for paths in `/proc`.
//!
//! # Context: handler

/// Writes `n` in decimal at the start of `field`, as far as it has room; the rest of the field stays as it is.
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

#[cfg(test)]
mod tests {
    use super::put_decimal;

    #[test]
    fn numbers_are_written_whole_and_leave_the_rest() {
        let mut field = *b"          ";
        put_decimal(Some(&mut field), 1203);
        assert_eq!(&field, b"1203      ");
        let mut long = [b' '; 20];
        put_decimal(Some(&mut long), u64::MAX);
        assert_eq!(&long, b"18446744073709551615");
        let mut zero = *b"  ";
        put_decimal(zero.get_mut(..), 0);
        assert_eq!(&zero, b"0 ");
    }
}
