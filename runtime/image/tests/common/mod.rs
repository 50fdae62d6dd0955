//! Memories to save, and images read whole.
#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(clippy::cast_possible_truncation, reason = "noise of any value")]

use softfault_image::{Image, PAGE_SIZE};

/// A memory, page by page.
pub(crate) type Model = Vec<[u8; PAGE_SIZE]>;

/// Returns a memory of which a part is zero, a part repeats itself, and a part is noise.
pub(crate) fn filled(nr: usize, seed: u64) -> Model {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut page = move |p: usize| {
        let mut page = [0; PAGE_SIZE];
        match next() % 4 {
            0 => {}
            1 => page.fill(p as u8 | 1),
            2 => page.iter_mut().for_each(|b| *b = next() as u8),
            _ => page[..64].iter_mut().for_each(|b| *b = next() as u8 | 1),
        }
        page
    };
    (0..nr).map(&mut page).collect()
}

/// Reads every page.
pub(crate) fn read_all(image: &Image) -> Model {
    let mut model = vec![[0xa5; PAGE_SIZE]; usize::try_from(image.nr_pages()).expect("small")];
    let mut reader = image.reader();
    for (p, page) in model.iter_mut().enumerate() {
        reader.read(p as u64, page).expect("read");
    }
    model
}
