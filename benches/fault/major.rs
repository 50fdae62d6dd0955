//! Major faults of a file that is hot in the kernel's page cache.

use crate::subject::{Delivery, Shape, Subject};
use softfault_benches::area::{HotFile, Mapping, Memfd, ascending};
use softfault_benches::report::RowSpec;
use softfault_benches::session::{Series, Session};
use softfault_benches::trap::{self, Action, Target, Trapped, with_sigbus};
use softfault_benches::{PAGE, Result, WINDOW_PAGES};
use softfault_platform::sys::mem::{PROT_READ, PROT_WRITE};

const ROWS: &[RowSpec] = &[
    RowSpec::floor("bare_major"),
    RowSpec::against("major_hot", "major_hot", &["bare_major"], Some(1.2)),
    // The runtime's own file store moves pages between descriptors instead of mapping them to read into them.
    RowSpec::against("major_file", "major_file", &["bare_major"], None),
];

/// Measures the group.
pub(crate) fn run(session: &mut Session) -> Result<()> {
    let rows = session.select(ROWS);
    if rows.is_empty() {
        return Ok(());
    }
    let len_bytes = session.options.size_bytes(256, 32);
    let file = HotFile::create(&session.options.dir, "major", len_bytes)?;
    let memfd = Memfd::sparse(len_bytes)?;
    let alias = Mapping::shared(memfd.fd(), len_bytes, PROT_READ | PROT_WRITE)?;
    let trapped = Trapped::new(Mapping::shared(memfd.fd(), len_bytes, PROT_READ)?, trap::Delivery::Sigbus)?;
    let order = ascending(len_bytes / PAGE);

    let subject = Subject::start(Delivery::InThread)?;
    let shape = Shape { len_bytes, fault_around: true, opaque_store: true, ..Shape::TRAPPED };
    let arena = subject.as_ref().map(|s| s.arena_of(&file, shape)).transpose()?;
    let own = Shape { opaque_store: false, ..shape };
    let own = subject.as_ref().map(|s| s.arena_of(&file, own)).transpose()?;

    let mut series = vec![Series::new("bare_major", || {
        // Both sides fill memory that they gave back a moment ago: fresh memory of a virtual machine costs what the
        // host makes of it.
        memfd.punch()?;
        let source = Some((&alias, file.fd()));
        let target = Target { action: Action::Fill, source, ..trapped.continuing(WINDOW_PAGES) };
        with_sigbus(&target, || trapped.map().view().time_touches(&order))
    })];
    if let Some(a) = &arena {
        series.push(Series::new("major_hot", || {
            a.evict()?;
            a.view().time_touches(&order)
        }));
    }
    if let Some(a) = &own {
        series.push(Series::new("major_file", || {
            a.evict()?;
            a.view().time_touches(&order)
        }));
    }
    session.measure(&rows, series)
}
