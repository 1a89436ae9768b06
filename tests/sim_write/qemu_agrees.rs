//! Some of the states are written out for QEMU to check and to compare.

use super::engine::{Files, Frozen};
use super::setup::KEY;
use super::support::qemu;
use super::workload::Plan;

/// One in so many states, on average.
pub const ONE_IN: u64 = 1000;

/// Whether `qemu-img check` finds leaks at worst, and QEMU reads `bytes`.
///
/// # Errors
/// What QEMU says otherwise.
pub fn check(plan: &Plan, files: &Files<Frozen>, bytes: &[u8]) -> Result<(), String> {
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
    let object = format!("secret,id=key,data={KEY}");
    let key = if plan.setup.encrypted { "encrypt.key-secret=key," } else { "" };
    let image = format!("driver=qcow2,{key}file.filename=image.qcow2");
    let is_v2 = plan.setup.version == 2;
    let dirty = files.image.0[79] & 1 != 0;
    // A dirty image is checked once it is repaired, which QEMU does when it opens it for writing. In version 2 nothing
    // says that copied flags are out of date.
    let can_tell = if is_v2 { !plan.has_snapshots() } else { !dirty };
    if can_tell {
        let mut check = qemu::qemu_img();
        check.current_dir(at).args(["check", "--object", &object, "--image-opts", &image]);
        let output = qemu::output(&mut check);
        if !matches!(output.status.code(), Some(0 | 3)) {
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            return Err(format!("qemu-img check: {}\n{said}", output.status));
        }
    }
    let mut compare = qemu::qemu_img();
    compare.current_dir(at).args([
        "compare",
        "--object",
        &object,
        "--image-opts",
        &image,
        "driver=raw,file.filename=expected.raw",
    ]);
    let output = qemu::output(&mut compare);
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        return Err(format!("qemu-img compare: {}\n{said}", output.status));
    }
    Ok(())
}
