//! Opening a test image in memory: every file of its folder may be named by it, nothing else.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cowshed::Result;
use cowshed::image::{
    Answer, Format, Gate, Image, OpenOptions, Reference, ReferenceKind, Source, detect,
};
use cowshed::storage::MemoryStorage;

/// Opens plain names within one folder, as copies in memory.
#[derive(Debug)]
pub struct MemoryGate {
    dir: PathBuf,
}

impl MemoryGate {
    /// The gate to `dir`.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// The file called `name`, in memory.
    pub fn source(&self, name: &str, format: Format) -> Source<Arc<MemoryStorage>> {
        let bytes = std::fs::read(self.dir.join(name)).expect("a file of the test image");
        Source {
            storage: Arc::new(MemoryStorage::new(bytes)),
            format,
            location: name.into(),
            identity: None,
        }
    }
}

impl Gate for MemoryGate {
    type Storage = Arc<MemoryStorage>;

    async fn open(&self, reference: &Reference<'_>) -> Result<Answer<Arc<MemoryStorage>>> {
        let name = std::str::from_utf8(reference.name).expect("a name that QEMU wrote");
        assert!(!name.contains('/'), "test images name files in their own folder");
        let bytes = std::fs::read(self.dir.join(name)).expect("a file that the image names");
        let format = match (reference.kind, reference.format) {
            (ReferenceKind::DataFile, _) | (_, Some(b"raw")) => Format::Raw,
            (_, Some(b"qcow2")) => Format::Qcow2,
            (_, Some(other)) => panic!("backing format {other:?}"),
            (_, None) => detect(&bytes),
        };
        Ok(Answer::Open(self.source(name, format)))
    }
}

/// Opens `name` in `dir` with everything it refers to.
///
/// # Errors
/// The engine's.
pub async fn open_in_memory(
    dir: &Path,
    name: &str,
    options: OpenOptions,
) -> Result<Image<Arc<MemoryStorage>>> {
    let gate = MemoryGate::new(dir);
    let source = gate.source(name, Format::Qcow2);
    Ok(Image::open(source, &gate, options).await?.image)
}

/// Reads the whole disk of `image` in requests of `len` bytes.
///
/// # Errors
/// The engine's.
pub async fn read_all<S: cowshed::storage::Storage>(
    image: &Image<S>,
    len: usize,
) -> Result<Vec<u8>> {
    let mut bytes = vec![0xa5; usize::try_from(image.virtual_size()).expect("a small disk")];
    let mut offset = 0;
    for part in bytes.chunks_mut(len) {
        image.read_at(part, offset).await?;
        offset += part.len() as u64;
    }
    Ok(bytes)
}
