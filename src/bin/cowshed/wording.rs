//! What `qemu-img` and `qemu-io` say where the engine reports an error of its own: the text that scripts look for.
//!
//! The engine's messages name structure, offset and value. QEMU's name less and are matched by scripts, so they are used
//! under its names, and nowhere else. Source: the messages of block/qcow2.c and its neighbours.

use std::io;

use cowshed::Error;
use cowshed::error::{Corrupt, Unsupported};

use crate::open::io_reason;

/// What QEMU answers a guest's request that meets damaged metadata.
const IO_ERROR: &str = "Input/output error";

/// The error as one of QEMU's tools words it.
pub(crate) fn of(error: &Error) -> String {
    match error {
        Error::Corrupt(corrupt) => of_corrupt(corrupt),
        Error::Unsupported(unsupported) => of_unsupported(unsupported),
        Error::Storage { source, .. } => io_reason(source),
        Error::Open { path, source } => {
            format!("Could not open backing file: {}", of_open(&path.display().to_string(), source))
        }
        Error::Refused { kind: "backing file", reason, .. } => {
            format!("Could not open backing file: {reason}")
        }
        error => error.to_string(),
    }
}

/// The error as one of QEMU's tools words it when a layer of an image does not open that lies below `depth` others, or a file
/// that this layer names.
pub(crate) fn of_layer(error: &Error, depth: usize) -> String {
    let reason = match error {
        Error::Open { path, source } => of_open(&path.display().to_string(), source),
        Error::Refused { kind: "data file", name, .. } if name.is_empty() => {
            "'data-file' is required for this image".into()
        }
        Error::Refused { reason, .. } => reason.clone(),
        error => of(error),
    };
    format!("{}{reason}", "Could not open backing file: ".repeat(depth))
}

/// A file that cannot be opened.
fn of_open(name: &str, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ResourceBusy => io_reason(error),
        _ => format!("Could not open '{name}': {}", io_reason(error)),
    }
}

fn of_corrupt(corrupt: &Corrupt) -> String {
    let value = corrupt.value().unwrap_or_default();
    match corrupt.code() {
        "header-truncated" => "Image is not in qcow2 format".into(),
        "cluster-bits-too-small" => format!("Unsupported cluster size: 2^{value}"),
        "refcount-order" => "Reference count entry width too large; may not exceed 64 bits".into(),
        "extended-l2-cluster-bits" => {
            format!(
                "Unsupported subcluster size: {}",
                1_u64.checked_shl(subcluster_bits(value)).unwrap_or(0)
            )
        }
        "header-length-too-small" => "qcow2 header too short".into(),
        "header-length-exceeds-cluster" => "qcow2 header exceeds cluster size".into(),
        "backing-file-offset" => "Invalid backing file offset".into(),
        "backing-file-name-too-long" => "Backing file name too long".into(),
        "compression-bit-set" => {
            "qcow2: Compression type incompatible feature bit must not be set".into()
        }
        "compression-bit-missing" => {
            "qcow2: Compression type incompatible feature bit must be set".into()
        }
        "data-file-raw-without-data-file" => "data-file-raw requires a data file".into(),
        "refcount-table-missing" => "Image does not contain a reference count table".into(),
        "refcount-table-unaligned" | "refcount-table-overflow" => {
            "Reference count table offset invalid".into()
        }
        "snapshot-table-unaligned" | "snapshot-table-overflow" => {
            "Snapshot table offset invalid".into()
        }
        "l1-table-unaligned" | "l1-table-overflow" => "Active L1 table offset invalid".into(),
        "l1-table-too-small" => "L1 table is too small".into(),
        "l1-table-past-end" => "Could not read L1 table: Input/output error".into(),
        "snapshot-l1-table-unaligned" | "snapshot-l1-table-overflow" => {
            "Snapshot L1 table offset invalid".into()
        }
        "extension-truncated" | "extension-too-large" => "Header extension too large".into(),
        "crypto-extension-unexpected" => {
            "CRYPTO header extension only expected with LUKS encryption method".into()
        }
        "crypto-extension-length" => {
            format!("CRYPTO header extension size {value}, but expected size 16")
        }
        "bitmaps-extension-length" => {
            "bitmaps_ext: Invalid extension length: Invalid argument".into()
        }
        "bitmaps-reserved" => "bitmaps_ext: Reserved field is not zero: Invalid argument".into(),
        "bitmaps-none" => "found bitmaps extension with zero bitmaps".into(),
        "bitmap-directory-unaligned" => "bitmaps_ext: invalid bitmap directory offset".into(),
        "dirty-not-repaired" => "Could not repair dirty image: Input/output error".into(),
        code if code.starts_with("luks-") => of_luks(corrupt),
        code => match in_a_table(code, corrupt) {
            true => IO_ERROR.into(),
            false => corrupt.reason(),
        },
    }
}

/// What is wrong with an encryption header.
fn of_luks(corrupt: &Corrupt) -> String {
    let (value, slot) = (corrupt.value().unwrap_or_default(), corrupt.index());
    let reason = corrupt.reason();
    match (corrupt.code(), slot) {
        ("luks-truncated" | "luks-magic", _) => "Volume is not in LUKS format".into(),
        ("luks-name-unterminated", _) => {
            let field = reason.split(' ').next().unwrap_or_default().replace('-', " ");
            format!("LUKS header {field} is not NUL terminated")
        }
        ("luks-payload-offset", _) => "LUKS payload is overlapping with the header".into(),
        ("luks-no-iterations", None) => "LUKS key iteration count is zero".into(),
        ("luks-no-iterations", Some(slot)) => format!("Keyslot {slot} iteration count is zero"),
        ("luks-slot-state", Some(slot)) => {
            format!("Keyslot {slot} state (active/disable) is corrupted")
        }
        ("luks-stripes", Some(slot)) => {
            // It is shown with a sign.
            let stripes = u32::try_from(value).unwrap_or_default().cast_signed();
            format!("Keyslot {slot} is corrupted (stripes {stripes} != 4000)")
        }
        ("luks-slot-in-header", Some(slot)) => {
            format!("Keyslot {slot} is overlapping with the LUKS header")
        }
        ("luks-slot-in-payload", Some(slot)) => {
            format!("Keyslot {slot} is overlapping with the encrypted payload")
        }
        ("luks-slots-overlap", Some(slot)) => {
            format!("Keyslots {slot} and {value} are overlapping in the header")
        }
        _ => reason,
    }
}

/// An algorithm that an encryption header names and nobody knows; `reason` is the engine's word.
fn of_luks_algorithm(reason: &str) -> String {
    let Some((what, name)) =
        reason.strip_suffix("' is not supported").and_then(|it| it.split_once(" '"))
    else {
        return reason.to_owned();
    };
    match (what, name.rsplit_once('-')) {
        ("cipher", Some((name, bits))) => {
            let len = bits.parse::<u64>().unwrap_or_default() / 8;
            format!("Algorithm '{name}' with key size {len} bytes not supported")
        }
        ("cipher mode", _) => format!("Cipher mode '{name}' not supported"),
        ("hash algorithm", _) => format!("Hash algorithm '{name}' not supported"),
        _ => format!("{what} '{name}' not supported"),
    }
}

/// Bits of a subcluster's size where clusters have `cluster_bits`: there are 32 of them in a cluster.
fn subcluster_bits(cluster_bits: u64) -> u32 {
    u32::try_from(cluster_bits.saturating_sub(5)).unwrap_or(0)
}

/// Whether it is what a request meets in the tables that map it, or in the stream of a cluster.
fn in_a_table(code: &str, corrupt: &Corrupt) -> bool {
    matches!(
        corrupt.structure(),
        "L1 table" | "L2 table" | "refcount table" | "refcount block" | "compressed cluster"
    ) || code == "past-end-of-file"
}

fn of_unsupported(unsupported: &Unsupported) -> String {
    let value = unsupported.value().unwrap_or_default();
    match unsupported.code() {
        "not-qcow2" => "Image is not in qcow2 format".into(),
        "cluster-bits" => format!("Unsupported cluster size: 2^{value}"),
        "compression-type" => format!("qcow2: unknown compression type: {value}"),
        "crypt-method" => format!("Unsupported encryption method {value}"),
        "l1-table-too-large" => "Active L1 table too large".into(),
        "refcount-table-too-large" => "Reference count table too large".into(),
        "snapshots-too-many" => "Snapshot table too large".into(),
        "snapshot-l1-table-too-large" => "Snapshot L1 table too large".into(),
        "image-too-big" => "Image is too big".into(),
        "backing-format-too-long" => {
            format!("ERROR: ext_backing_format: len={value} too large (>=16)")
        }
        "bitmaps-too-many" => format!(
            "bitmaps_ext: Image has {value} bitmaps, exceeding the QEMU supported maximum of 65535"
        ),
        "bitmap-directory-too-large" => format!(
            "bitmaps_ext: bitmap directory size ({value}) exceeds the maximum supported size (67107840)"
        ),
        "luks-algorithm" => of_luks_algorithm(&unsupported.reason()),
        _ => unsupported.reason(),
    }
}

/// What QEMU writes on standard error when it finds metadata that cannot be right while it serves a request.
pub(crate) fn of_corruption(corrupt: &Corrupt) -> String {
    let value = corrupt.value().unwrap_or_default();
    let table = corrupt.offset().unwrap_or_default();
    let index = corrupt.index().unwrap_or_default();
    match corrupt.code() {
        "l1-entry-unaligned" => {
            format!("L2 table offset {value:#x} unaligned (L1 index: {index:#x})")
        }
        "l2-entry-unaligned" => format!(
            "Cluster allocation offset {value:#x} unaligned (L2 offset: {table:#x}, L2 index: {index:#x})"
        ),
        "zero-flag-in-v2" => format!(
            "Zero cluster entry found in pre-v3 image (L2 offset: {table:#x}, L2 index: {index:#x})"
        ),
        "compressed-with-data-file" => format!(
            "Compressed cluster entry found in image with external data file (L2 offset: {table:#x}, L2 index: {index:#x})"
        ),
        "subcluster-allocated-and-zero" | "subcluster-allocated-without-cluster" => {
            format!("Invalid cluster entry found  (L2 offset: {table:#x}, L2 index: {index:#x})")
        }
        "refcount-block-unaligned" => {
            format!("Refblock offset {value:#x} unaligned (reftable index: {index:#x})")
        }
        "invalid-write" => corrupt.reason(),
        _ => corrupt.to_string(),
    }
}
