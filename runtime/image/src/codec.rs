//! How frames are stored: as they are, by lz4, or by zstd. What is decoded has a length that is known, and bounded, before.
//!
//! # Context: control plane; allocates

use std::fmt;

/// The longest frame, decoded: 2 MiB.
pub const FRAME_MAX: usize = 2 << 20;

/// How a frame is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Codec {
    /// As it is.
    #[default]
    Raw,
    /// An LZ4 block.
    Lz4,
    /// A Zstandard frame, of some level. Needs the feature `zstd`.
    Zstd {
        /// From 1 (fast) to 22 (small); it matters to who writes alone.
        level: i32,
    },
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Lz4 => "lz4",
            Self::Zstd { .. } => "zstd",
        })
    }
}

impl Codec {
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Lz4 => 1,
            Self::Zstd { .. } => 2,
        }
    }

    pub(crate) fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Raw),
            1 => Some(Self::Lz4),
            2 => Some(Self::Zstd { level: 3 }),
            _ => None,
        }
    }

    /// Returns why frames of this codec cannot be read or written by this build, if they cannot.
    pub(crate) fn missing(self) -> Option<&'static str> {
        match self {
            Self::Zstd { .. } if cfg!(not(feature = "zstd")) => Some("build softfault-image with the feature `zstd`"),
            _ => None,
        }
    }

    /// Compresses `raw` into `into`, which is emptied first; `false`: it would not become shorter, and `into` is of no use.
    pub(crate) fn encode(self, raw: &[u8], into: &mut Vec<u8>) -> bool {
        into.clear();
        match self {
            Self::Raw => false,
            Self::Lz4 => {
                into.resize(lz4_flex::block::get_maximum_output_size(raw.len()), 0);
                let len = lz4_flex::block::compress_into(raw, into).unwrap_or(usize::MAX);
                into.truncate(len);
                len < raw.len()
            }
            Self::Zstd { level } => encode_zstd(raw, level, into),
        }
    }

    /// Decodes `stored` into all of `into`.
    ///
    /// # Errors
    /// What is wrong with it: it is no such block, or has another length.
    pub(crate) fn decode(self, stored: &[u8], into: &mut [u8]) -> Result<(), String> {
        let len = match self {
            Self::Raw if stored.len() == into.len() => {
                into.copy_from_slice(stored);
                stored.len()
            }
            Self::Raw => stored.len(),
            Self::Lz4 => lz4_flex::block::decompress_into(stored, into).map_err(|e| e.to_string())?,
            Self::Zstd { .. } => decode_zstd(stored, into)?,
        };
        if len == into.len() { Ok(()) } else { Err(format!("it is {len} bytes long, and not {}", into.len())) }
    }
}

#[cfg(feature = "zstd")]
fn encode_zstd(raw: &[u8], level: i32, into: &mut Vec<u8>) -> bool {
    into.resize(zstd::zstd_safe::compress_bound(raw.len()), 0);
    let len = zstd::bulk::compress_to_buffer(raw, into.as_mut_slice(), level).unwrap_or(usize::MAX);
    into.truncate(len);
    len < raw.len()
}

#[cfg(not(feature = "zstd"))]
fn encode_zstd(_: &[u8], _: i32, _: &mut Vec<u8>) -> bool {
    false
}

#[cfg(feature = "zstd")]
fn decode_zstd(stored: &[u8], into: &mut [u8]) -> Result<usize, String> {
    zstd::bulk::decompress_to_buffer(stored, into).map_err(|e| e.to_string())
}

#[cfg(not(feature = "zstd"))]
fn decode_zstd(_: &[u8], _: &mut [u8]) -> Result<usize, String> {
    Err("this build knows no zstd".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn codecs() -> impl Iterator<Item = Codec> {
        [Codec::Lz4, Codec::Zstd { level: 3 }].into_iter().filter(|c| c.missing().is_none())
    }

    #[test]
    fn what_does_not_become_shorter_is_not_compressed() {
        let mut noise = vec![0u8; 4096];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        for codec in codecs() {
            assert!(!codec.encode(&noise, &mut Vec::new()), "{codec}");
            assert!(codec.encode(&[7; 4096], &mut Vec::new()), "{codec}");
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(bytes in prop::collection::vec(0u8..3, 1..20_000)) {
            for codec in codecs() {
                let mut stored = Vec::new();
                if codec.encode(&bytes, &mut stored) {
                    let mut back = vec![0; bytes.len()];
                    prop_assert_eq!(codec.decode(&stored, &mut back), Ok(()));
                    prop_assert_eq!(&back, &bytes);
                    // Another length than the one that the table says is refused, longer or shorter.
                    prop_assert!(codec.decode(&stored, &mut vec![0; bytes.len() + 1]).is_err());
                    prop_assert!(codec.decode(&stored, &mut vec![0; bytes.len() - 1]).is_err());
                }
            }
        }

        /// A decoder that is given anything says so, and writes to nothing but its buffer.
        #[test]
        fn garbage_is_refused_or_decoded(stored in prop::collection::vec(any::<u8>(), 0..2_000), len in 0usize..9_000) {
            for codec in codecs() {
                let _ = codec.decode(&stored, &mut vec![0; len]);
            }
        }
    }
}
