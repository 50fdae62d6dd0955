//! Raw images and sparse diffs over them: the page at an offset of the file is the page at that offset of the memory.
//!
//! # Context: control plane; allocates, and waits for files

use crate::error::{Error, Result};
use crate::extent_map::{Builder, ExtentMap, PAGE_SIZE, Source};
use crate::layer::Layer;
use crate::region::{Prot, Region};
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use std::ops::Range;

/// Returns the layers, the map and the one region of a raw file, the first, and the diffs over it, the oldest first.
pub(crate) fn stack(layers: Vec<Layer>) -> Result<(Vec<Layer>, ExtentMap, Vec<Region>)> {
    let Some(base) = layers.first() else { return Ok((layers, ExtentMap::default(), Vec::new())) };
    let len = base.len_bytes();
    if u16::try_from(layers.len()).is_err() {
        let (arg, value) = ("diffs", layers.len() as u64 - 1);
        return Err(Error::Argument { op: "Image::raw_stack", arg, value, why: "65,535 layers are the most" });
    }
    check_len(base, len)?;
    let mut map = Builder::new(len / PAGE_SIZE as u64);
    for (n, layer) in layers.iter().enumerate() {
        check_len(layer, len)?;
        for data in data(layer)? {
            // Diffs are written by whole pages; what a file system with smaller blocks calls a hole in one is zero.
            let pages = data.start / PAGE_SIZE as u64..data.end.div_ceil(PAGE_SIZE as u64);
            let pos = pages.start * PAGE_SIZE as u64;
            map.put(pages, Source::Raw { layer: n as u16, pos });
        }
    }
    let name = base.path().file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let region = Region { name, address: 0, offset: 0, len_bytes: len, prot: Prot::READ | Prot::WRITE };
    let regions = if len == 0 { Vec::new() } else { vec![region] };
    Ok((layers, map.build(), regions))
}

fn check_len(layer: &Layer, len: u64) -> Result<()> {
    if !layer.len_bytes().is_multiple_of(PAGE_SIZE as u64) {
        let why = format!("{} bytes are not whole pages of {PAGE_SIZE}", layer.len_bytes());
        return Err(layer.corrupt("the end of the file", layer.len_bytes(), why));
    }
    if layer.len_bytes() > len {
        let why = format!("the file is longer than the image that it is a diff of, which has {len} bytes");
        return Err(layer.corrupt("the end of the file", layer.len_bytes(), why));
    }
    Ok(())
}

/// Returns where a file has data, in order, by `SEEK_DATA` and `SEEK_HOLE`: everywhere, where its file system knows no holes.
pub(crate) fn data(layer: &Layer) -> Result<Vec<Range<u64>>> {
    let (end, mut at, mut list) = (layer.len_bytes(), 0, Vec::new());
    let io = |errno: Errno| Error::io("lseek", layer.path())(errno.into());
    while at < end {
        let from = match rustix::fs::seek(layer.file(), SeekFrom::Data(at)) {
            Ok(from) => from,
            // There is none behind.
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(io(errno)),
        };
        let to = rustix::fs::seek(layer.file(), SeekFrom::Hole(from)).map_err(io)?;
        if from >= end || to <= from {
            break;
        }
        list.push(from..to.min(end));
        at = to;
    }
    Ok(list)
}
