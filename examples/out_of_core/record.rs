//! What is sorted.

pub(crate) const RECORD_BYTES: usize = 32;

/// One record, in the file as in memory. The serial number makes every record different, so there is one right order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub(crate) struct Record {
    pub(crate) key: u64,
    serial: u64,
    payload: [u64; 2],
}

const _: () = assert!(size_of::<Record>() == RECORD_BYTES);

impl Record {
    /// Makes the record `serial` of a sequence, and moves the sequence on (xorshift).
    pub(crate) fn next(state: &mut u64, serial: u64) -> Self {
        let mut draw = || {
            *state ^= *state << 13;
            *state ^= *state >> 7;
            *state ^= *state << 17;
            *state
        };
        Self { key: draw(), serial, payload: [draw(), draw()] }
    }

    pub(crate) fn from_bytes(bytes: &[u8; RECORD_BYTES]) -> Self {
        let (words, _) = bytes.as_chunks::<8>();
        let word = |i: usize| words.get(i).map_or(0, |w| u64::from_ne_bytes(*w));
        Self { key: word(0), serial: word(1), payload: [word(2), word(3)] }
    }

    pub(crate) fn to_bytes(self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        let words = [self.key, self.serial, self.payload[0], self.payload[1]];
        for (at, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
            *at = word.to_ne_bytes();
        }
        bytes
    }
}

/// Returns the records that lie in `bytes`.
pub(crate) fn records(bytes: &[u8]) -> impl Iterator<Item = Record> + '_ {
    bytes.as_chunks::<RECORD_BYTES>().0.iter().map(Record::from_bytes)
}
