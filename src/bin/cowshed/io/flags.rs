//! How an image is opened, as the options of a command line say it in letters.

/// The options that the program and the command `open` share.
#[derive(Debug, Clone)]
pub(super) struct Flags {
    /// `-r`.
    pub(super) read_only: bool,
    /// Past the page cache.
    pub(super) direct: bool,
    /// Flushing does nothing.
    pub(super) no_flush: bool,
    /// Every write is durable before it returns.
    pub(super) write_through: bool,
    /// Discards are passed on.
    pub(super) unmap: bool,
    /// Linux's own asynchronous I/O was asked for. What is used is decided elsewhere; it has a condition.
    pub(super) native: bool,
    /// `-U`.
    pub(super) force_share: bool,
    /// `-s`.
    pub(super) snapshot: bool,
    /// `-C`.
    pub(super) copy_on_read: bool,
}

impl Default for Flags {
    fn default() -> Self {
        Self {
            read_only: false,
            direct: false,
            no_flush: false,
            write_through: true,
            unmap: true,
            native: false,
            force_share: false,
            snapshot: false,
            copy_on_read: false,
        }
    }
}

impl Flags {
    /// `-t MODE`; whether there is such a mode.
    pub(super) fn cache(&mut self, mode: &str) -> bool {
        let (direct, no_flush, write_through) = match mode {
            "none" | "off" => (true, false, false),
            "directsync" => (true, false, true),
            "writeback" => (false, false, false),
            "unsafe" => (false, true, false),
            "writethrough" => (false, false, true),
            _ => return false,
        };
        (self.direct, self.no_flush, self.write_through) = (direct, no_flush, write_through);
        true
    }

    /// `-d MODE`; whether there is such a mode.
    pub(super) fn discard(&mut self, mode: &str) -> bool {
        self.unmap = match mode {
            "off" | "ignore" => false,
            "on" | "unmap" => true,
            _ => return false,
        };
        true
    }

    /// `-i MODE`; whether there is such a mode.
    pub(super) fn aio(&mut self, mode: &str) -> bool {
        match mode {
            "threads" | "io_uring" => true,
            "native" => {
                self.native = true;
                true
            }
            _ => false,
        }
    }

    /// `-n`.
    pub(super) fn no_cache(&mut self) {
        self.direct = true;
        self.write_through = false;
    }
}
