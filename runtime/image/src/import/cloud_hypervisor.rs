//! Cloud Hypervisor: the memory of a snapshot, in the folder that it made.
//!
//! `memory-ranges` has the ranges of guest memory one after the other; which they are says `state.json`, in the state of its
//! memory manager, which is JSON in a string of JSON.
//!
//! # Context: control plane; allocates, and waits for files

use crate::error::Result;
use crate::extent_map::{Builder, PAGE_SIZE, Source};
use crate::image::Image;
use crate::layer::Layer;
use crate::raw;
use crate::region::{Prot, Region};
use serde_json::Value;
use std::path::Path;

const STATE_MAX: usize = 256 << 20;

/// Opens the memory of the snapshot in `folder`: a region for each range, at its address in the guest.
///
/// # Errors
/// [`Error::Corrupt`](crate::Error::Corrupt) names the file and what is missing in it; [`Error::Io`](crate::Error::Io).
pub fn open(folder: impl AsRef<Path>) -> Result<Image> {
    const WHAT: &str = "the table of memory ranges";
    let folder = folder.as_ref();
    let state = Layer::open(folder.join("state.json"))?;
    let text = state.read_vec(WHAT, 0, state.len_bytes(), STATE_MAX)?;
    let json: Value = serde_json::from_slice(&text).map_err(|e| state.corrupt(WHAT, 0, format!("no JSON: {e}")))?;
    let Some(ranges) = find_ranges(&json, 0) else {
        return Err(state.corrupt(WHAT, 0, "no `memory_ranges` of a memory manager is in it"));
    };
    let memory = Layer::open(folder.join("memory-ranges"))?;
    let (mut regions, mut at) = (Vec::new(), 0u64);
    for (i, range) in ranges.iter().enumerate() {
        let number = |name: &str| range.get(name).and_then(Value::as_u64);
        let (Some(address), Some(len_bytes)) = (number("gpa"), number("length")) else {
            return Err(state.corrupt(WHAT, 0, format!("range {i} has no `gpa`, or no `length`")));
        };
        let prot = Prot::READ | Prot::WRITE | Prot::EXEC;
        let region = Region { name: format!("ram{i}"), address, offset: at, len_bytes, prot };
        region
            .check(memory.len_bytes(), regions.last())
            .map_err(|why| state.corrupt(WHAT, 0, format!("range {i}: {why}")))?;
        at += len_bytes;
        regions.push(region);
    }
    if at != memory.len_bytes() {
        let why = format!("the ranges have {at} bytes, and the file {}", memory.len_bytes());
        return Err(memory.corrupt("the end of the file", at, why));
    }
    let mut map = Builder::new(at / PAGE_SIZE as u64);
    for data in raw::data(&memory)? {
        let pages = data.start / PAGE_SIZE as u64..data.end.div_ceil(PAGE_SIZE as u64);
        let pos = pages.start * PAGE_SIZE as u64;
        map.put(pages, Source::Raw { layer: 0, pos });
    }
    Ok(Image::of_layers(vec![memory], map.build(), regions))
}

/// Looks for the table, which lies some levels deep, and in JSON within strings.
fn find_ranges(json: &Value, depth: usize) -> Option<Vec<Value>> {
    if depth > 16 {
        return None;
    }
    match json {
        Value::Object(map) => {
            let here = map.get("memory_ranges").and_then(|r| r.get("data").unwrap_or(r).as_array()).cloned();
            here.or_else(|| map.values().find_map(|v| find_ranges(v, depth + 1)))
        }
        Value::Array(list) => list.iter().find_map(|v| find_ranges(v, depth + 1)),
        Value::String(text) if text.contains("memory_ranges") => {
            serde_json::from_str(text).ok().and_then(|inner| find_ranges(&inner, depth + 1))
        }
        _ => None,
    }
}
