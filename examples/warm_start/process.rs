//! What one process does: it saves a heap, or comes to its first answer in one of three ways.

use crate::heap::{self, AT, Heap};
use crate::index::Index;
use crate::texts;
use crate::units::Result;
use allocator_api2::alloc::Global;
use allocator_api2::boxed::Box;
use rustix::mm::{MapFlags, ProtFlags};
use softfault::image::{Image, PAGE_SIZE, Source};
use softfault::{Arena, Prot, Restore, Runtime, Session, Sharing};
use std::convert::Infallible;
use std::io::Write;
use std::path::{Path, PathBuf};

/// In the folder of a run.
pub(crate) fn texts_in(dir: &Path) -> PathBuf {
    dir.join("texts")
}

/// In the folder of a run.
pub(crate) fn image_in(dir: &Path) -> PathBuf {
    dir.join("heap.sfi")
}

/// Bytes of address space for the heap of so many documents: more than it needs.
fn arena_bytes(documents: u64) -> usize {
    ((64 << 20) + documents as usize * 2048).next_multiple_of(2 << 20)
}

/// Builds the index in an arena, and saves the arena.
pub(crate) fn save<H: Heap>(dir: &Path, documents: u64) -> Result<()> {
    let len = arena_bytes(documents);
    let rt = Runtime::builder().cache_limit(len as u64).build()?;
    let arena = memory(&rt, len, Some(AT))?;
    // SAFETY: zero, mapped by `memory`, which lets it stay, and nobody else's.
    unsafe { H::begin(heap::behind_head(arena.as_ptr(), len)) }?;
    let index = Box::new_in(Index::build(&texts_in(dir), H::default())?, H::default());
    println!("answer: {}", index.answer(&texts::query()));
    // SAFETY: mapped by `memory`, and the head of the arena is not the heap's.
    unsafe { heap::set_index(arena.as_ptr(), Box::into_raw(index)) };
    let capture = rt.capture().arena(&arena).key("heap", H::NAME.as_bytes()).key("program", program()?.as_bytes());
    // The heap alone says everything: there is nothing to keep of the moment.
    capture.begin(image_in(dir), || Ok::<(), Infallible>(()))?.commit()?;
    Ok(())
}

/// Makes memory in an arena that stays while the process lives.
fn memory(rt: &Runtime, len: usize, at: Option<usize>) -> Result<Arena> {
    let builder = rt.arena(len);
    let arena = match at {
        Some(at) => builder.at(at).capturable(true).build()?,
        None => builder.build()?,
    };
    arena.map(0, &rt.anonymous(len as u64)?, 0, len, Prot::ReadWrite, Sharing::Shared)?;
    // An allocator looks at its memory until the very end.
    std::mem::forget(arena.clone());
    Ok(arena)
}

/// Identifies this build: what lies in the heap are its types.
fn program() -> Result<String> {
    let file = std::fs::metadata(std::env::current_exe()?)?;
    Ok(format!("{} {:?}", file.len(), file.modified()?))
}

/// Whether a heap in an image is this program's and this allocator's.
fn check<H: Heap>(image: &Image) -> Result<()> {
    let said = |key, value: &str| image.key(key) == Some(value.as_bytes());
    let [region] = image.regions() else { return Err("an image of something else".into()) };
    if !said("heap", H::NAME) || region.address != AT as u64 {
        return Err(format!("the image has no heap of {}", H::NAME).into());
    }
    if !said("program", &program()?) {
        return Err("the heap was saved by another build of this program: its types may lie otherwise".into());
    }
    Ok(())
}

/// Builds the index anew, in the memory that programs have.
pub(crate) fn rebuild(dir: &Path) -> Result<()> {
    let index = Index::build(&texts_in(dir), Global)?;
    say(&index.answer(&texts::query()))?;
    // Nobody waits for a million blocks to be freed.
    std::mem::forget(index);
    Ok(())
}

/// Reads all of the image, then answers.
pub(crate) fn eager<H: Heap>(dir: &Path) -> Result<()> {
    let image = Image::open(image_in(dir))?;
    check::<H>(&image)?;
    let len = usize::try_from(image.nr_pages())? * PAGE_SIZE;
    let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE);
    let at = std::ptr::with_exposed_provenance_mut(AT);
    // SAFETY: nothing that is there is replaced, and nothing is unmapped while the process lives.
    let memory: *mut u8 = unsafe { rustix::mm::mmap_anonymous(at, len, prot, flags) }?.cast();
    // SAFETY: mapped just now, zero, and nobody else's.
    let bytes = unsafe { std::slice::from_raw_parts_mut(memory, len) };
    let mut reader = image.reader();
    let mut page = 0;
    while page < image.nr_pages() {
        let run = reader.run_at(page)?;
        let end = run.pages().end.min(image.nr_pages());
        if run.source != Source::Zero {
            let into = page as usize * PAGE_SIZE..end as usize * PAGE_SIZE;
            reader.read(page, &mut bytes[into])?;
        }
        page = end;
    }
    // SAFETY: `check`: this build saved it, with this allocator, at this address.
    let index = unsafe { heap::index::<H>(memory) };
    // SAFETY: the heap is whole, so it lies there, and nobody else has it.
    say(&unsafe { &*index }.answer(&texts::query()))
}

/// Restores the image, which reads nothing, and answers. If that is asked for, all of it is then compared with what is built anew,
/// worked with, and compared again.
pub(crate) fn restore<H: Heap>(dir: &Path, then_check: bool) -> Result<()> {
    let rt = Runtime::new()?;
    let image = rt.open_image(image_in(dir))?;
    check::<H>(image.image())?;
    let session = Restore::new(&image).at_original_addresses(true).build()?;
    std::mem::forget(session.clone());
    let region = session.regions().first().ok_or("no region")?;
    // SAFETY: `check`: this build saved it, with this allocator, and it was restored where it was.
    let index = unsafe { heap::index::<H>(region.as_ptr()) };
    // SAFETY: the heap is restored whole, so it lies there, and nobody else has it.
    let index = unsafe { &mut *index };
    say(&index.answer(&texts::query()))?;
    let cached = session.progress().cached;
    println!("pages: {cached}");
    if then_check { work::<H>(dir, &rt, &session, index) } else { Ok(()) }
}

/// Compares what was restored with what is built anew, and goes on with both.
fn work<H: Heap>(dir: &Path, rt: &Runtime, session: &Session, index: &mut Index<H>) -> Result<()> {
    let mut anew = Index::build(&texts_in(dir), Global)?;
    let documents = anew.len();
    same(index, &anew, "restored")?;
    let region = session.regions().first().ok_or("no region")?;
    let more = memory(rt, region.len(), None)?;
    let (restored, more) = (heap::behind_head(region.as_ptr(), region.len()), more.as_ptr());
    // SAFETY: saved when its only thread was out of the allocator, and restored where it was; `memory` made more.
    unsafe { H::resume(restored, std::ptr::slice_from_raw_parts_mut(more, region.len())) }?;
    index.work(H::FREES)?;
    anew.work(H::FREES)?;
    same(index, &anew, "worked with")?;
    let what = if H::FREES { "a seventh removed, a tenth appended" } else { "a tenth appended" };
    println!(
        "checked: {documents} documents and every word are as if built anew; so they are with {what}: {}",
        H::told()
    );
    Ok(())
}

fn same<H: Heap>(index: &Index<H>, anew: &Index<Global>, what: &str) -> Result<()> {
    let query = texts::query();
    if index.answer(&query) != anew.answer(&query) || index.fingerprint() != anew.fingerprint() {
        return Err(format!("the index that was {what} is another than the one that was built").into());
    }
    Ok(())
}

/// Prints the answer, at once: whoever started this process looks at the clock.
fn say(answer: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "answer: {answer}")?;
    out.flush()?;
    Ok(())
}
