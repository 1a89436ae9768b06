//! Sizes on the command line are read as `qemu-img` reads them, and its words answer a wrong one.

use crate::Folder;

#[test]
fn sizes_mean_what_they_mean_to_qemu_img() {
    let folder = Folder::new();
    folder.qemu_img(&["create", "-q", "-f", "qcow2", "a.qcow2", "1M"]);
    for size in [
        "1k",
        "1K",
        "1.5k",
        "1.5",
        "0x10",
        "0X10",
        "0x10k",
        "0x",
        "1e",
        "1E",
        "0.1k",
        "1.k",
        ".5k",
        " 5",
        "5 ",
        "+5",
        "1kb",
        "1b",
        "1B",
        "9223372036854775807",
        "9223372036854775808",
        "8E",
        "7.9999E",
        "1e3",
        "",
        "0.000000000001k",
        "18446744073709551616",
        "0x1.8k",
        "010",
        "1.5b",
        "1.0",
        "1.0b",
        "0.00k",
        "1kk",
        "16E",
        "-5",
        "-0",
        "abc",
        "1,5k",
        "0.0005k",
        "0.00049k",
        "0.3M",
        "0.7k",
        "--",
        "-",
        ".",
        "k",
    ] {
        folder.same(&["map", "--output=json", &format!("--start-offset={size}"), "a.qcow2"]);
        folder.same(&["map", "--output=json", "-l", size, "a.qcow2"]);
    }
}
