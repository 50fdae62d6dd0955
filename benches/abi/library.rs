//! The shared library, and the C program over it, built as a user would.

use softfault_benches::{Context, Error, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the libraries are.
#[derive(Debug)]
pub(crate) struct Library {
    work: PathBuf,
    shared: PathBuf,
}

fn said(what: &str, stderr: &[u8]) -> Error {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> = text.lines().collect();
    Error::Wrong(format!("{what}: {}", lines[lines.len().saturating_sub(8)..].join("; ")))
}

fn manifest() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns a path of the repository.
pub(crate) fn repository(path: &str) -> PathBuf {
    manifest().parent().unwrap_or_else(manifest).join(path)
}

/// Returns a file of this bench.
pub(crate) fn file(name: &str) -> PathBuf {
    manifest().join("abi").join(name)
}

impl Library {
    /// Builds the library with the profile `release`, whose settings are those that this program was built with.
    pub(crate) fn build() -> Result<Self> {
        let temporary = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let target = temporary.parent().unwrap_or(temporary);
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into()));
        cargo.args(["build", "--locked", "--release", "--package", "softfault-c", "--target-dir"]).arg(target);
        let out = cargo.current_dir(manifest()).output().context("running cargo")?;
        if !out.status.success() {
            return Err(said("cargo build -p softfault-c", &out.stderr));
        }
        let work = temporary.join("abi");
        std::fs::create_dir_all(&work).context("making a folder")?;
        // A copy, under the name that programs ask for.
        let major_minor = concat!(env!("CARGO_PKG_VERSION_MAJOR"), ".", env!("CARGO_PKG_VERSION_MINOR"));
        let shared = work.join(format!("libsoftfault.so.{major_minor}"));
        std::fs::copy(target.join("release/libsoftfault.so"), &shared).context("copying the library")?;
        Ok(Self { work, shared })
    }

    /// Returns the shared library.
    pub(crate) fn shared(&self) -> &Path {
        &self.shared
    }

    /// Compiles `fault.c` against it; [`Error::Absent`] without a compiler.
    pub(crate) fn program(&self) -> Result<PathBuf> {
        let (compiler, program) =
            (std::env::var("CC").unwrap_or_else(|_| "cc".to_owned()), self.work.join("abi_fault"));
        let mut cc = Command::new(&compiler);
        cc.args(["-std=c11", "-O2", "-Wall", "-Wextra", "-I"]).arg(repository("bindings-c/include"));
        cc.arg(file("fault.c")).arg("-o").arg(&program).arg(&self.shared);
        cc.arg(format!("-Wl,-rpath,{}", self.work.display()));
        let out = cc.output().map_err(|e| Error::Absent(format!("no C compiler {compiler}: {e}")))?;
        if out.status.success() { Ok(program) } else { Err(said("fault.c", &out.stderr)) }
    }
}
