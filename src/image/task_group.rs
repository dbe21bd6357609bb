//! The work of one image that is shared out to other threads, where those have nothing else to do.
//!
//! Decoders know nothing of the threads: they ask [`Helpers`], which the owner of the threads implements,
//! and spawn tasks in a [`TaskGroup`] that depend on nothing but what they own. A task is done by a
//! helper, or else by the thread that decodes, so that an image never waits for a helper to become
//! free.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;

use super::{ImageError, ImageFormat, budget::thread_time, guard::guarded};
use crate::sync::lock;

/// Threads that help others while they have nothing of their own to do.
pub trait Helpers: fmt::Debug + Send + Sync {
    /// How many threads could help now: all that have no work of their own.
    fn idle(&self) -> usize;

    /// Asks an idle thread to call [`Assist::assist`] once. Returns false if the call is declined,
    /// because all threads have other work.
    fn call(&self, work: Arc<dyn Assist>) -> bool;
}

/// Work that another thread can have a part in.
pub trait Assist: Send + Sync {
    /// Does one task, of a few milliseconds at most, if any is left. It does not panic.
    fn assist(&self);
}

/// Who may help with a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Help<'a> {
    pub helpers: &'a Arc<dyn Helpers>,
    pub file: &'a Bytes,
    /// The memory that sharing the work may take, in bytes.
    pub memory: u64,
}

impl<'a> Help<'a> {
    pub fn of(helpers: Option<&'a Arc<dyn Helpers>>, file: &'a Bytes, memory: u64) -> Option<Self> {
        helpers.map(|helpers| Self {
            helpers,
            file,
            memory,
        })
    }
}

type Task<T> = Box<dyn FnOnce() -> T + Send>;

/// The tasks of one image, and what comes of them.
pub(super) struct TaskGroup<T: Send + 'static> {
    helpers: Arc<dyn Helpers>,
    shared: Arc<Shared<T>>,
    /// How many tasks may wait or be in work at most.
    max_open: usize,
}

struct Shared<T> {
    format: ImageFormat,
    state: Mutex<State<T>>,
    /// Signalled when a helper has ended a task.
    ended: Condvar,
}

struct State<T> {
    waiting: VecDeque<Task<T>>,
    /// The number of tasks that helpers are running.
    running: usize,
    /// Whether one of those panicked.
    panicked: bool,
    done: Vec<T>,
    /// The CPU time that helpers have taken.
    helped: Duration,
}

/// What has come of tasks that are done, in no order.
pub(super) struct Done<T> {
    pub results: Vec<T>,
    /// The CPU time that helpers have taken since this was last asked.
    pub helped: Duration,
}

impl<T: Send + 'static> TaskGroup<T> {
    /// A group for an image of this format, which has at most `max_open` tasks at a time.
    pub fn new(helpers: &Arc<dyn Helpers>, format: ImageFormat, max_open: usize) -> Self {
        Self {
            helpers: Arc::clone(helpers),
            shared: Arc::new(Shared {
                format,
                state: Mutex::new(State {
                    waiting: VecDeque::new(),
                    running: 0,
                    panicked: false,
                    done: Vec::new(),
                    helped: Duration::ZERO,
                }),
                ended: Condvar::new(),
            }),
            max_open,
        }
    }

    /// Runs a task on a helper, or on this thread if none is available.
    pub fn spawn(&self, task: impl FnOnce() -> T + Send + 'static) {
        let mut state = self.shared.lock();
        if state.waiting.len() + state.running >= self.max_open {
            drop(state);
            self.shared.finished(task());
            return;
        }
        state.waiting.push_back(Box::new(task));
        drop(state);
        let work: Arc<dyn Assist> = Arc::clone(&self.shared) as _;
        if !self.helpers.call(work) {
            self.shared.do_one();
        }
    }

    /// What is done by now.
    ///
    /// # Errors
    /// [`ImageError::DecoderPanic`] after a helper's task panicked.
    pub fn done(&self) -> Result<Done<T>, ImageError> {
        self.shared.lock().take_done()
    }

    /// Does what is left of the tasks, waits for those that helpers are at, and returns what has not
    /// been returned by [`TaskGroup::done`].
    ///
    /// # Errors
    /// [`ImageError::DecoderPanic`] after a helper's task panicked.
    pub fn finish(self) -> Result<Done<T>, ImageError> {
        while self.shared.do_one() {}
        let mut state = self.shared.lock();
        while state.running > 0 {
            state = self
                .shared
                .ended
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.take_done()
    }
}

impl<T: Send + 'static> Drop for TaskGroup<T> {
    /// Nobody needs what has not been begun.
    fn drop(&mut self) {
        let waiting = std::mem::take(&mut self.shared.lock().waiting);
        drop(waiting);
    }
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        lock(&self.state)
    }

    fn finished(&self, result: T) {
        self.lock().done.push(result);
    }

    /// Does one of the tasks that wait; false if there is none.
    fn do_one(&self) -> bool {
        // The lock is released before the task begins.
        let task = self.lock().waiting.pop_front();
        let Some(task) = task else {
            return false;
        };
        self.finished(task());
        true
    }
}

impl<T: Send> Assist for Shared<T> {
    fn assist(&self) {
        let mut state = self.lock();
        let Some(task) = state.waiting.pop_front() else {
            return;
        };
        state.running += 1;
        drop(state);

        let started = thread_time();
        let result = guarded(Some(self.format), task);
        let took = thread_time().saturating_sub(started);

        let mut state = self.lock();
        state.running -= 1;
        state.helped += took;
        state.panicked |= result.is_none();
        state.done.extend(result);
        drop(state);
        self.ended.notify_all();
    }
}

impl<T> State<T> {
    fn take_done(&mut self) -> Result<Done<T>, ImageError> {
        if self.panicked {
            return Err(ImageError::DecoderPanic);
        }
        Ok(Done {
            results: std::mem::take(&mut self.done),
            helped: std::mem::take(&mut self.helped),
        })
    }
}

/// Helpers for tests.
#[cfg(test)]
pub(super) mod testing {
    use std::{
        sync::{
            Mutex,
            atomic::{AtomicUsize, Ordering},
            mpsc,
        },
        thread::JoinHandle,
    };

    use super::*;

    /// Threads that only help. Of the calls, some are refused, as by threads that have other work.
    #[derive(Debug)]
    pub struct Threads {
        calls: Mutex<Option<mpsc::Sender<Call>>>,
        threads: Mutex<Vec<JoinHandle<()>>>,
        /// Every call of this number is refused; 0 means that none is.
        refused: usize,
        asked: AtomicUsize,
    }

    struct Call(Arc<dyn Assist>);

    impl fmt::Debug for Call {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Call")
        }
    }

    impl Threads {
        pub fn new(count: usize, refused: usize) -> Arc<Self> {
            let (calls, called) = mpsc::channel::<Call>();
            let called = Arc::new(Mutex::new(called));
            let threads = (0..count).map(|_| {
                let called = Arc::clone(&called);
                std::thread::spawn(move || {
                    loop {
                        let call = lock(&called).recv();
                        let Ok(Call(work)) = call else {
                            return;
                        };
                        work.assist();
                    }
                })
            });
            Arc::new(Self {
                threads: Mutex::new(threads.collect()),
                calls: Mutex::new(Some(calls)),
                refused,
                asked: AtomicUsize::new(0),
            })
        }

        /// How often it was called.
        pub fn calls(&self) -> usize {
            self.asked.load(Ordering::SeqCst)
        }
    }

    impl Helpers for Threads {
        fn idle(&self) -> usize {
            lock(&self.threads).len()
        }

        fn call(&self, work: Arc<dyn Assist>) -> bool {
            let number = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
            if self.refused != 0 && number.is_multiple_of(self.refused) {
                return false;
            }
            let calls = lock(&self.calls);
            calls
                .as_ref()
                .is_some_and(|calls| calls.send(Call(work)).is_ok())
        }
    }

    impl Drop for Threads {
        fn drop(&mut self) {
            lock(&self.calls).take();
            for thread in lock(&self.threads).drain(..) {
                let _ = thread.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{testing::Threads, *};

    fn task_group(helpers: usize, refused: usize, max_open: usize) -> TaskGroup<usize> {
        let helpers: Arc<dyn Helpers> = Threads::new(helpers, refused);
        TaskGroup::new(&helpers, ImageFormat::Jpeg, max_open)
    }

    #[test]
    fn every_task_runs_exactly_once_with_any_number_of_helpers() {
        for (helpers, refused, max_open) in
            [(1, 0, 1), (3, 0, 100), (2, 2, 4), (1, 1, 8), (0, 0, 3)]
        {
            let tasks = task_group(helpers, refused, max_open);
            let mut results = Vec::new();
            for number in 0..500 {
                tasks.spawn(move || number);
                results.extend(tasks.done().unwrap().results);
            }
            results.extend(tasks.finish().unwrap().results);
            results.sort_unstable();
            assert!(results.into_iter().eq(0..500));
        }
    }

    #[test]
    fn a_panic_of_a_helper_is_told_to_the_thread_that_decodes() {
        let tasks = task_group(1, 0, 2);
        let (release, wait) = std::sync::mpsc::channel::<()>();
        tasks.spawn(move || {
            // Not before the other thread waits for it.
            let _ = wait.recv();
            panic!("as told")
        });
        while tasks.shared.lock().running == 0 {
            std::thread::yield_now();
        }
        release.send(()).unwrap();
        assert!(matches!(tasks.finish(), Err(ImageError::DecoderPanic)));
    }

    #[test]
    fn tasks_that_have_not_begun_are_dropped_with_the_group() {
        let helpers: Arc<dyn Helpers> = Threads::new(1, 0);
        let tasks = TaskGroup::new(&helpers, ImageFormat::Jpeg, 9);
        let (begun, has_begun) = std::sync::mpsc::channel();
        let (release, wait) = std::sync::mpsc::channel::<()>();
        tasks.spawn(move || {
            begun.send(()).unwrap();
            let _ = wait.recv();
            1
        });
        has_begun.recv().unwrap();
        let owned = Arc::new(());
        let task = Arc::clone(&owned);
        tasks.spawn(move || Arc::strong_count(&task));
        drop(tasks);
        assert_eq!(Arc::strong_count(&owned), 1);
        drop(release);
    }
}
