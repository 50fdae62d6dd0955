#![no_main]

#[path = "../../tests/fuzz/mod.rs"]
#[allow(dead_code, reason = "each program has one target")]
mod fuzz;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::sfi_sealed(bytes));
