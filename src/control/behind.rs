//! Slow work that nobody waits for, on threads behind the workers.

use std::sync::LazyLock;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

use crate::base::gentle;

/// So many such works at once; more wait.
const THREADS_MAX: usize = 2;

/// Runs slow work at a lower priority than workers, and with rests as in [`gentle::work`].
///
/// Who lowers a thread's priority may not raise it again, so these threads do nothing else; they stay for the next such work.
pub fn behind<T: Send + 'static>(slow: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    static THREADS: LazyLock<Option<Runtime>> = LazyLock::new(|| {
        let mut builder = Builder::new_current_thread();
        builder.max_blocking_threads(THREADS_MAX).thread_keep_alive(Duration::MAX);
        builder.thread_name("slow-work").on_thread_start(gentle::step_back);
        let like_others =
            |error: &std::io::Error| tracing::warn!("reloads run at the priority of workers: {error}");
        builder.build().inspect_err(like_others).ok()
    });
    match &*THREADS {
        Some(threads) => threads.spawn_blocking(|| gentle::work(slow)),
        None => tokio::task::spawn_blocking(|| gentle::work(slow)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_behind_has_a_lower_priority_and_leaves_that_of_others() {
        let priority = || rustix::process::getpriority_process(Some(rustix::thread::gettid())).unwrap();
        let ours = priority();
        let lower = (ours + gentle::BEHIND).min(19);
        assert_eq!(behind(priority).await.unwrap(), lower);
        assert!(behind(gentle::rests).await.unwrap(), "it rests");
        assert!(behind(|| panic!("the thread is used again")).await.unwrap_err().is_panic());
        assert_eq!(behind(priority).await.unwrap(), lower, "once");
        assert_eq!(priority(), ours);
        assert_eq!(tokio::task::spawn_blocking(priority).await.unwrap(), ours);
    }
}
