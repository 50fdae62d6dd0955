//! What it costs to reclaim a page that few or many private mappings have: every punch walks all of them. Processor time
//! of the background reclaimer, which is all that it takes.

use crate::rows;
use crate::subject::Subject;
use softfault_benches::report::RowSpec;
use softfault_benches::session::{Series, Session};
use softfault_benches::{PAGE, Result};

/// How many mappings there are.
const MAPS: [usize; 4] = [1, 8, 100, 1000];

/// Measures the group.
pub(crate) fn run(session: &mut Session) -> Result<()> {
    // Half of the object goes; the limit is large enough for whole batches.
    let len_bytes = session.options.size_bytes(32, 16);
    for maps in MAPS {
        let name = rows::name(format!("reclaim_{maps}"));
        let rows = session.select(&[RowSpec::floor(name)]);
        if rows.is_empty() {
            continue;
        }
        let subject = Subject::unbounded()?;
        let clones = subject.clones(len_bytes, maps)?;
        session.measure(&rows, vec![Series::new(name, || subject.reclaim(&clones, len_bytes / PAGE / 2))])?;
    }
    Ok(())
}
