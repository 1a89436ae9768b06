//! The `cowshed` command: the verbs, options, texts, JSON and exit codes that users of `qemu-img` know, and verbs that
//! `qemu-img` lacks. Called under the name `qemu-img` it is a stand-in for it.
//!
//! There is no logic of images in here: a verb asks the crate's public interface and prints what it says.

// A browser has no command; `wasm-pack test` compiles every target all the same.
#![cfg_attr(target_family = "wasm", no_main)]
#![cfg(not(target_family = "wasm"))]

mod amend;
mod amend_keys;
mod bench;
mod bitmap;
mod bitmap_map;
mod check;
mod cli;
mod commit;
mod compare;
mod convert;
mod create;
mod dd;
mod encryption;
mod escape;
mod failure;
mod files;
mod format_options;
mod given;
mod image_format;
mod info;
mod io;
mod json;
mod layout;
mod map;
mod measure;
mod names;
mod new_image;
mod node;
mod open;
mod open_above;
mod open_luks;
mod open_node;
mod options;
mod persona;
mod progress;
mod read;
mod rebase;
mod resize;
mod secret;
mod size;
mod snapshot;
mod unclean;
mod verdict;
mod wording;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    let persona = persona::Persona::of(arguments.first().map(|argument| argument.as_os_str()));
    persona.become_current();
    match cli::run(persona, arguments) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => ExitCode::from(failure.report(persona)),
    }
}
