//! The paths by which programs name what the crate has: files move, these stay.

use std::any::type_name;

/// A path in a public module, and the crate's own.
macro_rules! same {
    ($($module:ident::$name:ident),* $(,)?) => {
        $(assert_eq!(type_name::<softfault::$module::$name>(), type_name::<softfault::$name>());)*
    };
}

#[test]
fn what_a_module_names_is_what_the_crate_names() {
    same!(arena::Arena, arena::ArenaBuilder, arena::Prot, arena::Sharing);
    same!(delivery::Delivery, delivery::DeliveryReport, error::Error, failures::RecentFailure, file::FileOptions);
    same!(in_the_way::InTheWay, madvise::Advice, object::Object, object::ObjectBuilder, pin::Pin);
    same!(
        runtime::Runtime,
        runtime::RuntimeBuilder,
        stats::Stats,
        swap::RuntimeBuilder,
        writeback::Held,
        writeback::Invalidated
    );
    let result = type_name::<softfault::error::Result<()>>();
    assert_eq!(result, type_name::<Result<(), softfault::Error>>());
}

#[test]
fn types_of_modules_alone_can_be_named() {
    use softfault::audit::{Audit, Offender};
    use softfault::delivery::Finding;
    use softfault::stats::StageLatency;
    let names = [type_name::<Audit>(), type_name::<Offender>(), type_name::<Finding>(), type_name::<StageLatency>()];
    assert!(names.iter().all(|name| name.starts_with("softfault::")), "{names:?}");
}

/// What lies in the crates below is named at the root.
#[test]
fn what_lies_below_is_named_at_the_root() {
    use softfault::{Errno, FailurePolicy, FaultFlags, Mapping, MinorDelegate, MinorError, MinorFault, MinorVerdict};
    use softfault::{HandlerStore, PageMut, PageRef, Store, StoreError, VmFault, VmFaultReason, VmFlags, VmOps};
    let traits = [
        type_name::<dyn MinorDelegate>(),
        type_name::<dyn VmOps>(),
        type_name::<dyn Store>(),
        type_name::<Box<dyn HandlerStore>>(),
    ];
    let faults = [type_name::<VmFault<'_>>(), type_name::<FaultFlags>(), type_name::<VmFaultReason>()];
    let mappings = [type_name::<Mapping<'_>>(), type_name::<FailurePolicy>(), type_name::<VmFlags>()];
    let minor = [type_name::<MinorError>(), type_name::<MinorFault<'_>>(), type_name::<MinorVerdict>()];
    let stores = [type_name::<PageMut<'_>>(), type_name::<PageRef<'_>>(), type_name::<StoreError>()];
    let errno = [type_name::<Errno>()];
    let groups: [&[&str]; 6] = [&traits, &faults, &mappings, &minor, &stores, &errno];
    let elsewhere: Vec<_> = groups.concat().into_iter().filter(|name| !name.contains("softfault_")).collect();
    assert!(elsewhere.is_empty(), "{elsewhere:?}");
    // Modules whose functions a vtable of one's own calls.
    let _ = (softfault::filemap::fault, softfault::shmem::fault);
}
