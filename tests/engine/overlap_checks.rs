//! The fear: a damaged entry makes a guest's write land on a table. QEMU looks before it writes, refuses, and marks the
//! image as corrupt; its options say which tables it looks at. Expected texts and marks come from `qemu-io`.

use crate::support::qemu;
use crate::support::tables::{COPIED, Tables};
use cowshed::Error;
use cowshed::format::Incompatible;
use cowshed::image::{Format, Image, OpenOptions, OverlapChecks, RefuseAll, Source, WriteOptions};
use futures::executor::block_on;
use tempfile::TempDir;

/// A folder with an empty image.
fn empty() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    qemu::img(dir.path(), ["create", "-q", "-f", "qcow2", "image.qcow2", "64M"]);
    dir
}

/// What QEMU says of these options; nothing if it opens the image.
fn qemu_says(dir: &TempDir, options: &[(&str, &str)]) -> String {
    let mut command = qemu::qemu_io();
    command.current_dir(dir.path()).args(["-r", "-f", "qcow2", "-c"]);
    let named: Vec<_> = options.iter().map(|(name, value)| format!("{name}={value}")).collect();
    command.arg(format!("open -r -o driver=qcow2,{},file.filename=image.qcow2", named.join(",")));
    let output = qemu::output(&mut command);
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn options_are_refused_in_the_words_of_qemu() {
    let dir = empty();
    let cases: &[&[(&str, &str)]] = &[
        &[("overlap-check", "everything")],
        &[("overlap-check.template", "")],
        &[("overlap-check", "all"), ("overlap-check.template", "none")],
        &[("overlap-check.main-header", "maybe")],
        &[("overlap-check.refcount-blocks", "on")],
        &[("overlap-check.", "on")],
    ];
    for options in cases {
        let Err(Error::InvalidArgument(text)) = OverlapChecks::parse(options.iter().copied())
        else {
            panic!("{options:?} are taken");
        };
        let qemu = qemu_says(&dir, options);
        let said = qemu.trim().strip_prefix("qemu-io: can't open: ").unwrap_or(&qemu);
        assert_eq!(text, said, "{options:?}");
    }
}

#[test]
fn options_that_qemu_takes_are_taken() {
    let dir = empty();
    let cases: &[(&[(&str, &str)], OverlapChecks)] = &[
        (&[("overlap-check", "cached")], OverlapChecks::default()),
        (&[("overlap-check", "none")], OverlapChecks::NONE),
        (&[("overlap-check", "all"), ("overlap-check.template", "all")], OverlapChecks::ALL),
        (
            &[("overlap-check.inactive-l2", "on"), ("overlap-check.template", "constant")],
            OverlapChecks::CONSTANT.with(OverlapChecks::INACTIVE_L2, true),
        ),
        (
            &[("overlap-check.main-header", "off"), ("overlap-check.active-l2", "off")],
            OverlapChecks::CACHED
                .with(OverlapChecks::MAIN_HEADER, false)
                .with(OverlapChecks::ACTIVE_L2, false),
        ),
    ];
    for (options, checks) in cases {
        assert_eq!(qemu_says(&dir, options), "", "{options:?}");
        assert_eq!(OverlapChecks::parse(options.iter().copied()).unwrap(), *checks, "{options:?}");
    }
    for name in [
        "main-header",
        "active-l1",
        "active-l2",
        "refcount-table",
        "refcount-block",
        "snapshot-table",
        "inactive-l1",
        "inactive-l2",
        "bitmap-directory",
    ] {
        let option = format!("overlap-check.{name}");
        let options = [("overlap-check", "none"), (&*option, "on")];
        assert_eq!(qemu_says(&dir, &options), "");
        assert_ne!(OverlapChecks::parse(options).unwrap(), OverlapChecks::NONE);
        let options = [("overlap-check", "all"), (&*option, "off")];
        assert_ne!(OverlapChecks::parse(options).unwrap(), OverlapChecks::ALL);
    }
}

/// Damages an image so that its first guest cluster is `target`, writes there with `options` through QEMU and through
/// the engine, and compares what both say and leave behind.
fn assert_as_qemu(
    commands: &[&str],
    snapshot: bool,
    options: &[(&str, &str)],
    target: impl Fn(&Tables) -> u64,
) {
    let dir = empty();
    qemu::io(dir.path(), "qcow2", "image.qcow2", commands);
    if snapshot {
        qemu::img(dir.path(), ["snapshot", "-c", "s", "image.qcow2"]);
        qemu::io(dir.path(), "qcow2", "image.qcow2", &["write -P 3 0 64k"]);
    }
    let path = dir.path().join("image.qcow2");
    let mut layout = Tables { bytes: std::fs::read(&path).unwrap() };
    let (l2, target) = (layout.l2(layout.l1(), 0), target(&layout));
    layout.put(l2, target | COPIED);
    std::fs::write(&path, &layout.bytes).unwrap();

    let storage = std::sync::Arc::new(cowshed::storage::MemoryStorage::new(layout.bytes.clone()));
    let mut write = WriteOptions::default();
    write.overlap_checks = OverlapChecks::parse(options.iter().copied()).unwrap();
    let mut open = OpenOptions::default();
    open.write = Some(write);
    let error = block_on(async {
        let source = Source {
            storage: std::sync::Arc::clone(&storage),
            format: Format::Qcow2,
            location: "image.qcow2".into(),
            identity: None,
        };
        let image = Image::open(source, &RefuseAll::default(), open).await.unwrap().image;
        let error = image.write_at(&[1; 4096], 0).await.unwrap_err();
        if image.header().unwrap().incompatible.contains(Incompatible::CORRUPT) {
            let error = image.write_at(&[1; 4096], 1 << 20).await.unwrap_err();
            assert!(matches!(error, Error::Latched(_)), "{error}");
        }
        // Reading goes on.
        image.read_at(&mut [0; 4096], 0).await.unwrap();
        let _ = image.close().await;
        error
    });

    let mut command = qemu::qemu_io();
    let named: Vec<_> = options.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let named =
        [vec!["driver=qcow2".to_owned()], named, vec!["file.filename=image.qcow2".to_owned()]];
    command.current_dir(dir.path()).args(["-c", &format!("open -o {}", named.concat().join(","))]);
    let output = qemu::output(command.args(["-c", "write -P 1 0 4k"]));
    let said = String::from_utf8(output.stderr).unwrap();
    let Error::Corrupt(corrupt) = error else { panic!("{error}") };
    assert_eq!(corrupt.code(), "invalid-write");
    let mut bytes = storage.to_vec();
    if said.is_empty() {
        // QEMU has written over metadata that it does not look at. The engine has not, and leaves no mark.
        assert!(bytes == layout.bytes, "{options:?}: something was written");
        return;
    }
    assert_eq!(
        format!(
            "qcow2: Marking image as corrupt: {}; further corruption events will be suppressed",
            corrupt.reason()
        ),
        said.trim()
    );
    // Both changed one bit and nothing else.
    assert!(bytes == std::fs::read(&path).unwrap(), "{options:?}: other bytes than QEMU's");
    bytes[79] ^= 2;
    assert!(bytes == layout.bytes);
}

#[test]
fn write_over_metadata_is_refused_and_marks_the_image_as_qemu_does() {
    let two = ["write -P 1 0 128k", "write -P 2 32M 64k"];
    assert_as_qemu(&two, false, &[], Tables::l1);
    assert_as_qemu(&two, false, &[], |layout| layout.l2(layout.l1(), 0));
    assert_as_qemu(&two, false, &[], Tables::refcount_table);
    assert_as_qemu(&two, false, &[], |layout| layout.refcount_block(0));
    assert_as_qemu(&two, true, &[], Tables::snapshots);
    assert_as_qemu(&two, true, &[], |layout| layout.word(layout.snapshots()));
    // The L2 table of the snapshot, which the active state has left.
    let inactive = |layout: &Tables| layout.l2(layout.word(layout.snapshots()), 0);
    assert_as_qemu(&two, true, &[("overlap-check", "all")], inactive);
    assert_as_qemu(&two, true, &[], inactive);
}

#[test]
fn metadata_that_no_option_looks_at_is_not_written_over_either() {
    let one = ["write -P 1 0 128k"];
    let none = [("overlap-check", "none")];
    assert_as_qemu(&one, false, &none, Tables::refcount_table);
    assert_as_qemu(&one, false, &none, |layout| layout.l2(layout.l1(), 0));
    let but = [("overlap-check", "all"), ("overlap-check.refcount-block", "off")];
    assert_as_qemu(&one, false, &but, |layout| layout.refcount_block(0));
}
