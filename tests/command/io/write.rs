//! What writes, discards and resizes: both programs leave images that hold the same and that `qemu-img check` finds whole.

use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use super::{Pair, lines, run};
use crate::{Folder, qemu, text};

impl Pair {
    /// Runs scripts of commands on an image of both, and holds the images against each other after each.
    #[track_caller]
    fn same_scripts(&self, options: &[&str], image: &str, scripts: &[&[&str]]) {
        for script in scripts {
            self.same_commands(&[options, &[image]].concat(), script);
            self.same_images(image, &format!("{script:?}"));
        }
    }

    /// Asserts that an image holds the same in both folders, and is whole.
    #[track_caller]
    fn same_images(&self, image: &str, after: &str) {
        let theirs = self.theirs.path(image);
        let format = if image.ends_with(".raw") { "raw" } else { "qcow2" };
        let compare = ["compare", "-f", format, "-F", format, image];
        let compared = self.ours.run(qemu::qemu_img().args(compare).arg(&theirs));
        assert!(
            compared.status.success(),
            "{image} {after}: {}{}",
            text(&compared.stdout),
            text(&compared.stderr)
        );
        if format == "qcow2" {
            let check = |folder: &Folder| {
                folder.run(qemu::qemu_img().args(["check", "-f", "qcow2", image]))
            };
            let (ours, theirs) = (check(&self.ours), check(&self.theirs));
            let shown = format!("{image} {after}: {}{}", text(&ours.stdout), text(&ours.stderr));
            assert_eq!(ours.status.code(), theirs.status.code(), "{shown}");
            let first = |output: &[u8]| text(output).lines().next().map(str::to_owned);
            assert_eq!(first(&ours.stdout), first(&theirs.stdout), "{shown}");
        }
        // What is allocated is the same too.
        let map = |folder: &Folder| folder.qemu_io(image, &["map"]);
        assert_eq!(map(&self.ours), map(&self.theirs), "map of {image} {after} (ours left)");
    }
}

/// Scripts for an image of a MiB or more.
const SCRIPTS: &[&[&str]] = &[
    &["write 0 64k", "read -P 0xcd 0 64k", "write -P 3 1 5", "read -v 0 16", "map"],
    &["write -P 7 65000 2k", "read -P 7 65000 2k", "read -P 0 67048 1k", "alloc 0 1M"],
    &["writev -P 9 128k 1k 2k 3k", "read -P 9 128k 6k", "writev 0 0", "write 0 0"],
    &["write -z 60k 8k", "read -P 0 60k 8k", "write -zu 0 128k", "read -P 0 0 128k", "map"],
    &[
        "write -P 5 0 256k",
        "discard 64k 64k",
        "discard 1 5",
        "read -P 5 0 64k",
        "read -P 5 128k 128k",
        "map",
    ],
    &[
        "write -P 5 256k 256k",
        "discard 200k 200k",
        "read -P 5 400k 112k",
        "d -q 0 1M",
        "alloc 0 1M",
        "discard -C 0 1",
    ],
    &["write -q 1 1", "write -C 1 1", "write -fq 2 2", "write -p 3 3", "flush", "writev -fC 5 5"],
    &["aio_write -P 2 64k 64k", "aio_flush", "read -P 2 64k 64k"],
    // Zeros on zeros are told by the tables.
    &["write -z 700001 3k", "write -zu 710000 300", "map", "discard 640k 128k", "map"],
    &["aio_write -P 3 512k 1k 1k", "close", "length"],
    &["aio_write -z 512k 64k", "aio_flush", "read -P 0 512k 64k", "aio_write -zu 0 64k"],
    &["aio_write -qP 8 700k 3", "aio_write -i 0 1", "aio_flush", "read -P 8 700k 3"],
    &["write -P 4 960k 64k", "read -P 4 960k 64k", "write -P 6 1048575 1", "read -P 6 1048575 1"],
    &["write -s pattern 1000 3000", "read -v 1000 40", "write -s pattern 5 3"],
];

/// Commands that fail and change nothing.
const WRONG: &[&[&str]] = &[
    &[
        "write 0 8G",
        "writev 7E 1",
        "write -z 1P 1k",
        "discard 1P 1k",
        "aio_write 1P 1k",
        "write 1P 0",
    ],
    &[
        "write -bz 0 64k",
        "write -bf 0 1k",
        "write -n 0 1k",
        "write -u 0 1k",
        "write -z -P 1 0 1k",
        "write -P 1 -s pattern 0 1k",
        "write -c 1 512",
        "write -c 0 511",
        "write -zr 0 1k",
        "write -s none 0 1k",
        "write -s /dev/null 0 1k",
        "write 0 3G",
        "writev 0 1k 3G",
        "writev 0 1G 1G",
        "writev 0",
        "write 0 1 2",
        "write -x 0 1",
        "write -P x 0 1",
        "write x 1",
        "write 0 x",
    ],
    &[
        "aio_write 0",
        "aio_write -x 0 1",
        "aio_write -z 0 1 2",
        "aio_write -u 0 1",
        "aio_write -zr 0 1",
        "aio_write x 1",
        "aio_write -z 0 x",
    ],
    &["discard 0", "discard 0 1 2", "discard x 1", "discard 0 x", "discard -x 0 1", "discard 0 3G"],
    &[
        "truncate x",
        "truncate -m foo 1M",
        "truncate -m off x",
        "truncate -x 1M",
        "truncate 1 2 3 4",
        "truncate 8E",
    ],
];

fn pair(options: &'static [&'static str]) -> Pair {
    Pair::new(|folder| {
        folder.create(options, "a.qcow2", "4M");
        folder.write("pattern", b"abcdefg");
    })
}

#[test]
fn raw_images_are_written_to() {
    let pair = Pair::new(|folder| {
        folder.write("a.raw", vec![0; 1 << 20]);
        folder.write("pattern", b"abcdefg");
    });
    pair.same_scripts(&["-f", "raw"], "a.raw", SCRIPTS);
    pair.same_scripts(&["-f", "raw"], "a.raw", WRONG);
    pair.same_scripts(
        &["-f", "raw"],
        "a.raw",
        &[
            &["write -zn 0 1k", "write -zn 1 64k", "write -c 0 64k", "write -b 0 512"],
            &["truncate 2M", "length", "map", "write 2047k 1k", "truncate 1M", "length"],
            &[
                "truncate -m full 3M",
                "length",
                "truncate -m falloc 4M",
                "length",
                "truncate -m metadata 5M",
                "truncate -m full 1M",
            ],
            &["truncate 1000", "length", "write 500 510", "read 995 10"],
        ],
    );
}

#[test]
fn qcow2_images_are_written_to() {
    for options in [
        &[][..],
        &["-o", "compat=0.10"],
        &["-o", "cluster_size=4k"],
        &["-o", "cluster_size=512"],
        &["-o", "cluster_size=2M"],
        &["-o", "extended_l2=on"],
        &["-o", "refcount_bits=1"],
        &["-o", "refcount_bits=64"],
        &["-o", "lazy_refcounts=on"],
        &["-o", "preallocation=metadata"],
    ] {
        let pair = pair(options);
        pair.same_scripts(&[], "a.qcow2", SCRIPTS);
        pair.same_scripts(&[], "a.qcow2", WRONG);
    }
}

#[test]
fn cache_modes_make_no_difference_to_what_is_written() {
    for mode in ["none", "directsync", "writeback", "writethrough", "unsafe"] {
        pair(&[]).same_scripts(&["-t", mode], "a.qcow2", SCRIPTS);
    }
}

#[test]
fn copy_on_read_makes_the_images_own_what_reads_find_below_it() {
    let pair = |options: &str| {
        Pair::new(|folder| {
            folder.create(&[], "base.qcow2", "1M");
            folder.qemu_io("base.qcow2", &["write -P 17 0 100k", "write -P 18 500k 1k"]);
            folder.create(&["-b", "base.qcow2", "-F", "qcow2", "-o", options], "a.qcow2", "1000k");
            folder.create(&["-f", "raw"], "a.raw", "1M");
        })
    };
    for options in ["cluster_size=64k", "cluster_size=4k", "extended_l2=on"] {
        let pair = pair(options);
        let commands = [
            "read -P 17 5k 1k",
            "map",
            "aio_read 90k 20k",
            "aio_flush",
            "map",
            "readv 498k 1k 5k",
            "map",
            "write -P 19 610k 1k",
            "read 600k 30k",
            "map",
            "read -q 990k 20k",
            "read 995k 5k",
            "map",
            "reopen -r",
            "read -P 18 500k 1k",
        ];
        pair.same_commands(&["-C", "a.qcow2"], &commands);
        pair.same_commands(&["-r", "a.qcow2"], &["map", "read -P 17 0 100k"]);
        pair.same_images("a.qcow2", "copy on read");
        pair.same_commands(&["-C", "-s", "a.qcow2"], &["map", "read 200k 1k", "map"]);
        pair.same_commands(&["-C", "-r", "a.qcow2"], &["length"]);
        pair.same_commands(&[], &["open -C a.qcow2", "read 300k 1k", "map"]);
        pair.same_commands(&["-C", "-f", "raw", "a.raw"], &["read 0 64k", "map"]);
    }
}

#[test]
fn overlays_are_written_to_and_their_backing_files_are_not() {
    let pair = Pair::new(|folder| {
        folder.create(&[], "base.qcow2", "1M");
        folder.qemu_io("base.qcow2", &["write -P 17 0 1M"]);
        folder.create(&["-b", "base.qcow2", "-F", "qcow2"], "a.qcow2", "3M");
        folder.write("pattern", b"abcdefg");
    });
    let base = pair.ours.read("base.qcow2");
    pair.same_scripts(&[], "a.qcow2", SCRIPTS);
    pair.same_scripts(
        &[],
        "a.qcow2",
        &[&["truncate 4M", "read -P 0 2560k 512k", "map"], &["truncate 2M", "map"]],
    );
    // What the backing file has behind an old end must not be seen. QEMU makes more of it zeros than that.
    pair.same_commands(&["a.qcow2"], &["truncate 512k", "truncate 4M", "read -P 0 512k 3584k"]);
    assert!(pair.ours.read("base.qcow2") == base);
}

#[test]
fn data_files_are_written_to() {
    let pair = Pair::new(|folder| {
        folder.create(&["-o", "data_file=data.raw"], "a.qcow2", "4M");
        folder.write("pattern", b"abcdefg");
    });
    pair.same_scripts(&[], "a.qcow2", SCRIPTS);
}

#[test]
fn compressed_clusters_are_written() {
    for options in [&[][..], &["-o", "compression_type=zstd"], &["-o", "cluster_size=4k"]] {
        let pair = pair(options);
        pair.same_scripts(
            &[],
            "a.qcow2",
            &[
                &[
                    "write -c -P 3 0 64k",
                    "read -P 3 0 64k",
                    "write -c 64k 256k",
                    "map",
                    "alloc 0 1M",
                ],
                &["write -P 8 1k 1k", "read -P 3 0 1k", "read -P 8 1k 1k", "read -P 3 2k 62k"],
                &[
                    "write -c 0 64k",
                    "write -c 2k 1k",
                    "write -c 1M 1k",
                    "write -c 0 0",
                    "write -c 1M 1000",
                ],
                &[
                    "write -c -s pattern 2M 64k",
                    "write -c 4032k 64k",
                    "discard 64k 64k",
                    "write -z 128k 64k",
                ],
            ],
        );
    }
}

#[test]
fn zeros_without_fallback_are_metadata_only() {
    let scripts: &[&[&str]] = &[
        &["write -zn 0 1k", "write -zn 0 64k", "write -zn 1M 1M", "write -znu 64k 64k", "map"],
        &[
            "write 0 128k",
            "write -zn 0 1k",
            "write -zn 1k 64k",
            "write -zn 64k 64k",
            "write -znu 0 3G",
            "read -P 0xcd 0 64k",
        ],
    ];
    pair(&[]).same_scripts(&[], "a.qcow2", scripts);
    pair(&["-o", "compat=0.10"]).same_scripts(&[], "a.qcow2", scripts);
}

#[test]
fn discards_are_ignored_if_asked_for() {
    for options in [&["-d", "ignore"][..], &["-d", "off"], &["-d", "unmap"]] {
        pair(&[]).same_scripts(
            options,
            "a.qcow2",
            &[&[
                "write 0 256k",
                "discard 0 64k",
                "map",
                "write -zu 64k 64k",
                "map",
                "discard 8M 1",
            ]],
        );
    }
}

#[test]
fn sizes_change() {
    for options in
        [&[][..], &["-o", "compat=0.10"], &["-o", "extended_l2=on"], &["-o", "cluster_size=4k"]]
    {
        let pair = pair(options);
        pair.same_scripts(
            &[],
            "a.qcow2",
            &[
                &[
                    "write 0 64k",
                    "write 3M 64k",
                    "truncate 8M",
                    "length",
                    "map",
                    "write 7M 64k",
                    "read -P 0 4M 1M",
                ],
                &[
                    "truncate 1M",
                    "length",
                    "map",
                    "truncate 2M",
                    "read -P 0 1M 1M",
                    "read -P 0xcd 0 64k",
                ],
                &[
                    "truncate -m metadata 3M",
                    "length",
                    "truncate -m full 4M",
                    "truncate -m falloc 5M",
                    "read -P 0 2M 3M",
                ],
                &["truncate -m falloc 1M", "truncate 1000", "length"],
            ],
        );
    }
}

#[test]
fn options_of_drivers_take_effect() {
    for options in [
        "lazy-refcounts=on",
        "l2-cache-size=1k,l2-cache-entry-size=512,refcount-cache-size=1",
        "cache-clean-interval=1",
        "pass-discard-request=off",
        "discard-no-unref=on",
        "overlap-check=all",
        "overlap-check=none",
        "detect-zeroes=on",
        "detect-zeroes=unmap,discard=unmap",
        "discard=ignore",
    ] {
        let pair = pair(&[]);
        let open = format!("open -o {options} a.qcow2");
        pair.same_commands(
            &[],
            &[
                &open,
                "write 0 256k",
                "write -P 0 64k 64k",
                "discard 128k 64k",
                "map",
                "read -P 0xcd 192k 64k",
            ],
        );
        pair.same_images("a.qcow2", options);
        let reopen = format!("reopen -o {options}");
        pair.same_commands(
            &["a.qcow2"],
            &[
                "write 1M 64k",
                &reopen,
                "write -P 3 1M 256k",
                "write -P 0 1088k 64k",
                "discard 1M 64k",
                "map",
            ],
        );
        pair.same_images("a.qcow2", options);
    }
    let pair = Pair::new(|folder| folder.create(&["-o", "compat=0.10"], "v2.qcow2", "1M"));
    pair.same_commands(
        &["v2.qcow2"],
        &["reopen -o lazy-refcounts=on", "reopen -o discard-no-unref=on", "write 0 64k"],
    );
    pair.same_images("v2.qcow2", "options of version 3");
}

#[test]
fn images_change_between_reading_and_writing() {
    let pair = pair(&[]);
    pair.same_commands(
        &["a.qcow2"],
        &[
            "write 0 64k",
            "reopen -r",
            "write 0 1k",
            "read -P 0xcd 0 64k",
            "reopen -w",
            "write -P 1 0 1k",
            "reopen -c none",
            "write 5k 5k",
            "reopen -o read-only=on",
            "length",
            "close",
            "open a.qcow2",
            "write 64k 1k",
        ],
    );
    pair.same_images("a.qcow2", "reopening");
}

#[test]
fn guessed_raw_images_stay_raw() {
    let pair = Pair::new(|folder| {
        folder.write("a.raw", [0; 4096]);
        folder.write("pattern", b"QFI\xfb\0\0\0\x03");
    });
    pair.same_commands(
        &["a.raw"],
        &[
            "write -s pattern 0 512",
            "write -s pattern 0 1k",
            "write -s pattern 0 100",
            "write 0 5",
            "write 1k 5",
            "aio_write 0 1k",
            "aio_flush",
            "write -s pattern 512 512",
        ],
    );
    pair.same_images("a.raw", "restricted writes");
    pair.same_commands(&["-f", "raw", "a.raw"], &["write -s pattern 0 512"]);
}

#[test]
fn background_writes_go_on_together() {
    for options in [&[][..], &["-o", "extended_l2=on"], &["-o", "cluster_size=4k"]] {
        let pair = pair(options);
        // Neighbours, and several in one cluster; in the order in which they end.
        let writes: Vec<String> = (0..40)
            .flat_map(|i| ["-c".to_owned(), format!("aio_write -P {} {} 20k", i + 1, i * 20480)])
            .collect();
        let arguments: Vec<&str> =
            ["a.qcow2"].into_iter().chain(writes.iter().map(String::as_str)).collect();
        let theirs = run(&pair.theirs, qemu::qemu_io().args(&arguments), "");
        let mut command = Command::new(env!("CARGO_BIN_EXE_cowshed"));
        let ours = run(&pair.ours, command.arg0("qemu-io").args(&arguments), "");
        let sorted = |output: &[u8]| {
            let mut lines = lines(output);
            lines.sort();
            lines
        };
        assert_eq!(sorted(&ours.stdout), sorted(&theirs.stdout));
        assert!(ours.status.success() && ours.stderr.is_empty());
        pair.same_images("a.qcow2", "background writes");
    }
}

#[test]
fn images_in_use_are_not_written_to() {
    for (holder_is_ours, options) in
        [(false, &["-r"][..]), (false, &[]), (true, &["-r"]), (true, &[])]
    {
        let pair = pair(&[]);
        let mut holders = [&pair.ours, &pair.theirs].map(|folder| {
            let mut command = match holder_is_ours {
                true => Command::new(env!("CARGO_BIN_EXE_cowshed")),
                false => qemu::qemu_io(),
            };
            command.arg0("qemu-io").current_dir(&folder.path).args(options).arg("a.qcow2");
            let mut holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            // It has opened the image when it asks for a command.
            let mut prompt = [0; 9];
            holder.stdout.as_mut().unwrap().read_exact(&mut prompt).unwrap();
            assert_eq!(&prompt, b"qemu-io> ");
            holder
        });
        pair.same_commands(&["a.qcow2"], &["length"]);
        pair.same_commands(&["-r", "a.qcow2"], &["length"]);
        pair.same_commands(&["-rU", "a.qcow2"], &["length"]);
        for holder in &mut holders {
            drop(holder.stdin.take());
            assert!(holder.wait().unwrap().success());
        }
    }
}

#[test]
fn zeros_over_all_that_a_cluster_shows_of_its_backing_file_are_metadata_only() {
    let pair = Pair::new(|folder| {
        folder.create(&["-o", "cluster_size=512"], "base.qcow2", "1M");
        folder.qemu_io("base.qcow2", &["write -P 17 65k 1k", "write -P 17 129k 3k"]);
        folder.create(
            &["-b", "base.qcow2", "-F", "qcow2", "-o", "cluster_size=4k"],
            "a.qcow2",
            "1M",
        );
    });
    let zeros =
        ["write -z 65k 2k", "write -z 128k 3k", "read -P 0 64k 67k", "read -P 17 131k 1k", "map"];
    pair.same_commands(&["a.qcow2"], &zeros);
    pair.same_images("a.qcow2", "zeros over data of the backing file");
}

#[test]
fn refcount_block_leaves_no_hole_in_the_file() {
    let options = ["-o", "cluster_size=512,refcount_bits=16"];
    let pair = Pair::new(|folder| folder.create(&options, "a.qcow2", "1M"));
    let lens = |pair: &Pair| [&pair.ours, &pair.theirs].map(|it| it.read("a.qcow2").len());
    // The first refcount block tells of 256 clusters; the next ones come one by one and in the middle of a run.
    for write in ["write 0 124k", "write 124k 512", "write 125k 120k", "write 300k 300k"] {
        pair.same_commands(&["a.qcow2"], &[write]);
        let [ours, theirs] = lens(&pair);
        assert_eq!(ours, theirs, "{write}");
    }
    pair.same_images("a.qcow2", "after all");
}
