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

/// Runs `work` on `workers` and gives what it returns.
///
/// # Panics
/// If the workers drop the job instead of running it.
///
/// # Cancel safety
/// The job runs all the same; what it returns is dropped.
pub(crate) async fn offload<R: Send + 'static>(
    workers: &dyn Workers,
    work: impl FnOnce() -> R + Send + 'static,
) -> R {
    let (sender, receiver) = futures::channel::oneshot::channel();
    workers.execute(Box::new(move || {
        // Nobody waits any more if the request was dropped.
        let _ = sender.send(work());
    }));
    match receiver.await {
        Ok(result) => result,
        Err(_) => panic!("workers dropped a job, which their contract forbids"),
    }
}
