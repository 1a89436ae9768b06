//! Header, features, extensions, snapshots, layers and info as plain objects.

use wasm_bindgen::JsValue;

use super::open::location;
use super::value::{array, number, object, or_null, set, text};
use crate::format::feature::FeatureKind;
use crate::format::{
    Autoclear, BitmapDirectoryEntry, BitmapFlags, Compatible, Compression, CryptMethod, Extension,
    Header, Incompatible, Snapshot, Version, feature::FeatureNames,
};
use crate::image::{Format, Image, LayerInfo};
use crate::storage::Storage;

/// The image itself, without what lies below it.
pub(super) fn top<S: Storage>(image: &Image<S>) -> Option<LayerInfo<'_>> {
    image.layers().next()
}

/// The fields of the header. Spec: qcow2, Header.
pub(super) fn header(header: &Header) -> Vec<JsValue> {
    let mut fields = Vec::new();
    let mut field = |name: &str, offset: u32, length: u32, value: u64, meaning: String| {
        fields.push(object([
            ("name", name.into()),
            ("offset", offset.into()),
            ("length", length.into()),
            ("value", value.into()),
            ("meaning", meaning.into()),
        ]));
    };
    let bytes = |len: u64| format!("{len} bytes");
    let at = |offset: u64| if offset == 0 { "none".to_owned() } else { format!("{offset:#x}") };
    let geometry = header.geometry();
    let (backing, backing_len) = match &header.backing_file {
        Some(name) => (backing_offset(header), name.len() as u64),
        None => (0, 0),
    };
    let backing_text = header.backing_file.as_deref().map(String::from_utf8_lossy);
    field("magic", 0, 4, 0x5146_49fb, "\"QFI\\xfb\"".to_owned());
    field(
        "version",
        4,
        4,
        header.version.number().into(),
        match header.version {
            Version::V2 => "compat 0.10".to_owned(),
            Version::V3 => "compat 1.1".to_owned(),
        },
    );
    field("backing_file_offset", 8, 8, backing, at(backing));
    let name = backing_text.map_or_else(|| "no backing file".to_owned(), |name| name.into_owned());
    field("backing_file_size", 16, 4, backing_len, name);
    field("cluster_bits", 20, 4, geometry.cluster_bits().into(), bytes(geometry.cluster_size()));
    field("size", 24, 8, header.size, bytes(header.size));
    let (crypt, crypt_text) = match header.crypt {
        CryptMethod::None => (0, "not encrypted"),
        CryptMethod::Aes => (1, "AES-CBC"),
        CryptMethod::Luks => (2, "LUKS"),
    };
    field("crypt_method", 32, 4, crypt, crypt_text.to_owned());
    let l1 = u64::from(header.l1_entries);
    field("l1_size", 36, 4, l1, format!("{l1} entries"));
    let l1_table = header.l1_table_offset.get();
    field("l1_table_offset", 40, 8, l1_table, at(l1_table));
    let refcount_table = header.refcount_table_offset.get();
    field("refcount_table_offset", 48, 8, refcount_table, at(refcount_table));
    let clusters = u64::from(header.refcount_table_clusters);
    field("refcount_table_clusters", 56, 4, clusters, bytes(header.refcount_table_len()));
    let snapshots = u64::from(header.snapshot_count);
    field("nb_snapshots", 60, 4, snapshots, format!("{snapshots} snapshots"));
    let snapshot_table = header.snapshot_table_offset.get();
    field("snapshots_offset", 64, 8, snapshot_table, at(snapshot_table));
    if header.version == Version::V2 {
        return fields;
    }
    let names = |kind| {
        let names: Vec<String> = bits(header, kind).map(|(_, name, _)| name).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    };
    let (incompatible, compatible) = (header.incompatible.raw(), header.compatible.raw());
    field("incompatible_features", 72, 8, incompatible, names(FeatureKind::Incompatible));
    field("compatible_features", 80, 8, compatible, names(FeatureKind::Compatible));
    field("autoclear_features", 88, 8, header.autoclear.raw(), names(FeatureKind::Autoclear));
    let refcount_bits = format!("refcounts of {} bits", geometry.refcount_bits());
    field("refcount_order", 96, 4, geometry.refcount_order().into(), refcount_bits);
    let header_len = header.header_len();
    field("header_length", 100, 4, header_len, bytes(header_len));
    if header_len > 104 {
        let compression = match header.compression {
            Compression::Deflate => 0,
            Compression::Zstd => 1,
        };
        field("compression_type", 104, 1, compression, compression_name(header).to_owned());
    }
    fields
}

/// Where the backing file's name is: behind the extensions, as this crate writes it.
fn backing_offset(header: &Header) -> u64 {
    let mut end = header.header_len();
    for extension in &header.extensions {
        end += extension_len(extension);
    }
    // And behind the empty extension that ends them.
    end + 8
}

fn extension_len(extension: &Extension) -> u64 {
    let mut encoded = Vec::new();
    // What was parsed can be encoded.
    let _ = extension.encode(&mut encoded);
    encoded.len() as u64
}

fn compression_name(header: &Header) -> &'static str {
    match header.compression {
        Compression::Deflate => "zlib",
        Compression::Zstd => "zstd",
    }
}

/// The bits that are set, each with the name that the image gives it, or QEMU's, and whether this crate knows it.
fn bits(header: &Header, kind: FeatureKind) -> impl Iterator<Item = (u8, String, bool)> + '_ {
    let (raw, unknown) = match kind {
        FeatureKind::Incompatible => (header.incompatible.raw(), header.incompatible.unknown()),
        FeatureKind::Compatible => (header.compatible.raw(), header.compatible.unknown()),
        FeatureKind::Autoclear => (header.autoclear.raw(), header.autoclear.unknown()),
        FeatureKind::Unknown(_) => (0, 0),
    };
    (0..64).filter(move |bit| raw >> bit & 1 == 1).map(move |bit| {
        let in_image = header.feature_names().and_then(|names| {
            let entry = names.iter().find(|name| name.kind == kind && name.bit == bit)?;
            Some(String::from_utf8_lossy(entry.name).into_owned())
        });
        let built_in = FeatureNames::QEMU.iter().find(|name| name.0 == kind && name.1 == bit);
        let name = built_in.map(|name| name.2.to_owned()).or(in_image);
        (bit, name.unwrap_or_else(|| format!("bit {bit}")), unknown >> bit & 1 == 0)
    })
}

/// The feature bits that are set.
pub(super) fn features(header: &Header) -> Vec<JsValue> {
    let kinds = [
        ("incompatible", FeatureKind::Incompatible),
        ("compatible", FeatureKind::Compatible),
        ("autoclear", FeatureKind::Autoclear),
    ];
    let feature = |set: &str, (bit, name, known): (u8, String, bool)| {
        object([
            ("set", set.into()),
            ("bit", bit.into()),
            ("name", name.into()),
            ("known", known.into()),
        ])
    };
    kinds
        .into_iter()
        .flat_map(|(set, kind)| bits(header, kind).map(move |bit| feature(set, bit)))
        .collect()
}

/// The header extensions.
pub(super) fn extensions(header: &Header) -> Vec<JsValue> {
    let mut offset = header.header_len();
    let mut described = Vec::new();
    for extension in &header.extensions {
        let (name, length, meaning) = match extension {
            Extension::BackingFormat(format) => {
                ("backing file format", format.len(), String::from_utf8_lossy(format).into_owned())
            }
            Extension::FeatureNames(names) => {
                ("feature name table", names.as_bytes().len(), feature_names(names))
            }
            Extension::Bitmaps(bitmaps) => {
                let (count, at) = (bitmaps.count, bitmaps.directory_offset);
                ("bitmaps", 24, format!("{count} bitmaps, directory at {at}"))
            }
            Extension::CryptoHeader(crypto) => {
                let (len, at) = (crypto.len, crypto.offset);
                ("encryption header", 16, format!("{len} bytes at {at}"))
            }
            Extension::DataFile(name) => {
                ("external data file", name.len(), String::from_utf8_lossy(name).into_owned())
            }
            Extension::Unknown { data, .. } => ("unknown", data.len(), String::new()),
        };
        described.push(object([
            ("type", extension.kind().into()),
            ("name", name.into()),
            ("offset", number(offset)),
            ("length", number(length as u64)),
            ("text", meaning.into()),
        ]));
        offset += extension_len(extension);
    }
    described
}

fn feature_names(names: &FeatureNames) -> String {
    let names: Vec<_> = names.iter().map(|name| String::from_utf8_lossy(name.name)).collect();
    names.join(", ")
}

/// An internal snapshot.
pub(super) fn snapshot(snapshot: &Snapshot) -> JsValue {
    object([
        ("id", text(&snapshot.id)),
        ("name", text(&snapshot.name)),
        ("vmStateSize", snapshot.vm_state_len.into()),
        ("date", snapshot.date_sec.into()),
        ("vmClock", snapshot.vm_clock_nsec.into()),
        ("diskSize", or_null(snapshot.disk_size)),
        ("icount", or_null(snapshot.icount)),
        ("l1Offset", snapshot.l1_table_offset.get().into()),
        ("l1Entries", snapshot.l1_entries.into()),
    ])
}

/// A layer of the chain.
pub(super) fn layer(depth: usize, layer: &LayerInfo<'_>) -> JsValue {
    object([
        ("name", location(layer.location)),
        ("format", layer.format.name().into()),
        ("virtualSize", layer.virtual_size.into()),
        ("hostSize", layer.file_len.into()),
        ("depth", JsValue::from_f64(depth as f64)),
    ])
}

/// A persistent bitmap.
pub(super) fn bitmap(bitmap: &BitmapDirectoryEntry) -> JsValue {
    let flags = [(BitmapFlags::IN_USE, "in-use"), (BitmapFlags::AUTO, "auto")];
    let flags = flags.into_iter().filter(|(flag, _)| bitmap.flags.contains(*flag));
    object([
        ("flags", array(flags.map(|(_, name)| name.into()))),
        ("name", text(&bitmap.name)),
        ("granularity", number(bitmap.granularity())),
    ])
}

/// What `qemu-img info --output=json` says, as far as the image alone tells it.
pub(super) fn info<S: Storage>(image: &Image<S>, bitmaps: &[BitmapDirectoryEntry]) -> JsValue {
    let info = object([]);
    let Some(layer) = top(image) else { return info };
    let header = layer.header.as_deref();
    if let Some(format) = header.and_then(Header::backing_format) {
        set(&info, "backing-filename-format", text(format));
    }
    if !layer.snapshots.is_empty() {
        set(&info, "snapshots", array(layer.snapshots.iter().map(info_snapshot)));
    }
    let size = match header {
        Some(header) => header.size / 512 * 512,
        None => layer.virtual_size,
    };
    set(&info, "virtual-size", number(size));
    set(&info, "filename", location(layer.location));
    if let Some(header) = header {
        set(&info, "cluster-size", number(header.geometry().cluster_size()));
    }
    set(&info, "format", layer.format.name());
    // A page cannot see how much of a file is allocated.
    set(&info, "actual-size", number(layer.file_len));
    if let Some(header) = header {
        if header.crypt != CryptMethod::None {
            set(&info, "encrypted", true);
        }
        let data = format_specific(header, bitmaps);
        set(&info, "format-specific", object([("type", "qcow2".into()), ("data", data)]));
        if let Some(name) = &header.backing_file {
            set(&info, "full-backing-filename", text(name));
            set(&info, "backing-filename", text(name));
        }
    }
    let dirty = header.is_some_and(|header| header.incompatible.contains(Incompatible::DIRTY));
    set(&info, "dirty-flag", dirty);
    debug_assert!(header.is_some() == (layer.format == Format::Qcow2));
    info
}

fn format_specific(header: &Header, bitmaps: &[BitmapDirectoryEntry]) -> JsValue {
    let data = object([]);
    let v3 = header.version == Version::V3;
    set(&data, "compat", if v3 { "1.1" } else { "0.10" });
    set(&data, "compression-type", compression_name(header));
    if v3 {
        set(&data, "lazy-refcounts", header.compatible.contains(Compatible::LAZY_REFCOUNTS));
    }
    if !bitmaps.is_empty() {
        set(&data, "bitmaps", array(bitmaps.iter().map(bitmap)));
    }
    set(&data, "refcount-bits", header.geometry().refcount_bits());
    if header.has_data_file() {
        set(&data, "data-file", or_null(header.data_file().map(text)));
        set(&data, "data-file-raw", header.autoclear.contains(Autoclear::DATA_FILE_RAW));
    }
    if v3 {
        set(&data, "corrupt", header.incompatible.contains(Incompatible::CORRUPT));
        set(&data, "extended-l2", header.geometry().extended_l2());
    }
    data
}

fn info_snapshot(snapshot: &Snapshot) -> JsValue {
    const NSEC_PER_SEC: u64 = 1_000_000_000;
    let described = object([]);
    if let Some(icount) = snapshot.icount {
        set(&described, "icount", number(icount));
    }
    set(&described, "vm-clock-nsec", number(snapshot.vm_clock_nsec % NSEC_PER_SEC));
    set(&described, "name", text(&snapshot.name));
    set(&described, "date-sec", snapshot.date_sec);
    set(&described, "date-nsec", snapshot.date_nsec);
    set(&described, "vm-clock-sec", number(snapshot.vm_clock_nsec / NSEC_PER_SEC));
    set(&described, "id", text(&snapshot.id));
    set(&described, "vm-state-size", number(snapshot.vm_state_len));
    described
}
