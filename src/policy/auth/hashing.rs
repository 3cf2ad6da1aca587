//! Computes hashes of passwords on a few threads of its own, so that no worker ever does.
//!
//! Somebody who sends wrong passwords as fast as the line carries them fills a queue here and nothing else: what finds
//! its site's part full is turned away at once, sites take turns, one client cannot have more than a few jobs waiting,
//! and the threads give way to the workers. The same password of the same user, asked for by many requests at once,
//! is computed once.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::hash::Hash;
use super::remembered::Key;
use crate::base::address::ClientKey;
use crate::base::gentle;
use crate::base::secret::Secret;

/// Jobs of one site, and of one client at it, that wait at most.
const SITE_JOBS_MAX: usize = 64;
const CLIENT_JOBS_MAX: usize = 8;
/// Jobs of all sites that wait at most.
const JOBS_MAX: usize = 1_024;
/// Requests that wait for one job at most.
const WAITERS_MAX: usize = 64;
/// How long a thread waits for a job before it ends.
const IDLE: Duration = Duration::from_secs(30);

/// Threads that compute hashes: half the cores, at most four. Each argon2 hash takes its memory while it runs.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get() / 2).clamp(1, 4)
}

/// One password and the hash it is compared with.
pub struct Job {
    /// Whose site it is.
    pub site: Arc<str>,
    /// Who asks.
    pub client: ClientKey,
    /// Names password and hash together.
    pub key: Key,
    /// The hash.
    pub hash: Arc<Hash>,
    /// The password.
    pub password: Secret,
    /// Whose hash it is; `None`: nobody's, and the answer is no whatever comes out.
    pub user: Option<Arc<str>>,
    /// How long a good answer is remembered.
    pub remember: Duration,
}

/// Too much waits already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// The threads and their queue.
pub struct Hashing {
    inner: Arc<Inner>,
    threads: usize,
}

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    /// Sites with jobs, in the order in which their turn comes.
    turns: VecDeque<(Arc<str>, VecDeque<Waiting>)>,
    waiting: usize,
    /// Who waits for what is queued or computed.
    asked: HashMap<Key, Vec<oneshot::Sender<bool>>>,
    threads: usize,
    idle: usize,
}

struct Waiting {
    client: ClientKey,
    key: Key,
    hash: Arc<Hash>,
    password: Secret,
}

impl Hashing {
    /// Nothing runs until there is something to do.
    pub fn new(threads: usize) -> Hashing {
        Hashing { inner: Arc::default(), threads }
    }

    /// Puts a job into the queue; the answer is whether the password was right.
    ///
    /// # Errors
    /// [`Full`].
    pub fn submit(&self, job: &Job) -> Result<oneshot::Receiver<bool>, Full> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.inner.lock();
        if let Some(waiters) = state.asked.get_mut(&job.key) {
            waiters.retain(|waiter| !waiter.is_closed());
            if waiters.len() >= WAITERS_MAX {
                return Err(Full);
            }
            waiters.push(sender);
            return Ok(receiver);
        }
        state.queue(job)?;
        state.asked.insert(job.key, vec![sender]);
        if state.idle == 0 && state.threads < self.threads {
            state.threads += 1;
            let inner = self.inner.clone();
            let started = std::thread::Builder::new().name("hashing".into()).spawn(move || inner.run());
            if started.is_err() {
                state.threads -= 1;
                if state.threads == 0 {
                    // Nobody would ever come to it.
                    state.forget(&job.key);
                    return Err(Full);
                }
            }
        }
        drop(state);
        self.inner.work.notify_one();
        Ok(receiver)
    }

    /// Jobs that wait for their turn.
    pub fn waiting(&self) -> usize {
        self.inner.lock().waiting
    }
}

impl State {
    fn queue(&mut self, job: &Job) -> Result<(), Full> {
        if self.waiting >= JOBS_MAX {
            return Err(Full);
        }
        let at = match self.turns.iter().position(|(site, _)| *site == job.site) {
            Some(at) => at,
            None => {
                self.turns.push_back((job.site.clone(), VecDeque::new()));
                self.turns.len() - 1
            }
        };
        let Some((_, jobs)) = self.turns.get_mut(at) else { return Err(Full) };
        let own = jobs.iter().filter(|waiting| waiting.client == job.client).count();
        if jobs.len() >= SITE_JOBS_MAX || own >= CLIENT_JOBS_MAX {
            return Err(Full);
        }
        let (hash, password) = (job.hash.clone(), job.password.clone());
        jobs.push_back(Waiting { client: job.client, key: job.key, hash, password });
        self.waiting += 1;
        Ok(())
    }

    /// The next job: of the site whose turn it is, the one that waits longest and somebody still waits for.
    fn next(&mut self) -> Option<Waiting> {
        while let Some((site, mut jobs)) = self.turns.pop_front() {
            let job = jobs.pop_front();
            if !jobs.is_empty() {
                self.turns.push_back((site, jobs));
            }
            let Some(job) = job else { continue };
            self.waiting = self.waiting.saturating_sub(1);
            if self.asked.get(&job.key).is_some_and(|waiters| waiters.iter().any(|w| !w.is_closed())) {
                return Some(job);
            }
            self.asked.remove(&job.key);
        }
        None
    }

    fn forget(&mut self, key: &Key) {
        self.asked.remove(key);
        for (_, jobs) in &mut self.turns {
            jobs.retain(|job| job.key != *key);
        }
        self.turns.retain(|(_, jobs)| !jobs.is_empty());
        self.waiting = self.turns.iter().map(|(_, jobs)| jobs.len()).sum();
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One thread.
    fn run(&self) {
        gentle::step_back();
        while let Some(job) = self.take() {
            let right = job.hash.verify(job.password.reveal().as_bytes());
            let waiters = self.lock().asked.remove(&job.key).unwrap_or_default();
            for waiter in waiters {
                let _ = waiter.send(right); // whoever asked may have gone
            }
        }
    }

    fn take(&self) -> Option<Waiting> {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.next() {
                return Some(job);
            }
            state.idle += 1;
            let waited = self.work.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = waited.0;
            state.idle = state.idle.saturating_sub(1);
            if waited.1.timed_out() && state.waiting == 0 {
                state.threads = state.threads.saturating_sub(1);
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::hash;
    use super::*;

    fn job(site: &str, client: u64, key: u8, password: &str, hash: &Arc<Hash>) -> Job {
        Job {
            site: site.into(),
            client: ClientKey(client.into()),
            key: [key; 16],
            hash: hash.clone(),
            password: Secret::new(password),
            user: None,
            remember: Duration::ZERO,
        }
    }

    fn hash() -> Arc<Hash> {
        Arc::new(Hash::parse(&hash::bcrypt(b"right", 4).unwrap()).unwrap())
    }

    #[tokio::test]
    async fn answers_come_from_other_threads_and_equal_questions_share_one() {
        let (hashing, hash) = (Hashing::new(1), hash());
        let right = hashing.submit(&job("a", 1, 1, "right", &hash)).unwrap();
        let again = hashing.submit(&job("a", 2, 1, "right", &hash)).unwrap();
        let wrong = hashing.submit(&job("a", 1, 2, "wrong", &hash)).unwrap();
        assert_eq!((right.await, again.await, wrong.await), (Ok(true), Ok(true), Ok(false)));
        assert_eq!(hashing.waiting(), 0);
    }

    /// No thread: what is queued stays.
    fn stuck() -> (Hashing, Arc<Hash>) {
        let hashing = Hashing::new(1);
        hashing.inner.lock().threads = 1;
        (hashing, hash())
    }

    #[test]
    fn a_client_and_a_site_fill_their_own_part_of_the_queue_only() {
        let (hashing, hash) = stuck();
        let submit = |site: &str, client: u64, key: usize| {
            let mut job = job(site, client, 0, "x", &hash);
            job.key = (key as u128).to_le_bytes();
            hashing.submit(&job).map(std::mem::forget)
        };
        for number in 0..CLIENT_JOBS_MAX {
            assert_eq!(submit("a", 1, number), Ok(()));
        }
        assert_eq!(submit("a", 1, 999), Err(Full));
        for number in CLIENT_JOBS_MAX..SITE_JOBS_MAX {
            assert_eq!(submit("a", 10 + number as u64, number), Ok(()));
        }
        assert_eq!(submit("a", 2, 999), Err(Full));
        assert_eq!(submit("b", 1, 1_000), Ok(()), "another site is not concerned");
    }

    #[test]
    fn sites_take_turns_and_what_nobody_waits_for_is_not_computed() {
        let (hashing, hash) = stuck();
        let mut kept = Vec::new();
        for (site, client, key) in [("a", 1, 1), ("a", 2, 2), ("a", 3, 3), ("b", 1, 4)] {
            kept.push(hashing.submit(&job(site, client, key, "x", &hash)).unwrap());
        }
        kept.remove(1);
        let mut state = hashing.inner.lock();
        let order: Vec<u8> = std::iter::from_fn(|| state.next()).map(|job| job.key[0]).collect();
        assert_eq!(order, [1, 4, 3]);
        assert_eq!(state.waiting, 0);
    }
}
