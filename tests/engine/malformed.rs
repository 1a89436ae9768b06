//! Malformed images, one wrong thing each, over every structure: what is said of it, by code, structure, place and text.
//! And images that look wrong and are not, which must be read.
//!
//! Each case patches a small image that `qemu-img` made. Expected values come from the specification and from the
//! form of messages that the project promises (subject, place, value, broken rule); reads of good images are held
//! against `qemu-img convert`.

mod bases;
mod good;
mod header;
mod tables;

use bases::{Base, Bytes, bases};
use cowshed::image::check::{CheckOptions, Finding, check_storage};
use cowshed::image::{
    Image, OpenOptions, References, RefuseAll, SnapshotSelector, Source, WriteOptions,
};
use std::sync::Arc;

use cowshed::storage::MemoryStorage;
use cowshed::{Error, Result};
use futures::executor::block_on;

/// One wrong thing, and what must be said of it.
struct Case {
    name: String,
    base: Base,
    patch: Box<dyn Fn(&mut Bytes)>,
    expected: Vec<Expected>,
}

/// What must be said.
enum Expected {
    /// By opening.
    Open(Place),
    /// By reading a sector of the disk.
    Read(u64, Place),
    /// By opening this snapshot, and reading the disk's first sector.
    Snapshot(&'static str, Place),
    /// By applying this snapshot to an image that is open for writing, which leaves every byte of it as it was.
    Apply(&'static str, Place),
    /// By deleting this snapshot, in the same way.
    Delete(&'static str, Place),
    /// By the check: the text of one finding, its structure and its offset.
    Check(String, &'static str, u64),
}

struct Place {
    code: &'static str,
    structure: &'static str,
    offset: Option<u64>,
    /// How the message ends.
    text: String,
}

fn place(
    code: &'static str,
    structure: &'static str,
    offset: u64,
    text: impl Into<String>,
) -> Place {
    Place { code, structure, offset: Some(offset), text: text.into() }
}

fn open(code: &'static str, offset: u64, text: impl Into<String>) -> Expected {
    Expected::Open(place(code, "header", offset, text))
}

fn case(
    name: impl Into<String>,
    base: Base,
    patch: impl Fn(&mut Bytes) + 'static,
    expected: Expected,
) -> Case {
    Case { name: name.into(), base, patch: Box::new(patch), expected: vec![expected] }
}

impl Case {
    fn and(mut self, expected: Expected) -> Self {
        self.expected.push(expected);
        self
    }
}

fn opened(bytes: Vec<u8>, snapshot: Option<&str>) -> Result<Image<Arc<MemoryStorage>>> {
    let mut options = OpenOptions::default();
    options.references = References::Leave;
    options.snapshot = snapshot.map(|name| SnapshotSelector::Name(name.into()));
    let source = Source::qcow2(Arc::new(MemoryStorage::new(bytes)), "image.qcow2");
    block_on(Image::open(source, &RefuseAll::new(), options)).map(|opened| opened.image)
}

fn read(image: &Image<Arc<MemoryStorage>>, offset: u64) -> Result<Vec<u8>> {
    let mut sector = vec![0xa5; 512];
    block_on(image.read_at(&mut sector, offset)).map(|()| sector)
}

/// Applies or deletes a snapshot.
fn change(bytes: &[u8], name: &str, apply: bool) -> Result<()> {
    let mut options = OpenOptions::default();
    options.references = References::Leave;
    options.write = Some(WriteOptions::default());
    let storage = Arc::new(MemoryStorage::new(bytes.to_vec()));
    let source = Source::qcow2(Arc::clone(&storage), "image.qcow2");
    let selector = SnapshotSelector::Name(name.into());
    let changed = block_on(async {
        let image = Image::open(source, &RefuseAll::new(), options).await?.image;
        let changed = match apply {
            true => image.apply_snapshot(&selector).await,
            false => image.delete_snapshot(&selector).await,
        };
        image.close().await.and(changed)
    });
    assert!(changed.is_ok() || storage.to_vec() == bytes, "it was changed all the same");
    changed
}

/// How the error differs from what it must be.
fn differs<T>(result: Result<T>, expected: &Place) -> Option<String> {
    let error = match result {
        Ok(_) => return Some("nothing was said".to_owned()),
        Err(error) => error,
    };
    let text = error.to_string();
    let (code, structure, offset) = match &error {
        Error::Corrupt(what) => (what.code(), what.structure(), what.offset()),
        Error::Unsupported(what) => (what.code(), what.structure(), what.offset()),
        _ => ("", "", None),
    };
    let same = (code, structure, offset) == (expected.code, expected.structure, expected.offset)
        && text.ends_with(&expected.text);
    (!same).then(|| {
        format!(
            "{code} / {structure} / {offset:#x?}: {text}\n    instead of {} / {} / {:#x?}: ...{}",
            expected.code, expected.structure, expected.offset, expected.text
        )
    })
}

fn run(case: &Case, bytes: &[u8]) -> Vec<String> {
    let mut wrong = Vec::new();
    for expected in &case.expected {
        let differs = match expected {
            Expected::Open(place) => differs(opened(bytes.to_vec(), None), place),
            Expected::Read(offset, place) => match opened(bytes.to_vec(), None) {
                Ok(image) => differs(read(&image, *offset), place),
                Err(error) => Some(format!("it could not be opened: {error}")),
            },
            Expected::Snapshot(name, place) => {
                let result = opened(bytes.to_vec(), Some(name)).and_then(|image| read(&image, 0));
                differs(result, place)
            }
            Expected::Apply(name, place) => differs(change(bytes, name, true), place),
            Expected::Delete(name, place) => differs(change(bytes, name, false), place),
            Expected::Check(text, structure, offset) => {
                let mut findings: Vec<Finding> = Vec::new();
                let storage = MemoryStorage::new(bytes.to_vec());
                let result =
                    block_on(check_storage(&storage, &CheckOptions::default(), &mut findings));
                let found = findings.iter().any(|finding| {
                    (finding.to_string(), finding.structure.name(), finding.offset)
                        == (text.clone(), *structure, *offset)
                });
                (!found || result.is_err()).then(|| {
                    let said: Vec<_> = findings
                        .iter()
                        .take(8)
                        .map(|f| format!("{f} [{} at {:#x}]", f.structure.name(), f.offset))
                        .collect();
                    format!(
                        "the check says {:?} {}\n    instead of {text} [{structure} at {offset:#x}]",
                        result.map(|_| ()),
                        said.join("\n      ")
                    )
                })
            }
        };
        wrong.extend(differs.map(|differs| format!("{}: {differs}", case.name)));
    }
    wrong
}

#[test]
fn every_malformed_image_is_told_by_code_structure_place_and_text() {
    let bases = bases();
    let cases: Vec<Case> = header::cases().into_iter().chain(tables::cases()).collect();
    let names: std::collections::BTreeSet<_> = cases.iter().map(|case| &case.name).collect();
    assert_eq!(names.len(), cases.len(), "two cases of one name");
    let mut wrong = Vec::new();
    for case in &cases {
        let mut bytes = bases[&case.base].clone();
        let whole = bytes.0.clone();
        (case.patch)(&mut bytes);
        assert_ne!(bytes.0, whole, "{}: nothing was changed", case.name);
        wrong.extend(run(case, &bytes.0));
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    println!("{} malformed images", cases.len());
    assert!(cases.len() >= 150, "{} cases", cases.len());
}

#[test]
fn bases_have_no_fault() {
    for (base, bytes) in bases() {
        let image = opened(bytes.0.clone(), None).unwrap();
        if !matches!(base, Base::Luks | Base::DataFile | Base::Backing) {
            read(&image, 0).unwrap();
        }
        let mut findings: Vec<Finding> = Vec::new();
        let report = block_on(image.check(&CheckOptions::default(), &mut findings)).unwrap();
        assert!(report.is_clean(), "{base:?}: {findings:#?}");
    }
}
