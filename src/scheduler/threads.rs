//! The locks and threads that the scheduler is made of.
//!
//! In unit tests they can also be shuttle's, which try one order of all steps after another.

#[cfg(not(test))]
pub(super) use std::{
    sync::{Condvar, Mutex, MutexGuard},
    thread::{Builder, JoinHandle},
};

#[cfg(test)]
pub(super) use self::either::{Builder, Condvar, JoinHandle, Mutex, MutexGuard, explore};

/// The standard library's, or shuttle's inside of [`explore`].
#[cfg(test)]
mod either {
    use std::{
        cell::Cell,
        ops::{Deref, DerefMut},
        sync, thread,
        time::Duration,
    };

    use shuttle::{Config, Runner, scheduler::RandomScheduler};

    thread_local! {
        static EXPLORING: Cell<bool> = const { Cell::new(false) };
    }

    /// Runs `test` with shuttle's threads, in so many random orders of their steps.
    ///
    /// # Panics
    /// As `test` does, or where all threads wait for each other; the message has the order that
    /// leads there.
    pub fn explore(orders: usize, test: impl Fn() + Send + Sync + 'static) {
        let _exploring = Exploring::begin();
        let mut config = Config::new();
        config.stack_size = 256 << 10;
        Runner::new(RandomScheduler::new(orders), config).run(test);
    }

    /// Ends also when the test fails: the next one may run on the same thread.
    struct Exploring;

    impl Exploring {
        fn begin() -> Self {
            EXPLORING.set(true);
            Self
        }
    }

    impl Drop for Exploring {
        fn drop(&mut self) {
            EXPLORING.set(false);
        }
    }

    /// Another thread panicked while it held the lock.
    #[derive(Debug)]
    pub struct Poisoned;

    pub enum Mutex<T> {
        Std(sync::Mutex<T>),
        Shuttle(shuttle::sync::Mutex<T>),
    }

    pub enum MutexGuard<'a, T> {
        Std(sync::MutexGuard<'a, T>),
        Shuttle(
            shuttle::sync::MutexGuard<'a, T>,
            &'a shuttle::sync::Mutex<T>,
        ),
    }

    impl<T> Mutex<T> {
        pub fn new(value: T) -> Self {
            match EXPLORING.get() {
                false => Self::Std(sync::Mutex::new(value)),
                true => Self::Shuttle(shuttle::sync::Mutex::new(value)),
            }
        }

        pub fn lock(&self) -> Result<MutexGuard<'_, T>, Poisoned> {
            match self {
                Self::Std(mutex) => mutex.lock().map(MutexGuard::Std).map_err(|_| Poisoned),
                Self::Shuttle(mutex) => mutex
                    .lock()
                    .map(|guard| MutexGuard::Shuttle(guard, mutex))
                    .map_err(|_| Poisoned),
            }
        }

        pub fn get_mut(&mut self) -> Result<&mut T, Poisoned> {
            match self {
                Self::Std(mutex) => mutex.get_mut().map_err(|_| Poisoned),
                Self::Shuttle(mutex) => mutex.get_mut().map_err(|_| Poisoned),
            }
        }
    }

    impl<T: Default> Default for Mutex<T> {
        fn default() -> Self {
            Self::new(T::default())
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            match self {
                Self::Std(guard) => guard,
                Self::Shuttle(guard, _) => guard,
            }
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            match self {
                Self::Std(guard) => guard,
                Self::Shuttle(guard, _) => guard,
            }
        }
    }

    pub enum Condvar {
        Std(sync::Condvar),
        Shuttle(shuttle::sync::Condvar),
    }

    /// A guard and a condition variable are made in the same place.
    const MIXED: &str = "the lock and its signal are of the same kind";

    impl Condvar {
        pub fn new() -> Self {
            match EXPLORING.get() {
                false => Self::Std(sync::Condvar::new()),
                true => Self::Shuttle(shuttle::sync::Condvar::new()),
            }
        }

        pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> Result<MutexGuard<'a, T>, Poisoned> {
            match (self, guard) {
                (Self::Std(signal), MutexGuard::Std(guard)) => signal
                    .wait(guard)
                    .map(MutexGuard::Std)
                    .map_err(|_| Poisoned),
                (Self::Shuttle(signal), MutexGuard::Shuttle(guard, mutex)) => signal
                    .wait(guard)
                    .map(|guard| MutexGuard::Shuttle(guard, mutex))
                    .map_err(|_| Poisoned),
                _ => panic!("{MIXED}"),
            }
        }

        /// Shuttle has no time: there this wakes up whenever it likes.
        pub fn wait_timeout<'a, T>(
            &self,
            guard: MutexGuard<'a, T>,
            time: Duration,
        ) -> Result<(MutexGuard<'a, T>, ()), Poisoned> {
            match (self, guard) {
                (Self::Std(signal), MutexGuard::Std(guard)) => signal
                    .wait_timeout(guard, time)
                    .map(|(guard, _)| (MutexGuard::Std(guard), ()))
                    .map_err(|_| Poisoned),
                (Self::Shuttle(_), MutexGuard::Shuttle(guard, mutex)) => {
                    drop(guard);
                    shuttle::thread::yield_now();
                    mutex
                        .lock()
                        .map(|guard| (MutexGuard::Shuttle(guard, mutex), ()))
                        .map_err(|_| Poisoned)
                }
                _ => panic!("{MIXED}"),
            }
        }

        pub fn notify_one(&self) {
            match self {
                Self::Std(signal) => signal.notify_one(),
                Self::Shuttle(signal) => signal.notify_one(),
            }
        }

        pub fn notify_all(&self) {
            match self {
                Self::Std(signal) => signal.notify_all(),
                Self::Shuttle(signal) => signal.notify_all(),
            }
        }
    }

    impl Default for Condvar {
        fn default() -> Self {
            Self::new()
        }
    }

    pub struct Builder(String);

    pub enum JoinHandle<T> {
        Std(thread::JoinHandle<T>),
        Shuttle(shuttle::thread::JoinHandle<T>),
    }

    impl Builder {
        pub fn new() -> Self {
            Self(String::new())
        }

        pub fn name(self, name: String) -> Self {
            Self(name)
        }

        pub fn spawn<T: Send + 'static>(
            self,
            run: impl FnOnce() -> T + Send + 'static,
        ) -> std::io::Result<JoinHandle<T>> {
            match EXPLORING.get() {
                false => thread::Builder::new()
                    .name(self.0)
                    .spawn(run)
                    .map(JoinHandle::Std),
                true => shuttle::thread::Builder::new()
                    .name(self.0)
                    .spawn(run)
                    .map(JoinHandle::Shuttle),
            }
        }
    }

    impl<T> JoinHandle<T> {
        /// Shuttle doesn't tell.
        pub fn is_finished(&self) -> bool {
            match self {
                Self::Std(thread) => thread.is_finished(),
                Self::Shuttle(_) => false,
            }
        }

        pub fn join(self) -> thread::Result<T> {
            match self {
                Self::Std(thread) => thread.join(),
                Self::Shuttle(thread) => thread.join(),
            }
        }
    }
}
