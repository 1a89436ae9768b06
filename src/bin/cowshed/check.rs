//! `check`: is the metadata consistent? With `-r` it is made so.

use std::io::{self, Write as _};

use clap::{ArgMatches, Command};
use cowshed::image::check::{
    CheckObserver, CheckOptions, CheckReport, Finding, Repair, RepairReport, RepairStep,
    check_storage, repair_storage,
};
use cowshed::image::{Format, WriteOptions};

use crate::cli::Session;
use crate::escape;
use crate::failure::{Failure, warn};
use crate::json::Json;
use crate::open;
use crate::options::{self, Output};
use crate::progress::Progress;
use crate::size::SIZE_MAX;

/// The verb's name.
pub(crate) const NAME: &str = "check";

/// Exit code: the image has errors.
const CORRUPT: u8 = 2;
/// Exit code: nothing is wrong but that space is lost.
const LEAKS: u8 = 3;
/// Exit code: there is nothing to check in this format.
const NOT_SUPPORTED: u8 = 63;

/// Its options.
pub(crate) fn command() -> Command {
    Command::new(NAME)
        .about("Check and repair the metadata of an image: refcounts, tables, snapshots, bitmaps")
        .arg(options::format("format"))
        .arg(options::value("repair", 'r', "repair", "leaks|all").help("Repair leaks, or all that is found; what was there before is lost"))
        .arg(options::value("cache", 'T', "cache", "MODE").help("Cache mode, as QEMU names them (default: writeback)"))
        .arg(
            options::long_value("memory", "memory", "SIZE")
                .help("Memory for counting (default: 64M); with more, large images take fewer passes"),
        )
        .arg(options::output())
        .arg(options::quiet())
        .arg(options::progress())
        .args(options::opening())
        .arg(options::files("FILE"))
        .after_help(
            "Exit code: 0 no errors, 1 the check failed, 2 the image is corrupt, 3 clusters are leaked and nothing else \
             is wrong,\n63 the format cannot be checked.",
        )
}

/// Runs it.
pub(crate) fn run(matches: &ArgMatches, session: &mut Session) -> Result<u8, Failure> {
    let repair = match options::text(matches, "repair") {
        None => None,
        Some("leaks") => Some(Repair::Leaks),
        Some("all") => Some(Repair::All),
        Some(other) => {
            let message = format!("--repair (-r) expects 'leaks' or 'all' not '{other}'");
            return Err(Failure::usage(Some(NAME), message));
        }
    };
    let output = Output::from_matches(NAME, matches)?;
    let memory = options::bytes(matches, "memory", "memory", 0..=SIZE_MAX)?;
    let [name] = options::file_names(NAME, matches, "one image file name")?;
    let cache = options::text(matches, "cache").unwrap_or("writeback");
    if !options::is_cache_mode(cache) {
        return Err(Failure::message(format!("Invalid source cache option: {cache}")));
    }
    let opening = open::Opening::from_matches(matches, session.persona, "format")?;
    let opening =
        if repair.is_some() { opening.writable(WriteOptions::default()) } else { opening };
    let quiet = matches.get_flag("quiet");

    open::block_on(async {
        let source = opening.source(&name).await?;
        if source.format != Format::Qcow2 {
            return Err(Failure::image(&name, "", "This image format does not support checks")
                .with_code(NOT_SUPPORTED));
        }
        opening.check_key(&name, &source).await?;
        let mut options = CheckOptions::default();
        if let Some(bytes) = memory {
            options = options.memory_bytes_max(bytes);
        }
        let asked_for = matches.get_flag("progress") && !quiet;
        let mut observer = Observer { progress: Progress::new(asked_for, 1.0)?, result: Ok(()) };
        let failed = |error| Failure::open(&name, open::reason(&error));
        let mut done = match repair {
            Some(what) => {
                // As qemu-img: progress is that of the check, which comes after what the repair says.
                let mut hidden = Observer { progress: Progress::new(false, 1.0)?, result: Ok(()) };
                let repaired = repair_storage(&source.storage, what, &options, &mut hidden).await;
                let repaired = repaired.map_err(failed)?;
                if repaired.gave_up {
                    return Err(Failure::message("Check failed: Input/output error"));
                }
                repaired
            }
            None => RepairReport::default(),
        };
        if repair.is_none() || done.corruptions_fixed > 0 || done.leaks_fixed > 0 {
            if repair.is_some() && !quiet && output == Output::Human {
                print_repaired(session, &done)?;
                session.out.flush()?;
            }
            let report = check_storage(&source.storage, &options, &mut observer).await;
            observer.result?;
            observer.progress.end()?;
            done.check = report.map_err(failed)?;
        } else {
            // What the repair found without changing anything is what a check finds.
            observer.progress.complete()?;
            observer.progress.end()?;
        }
        let report = &done.check;
        if !quiet {
            match output {
                Output::Human => print_human(session, report)?,
                Output::Json => writeln!(session.out, "{}", json(&name, &done).pretty())?,
            }
        }
        if report.check_errors > 0 {
            return Err(Failure::message("Check failed"));
        }
        Ok(match (report.corruptions, report.leaks) {
            (0, 0) => 0,
            (0, _) => LEAKS,
            _ => CORRUPT,
        })
    })
}

/// Says on standard error what is found, and shows progress.
struct Observer {
    progress: Progress,
    result: io::Result<()>,
}

impl CheckObserver for Observer {
    fn finding(&mut self, finding: &Finding) {
        warn(&escape::terminal(finding.to_string().as_bytes()));
    }

    fn step(&mut self, step: &RepairStep) {
        warn(&escape::terminal(step.to_string().as_bytes()));
    }

    fn progress(&mut self, done: u64, total: u64) {
        self.progress.start(total);
        if let Err(error) = self.progress.set(done) {
            self.result = Err(error);
        }
    }
}

fn print_repaired(session: &mut Session, done: &RepairReport) -> io::Result<()> {
    writeln!(
        session.out,
        "The following inconsistencies were found and repaired:\n\n    {} leaked clusters\n    {} corruptions\n\n\
         Double checking the fixed image now...",
        done.leaks_fixed, done.corruptions_fixed
    )
}

fn print_human(session: &mut Session, report: &CheckReport) -> io::Result<()> {
    let out = &mut session.out;
    if report.is_clean() {
        writeln!(out, "No errors were found on the image.")?;
    }
    if report.corruptions > 0 {
        writeln!(
            out,
            "\n{} errors were found on the image.\nData may be corrupted, or further writes to the image may corrupt \
             it.",
            report.corruptions
        )?;
    }
    if report.leaks > 0 {
        writeln!(
            out,
            "\n{} leaked clusters were found on the image.\nThis means waste of disk space, but no harm to data.",
            report.leaks
        )?;
    }
    if report.check_errors > 0 {
        writeln!(out, "\n{} internal errors have occurred during the check.", report.check_errors)?;
    }
    if report.total_clusters > 0 && report.allocated_clusters > 0 {
        writeln!(
            out,
            "{}/{} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters",
            report.allocated_clusters,
            report.total_clusters,
            percent(report.allocated_clusters, report.total_clusters),
            percent(report.fragmented_clusters, report.allocated_clusters),
            percent(report.compressed_clusters, report.allocated_clusters)
        )?;
    }
    if report.image_end_offset > 0 {
        writeln!(out, "Image end offset: {}", report.image_end_offset)?;
    }
    Ok(())
}

#[allow(clippy::cast_precision_loss, reason = "two decimals are shown")]
fn percent(part: u64, whole: u64) -> f64 {
    100.0 * part as f64 / whole as f64
}

fn json(name: &std::ffi::OsStr, done: &RepairReport) -> Json {
    use std::os::unix::ffi::OsStrExt as _;
    let report = &done.check;
    let mut members = vec![
        ("filename", Json::text(name.as_bytes())),
        ("format", Json::text("qcow2")),
        ("check-errors", Json::number(report.check_errors)),
    ];
    // QEMU leaves out what is zero.
    for (key, value) in [
        ("image-end-offset", report.image_end_offset),
        ("corruptions", report.corruptions),
        ("leaks", report.leaks),
        ("corruptions-fixed", done.corruptions_fixed),
        ("leaks-fixed", done.leaks_fixed),
        ("total-clusters", report.total_clusters),
        ("allocated-clusters", report.allocated_clusters),
        ("fragmented-clusters", report.fragmented_clusters),
        ("compressed-clusters", report.compressed_clusters),
    ] {
        if value > 0 {
            members.push((key, Json::number(value)));
        }
    }
    Json::Object(members)
}
