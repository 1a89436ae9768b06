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
            let (debug, image, identity) = (None, None, None);
            let other = Other { driver: Null::DRIVER, name, storage, debug, image, identity };
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
            let other = Other { driver: Debug::DRIVER, name, storage, debug, image, identity };
            return Ok((Node::Other(other), file));
        }
        let (file, opening) = self.for_named(self.is_writable()).by_options(names)?;
        let failed = |failure: Failure| failure.reason();
        let source = Box::pin(opening.source(&file)).await.map_err(failed)?;
        let (driver, location) = (source.format.name(), source.location.clone());
        let debug = source.storage.debug().cloned();
        let opened = Box::pin(opening.opened(&file, source, None)).await.map_err(failed)?;
        let image = Arc::new(opened.map_err(|error| reason(&error))?.image);
        let storage = BoxStorage::new(Nested::new(Arc::clone(&image)));
        let other = Other { driver, name, storage, debug, image: Some(image), identity: None };
        Ok((Node::Other(other), Some(location)))
    }
}
