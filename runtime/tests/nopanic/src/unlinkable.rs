//! The panic handler that does not link. The crate of the C ABI has it from here.

unsafe extern "C" {
    /// Defined nowhere: a panic that can be reached makes the link fail with this name.
    fn handler_can_panic() -> !;
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: never linked.
    unsafe { handler_can_panic() }
}

/// Without unwinding nobody calls it, but a debug build of `core` may name it.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
