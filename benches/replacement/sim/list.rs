//! Queues of pages by index: every page is in at most one queue of its table, so two links a page are enough.

/// No page.
pub const NONE: u32 = u32::MAX;

/// The links of all pages of an object.
#[derive(Debug)]
pub struct Links {
    newer: Vec<u32>,
    older: Vec<u32>,
}

impl Links {
    /// Makes a table for `nr_pages` pages, none of them in a queue.
    #[must_use]
    pub fn new(nr_pages: usize) -> Self {
        Self { newer: vec![NONE; nr_pages], older: vec![NONE; nr_pages] }
    }
}

/// One queue: pages enter at the head and age towards the tail.
#[derive(Debug)]
pub struct Queue {
    head: u32,
    tail: u32,
    len: usize,
}

impl Default for Queue {
    fn default() -> Self {
        Self { head: NONE, tail: NONE, len: 0 }
    }
}

impl Queue {
    /// Returns the number of pages in the queue.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether the queue has no page.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the oldest page, or [`NONE`].
    #[must_use]
    pub fn tail(&self) -> u32 {
        self.tail
    }

    /// Adds `page`, which is in no queue, as the newest.
    pub fn push(&mut self, links: &mut Links, page: u32) {
        links.older[page as usize] = self.head;
        links.newer[page as usize] = NONE;
        match self.head {
            NONE => self.tail = page,
            head => links.newer[head as usize] = page,
        }
        self.head = page;
        self.len += 1;
    }

    /// Takes `page`, which is in this queue, out of it.
    pub fn remove(&mut self, links: &mut Links, page: u32) {
        let (newer, older) = (links.newer[page as usize], links.older[page as usize]);
        match newer {
            NONE => self.head = older,
            n => links.older[n as usize] = older,
        }
        match older {
            NONE => self.tail = newer,
            o => links.newer[o as usize] = newer,
        }
        self.len -= 1;
    }

    /// Takes the oldest page out.
    pub fn pop(&mut self, links: &mut Links) -> Option<u32> {
        let page = self.tail;
        if page == NONE {
            return None;
        }
        self.remove(links, page);
        Some(page)
    }
}
