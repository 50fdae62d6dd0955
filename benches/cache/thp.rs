//! Extents that are huge pages, fully cached, against the kernel's mmap of the same file hot in its page cache.

use crate::subject::Subject;
use softfault_benches::area::{HotFile, Mapping, ascending};
use softfault_benches::report::RowSpec;
use softfault_benches::session::{Series, Session};
use softfault_benches::{PAGE, Result};
use softfault_platform::sys::mem::{MADV_POPULATE_READ, PROT_READ};

const ROWS: &[RowSpec] = &[
    RowSpec::floor("mmap_first_touch"),
    RowSpec::floor("mmap_steady_random").unit("ns/load"),
    RowSpec::against("thp_first_touch", "thp_first_touch", &["mmap_first_touch"], Some(1.0)),
    RowSpec::against("thp_steady_random", "thp_steady_random", &["mmap_steady_random"], Some(0.8)).unit("ns/load"),
];

/// Random loads in one steady run.
const LOADS: usize = 1_000_000;

/// Measures the group.
pub(crate) fn run(session: &mut Session) -> Result<()> {
    let rows = session.select(ROWS);
    if rows.is_empty() {
        return Ok(());
    }
    let len_bytes = session.options.size_bytes(1024, 64);
    let file = HotFile::create(&session.options.dir, "thp", len_bytes)?;
    // As any program maps a file: the kernel may use whatever folios its file system has.
    let map = Mapping::plain(file.fd(), len_bytes, PROT_READ)?;
    let order = ascending(len_bytes / PAGE);

    let arena = Subject::unbounded().and_then(|s| {
        let arena = s.huge(file.path(), len_bytes)?;
        arena.fault_in()?;
        arena.promote()?;
        Ok(arena)
    });
    let mut series = vec![
        Series::new("mmap_first_touch", || {
            map.zap()?;
            map.view().time_touches(&order)
        }),
        Series::new("mmap_steady_random", || {
            map.advise(MADV_POPULATE_READ)?;
            map.view().time_random_loads(LOADS)
        }),
    ];
    match &arena {
        Ok(arena) => {
            series.push(Series::new("thp_first_touch", || {
                arena.zap()?;
                arena.view().view().time_touches(&order)
            }));
            series.push(Series::new("thp_steady_random", || arena.view().view().time_random_loads(LOADS)));
        }
        Err(why) => ["thp_first_touch", "thp_steady_random"].iter().for_each(|s| session.lack(s, why)),
    }
    session.measure(&rows, series)
}
