//! Backing chains: as deep as they come, in loops, with layers that were refused, left or lost.

use std::path::Path;
use std::sync::Arc;

use crate::support::open::{MemoryGate, open_in_memory, read_all};
use crate::support::qemu;
use cowshed::image::{
    Answer, ExtentKind, Format, Gate, Identity, Image, OpenOptions, Reference, References,
    RefuseAll, Source,
};
use cowshed::storage::MemoryStorage;
use cowshed::{Error, Result};
use futures::executor::block_on;

/// Makes `depth` layers of 1 MiB, each with 1 KiB of its own pattern, the deepest one `layer-0.qcow2`.
fn make_chain(dir: &Path, depth: usize) -> String {
    for layer in 0..depth {
        let name = format!("layer-{layer}.qcow2");
        let mut command = vec!["create".into(), "-q".into(), "-f".into(), "qcow2".into()];
        command.extend(["-o".into(), "cluster_size=512".into()]);
        if layer > 0 {
            command.extend(["-u".into(), "-F".into(), "qcow2".into(), "-b".into()]);
            command.push(format!("layer-{}.qcow2", layer - 1));
        }
        command.extend([name.clone(), "1M".into()]);
        qemu::img(dir, &command);
        // Written without its chain: the whole clusters need nothing from below.
        let write = format!("write -q -P {} {}k 1k", layer % 255 + 1, layer);
        let options = format!("driver=qcow2,backing=,file.filename={name}");
        let mut io = qemu::qemu_io();
        qemu::run(io.current_dir(dir).args([
            "-t",
            "unsafe",
            "-c",
            &write,
            "--image-opts",
            &options,
        ]));
    }
    format!("layer-{}.qcow2", depth - 1)
}

#[test]
fn a_chain_of_two_hundred_layers_is_read_through() {
    let dir = tempfile::tempdir().unwrap();
    let depth = 200;
    let top = make_chain(dir.path(), depth);
    block_on(async {
        let image = open_in_memory(dir.path(), &top, OpenOptions::default()).await.unwrap();
        assert_eq!(image.layers().len(), depth);
        let bytes = read_all(&image, usize::MAX).await.unwrap();
        for (kib, bytes) in bytes.chunks(1024).enumerate() {
            let pattern = if kib < depth { kib % 255 + 1 } else { 0 };
            assert!(bytes.iter().all(|byte| usize::from(*byte) == pattern), "KiB {kib}");
        }
        let extent = image.map(0, 1024).await.unwrap();
        assert_eq!((extent.depth, extent.len), (depth - 1, 1024));
        let extent = image.map(1 << 19, 1 << 19).await.unwrap();
        let nothing = ExtentKind::Unallocated { host: None };
        assert_eq!((extent.kind, extent.len), (nothing, 1 << 19));
    });
}

#[test]
fn a_chain_beyond_the_limit_is_refused_with_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let top = make_chain(dir.path(), 4);
    let mut options = OpenOptions::default();
    options.chain_depth_max = 3;
    let error = block_on(open_in_memory(dir.path(), &top, options)).unwrap_err();
    assert_eq!(error.to_string(), "backing chain depth 4 exceeds the limit of 3");
}

/// Names one image as the backing file of everything, forever: what two files that name each other do.
struct Loop {
    gate: MemoryGate,
    identity: Option<Identity>,
}

impl Gate for Loop {
    type Storage = Arc<MemoryStorage>;

    async fn open(&self, _: &Reference<'_>) -> Result<Answer<Arc<MemoryStorage>>> {
        let source = self.gate.source("layer-1.qcow2", Format::Qcow2);
        Ok(Answer::Open(Source { identity: self.identity, ..source }))
    }
}

#[test]
fn a_loop_is_found_by_identity_and_else_by_depth() {
    let dir = tempfile::tempdir().unwrap();
    make_chain(dir.path(), 2);
    let open = |identity| {
        let gate = Loop { gate: MemoryGate::new(dir.path()), identity };
        let source = gate.gate.source("layer-1.qcow2", Format::Qcow2);
        block_on(Image::open(source, &gate, OpenOptions::default())).unwrap_err()
    };
    let Error::Corrupt(found) = open(Some(Identity(1, 2))) else { panic!("not corrupt") };
    assert_eq!(found.code(), "chain-loop");
    assert!(matches!(open(None), Error::LimitExceeded { what: "backing chain depth", .. }));
}

#[test]
fn nothing_is_opened_unless_the_gate_allows_it() {
    let dir = tempfile::tempdir().unwrap();
    let top = make_chain(dir.path(), 2);
    let gate = RefuseAll::new();
    let source = MemoryGate::new(dir.path()).source(&top, Format::Qcow2);
    let error = block_on(Image::open(source, &gate, OpenOptions::default())).unwrap_err();
    let Error::Refused { kind, name, .. } = error else { panic!("{error}") };
    assert_eq!((kind, name.as_str()), ("backing file", "layer-0.qcow2"));
}

#[test]
fn a_chain_that_was_left_is_an_error_where_it_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    let top = make_chain(dir.path(), 2);
    let mut options = OpenOptions::default();
    options.references = References::Leave;
    let source = MemoryGate::new(dir.path()).source(&top, Format::Qcow2);
    block_on(async {
        let image = Image::open(source, &RefuseAll::new(), options).await.unwrap().image;
        let mut own = [0; 1024];
        image.read_at(&mut own, 1024).await.unwrap();
        assert_eq!(own, [2; 1024]);
        let error = image.read_at(&mut [0; 512], 0).await.unwrap_err();
        assert_eq!(error.to_string(), "backing file \"layer-0.qcow2\" refused: it was not opened");
        assert!(matches!(image.map(0, 512).await, Err(Error::Refused { .. })));
    });
}

/// Stands for a lost layer.
struct Lost;

impl Gate for Lost {
    type Storage = Arc<MemoryStorage>;

    async fn open(&self, _: &Reference<'_>) -> Result<Answer<Arc<MemoryStorage>>> {
        Ok(Answer::Zeros)
    }
}

#[test]
fn a_lost_layer_reads_as_zeros_if_the_gate_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let top = make_chain(dir.path(), 2);
    qemu::img(
        dir.path(),
        ["create", "-q", "-f", "qcow2", "-o", "data_file=lost.data", "data.qcow2", "1M"],
    );
    qemu::io(dir.path(), "qcow2", "data.qcow2", &["write -P 7 0 1M"]);
    for (name, own) in [(top.as_str(), 1024..2048), ("data.qcow2", 0..0)] {
        let source = MemoryGate::new(dir.path()).source(name, Format::Qcow2);
        let bytes = block_on(async {
            let image = Image::open(source, &Lost, OpenOptions::default()).await.unwrap().image;
            read_all(&image, usize::MAX).await.unwrap()
        });
        let expected: Vec<_> =
            (0..bytes.len()).map(|at| if own.contains(&at) { 2 } else { 0 }).collect();
        assert!(bytes == expected, "{name}");
    }
}
