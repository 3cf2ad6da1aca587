//! The process log: what Tidegate says about itself, on standard error.
//!
//! One line for each event that an operator should know of. Nothing is logged for each request: that is the access
//! log's work.

use std::io::{self, IoSlice, IsTerminal};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, ReadWriteFlags, pwritev2};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::base::clock;

/// Environment variable with a filter, for example `tidegate=debug`.
pub const FILTER_VARIABLE: &str = "TIDEGATE_LOG";
/// Filter in force when nobody gave one.
pub const FILTER_DEFAULT: &str = "warn,tidegate=info";

/// Bytes of a line; of a longer one the rest is left out.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// Lines that wait for a standard error that takes none just now.
const WAITING_MAX: usize = 1024;
/// How long the end of the process waits for them.
const FLUSH: Duration = Duration::from_secs(1);

/// Sends the log to standard error, with colour on a terminal. `filter` wins over `TIDEGATE_LOG`, which wins over
/// [`FILTER_DEFAULT`]. A second call changes nothing. What is given back writes out what waits when it is dropped.
///
/// # Errors
/// A sentence, when the filter cannot be read, or a thread cannot be made.
pub fn init(filter: Option<&str>) -> Result<Flush, String> {
    let said = filter.map(str::to_owned).or_else(|| std::env::var(FILTER_VARIABLE).ok());
    let filter = parse(said.as_deref().unwrap_or_default())?;
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let lines =
        Lines::to(rustix::stdio::stderr()).map_err(|e| format!("the process log cannot start: {e}"))?;
    // Fails only where a log is set up already, by a test or by an embedding program: theirs stays. Nothing is told where
    // writing fails: that would be a write to the same place, and a panic of whoever logs.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(lines.clone())
        .with_ansi(colour)
        .with_target(false)
        .log_internal_errors(false)
        .try_init();
    Ok(Flush(lines))
}

/// Writes lines without making anybody wait: a terminal that stands still, a pipe that nobody reads, a full disk are no
/// reason to answer no request. Usually a line is written at once by who says it; where that would wait, a thread does it.
#[derive(Debug, Clone)]
pub struct Lines {
    queue: SyncSender<Vec<u8>>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    to: std::os::fd::OwnedFd,
    /// Lines in the queue and in the thread's hand. While there are any, all others go behind them.
    waiting: AtomicUsize,
    lost: AtomicU64,
    turn: Mutex<()>,
}

impl Lines {
    /// # Errors
    /// The descriptor cannot be copied, or the thread not be made.
    fn to(to: impl AsFd) -> io::Result<Lines> {
        let (waiting, lost, turn) = (AtomicUsize::new(0), AtomicU64::new(0), Mutex::new(()));
        let shared = Arc::new(Shared { to: to.as_fd().try_clone_to_owned()?, waiting, lost, turn });
        let (queue, lines) = sync_channel(WAITING_MAX);
        let patient = shared.clone();
        std::thread::Builder::new().name("log".to_owned()).spawn(move || patient.write_for_ever(&lines))?;
        Ok(Lines { queue, shared })
    }
}

impl Shared {
    /// Writes what is taken without waiting; gives the rest. Not every kernel and not every kind of file can be asked for that
    /// (`RWF_NOWAIT`; terminals cannot): then all of it is the rest.
    fn write_at_once<'l>(&self, line: &'l [u8]) -> &'l [u8] {
        const HERE: u64 = u64::MAX;
        match pwritev2(&self.to, &[IoSlice::new(line)], HERE, ReadWriteFlags::NOWAIT) {
            Ok(written) => line.get(written..).unwrap_or_default(),
            // Nobody reads it, and nobody will.
            Err(Errno::PIPE) => &[],
            Err(_) => line,
        }
    }

    /// Writes all of it, however long that takes; gives up where it cannot be.
    fn write(&self, mut line: &[u8]) {
        while !line.is_empty() {
            match rustix::io::write(&self.to, line) {
                Ok(written) => line = line.get(written..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                // Somebody made it one that does not wait.
                Err(Errno::AGAIN) => {
                    let _ = poll(&mut [PollFd::new(&self.to, PollFlags::OUT)], None);
                }
                Err(_) => return,
            }
        }
    }

    fn write_for_ever(&self, lines: &Receiver<Vec<u8>>) {
        while let Ok(line) = lines.recv() {
            self.write(&line);
            let lost = self.lost.swap(0, Ordering::Relaxed);
            if lost > 0 {
                self.write(
                    format!("({lost} lines of this log are lost: standard error took none)\n").as_bytes(),
                );
            }
            self.waiting.fetch_sub(1, Ordering::Release);
        }
    }
}

impl io::Write for &Lines {
    /// One event, which ends with a line's end.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let line = one_line(event);
        // Held for no write that waits.
        let _turn = self.shared.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = match self.shared.waiting.load(Ordering::Acquire) {
            0 => self.shared.write_at_once(&line).to_vec(),
            _ => line,
        };
        if rest.is_empty() {
            return Ok(event.len());
        }
        self.shared.waiting.fetch_add(1, Ordering::Relaxed);
        if self.queue.try_send(rest).is_err() {
            self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = &'a Lines;

    fn make_writer(&'a self) -> &'a Lines {
        self
    }
}

/// What others chose (a label, an authority's answer) cannot make a line that looks like ours.
fn one_line(event: &[u8]) -> Vec<u8> {
    let (text, end) = match event.strip_suffix(b"\n") {
        Some(text) => (text, &b"\n"[..]),
        None => (event, &b""[..]),
    };
    let mut line = Vec::with_capacity(event.len());
    for byte in text.iter().take(LINE_BYTES_MAX) {
        match byte {
            b'\n' => line.extend_from_slice(b"\\n"),
            b'\r' => line.extend_from_slice(b"\\r"),
            byte => line.push(*byte),
        }
    }
    line.extend_from_slice(end);
    line
}

/// Writes out the lines that wait, when it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Flush(Lines);

impl Drop for Flush {
    fn drop(&mut self) {
        let end = clock::now().after(FLUSH);
        while self.0.shared.waiting.load(Ordering::Acquire) > 0 && clock::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn parse(filter: &str) -> Result<EnvFilter, String> {
    let text = if filter.trim().is_empty() { FILTER_DEFAULT } else { filter };
    EnvFilter::builder().parse(text).map_err(|error| {
        format!(
            "{FILTER_VARIABLE}: `{text}` is not a log filter ({error}): write a level (error, warn, info, debug, \
             trace) or parts with one, like \"{FILTER_DEFAULT}\""
        )
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn who_logs_waits_for_nobody_and_what_was_lost_is_told() {
        let (mut theirs, ours) = std::io::pipe().unwrap();
        let lines = Lines::to(&ours).unwrap();
        drop(ours);
        let long = "x".repeat(3_000);
        // Many more than a pipe holds and than may wait: nobody reads.
        for number in 0..2_000 {
            (&lines).write_all(format!("{number} {long}\n").as_bytes()).unwrap();
        }
        let lost = lines.shared.lost.load(Ordering::Relaxed);
        assert!(lost > 900 && lost < 1_100, "{lost}");
        let read = std::thread::spawn(move || {
            let mut text = String::new();
            theirs.read_to_string(&mut text).unwrap();
            text
        });
        drop(Flush(lines));
        let text = read.join().unwrap();
        let told = format!("({lost} lines of this log are lost");
        let (ours, others): (Vec<_>, Vec<_>) = text.lines().partition(|line| line.ends_with(&long));
        assert!(ours.len() as u64 + lost == 2_000 && others.len() == 1 && others[0].starts_with(&told));
        assert!(ours.iter().enumerate().all(|(at, line)| line.starts_with(&format!("{at} "))), "in order");
    }

    #[test]
    fn a_reader_that_is_gone_is_no_error_of_who_logs() {
        let (theirs, ours) = std::io::pipe().unwrap();
        let lines = Lines::to(&ours).unwrap();
        drop(theirs);
        for _ in 0..3 {
            (&lines).write_all(b"to nobody\n").unwrap();
        }
    }

    #[test]
    fn an_event_is_one_line_whatever_is_in_it() {
        assert_eq!(one_line(b"a\nb\r\nc\n"), b"a\\nb\\r\\nc\n");
        assert_eq!(one_line(b""), b"");
        let long = [&[b'x'; 2 * LINE_BYTES_MAX][..], b"\n"].concat();
        assert_eq!((one_line(&long).len(), one_line(&long).last()), (LINE_BYTES_MAX + 1, Some(&b'\n')));
    }

    #[test]
    fn filters_are_read_and_nonsense_is_answered_with_what_is_legal() {
        for good in ["", "  ", "debug", "warn,tidegate=trace"] {
            assert!(parse(good).is_ok(), "{good}");
        }
        let error = parse("tidegate=loud").unwrap_err();
        assert!(error.contains("tidegate=loud") && error.contains("debug"), "{error}");
    }
}
