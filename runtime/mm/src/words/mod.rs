//! The words that threads share: a page's, a chunk's, an extent's, an object's, and the tokens for what goes on outside a section.

pub mod chunk;
pub mod claim;
pub mod cut;
pub mod extent;
pub mod failing;
pub mod folio;
pub mod xarray;
