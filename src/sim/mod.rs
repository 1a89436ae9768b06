//! The simulator: a world in which one seed decides everything, to find what only bad luck would.
//!
//! The engine's effects come in through `Storage`, `Timer`, `Workers` and the executor that polls. Here are their twins:
//!
//! - [`Executor`] runs futures on one thread and chooses by the seed which of the ready tasks is polled next;
//! - [`Clock`] tells virtual time, which passes when nothing else can happen;
//! - [`SimWorkers`] run jobs some time later, in any order;
//! - [`SimStorage`] knows what is durable and what is not, takes its time, fails as its [`Faults`] say, and loses power
//!   when told to. What it may do is written at the head of `fault.rs`, with [`Faults`].
//!
//! Every decision goes into a [`Trace`]: the same program with the same seed gives the same trace, always. So a failure
//! that a seed has found is found again by the same seed.
//!
//! ```
//! use cowshed::sim::{Executor, Faults, SimStorage};
//! use cowshed::storage::{Buf, Storage};
//!
//! let seed = 42;
//! let executor = Executor::new(seed);
//! let disk = SimStorage::new(&executor, vec![0; 4096], Faults::none());
//! let written = executor.run(async {
//!     Storage::write_at(&disk, Buf::zeroed(512), 1024).await?;
//!     Storage::flush(&disk).await
//! });
//! written.expect("the program gets stuck").expect("there are no faults");
//! let after_power_loss = disk.crash();
//! assert_eq!(after_power_loss.to_vec().len(), 4096);
//! ```
//!
//! What is simulated must bring no randomness, time or threads of its own: then a run is a function of its seed. Locks
//! need no twin as long as none of them reads a clock: see `sync.rs`.
//!
//! This module must not know images, caches or formats, so that it can judge them.

mod clock;
mod cut;
mod disk;
mod executor;
mod fault;
mod power;
mod random;
mod state;
mod storage;
mod trace;
mod versions;
mod workers;

pub use clock::{Clock, Sleep};
pub use cut::cut;
pub use executor::{Executor, Progress, Stuck, Task};
pub use fault::{Failure, Faults};
pub use random::Random;
pub use storage::SimStorage;
pub use trace::Trace;
pub use workers::SimWorkers;
