//! Seeds: many of them, or the one that failed.

/// Calls `run` with each seed from 0 up to `count`, or with the one in the environment variable `COWSHED_SEED` alone.
///
/// If it panics, the seed is printed with the way to run it again.
pub fn for_each_seed(count: u64, mut run: impl FnMut(u64)) {
    let one = std::env::var("COWSHED_SEED").ok();
    let seeds = match &one {
        Some(text) => {
            let seed = text.parse().expect("COWSHED_SEED is a number");
            seed..=seed
        }
        None => 0..=count - 1,
    };
    for seed in seeds {
        let told = Told(seed);
        run(seed);
        drop(told);
    }
}

/// Tells of its seed when a panic drops it.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let test = std::thread::current().name().unwrap_or_default().to_owned();
            eprintln!(
                "seed {} fails; again: COWSHED_SEED={} cargo test --features sim {test}",
                self.0, self.0
            );
        }
    }
}
