//! The browser's read tests have no QEMU beside them: they read images that are kept in `tests/browser_images`, against
//! bytes that are kept there too. If those were wrong, so would be the tests. Here QEMU reads them again.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::qemu;

/// Unpacks every kept file into `dir`; returns the names of the qcow2 images, without ending.
fn unpack(dir: &Path) -> Vec<String> {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser_images");
    let mut images = Vec::new();
    for entry in fs::read_dir(kept).expect("the kept images") {
        let path = entry.expect("a kept image").path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".gz"))
        else {
            continue;
        };
        let unpacked = Command::new("gzip").arg("-dc").arg(&path).output().expect("gzip");
        assert!(unpacked.status.success(), "{}", path.display());
        fs::write(dir.join(name), unpacked.stdout).expect("an unpacked image");
        images.extend(name.strip_suffix(".qcow2").map(str::to_owned));
    }
    images.sort();
    assert!(images.len() >= 8, "{images:?}");
    images
}

#[test]
fn qemu_reads_the_kept_images_as_the_bytes_kept_beside_them() {
    let dir = tempfile::tempdir().expect("a folder");
    for name in unpack(dir.path()) {
        let image = format!("{name}.qcow2");
        qemu::img(dir.path(), ["check", "-q", "-f", "qcow2", &image]);
        // The middle of a chain is no test of its own.
        let expected = match name.as_str() {
            "chain_middle" => continue,
            name => format!("{name}.raw"),
        };
        convert(dir.path(), &["-f", "qcow2", &image, "read.raw"]);
        assert_same(dir.path(), "read.raw", &expected);
    }
    let first = ["-f", "qcow2", "-l", "snapshot.name=first", "snapshots.qcow2", "read.raw"];
    convert(dir.path(), &first);
    // QEMU keeps the present size; the snapshot's own disk has 256 KiB.
    fs::File::options()
        .write(true)
        .open(dir.path().join("read.raw"))
        .unwrap()
        .set_len(262_144)
        .unwrap();
    assert_same(dir.path(), "read.raw", "snapshots_first.raw");
}

fn convert(dir: &Path, arguments: &[&str]) {
    qemu::img(dir, ["convert", "-O", "raw"].iter().chain(arguments));
}

fn assert_same(dir: &Path, read: &str, kept: &str) {
    let bytes = |name: &str| fs::read(dir.join(name)).expect(name);
    assert!(bytes(read) == bytes(kept), "QEMU reads something else than {kept}");
}
