//! Requests that go on while other commands run.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;

use futures::stream::{FuturesUnordered, Stream as _, StreamExt as _};

/// The requests in the background; each gives what it has to say in the end.
pub(super) struct Background<T> {
    running: FuturesUnordered<Pin<Box<dyn Future<Output = T>>>>,
    /// Ended, and not yet said.
    ended: Vec<T>,
}

impl<T> Background<T> {
    /// None yet.
    pub(super) fn new() -> Self {
        Self { running: FuturesUnordered::new(), ended: Vec::new() }
    }

    /// Starts a request, as far as it gets without waiting.
    pub(super) async fn start(&mut self, request: impl Future<Output = T> + 'static) {
        self.running.push(Box::pin(request));
        self.go_on().await;
    }

    /// Lets all go on as far as they get without waiting.
    pub(super) async fn go_on(&mut self) {
        poll_fn(|context| {
            while let Poll::Ready(Some(ended)) = Pin::new(&mut self.running).poll_next(context) {
                self.ended.push(ended);
            }
            Poll::Ready(())
        })
        .await;
    }

    /// Runs `future` to its end and the requests beside it; `say` hears of those that end.
    pub(super) async fn beside<R>(
        &mut self,
        future: impl Future<Output = R>,
        mut say: impl FnMut(T),
    ) -> R {
        let mut future = pin!(future);
        poll_fn(|context| {
            if let Poll::Ready(result) = future.as_mut().poll(context) {
                return Poll::Ready(result);
            }
            self.ended.drain(..).for_each(&mut say);
            while let Poll::Ready(Some(ended)) = Pin::new(&mut self.running).poll_next(context) {
                say(ended);
            }
            Poll::Pending
        })
        .await
    }

    /// Waits until all have ended.
    pub(super) async fn drain(&mut self, mut say: impl FnMut(T)) {
        self.ended.drain(..).for_each(&mut say);
        while let Some(ended) = self.running.next().await {
            say(ended);
        }
    }
}
