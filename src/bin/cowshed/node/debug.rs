//! `blkdebug`: passes requests on to what lies below it, but for those that are to fail, and those that are to wait until a
//! command lets them go on.
//!
//! The events are those of requests, as far as the format says what they are for. Rules for what never happens here are
//! refused.
//!
//! Source: QEMU, block/blkdebug.c.

use std::fmt;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cowshed::storage::{Buf, Purpose, SendStorage, StorageExtent, StorageLimits};
use event_listener::Event as Signal;

use crate::names::{Names, must_be_known, take_part};
use crate::size;

use super::Node;
use super::rules::{Action, Event, IoType, Rule, Rules};

/// How many zeros are written as data at once.
const DATA_LEN_BYTES_MAX: u64 = 1 << 20;

/// Lets requests fail and wait.
pub(crate) struct Debug {
    below: Node,
    limits: Limits,
    state: Mutex<State>,
    /// Somebody waits, or goes on.
    changed: Signal,
}

/// The limits that requests are held to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Limits {
    align: Option<u32>,
    transfer_len_max: Option<u32>,
    /// Zeros between borders that lie so far from each other are written as zeros, others as data.
    zeroes_align: Option<u32>,
    zeroes_len_max: Option<u32>,
}

#[derive(Default)]
struct State {
    rules: Rules,
    /// Those of the rules that let requests fail now, by their numbers.
    active: Vec<usize>,
    number: u64,
    /// Whether what happens counts: the image that lies in it is open.
    has_begun: bool,
    /// Requests that wait: their numbers and what they are called.
    waiting: Vec<(usize, String)>,
    waited: usize,
}

impl Debug {
    /// QEMU's name for it.
    pub(crate) const DRIVER: &'static str = "blkdebug";
    /// The part that it lies above.
    pub(crate) const PART: &'static str = "image";

    /// Whether anybody can see that it is there: something may fail, or zeros are written as data.
    pub(crate) fn is_seen(names: &Names) -> bool {
        names.keys().any(|name| {
            ["config", "opt-write-zero", "max-write-zero"].contains(&name.as_str())
                || Rules::has(name)
        })
    }

    /// Takes what a name with the protocol in front says apart: `blkdebug:CONFIG:IMAGE`, or just the image.
    ///
    /// # Errors
    /// There is no colon behind the configuration.
    pub(crate) fn take_name(names: &mut Names, name: &str) -> Result<(), String> {
        let mut image = name;
        if let Some(behind) = name.strip_prefix("blkdebug:") {
            let (config, file) = behind
                .split_once(':')
                .ok_or("blkdebug requires both config file and image path")?;
            if !config.is_empty() {
                names.insert("config".to_owned(), config.to_owned());
            }
            image = file;
        }
        names.insert("x-image".to_owned(), image.to_owned());
        Ok(())
    }

    /// Takes the options of what lies below out of its own.
    pub(crate) fn take_image(names: &mut Names, is_format: impl Fn(&str) -> bool) -> Names {
        let mut image = take_part(names, Self::PART);
        if let Some(name) = names.remove("x-image") {
            // A format lies in the file.
            let is_file = !image.get("driver").is_some_and(|driver| is_format(driver));
            let option = if is_file { "filename" } else { "file.filename" };
            image.insert(option.to_owned(), name);
        }
        image
    }

    /// Its name, if its options are such that it has one; `below` is that of what lies below it.
    pub(crate) fn name(names: &Names, below: &str) -> Option<String> {
        let is_in_name = |name: &String| matches!(name.as_str(), "driver" | "config");
        if !names.keys().all(is_in_name) {
            return None;
        }
        let config = names.get("config").map(String::as_str).unwrap_or_default();
        Some(format!("{}:{config}:{below}", Self::DRIVER))
    }

    /// Takes the options that say how long requests may be.
    ///
    /// # Errors
    /// One is no size, or one that no request can have.
    pub(crate) fn check_limits(names: &mut Names) -> Result<(), String> {
        Limits::take(names).map(|_| ())
    }

    /// What the options say, all of which it takes, above `below`.
    ///
    /// # Errors
    /// One is wrong, or not known, or the file of rules cannot be read.
    pub(crate) fn from_names(mut names: Names, below: Node) -> Result<Self, String> {
        let mut rules = Rules::default();
        if let Some(file) = names.remove("config") {
            rules.read(Path::new(&file))?;
        }
        rules.take(&mut names)?;
        let limits = Limits::take(&mut names)?;
        must_be_known(&names, Self::DRIVER, &[])?;
        let mut state = State { rules, number: 1, ..State::default() };
        // It is what happens when it is opened. Nobody waits for that.
        state.enter(Event::None);
        Ok(Self { below, limits, state: Mutex::new(state), changed: Signal::new() })
    }

    /// Lets the next request that comes to `event` wait. Whether there is such an event.
    pub(crate) fn add_break(&self, event: &str, tag: &str) -> bool {
        let Some(event) = Event::parse(event) else { return false };
        let rule = Rule { event, state: 0, action: Action::Wait(tag.to_owned()) };
        self.state().rules.add(rule);
        true
    }

    /// Lets nobody wait any more for what is called `tag`. Whether there was something of that name.
    pub(crate) fn remove_break(&self, tag: &str) -> bool {
        let mut found = self.state().rules.remove_waits(tag);
        while self.resume(tag) {
            found = true;
        }
        found
    }

    /// Lets the request go on that waits under this name. Whether there is one.
    pub(crate) fn resume(&self, tag: &str) -> bool {
        let mut state = self.state();
        let Some(index) = state.waiting.iter().rposition(|(_, waiting)| waiting == tag) else {
            return false;
        };
        say(format_args!("blkdebug: Resuming request '{tag}'"));
        state.waiting.remove(index);
        drop(state);
        self.changed.notify(usize::MAX);
        true
    }

    /// Waits until a request waits under this name.
    pub(crate) async fn wait_for(&self, tag: &str) {
        loop {
            let changed = self.changed.listen();
            if self.state().waiting.iter().any(|(_, waiting)| waiting == tag) {
                return;
            }
            changed.await;
        }
    }

    /// From now on what happens counts. What is read and written to open an image is not what rules are about.
    pub(crate) fn begin(&self) {
        self.state().has_begun = true;
    }

    /// Something happens: rules begin to apply, and the request may have to wait.
    pub(crate) async fn happens(&self, event: Event) {
        if !self.state().has_begun {
            return;
        }
        let waiting = self.state().enter(event);
        if !waiting.is_empty() {
            self.changed.notify(usize::MAX);
        }
        for number in waiting {
            loop {
                let changed = self.changed.listen();
                if self.state().waiting.iter().all(|(waiting, _)| *waiting != number) {
                    break;
                }
                changed.await;
            }
        }
    }

    /// Asks whether a request may go on.
    ///
    /// # Errors
    /// What a rule says.
    pub(crate) fn may(&self, what: IoType, offset: u64, len: u64) -> io::Result<()> {
        self.state().may(what, offset, len)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Debug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Debug").finish_non_exhaustive()
    }
}

impl State {
    /// Something happens; the numbers of what is to wait because of that.
    fn enter(&mut self, event: Event) -> Vec<usize> {
        let number = self.number;
        let rules = self.rules.of(event, number);
        let failing = rules.filter(|(_, action)| matches!(action, Action::Fail(_)));
        let failing: Vec<_> = failing.map(|(index, _)| index).collect();
        if !failing.is_empty() {
            self.active = failing;
        }
        if let Some(next) = self.rules.next_state(event, number) {
            self.number = next;
        }
        let mut waiting = Vec::new();
        for tag in self.rules.take_waits(event) {
            say(format_args!("blkdebug: Suspended request '{tag}'"));
            self.waiting.push((self.waited, tag));
            waiting.push(self.waited);
            self.waited += 1;
        }
        waiting
    }

    fn may(&mut self, what: IoType, offset: u64, len: u64) -> io::Result<()> {
        let found = self.active.iter().position(|&index| {
            self.rules.failure(index).is_some_and(|failure| failure.meets(what, offset, len))
        });
        let Some(place) = found else { return Ok(()) };
        let index = self.active[place];
        let Some(failure) = self.rules.failure(index) else { return Ok(()) };
        let (error, once) = (failure.error, failure.once);
        if error == 0 {
            return Ok(());
        }
        if once {
            self.active.remove(place);
            self.rules.remove(index);
        }
        Err(io::Error::from_raw_os_error(error))
    }
}

impl Limits {
    fn take(names: &mut Names) -> Result<Self, String> {
        let mut take = |name: &str, unit: u64| {
            let Some(text) = names.remove(name) else { return Ok(None) };
            let value = size::parse(&text).map_err(|_| {
                format!("Parameter '{name}' expects a non-negative number below 2^64")
            })?;
            let fits = match name {
                "align" => value.is_power_of_two() || value == 0,
                _ => value.is_multiple_of(unit),
            };
            match u32::try_from(value).ok().filter(|&value| fits && value < i32::MAX.unsigned_abs())
            {
                Some(0) => Ok(None),
                Some(value) => Ok(Some(value)),
                None => Err(format!("Cannot meet constraints with {name} {value}")),
            }
        };
        let align = take("align", 1)?;
        let unit = u64::from(align.unwrap_or(1));
        let transfer_len_max = take("max-transfer", unit)?;
        let zeroes_align = take("opt-write-zero", unit)?;
        let zeroes_unit = zeroes_align.map_or(unit, |align| unit.max(align.into()));
        let zeroes_len_max = take("max-write-zero", zeroes_unit)?;
        // In which parts something is discarded is nothing that anybody sees.
        let discard_align = take("opt-discard", unit)?;
        take("max-discard", discard_align.map_or(unit, |align| unit.max(align.into())))?;
        Ok(Self { align, transfer_len_max, zeroes_align, zeroes_len_max })
    }

    /// How much of `len` zeros at `offset` is written at once, and whether as data.
    fn zeroes_part(&self, offset: u64, len: u64) -> (u64, bool) {
        let len_max = self.zeroes_len_max.map_or(u64::MAX, u64::from);
        let Some(align) = self.zeroes_align.map(u64::from) else {
            return (len.min(len_max), false);
        };
        let head = offset % align;
        if head > 0 || len < align {
            return (len.min(align - head).min(DATA_LEN_BYTES_MAX), true);
        }
        ((len - len % align).min(len_max), false)
    }
}

/// Says what becomes of a request, on a line of its own. Whoever else writes has flushed.
fn say(line: fmt::Arguments<'_>) {
    // Nobody is there to hear of it if that fails.
    let _ = writeln!(io::stdout(), "{line}");
}

impl SendStorage for Debug {
    async fn read_for(&self, purpose: Purpose, buf: Buf, offset: u64) -> io::Result<Buf> {
        match purpose {
            Purpose::Mapping => self.happens(Event::L2Load).await,
            Purpose::Refcounts => self.happens(Event::RefblockLoad).await,
            _ => self.happens(Event::ReadAio).await,
        }
        SendStorage::read_at(self, buf, offset).await
    }

    async fn write_for(&self, purpose: Purpose, buf: Buf, offset: u64) -> io::Result<Buf> {
        match purpose {
            Purpose::Mapping => self.happens(Event::L2Update).await,
            Purpose::Refcounts => self.happens(Event::RefblockUpdatePart).await,
            _ => self.happens(Event::WriteAio).await,
        }
        SendStorage::write_at(self, buf, offset).await
    }

    async fn read_at(&self, buf: Buf, offset: u64) -> io::Result<Buf> {
        self.may(IoType::Read, offset, buf.len() as u64)?;
        SendStorage::read_at(&self.below, buf, offset).await
    }

    async fn write_at(&self, buf: Buf, offset: u64) -> io::Result<Buf> {
        self.happens(Event::Pwritev).await;
        self.may(IoType::Write, offset, buf.len() as u64)?;
        let written = SendStorage::write_at(&self.below, buf, offset).await;
        self.happens(Event::PwritevDone).await;
        written
    }

    async fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.happens(Event::PwritevZero).await;
        let mut at = offset;
        while at < offset.saturating_add(len) {
            let (len, as_data) = self.limits.zeroes_part(at, offset.saturating_add(len) - at);
            if as_data {
                self.may(IoType::Write, at, len)?;
                let zeros = Buf::zeroed(usize::try_from(len).map_err(io::Error::other)?);
                SendStorage::write_at(&self.below, zeros, at).await?;
            } else {
                self.may(IoType::WriteZeroes, at, len)?;
                SendStorage::write_zeroes(&self.below, at, len).await?;
            }
            at += len;
        }
        self.happens(Event::PwritevDone).await;
        Ok(())
    }

    async fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.may(IoType::Discard, offset, len)?;
        SendStorage::discard(&self.below, offset, len).await
    }

    async fn flush(&self) -> io::Result<()> {
        self.happens(Event::FlushToOs).await;
        self.happens(Event::FlushToDisk).await;
        self.may(IoType::Flush, 0, 0)?;
        SendStorage::flush(&self.below).await
    }

    async fn len(&self) -> io::Result<u64> {
        SendStorage::len(&self.below).await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        SendStorage::set_len(&self.below, len).await
    }

    async fn extent_at(&self, offset: u64, len: u64) -> io::Result<StorageExtent> {
        self.may(IoType::BlockStatus, offset, len)?;
        SendStorage::extent_at(&self.below, offset, len).await
    }

    async fn set_writable(&self, writable: bool) -> io::Result<()> {
        SendStorage::set_writable(&self.below, writable).await
    }

    fn limits(&self) -> StorageLimits {
        let mut limits = SendStorage::limits(&self.below);
        let Limits { align, transfer_len_max, .. } = self.limits;
        limits.request_alignment = limits.request_alignment.max(align.unwrap_or(1));
        limits.transfer_len_max = limits.transfer_len_max.min(transfer_len_max.unwrap_or(u32::MAX));
        limits
    }
}
