//! `info`: what an image is, by its header, snapshots, bitmaps and encryption header. Nothing that it names is opened,
//! unless the backing chain is asked for.

use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{ArgMatches, Command};
use cowshed::format::{
    Autoclear, BitmapDirectoryEntry, BitmapFlags, Compatible, Compression, CryptMethod, Extension,
    Header, Incompatible, LuksHeader, Snapshot, Version,
};
use cowshed::image::{Identity, LuksVolume, Reference, ReferenceKind, Source};
use cowshed::storage::Storage;

use crate::cli::Session;
use crate::escape;
use crate::failure::{Failure, warn};
use crate::json::Json;
use crate::names::protocol_len;
use crate::node::Node;
use crate::open::{self, DiskImage, Opening};
use crate::options::{self, Output};
use crate::persona::Persona;
use crate::{size, snapshot};

/// The verb's name.
pub(crate) const NAME: &str = "info";

/// How many layers of a backing chain are shown at most.
const CHAIN_DEPTH_MAX: usize = 256;

/// Its options.
pub(crate) fn command() -> Command {
    Command::new(NAME)
        .about("Show what an image is: format, sizes, features, backing file, snapshots, bitmaps")
        .arg(options::format("format"))
        .arg(
            options::flag("backing-chain", 'b', "backing-chain")
                .help("Show the backing file too, and its backing file, and so on"),
        )
        .arg(options::output())
        .args(options::opening())
        .arg(options::files("FILE"))
}

/// Runs it.
pub(crate) fn run(matches: &ArgMatches, session: &mut Session) -> Result<u8, Failure> {
    let output = Output::from_matches(NAME, matches)?;
    let [name] = options::file_names(NAME, matches, "one image file name")?;
    let chain = matches.get_flag("backing-chain");
    let opening = Opening::from_matches(matches, session.persona, "format")?.alone();

    let layers = open::block_on(load(&name, &opening, chain))?;
    match output {
        Output::Human => {
            for (index, layer) in layers.iter().enumerate() {
                if index > 0 {
                    writeln!(session.out)?;
                }
                write!(session.out, "{}", layer.human())?;
            }
        }
        Output::Json if chain => {
            let list = Json::List(layers.iter().map(Description::json).collect());
            writeln!(session.out, "{}", list.pretty())?;
        }
        Output::Json => {
            for layer in &layers {
                writeln!(session.out, "{}", layer.json().pretty())?;
            }
        }
    }
    Ok(0)
}

/// Describes the image called `name`, and with `chain` what lies below it.
async fn load(name: &OsStr, opening: &Opening, chain: bool) -> Result<Vec<Description>, Failure> {
    let mut layers: Vec<Description> = Vec::new();
    let mut identities: Vec<Identity> = Vec::new();
    let given = name;
    let (name, opening) = opening.resolved(name)?;
    let (name, opening) = (name.as_os_str(), &opening);
    let first = opening.source(name).await;
    let mut next = Some(first.map_err(|failure| failure.of(given))?);
    while let Some(source) = next.take() {
        let location = source.location.clone();
        if source.identity.is_some_and(|identity| identities.contains(&identity)) {
            let message =
                format!("Backing file '{}' creates an infinite loop.", escape::path(&location));
            return Err(Failure::message(message));
        }
        identities.extend(source.identity);
        let protocol = opening.protocol().filter(|_| layers.is_empty());
        let loaded = Description::load(opening, source, protocol).await;
        let is_first = layers.is_empty();
        let mut layer = match is_first {
            true => loaded.map_err(|failure| failure.of(given))?,
            false => loaded?,
        };
        if is_first {
            layer.name = opening.shown(name, layer.format).into();
        }
        if let (true, Some(backing_file)) = (chain, &layer.backing_file) {
            if layers.len() + 1 >= CHAIN_DEPTH_MAX {
                return Err(Failure::image(
                    name,
                    "",
                    format!("the backing chain is deeper than {CHAIN_DEPTH_MAX}"),
                ));
            }
            let reference = Reference {
                kind: ReferenceKind::BackingFile,
                name: backing_file,
                format: layer.backing_format.as_deref(),
                from: &location,
                depth: layers.len() + 1,
            };
            next = Some(opening.backing(&reference).await?);
        }
        layers.push(layer);
    }
    Ok(layers)
}

/// What there is to say of one layer.
struct Description {
    location: PathBuf,
    /// What it is called.
    name: PathBuf,
    format: &'static str,
    virtual_size: u64,
    file: FileDescription,
    /// Whether it lies in the file, and is not the file itself.
    has_file: bool,
    header: Option<Arc<Header>>,
    backing_file: Option<Vec<u8>>,
    backing_format: Option<Vec<u8>>,
    snapshots: Vec<Snapshot>,
    bitmaps: Vec<BitmapDirectoryEntry>,
    luks: Option<LuksHeader>,
    /// The volume whose disk it is.
    volume: Option<Arc<LuksVolume<Node>>>,
}

impl Description {
    async fn load(
        opening: &Opening,
        source: Source<Node>,
        protocol: Option<&'static str>,
    ) -> Result<Self, Failure> {
        let location = source.location.clone();
        let storage = source.storage.clone();
        let format = storage.format_name(source.format);
        let failed = |reason: String| Failure::open(location.as_os_str(), reason);
        let image = opening.layer(source).await?;
        let volume = storage.volume().cloned();
        let file = FileDescription::load(&image, &location, &storage);
        let file = file.await.map_err(|error| failed(open::io_reason(&error)))?;
        let header = image.header();
        let backing_file = header.as_ref().and_then(|header| header.backing_file.clone());
        let backing_format =
            header.as_ref().and_then(|header| header.backing_format().map(<[u8]>::to_vec));
        Ok(Self {
            format: protocol.unwrap_or(format),
            has_file: protocol.is_none(),
            virtual_size: image.virtual_size(),
            file,
            backing_file,
            backing_format,
            snapshots: image.snapshots().to_vec(),
            bitmaps: match has_bitmaps(opening, &location, header.as_deref()) {
                true => image.load_bitmaps().await.map_err(|error| failed(open::reason(&error)))?,
                false => Vec::new(),
            },
            luks: image.load_luks_header().await.map_err(|error| failed(open::reason(&error)))?,
            volume,
            header,
            name: location.clone(),
            location,
        })
    }

    fn is_dirty(&self) -> bool {
        self.header.as_ref().is_some_and(|header| header.incompatible.contains(Incompatible::DIRTY))
    }

    fn is_encrypted(&self) -> bool {
        let method = self.header.as_ref().map_or(CryptMethod::None, |header| header.crypt);
        method != CryptMethod::None || self.volume.is_some()
    }

    /// The backing file's name as seen from here, by the letters, as QEMU joins it.
    fn full_backing_file(&self) -> Option<Vec<u8>> {
        let name = self.backing_file.as_deref()?;
        if protocol_len(name).is_some() || name.starts_with(b"/") {
            return Some(name.to_vec());
        }
        let location = self.location.as_os_str().as_bytes();
        let folder = location.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
        Some([&location[..folder], name].concat())
    }

    fn human(&self) -> String {
        let mut out = format!(
            "image: {}\nfile format: {}\nvirtual size: {} ({} bytes)\ndisk size: {}\n",
            escape::path(&self.name),
            self.format,
            size::human(self.virtual_size),
            self.virtual_size,
            size::human(self.file.allocated)
        );
        let mut line = |text: String| {
            out.push_str(&text);
            out.push('\n');
        };
        if self.is_encrypted() {
            line("encrypted: yes".to_owned());
        }
        if let Some(header) = &self.header {
            line(format!("cluster_size: {}", header.geometry().cluster_size()));
        }
        if self.is_dirty() {
            line("cleanly shut down: no".to_owned());
        }
        if let Some(name) = &self.backing_file {
            let full = self.full_backing_file().unwrap_or_default();
            let actual = match full == *name {
                true => String::new(),
                false => format!(" (actual path: {})", escape::terminal(&full)),
            };
            line(format!("backing file: {}{actual}", escape::terminal(name)));
        }
        if let Some(format) = &self.backing_format {
            line(format!("backing file format: {}", escape::terminal(format)));
        }
        out.push_str(&snapshot::table(&self.snapshots));
        if let Some(specific) = self.specific() {
            out.push_str("Format specific information:\n");
            out.push_str(&specific.lines(1));
        }
        if self.has_file {
            out.push_str(&format!(
                "Child node '/file':\n    filename: {}\n    protocol type: {}\n    file length: {} ({} bytes)\n    \
                 disk size: {}\n",
                escape::path(&self.file.name),
                self.file.protocol,
                size::human(self.file.len),
                self.file.len,
                size::human(self.file.allocated)
            ));
        }
        out
    }

    fn json(&self) -> Json {
        let mut members = vec![
            ("virtual-size", Json::number(self.virtual_size)),
            ("filename", Json::text(self.name.as_os_str().as_bytes())),
            ("format", Json::text(self.format)),
            ("actual-size", Json::number(self.file.allocated)),
        ];
        if self.has_file || self.file.is_file {
            members.push(("dirty-flag", Json::Bool(self.is_dirty())));
        }
        if let Some(header) = &self.header {
            members.push(("cluster-size", Json::number(header.geometry().cluster_size())));
        }
        if self.is_encrypted() {
            members.push(("encrypted", Json::Bool(true)));
        }
        if let Some(name) = &self.backing_file {
            members.push(("backing-filename", Json::text(name)));
            members.push((
                "full-backing-filename",
                Json::text(self.full_backing_file().unwrap_or_default()),
            ));
        }
        if let Some(format) = &self.backing_format {
            members.push(("backing-filename-format", Json::text(format)));
        }
        if !self.snapshots.is_empty() {
            members.push((
                "snapshots",
                Json::List(self.snapshots.iter().map(snapshot_json).collect()),
            ));
        }
        if let Some(specific) = self.specific() {
            let specific = vec![("type", Json::text(self.format)), ("data", specific)];
            members.push(("format-specific", Json::Object(specific)));
        }
        let child = || Json::Object(vec![("name", Json::text("file")), ("info", self.file.json())]);
        let children = if self.has_file { vec![child()] } else { Vec::new() };
        members.push(("children", Json::List(children)));
        Json::Object(members)
    }

    /// What only images of this format have.
    fn specific(&self) -> Option<Json> {
        if let Some(volume) = &self.volume {
            return Some(specific_of_volume(volume.header()));
        }
        let header = self.header.as_ref()?;
        Some(specific(header, &self.bitmaps, self.luks.as_ref()))
    }
}

/// What only qcow2 images have.
pub(crate) fn specific(
    header: &Header,
    bitmaps: &[BitmapDirectoryEntry],
    luks: Option<&LuksHeader>,
) -> Json {
    let compression = match header.compression {
        Compression::Deflate => "zlib",
        Compression::Zstd => "zstd",
    };
    let mut members = vec![
        ("compat", Json::text(if header.version == Version::V2 { "0.10" } else { "1.1" })),
        ("compression-type", Json::text(compression)),
        ("refcount-bits", Json::number(header.geometry().refcount_bits())),
    ];
    if header.version != Version::V2 {
        let lazy = header.compatible.contains(Compatible::LAZY_REFCOUNTS);
        members.push(("lazy-refcounts", Json::Bool(lazy)));
        members.push(("corrupt", Json::Bool(header.incompatible.contains(Incompatible::CORRUPT))));
        members.push(("extended-l2", Json::Bool(header.geometry().extended_l2())));
    }
    if !bitmaps.is_empty() {
        members.push(("bitmaps", Json::List(bitmaps.iter().map(bitmap_json).collect())));
    }
    if header.has_data_file() {
        if let Some(name) = header.data_file() {
            members.push(("data-file", Json::text(name)));
        }
        members.push((
            "data-file-raw",
            Json::Bool(header.autoclear.contains(Autoclear::DATA_FILE_RAW)),
        ));
    }
    match (header.crypt, luks) {
        (CryptMethod::None, _) => {}
        (CryptMethod::Aes, _) => {
            members.push(("encrypt", Json::Object(vec![("format", Json::text("aes"))])));
        }
        (CryptMethod::Luks, Some(luks)) => members.push(("encrypt", luks_json(luks))),
        (CryptMethod::Luks, None) => {
            members.push(("encrypt", Json::Object(vec![("format", Json::text("luks"))])));
        }
    }
    Json::Object(members)
}

/// Whether the image has bitmaps to show. Warns if it has some that are not to be trusted.
fn has_bitmaps(opening: &Opening, location: &Path, header: Option<&Header>) -> bool {
    let extensions = header.map_or(&[][..], |header| &header.extensions);
    let has_some = extensions.iter().any(|extension| matches!(extension, Extension::Bitmaps(_)));
    let trusted = header.is_some_and(|header| header.bitmaps().is_some());
    if has_some && !trusted {
        match opening.persona() {
            Persona::QemuImg | Persona::QemuIo => warn(
                "qemu-img: warning: a program lacking bitmap support modified this file, so all bitmaps are now \
                 considered inconsistent\nSome clusters may be leaked, run 'qemu-img check -r' on the image file to fix.",
            ),
            Persona::Cowshed => warn(&format!(
                "cowshed: {}: warning: a program that does not know bitmaps has written to the image: they are \
                 inconsistent, and not shown",
                escape::path(location)
            )),
        }
    }
    trusted
}

/// What there is to say of the file itself, or of what there is in its place.
struct FileDescription {
    name: PathBuf,
    is_file: bool,
    /// In bytes, rounded up to sectors, as QEMU sees it.
    len: u64,
    /// The space that it takes, in bytes.
    allocated: u64,
    /// QEMU's name for the kind of file.
    protocol: &'static str,
}

impl FileDescription {
    async fn load(image: &DiskImage, location: &Path, storage: &Node) -> std::io::Result<Self> {
        let mut len = image.layers().next().map_or(0, |layer| layer.file_len);
        let mut storage = storage;
        if let Some(volume) = storage.volume() {
            storage = volume.storage();
            len = Storage::len(storage).await?;
        }
        let len = len.next_multiple_of(512);
        let file = match storage {
            Node::File(storage) => storage.file(),
            Node::Other(other) => {
                let (name, protocol) = (other.name.clone().into(), other.driver);
                return Ok(Self { name, is_file: false, len, allocated: 0, protocol });
            }
        };
        let metadata = file.metadata()?;
        let file_type = metadata.file_type();
        let is_device = file_type.is_block_device() || file_type.is_char_device();
        Ok(Self {
            name: location.to_owned(),
            is_file: true,
            len,
            allocated: metadata.blocks() * 512,
            protocol: if is_device { "host_device" } else { "file" },
        })
    }

    fn json(&self) -> Json {
        let mut members = vec![
            ("children", Json::List(vec![])),
            ("virtual-size", Json::number(self.len)),
            ("filename", Json::text(self.name.as_os_str().as_bytes())),
            ("format", Json::text(self.protocol)),
            ("actual-size", Json::number(self.allocated)),
        ];
        if self.is_file {
            let specific = vec![("type", Json::text("file")), ("data", Json::Object(vec![]))];
            members.push(("format-specific", Json::Object(specific)));
            members.push(("dirty-flag", Json::Bool(false)));
        }
        Json::Object(members)
    }
}

fn snapshot_json(snapshot: &Snapshot) -> Json {
    let mut members = vec![
        ("id", Json::text(&snapshot.id)),
        ("name", Json::text(&snapshot.name)),
        ("vm-state-size", Json::number(snapshot.vm_state_len)),
        ("date-sec", Json::number(snapshot.date_sec)),
        ("date-nsec", Json::number(snapshot.date_nsec)),
        ("vm-clock-sec", Json::number(snapshot.vm_clock_nsec / 1_000_000_000)),
        ("vm-clock-nsec", Json::number(snapshot.vm_clock_nsec % 1_000_000_000)),
    ];
    if let Some(icount) = snapshot.icount {
        members.push(("icount", Json::number(icount)));
    }
    Json::Object(members)
}

fn bitmap_json(bitmap: &BitmapDirectoryEntry) -> Json {
    let flags = [(BitmapFlags::IN_USE, "in-use"), (BitmapFlags::AUTO, "auto")];
    let flags = flags.into_iter().filter(|(flag, _)| bitmap.flags.contains(*flag));
    Json::Object(vec![
        ("flags", Json::List(flags.map(|(_, name)| Json::text(name)).collect())),
        ("name", Json::text(&bitmap.name)),
        ("granularity", Json::number(bitmap.granularity())),
    ])
}

fn luks_json(luks: &LuksHeader) -> Json {
    let mut members = luks_members(luks);
    members.push(("format", Json::text("luks")));
    Json::Object(members)
}

/// What only LUKS volumes have.
pub(crate) fn specific_of_volume(luks: &LuksHeader) -> Json {
    Json::Object(luks_members(luks))
}

fn luks_members(luks: &LuksHeader) -> Vec<(&'static str, Json)> {
    let slots = luks.slots.iter().map(|slot| {
        let mut members = vec![
            ("active", Json::Bool(slot.active)),
            ("key-offset", Json::number(slot.key_offset)),
        ];
        if slot.active {
            members.push(("iters", Json::number(slot.iterations)));
            members.push(("stripes", Json::number(slot.stripes)));
        }
        Json::Object(members)
    });
    let mut members = vec![
        ("cipher-alg", Json::text(luks.cipher_algorithm())),
        ("cipher-mode", Json::text(luks.mode())),
        ("ivgen-alg", Json::text(luks.iv_generator().unwrap_or_default())),
        ("hash-alg", Json::text(&luks.hash)),
        ("detached-header", Json::Bool(false)),
        ("uuid", Json::text(&luks.uuid)),
        ("payload-offset", Json::number(luks.payload_offset)),
        ("master-key-iters", Json::number(luks.master_key_iterations)),
        ("slots", Json::List(slots.collect())),
    ];
    if let Some(hash) = luks.iv_hash() {
        members.push(("ivgen-hash-alg", Json::text(hash)));
    }
    members
}
