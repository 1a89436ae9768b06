//! Over the matrix of images: `info`, `map`, `check`, `compare` and `convert` agree with QEMU on each.

use crate::Folder;
use crate::support;

#[test]
fn whole_matrix_agrees_with_qemu_img() {
    support::for_each_image(|image| {
        let folder = Folder::at(image.dir.path());
        let name = image.name();
        for output in ["--output=human", "--output=json"] {
            folder.same(&["info", output, name]);
            folder.same_but_for_errors(&["map", output, name]);
            folder.same(&["check", output, name]);
        }
        folder.write("reference.raw", &image.reference);
        folder.same(&["compare", name, "reference.raw"]);
        folder.cowshed_prints(&["convert", name, "ours.raw"]);
        assert!(
            folder.read("ours.raw") == image.reference,
            "{}: convert gives other bytes",
            image.description
        );
        for options in [&[][..], &["-c", "-W"]] {
            let arguments = [&["convert", "-O", "qcow2"], options, &[name, "copy.qcow2"]].concat();
            folder.cowshed_prints(&arguments);
            folder.qemu_img(&["check", "-q", "copy.qcow2"]);
            folder.qemu_img(&["compare", "-q", name, "copy.qcow2"]);
        }
        for snapshot in &image.snapshots {
            folder.cowshed_prints(&["convert", "-l", &snapshot.name, name, "ours.raw"]);
            assert!(
                folder.read("ours.raw") == snapshot.reference,
                "{}: {}",
                image.description,
                snapshot.name
            );
        }
    });
}
