//! The clones: made, used, checked, evicted, checked again.

use crate::bytes::mib;
use crate::copies::Copies;
use crate::image::word;
use crate::memory::Memory;
use crate::options::Options;
use crate::units::{PAGE, Result};
use softfault::{Restore, Runtime, Session};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The pages that a clone loads; it stores to the first of them.
fn pages(options: &Options, clone: usize) -> impl Iterator<Item = u64> {
    let (pages, apart) = (options.pages, options.pages / options.touch.max(1));
    // Spread over the image, and not the same for each of them.
    (0..options.touch).map(move |i| (i * apart + clone as u64) % pages)
}

fn at(session: &Session, page: u64, i: usize) -> &AtomicU64 {
    let base = session.regions()[0].as_ptr().wrapping_add(page as usize * PAGE + i * 8);
    // SAFETY: a word of the session's only region, which is mapped for loads and stores while the session is borrowed, and of which
    // every access is atomic.
    unsafe { &*base.cast() }
}

/// What a clone stores into the last word of a page.
fn own(clone: usize, page: u64) -> u64 {
    !(page << 16 | clone as u64)
}

/// Loads what a clone loads, and stores what it stores.
fn run(options: &Options, session: &Session, clone: usize) -> Result<()> {
    for (i, page) in pages(options, clone).enumerate() {
        if at(session, page, 0).load(Ordering::Relaxed) != word(page, 0) {
            return Err(format!("clone {clone}, page {page}: not what the image has").into());
        }
        if (i as u64) < options.store {
            at(session, page, PAGE / 8 - 1).store(own(clone, page), Ordering::Relaxed);
        }
    }
    Ok(())
}

/// Checks that a clone has the image's words and its own, and no other's.
fn check(options: &Options, session: &Session, clone: usize) -> Result<()> {
    for (i, page) in pages(options, clone).enumerate() {
        let last = PAGE / 8 - 1;
        let want = if (i as u64) < options.store { own(clone, page) } else { word(page, last) };
        if at(session, page, 0).load(Ordering::Relaxed) != word(page, 0) {
            return Err(format!("clone {clone}, page {page}: its first word is another").into());
        }
        if at(session, page, last).load(Ordering::Relaxed) != want {
            return Err(format!("clone {clone}, page {page}: another's store, or none").into());
        }
    }
    Ok(())
}

/// Makes the clones, and says what they take beside copies.
pub(crate) fn show(path: &Path, options: &Options, copies: &Copies) -> Result<()> {
    let rt = Runtime::builder().cache_limit((options.pages * PAGE as u64).max(1 << 20) * 2).build()?;
    let image = rt.open_image(path)?;
    let before = Memory::of(Some(&rt))?;
    let (mut clones, mut times) = (Vec::new(), Vec::new());
    for _ in 0..options.clones {
        let begun = Instant::now();
        clones.push(Restore::new(&image).build()?);
        times.push(begun.elapsed());
    }
    clones.iter().enumerate().try_for_each(|(i, clone)| run(options, clone, i))?;
    let taken = Memory::of(Some(&rt))? - before;
    clones.iter().enumerate().try_for_each(|(i, clone)| check(options, clone, i))?;
    tell(options, copies, &taken, times);
    image.object().evict(0..u64::MAX)?;
    clones.iter().enumerate().try_for_each(|(i, clone)| check(options, clone, i))?;
    println!("checked: each clone has the image's bytes and its own, and no other's; and again after all was evicted");
    Ok(())
}

fn tell(options: &Options, copies: &Copies, taken: &Memory, mut times: Vec<Duration>) {
    times.sort_unstable();
    let (nr, image) = (options.clones as u64, options.pages * PAGE as u64);
    println!(
        "an image of {}; each clone loads {} pages of it, and stores to {}",
        mib(image),
        options.touch,
        options.store
    );
    println!("{:24} {:>16} {:>16} {:>12}", "", "memory", "one of them", "made in");
    let row = |what: &str, bytes: u64, made: Duration| {
        println!("{what:24} {:>16} {:>16} {made:>12.0?}", mib(bytes), mib(bytes / nr));
    };
    row(&format!("{nr} clones"), taken.total(), times[times.len() / 2]);
    row(&format!("{nr} copies read whole"), copies.bytes * nr, copies.time);
    let stored = nr * options.store * PAGE as u64;
    println!("of the clones' memory: the image's pages, once: {}", mib(taken.cache));
    println!(
        "  page tables: {}; anonymous: {}, of which {} were stored to",
        mib(taken.page_tables),
        mib(taken.anonymous),
        mib(stored)
    );
    println!("({} of the copies were made; the row is what they take, times {nr})", options.copies);
}
