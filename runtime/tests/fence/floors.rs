//! Which file is on which floor, crate by crate.

use super::modules::{Arrow, normal};

/// One crate, as the fence knows it.
pub(crate) struct House {
    /// Its root, in the workspace.
    pub(crate) root: &'static str,
    /// The floors, lowest first: files without `.rs`, or folders. The longest name that fits decides, so that `a/b` may lie lower
    /// than the rest of `a`. The root is above all of them.
    pub(crate) floors: &'static [&'static [&'static str]],
    /// Types with methods outside their own file: the type, the file. A `Drop` that runs a verb may stand with the verb.
    pub(crate) elsewhere: &'static [(&'static str, &'static str)],
    /// Files that are in a circle still: from, to.
    pub(crate) knots: &'static [(&'static str, &'static str)],
    /// Who says the `# Context` of public functions.
    pub(crate) contexts: Contexts,
    /// Every ordering stronger than `Relaxed` names the function that holds its other half.
    pub(crate) orderings: bool,
    /// No function is longer than [`super::functions::MAX_LINES`], those excepted: how long each of them is, at most.
    pub(crate) long: Option<&'static [(&'static str, usize)]>,
}

/// Where it stands in what context a public function may be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contexts {
    /// Nowhere: nothing of the crate is called by others.
    Unsaid,
    /// In its own documentation, or in its file's.
    File,
    /// In its own, which is all that a reader of one item sees.
    Function,
}

/// Crates whose files know their floors.
pub(crate) const HOUSES: &[House] = &[
    House {
        root: "runtime/mm/src/lib.rs",
        floors: &[&["base"], &["words"], &["policy"], &["model"], &["cache"], &["walk"]],
        contexts: Contexts::Function,
        orderings: true,
        long: Some(&[]),
        ..House::NONE
    },
    House {
        root: "runtime/platform/src/lib.rs",
        floors: &[
            &["sys"],
            &["handler"],
            &["memory"],
            &["mmu", "store"],
            &["vmatree"],
            &["crowd"],
            &["host"],
            &["trap"],
        ],
        elsewhere: &[
            // What alone knows std.
            ("StoreError", "store/io_error.rs"),
            ("PageMut", "store/part.rs"),
            ("PageRef", "store/part.rs"),
        ],
        contexts: Contexts::Function,
        orderings: true,
        // One sequence of instructions.
        long: Some(&[("on_signal", 200)]),
        ..House::NONE
    },
    House {
        root: "runtime/image/src/lib.rs",
        floors: &[
            &["error", "digest", "extent_map", "inject"],
            &["codec", "layer", "region", "integrity", "lease", "durable"],
            &["sfi", "raw", "slot"],
            &["image"],
            &["write"],
            &["import", "sidecar", "ops"],
            &["workingset"],
            &["catalog", "oci"],
        ],
        elsewhere: &[
            ("Image", "image/family.rs"),
            ("Image", "image/verify.rs"),
            ("Reader", "image/verify.rs"),
            ("Sfi", "sfi/verify.rs"),
            ("WorkingSet", "workingset/file.rs"),
        ],
        contexts: Contexts::File,
        orderings: true,
        long: Some(&[]),
        ..House::NONE
    },
    House {
        root: "runtime/src/lib.rs",
        floors: &[
            &["types", "short", "masked", "undo", "lease", "by_std"],
            &["delivery", "in_the_way", "error", "memory"],
            &["process"],
            &["writeback"],
            &["cache"],
            &["object"],
            &["arena"],
            &["snapshot"],
            &["calibrate", "mapped"],
            &["runtime"],
        ],
        elsewhere: &[
            ("ArenaInner", "arena/end.rs"),
            ("ArenaInner", "arena/mapper.rs"),
            ("ObjectInner", "object/collapse.rs"),
            ("ObjectInner", "object/end.rs"),
            ("RuntimeInner", "cache/end.rs"),
        ],
        contexts: Contexts::Function,
        orderings: true,
        long: Some(&[]),
        ..House::NONE
    },
    House {
        root: "runtime/cli/src/main.rs",
        floors: &[
            &["failure", "finding", "units"],
            &["console"],
            &["source"],
            &["bench", "doctor", "explain", "image", "recording", "workingset", "generate"],
        ],
        long: Some(&[]),
        ..House::NONE
    },
    House {
        root: "bindings-c/src/lib.rs",
        floors: &[
            &["consts", "error"],
            &["args", "handle", "handler"],
            &["options"],
            &["image_options"],
            &[
                "runtime",
                "object",
                "object_cache",
                "arena",
                "pin",
                "stats",
                "image",
                "session",
                "working_set",
                "image_writer",
                "image_ops",
                "catalog",
                "capture",
            ],
            &["callbacks"],
        ],
        contexts: Contexts::Function,
        orderings: true,
        long: Some(&[]),
        ..House::NONE
    },
    House {
        root: "benches/harness/lib.rs",
        floors: &[
            &["units"],
            &["machine"],
            &["area", "args", "child", "monitor", "report", "together"],
            &["session", "trap", "workload"],
            &["program", "../replacement/sim"],
        ],
        long: Some(&[]),
        ..House::NONE
    },
    House {
        root: "benches/fault/main.rs",
        floors: &[&["subject"], &["floors"], &["major", "native", "peers", "segv", "threads"]],
        long: Some(&[]),
        ..House::NONE
    },
    House {
        root: "benches/cache/main.rs",
        floors: &[
            &["cgroup", "ring", "source", "subject"],
            &["floor", "pool", "taken"],
            &["child", "monitor", "rows"],
            &["bounded", "exclusive", "hot", "overhead", "readahead", "reclaim", "sync", "sync_one", "thp"],
        ],
        long: Some(&[]),
        ..House::NONE
    },
    House {
        root: "benches/replacement/main.rs",
        floors: &[&["candidates"], &["live", "table"]],
        long: Some(&[]),
        ..House::NONE
    },
    House {
        root: "benches/snapshot/main.rs",
        floors: &[&["subject"], &["files"], &["capture", "clones", "decode", "ready", "touch", "verify"]],
        long: Some(&[]),
        ..House::NONE
    },
    House {
        root: "benches/abi/main.rs",
        floors: &[&["library", "subject"], &["child"], &["faults", "numpy"]],
        long: Some(&[]),
        ..House::NONE
    },
    House {
        root: "examples/quickstart/main.rs",
        floors: &[&["../bytes", "units"], &["content"], &["cost", "frames"]],
        long: Some(&[]),
        ..House::NONE
    },
    House {
        root: "examples/out_of_core/main.rs",
        floors: &[&["../bytes", "record", "units"], &["options", "watch"], &["picture", "plain", "sort"]],
        long: Some(&[]),
        ..House::NONE
    },
    House {
        root: "examples/clones/main.rs",
        floors: &[&["../bytes", "units"], &["image", "memory", "options"], &["copies"], &["fleet"]],
        long: Some(&[]),
        ..House::NONE
    },
    House {
        root: "examples/warm_start/main.rs",
        floors: &[
            &["units"],
            &["options", "texts"],
            &["index"],
            &["heap"],
            &["heap_mimalloc", "heap_talc"],
            &["process"],
            &["compare"],
        ],
        long: Some(&[]),
        ..House::NONE
    },
    House { root: "examples/custom_vm_ops.rs", long: Some(&[]), ..House::NONE },
    House { root: "examples/minor_delegate.rs", long: Some(&[]), ..House::NONE },
    House { root: "examples/snapshot.rs", long: Some(&[]), ..House::NONE },
];

impl House {
    /// A house without anything; what is left out of the others below is as here.
    pub(crate) const NONE: Self = Self {
        root: "",
        floors: &[],
        elsewhere: &[],
        knots: &[],
        contexts: Contexts::Unsaid,
        orderings: false,
        long: None,
    };

    /// The folder of the root.
    pub(crate) fn dir(&self) -> &str {
        self.root.rsplit_once('/').map_or("", |(dir, _)| dir)
    }

    /// Returns the floor of a file, from 0; `None`: it has none.
    pub(crate) fn floor(&self, file: &str) -> Option<usize> {
        if file == self.root {
            return Some(self.floors.len());
        }
        let fits = |name: &str| {
            let whole = normal(format!("{}/{name}", self.dir()).as_ref());
            let rest = file.strip_prefix(&whole)?;
            (rest == ".rs" || rest.starts_with('/')).then_some(whole.len())
        };
        let all = self.floors.iter().enumerate().flat_map(|(floor, names)| names.iter().map(move |n| (floor, n)));
        all.filter_map(|(floor, name)| fits(name).map(|len| (len, floor))).max().map(|(_, floor)| floor)
    }

    pub(crate) fn is_knot(&self, arrow: &Arrow) -> bool {
        let is =
            |file: &str, name: &str| file.strip_prefix(self.dir()).is_some_and(|f| f.trim_start_matches('/') == name);
        self.knots.iter().any(|(from, to)| is(&arrow.from, from) && is(&arrow.to, to))
    }

    pub(crate) fn stands_elsewhere(&self, name: &str, file: &str) -> bool {
        let inner = file.strip_prefix(self.dir()).map_or(file, |f| f.trim_start_matches('/'));
        self.elsewhere.contains(&(name, inner))
    }
}

mod can_fail {
    use super::*;

    #[test]
    fn the_longest_name_decides_which_floor_a_file_is_on() {
        let house = House { root: "a/lib.rs", floors: &[&["x/low", "../b"], &["x", "y"]], ..House::NONE };
        let floor = |file| house.floor(file);
        assert_eq!((floor("a/x/low.rs"), floor("a/x/low/deep.rs"), floor("b/c.rs")), (Some(0), Some(0), Some(0)));
        assert_eq!((floor("a/x.rs"), floor("a/x/other.rs"), floor("a/y.rs")), (Some(1), Some(1), Some(1)));
        assert_eq!((floor("a/lib.rs"), floor("a/z.rs"), floor("a/xx.rs")), (Some(2), None, None));
    }
}
