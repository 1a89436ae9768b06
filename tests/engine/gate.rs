//! The fear: an image from a stranger names a file of ours, and looking at the image shows or opens it.
//!
//! Each test is a name that an image could hold, and what the gate of the command makes of it.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use cowshed::Error;
use cowshed::image::{Answer, Format, Gate, Reference, ReferenceKind, Source};
use cowshed::rt::{DiskStorage, FolderGate};
use cowshed::storage::{Buf, Storage};
use futures::executor::block_on;

/// A folder with an image in it, files around it, and a secret outside.
struct Scene {
    _root: tempfile::TempDir,
    folder: PathBuf,
    outside: PathBuf,
    image: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        // The folder of the system's temporary files may be a link.
        let real = root.path().canonicalize().unwrap();
        let (folder, outside) = (real.join("images"), real.join("outside"));
        std::fs::create_dir_all(folder.join("sub")).unwrap();
        std::fs::create_dir_all(&outside).unwrap();
        let write = |path: PathBuf, bytes: &[u8]| std::fs::write(path, bytes).unwrap();
        write(folder.join("base"), b"base");
        write(folder.join("sub/base"), b"sub/base");
        write(folder.join("header"), b"QFI\xfb\0\0\0\x03");
        write(outside.join("secret"), b"secret");
        symlink(outside.join("secret"), folder.join("link")).unwrap();
        symlink(&outside, folder.join("way")).unwrap();
        symlink("base", folder.join("inner")).unwrap();
        std::fs::hard_link(outside.join("secret"), folder.join("hard")).unwrap();
        let made = std::process::Command::new("mkfifo").arg(folder.join("fifo")).status().unwrap();
        assert!(made.success());
        let image = folder.join("top.qcow2");
        Self { _root: root, folder, outside, image }
    }

    fn gate(&self) -> FolderGate {
        FolderGate::new(&self.image).unwrap()
    }

    fn ask(&self, gate: &FolderGate, name: &str) -> Result<Source<DiskStorage>, Error> {
        ask(gate, &backing(&self.image, name, Some("raw")))
    }

    /// Refused, with the name and the reason in the message.
    #[track_caller]
    fn assert_refused(&self, gate: &FolderGate, name: &str, reason: &str) {
        let error = self.ask(gate, name).expect_err(name);
        assert!(matches!(error, Error::Refused { .. }), "{name}: {error}");
        let text = error.to_string();
        assert!(text.starts_with(&format!("backing file {name:?} refused: ")), "{text}");
        assert!(text.contains(reason), "{text}");
    }
}

fn backing<'a>(from: &'a Path, name: &'a str, format: Option<&'a str>) -> Reference<'a> {
    Reference {
        kind: ReferenceKind::BackingFile,
        name: name.as_bytes(),
        format: format.map(str::as_bytes),
        from,
        depth: 1,
    }
}

fn ask(gate: &FolderGate, reference: &Reference<'_>) -> Result<Source<DiskStorage>, Error> {
    match block_on(gate.open(reference))? {
        Answer::Open(source) => Ok(source),
        Answer::Zeros => panic!("the gate opens or refuses"),
    }
}

fn content(source: &Source<DiskStorage>) -> String {
    block_on(async {
        let len = Storage::len(&source.storage).await.unwrap();
        let buf = Buf::zeroed(usize::try_from(len).unwrap());
        let bytes = Storage::read_at(&source.storage, buf, 0).await.unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

#[test]
fn files_in_the_folder_and_below_are_opened() {
    let scene = Scene::new();
    let gate = scene.gate();
    for name in ["base", "./base", "sub/../base", "sub//base", "sub/base"] {
        let source = scene.ask(&gate, name).expect(name);
        assert_eq!(source.location, scene.folder.join(name), "as QEMU combines the names");
        assert_eq!(
            content(&source),
            name.replace("./", "").replace("sub/.", "").replace("//", "/")
        );
    }
    let absolute = scene.folder.join("base");
    let source = scene.ask(&gate, absolute.to_str().unwrap()).unwrap();
    assert_eq!((content(&source).as_str(), &source.location), ("base", &absolute));
}

#[test]
fn names_of_a_lower_layer_are_relative_to_its_own_folder() {
    let scene = Scene::new();
    let lower = scene.folder.join("sub/lower.qcow2");
    let source = ask(&scene.gate(), &backing(&lower, "base", Some("raw"))).unwrap();
    assert_eq!(content(&source), "sub/base");
    let source = ask(&scene.gate(), &backing(&lower, "../base", Some("raw"))).unwrap();
    assert_eq!(content(&source), "base");
}

#[test]
fn files_outside_are_refused_and_the_way_to_approve_is_named() {
    let scene = Scene::new();
    let gate = scene.gate();
    let secret = scene.outside.join("secret");
    let secret = secret.to_str().unwrap();
    let advice = format!("--allow {secret}");
    scene.assert_refused(&gate, secret, &advice);
    scene.assert_refused(&gate, "../outside/secret", &advice);
    scene.assert_refused(&gate, "sub/../../outside/secret", &advice);
    scene.assert_refused(&gate, "/etc/passwd", "--allow /etc/passwd");
    scene.assert_refused(&gate, "../../../../../../../../../etc/passwd", "--allow /etc/passwd");
    // Not even whether it exists is told.
    scene.assert_refused(&gate, "../outside/nothing", "--allow ");
}

#[test]
fn symbolic_links_are_not_followed() {
    let scene = Scene::new();
    let gate = scene.gate();
    scene.assert_refused(&gate, "link", "symbolic link");
    scene.assert_refused(&gate, "way/secret", "symbolic link");
    scene.assert_refused(&gate, "inner", "symbolic link");
    scene.assert_refused(&gate, "/proc/self/cwd/Cargo.toml", "--allow");
}

#[test]
fn hard_link_is_the_file_it_is() {
    let scene = Scene::new();
    assert_eq!(content(&scene.ask(&scene.gate(), "hard").unwrap()), "secret");
}

#[test]
fn approved_file_is_opened_and_no_other() {
    let scene = Scene::new();
    let gate = scene.gate().allow(scene.outside.join("secret")).unwrap();
    std::fs::write(scene.outside.join("other"), b"other").unwrap();
    let secret = scene.outside.join("secret");
    for name in [secret.to_str().unwrap(), "../outside/secret", "../images/../outside/secret"] {
        assert_eq!(content(&scene.ask(&gate, name).expect(name)), "secret");
    }
    scene.assert_refused(&gate, "../outside/other", "--allow");
    scene.assert_refused(&gate, "link", "symbolic link");
}

#[test]
fn approved_folder_is_opened_and_what_is_below() {
    let scene = Scene::new();
    std::fs::create_dir(scene.outside.join("deep")).unwrap();
    std::fs::write(scene.outside.join("deep/file"), b"deep").unwrap();
    let gate = scene.gate().allow(&scene.outside).unwrap();
    assert_eq!(content(&scene.ask(&gate, "../outside/secret").unwrap()), "secret");
    assert_eq!(content(&scene.ask(&gate, "../outside/deep/file").unwrap()), "deep");
    scene.assert_refused(&gate, "../outside/../elsewhere", "--allow");
}

#[test]
fn link_that_was_approved_is_followed() {
    let scene = Scene::new();
    let gate = scene.gate().allow(scene.folder.join("link")).unwrap();
    assert_eq!(content(&scene.ask(&gate, "link").unwrap()), "secret");
    let gate = scene.gate().allow(scene.folder.join("way")).unwrap();
    assert_eq!(content(&scene.ask(&gate, "way/secret").unwrap()), "secret");
}

#[test]
fn image_in_a_linked_folder_finds_its_neighbours() {
    let scene = Scene::new();
    let linked = scene.outside.join("linked");
    symlink(&scene.folder, &linked).unwrap();
    let image = linked.join("top.qcow2");
    let gate = FolderGate::new(&image).unwrap();
    let source = ask(&gate, &backing(&image, "base", Some("raw"))).unwrap();
    assert_eq!(content(&source), "base");
    let absolute = linked.join("base");
    let name = absolute.to_str().unwrap();
    assert_eq!(content(&ask(&gate, &backing(&image, name, Some("raw"))).unwrap()), "base");
}

#[test]
fn only_plain_files_are_opened_in_every_mode() {
    let scene = Scene::new();
    let everything = scene.gate().allow("/").unwrap();
    for gate in [everything, FolderGate::plain_files()] {
        scene.assert_refused(&gate, "fifo", "is not a regular file");
        scene.assert_refused(&gate, "sub", "is not a regular file");
        scene.assert_refused(&gate, "sub/", "is that of a folder");
        scene.assert_refused(&gate, "/dev/zero", "is not a regular file");
        scene.assert_refused(&gate, "/dev/null", "is not a regular file");
    }
}

#[test]
fn names_with_a_protocol_are_refused_in_every_mode() {
    let scene = Scene::new();
    let base = scene.folder.join("base");
    let base = base.to_str().unwrap();
    for gate in [scene.gate(), FolderGate::plain_files()] {
        for name in [
            r#"json:{"driver":"raw","file":{"driver":"file","filename":"/etc/passwd"}}"#,
            "json:{}",
            "nbd:unix:/tmp/socket",
            "nbd://localhost:10809",
            "http://example.com/x",
            "ssh://host/x",
            "fat:rw:/etc",
            "fd:0",
            "host_device:/dev/sda",
            "x:y",
            &format!("file:{base}"),
        ] {
            scene.assert_refused(&gate, name, "protocol");
        }
        scene.assert_refused(&gate, "base\0.raw", "zero byte");
        scene.assert_refused(&gate, "", "does not say which file");
    }
    std::fs::write(scene.folder.join("a:b"), b"colon").unwrap();
    assert_eq!(content(&scene.ask(&scene.gate(), "./a:b").unwrap()), "colon");
}

#[test]
fn plain_files_are_opened_anywhere_under_the_name_of_qemu_img() {
    let scene = Scene::new();
    let gate = FolderGate::plain_files();
    for name in ["../outside/secret", "link", "way/secret", "hard"] {
        assert_eq!(content(&scene.ask(&gate, name).expect(name)), "secret");
    }
}

#[test]
fn missing_file_is_said_to_be_missing() {
    let scene = Scene::new();
    for gate in [scene.gate(), FolderGate::plain_files()] {
        let error = scene.ask(&gate, "nothing").unwrap_err();
        let Error::Open { path, source } = error else { panic!("{error}") };
        assert_eq!(path, scene.folder.join("nothing"));
        assert_eq!(source.kind(), std::io::ErrorKind::NotFound);
    }
}

#[test]
fn format_is_the_stated_one_and_guessed_only_if_none_is() {
    let scene = Scene::new();
    let format = |kind, name: &str, format: Option<&str>| {
        let reference = Reference { kind, ..backing(&scene.image, name, format) };
        ask(&scene.gate(), &reference).map(|source| source.format)
    };
    let backing_file = ReferenceKind::BackingFile;
    assert_eq!(format(backing_file, "header", Some("raw")).unwrap(), Format::Raw);
    assert_eq!(format(backing_file, "base", Some("qcow2")).unwrap(), Format::Qcow2);
    assert_eq!(format(backing_file, "header", None).unwrap(), Format::Qcow2);
    assert_eq!(format(backing_file, "base", None).unwrap(), Format::Raw);
    assert_eq!(format(ReferenceKind::DataFile, "header", None).unwrap(), Format::Raw);
    let error = format(backing_file, "base", Some("vmdk")).unwrap_err();
    assert!(error.to_string().contains("Unknown driver 'vmdk'"), "{error}");
}

#[test]
fn same_file_is_known_again_by_its_identity() {
    let scene = Scene::new();
    let gate = FolderGate::plain_files();
    let identity = |name| scene.ask(&gate, name).unwrap().identity.unwrap();
    assert_eq!(identity("hard"), identity("../outside/secret"));
    assert_ne!(identity("hard"), identity("base"));
}
