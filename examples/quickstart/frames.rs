//! A store of one's own: a file of lz4 frames, larger than the cache that it is mapped through.
//!
//! Frames of 64 KiB, one behind the other, as `lz4 -d` reads them. Who touches a byte has its frame read and decoded; the pages
//! stay cached as long as there is room. A frame whose checksum does not hold is never shown.

use crate::bytes::mib;
use crate::content::{Content, nameless, page_of, shuffled};
use crate::units::{PAGE, Result};
use lz4_flex::frame::{BlockSize, FrameDecoder, FrameEncoder, FrameInfo};
use softfault::{Arena, Object, PageMut, Prot, Runtime, Sharing, Store, StoreError};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const FRAME: usize = 64 << 10;
const FRAME_PAGES: usize = FRAME / PAGE;

/// The file, and where each frame begins in it; one more than there are frames.
#[derive(Debug)]
struct Frames {
    file: File,
    starts: Vec<u64>,
}

impl Frames {
    fn make(len: u64) -> Result<Self> {
        let file = nameless("frames")?;
        let mut out = std::io::BufWriter::with_capacity(1 << 20, &file);
        let (mut starts, mut at) = (vec![0], 0);
        let mut page = [0; PAGE];
        for frame in 0..len / FRAME as u64 {
            let info = FrameInfo::new().block_size(BlockSize::Max64KB).content_checksum(true);
            let mut encoder = FrameEncoder::with_frame_info(info, Vec::with_capacity(FRAME));
            for i in 0..FRAME_PAGES as u64 {
                page_of(frame * FRAME_PAGES as u64 + i, &mut page);
                encoder.write_all(&page)?;
            }
            let bytes = encoder.finish()?;
            out.write_all(&bytes).map_err(|e| format!("the temp folder: {e}"))?;
            at += bytes.len() as u64;
            starts.push(at);
        }
        out.flush()?;
        drop(out);
        Ok(Self { file, starts })
    }

    fn len(&self) -> u64 {
        (self.starts.len() as u64 - 1) * FRAME as u64
    }

    /// Changes a bit in the middle of a frame; twice is as before.
    fn flip(&self, frame: usize) -> Result<()> {
        let at = (self.starts[frame] + self.starts[frame + 1]) / 2;
        let mut byte = [0];
        self.file.read_exact_at(&mut byte, at)?;
        self.file.write_all_at(&[byte[0] ^ 1], at)?;
        Ok(())
    }
}

/// It may allocate and sleep: it runs on threads of the runtime, while who touched the page waits.
struct FrameStore(Arc<Frames>);

impl Store for FrameStore {
    fn read(&self, pos_bytes: u64, page: &mut PageMut<'_>) -> std::result::Result<(), StoreError> {
        // Whole frames, as `read_align_bytes` asks: each is decoded to where it is wanted.
        let first = usize::try_from(pos_bytes).map_err(|_| StoreError::Short)? / FRAME;
        for (i, bytes) in page.as_mut_slice().chunks_mut(FRAME).enumerate() {
            let [start, end] = [first + i, first + i + 1].map(|f| self.0.starts[f]);
            let mut packed = vec![0; usize::try_from(end - start).map_err(|_| StoreError::Short)?];
            self.0.file.read_exact_at(&mut packed, start)?;
            let mut decoder = FrameDecoder::new(packed.as_slice());
            decoder.read_exact(bytes).map_err(|_| StoreError::Corrupt)?;
            // The checksum stands behind the content.
            decoder.read(&mut [0]).map_err(|_| StoreError::Corrupt)?;
        }
        Ok(())
    }
    fn read_align_bytes(&self) -> u64 {
        FRAME as u64
    }
}

/// Maps the frames, checks every byte by plain loads, meets a corrupt frame, and mends it.
pub(crate) fn show(len: u64, limit: u64, threads: usize) -> Result<()> {
    println!("A file of lz4 frames, in memory");
    let frames = Arc::new(Frames::make(len)?);
    let packed = frames.starts.last().copied().unwrap_or(0);
    println!(
        "  {} frames of {} KiB: {} in a file of {}, a cache of {}",
        frames.starts.len() - 1,
        FRAME >> 10,
        mib(frames.len()),
        mib(packed),
        mib(limit)
    );
    let corrupt = (frames.starts.len() - 1) / 2;
    frames.flip(corrupt)?;

    let rt = Runtime::builder().cache_limit(limit).build()?;
    let object = rt.object(frames.len()).label("frames.lz4").store(Box::new(FrameStore(Arc::clone(&frames))))?;
    let arena = rt.arena(usize::try_from(len)?).build()?;
    arena.map(0, &object, 0, usize::try_from(frames.len())?, Prot::Read, Sharing::Shared)?;
    println!("  delivery {:?}", arena.delivery());

    let seen = check_all(&rt, &arena, &object, corrupt, threads)?;
    let stats = rt.stats();
    println!(
        "  {} of {} pages checked in random order, in {:.2} s: every byte is right",
        seen.pages,
        object.len() / PAGE as u64,
        seen.took.as_secs_f64()
    );
    println!("  cached at most {} of {}", mib(seen.cached_bytes), mib(limit));
    println!(
        "  {} faults; {} decoded for {} that were wanted",
        stats["pgfault"],
        mib((stats["pgpgin"] + stats["fill_discarded"]) * PAGE as u64),
        mib(stats["pgpgin"] * PAGE as u64)
    );
    if seen.cached_bytes > limit {
        return Err("the cache took more than its limit".into());
    }
    meet_corrupt(&frames, &arena, corrupt)
}

/// One frame is corrupt: a load there is SIGBUS, and a call is an error that says why. Its neighbours are well.
fn meet_corrupt(frames: &Frames, arena: &Arena, corrupt: usize) -> Result<()> {
    let at = corrupt * FRAME;
    let mut some = [0; 16];
    let Err(error) = arena.read_at(at, &mut some) else {
        return Err(format!("frame {corrupt} is corrupt, and was shown").into());
    };
    println!("  frame {corrupt} is corrupt: {error}");
    // The store has mended it: the next touch finds it so.
    frames.flip(corrupt)?;
    let mut frame = vec![0; FRAME];
    arena.read_at(at, &mut frame)?;
    for (i, page) in frame.chunks(PAGE).enumerate() {
        Content::Known.check((corrupt * FRAME_PAGES + i) as u64, page)?;
    }
    println!("  mended, and read again: every byte is right\n");
    Ok(())
}

struct Seen {
    pages: u64,
    took: Duration,
    cached_bytes: u64,
}

/// Checks every page but those of the corrupt frame.
fn check_all(rt: &Runtime, arena: &Arena, object: &Object, corrupt: usize, threads: usize) -> Result<Seen> {
    let nr = usize::try_from(object.len())? / PAGE;
    let mut order = shuffled(nr);
    order.retain(|p| *p as usize / FRAME_PAGES != corrupt);
    let cached_most = AtomicU64::new(0);
    let began = Instant::now();
    let part = order.len().div_ceil(threads);
    std::thread::scope(|scope| {
        let check = |pages: &[u32]| {
            for (i, &page) in pages.iter().enumerate() {
                let at = page as usize * PAGE;
                // SAFETY: mapped readable by `show`, and never unmapped; nobody writes to a read-only object.
                let bytes = unsafe { arena.as_slice(at..at + PAGE) };
                Content::Known.check(u64::from(page), bytes)?;
                if i % 64 == 0 {
                    cached_most.fetch_max(rt.stats()["nr_cached_pages"], Ordering::Relaxed);
                }
            }
            Ok(())
        };
        let readers: Vec<_> = order.chunks(part).map(|pages| scope.spawn(move || check(pages))).collect();
        readers.into_iter().try_for_each(|r| r.join().map_err(|_| "a reader panicked")?)
    })
    .map_err(|e: Box<dyn std::error::Error + Send + Sync>| e)?;
    let cached_bytes = cached_most.into_inner() * PAGE as u64;
    Ok(Seen { pages: order.len() as u64, took: began.elapsed(), cached_bytes })
}
