//! The same work without the runtime: the file is made by `write(2)`, and the result checked by `pread(2)`.

use crate::options::Options;
use crate::record::{RECORD_BYTES, Record, records};
use crate::units::Result;
use crate::watch::Line;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;

/// How much is read at once.
const CHUNK_BYTES: usize = 1 << 20;
/// How many records are sorted in memory at once.
const RUN_RECORDS: u64 = (256 << 20) / RECORD_BYTES as u64;
/// Bits of a key by which the check cuts a larger file into runs.
const BIN_BITS: u32 = 12;

/// Makes an empty file. It has no name any more when it is returned, unless it is to be kept.
pub(crate) fn create(options: &Options, what: &str) -> Result<File> {
    let path = options.dir.join(format!("softfault-out_of_core-{}.{what}", std::process::id()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
    let file = file.map_err(|e| format!("{}: {e}", path.display()))?;
    if options.keep {
        println!("{what:<7} {}", path.display());
    } else {
        std::fs::remove_file(&path)?;
    }
    Ok(file)
}

/// Writes `nr` random records.
pub(crate) fn make(file: &File, nr: u64, line: &mut Line) -> Result<()> {
    let mut out = BufWriter::with_capacity(CHUNK_BYTES, file);
    let mut state = 0x2545_f491_4f6c_dd1d;
    for serial in 0..nr {
        out.write_all(&Record::next(&mut state, serial).to_bytes())?;
        if serial % (1 << 14) == 0 && line.is_due() {
            line.say(&format!("making the file: {} %", serial * 100 / nr));
        }
    }
    out.flush()?;
    line.say("making the file: 100 %");
    line.end();
    Ok(file.sync_all()?)
}

/// Sorts the records of `input` in memory, in as many runs as it takes, and compares them with those of `output`.
pub(crate) fn check(input: &File, output: &File, nr: u64, line: &mut Line) -> Result<()> {
    let mut bins = vec![0u64; 1 << BIN_BITS];
    let bin_of = |r: &Record| usize::try_from(r.key >> (u64::BITS - BIN_BITS)).unwrap_or(0);
    each(input, 0, nr, &mut |_, r| {
        bins[bin_of(&r)] += 1;
        Ok(())
    })?;
    let (mut at, mut from) = (0, 0);
    while from < bins.len() {
        let mut run = bins[from];
        let mut to = from + 1;
        while to < bins.len() && run + bins[to] <= RUN_RECORDS {
            run += bins[to];
            to += 1;
        }
        let mut expected = Vec::with_capacity(usize::try_from(run)?);
        each(input, 0, nr, &mut |_, r| {
            if (from..to).contains(&bin_of(&r)) {
                expected.push(r);
            }
            Ok(())
        })?;
        line.say(&format!("the same by plain reads: {} %", (at + run / 2) * 100 / nr.max(1)));
        expected.sort_unstable();
        let mut right = expected.iter();
        each(output, at, at + run, &mut |i, r| match right.next() {
            Some(e) if *e == r => Ok(()),
            e => Err(format!("record {i} is {r:x?}, must be {e:x?}").into()),
        })?;
        (at, from) = (at + run, to);
    }
    line.say("the same by plain reads: 100 %");
    line.end();
    Ok(())
}

/// Calls `f` with the number and content of each record of `from..to`.
fn each(file: &File, from: u64, to: u64, f: &mut dyn FnMut(u64, Record) -> Result<()>) -> Result<()> {
    let mut buf = vec![0; CHUNK_BYTES];
    let mut next = from;
    while next < to {
        let left = usize::try_from(to - next)?.saturating_mul(RECORD_BYTES);
        let len = buf.len().min(left);
        let part = &mut buf[..len];
        file.read_exact_at(part, next * RECORD_BYTES as u64)?;
        for record in records(part) {
            f(next, record)?;
            next += 1;
        }
    }
    Ok(())
}
