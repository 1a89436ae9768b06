//! `convert -O qcow2` makes the images that `qemu-img convert -O qcow2` makes: the same disk, clusters in the same places,
//! the same refusals; and QEMU finds nothing wrong with them.

use crate::{Folder, text};

/// Which clusters lie where must be the same, or only what they hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    Same,
    Any,
}

/// Converts with both, and holds the results against each other.
#[track_caller]
fn same(folder: &Folder, arguments: &[&str], layout: Layout) {
    let arguments = [&["convert", "-O", "qcow2"], arguments].concat();
    folder.qemu_img(&[&arguments[..], &["theirs.qcow2"]].concat());
    let output = folder.cowshed(&[&arguments[..], &["ours.qcow2"]].concat());
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "");
    folder.qemu_img(&["check", "-q", "ours.qcow2"]);
    folder.qemu_img(&["compare", "-q", "theirs.qcow2", "ours.qcow2"]);
    if layout == Layout::Same {
        assert_eq!(
            map(folder, "ours.qcow2"),
            map(folder, "theirs.qcow2"),
            "{arguments:?}: other places (ours left)"
        );
    }
}

/// Guest cluster by guest cluster: whether it has data, and where. The file's own holes do not count.
fn map(folder: &Folder, name: &str) -> Vec<(u64, String, u64)> {
    const STEP: u64 = 64 << 10;
    let map: serde_json::Value =
        serde_json::from_str(&folder.qemu_img(&["map", "--output=json", name])).unwrap();
    let mut clusters = std::collections::BTreeMap::new();
    for extent in map.as_array().unwrap() {
        let number = |key: &str| extent[key].as_u64();
        let (start, len) = (number("start").unwrap(), number("length").unwrap());
        let kind = match (extent["data"].as_bool(), number("offset")) {
            (Some(true), _) | (_, Some(_)) => "own",
            _ => "none",
        };
        for cluster in start / STEP..(start + len).div_ceil(STEP) {
            let host = number("offset").map_or(0, |host| (host + cluster * STEP) - start);
            clusters.entry(cluster).or_insert((kind.to_owned(), host));
        }
    }
    clusters.into_iter().map(|(cluster, (kind, host))| (cluster, kind, host)).collect()
}

/// Images with runs of data and zeros of many lengths, of many kinds.
fn images() -> Folder {
    let folder = Folder::new();
    folder.create(&[], "image.qcow2", "10M");
    let mut commands = vec!["write -P 1 0 1M".to_owned(), "write -z 2M 1M".to_owned()];
    for step in 0..40_u64 {
        let (offset, len) = ((3 << 20) + step * 83 * 512, 512 * (1 + step % 9));
        commands.push(format!("write -P {} {offset} {len}", step + 1));
    }
    let commands: Vec<_> = commands.iter().map(String::as_str).collect();
    folder.qemu_io("image.qcow2", &commands);
    folder.create(&["-b", "image.qcow2", "-F", "qcow2"], "top.qcow2", "12M");
    folder.qemu_io("top.qcow2", &["write -P 9 500k 2M", "write -z 8M 1M", "write -P 7 11M 100k"]);
    folder.create(
        &["-b", "image.qcow2", "-F", "qcow2", "-o", "extended_l2=on"],
        "sub.qcow2",
        "10M",
    );
    folder.qemu_io("sub.qcow2", &["write -P 9 500k 6k", "write -z 8M 1M", "write -z 1000k 2k"]);
    folder.qemu_img(&["convert", "-c", "-O", "qcow2", "top.qcow2", "packed.qcow2"]);
    folder.qemu_img(&["convert", "-O", "raw", "image.qcow2", "image.raw"]);
    folder.write("odd.raw", vec![7; 70001]);
    folder.write("empty.raw", "");
    folder
}

const SOURCES: &[&str] =
    &["image.qcow2", "top.qcow2", "sub.qcow2", "packed.qcow2", "image.raw", "odd.raw", "empty.raw"];

#[test]
fn clusters_lie_where_qemu_img_puts_them() {
    let folder = images();
    for source in SOURCES {
        for options in [
            &[][..],
            &["-S", "64k"],
            &["-S", "0"],
            &["-m", "1"],
            &["-o", "compat=0.10"],
            &["-o", "preallocation=metadata"],
            &["-o", "lazy_refcounts=on"],
            &["-t", "none", "-T", "none"],
        ] {
            same(&folder, &[options, &[source]].concat(), Layout::Same);
        }
    }
}

#[test]
fn every_geometry_holds_the_same_disk() {
    let folder = images();
    for options in [
        "cluster_size=512,refcount_bits=1",
        "cluster_size=4k",
        "cluster_size=2M",
        "extended_l2=on",
        "preallocation=full",
    ] {
        for source in SOURCES {
            same(&folder, &["-o", options, source], Layout::Any);
            same(&folder, &["-W", "-m", "16", "-o", options, source], Layout::Any);
        }
    }
}

#[test]
fn compressed_images_hold_the_same_disk() {
    let folder = images();
    for source in SOURCES {
        for options in [
            &[][..],
            &["-o", "compression_type=zstd"],
            &["-o", "cluster_size=4k"],
            &["-o", "cluster_size=2M"],
            &["-S", "0"],
            &["-W", "-m", "16"],
            &["-m", "1"],
        ] {
            same(&folder, &[&["-c"], options, &[source]].concat(), Layout::Any);
        }
    }
    // They are compressed as well as QEMU's.
    same(&folder, &["-c", "image.qcow2"], Layout::Any);
    let len = |name| folder.read(name).len();
    assert!(len("ours.qcow2") * 100 < len("theirs.qcow2") * 101);
}

#[test]
fn sources_are_put_one_behind_the_other() {
    let folder = images();
    same(&folder, &["image.qcow2", "odd.raw", "top.qcow2"], Layout::Any);
    // The second source starts within a cluster.
    same(&folder, &["-c", "odd.raw", "odd.raw", "image.qcow2"], Layout::Any);
}

#[test]
fn what_the_backing_file_has_is_left_out() {
    let folder = images();
    for backing in [["-B", "image.qcow2", "-F", "qcow2"], ["-B", "odd.raw", "-F", "raw"]] {
        for options in [&[][..], &["-c"], &["-S", "0"], &["-o", "cluster_size=4k"]] {
            for source in ["top.qcow2", "sub.qcow2", "image.raw", "packed.qcow2"] {
                same(&folder, &[&backing[..], options, &[source]].concat(), Layout::Any);
            }
        }
    }
    let info = folder.qemu_img(&["info", "ours.qcow2"]);
    assert!(info.contains("backing file: odd.raw"), "{info}");
    same(&folder, &["-o", "backing_file=image.qcow2,backing_fmt=qcow2", "top.qcow2"], Layout::Same);
}

#[test]
fn image_that_is_there_is_written_into() {
    let folder = images();
    for options in [&["-n"][..], &["-n", "-S", "0"], &["-n", "-W"]] {
        for name in ["ours.qcow2", "theirs.qcow2"] {
            folder.create(&[], name, "20M");
            folder.qemu_io(name, &["write -P 0x55 0 20M"]);
        }
        same(&folder, &[options, &["image.qcow2"]].concat(), Layout::Any);
    }
    for name in ["ours.qcow2", "theirs.qcow2"] {
        folder.create(&["-b", "image.qcow2", "-F", "qcow2"], name, "12M");
    }
    same(&folder, &["-n", "-B", "image.qcow2", "top.qcow2"], Layout::Any);
    for name in ["ours.qcow2", "theirs.qcow2"] {
        folder.create(&[], name, "12M");
    }
    same(&folder, &["-n", "--target-is-zero", "top.qcow2"], Layout::Same);
    folder.create(&[], "short.qcow2", "1M");
    folder.same(&["convert", "-n", "-O", "qcow2", "image.qcow2", "short.qcow2"]);
    folder.same(&["convert", "-n", "-O", "qcow2", "image.qcow2", "gone.qcow2"]);
}

#[test]
fn what_cannot_be_is_refused_in_the_same_words() {
    let folder = images();
    for arguments in [
        &["-B", "image.qcow2", "top.qcow2"][..],
        &["-F", "qcow2", "top.qcow2"],
        &["-o", "backing_file=image.qcow2", "top.qcow2"],
        &["-B", "gone.qcow2", "-F", "foo", "top.qcow2"],
        &["-B", "image.qcow2", "-F", "qcow2", "odd.raw", "odd.raw"],
        &["-c", "-o", "preallocation=metadata", "odd.raw"],
        &["-c", "-o", "encryption=on", "odd.raw"],
        &["-o", "foo=1", "odd.raw"],
        &["-o", "cluster_size=3", "odd.raw"],
        &["-o", "cluster_size=x", "odd.raw"],
        &["-o", "compat=9", "odd.raw"],
        &["-c", "-o", "data_file=data.raw", "odd.raw"],
        &["--bitmaps", "odd.raw"],
        &["--bitmaps", "top.qcow2", "top.qcow2"],
        &["-t", "foo", "odd.raw"],
        &["-T", "foo", "odd.raw"],
    ] {
        let arguments = [&["convert", "-O", "qcow2"], arguments, &["out.qcow2"]].concat();
        folder.same(&arguments);
    }
    folder.same(&["convert", "-O", "qcow2", "odd.raw", "nowhere/out.qcow2"]);
    // A backing file that is not there has the engine's words, as in every verb.
    folder.same_but_for_errors(&[
        "convert",
        "-O",
        "qcow2",
        "-B",
        "gone.qcow2",
        "-F",
        "qcow2",
        "top.qcow2",
        "out.qcow2",
    ]);
    folder.same(&["convert", "-O", "qcow2", "odd.raw", "odd.raw"]);
    folder.same(&["convert", "-O", "foo", "odd.raw", "out.qcow2"]);
    folder.same(&["convert", "-c", "odd.raw", "out.raw"]);
    folder.same(&["convert", "-O", "qcow2", "-o", "help"]);
    folder.same(&["convert", "-O", "qcow2", "-o", "help", "a", "b"]);
    folder.same(&["convert", "-o", "help", "a", "b"]);
}

#[test]
fn backing_file_elsewhere_is_opened_if_the_command_line_names_it() {
    let folder = images();
    std::fs::create_dir(folder.path("elsewhere")).unwrap();
    folder.cowshed_prints(&[
        "convert",
        "-O",
        "qcow2",
        "-B",
        "../image.qcow2",
        "-F",
        "qcow2",
        "--allow",
        ".",
        "top.qcow2",
        "elsewhere/out.qcow2",
    ]);
    folder.qemu_img(&["compare", "-q", "top.qcow2", "elsewhere/out.qcow2"]);
}
