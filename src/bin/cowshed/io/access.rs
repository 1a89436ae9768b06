//! `open` and `reopen`.

use std::ffi::OsString;

use crate::failure::Failure;
use crate::names::Names;

use super::command::Call;
use super::device::goes_with_version;
use super::fault::Fault;
use super::flags::Flags;
use super::getopt::Getopt;
use super::number::shown_text;
use super::settings::{Settings, Wrong};
use super::shell::Shell;

/// Runs `open`.
pub(super) async fn open(shell: &mut Shell<'_>, call: Call) -> Result<(), Fault> {
    let mut flags = Flags::default();
    let mut names = Names::new();
    let mut options = Getopt::new(call.name, "snCro:ki:t:d:U", &[], call.arguments);
    while let Some((letter, value)) = options.next().map_err(Fault::Option)? {
        match letter {
            'o' if shell.image_opts => {
                let message = "--image-opts and 'open -o' are mutually exclusive";
                return Err(Fault::Output(message.to_owned()));
            }
            'o' => names.extend(shell.names(&value)),
            _ => flag(&mut flags, letter, &value)?,
        }
    }
    let mut operands = options.operands();
    if shell.image_opts && operands.len() == 1 {
        names.extend(shell.names(&operands.remove(0)));
    }
    let name = match &*operands {
        [] => None,
        [name] => Some(name.clone()),
        _ => return Err(Fault::Usage),
    };
    open_file(shell, name, Settings { flags, names }).await
}

/// One of the options that the program and `open` share.
///
/// # Errors
/// It has no such value.
pub(super) fn flag(flags: &mut Flags, letter: char, value: &OsString) -> Result<(), Fault> {
    let text = value.to_string_lossy();
    let known = match letter {
        's' => set(&mut flags.snapshot),
        'n' => {
            flags.no_cache();
            true
        }
        'C' => set(&mut flags.copy_on_read),
        'r' => set(&mut flags.read_only),
        'k' => set(&mut flags.native),
        'U' => set(&mut flags.force_share),
        'i' => flags.aio(&text),
        't' => flags.cache(&text),
        'd' => flags.discard(&text),
        _ => true,
    };
    if known {
        return Ok(());
    }
    let what = match letter {
        'i' => "aio",
        't' => "cache",
        _ => "discard",
    };
    Err(Fault::Error(format!("Invalid {what} option: {}", shown_text(value))))
}

fn set(flag: &mut bool) -> bool {
    *flag = true;
    true
}

/// Opens the image called `name`, or the one that the settings name.
pub(super) async fn open_file(
    shell: &mut Shell<'_>,
    name: Option<OsString>,
    settings: Settings,
) -> Result<(), Fault> {
    if shell.device.is_some() {
        return Err(Fault::Error("file open already, try 'help close'".to_owned()));
    }
    if settings.flags.force_share
        && settings.names.get("force-share").is_some_and(|value| value != "on")
    {
        return Err(Fault::Error("-U conflicts with image options".to_owned()));
    }
    let opener = shell.opener.clone();
    let device = shell.wait(opener.open(name.as_deref(), settings)).await;
    shell.device = Some(device.map_err(Fault::Open)?);
    Ok(())
}

/// Runs `reopen`.
pub(super) async fn reopen(shell: &mut Shell<'_>, call: Call) -> Result<(), Fault> {
    let mut changes = Names::new();
    let mut access = None;
    let mut flags = shell.device()?.settings().flags.clone();
    let mut has_cache = false;
    let mut options = Getopt::new(call.name, "c:o:rw", &[], call.arguments);
    while let Some((letter, value)) = options.next().map_err(Fault::Option)? {
        match letter {
            'c' => {
                if !flags.cache(&value.to_string_lossy()) {
                    let mode = shown_text(&value);
                    return Err(Fault::Error(format!("Invalid cache option: {mode}")));
                }
                has_cache = true;
            }
            'o' => changes.extend(shell.names(&value)),
            _ if access.is_some() => {
                return Err(Fault::Error("Only one -r/-w option may be given".to_owned()));
            }
            _ => access = Some(letter),
        }
    }
    if !options.operands().is_empty() {
        return Err(Fault::Usage);
    }
    if changes.contains_key("read-only") && access.is_some() {
        return Err(Fault::Error("Cannot set both -r/-w and 'read-only'".to_owned()));
    }
    let has_cache_name =
        changes.contains_key("cache.direct") || changes.contains_key("cache.no-flush");
    if has_cache_name && has_cache {
        return Err(Fault::Error("Cannot set both -c and the cache options".to_owned()));
    }

    let device = shell.device()?;
    let was_read_only = device.read_only;
    let backing_driver = device.image.layers().nth(1).map(|layer| layer.format.name());
    let joined = device.settings().joined(&changes, device.driver(), backing_driver);
    let mut settings = joined.map_err(wrong)?;
    match access {
        Some(letter) => {
            settings.names.remove("read-only");
            flags.read_only = letter == 'r';
        }
        None => {
            flags.read_only = was_read_only;
            if !was_read_only && settings.read_only().map_err(wrong)? {
                let message = "Read-only block node '#block1' cannot support read-write users";
                return Err(Fault::Error(message.to_owned()));
            }
        }
    }
    if has_cache {
        settings.names.remove("cache.direct");
        settings.names.remove("cache.no-flush");
    }
    settings.flags = flags;
    let generic = settings.generic().map_err(wrong)?;
    if generic.read_only && settings.flags.copy_on_read {
        let message = "Can't set node '#block1' to r/o with copy-on-read enabled";
        return Err(Fault::Error(message.to_owned()));
    }
    settings.detect_zeroes().map_err(wrong)?;
    let caches = settings.caches().map_err(wrong)?;
    let write = settings.write(&generic).map_err(wrong)?;
    goes_with_version(&device.image, &write).map_err(wrong)?;
    if let Some(geometry) = device.image.geometry() {
        let resolved = caches.resolve(&geometry, device.image.virtual_size());
        resolved.map_err(|error| Fault::Error(crate::open::reason(&error)))?;
    }
    shell.drain().await;
    let Some(device) = shell.device.take() else { return Err(super::shell::no_file()) };
    let opener = shell.opener.clone();
    let (device, result) = device.reopened(&opener, settings).await;
    shell.device = device;
    result.map_err(Fault::Open)
}

fn wrong(wrong: Wrong) -> Fault {
    match wrong.hint {
        None => Fault::Error(wrong.text),
        hint => Fault::Open(Failure::message(wrong.text).with_hint(hint)),
    }
}
