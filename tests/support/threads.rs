//! An executor that more threads than one drive.

use std::sync::atomic::{AtomicBool, Ordering};

use async_executor::Executor;

/// Says that the others may end, also when a test fails: else it would wait for them for ever.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Drives the executor here by `run`, and by `others` more threads until that is done.
pub fn beside_threads<T>(executor: &Executor<'_>, others: usize, run: impl FnOnce() -> T) -> T {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _ends = Ends(&ended);
        for _ in 0..others {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    if !executor.try_tick() {
                        std::thread::yield_now();
                    }
                }
            });
        }
        run()
    })
}
