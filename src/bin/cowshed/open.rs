//! Opening an image by its name on the command line: format, locks, gate, caches; and the words for what goes wrong.

use std::ffi::{OsStr, OsString};
use std::future::Future;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::ArgMatches;
use cowshed::Error;
use cowshed::cache::CacheOptions;
use cowshed::crypt::Secret;
use cowshed::format::{CryptMethod, HostOffset};
use cowshed::image::{
    Extents, Gate as _, Image, LayerInfo, OpenOptions, Opened, Reference, References,
    SnapshotSelector, Source, WriteOptions,
};
use cowshed::rt::{DiskStorage, FileOptions, FolderGate, LockError, LockMode, open_storage};
use cowshed::storage::{Buf, Storage};
use cowshed::workers::Workers;

use crate::failure::{Failure, warn};
use crate::given::Given;
use crate::image_format::ImageFormat;
use crate::layout::{self, Layout, Place};
use crate::names::{self, Named, Names, named};
use crate::node::Node;
use crate::options;
use crate::persona::Persona;
use crate::secret::{self, Keys, Secrets};
use crate::size::SIZE_MAX;
use crate::unclean;
use crate::wording;

/// An image in files.
pub(crate) type DiskImage = Image<Node>;
/// Its extents.
pub(crate) type DiskExtents<'a> = Extents<'a, Node>;

/// How much of a file is looked at to tell its format, in bytes.
pub(crate) const PROBE_LEN_BYTES: usize = 512;

/// Runs a future on this thread until it is done. The thread is the command's own: storages may keep it waiting for what is
/// short.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    cowshed::rt::block_on(future)
}

/// How images are opened.
#[derive(Debug, Clone)]
pub(crate) struct Opening {
    persona: Persona,
    format: Option<String>,
    force_share: bool,
    exclusive: bool,
    direct: bool,
    volatile: bool,
    allow: Vec<PathBuf>,
    keys: Keys,
    /// What names are.
    naming: Naming,
    /// What the image lies in, if it is no file.
    node: Option<Names>,
    /// What the format is called, if that is not its own name.
    protocol: Option<&'static str>,
    /// What is to be found where the image names other files: see [`Layout::named`].
    named: Names,
    /// The encryption that the options speak of.
    encryption: Option<String>,
    options: OpenOptions,
}

/// What the name of an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Naming {
    /// A file name, which may have a protocol in front.
    Name,
    /// Options of the image.
    Options,
    /// What the options were found to say: a file's, or one that is only shown.
    Resolved,
}

impl Opening {
    /// For a verb whose options `clap` does not read: no option is given.
    pub(crate) fn new(persona: Persona) -> Self {
        Self {
            persona,
            format: None,
            force_share: false,
            exclusive: false,
            direct: false,
            volatile: false,
            allow: Vec::new(),
            keys: Keys::default(),
            naming: Naming::Name,
            node: None,
            protocol: None,
            named: Names::new(),
            encryption: None,
            options: OpenOptions::default(),
        }
    }

    /// Takes these passphrases; `encryption` is what the image is said to be encrypted with.
    pub(crate) fn keys(mut self, keys: Keys, encryption: Option<String>) -> Self {
        (self.keys, self.encryption) = (keys, encryption);
        self
    }

    /// Takes names for options of images, or not.
    pub(crate) fn image_opts(mut self, image_opts: bool) -> Self {
        self.naming = if image_opts { Naming::Options } else { Naming::Name };
        self
    }

    /// The passphrases of the command line.
    pub(crate) fn secrets(&self) -> &Secrets {
        &self.keys.secrets
    }

    /// Takes the image for this format instead of looking at its first bytes.
    pub(crate) fn format(mut self, format: Option<String>) -> Self {
        self.format = format;
        self
    }

    /// Opens it although somebody writes to it, or not.
    pub(crate) fn force_share(mut self, force_share: bool) -> Self {
        self.force_share = force_share;
        self
    }

    /// Lets images name these files, and what is in these folders.
    pub(crate) fn allow(mut self, paths: Vec<PathBuf>) -> Self {
        self.allow = paths;
        self
    }

    /// Takes caches of these sizes.
    pub(crate) fn caches(mut self, caches: CacheOptions) -> Self {
        self.options.cache = caches;
        self
    }

    /// What the options say; `format` is the id of the one for the format.
    ///
    /// # Errors
    /// An option that is not supported is given, or a size is wrong.
    pub(crate) fn from_matches(
        matches: &ArgMatches,
        persona: Persona,
        format: &str,
    ) -> Result<Self, Failure> {
        let image_opts = matches.get_flag("image-opts");
        if image_opts && matches.contains_id(format) {
            return Err(Failure::message("--image-opts and --format are mutually exclusive"));
        }
        let mut options = OpenOptions::default();
        if matches.try_contains_id("cache-size").is_ok() {
            let size = |id| options::bytes(matches, id, id, 0..=SIZE_MAX);
            options.cache.cache_size = size("cache-size")?;
            options.cache.l2_cache_size = size("l2-cache-size")?;
            options.cache.l2_cache_entry_size = size("l2-cache-entry-size")?;
            options.cache.refcount_cache_size = size("refcount-cache-size")?;
        }
        Ok(Self {
            persona,
            format: options::text(matches, format).map(str::to_owned),
            force_share: matches.get_flag("force-share"),
            exclusive: false,
            direct: false,
            volatile: false,
            allow: matches.get_many::<PathBuf>("allow").into_iter().flatten().cloned().collect(),
            keys: Keys::new(Secrets::from_matches(matches)?, None),
            naming: if image_opts { Naming::Options } else { Naming::Name },
            node: None,
            protocol: None,
            named: Names::new(),
            encryption: None,
            options,
        })
    }

    /// Opens the backing file of a new image, in `format` if it is given, whoever else uses it.
    pub(crate) fn of_backing_file(
        persona: Persona,
        format: Option<&str>,
        allow: Vec<PathBuf>,
    ) -> Self {
        Self {
            persona,
            format: format.map(str::to_owned),
            force_share: true,
            exclusive: false,
            direct: false,
            volatile: false,
            allow,
            keys: Keys::default(),
            naming: Naming::Name,
            node: None,
            protocol: None,
            named: Names::new(),
            encryption: None,
            options: OpenOptions::default(),
        }
    }

    /// What a name means, and how that is opened: the name of a file, or what the image is shown as.
    ///
    /// # Errors
    /// An option is not supported, or there is no file name.
    pub(crate) fn resolved(&self, name: &OsStr) -> Result<(OsString, Self), Failure> {
        let failed = |reason: String| Failure::open(name, reason);
        let options = match self.naming {
            Naming::Resolved => return Ok((name.to_owned(), self.clone())),
            Naming::Options => names::parse(&name.to_string_lossy()).0,
            Naming::Name => match named(name).map_err(failed)? {
                Named::Options(options) => options,
                Named::File(file) => {
                    return Ok((file, Self { naming: Naming::Resolved, ..self.clone() }));
                }
            },
        };
        self.clone().by_options(options).map_err(failed)
    }

    /// As [`Self::resolved`], of an image's options.
    pub(crate) fn by_options(mut self, mut options: Names) -> Result<(OsString, Self), String> {
        if self.format.is_some() && !options.contains_key("driver") {
            options.extend(self.format.take().map(|format| ("driver".to_owned(), format)));
        }
        self.keys.take_ids(&mut options);
        self.encryption = options.remove("encrypt.format");
        let layout = Layout::take(&mut options, None)?;
        if layout.copies_on_read {
            return Err("copy-on-read is for io alone".into());
        }
        // They change nothing of what the command shows or does.
        options.retain(|name, _| {
            !["node-name", "read-only", "auto-read-only", "discard", "cache.no-flush"]
                .contains(&name.as_str())
        });
        if let Some(direct) = options.remove("cache.direct") {
            self.direct = direct == "on";
        }
        let caches = &mut self.options.cache;
        for (name, size) in [
            ("cache-size", &mut caches.cache_size),
            ("l2-cache-size", &mut caches.l2_cache_size),
            ("l2-cache-entry-size", &mut caches.l2_cache_entry_size),
            ("refcount-cache-size", &mut caches.refcount_cache_size),
        ] {
            let Some(value) = options.remove(name) else { continue };
            let parsed = crate::size::parse(&value);
            *size = Some(parsed.map_err(|_| format!("Parameter '{name}' expects a size"))?);
        }
        if let Some((name, value)) = options.iter().next() {
            return Err(format!("the option {name}={value} is not supported"));
        }
        Ok((layout.name(), self.at(layout)))
    }

    /// For the image that is there.
    pub(crate) fn at(mut self, layout: Layout) -> Self {
        self.naming = Naming::Resolved;
        self.node = match layout.place {
            Place::File(_) => None,
            Place::Node(names) => Some(names),
        };
        (self.format, self.protocol, self.named) = (layout.format, layout.protocol, layout.named);
        self
    }

    /// What QEMU calls an image of this format in the file called `name`: not by that alone if it has a passphrase.
    pub(crate) fn shown(&self, name: &OsStr, format: &str) -> OsString {
        let Some(Some(id)) = self.keys.ids.first() else { return name.to_owned() };
        let file = name.to_string_lossy();
        let names = [
            ("driver", format),
            (secret::option(format), id),
            ("file.driver", "file"),
            ("file.filename", &file),
        ];
        layout::name_of(&names.map(|(name, value)| (name.to_owned(), value.to_owned())).into())
    }

    /// What is to be found where the image names other files.
    pub(crate) fn named(&self) -> &Names {
        &self.named
    }

    /// What the format is called, if that is not its own name.
    pub(crate) fn protocol(&self) -> Option<&'static str> {
        self.protocol
    }

    /// Whether the image is written to.
    pub(crate) fn is_writable(&self) -> bool {
        self.options.write.is_some()
    }

    /// For an image that is named where this one names another file.
    pub(crate) fn for_named(&self, writable: bool) -> Self {
        let mut opening = self.clone();
        (opening.format, opening.node, opening.protocol) = (None, None, None);
        opening.named.clear();
        opening.exclusive = false;
        opening.options.write = if writable { self.options.write } else { None };
        opening
    }

    /// Opens what an image lies in by the image's options.
    ///
    /// # Errors
    /// [`Failure::open`].
    pub(crate) async fn source_of(&self, options: Names) -> Result<Source<Node>, Failure> {
        let failed = |reason: String| Failure::message(reason);
        let (name, opening) = self.clone().by_options(options).map_err(failed)?;
        let source = Box::pin(opening.source(&name)).await?;
        if let Some(debug) = source.storage.debug() {
            debug.begin();
        }
        Ok(source)
    }

    /// For the layers from `depth` on, as an image of their own.
    pub(crate) fn below(&self, depth: usize) -> Self {
        let mut opening = self.clone();
        let ids = &mut opening.keys.ids;
        ids.drain(..depth.min(ids.len()));
        opening.encryption = None;
        let prefix = "backing.".repeat(depth);
        let named = self.named.iter().filter_map(|(name, value)| {
            Some((name.strip_prefix(&prefix)?.to_owned(), value.clone()))
        });
        opening.named = named.collect();
        opening
    }

    /// How the engine opens, without a passphrase.
    pub(crate) fn options(&self) -> &OpenOptions {
        &self.options
    }

    /// The engine's options for an image, with its passphrase if that is given.
    ///
    /// # Errors
    /// There is no such secret.
    pub(crate) fn options_with_key(&self) -> Result<OpenOptions, String> {
        let mut options = self.options.clone();
        options.key = self.keys.own()?;
        Ok(options)
    }

    /// The passphrase of a LUKS volume.
    ///
    /// # Errors
    /// There is no such secret, or none is given where scripts expect to be told.
    pub(crate) fn volume_key(&self, location: &Path) -> Result<Option<Secret>, String> {
        self.keys.of_volume(location, self.persona)
    }

    /// Asks whether the passphrase opens an image of which the metadata alone is looked at, for scripts that expect it to be
    /// asked: under its own name only if it was given.
    ///
    /// # Errors
    /// [`Failure::open`] if it is missing or wrong.
    pub(crate) async fn check_key(
        &self,
        name: &OsStr,
        source: &Source<Node>,
    ) -> Result<(), Failure> {
        let failed = |reason: String| Failure::open(name, reason);
        let (_, opening) = self.resolved(name)?;
        let mut options = opening.options_with_key().map_err(failed)?;
        (options.references, options.write) = (References::Leave, None);
        let has_key = options.key.is_some();
        let gate = cowshed::image::RefuseAll::new();
        let image = match Image::open(source.clone(), &gate, options).await {
            Ok(opened) => opened.image,
            Err(error @ Error::WrongKey) => return Err(failed(reason(&error))),
            // What else is wrong with it is for others to say.
            Err(_) => return Ok(()),
        };
        opening.agrees(&image).map_err(failed)?;
        let is_encrypted = image.header().is_some_and(|h| h.crypt != CryptMethod::None);
        if is_encrypted && !has_key && self.persona != Persona::Cowshed {
            return Err(failed(crate::secret::REQUIRED.to_owned()));
        }
        Ok(())
    }

    /// Asks whether an image is encrypted with what the options speak of.
    ///
    /// # Errors
    /// It is not.
    fn agrees(&self, image: &DiskImage) -> Result<(), String> {
        let Some(said) = &self.encryption else { return Ok(()) };
        let found = match image.header().map(|header| header.crypt) {
            Some(CryptMethod::Aes) => "aes",
            Some(CryptMethod::Luks) => "luks",
            Some(CryptMethod::None) | None => {
                return Err(format!(
                    "No encryption in image header, but options specified format '{said}'"
                ));
            }
        };
        if said == found {
            return Ok(());
        }
        Err(format!("Header reported '{found}' encryption format but options specify '{said}'"))
    }

    /// Asks whether an image has the files of which the options speak.
    ///
    /// # Errors
    /// It has none of that kind.
    fn uses(&self, image: &DiskImage) -> Result<(), String> {
        if self.options.references == References::Leave {
            return Ok(());
        }
        let depth = |name: &str| name.matches("backing.").count();
        let unused = self.named.keys().find(|name| depth(name) >= image.layers().len());
        match unused {
            Some(name) => {
                Err(format!("the option {name} is about a backing file, and there is none"))
            }
            None => Ok(()),
        }
    }

    /// Opens for writing: for what [`Image`]'s methods that change something need. Backing files are read all the same.
    ///
    /// The locks are those of QEMU: nobody else may write to the image, or to a raw one change its length.
    pub(crate) fn writable(mut self, options: WriteOptions) -> Self {
        self.options.write = Some(options);
        self
    }

    /// Who the command is.
    pub(crate) fn persona(&self) -> Persona {
        self.persona
    }

    /// Opens nothing that the image names.
    pub(crate) fn alone(mut self) -> Self {
        self.options.references = References::Leave;
        self
    }

    /// Reads past the page cache, or not.
    pub(crate) fn direct(mut self, direct: bool) -> Self {
        self.direct = direct;
        self
    }

    /// Flushes make nothing durable, or do.
    pub(crate) fn volatile(mut self, volatile: bool) -> Self {
        self.volatile = volatile;
        self
    }

    /// Lets long computations be done by these.
    pub(crate) fn workers(mut self, workers: Arc<dyn Workers>) -> Self {
        self.options.workers = Some(workers);
        self
    }

    /// Lets no one write to the image meanwhile, even if it is raw.
    pub(crate) fn exclusive(mut self) -> Self {
        self.exclusive = true;
        self
    }

    /// Opens the snapshot that the option `id` names, if it is given.
    pub(crate) fn at_snapshot(mut self, matches: &ArgMatches, id: &str) -> Self {
        let word = options::text(matches, id).map(|word| word.as_bytes().to_vec());
        self.options.snapshot = word.map(SnapshotSelector::IdOrName);
        self
    }

    /// Opens the image called `name`, and what it refers to.
    ///
    /// # Errors
    /// [`Failure::open`].
    pub(crate) async fn open(&self, name: &OsStr) -> Result<DiskImage, Failure> {
        let opened = self.try_open(name, self.options.snapshot.clone()).await?;
        opened.map_err(|error| Failure::open(name, reason(&error)))
    }

    /// As [`Self::open`], for writing; says what `qemu-img` says of a raw image whose format was guessed.
    ///
    /// # Errors
    /// [`Failure::open`].
    pub(crate) async fn open_and_warn(&self, name: &OsStr) -> Result<DiskImage, Failure> {
        let image = self.open(name).await?;
        let is_raw = image.header().is_none() && image.layer_storage(0).volume().is_none();
        if is_raw && self.resolved(name)?.1.format.is_none() {
            warn_of_guess(name);
        }
        Ok(image)
    }

    /// As [`Self::open`], at another snapshot, and with the engine's own error.
    ///
    /// # Errors
    /// The file itself cannot be opened.
    pub(crate) async fn try_open(
        &self,
        name: &OsStr,
        snapshot: Option<SnapshotSelector>,
    ) -> Result<Result<DiskImage, Error>, Failure> {
        let source = self.source(name).await?;
        Ok(self.opened(name, source, snapshot).await?.map(|opened| opened.image))
    }

    /// As [`Self::open`], of a file that [`Self::source`] has opened, and with the image's cleaner.
    ///
    /// # Errors
    /// What the system says about the image's folder.
    pub(crate) async fn opened(
        &self,
        name: &OsStr,
        source: Source<Node>,
        snapshot: Option<SnapshotSelector>,
    ) -> Result<Result<Opened<Node>, Error>, Failure> {
        let (file, opening) = self.resolved(name)?;
        let gate = opening.gate(&file)?;
        let options = opening.options_with_key();
        let mut options = options.map_err(|reason| Failure::open(name, reason))?;
        options.snapshot = snapshot;
        if options.write.is_some() {
            unclean::repair(&source).await;
        }
        let debug = source.storage.debug().cloned();
        let opened = Image::open(source, &gate, options).await.map_err(|error| gate.blame(error));
        if let Some(debug) = debug {
            debug.begin();
        }
        if let Ok(opened) = &opened {
            let agrees = opening.agrees(&opened.image).and_then(|()| opening.uses(&opened.image));
            agrees.map_err(|reason| Failure::open(name, reason))?;
        }
        Ok(opened)
    }

    /// Opens the file called `name`, and finds out its format unless it is given.
    ///
    /// # Errors
    /// [`Failure::open`].
    pub(crate) async fn source(&self, name: &OsStr) -> Result<Source<Node>, Failure> {
        if self.naming != Naming::Resolved {
            let (file, opening) = self.resolved(name)?;
            let opened = Box::pin(opening.source(&file)).await;
            return opened.map_err(|failure| failure.of(name));
        }
        if self.force_share && self.options.write.is_some() {
            let reason = "force-share=on can only be used with read-only images";
            return Err(Failure::open(name, reason));
        }
        let format = match self.format.as_deref() {
            Some(format) => Some(
                ImageFormat::from_name(format)
                    .ok_or_else(|| Failure::open(name, format!("Unknown driver '{format}'")))?,
            ),
            None => None,
        };
        match self.node.clone() {
            Some(node) => self.source_in_node(name, node, format).await,
            None => self.source_in_file(name, format).await,
        }
    }

    async fn source_in_file(
        &self,
        name: &OsStr,
        format: Option<ImageFormat>,
    ) -> Result<Source<Node>, Failure> {
        let failed = |error: io::Error| match self.kind_failure(name, &error) {
            Some(reason) => Failure::open(name, reason),
            None => open_failure(name, &error, self.persona),
        };
        let format = match format {
            Some(format) => format,
            None => self.probe(name).await.map_err(failed)?,
        };
        let lock = match format {
            _ if self.force_share => LockMode::ForceShare,
            ImageFormat::Raw | ImageFormat::Luks if !self.exclusive => LockMode::Shared,
            _ => LockMode::Exclusive,
        };
        let storage = open_storage(name, &self.file_options(lock)).map_err(failed)?;
        self.source_in(name, Node::File(storage), format, name.into()).await
    }

    async fn source_in_node(
        &self,
        name: &OsStr,
        node: Names,
        format: Option<ImageFormat>,
    ) -> Result<Source<Node>, Failure> {
        let failed = |reason: String| Failure::open(name, reason);
        let (storage, file) = Box::pin(self.node(node)).await.map_err(failed)?;
        let format = match format {
            Some(format) => format,
            None => {
                let read = Storage::read_at(&storage, Buf::zeroed(PROBE_LEN_BYTES), 0).await;
                ImageFormat::detect(&read.map_err(|error| failed(io_reason(&error)))?)
            }
        };
        // What it names lies beside its file, if it has one.
        let location = file.unwrap_or_else(|| name.into());
        self.source_in(name, storage, format, location).await
    }

    /// The image of this format that lies in `node`.
    async fn source_in(
        &self,
        name: &OsStr,
        node: Node,
        format: ImageFormat,
        location: PathBuf,
    ) -> Result<Source<Node>, Failure> {
        let node = match format {
            ImageFormat::Luks => self.unlocked(name, node).await?,
            ImageFormat::Qcow2 | ImageFormat::Raw => node,
        };
        Ok(node.into_source(format.engine(), location))
    }

    /// A file that is no image by itself.
    ///
    /// # Errors
    /// It cannot be opened: in QEMU's words.
    pub(crate) fn file(&self, name: &OsStr) -> Result<DiskStorage, String> {
        let lock = if self.force_share { LockMode::ForceShare } else { LockMode::Exclusive };
        let failed = |error: io::Error| open_failure(name, &error, self.persona).reason();
        open_storage(name, &self.file_options(lock)).map_err(failed)
    }

    /// Opens the backing file that `reference` names.
    ///
    /// # Errors
    /// It is refused, or cannot be opened.
    pub(crate) async fn backing(&self, reference: &Reference<'_>) -> Result<Source<Node>, Failure> {
        let from = reference.from.as_os_str();
        match self.gate(from)?.open(reference).await {
            Ok(cowshed::image::Answer::Open(source)) => Ok(source),
            // The gate of the command does not answer that.
            Ok(cowshed::image::Answer::Zeros) => {
                Err(Failure::open(from, "the backing file is not to be had"))
            }
            Err(error) => Err(Failure::open(from, reason(&error))),
        }
    }

    /// Opens a layer that the gate has given, alone.
    ///
    /// # Errors
    /// [`Failure::open`].
    pub(crate) async fn layer(&self, source: Source<Node>) -> Result<DiskImage, Failure> {
        let name = source.location.clone();
        let gate = cowshed::image::RefuseAll::new();
        let opened = Image::open(source, &gate, self.options.clone()).await;
        opened
            .map(|opened| opened.image)
            .map_err(|error| Failure::open(name.as_os_str(), reason(&error)))
    }

    /// What decides which files images may name.
    ///
    /// # Errors
    /// What the system says about the image's folder.
    pub(crate) fn gate(&self, name: &OsStr) -> Result<Given, Failure> {
        let failed = |error: io::Error| open_failure(name, &error, self.persona);
        let mut gate = match self.persona {
            // What lies in no file has no folder but the current one.
            Persona::Cowshed if self.node.is_some() => FolderGate::new("./").map_err(failed)?,
            Persona::Cowshed => FolderGate::new(name).map_err(failed)?,
            Persona::QemuImg | Persona::QemuIo => FolderGate::plain_files(),
        };
        for path in &self.allow {
            gate = gate.allow(path).map_err(|error| {
                Failure::message(format!(
                    "--allow {}: {}",
                    crate::escape::path(path),
                    io_reason(&error)
                ))
            })?;
        }
        let lock = if self.force_share { LockMode::ForceShare } else { LockMode::Exclusive };
        let (keys, persona) = (self.keys.clone(), self.persona);
        let gate = gate.keys(move |locked| keys.ask(locked, persona));
        Ok(Given::new(gate.options(&self.file_options(lock)), self.clone()))
    }

    pub(crate) fn file_options(&self, lock: LockMode) -> FileOptions {
        let writable = self.options.write.is_some();
        FileOptions::new()
            .direct(self.direct)
            .lock(lock)
            .block_device(true)
            // Whoever names one has to say so.
            .character_device(self.protocol.is_some_and(|driver| driver != "file"))
            .writable(writable)
            .volatile(self.volatile)
    }

    /// What QEMU says of something that is not of the kind that is to be opened, if not that it is no regular file.
    fn kind_failure(&self, name: &OsStr, error: &io::Error) -> Option<String> {
        let is_wrong = error.kind() == io::ErrorKind::InvalidInput
            || error.kind() == io::ErrorKind::IsADirectory;
        if !is_wrong || self.persona == Persona::Cowshed {
            return None;
        }
        if self.is_writable() && std::fs::metadata(name).is_ok_and(|file| file.is_dir()) {
            return Some(format!("Could not open '{}': Is a directory", name.display()));
        }
        let driver = self.protocol.filter(|driver| *driver != "file")?;
        Some(format!(
            "'{driver}' driver requires '{}' to be either a character or block device",
            name.display()
        ))
    }

    async fn probe(&self, name: &OsStr) -> io::Result<ImageFormat> {
        let options = FileOptions::new().lock(LockMode::Off).block_device(true);
        let storage = open_storage(name, &options)?;
        let read = Storage::read_at(&storage, Buf::zeroed(PROBE_LEN_BYTES), 0).await;
        Ok(ImageFormat::detect(&read?))
    }
}

/// The extents of `len` bytes of `image` from `offset`. As `qemu-img` does, it looks for holes under the data of layers
/// whose clusters were allocated and never written.
///
/// # Errors
/// The range is not within the disk.
pub(crate) async fn extents(
    image: &DiskImage,
    offset: u64,
    len: u64,
) -> cowshed::Result<DiskExtents<'_>> {
    let mut preallocated = Vec::new();
    for (depth, layer) in image.layers().enumerate() {
        preallocated.push(is_preallocated(image, depth, &layer).await);
    }
    Ok(image.extents(offset, len)?.with_holes(preallocated))
}

/// Whether a layer has more clusters than its file takes space for, by more than a tenth. What it has is what its refcounts
/// say: a cluster that was freed leaves a hole too. Matches qcow2_detect_metadata_preallocation in qcow2-refcount.c.
async fn is_preallocated(image: &DiskImage, depth: usize, layer: &LayerInfo<'_>) -> bool {
    let (Some(header), Ok(metadata)) = (&layer.header, std::fs::metadata(layer.location)) else {
        return false;
    };
    let cluster_size = header.geometry().cluster_size();
    let taken = metadata.blocks() * 512 / cluster_size;
    let enough = (taken * 10 / 9).max(taken + 2);
    let clusters = layer.file_len / cluster_size;
    let mut found = 0;
    for cluster in 0..clusters {
        // Most files are no longer than the space that they take, and no refcount is read.
        if found >= enough || found + (clusters - cluster) < enough {
            break;
        }
        match image.layer_refcount(depth, HostOffset::new(cluster * cluster_size)).await {
            Ok(refcount) => found += u64::from(refcount != Some(0)),
            Err(_) => return false,
        }
    }
    found >= enough
}

/// Says that an image is written to that was taken for raw because it is nothing else.
pub(crate) fn warn_of_guess(name: &OsStr) {
    warn(&format!(
        "WARNING: Image format was not specified for '{}' and probing guessed raw.\n         Automatically detecting the \
         format is dangerous for raw images, write operations on block 0 will be restricted.\n         Specify the \
         'raw' format explicitly to remove the restrictions.",
        crate::escape::terminal(name.as_encoded_bytes())
    ));
}

/// A file cannot be opened.
pub(crate) fn open_failure(name: &OsStr, error: &io::Error, persona: Persona) -> Failure {
    let text = io_reason(error);
    let reason = match (persona, error.kind()) {
        (Persona::Cowshed, io::ErrorKind::ResourceBusy) => {
            format!("{text}; -U opens the image all the same")
        }
        (Persona::Cowshed, _) => text,
        (_, io::ErrorKind::ResourceBusy) => text,
        (_, io::ErrorKind::InvalidInput | io::ErrorKind::IsADirectory) => {
            format!("'file' driver requires '{}' to be a regular file", name.display())
        }
        (_, _) => format!("Could not open '{}': {text}", name.display()),
    };
    Failure::open(name, reason).with_hint(lock_hint(error, persona))
}

/// What `qemu-img` asks on a second line if a file is locked.
pub(crate) fn lock_hint(error: &io::Error, persona: Persona) -> Option<String> {
    let lock = error.get_ref().and_then(|error| error.downcast_ref::<LockError>())?;
    (persona != Persona::Cowshed).then(|| lock.hint())
}

/// An error of the engine in one line, as the command words it under the name that it was called by.
pub(crate) fn reason(error: &Error) -> String {
    match Persona::current() {
        Persona::Cowshed => without_number(error.to_string()),
        Persona::QemuImg | Persona::QemuIo => without_number(wording::of(error)),
    }
}

/// An error of the system in one line.
pub(crate) fn io_reason(error: &io::Error) -> String {
    without_number(error.to_string())
}

/// What `std` writes of an error of the system ends with a number that helps no one.
fn without_number(mut text: String) -> String {
    if text.ends_with(')')
        && let Some(at) = text.rfind(" (os error ")
    {
        text.truncate(at);
    }
    text
}
