//! The example that embedders start from: it must do what it says, end when it is told to, and leave a sound image.
//!
//! A program of its own: an interrupt is raised here, and whoever has asked for it once ends no longer by Ctrl-C.

#![cfg(not(target_family = "wasm"))]
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

#[path = "../examples/vmm.rs"]
#[allow(dead_code, clippy::cast_possible_truncation, reason = "its `main` is not called")]
mod vmm;

use std::time::Duration;

use support::qemu;

#[test]
fn queues_serve_until_ctrl_c_and_leave_a_sound_image() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.qcow2");
    // A disk that the queues fill soon: nothing here is about space.
    qemu::img(dir.path(), ["create", "-q", "-f", "qcow2", "disk.qcow2", "64M"]);
    for queues in [1, 2, 8] {
        let signal = vmm::interrupted().unwrap();
        let end = async {
            async_io::Timer::after(Duration::from_millis(300)).await;
            signal_hook::low_level::raise(signal_hook::consts::SIGINT).unwrap();
            signal.await;
        };
        let done = vmm::run(&path, queues, Duration::from_millis(5), end).unwrap();
        assert!(done.blocks > 0 && done.passes > 0, "{queues} queues: {done:?}");
        assert!(done.hits > done.misses && done.misses > 0, "{queues} queues: {done:?}");
        qemu::img(dir.path(), ["check", "disk.qcow2"]);
    }
}
