//! Images that were not closed: the engine repairs them when it opens them for writing, in silence; the command says what is
//! done, as QEMU does.

use cowshed::format::{Header, Incompatible};
use cowshed::image::check::{
    CheckObserver, CheckOptions, Finding, Repair, RepairStep, repair_storage,
};
use cowshed::image::{Format, Source};
use cowshed::storage::{Buf, Storage};

use crate::escape;
use crate::failure::warn;
use crate::node::Node;
use crate::open::PROBE_LEN_BYTES;

/// Repairs an image that is to be written to, if it was not closed, and says so on standard error. Why it cannot be repaired is
/// said when it is opened.
pub(crate) async fn repair(source: &Source<Node>) {
    if source.format != Format::Qcow2 {
        return;
    }
    let storage = &source.storage;
    let read = async |len: usize| Storage::read_at(storage, Buf::zeroed(len), 0).await;
    let Ok(len) = Storage::len(storage).await else { return };
    let Ok(first) = read(PROBE_LEN_BYTES).await else { return };
    let Ok(header_len) = Header::probe_len(&first) else { return };
    let Ok(bytes) = read(header_len).await else { return };
    let Ok(header) = Header::parse(&bytes, len) else { return };
    let flags = header.incompatible;
    if flags.contains(Incompatible::DIRTY) && !flags.contains(Incompatible::CORRUPT) {
        let options = CheckOptions::default();
        let _ = repair_storage(storage, Repair::All, &options, &mut Said).await;
    }
}

/// Says on standard error what is found and done.
struct Said;

impl CheckObserver for Said {
    fn finding(&mut self, finding: &Finding) {
        warn(&escape::terminal(finding.to_string().as_bytes()));
    }

    fn step(&mut self, step: &RepairStep) {
        warn(&escape::terminal(step.to_string().as_bytes()));
    }
}
