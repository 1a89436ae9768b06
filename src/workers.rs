//! Where work goes that keeps a processor busy: inflating clusters, and later deflating and encrypting them.
//!
//! The engine spawns nothing by itself. Without workers it does such work where its future is polled.

/// Runs jobs on other threads, or later.
pub trait Workers: Send + Sync {
    /// Runs `job` some time, exactly once, and does not wait for it. A job neither blocks nor waits for another job.
    fn execute(&self, job: Box<dyn FnOnce() + Send>);

    /// How many jobs can run at the same time: at least 1.
    fn parallelism(&self) -> usize;
}
