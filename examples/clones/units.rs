//! What every file of the example counts in, and how it fails.

use std::error::Error;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

pub(crate) const PAGE: usize = 4096;
