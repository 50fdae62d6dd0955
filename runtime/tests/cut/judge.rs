//! Whether an image is of one moment.

use super::{GOING, GONE, HOLES, PAGE, Plan, SEEN, STEPS, STRIDE, WORDS};

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"))
}

/// Says what is wrong with an image, first things first.
///
/// # Errors
/// Two stores that it has in the wrong order.
pub(super) fn judge(plan: Plan, bytes: &[u8]) -> Result<(), String> {
    let last: Vec<u64> = (0..plan.writers).map(|writer| last_turn(plan, bytes, writer)).collect();
    (0..plan.writers).try_for_each(|writer| chain(plan, bytes, writer, last[writer]))?;
    (0..plan.writers).try_for_each(|writer| seen(plan, bytes, writer, &last))?;
    witnesses(plan, bytes)?;
    [plan.holes(), plan.tail()].into_iter().enumerate().try_for_each(|(area, pages)| dropped(plan, bytes, area, pages))
}

/// The image has the turns that the closure found told, and of the next ones what was stored untold.
///
/// # Errors
/// As [`judge`].
pub(super) fn turns(plan: Plan, bytes: &[u8], told: &[u64]) -> Result<(), String> {
    for (writer, told) in told.iter().enumerate() {
        let last = last_turn(plan, bytes, writer);
        if last != *told && last != told + 1 {
            return Err(format!("writer {writer} had told turn {told}, and the image has {last}"));
        }
    }
    Ok(())
}

fn last_turn(plan: Plan, bytes: &[u8], writer: usize) -> u64 {
    let pages = (0..plan.own as u64).map(|turn| plan.page_of(writer, turn));
    pages.map(|page| number(bytes, page * PAGE)).max().unwrap_or(0)
}

/// A writer's pages have the turns that led to its last one; of that page perhaps a part.
fn chain(plan: Plan, bytes: &[u8], writer: usize, last: u64) -> Result<(), String> {
    let whole = plan.first_by_call && writer == 0;
    for back in 0..plan.own as u64 {
        let turn = last.saturating_sub(back);
        if turn == 0 {
            break;
        }
        let page = plan.page_of(writer, turn);
        let words: Vec<u64> = (0..WORDS).map(|w| number(bytes, page * PAGE + w * STRIDE)).collect();
        let filled = words.iter().take_while(|w| **w == turn).count();
        let before = turn.saturating_sub(plan.own as u64);
        let is_right = filled == WORDS || back == 0 && !whole && words[filled..].iter().all(|w| *w == before);
        if !is_right {
            return Err(format!("writer {writer} was at turn {last}; page {page} of turn {turn} has {words:?}"));
        }
    }
    for turn in last + 1..=plan.own as u64 {
        // Never reached.
        let page = plan.page_of(writer, turn);
        if bytes[page * PAGE..][..PAGE].iter().any(|byte| *byte != 0) {
            return Err(format!("writer {writer} was at turn {last}; page {page} of turn {turn} is not zero"));
        }
    }
    Ok(())
}

/// What a writer has seen of the next one was stored.
fn seen(plan: Plan, bytes: &[u8], writer: usize, last: &[u64]) -> Result<(), String> {
    let next = (writer + 1) % plan.writers;
    for turn in 0..plan.own as u64 {
        let page = plan.page_of(writer, turn);
        let seen = number(bytes, page * PAGE + SEEN);
        if seen > last[next] {
            return Err(format!(
                "page {page} of writer {writer} has seen turn {seen} of {next}, who is at {}",
                last[next]
            ));
        }
    }
    Ok(())
}

/// What the witness has seen of a page was stored.
fn witnesses(plan: Plan, bytes: &[u8]) -> Result<(), String> {
    for page in 0..plan.chains() {
        let (seen, has) = (number(bytes, plan.witness_at(page)), number(bytes, page * PAGE + (WORDS - 1) * STRIDE));
        if seen > has {
            return Err(format!("page {page} has {has}, of which the witness has seen {seen}"));
        }
    }
    Ok(())
}

/// Pages that are filled and dropped by turns are as the log says: filled up to somewhere, and dropped as a whole or up to somewhere.
fn dropped(plan: Plan, bytes: &[u8], area: usize, pages: std::ops::Range<usize>) -> Result<(), String> {
    let log = number(bytes, plan.log_at(area));
    let words: Vec<u64> = pages.flat_map(|p| [p * PAGE, p * PAGE + PAGE - 8]).map(|at| number(bytes, at)).collect();
    let (turn, step) = (log / STEPS, (log % STEPS) as usize);
    let is_right = if step == GOING {
        let zeros = words.iter().take_while(|w| **w == 0).count();
        let is_whole = zeros == 0 || zeros == 2 * HOLES;
        let is_of_pages = area == 0 && !plan.punches && zeros % 2 == 0;
        (is_whole || is_of_pages) && words[zeros..].iter().all(|w| *w == turn)
    } else {
        // Filled as far as the log says, or by a page more.
        let (turn, said) = if step == GONE || log == 0 { (turn + 1, 0) } else { (turn, 2 * step) };
        let filled = words.iter().take_while(|w| **w == turn).count();
        (said..=said + 2).contains(&filled) && words[filled..].iter().all(|w| *w == 0)
    };
    if is_right { Ok(()) } else { Err(format!("area {area}: the log says {step} of turn {turn}, the pages {words:?}")) }
}
