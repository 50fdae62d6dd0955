//! What the standard library says of a read, as a store says it.

extern crate std;

use super::StoreError;
use crate::sys::Errno;
use std::io::ErrorKind;

/// The end of a file is [`StoreError::Short`], data that its decoder does not accept [`StoreError::Corrupt`]; what has an errno
/// keeps it, and what has none is `EIO`.
impl From<std::io::Error> for StoreError {
    fn from(error: std::io::Error) -> Self {
        match (error.raw_os_error(), error.kind()) {
            (Some(12), _) | (None, ErrorKind::OutOfMemory) => Self::NoMemory,
            (Some(errno), _) => Self::Io(Errno(errno)),
            (None, ErrorKind::UnexpectedEof) => Self::Short,
            (None, ErrorKind::InvalidData) => Self::Corrupt,
            (None, ErrorKind::Unsupported) => Self::Unsupported,
            (None, _) => Self::Io(Errno::EIO),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Error;

    #[test]
    fn what_std_says_is_what_the_store_says() {
        let of = |kind| StoreError::from(Error::from(kind));
        assert_eq!(of(ErrorKind::UnexpectedEof), StoreError::Short);
        assert_eq!(of(ErrorKind::InvalidData), StoreError::Corrupt);
        assert_eq!(of(ErrorKind::OutOfMemory), StoreError::NoMemory);
        assert_eq!(of(ErrorKind::Unsupported), StoreError::Unsupported);
        assert_eq!(of(ErrorKind::TimedOut), StoreError::Io(Errno::EIO));
        assert_eq!(StoreError::from(Error::from_raw_os_error(28)), StoreError::Io(Errno(28)));
        assert_eq!(StoreError::from(Error::from_raw_os_error(12)), StoreError::NoMemory);
    }
}
