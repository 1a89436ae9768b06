//! The fear: that the tree and ARCHITECTURE.md drift apart, one convenient `use` at a time.
//!
//! Holds every path in `src/` against the table of layers, bans by layer what only adapters may touch, and checks what
//! every source file owes its reader: ASCII and a head that says what it is.
//!
//! A program of its own that knows nothing of the engine: it says what is wrong with a tree that does not compile.

#![cfg(not(target_family = "wasm"))]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is how a test fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What most layers must not touch, and why. Matched in code, not in comments.
const EFFECTS: &[(&str, &str)] = &[
    ("std::fs", "files are storages"),
    ("std::net", "what is far away is a storage"),
    ("std::thread", "threads belong to the caller"),
    ("std::process", "a library starts and ends no process"),
    ("std::env", "a library's settings are arguments"),
    ("Instant", "time comes in through Timer"),
    ("SystemTime", "time comes in through Timer"),
    ("println!", "a library does not print"),
    ("eprintln!", "a library does not print"),
    ("dbg!", "a library does not print"),
    ("HashMap::new", "its order is random: BTreeMap, or a hasher of one's own"),
    ("HashSet::new", "its order is random: BTreeSet, or a hasher of one's own"),
    ("RandomState", "runs must be repeatable"),
];

/// Locks and events come through `sync.rs`, so that a simulator can exchange them.
const LOCKS: &[(&str, &str)] = &[
    ("async_lock", "locks come through crate::sync"),
    ("event_listener", "events come through crate::sync"),
    ("std::sync::Mutex", "locks come through crate::sync"),
    ("std::sync::Condvar", "a thread must not wait in the engine"),
];

/// The format is values, not I/O.
const IO: &[(&str, &str)] = &[
    ("std::io", "the format layer does no I/O"),
    ("async ", "the format layer does not wait"),
    (".await", "the format layer does not wait"),
    ("crate::sync", "the format layer needs no lock"),
];

#[test]
fn layers_use_what_the_table_allows_and_nothing_else() {
    let table = layer_table();
    let mut faults = Vec::new();
    for (path, text) in sources("src") {
        let Some(layer) = layer_of(&path) else { continue };
        let Some(allowed) = table.get(&layer) else {
            faults.push(format!(
                "{}: layer `{layer}` is not in ARCHITECTURE.md's table",
                path.display()
            ));
            continue;
        };
        for (number, line) in code_lines(&text) {
            for used in crate_paths(line) {
                // Names at the root are the re-exports of `error`.
                let used =
                    if used.starts_with(char::is_uppercase) { "error".to_owned() } else { used };
                if used != layer && !allowed.contains(&used) {
                    faults.push(format!(
                        "{}:{number}: `{layer}` must not use `{used}`",
                        path.display()
                    ));
                }
            }
        }
    }
    assert!(faults.is_empty(), "against the table in ARCHITECTURE.md:\n{}", faults.join("\n"));
}

#[test]
fn layer_table_has_no_cycle() {
    let table = layer_table();
    for start in table.keys() {
        let mut reached = BTreeSet::new();
        let mut ahead: Vec<&String> = table[start].iter().collect();
        while let Some(layer) = ahead.pop() {
            assert!(layer != start, "{start} uses itself by way of others");
            if reached.insert(layer) {
                ahead.extend(table.get(layer).unwrap_or_else(|| panic!("{layer} has no row")));
            }
        }
    }
}

#[test]
fn effects_and_locks_stay_in_their_places() {
    let mut faults = Vec::new();
    for (path, text) in sources("src") {
        // Tests of what is private to the image, compiled for a model checker alone.
        if path.ends_with("image/kernel.rs") {
            continue;
        }
        let Some(layer) = layer_of(&path) else { continue };
        let mut banned: Vec<(&str, &str)> = Vec::new();
        if !matches!(layer.as_str(), "rt" | "wasm") {
            banned.extend(EFFECTS);
            if layer != "sync" {
                banned.extend(LOCKS);
            }
        }
        if layer == "format" {
            banned.extend(IO);
        }
        for (number, line) in code_lines(&text) {
            for (word, why) in &banned {
                if line.contains(word) {
                    faults.push(format!("{}:{number}: {word} in `{layer}`: {why}", path.display()));
                }
            }
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn command_uses_the_public_api_alone() {
    for (path, text) in sources("src/bin") {
        for (number, line) in code_lines(&text) {
            assert!(
                !line.contains("#[path"),
                "{}:{number} includes a file of the library",
                path.display()
            );
        }
    }
}

#[test]
fn every_source_file_is_ascii_and_says_what_it_is() {
    let mut faults = Vec::new();
    for root in ["src", "tests", "xtask/src", "examples", "benches", "fuzz/fuzz_targets"] {
        for (path, text) in sources(root) {
            if let Some(line) = text.lines().position(|line| !line.is_ascii()) {
                faults.push(format!("{}:{}: not ASCII", path.display(), line + 1));
            }
            if !text.starts_with("//! ") && !text.starts_with("#!") {
                faults.push(format!("{}: does not open with //!", path.display()));
            }
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn tests_that_the_browser_cannot_run_say_so() {
    // `wasm-pack test` compiles every program of tests; one for the browser says so in its name.
    for (path, text) in sources("tests") {
        let program = path.strip_prefix("tests").unwrap();
        let for_browser = program.to_string_lossy().starts_with("browser");
        let names: Vec<_> = program.iter().collect();
        let is_program = names.len() == 1 || names.len() == 2 && names[1] == "main.rs";
        if is_program && !for_browser {
            let native = "#![cfg(not(target_family = \"wasm\"))]";
            assert!(
                [native, "#![cfg(target_os", "#![cfg(all(unix"].iter().any(|it| text.contains(it)),
                "{} lacks {native}",
                path.display()
            );
        }
    }
}

/// Reads the table of layers: a name in the first column, names in the last.
fn layer_table() -> BTreeMap<String, BTreeSet<String>> {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let rows = text
        .lines()
        .skip_while(|line| !line.starts_with("| layer |"))
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    let table: BTreeMap<_, _> = rows
        .map(|row| {
            let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
            let name = cells[0].trim().trim_matches('`').to_owned();
            let used =
                cells[2].split_whitespace().map(|word| word.trim_matches('`').to_owned()).collect();
            (name, used)
        })
        .collect();
    assert!(
        table.contains_key("format") && table.len() > 5,
        "no table of layers in ARCHITECTURE.md"
    );
    table
}

/// The layer of a source file: its first folder under `src`, or its name there. None for `lib.rs` and the command.
fn layer_of(path: &Path) -> Option<String> {
    let inside = path.strip_prefix("src").ok()?;
    let first = inside.components().next()?.as_os_str().to_str()?;
    match first.trim_end_matches(".rs") {
        "lib" | "bin" => None,
        layer => Some(layer.to_owned()),
    }
}

/// The lines that are code, with their numbers: comments are left out, and so is what follows `//`.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let code = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    code.enumerate()
        .map(|(index, line)| (index + 1, line))
        .filter(|(_, line)| !line.trim().is_empty())
}

/// The first names of the paths in `line` that begin at the crate: `crate::a::b` and `crate::{a, b}`.
fn crate_paths(line: &str) -> Vec<String> {
    let mut names = Vec::new();
    let name = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    for (at, marker) in line.match_indices("crate::") {
        let before = line[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &line[at + marker.len()..];
        if let Some(group) = rest.strip_prefix('{') {
            // Depth one: what nested braces hold belongs to the name before them.
            let mut depth = 0;
            let mut item = String::new();
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => names.push(name(&std::mem::take(&mut item))),
                    c if depth == 0 => item.push(c),
                    _ => {}
                }
            }
            names.push(name(&item));
        } else {
            names.push(name(rest));
        }
    }
    names.retain(|name| !name.is_empty() && name != "self");
    names
}

/// The Rust files under `folder` with their texts, by paths from the root; none if there is no such folder.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::from(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(root().join(&folder)) else { continue };
        for entry in entries {
            let path = folder.join(entry.expect("an entry").file_name());
            if root().join(&path).is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(root().join(&path)).expect("a source file");
                files.push((path, text));
            }
        }
    }
    files.sort();
    files
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
