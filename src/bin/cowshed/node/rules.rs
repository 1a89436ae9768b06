//! The rules of `blkdebug`: which requests fail, from when on.
//!
//! Source: QEMU, block/blkdebug.c, `read_config`; util/qemu-config.c for the file.

use std::path::Path;

use crate::names::{Names, take_part};
use crate::open;

/// What happens to a request when none is given: C's `EIO`.
const ERROR_DEFAULT: i32 = 5;
const SECTOR_LEN_BYTES: u64 = 512;

/// The groups.
const INJECT_ERROR: &str = "inject-error";
const SET_STATE: &str = "set-state";

/// What happens, as far as it can be seen from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// It is opened.
    None,
    /// A disk's own bytes are about to be read, or written.
    ReadAio,
    WriteAio,
    /// A part of an L2 table is about to be read, or written.
    L2Load,
    L2Update,
    /// A part of a refcount block is about to be read, or written.
    RefblockLoad,
    RefblockUpdatePart,
    Pwritev,
    PwritevZero,
    PwritevDone,
    FlushToOs,
    FlushToDisk,
    /// A copy on read is about to be written.
    CorWrite,
}

const EVENTS: [(&str, Event); 13] = [
    ("none", Event::None),
    ("read_aio", Event::ReadAio),
    ("write_aio", Event::WriteAio),
    ("l2_load", Event::L2Load),
    ("l2_update", Event::L2Update),
    ("refblock_load", Event::RefblockLoad),
    ("refblock_update_part", Event::RefblockUpdatePart),
    ("pwritev", Event::Pwritev),
    ("pwritev_zero", Event::PwritevZero),
    ("pwritev_done", Event::PwritevDone),
    ("flush_to_os", Event::FlushToOs),
    ("flush_to_disk", Event::FlushToDisk),
    ("cor_write", Event::CorWrite),
];

/// Events inside a format, of which nothing is seen below it.
const UNSEEN: [&str; 32] = [
    "l1_update",
    "l1_grow_alloc_table",
    "l1_grow_write_table",
    "l1_grow_activate_table",
    "l2_update_compressed",
    "l2_alloc_cow_read",
    "l2_alloc_write",
    "read_backing_aio",
    "read_compressed",
    "write_compressed",
    "vmstate_load",
    "vmstate_save",
    "cow_read",
    "cow_write",
    "reftable_load",
    "reftable_grow",
    "reftable_update",
    "refblock_update",
    "refblock_alloc",
    "refblock_alloc_hookup",
    "refblock_alloc_write",
    "refblock_alloc_write_blocks",
    "refblock_alloc_write_table",
    "refblock_alloc_switch_table",
    "cluster_alloc",
    "cluster_alloc_bytes",
    "cluster_free",
    "cluster_alloc_space",
    "pwritev_rmw_head",
    "empty_image_prepare",
    "l1_shrink_write_table",
    "l1_shrink_free_l2_clusters",
];

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IoType {
    Read,
    Write,
    WriteZeroes,
    Discard,
    Flush,
    BlockStatus,
}

const IO_TYPES: [(&str, IoType); 6] = [
    ("read", IoType::Read),
    ("write", IoType::Write),
    ("write-zeroes", IoType::WriteZeroes),
    ("discard", IoType::Discard),
    ("flush", IoType::Flush),
    ("block-status", IoType::BlockStatus),
];

/// What to do when something happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) event: Event,
    /// In which state; 0 for any.
    pub(super) state: u64,
    pub(super) action: Action,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Requests fail from then on.
    Fail(Failure),
    /// Another state begins.
    Enter(u64),
    /// The request waits, under this name.
    Wait(String),
}

/// Which requests fail, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Failure {
    /// All that move data, discard or flush, if it is not said.
    what: Option<IoType>,
    /// C's number of the error; 0 for none.
    pub(super) error: i32,
    pub(super) once: bool,
    /// Only those that meet this byte.
    at: Option<u64>,
}

/// Rules by their numbers, which they keep.
#[derive(Debug, Default)]
pub(super) struct Rules(Vec<Option<Rule>>);

impl Failure {
    pub(super) fn meets(&self, what: IoType, offset: u64, len: u64) -> bool {
        let is_meant = match self.what {
            None => what != IoType::BlockStatus,
            Some(meant) => meant == what,
        };
        is_meant && self.at.is_none_or(|at| offset <= at && at - offset < len)
    }
}

impl Event {
    /// The event of this name.
    pub(super) fn parse(name: &str) -> Option<Self> {
        EVENTS.iter().find(|(known, _)| *known == name).map(|(_, event)| *event)
    }
}

impl Rules {
    /// Whether the option of this name is about a rule.
    pub(super) fn has(option: &str) -> bool {
        let group = option.split_once('.').map(|(group, _)| group);
        group.is_some_and(|group| [INJECT_ERROR, SET_STATE].contains(&group))
    }

    /// Takes the rules in a file: groups of options.
    ///
    /// # Errors
    /// It cannot be read, or something in it is wrong.
    pub(super) fn read(&mut self, file: &Path) -> Result<(), String> {
        let text = std::fs::read_to_string(file).map_err(|error| {
            format!("Could not read blkdebug config file: {}", open::io_reason(&error))
        })?;
        let mut groups: Vec<(String, Names)> = Vec::new();
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(inner) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                // A name of its own may stand behind.
                let group = inner.split_whitespace().next().unwrap_or_default();
                groups.push((group.to_owned(), Names::new()));
                continue;
            }
            let option = line.split_once('=').map(|(name, value)| (name.trim(), value.trim()));
            let option = option.and_then(|(name, value)| {
                Some((name, value.strip_prefix('"')?.strip_suffix('"')?))
            });
            let Some((name, value)) = option else { return Err("parse error".to_owned()) };
            let Some((_, names)) = groups.last_mut() else {
                return Err("no group defined".to_owned());
            };
            names.insert(name.to_owned(), value.to_owned());
        }
        for kind in [INJECT_ERROR, SET_STATE] {
            for (_, names) in groups.extract_if(.., |(group, _)| group == kind) {
                self.add_group(kind, names)?;
            }
        }
        match groups.first() {
            Some((group, _)) => Err(format!("There is no option group '{group}'")),
            None => Ok(()),
        }
    }

    /// Takes the rules among the options.
    ///
    /// # Errors
    /// Something is wrong with one.
    pub(super) fn take(&mut self, names: &mut Names) -> Result<(), String> {
        for kind in [INJECT_ERROR, SET_STATE] {
            let mut part = take_part(names, kind);
            let mut index = 0_usize;
            while !part.is_empty() {
                let mut group = take_part(&mut part, &index.to_string());
                if group.is_empty() {
                    // One without a number.
                    group = std::mem::take(&mut part);
                }
                self.add_group(kind, group)?;
                index += 1;
            }
        }
        Ok(())
    }

    fn add_group(&mut self, kind: &str, mut names: Names) -> Result<(), String> {
        let name = names.remove("event").ok_or("Missing event name for rule")?;
        let event = Event::parse(&name).ok_or_else(|| match UNSEEN.contains(&&*name) {
            true => format!("the event '{name}' is not supported"),
            false => format!("invalid parameter value: {name}"),
        })?;
        let number = |names: &mut Names, name: &str| match names.remove(name) {
            None => Ok(None),
            Some(text) => match text.parse::<i64>() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(format!("Parameter '{name}' expects a number")),
            },
        };
        let state = number(&mut names, "state")?.unwrap_or(0);
        let action = match kind {
            SET_STATE => {
                let next = number(&mut names, "new_state")?.unwrap_or(0);
                Action::Enter(u64::try_from(next).unwrap_or(0))
            }
            _ => {
                let error = number(&mut names, "errno")?;
                let sector = number(&mut names, "sector")?.and_then(|it| u64::try_from(it).ok());
                let what = match names.remove("iotype") {
                    None => None,
                    Some(name) => {
                        let known = IO_TYPES.iter().find(|(known, _)| *known == name);
                        let known = known.ok_or_else(|| format!("Invalid parameter '{name}'"))?;
                        Some(known.1)
                    }
                };
                let mut flag = |name: &str| match names.remove(name).as_deref() {
                    None | Some("off") => Ok(false),
                    Some("on") => Ok(true),
                    Some(_) => Err(format!("Parameter '{name}' expects 'on' or 'off'")),
                };
                let once = flag("once")?;
                // Nothing happens between a request and its failure in any case.
                flag("immediately")?;
                Action::Fail(Failure {
                    what,
                    error: error.map_or(ERROR_DEFAULT, |it| i32::try_from(it).unwrap_or(0)),
                    once,
                    at: sector.map(|sector| sector.saturating_mul(SECTOR_LEN_BYTES)),
                })
            }
        };
        if let Some(name) = names.keys().next() {
            return Err(format!("Invalid parameter '{name}'"));
        }
        self.add(Rule { event, state: u64::try_from(state).unwrap_or(0), action });
        Ok(())
    }

    pub(super) fn add(&mut self, rule: Rule) {
        self.0.push(Some(rule));
    }

    pub(super) fn remove(&mut self, index: usize) {
        self.0[index] = None;
    }

    /// What is to be done when this happens in this state, by the numbers of the rules.
    pub(super) fn of(&self, event: Event, state: u64) -> impl Iterator<Item = (usize, &Action)> {
        let rules = self.0.iter().enumerate();
        rules.filter_map(|(index, rule)| Some((index, rule.as_ref()?))).filter_map(
            move |(index, rule)| {
                let applies = rule.event == event && (rule.state == 0 || rule.state == state);
                applies.then_some((index, &rule.action))
            },
        )
    }

    /// The state that follows when this happens.
    pub(super) fn next_state(&self, event: Event, state: u64) -> Option<u64> {
        self.of(event, state).find_map(|(_, action)| match action {
            Action::Enter(next) => Some(*next),
            _ => None,
        })
    }

    pub(super) fn failure(&self, index: usize) -> Option<&Failure> {
        match &self.0.get(index)?.as_ref()?.action {
            Action::Fail(failure) => Some(failure),
            _ => None,
        }
    }

    /// Takes out what is to wait when this happens: the names.
    pub(super) fn take_waits(&mut self, event: Event) -> Vec<String> {
        self.take_if(|rule| rule.event == event)
    }

    /// Takes out what is to wait under this name; whether there was something.
    pub(super) fn remove_waits(&mut self, tag: &str) -> bool {
        !self.take_if(|rule| rule.action == Action::Wait(tag.to_owned())).is_empty()
    }

    fn take_if(&mut self, is_it: impl Fn(&Rule) -> bool) -> Vec<String> {
        let mut tags = Vec::new();
        for place in &mut self.0 {
            if let Some(Rule { action: Action::Wait(tag), .. }) =
                place.take_if(|rule| matches!(rule.action, Action::Wait(_)) && is_it(rule))
            {
                tags.push(tag);
            }
        }
        tags
    }
}
