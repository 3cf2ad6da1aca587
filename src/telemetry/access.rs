//! The access log: one record for each request, written by one thread, never waited for by a worker.
//!
//! A worker formats its records into a buffer of its own ([`Sink`]) and hands the buffer over when it is full or at
//! its tick. The queue to the writer is bounded; when the disk or the pipe is too slow the records are dropped and
//! counted, because a slow log must never become a slow site. Buffers come back and are used again.
//!
//! Deliberately not here: rotation (rename the file and send SIGHUP), shipping, sampling.

mod format;

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

pub use format::{FIELD_BYTES_MAX, FIELDS, Record};

use super::hub::lock;
use crate::base::record::{AccessFormat, AccessTarget, Privacy};

/// Bytes a worker gathers before it hands them over. Handing over wakes the writer, which most often takes the core from
/// the worker at once, and takes it twice: the queue is still locked then.
pub const BUFFER_BYTES: usize = 128 * 1024;
/// Buffers a worker may have on the way; the memory of the log is bounded by workers × this × about 128 KiB.
pub const BUFFERS_PER_WORKER: usize = 16;
/// How long [`Control::close`] waits for a writer that is stuck (a pipe nobody reads).
pub const CLOSE_WAIT: Duration = Duration::from_secs(5);
/// How often an idle writer looks for orders it was not woken for.
const IDLE_LOOK: Duration = Duration::from_secs(1);

/// Starts the writer. One [`Sink`] for each worker, in order, and the handle of the control plane.
///
/// # Errors
/// A sentence naming the file and what to do, when the target cannot be opened.
pub fn start(
    target: &AccessTarget,
    format: AccessFormat,
    privacy: Privacy,
    workers: usize,
) -> io::Result<(Vec<Sink>, Control)> {
    let output = Output::open(target)?;
    let shared = Arc::new(Shared {
        style: AtomicU8::new(style(target, format, privacy)),
        closing: AtomicBool::new(false),
        dropped: Arc::new(AtomicU64::new(0)),
        next: Mutex::new(None),
    });
    let (queue, jobs) = sync_channel(workers.max(1) * BUFFERS_PER_WORKER);
    let sinks = (0..workers).map(|worker| Sink::new(worker, queue.clone(), shared.clone())).collect();
    let (done_tx, done) = sync_channel(1);
    let writer = Writer { jobs, shared: shared.clone(), output, torn: false, failing: false };
    let thread = std::thread::Builder::new().name("access-log".into()).spawn(move || {
        writer.run();
        let _ = done_tx.send(());
    })?;
    let target = Mutex::new((target.clone(), format, privacy));
    Ok((sinks, Control { shared, queue, target, done: Mutex::new(Some((done, thread))) }))
}

/// What workers, writer and control plane share.
#[derive(Debug)]
struct Shared {
    style: AtomicU8,
    closing: AtomicBool,
    dropped: Arc<AtomicU64>,
    /// An output the control plane has opened and the writer has not yet taken.
    next: Mutex<Option<Output>>,
}

const STYLE_ON: u8 = 1;
const STYLE_COMBINED: u8 = 2;
const STYLE_FULL: u8 = 4;

fn style(target: &AccessTarget, format: AccessFormat, privacy: Privacy) -> u8 {
    let on = if *target == AccessTarget::Off { 0 } else { STYLE_ON };
    let format = if format == AccessFormat::Combined { STYLE_COMBINED } else { 0 };
    let privacy = if privacy == Privacy::Full { STYLE_FULL } else { 0 };
    on | format | privacy
}

#[derive(Debug)]
enum Job {
    /// Whole lines, how many, and the way home for the buffer.
    Lines { bytes: Vec<u8>, records: u64, home: SyncSender<Vec<u8>> },
    /// Look at the shared orders.
    Wake,
}

/// A worker's end of the access log. Can be sent to the worker's thread, not shared between threads.
#[derive(Debug)]
pub struct Sink {
    worker: usize,
    buffer: RefCell<Vec<u8>>,
    records: Cell<u64>,
    stamp: RefCell<format::Stamp>,
    queue: SyncSender<Job>,
    home: SyncSender<Vec<u8>>,
    empties: Receiver<Vec<u8>>,
    shared: Arc<Shared>,
}

impl Sink {
    fn new(worker: usize, queue: SyncSender<Job>, shared: Arc<Shared>) -> Sink {
        let (home, empties) = sync_channel(BUFFERS_PER_WORKER);
        Sink {
            worker,
            buffer: RefCell::new(Vec::with_capacity(BUFFER_BYTES)),
            records: Cell::new(0),
            stamp: RefCell::default(),
            queue,
            home,
            empties,
            shared,
        }
    }

    /// Whether records are wanted at all: lets the caller skip gathering them.
    pub fn enabled(&self) -> bool {
        self.shared.style.load(Relaxed) & STYLE_ON != 0
    }

    /// Writes a record. Never waits.
    pub fn write(&self, record: &Record<'_>) {
        let style = self.shared.style.load(Relaxed);
        if style & STYLE_ON == 0 {
            return;
        }
        let privacy = if style & STYLE_FULL != 0 { Privacy::Full } else { Privacy::Strict };
        let mut buffer = self.buffer.borrow_mut();
        let stamp = &mut self.stamp.borrow_mut();
        if style & STYLE_COMBINED != 0 {
            format::combined(&mut buffer, record, privacy, stamp);
        } else {
            format::json(&mut buffer, record, self.worker, privacy, stamp);
        }
        self.records.set(self.records.get() + 1);
        if buffer.len() >= BUFFER_BYTES {
            self.hand_over(&mut buffer);
        }
    }

    /// Hands over what is gathered. The worker calls this about ten times a second.
    pub fn flush(&self) {
        let mut buffer = self.buffer.borrow_mut();
        if !buffer.is_empty() {
            self.hand_over(&mut buffer);
        }
    }

    fn hand_over(&self, buffer: &mut Vec<u8>) {
        let records = self.records.replace(0);
        let next = self.empties.try_recv().unwrap_or_else(|_| Vec::with_capacity(BUFFER_BYTES));
        let bytes = std::mem::replace(buffer, next);
        let job = Job::Lines { bytes, records, home: self.home.clone() };
        if let Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) = self.queue.try_send(job) {
            self.shared.dropped.fetch_add(records, Relaxed);
            if let Job::Lines { mut bytes, .. } = job {
                bytes.clear();
                let _ = self.home.try_send(bytes); // full: enough spare buffers already
            }
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.flush();
    }
}

/// The control plane's handle.
#[derive(Debug)]
pub struct Control {
    shared: Arc<Shared>,
    queue: SyncSender<Job>,
    target: Mutex<(AccessTarget, AccessFormat, Privacy)>,
    done: Mutex<Option<(Receiver<()>, JoinHandle<()>)>>,
}

impl Control {
    /// Opens the file again by its name: for SIGHUP, after the old one was renamed. Nothing is lost in between.
    ///
    /// # Errors
    /// A sentence, when the file cannot be opened; the old one stays in use.
    pub fn reopen(&self) -> io::Result<()> {
        self.order(Output::open(&lock(&self.target).0)?);
        Ok(())
    }

    /// Changes the target. What is already queued may still go to the old one.
    ///
    /// # Errors
    /// A sentence, when the new target cannot be opened; the old one stays in use.
    pub fn retarget(&self, target: &AccessTarget) -> io::Result<()> {
        let mut current = lock(&self.target);
        if current.0 != *target {
            let output = Output::open(target)?;
            current.0 = target.clone();
            self.shared.style.store(style(&current.0, current.1, current.2), Relaxed);
            self.order(output);
        }
        Ok(())
    }

    /// Changes shape and privacy of the records to come.
    pub fn set_style(&self, format: AccessFormat, privacy: Privacy) {
        let mut current = lock(&self.target);
        (current.1, current.2) = (format, privacy);
        self.shared.style.store(style(&current.0, format, privacy), Relaxed);
    }

    /// Writes out what the sinks have handed over and ends the writer; waits [`CLOSE_WAIT`] at most. Flush or drop
    /// the sinks first: records handed over later are counted as dropped.
    pub fn close(&self) {
        let Some((done, thread)) = lock(&self.done).take() else { return };
        self.shared.closing.store(true, Relaxed);
        let _ = self.queue.try_send(Job::Wake); // full: the writer is awake anyway
        match done.recv_timeout(CLOSE_WAIT) {
            Err(RecvTimeoutError::Timeout) => {
                tracing::warn!("the access log could not be written out in time; its last records are lost");
            }
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {
                let _ = thread.join();
            }
        }
    }

    /// Records lost so far.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Relaxed)
    }

    /// The counter behind [`Control::dropped`], for [`Hub::set_access_dropped`](super::Hub::set_access_dropped).
    pub fn dropped_counter(&self) -> Arc<AtomicU64> {
        self.shared.dropped.clone()
    }

    fn order(&self, output: Output) {
        *lock(&self.shared.next) = Some(output);
        let _ = self.queue.try_send(Job::Wake); // full: the writer looks after each job
    }
}

/// Where bytes go.
#[derive(Debug)]
struct Output(Option<File>);

impl Output {
    fn open(target: &AccessTarget) -> io::Result<Output> {
        match target {
            AccessTarget::Off => Ok(Output(None)),
            AccessTarget::Stdout => {
                // The descriptor itself, not Rust's line-buffered handle: buffers arrive here as whole lines.
                Ok(Output(Some(File::from(rustix::stdio::stdout().try_clone_to_owned()?))))
            }
            AccessTarget::File(path) => {
                // Not world-readable: even truncated addresses are nobody else's business.
                // A pipe that nobody reads is opened by an error, not by waiting for a reader for ever.
                let unwaiting = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
                let mut options = File::options();
                options.append(true).create(true).mode(0o640).custom_flags(unwaiting);
                let file = options.open(path).and_then(|file| {
                    fcntl_setfl(&file, fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
                    Ok(file)
                });
                file.map(|file| Output(Some(file))).map_err(|error| unopenable(path, &error))
            }
        }
    }
}

fn unopenable(path: &Path, error: &io::Error) -> io::Error {
    let mend = match error.kind() {
        io::ErrorKind::NotFound => "create its folder",
        io::ErrorKind::PermissionDenied => "let the user that runs Tidegate write there",
        io::ErrorKind::IsADirectory => "name a file inside the folder",
        _ if error.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => {
            "start the program that reads this pipe first"
        }
        _ => "check the path",
    };
    let text = format!(
        "[log] access: the file `{}` cannot be opened for writing ({error}): {mend}, or set access to \"stdout\", \
         \"off\" or another path",
        path.display()
    );
    io::Error::new(error.kind(), text)
}

/// The writing thread.
struct Writer {
    jobs: Receiver<Job>,
    shared: Arc<Shared>,
    output: Output,
    /// The last write ended inside a line.
    torn: bool,
    /// The last write failed; said once, not for each buffer.
    failing: bool,
}

impl Writer {
    fn run(mut self) {
        loop {
            match self.jobs.recv_timeout(IDLE_LOOK) {
                Ok(job) => self.job(job),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.take_order();
            if self.shared.closing.load(Relaxed) {
                return self.drain();
            }
        }
    }

    fn drain(&mut self) {
        loop {
            match self.jobs.try_recv() {
                Ok(job) => self.job(job),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return,
            }
        }
    }

    fn take_order(&mut self) {
        if let Some(output) = lock(&self.shared.next).take() {
            self.output = output;
            (self.torn, self.failing) = (false, false);
        }
    }

    fn job(&mut self, job: Job) {
        let Job::Lines { mut bytes, records, home } = job else { return };
        if let Err(error) = self.write(&bytes) {
            self.shared.dropped.fetch_add(records, Relaxed);
            if !std::mem::replace(&mut self.failing, true) {
                tracing::warn!(%error, "access records cannot be written and are dropped until they can");
            }
        } else if std::mem::replace(&mut self.failing, false) {
            tracing::info!("access records can be written again");
        }
        bytes.clear();
        // One record can be far longer than a buffer; such memory is not kept.
        bytes.shrink_to(2 * BUFFER_BYTES);
        let _ = home.try_send(bytes); // full or gone: the buffer is freed
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(file) = &mut self.output.0 else { return Ok(()) };
        if self.torn {
            file.write_all(b"\n")?;
            self.torn = false;
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            match file.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let written = bytes.len() - rest.len();
                    self.torn = written > 0 && bytes.get(written - 1) != Some(&b'\n');
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
