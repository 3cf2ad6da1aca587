//! A steady rate, whatever becomes of the answers. Latency counts from the moment a request was due, not from when a free
//! connection was found for it: a server that stalls can not hide the requests that it kept from being sent.

use crate::client::Target;
use crate::{Options, Outcome, report};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

/// What is due and what was answered.
#[derive(Default)]
struct Book {
    due: RefCell<VecDeque<Instant>>,
    micros: RefCell<Vec<u32>>,
    failed: Cell<usize>,
    /// What each connection waits for, since when it was due.
    flying: RefCell<HashMap<usize, Instant>>,
    something: Notify,
}

/// Answers to what was due in the first moments are left out: the connections to the backend are new then.
const WARM: Duration = Duration::from_millis(300);
/// How long the last requests may take after the end.
const GRACE: Duration = Duration::from_secs(2);

pub async fn run(options: &Options) -> Outcome<()> {
    let target = Rc::new(Target::new(options, false)?);
    let (rate, lasts) = (options.number("rate", 1000)?.max(1), options.seconds()? + WARM);
    let book = Rc::new(Book::default());
    let mut connections = Vec::new();
    for turn in 0..options.number("connections", 64)? {
        connections.push((turn, target.connect(turn).await?));
    }
    let begin = Instant::now();
    for (turn, mut connection) in connections {
        let (book, target) = (book.clone(), target.clone());
        tokio::task::spawn_local(async move {
            let request = target.request(turn, true);
            loop {
                let next = book.due.borrow_mut().pop_front();
                let Some(due) = next else {
                    book.something.notified().await;
                    continue;
                };
                book.flying.borrow_mut().insert(turn, due);
                let good = connection.ask(&request).await.is_ok();
                book.flying.borrow_mut().remove(&turn);
                if !good {
                    book.failed.set(book.failed.get() + 1);
                    match target.connect(turn).await {
                        Ok(again) => connection = again,
                        Err(_) => return,
                    }
                } else if due >= begin + WARM {
                    book.micros.borrow_mut().push(due.elapsed().as_micros() as u32);
                }
            }
        });
    }
    pace(&book, begin, lasts, rate).await?;
    let end = Instant::now();
    while (!book.flying.borrow().is_empty() || !book.due.borrow().is_empty()) && end.elapsed() < GRACE {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Nobody was free for these, or nobody answered: they took at least this long.
    for due in book.due.borrow().iter().chain(book.flying.borrow().values()) {
        book.micros.borrow_mut().push(due.elapsed().as_micros() as u32);
    }
    report(book.micros.take(), book.failed.get(), lasts - WARM);
    Ok(())
}

/// Puts requests into the book at their time.
async fn pace(book: &Book, begin: Instant, lasts: Duration, rate: usize) -> Outcome<()> {
    let every = Timespec {
        tv_sec: (rate == 1).into(),
        tv_nsec: if rate == 1 { 0 } else { 1_000_000_000 / rate as i64 },
    };
    let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK)?;
    rustix::time::timerfd_settime(
        &timer,
        TimerfdTimerFlags::empty(),
        &Itimerspec { it_interval: every, it_value: every },
    )?;
    #[allow(
        deprecated,
        reason = "its hole are types that lie about their descriptor; its successor is an unsafe function"
    )]
    let timer = AsyncFd::new(timer)?;
    let mut sent = 0u64;
    loop {
        let mut ready = timer.readable().await?;
        // How often it rang does not matter: what is due follows from the clock.
        let _ = rustix::io::read(timer.get_ref(), &mut [0u8; 8]);
        ready.clear_ready();
        let now = begin.elapsed().min(lasts);
        let until = (now.as_secs_f64() * rate as f64) as u64;
        while sent < until {
            sent += 1;
            book.due.borrow_mut().push_back(begin + Duration::from_secs_f64(sent as f64 / rate as f64));
            book.something.notify_one();
        }
        if now == lasts {
            return Ok(());
        }
    }
}
