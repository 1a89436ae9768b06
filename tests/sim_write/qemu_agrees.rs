//! Some of the states are written out for QEMU to check and to compare.

use super::engine::{Files, Frozen};
use super::setup::Setup;
use super::support::qemu;

/// One in so many states, on average.
pub const ONE_IN: u64 = 1000;

/// Whether `qemu-img check` finds leaks at worst, and QEMU reads `bytes`.
///
/// # Errors
/// What QEMU says otherwise.
pub fn check(setup: &Setup, files: &Files<Frozen>, bytes: &[u8]) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let write = |name: &str, file: &Frozen| std::fs::write(at.join(name), &file.0).unwrap();
    write("image.qcow2", &files.image);
    if let Some(data) = &files.data {
        write("image.data", data);
    }
    if let Some(backing) = &files.backing {
        write("backing.raw", backing);
    }
    if let Some(other) = &files.other {
        write("other.raw", other);
    }
    std::fs::write(at.join("expected.raw"), bytes).unwrap();
    let dirty = setup.lazy_refcounts && files.image.0[79] & 1 != 0;
    // A dirty image is checked once it is repaired, which QEMU does when it opens it for writing.
    if !dirty {
        let mut check = qemu::qemu_img();
        let output =
            qemu::output(check.current_dir(at).args(["check", "-f", "qcow2", "image.qcow2"]));
        if !matches!(output.status.code(), Some(0 | 3)) {
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            return Err(format!("qemu-img check: {}\n{said}", output.status));
        }
    }
    let mut compare = qemu::qemu_img();
    compare.current_dir(at).args([
        "compare",
        "-f",
        "qcow2",
        "-F",
        "raw",
        "image.qcow2",
        "expected.raw",
    ]);
    let output = qemu::output(&mut compare);
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        return Err(format!("qemu-img compare: {}\n{said}", output.status));
    }
    Ok(())
}
