//! Reading a buffer from front to back, where each step says what was missing and where.
//!
//! # Context: control plane; allocates, and waits for files

use crate::error::Error;
use crate::layer::Layer;

/// Bytes of a file that were read at once, and how far they have been looked at.
#[derive(Debug)]
pub(super) struct Bytes<'a> {
    layer: &'a Layer,
    what: &'static str,
    /// Where `all` lies in the file.
    start: u64,
    all: &'a [u8],
    at: usize,
}

impl<'a> Bytes<'a> {
    pub(super) fn new(layer: &'a Layer, what: &'static str, start: u64, all: &'a [u8]) -> Self {
        Self { layer, what, start, all, at: 0 }
    }

    /// Returns the same bytes, to be read from `by` bytes further on; `None`: there are none.
    pub(super) fn ahead(&self, by: isize) -> Option<Self> {
        let at = self.at.checked_add_signed(by).filter(|at| *at <= self.all.len())?;
        Some(Self { layer: self.layer, what: self.what, start: self.start, all: self.all, at })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.at >= self.all.len()
    }

    /// Where in the file the next byte lies.
    pub(super) fn pos(&self) -> u64 {
        self.start + self.at as u64
    }

    pub(super) fn corrupt(&self, why: impl Into<String>) -> Error {
        self.layer.corrupt(self.what, self.pos(), why)
    }

    pub(super) fn take(&mut self, nr: usize) -> Result<&'a [u8], Error> {
        let taken = self.at.checked_add(nr).and_then(|end| self.all.get(self.at..end));
        let Some(taken) = taken else { return Err(self.corrupt(format!("{nr} bytes are missing"))) };
        self.at += nr;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Error> {
        self.array().map(|[b]| b)
    }

    pub(super) fn u32_le(&mut self) -> Result<u32, Error> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u32_be(&mut self) -> Result<u32, Error> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64_be(&mut self) -> Result<u64, Error> {
        self.array().map(u64::from_be_bytes)
    }

    /// A number as Protocol Buffers write it: seven bits a byte, the lowest first.
    fn varint(&mut self) -> Result<u64, Error> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(self.corrupt("a number has more than ten bytes"))
    }

    /// The next field of a message: its number, and its value.
    pub(super) fn field(&mut self) -> Result<(u64, Field<'a>), Error> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Field::Number(self.varint()?),
            1 => Field::Number(self.array().map(u64::from_le_bytes)?),
            2 => {
                let len = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
                let start = self.pos();
                Field::Bytes(Bytes::new(self.layer, self.what, start, self.take(len)?))
            }
            5 => Field::Number(u64::from(self.u32_le()?)),
            _ => return Err(self.corrupt(format!("a field of the unknown kind {}", tag & 7))),
        };
        Ok((tag >> 3, value))
    }
}

/// The value of a message's field.
#[derive(Debug)]
pub(super) enum Field<'a> {
    Number(u64),
    Bytes(Bytes<'a>),
}
