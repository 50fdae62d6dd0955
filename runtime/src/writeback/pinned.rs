//! Pages that a run of write-back could not take, because somebody has them pinned.
//!
//! # Context: control plane, the flusher

use super::state::Flushing;
use crossbeam_utils::Backoff;
use softfault_mm::ctx::Ctx;
use softfault_mm::failpoint;
use softfault_mm::folio::{DIRTY, FolioWord, HELD, State};
use softfault_mm::host::Env;
use softfault_mm::ops::WaitKey;
use softfault_mm::types::FillError;
use softfault_mm::writeback;

/// Turns to wait for transient pins (an ioctl long) before a page counts as pinned by the program.
const PATIENCE: u32 = 2_000;

/// Has one page written that a run could not take. `true`: it is held, and dirty.
pub(super) fn settle(env: Env<'_>, f: &Flushing, word: &FolioWord, p: u64) -> Result<bool, (u64, FillError)> {
    let m = f.mapping();
    let ctx = Ctx::thread(0);
    let (mut turns, backoff) = (0, Backoff::new());
    loop {
        let seen = word.load();
        match seen.state() {
            State::Evicting if seen.is_vacant() => return Ok(false),
            // What is being written may have been read before the last store that we answer for, and a page that is leaving
            // is written on its way, or stays after all: we wait until that is settled, however often signals wake us.
            // The same goes for one that a delegate is rewriting: it has bytes of before, and those that it makes of them.
            State::Writeback | State::Evicting => wait_for(env, &ctx, word, seen.state()),
            State::Filling if seen.has(DIRTY) => wait_for(env, &ctx, word, State::Filling),
            State::Uptodate if seen.has(DIRTY | HELD) => return Ok(true),
            State::Uptodate if seen.has(DIRTY) => {
                if writeback::writeout(env, m, 0, p, p + 1)? > 0 {
                    return Ok(false);
                }
                turns += 1;
                backoff.snooze();
            }
            State::Absent | State::Filling | State::Uptodate | State::Poisoned => return Ok(false),
        }
        if turns >= PATIENCE
            && let Some(held) = write_pinned((env, &ctx), f, word, p)?
        {
            return Ok(held);
        }
    }
}

/// Sleeps until the page leaves `state`, or for no cause at all.
fn wait_for(env: Env<'_>, ctx: &Ctx<'_>, word: &FolioWord, state: State) {
    if let Some(low) = word.mark_waiter(state) {
        env.park.wait(ctx, WaitKey { addr: word.futex_addr(), seen: low }, u64::MAX);
    }
}

/// Writes a page that is pinned for long, perhaps for stores by a device: its bytes as they are now, and it stays dirty.
/// `None`: it has moved on; `true`: it is held.
///
/// One at a time of an object, and none that is `writeback`: the store may be given the newer bytes first.
/// ```text
/// sync                                     another
/// the store copies the page
///                                          a store to it; sync: the newer bytes are written and flushed
/// and puts its copy there
/// ```
fn write_pinned(
    (env, ctx): (Env<'_>, &Ctx<'_>),
    f: &Flushing,
    word: &FolioWord,
    p: u64,
) -> Result<Option<bool>, (u64, FillError)> {
    let m = f.mapping();
    // Either we see a hold that is being made, or `hold` waits for us.
    let _alone = f.state().direct_beside(env, ctx);
    let old = match word.try_pin(0) {
        Ok(old) => old,
        // The page is there, and all the pins that it can have are taken.
        Err(seen) if seen.is_mappable() => return Err((p, FillError::NoPins)),
        Err(_) => return Ok(None),
    };
    let result = if old.state() != State::Uptodate || !old.has(DIRTY) {
        Ok(None)
    } else if word.load().has(HELD) {
        Ok(Some(true))
    } else {
        failpoint!(SETTLE_DIRECT);
        m.a_ops.write_folio(p, 1).map(|()| Some(false)).map_err(|(_, error)| (p, error))
    };
    word.unpin();
    result
}
