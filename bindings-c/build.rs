//! Names the shared library by its ABI: `libsoftfault.so.MAJOR.MINOR`, as cargo-c would.

fn main() {
    let part = |name| std::env::var(name).unwrap_or_default();
    let (major, minor) = (part("CARGO_PKG_VERSION_MAJOR"), part("CARGO_PKG_VERSION_MINOR"));
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libsoftfault.so.{major}.{minor}");
    // Signal handlers, and threads that never end, outlive dlclose(3).
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    println!("cargo:rerun-if-changed=build.rs");
}
