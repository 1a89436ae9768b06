//! Opening what an image lies in by its options, where it is no file: see [`node`](crate::node).

use std::path::PathBuf;
use std::sync::Arc;

use cowshed::storage::BoxStorage;

use crate::failure::Failure;
use crate::layout::{self, Place};
use crate::names::Names;
use crate::node::{Debug, Nested, Node, Null, Other};
use crate::open::{Opening, reason};

impl Opening {
    /// What the options say, and the name of the file below it.
    ///
    /// # Errors
    /// Something cannot be opened, or an option is wrong: in QEMU's words.
    pub(crate) async fn node(&self, mut names: Names) -> Result<(Node, Option<PathBuf>), String> {
        let name = layout::name_of(&names);
        let driver = names.get("driver").cloned().unwrap_or_default();
        if driver == Null::DRIVER {
            names.remove("driver");
            let storage = BoxStorage::new(Null::from_names(names)?);
            let (debug, image, volume, identity) = (None, None, None, None);
            let other =
                Other { driver: Null::DRIVER, name, storage, debug, image, volume, identity };
            return Ok((Node::Other(other), None));
        }
        if driver == Debug::DRIVER {
            names.remove("driver");
            let (below, file) = match Place::take(Debug::take_image(&mut names, layout::is_format))?
            {
                Place::File(file) => (Node::File(self.file(&file)?), Some(file.into())),
                Place::Node(below) => Box::pin(self.node(below)).await?,
            };
            let (image, identity) = (below.image().cloned(), below.identity());
            let debug = Arc::new(Debug::from_names(names, below)?);
            let storage = BoxStorage::new(Arc::clone(&debug));
            let debug = Some(debug);
            let volume = None;
            let other =
                Other { driver: Debug::DRIVER, name, storage, debug, image, volume, identity };
            return Ok((Node::Other(other), file));
        }
        let (file, opening) = self.for_named(self.is_writable()).by_options(names)?;
        let failed = |failure: Failure| failure.reason();
        let source = Box::pin(opening.source(&file)).await.map_err(failed)?;
        let driver = source.storage.format_name(source.format);
        let location = source.location.clone();
        let debug = source.storage.debug().cloned();
        let opened = Box::pin(opening.opened(&file, source, None)).await.map_err(failed)?;
        let image = Arc::new(opened.map_err(|error| reason(&error))?.image);
        let storage = BoxStorage::new(Nested::new(Arc::clone(&image)));
        let (image, volume, identity) = (Some(image), None, None);
        let other = Other { driver, name, storage, debug, image, volume, identity };
        Ok((Node::Other(other), Some(location)))
    }
}
