//! `verdict`: is this image safe to hand to a virtual machine? What is suspicious in it, how bad it is and where.

use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;

use clap::{ArgMatches, Command};
use cowshed::image::Format;
use cowshed::image::check::{CheckOptions, check_storage};
use cowshed::inspect::{
    Conclusion, ReadAt as _, StorageBytes, Verdict, VerdictFinding, VerdictOptions, verdict,
};

use crate::cli::Session;
use crate::escape;
use crate::failure::Failure;
use crate::json::Json;
use crate::open::{self, DiskImage, Opening};
use crate::options::{self, Output};
use crate::size::SIZE_MAX;

/// The verb's name.
pub(crate) const NAME: &str = "verdict";

/// Exit code: some finding is a danger.
const UNSAFE: u8 = 2;
/// Exit code: some finding asks for caution, and none is a danger.
const CAUTION: u8 = 3;

/// Its options.
pub(crate) fn command() -> Command {
    Command::new(NAME)
        .about("Judge whether an image is safe to hand to a virtual machine, and say why not")
        .arg(options::format("format"))
        .arg(
            options::long_flag("check", "check")
                .help("Check all of the metadata too, as `check` does; takes longer"),
        )
        .arg(
            options::long_value("max-size", "max-size", "SIZE")
                .help("Find fault with a disk larger than SIZE (default: only with absurd sizes)"),
        )
        .arg(options::output())
        .arg(options::quiet())
        .args(options::opening())
        .arg(options::files("FILE"))
        .after_help(
            "Exit code: 0 safe, 1 the image cannot be judged, 2 unsafe, 3 caution.\n\
             Nothing that the image names is opened.",
        )
}

/// Runs it.
pub(crate) fn run(matches: &ArgMatches, session: &mut Session) -> Result<u8, Failure> {
    let output = Output::from_matches(NAME, matches)?;
    let size_max = options::bytes(matches, "max-size", "size", 0..=SIZE_MAX)?;
    let [name] = options::file_names(NAME, matches, "one image file name")?;
    let opening = Opening::from_matches(matches, session.persona, "format")?.alone();
    let found = open::block_on(judge(&name, &opening, size_max, matches.get_flag("check")))?;
    if !matches.get_flag("quiet") {
        match output {
            Output::Human => {
                writeln!(
                    session.out,
                    "{}: {}",
                    escape::terminal(name.as_bytes()),
                    found.conclusion()
                )?;
                for finding in found.findings() {
                    writeln!(session.out, "  {}", line(finding))?;
                }
            }
            Output::Json => writeln!(session.out, "{}", json(&name, &found).pretty())?,
        }
    }
    Ok(match found.conclusion() {
        Conclusion::Safe => 0,
        Conclusion::Caution => CAUTION,
        Conclusion::Unsafe => UNSAFE,
    })
}

async fn judge(
    name: &OsStr,
    opening: &Opening,
    size_max: Option<u64>,
    check: bool,
) -> Result<Verdict, Failure> {
    let failed = |error: cowshed::Error| Failure::open(name, open::reason(&error));
    let mut source = opening.source(name).await?;
    // Without its passphrase there is nothing to look at but the file.
    if let Some(volume) = source.storage.volume().cloned() {
        source.storage = volume.storage().clone();
    }
    let (storage, format) = (source.storage.clone(), source.format);
    // An image that cannot be opened is judged by its file alone.
    let image: Option<DiskImage> = opening.layer(source).await.ok();
    let file = StorageBytes::new(&storage).await.map_err(failed)?;
    let mut options = VerdictOptions::default();
    options.virtual_size_max = size_max;
    let mut found = verdict(&file, format, image.as_ref(), &options).await.map_err(failed)?;
    if check
        && format == Format::Qcow2
        && let Some(image) = &image
    {
        let report =
            check_storage(&storage, &CheckOptions::default(), &mut ()).await.map_err(failed)?;
        let cluster_size = image.geometry().map_or(512, |geometry| geometry.cluster_size());
        found.add_check(&report, cluster_size, file.len());
    }
    Ok(found)
}

/// A finding as a line of text.
fn line(finding: &VerdictFinding) -> String {
    let place = match finding.offset {
        Some(offset) => format!("{} at {offset:#x}", finding.structure),
        None => finding.structure.to_owned(),
    };
    let text = escape::terminal(finding.text.as_bytes());
    format!("{:<8} {} ({}; {place})", finding.severity.name(), text, finding.code)
}

fn json(name: &OsStr, found: &Verdict) -> Json {
    let findings = found.findings().iter().map(|finding| {
        let mut members = vec![
            ("severity", Json::text(finding.severity.name())),
            ("code", Json::text(finding.code)),
            ("text", Json::text(&finding.text)),
            ("structure", Json::text(finding.structure)),
        ];
        if let Some(offset) = finding.offset {
            members.push(("offset", Json::number(offset)));
        }
        Json::Object(members)
    });
    Json::Object(vec![
        ("filename", Json::text(name.as_bytes())),
        ("verdict", Json::text(found.conclusion().name())),
        ("findings", Json::List(findings.collect())),
    ])
}
