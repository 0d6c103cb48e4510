//! The runtime that openraft is configured with: tokio, in production and, but for three things, in simulations.
//!
//! In a simulated [`Process`] tasks belong to that process, election timeouts follow from its seed, and whoever
//! waits for a watched value is woken in the order of waiting. tokio's own watch wakes in a random order, which costs nothing
//! elsewhere and would make every simulated run another one.

use std::convert::Infallible;
use std::future::Future;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use openraft::async_runtime::watch::{RecvError, SendError};
use openraft::async_runtime::{AsyncRuntime, Watch, WatchReceiver, WatchSender};
use openraft::impls::TokioRuntime;
use openraft::{OptionalSend, OptionalSync};
use tokio::sync::Notify;

use crate::process::{self, Process};

type Tokio = TokioRuntime;
type TokioWatch = <Tokio as AsyncRuntime>::Watch;

/// openraft's runtime.
#[derive(Debug)]
pub(crate) struct Runtime(Tokio);

impl AsyncRuntime for Runtime {
    type JoinError = <Tokio as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <Tokio as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <Tokio as AsyncRuntime>::Sleep;
    type Instant = <Tokio as AsyncRuntime>::Instant;
    type TimeoutError = <Tokio as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <Tokio as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = Chance;
    type Mpsc = <Tokio as AsyncRuntime>::Mpsc;
    type Watch = OrderedWatch;
    type Oneshot = <Tokio as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <Tokio as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        process::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        Tokio::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        Tokio::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        Tokio::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        Tokio::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        Tokio::is_panic(join_error)
    }

    fn thread_rng() -> Chance {
        match process::current() {
            Some(process) => Chance::Seeded(process),
            None => Chance::Thread(Tokio::thread_rng()),
        }
    }

    fn new(threads: usize) -> Self {
        Self(Tokio::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}

/// Where election timeouts come from.
pub(crate) enum Chance {
    Thread(<Tokio as AsyncRuntime>::ThreadLocalRng),
    Seeded(Process),
}

impl rand::TryRng for Chance {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.try_next_u64()
            .map(|number| u32::try_from(number >> 32).unwrap_or_default())
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        match self {
            Self::Thread(chance) => chance.try_next_u64(),
            Self::Seeded(process) => Ok(process.number()),
        }
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        match self {
            Self::Thread(chance) => chance.try_fill_bytes(bytes),
            Self::Seeded(process) => {
                for part in bytes.chunks_mut(size_of::<u64>()) {
                    let number = process.number().to_le_bytes();
                    part.copy_from_slice(number.get(..part.len()).unwrap_or_default());
                }
                Ok(())
            }
        }
    }
}

/// tokio's watch; in a simulation one that wakes in the order of waiting.
pub(crate) struct OrderedWatch;

pub(crate) enum Sender<T: OptionalSend + OptionalSync> {
    Tokio(<TokioWatch as Watch>::Sender<T>),
    Ordered(OrderedSender<T>),
}

pub(crate) enum Receiver<T: OptionalSend + OptionalSync> {
    Tokio(<TokioWatch as Watch>::Receiver<T>),
    Ordered(OrderedReceiver<T>),
}

/// A look at the value.
pub(crate) enum Ref<'a, T: OptionalSend + 'a> {
    Tokio(<TokioWatch as Watch>::Ref<'a, T>),
    Ordered(RwLockReadGuard<'a, T>),
}

impl<T: OptionalSend> Deref for Ref<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        match self {
            Self::Tokio(value) => value,
            Self::Ordered(value) => value,
        }
    }
}

impl Watch for OrderedWatch {
    type Sender<T: OptionalSend + OptionalSync> = Sender<T>;
    type Receiver<T: OptionalSend + OptionalSync> = Receiver<T>;
    type Ref<'a, T: OptionalSend + 'a> = Ref<'a, T>;

    fn channel<T: OptionalSend + OptionalSync>(init: T) -> (Sender<T>, Receiver<T>) {
        if process::current().is_none() {
            let (sender, receiver) = TokioWatch::channel(init);
            return (Sender::Tokio(sender), Receiver::Tokio(receiver));
        }
        let watched = Arc::new(Watched {
            value: RwLock::new(init),
            version: AtomicU64::new(0),
            senders: AtomicUsize::new(1),
            receivers: AtomicUsize::new(0),
            changed: Notify::new(),
        });
        let receiver = Receiver::Ordered(OrderedReceiver::new(&watched));
        (Sender::Ordered(OrderedSender(watched)), receiver)
    }
}

impl<T: OptionalSend + OptionalSync> WatchSender<OrderedWatch, T> for Sender<T> {
    fn send(&self, value: T) -> Result<(), SendError<T>> {
        match self {
            Self::Tokio(sender) => sender.send(value),
            Self::Ordered(sender) => {
                if sender.0.receivers.load(Ordering::Relaxed) == 0 {
                    return Err(SendError(value));
                }
                sender.0.modify(|current| {
                    *current = value;
                    true
                });
                Ok(())
            }
        }
    }

    fn send_if_modified<F>(&self, modify: F) -> bool
    where
        F: FnOnce(&mut T) -> bool,
    {
        match self {
            Self::Tokio(sender) => sender.send_if_modified(modify),
            Self::Ordered(sender) => sender.0.modify(modify),
        }
    }

    fn borrow_watched(&self) -> Ref<'_, T> {
        match self {
            Self::Tokio(sender) => Ref::Tokio(sender.borrow_watched()),
            Self::Ordered(sender) => Ref::Ordered(sender.0.look()),
        }
    }

    fn subscribe(&self) -> Receiver<T> {
        match self {
            Self::Tokio(sender) => Receiver::Tokio(sender.subscribe()),
            Self::Ordered(sender) => Receiver::Ordered(OrderedReceiver::new(&sender.0)),
        }
    }
}

impl<T: OptionalSend + OptionalSync> WatchReceiver<OrderedWatch, T> for Receiver<T> {
    async fn changed(&mut self) -> Result<(), RecvError> {
        match self {
            Self::Tokio(receiver) => receiver.changed().await,
            Self::Ordered(receiver) => receiver.changed().await,
        }
    }

    fn borrow_watched(&self) -> Ref<'_, T> {
        match self {
            Self::Tokio(receiver) => Ref::Tokio(receiver.borrow_watched()),
            Self::Ordered(receiver) => Ref::Ordered(receiver.watched.look()),
        }
    }

    fn borrow_and_update(&mut self) -> Ref<'_, T> {
        match self {
            Self::Tokio(receiver) => Ref::Tokio(receiver.borrow_and_update()),
            Self::Ordered(receiver) => {
                receiver.seen = receiver.watched.version.load(Ordering::Relaxed);
                Ref::Ordered(receiver.watched.look())
            }
        }
    }
}

impl<T: OptionalSend + OptionalSync> Clone for Sender<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Tokio(sender) => Self::Tokio(sender.clone()),
            Self::Ordered(sender) => {
                sender.0.senders.fetch_add(1, Ordering::Relaxed);
                Self::Ordered(OrderedSender(Arc::clone(&sender.0)))
            }
        }
    }
}

impl<T: OptionalSend + OptionalSync> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Tokio(receiver) => Self::Tokio(receiver.clone()),
            Self::Ordered(receiver) => {
                let mut new = OrderedReceiver::new(&receiver.watched);
                new.seen = receiver.seen;
                Self::Ordered(new)
            }
        }
    }
}

/// A value, and who waits for the next one. One thread uses it.
struct Watched<T> {
    value: RwLock<T>,
    version: AtomicU64,
    senders: AtomicUsize,
    receivers: AtomicUsize,
    changed: Notify,
}

impl<T> Watched<T> {
    fn look(&self) -> RwLockReadGuard<'_, T> {
        self.value.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn modify(&self, modify: impl FnOnce(&mut T) -> bool) -> bool {
        let mut value = self.value.write().unwrap_or_else(PoisonError::into_inner);
        let modified = modify(&mut value);
        drop(value);
        if modified {
            self.version.fetch_add(1, Ordering::Relaxed);
            self.changed.notify_waiters();
        }
        modified
    }
}

pub(crate) struct OrderedSender<T>(Arc<Watched<T>>);

impl<T> Drop for OrderedSender<T> {
    fn drop(&mut self) {
        if self.0.senders.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.changed.notify_waiters();
        }
    }
}

pub(crate) struct OrderedReceiver<T> {
    watched: Arc<Watched<T>>,
    seen: u64,
}

impl<T> OrderedReceiver<T> {
    fn new(watched: &Arc<Watched<T>>) -> Self {
        watched.receivers.fetch_add(1, Ordering::Relaxed);
        Self {
            watched: Arc::clone(watched),
            seen: watched.version.load(Ordering::Relaxed),
        }
    }

    async fn changed(&mut self) -> Result<(), RecvError> {
        loop {
            // Made before looking: what changes in between wakes it.
            let changed = self.watched.changed.notified();
            let version = self.watched.version.load(Ordering::Relaxed);
            if version != self.seen {
                self.seen = version;
                return Ok(());
            }
            if self.watched.senders.load(Ordering::Relaxed) == 0 {
                return Err(RecvError(()));
            }
            changed.await;
        }
    }
}

impl<T> Drop for OrderedReceiver<T> {
    fn drop(&mut self) {
        self.watched.receivers.fetch_sub(1, Ordering::Relaxed);
    }
}
