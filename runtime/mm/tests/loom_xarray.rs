//! The node of a chunk under loom: a page that was claimed before a walk began is found by it, whoever pruned meanwhile.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p softfault-mm --release --test 'loom_*'`
#![cfg(loom)]
#![forbid(unsafe_code)]

#[path = "support/loom.rs"]
mod support;

use softfault_mm::folio::{FolioWord, State};
use softfault_mm::sync::AtomicU64;
use softfault_mm::xarray::Nodes;
use support::{check, spawn};

fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

/// One claims the only page of a chunk whose node is still there from an earlier life, the other finds the chunk at rest
/// and takes the node away.
#[test]
fn a_claimed_page_has_a_node_when_both_are_done() {
    check(3, || {
        let bits: &'static [AtomicU64] = Box::leak(Box::new([AtomicU64::new(1)]));
        let (nodes, word) = (Nodes::new(bits), leak(FolioWord::new()));
        let filler = spawn(move || {
            word.try_claim().expect("it is absent");
            nodes.insert(0);
        });
        nodes.remove(0);
        if word.load().state() != State::Absent {
            nodes.insert(0);
        }
        filler.join().expect("the filler");
        assert!(nodes.has(0), "the page is being filled, and no walk would find it");
    });
}
