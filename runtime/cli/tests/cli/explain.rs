//! `softfault explain`: statistics that a runtime has written, and what is made of them.

use crate::support::{Run, answer, done, golden, softfault};
use serde_json::{Value, json};
use softfault::Runtime;
use std::fs;
use std::path::Path;

/// Returns the statistics of a runtime that has done nothing, by a version that knows every name.
fn idle() -> Value {
    let runtime = Runtime::builder().cache_limit(64 << 20).build().expect("a runtime");
    let mut stats: Value = serde_json::from_str(&runtime.stats().to_json()).expect("JSON");
    // What this machine and this process are is not said of others.
    for (name, value) in stats.as_object_mut().expect("an object") {
        if value.is_u64() && (name.starts_with("process_") || name.starts_with("nr_")) {
            *value = 0.into();
        }
    }
    stats["nr_cache_limit_pages"] = 16384.into();
    stats["vma_budget_left"] = 30000.into();
    stats
}

fn with(changes: Value) -> Value {
    let mut stats = idle();
    for (name, value) in changes.as_object().expect("an object") {
        match value {
            Value::Object(inner) => inner.iter().for_each(|(k, v)| stats[name][k] = v.clone()),
            _ => stats[name] = value.clone(),
        }
    }
    stats
}

fn explain(folder: &Path, stats: &Value, args: &[&str]) -> Run {
    fs::write(folder.join("stats.json"), stats.to_string()).expect("write");
    softfault(folder, &[&["explain", "stats.json"], args].concat())
}

/// A working day on which nothing is wrong.
fn healthy() -> Value {
    with(json!({
        "pgfault": 120_000, "pgmajfault": 6000, "pgminfault": 114_000, "pgmapped_around": 900_000, "pgsteal": 9000,
        "workingset_activate": 90, "readahead_pages": 40_000, "readahead_windows": 1200, "readahead_hits": 1100, "allocstall": 3,
        "fill_waits": 12, "extent_promote": 200, "extent_demote": 4, "image_zero_pages": 5, "image_raw_pages": 10,
        "image_frame_pages": 640, "image_frames_decoded": 40, "nr_cached_pages": 12_288, "nr_dirty": 256, "thp_collapse_alloc": 7,
        "stages": {
            "delivery": {"count": 64, "p50_ns": 1600, "p99_ns": 3200}, "lookup": {"count": 120_000, "p50_ns": 100, "p99_ns": 200},
            "fill": {"count": 6000, "p50_ns": 51_200, "p99_ns": 102_400}, "map": {"count": 120_000, "p50_ns": 3200, "p99_ns": 12_800},
            "total": {"count": 120_000, "p50_ns": 3200, "p99_ns": 102_400}
        }
    }))
}

#[test]
fn a_healthy_runtime_is_described() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = explain(folder.path(), &healthy(), &[]);
    golden("explain-healthy.txt", &run.out);
    let run = explain(folder.path(), &healthy(), &["--json"]);
    let said = answer(&run);
    let levels: Vec<_> = said["findings"].as_array().expect("findings").iter().map(|f| f["level"].clone()).collect();
    assert!(levels.iter().all(|l| l == "ok"), "{said}");
    assert_eq!(said["unknown"], 0, "every name that a runtime of this version writes is known: {said}");
}

/// Each number that should not be as it is: whether it is a problem, and what is said.
fn ill() -> Vec<(&'static str, &'static str, &'static str, Value)> {
    vec![
        ("faults", "note", "there was no fault", json!({})),
        (
            "latency",
            "note",
            "99 % at most 4000.0 us",
            json!({"stages": {
            "total": {"count": 9, "p50_ns": 1000, "p99_ns": 4_000_000}, "map": {"count": 9, "p50_ns": 900, "p99_ns": 3_000_000}}}),
        ),
        (
            "stores",
            "problem",
            "1 reads, 2 writes, 3 flushes; 4 pages",
            json!({
            "fill_errors": 1, "writeback_errors": 2, "flush_errors": 3, "pgpoison": 4}),
        ),
        ("stores", "problem", "what was written of 1 page", json!({"flush_lost": 1})),
        ("stores", "problem", "2 fills took longer", json!({"fill_overdue": 2})),
        ("cache", "problem", "50 % of them came back", json!({"pgsteal": 10, "workingset_activate": 5})),
        ("cache", "problem", "9 times, 9 % of the faults", json!({"pgfault": 100, "allocstall": 9})),
        ("cache", "problem", "7 faults found no memory", json!({"reasons": {"OOM": 7}})),
        (
            "readahead",
            "note",
            "3 of which were met",
            json!({"readahead_pages": 800, "readahead_windows": 100, "readahead_hits": 3}),
        ),
        ("waits", "note", "150 faults waited", json!({"fill_waits": 150, "pgmajfault": 10})),
        ("writers", "note", "waited 6 times", json!({"balance_dirty_pages": 6})),
        (
            "native",
            "note",
            "20 extents of 2 MiB handed to the kernel, 19 taken back",
            json!({"extent_promote": 20, "extent_demote": 19}),
        ),
        ("native", "note", "5 were hidden again", json!({"process_exposed_vmas_hidden": 5})),
        ("huge", "note", "1 object cannot have any", json!({"thp_unsupported": 1})),
        ("images", "problem", "2 reads failed", json!({"image_errors": 2})),
        ("signals", "problem", "1 thread made or mapped", json!({"nr_warnings": 1})),
        ("signals", "note", "3 signals were not for an arena", json!({"process_handler_chained": 3})),
        ("signals", "problem", "1 fault was refused", json!({"handler_refused": 1})),
        ("files", "note", "8 files were read through", json!({"process_direct_fallbacks": 8})),
        ("files", "problem", "2 descriptors were closed", json!({"process_descriptors_lost": 2})),
    ]
}

#[test]
fn each_number_that_is_wrong_is_explained_with_its_mend() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut text = String::new();
    for (about, level, says, changes) in ill() {
        let run = explain(folder.path(), &with(changes.clone()), &["--json"]);
        let said = answer(&run);
        let hits: Vec<_> =
            said["findings"].as_array().expect("findings").iter().filter(|f| f["about"] == about).collect();
        let hit = hits.iter().find(|f| f["says"].as_str().is_some_and(|s| s.contains(says)));
        let hit = hit.unwrap_or_else(|| panic!("{changes}: nothing says `{says}`: {said}"));
        assert_eq!(hit["level"], level, "{changes}: {said}");
        assert!(hit["mend"].is_string(), "{changes}: no mend: {said}");
        text += &format!(
            "{about}: {}\n  mend: {}\n",
            hit["says"].as_str().unwrap_or(""),
            hit["mend"].as_str().unwrap_or("")
        );
    }
    golden("explain-ill.txt", &text);
}

#[test]
fn what_has_happened_since_is_what_counts() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("before.json"), with(json!({"pgfault": 100, "fill_errors": 5})).to_string())
        .expect("write");
    let run =
        explain(folder.path(), &with(json!({"pgfault": 130, "fill_errors": 5})), &["--json", "--since", "before.json"]);
    let said = answer(&run);
    assert_eq!(said["faults"], 30);
    assert!(!run.out.contains("stores have failed"), "the errors are old: {said}");
    let run = explain(folder.path(), &with(json!({"pgfault": 99})), &["--since", "before.json"]);
    assert_eq!(run.code, Some(3), "{}", run.err);
    assert!(run.err.contains("no earlier reading: pgfault was 100 and is 99"), "{}", run.err);
}

#[test]
fn what_is_no_statistics_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    for text in ["", "{", "[]", "{}", r#"{"reasons":{},"stages":{}}"#, r#"{"pgfault":"1","reasons":{},"stages":{}}"#] {
        fs::write(folder.path().join("stats.json"), text).expect("write");
        let run = softfault(folder.path(), &["explain", "stats.json", "--json"]);
        assert_eq!((run.code, &answer(&run)["name"]), (Some(3), &"corrupt".into()), "{text}: {}", run.err);
    }
    assert_eq!(softfault(folder.path(), &["explain", "none.json"]).code, Some(1));
}

#[test]
fn counters_of_another_version_are_counted() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("stats.json"), with(json!({"pgfuture": 1})).to_string()).expect("write");
    assert!(done(folder.path(), &["explain", "stats.json"]).contains("1 counter of another version"));
}
