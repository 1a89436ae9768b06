//! The project's chores, as `cargo xtask CHORE`: set up a machine, show the page, run every test.
//!
//! Everything that a chore needs it installs from the registries, at the versions that the project's lock files name, and
//! keeps in a cache that outlives the clone: `$COWSHED_CACHE`, or `~/.cache/cowshed`. Each step says what it does and how
//! long it took. Nothing here is part of the library; std is all it uses.

#![warn(clippy::unwrap_used, clippy::expect_used)]

mod chores;
mod fuzz;
mod paths;
mod process;
mod races;
mod real_image;
mod setup;

use std::process::ExitCode;

/// What chores return: any error ends the program with its text.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const HELP: &str = "\
Chores of the cowshed project.

  cargo xtask demo [IMAGE] [--port N] [--no-serve]
      Sets the machine up, builds the command and the page, shows what the command sees in IMAGE (or in a
      Debian disk that it builds) and serves the page on localhost until Ctrl-C.
  cargo xtask test [--no-browser] [--no-fuzz] [--no-engine]
      Sets the machine up and runs every test: the engine and the command, the documentation, the engine in
      headless Chromium, the page in Chromium, 2,000 lives of disks, ten seconds of each fuzz target.
  cargo xtask setup
      Only the set-up of the other two.
  cargo xtask pkg
      Builds the npm package into pkg/.
  cargo xtask real-image PATH
      Builds the demonstration image: GPT, EFI partition, ext4 root with a Debian tree, snapshots, compression.
  cargo xtask fuzz [SECONDS] [TARGET]
      Runs the fuzz targets for SECONDS each (10 if not given).
  cargo xtask sim [--seeds N] [--from SEED]
      Lives through N seeds (10,000 if not given) in the simulator, optimised: disks that lose power and fail. Prints
      seeds, states after a power loss, states a second, and of a failure its seed and its fewest requests.
  cargo xtask sim --mutants
      Switches off each rule of writing in turn: the simulator must notice, within the seeds that its test states.
  cargo xtask model [--schedules N]
      Checks the protocols of the cache, its cleaner and the image under N schedules each (4,000 if not given; the image's
      get a tenth), and that mutants of them are found. Then the kernel of the cleaner and the image's gates under every
      schedule there is, or every one with a few preemptions.
  cargo xtask tsan [--seconds N]
      Watches the tests of threads with ThreadSanitizer on the nightly toolchain: the nine races of the cleaner, N seconds
      each (3 if not given), the cache's stress, writers, changes of the settings, runtimes.
  cargo xtask miri
      Interprets the tests of the cache and the format with Miri on the nightly toolchain: undefined behaviour, races, leaks.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match chore(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nxtask: {error}");
            ExitCode::FAILURE
        }
    }
}

fn chore(arguments: &[String]) -> Result<()> {
    let mut rest = Arguments { words: arguments.to_vec() };
    match rest.word().as_deref() {
        Some("demo") => {
            let serve = !rest.flag("--no-serve");
            let port =
                rest.value("--port")?.map(|port| port.parse::<u16>()).transpose()?.unwrap_or(8080);
            let image = rest.word();
            rest.end()?;
            chores::demo(image.as_deref().map(std::path::Path::new), port, serve)
        }
        Some("test") => {
            let engine = !rest.flag("--no-engine");
            let browser = !rest.flag("--no-browser");
            let fuzz = !rest.flag("--no-fuzz");
            rest.end()?;
            chores::test(engine, browser, fuzz)
        }
        Some("setup") => {
            rest.end()?;
            setup::everything()
        }
        Some("pkg") => {
            rest.end()?;
            chores::package()
        }
        Some("real-image") => {
            let path = rest.word().ok_or("real-image: say where to put it")?;
            rest.end()?;
            setup::image_tools()?;
            process::step(&format!("build {path}"), || {
                Ok(real_image::build(path.as_ref(), &paths::cache()?)?)
            })
        }
        Some("fuzz") => {
            let seconds = rest.word().map(|seconds| seconds.parse()).transpose()?.unwrap_or(10);
            let target = rest.word();
            rest.end()?;
            fuzz::run_for(seconds, target.as_deref())
        }
        Some("sim") => {
            if rest.flag("--mutants") {
                rest.end()?;
                return chores::sim_mutants();
            }
            let seeds = rest.value("--seeds")?.map(|seeds| seeds.parse()).transpose()?;
            let from = rest.value("--from")?.map(|seed| seed.parse()).transpose()?;
            rest.end()?;
            chores::sim(seeds.unwrap_or(10_000), from.unwrap_or(0))
        }
        Some("model") => {
            let schedules = rest.value("--schedules")?.map(|number| number.parse()).transpose()?;
            rest.end()?;
            races::model(schedules)
        }
        Some("tsan") => {
            let seconds = rest.value("--seconds")?.map(|number| number.parse()).transpose()?;
            rest.end()?;
            races::tsan(seconds.unwrap_or(3))
        }
        Some("miri") => {
            rest.end()?;
            races::miri()
        }
        Some("help" | "--help" | "-h") | None => {
            print!("{HELP}");
            Ok(())
        }
        Some(other) => {
            Err(format!("no chore is called {other}; `cargo xtask help` lists them").into())
        }
    }
}

/// The command line that is left to read.
struct Arguments {
    words: Vec<String>,
}

impl Arguments {
    /// Takes the first word.
    fn word(&mut self) -> Option<String> {
        let first =
            self.words.iter().position(|word| !word.starts_with("--") || word == "--help")?;
        Some(self.words.remove(first))
    }

    /// Takes a flag, wherever it stands, and says whether it was there.
    fn flag(&mut self, name: &str) -> bool {
        let found = self.words.iter().position(|word| word == name);
        found.map(|index| self.words.remove(index)).is_some()
    }

    /// Takes an option and its value.
    fn value(&mut self, name: &str) -> Result<Option<String>> {
        let Some(index) = self.words.iter().position(|word| word == name) else { return Ok(None) };
        if index + 1 >= self.words.len() {
            return Err(format!("{name} needs a value").into());
        }
        self.words.remove(index);
        Ok(Some(self.words.remove(index)))
    }

    /// Refuses what nobody took.
    fn end(&self) -> Result<()> {
        match self.words.first() {
            None => Ok(()),
            Some(word) => {
                Err(format!("what is {word}? `cargo xtask help` lists what there is").into())
            }
        }
    }
}
