//! Where the pages go: all of them, or those that differ from the parent's.
//!
//! # Context: who writes the image

use softfault_image::{Image, Reader, Result, Writer};
use softfault_mm::page::PAGE_SIZE;

/// A writer, and what it need not write.
pub(super) struct Sink<'a> {
    writer: &'a mut Writer,
    /// Who reads the parent, and how many pages that has.
    parent: Option<(Reader<'a>, u64)>,
    old: Vec<u8>,
}

impl<'a> Sink<'a> {
    pub(super) fn new(writer: &'a mut Writer, parent: Option<&'a Image>) -> Self {
        Self { writer, parent: parent.map(|p| (p.reader(), p.nr_pages())), old: vec![0; PAGE_SIZE] }
    }

    /// Writes whole pages, in ascending order.
    ///
    /// # Errors
    /// As [`Writer::write`] and [`Reader::read`].
    pub(super) fn put(&mut self, first: u64, bytes: &[u8]) -> Result<()> {
        let Some((reader, nr_pages)) = &mut self.parent else { return self.writer.write(first, bytes) };
        for (page, bytes) in (first..).zip(bytes.chunks_exact(PAGE_SIZE)) {
            if page < *nr_pages {
                reader.read(page, &mut self.old)?;
                if self.old == bytes {
                    continue;
                }
            }
            self.writer.write(page, bytes)?;
        }
        Ok(())
    }
}
