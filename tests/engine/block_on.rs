//! `block_on` waits in its thread's io_uring. The fear: a wake-up that is lost there, a request that no one serves, a
//! buffer that is freed under the kernel's hands.

use std::future::{Future, poll_fn};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::mpsc::channel;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use cowshed::rt::{DiskStorage, FileOptions, FileStorage, UringStorage, block_on, open_storage};
use cowshed::storage::{Buf, SendStorage};
use futures::stream::{FuturesUnordered, StreamExt};

const LEN: usize = 1 << 20;

/// A file of 1 MiB in which every 4 KiB hold their number.
fn file() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("disk");
    let bytes: Vec<u8> = (0..LEN).map(|i| u8::try_from(i / 4096).unwrap()).collect();
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn open(path: &PathBuf) -> UringStorage {
    UringStorage::open(path, &FileOptions::new().direct(true).writable(true)).unwrap()
}

async fn read(storage: &UringStorage, block: u8) {
    let buf = Buf::aligned(4096, 4096);
    let bytes = storage.read_at(buf, u64::from(block) * 4096).await.unwrap();
    assert!(bytes.iter().all(|&byte| byte == block), "block {block} holds {}", bytes[0]);
}

#[test]
fn best_storage_of_this_machine_is_io_uring() {
    let (_folder, path) = file();
    let storage: DiskStorage = open_storage(&path, &FileOptions::new()).unwrap();
    assert!(format!("{storage:?}").contains("UringStorage"), "{storage:?}");
    assert_eq!(storage.limits().requests_in_flight, 128);
    let plain = DiskStorage::from(FileStorage::open(&path, &FileOptions::new()).unwrap());
    assert_eq!(plain.identity(), storage.identity());
}

#[test]
fn requests_by_the_thousand_are_all_served() {
    let (_folder, path) = file();
    let storage = open(&path);
    block_on(async {
        let mut reads = FuturesUnordered::new();
        for i in 0..3000u32 {
            // More than the queue holds.
            reads.push(read(&storage, (i % 256) as u8));
            if i % 700 == 699 {
                while reads.next().await.is_some() {}
            }
        }
        while reads.next().await.is_some() {}
    });
}

#[test]
fn thread_in_its_ring_is_woken_by_another() {
    let (_folder, path) = file();
    let storage = open(&path);
    block_on(async {
        // Now the thread has a ring, and parks in it with nothing in flight.
        read(&storage, 1).await;
        for _ in 0..200 {
            let mut done = None;
            poll_fn(|context| match done.take() {
                None => {
                    let waker = context.waker().clone();
                    done = Some(thread::spawn(move || waker.wake()));
                    Poll::Pending
                }
                Some(thread) => {
                    thread.join().unwrap();
                    Poll::Ready(())
                }
            })
            .await;
        }
        read(&storage, 2).await;
    });
}

#[test]
fn future_begun_on_one_thread_ends_on_another() {
    let (_folder, path) = file();
    let storage = open(&path);
    for first_in_block_on in [true, false] {
        let mut reading: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin({
            let storage = storage.clone();
            async move { read(&storage, 77).await }
        });
        let poll_once = poll_fn(|_| {
            let _ = reading.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            Poll::Ready(())
        });
        if first_in_block_on {
            block_on(poll_once);
        } else {
            futures::executor::block_on(poll_once);
        }
        let (done, wait) = channel();
        thread::spawn(move || {
            if first_in_block_on {
                futures::executor::block_on(reading);
            } else {
                block_on(reading);
            }
            done.send(()).unwrap();
        });
        wait.recv_timeout(Duration::from_secs(10)).expect("the read ends");
    }
}

#[test]
fn what_was_dropped_is_waited_for_with_its_buffers() {
    let (_folder, path) = file();
    let storage = open(&path);
    for _ in 0..50 {
        block_on(async {
            let mut context = Context::from_waker(Waker::noop());
            for block in 0..100u8 {
                let mut reading = Box::pin(read(&storage, block));
                let _ = reading.as_mut().poll(&mut context);
            }
        });
    }
    // A thread that ends with requests in its ring waits for them, too.
    thread::spawn(move || {
        block_on(async {
            let mut reading = Box::pin(read(&storage, 3));
            let _ = reading.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        });
    })
    .join()
    .unwrap();
}

#[test]
fn panic_in_the_future_leaves_the_ring_usable() {
    let (_folder, path) = file();
    let storage = open(&path);
    let panicking = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        block_on(async {
            let mut reading = Box::pin(read(&storage, 3));
            let _ = reading.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            panic!("expected: this test panics");
        });
    }));
    panicking.unwrap_err();
    block_on(read(&storage, 4));
}

#[test]
fn block_on_within_block_on_serves_both() {
    let (_folder, path) = file();
    let storage = open(&path);
    block_on(async {
        let outer = read(&storage, 5);
        block_on(read(&storage, 6));
        outer.await;
    });
}

#[test]
fn executor_of_several_threads_runs_on_several_rings() {
    let (_folder, path) = file();
    let storage = open(&path);
    let executor = async_executor::Executor::new();
    let (stop, stopped) = async_channel();
    thread::scope(|scope| {
        for _ in 0..3 {
            let (executor, stopped) = (&executor, stopped.clone());
            scope.spawn(move || block_on(executor.run(stopped)));
        }
        let tasks: Vec<_> = (0..64u8)
            .map(|task| {
                let storage = storage.clone();
                executor.spawn(async move {
                    for i in 0..50u8 {
                        read(&storage, task.wrapping_mul(4).wrapping_add(i)).await;
                        async_io::Timer::after(Duration::from_micros(10)).await;
                    }
                })
            })
            .collect();
        for task in tasks {
            futures::executor::block_on(task);
        }
        stop();
    });
}

#[test]
fn many_threads_share_one_ring() {
    let (_folder, path) = file();
    let storage = open(&path);
    thread::scope(|scope| {
        for thread in 0..8u32 {
            let storage = &storage;
            scope.spawn(move || {
                // Together more than the shared queue holds.
                futures::executor::block_on(async {
                    let mut reads = FuturesUnordered::new();
                    for i in 0..1000u32 {
                        reads.push(read(storage, (i * 7 + thread) as u8));
                        if reads.len() >= 100 {
                            reads.next().await;
                        }
                    }
                    while reads.next().await.is_some() {}
                });
            });
        }
    });
}

/// A future that clones of can wait for, and what ends it.
fn async_channel() -> (impl FnOnce(), futures::future::Shared<impl Future<Output = ()>>) {
    use futures::FutureExt;
    let (send, receive) = futures::channel::oneshot::channel::<()>();
    (move || drop(send), receive.map(drop).shared())
}

#[test]
fn timers_and_plain_wake_ups_need_no_ring() {
    block_on(async {
        async_io::Timer::after(Duration::from_millis(20)).await;
        let mut woken = 0;
        poll_fn(|context| {
            woken += 1;
            context.waker().wake_by_ref();
            if woken < 100 { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    });
}

#[test]
fn flush_makes_writes_durable_after_dropped_ones_ended() {
    let (_folder, path) = file();
    let storage = open(&path);
    block_on(async {
        let mut context = Context::from_waker(Waker::noop());
        for block in 0..100u64 {
            let mut buf = Buf::aligned(4096, 4096);
            buf.fill(0xee);
            let mut writing = Box::pin(storage.write_at(buf, block * 4096));
            let _ = writing.as_mut().poll(&mut context);
        }
        storage.flush().await.unwrap();
    });
    // Whatever landed had landed before flush returned: nothing changes any more.
    let after = std::fs::read(&path).unwrap();
    thread::sleep(Duration::from_millis(100));
    assert!(after == std::fs::read(&path).unwrap());
}
