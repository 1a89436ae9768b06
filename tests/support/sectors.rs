//! A small disk by its sectors, and what each of them may hold if the power goes while it is written to.

use std::cell::RefCell;
use std::future::Future;
use std::task::Poll;

use cowshed::image::check::{CheckOptions, check_storage};
use cowshed::image::{Image, ZeroMode};
use cowshed::sim::Random;
use cowshed::storage::Storage;
use futures::executor::block_on;

pub const SECTOR: usize = 512;
/// The length of the disk in sectors: several steps of several pieces, where clusters are small.
pub const SECTORS: usize = 1000;
pub const LEN: usize = SECTORS * SECTOR;

/// What each sector may hold if the power goes: what it held at the last flush, and what was written since.
pub struct Model {
    sectors: Vec<Vec<u8>>,
}

impl Model {
    /// A disk that is durable.
    pub fn new(disk: &[u8]) -> Self {
        Self { sectors: disk.chunks(SECTOR).map(|sector| vec![sector[0]]).collect() }
    }

    /// Asks whether this may be left of the disk.
    pub fn allows(&self, disk: &[u8]) -> Result<(), String> {
        for (index, (sector, allowed)) in disk.chunks(SECTOR).zip(&self.sectors).enumerate() {
            let is_whole = sector.iter().all(|byte| *byte == sector[0]);
            if !is_whole || !allowed.contains(&sector[0]) {
                return Err(format!(
                    "sector {index} is {:02x?}, not of {allowed:02x?}",
                    &sector[..8]
                ));
            }
        }
        Ok(())
    }

    /// The disk as it must be now.
    pub fn now(&self) -> Vec<u8> {
        self.sectors.iter().flat_map(|sector| [*sector.last().unwrap(); SECTOR]).collect()
    }
}

/// Writes here and there, flushes at times, and reads what it has written.
pub async fn write<S: Storage>(
    image: &Image<S>,
    model: &RefCell<Model>,
    random: &mut Random,
) -> cowshed::Result<()> {
    for _ in 0..random.below(40) {
        let at = random.index(SECTORS);
        let count = (1 + random.index(20)).min(SECTORS - at);
        let byte = if random.chance(200) { 0 } else { random.bits() as u8 };
        if random.chance(100) {
            let lens: Vec<_> = model.borrow().sectors.iter().map(Vec::len).collect();
            image.flush().await?;
            for (sector, len) in model.borrow_mut().sectors.iter_mut().zip(lens) {
                sector.drain(..len - 1);
            }
        }
        model.borrow_mut().sectors[at..at + count].iter_mut().for_each(|it| it.push(byte));
        let (offset, len) = ((at * SECTOR) as u64, count * SECTOR);
        match byte {
            0 => image.write_zeroes_at(offset, len as u64, ZeroMode::MayUnmap).await?,
            _ => image.write_at(&vec![byte; len], offset).await?,
        }
        let mut read = vec![0xee; len];
        image.read_at(&mut read, offset).await?;
        assert!(read.iter().all(|it| *it == byte), "what was written at {offset:#x} is not there");
    }
    Ok(())
}

/// Asks whether an image is consistent, but for what is leaked.
pub fn check<S: Storage>(storage: &S) -> Result<(), String> {
    block_on(check_by(storage))
}

/// As [`check`], in the midst of something else.
pub async fn check_by<S: Storage>(storage: &S) -> Result<(), String> {
    match check_storage(storage, &CheckOptions::default(), &mut ()).await {
        Ok(report) if report.corruptions + report.check_errors == 0 => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

/// Polls a future so many times, and drops it if it has not ended then.
pub async fn given_up<T>(future: impl Future<Output = T>, polls: u64) -> Option<T> {
    let (mut future, mut left) = (Box::pin(future), polls);
    futures::future::poll_fn(move |context| {
        left = left.saturating_sub(1);
        match future.as_mut().poll(context) {
            Poll::Pending if left > 0 => Poll::Pending,
            Poll::Pending => Poll::Ready(None),
            Poll::Ready(end) => Poll::Ready(Some(end)),
        }
    })
    .await
}

/// Lets the others go on.
async fn yield_now() {
    let mut yielded = false;
    futures::future::poll_fn(move |context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Changes the caches while everybody uses them.
pub async fn reconfigure<S: Storage>(image: &Image<S>, random: &mut Random) -> cowshed::Result<()> {
    for _ in 0..random.below(4) {
        for _ in 0..random.below(60) {
            yield_now().await;
        }
        let mut settings = image.settings();
        settings.cache.l2_cache_size = Some(8 << random.index(8) << 10);
        drop(image.reconfigure(settings).await?);
    }
    Ok(())
}
