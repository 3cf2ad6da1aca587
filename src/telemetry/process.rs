//! What the operating system says about this process, read at each scrape. A value that cannot be read is left out.

use super::hub::Reading;
use super::metric::Metric;

/// Memory of the process, in bytes.
pub fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status_field(&status, "VmRSS:").map(|kib| (kib * 1024.0) as u64)
}

/// Appends the process metrics.
pub fn read(readings: &mut Vec<Reading>) {
    let mut push = |metric, value: Option<f64>| {
        if let Some(value) = value {
            readings.push(Reading::new(metric, &[], value));
        }
    };
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    push(Metric::ProcessMemory, status_field(&status, "VmRSS:").map(|kib| kib * 1024.0));
    push(Metric::ProcessThreads, status_field(&status, "Threads:"));
    push(Metric::ProcessCpu, Some(cpu_seconds()));
    // The folder's own descriptor is among those it lists.
    let fds = std::fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count().saturating_sub(1));
    push(Metric::ProcessFds, fds.map(|n| n as f64));
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    push(Metric::ProcessFdsMax, limit.current.map(|n| n as f64));
}

fn status_field(status: &str, name: &str) -> Option<f64> {
    let rest = status.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_has_memory_threads_and_descriptors() {
        let mut readings = Vec::new();
        read(&mut readings);
        let value = |metric| readings.iter().find(|r| r.metric == metric).map(|r| r.value);
        assert!(value(Metric::ProcessMemory).unwrap() > 100_000.0);
        assert!(value(Metric::ProcessThreads).unwrap() >= 1.0);
        assert!(value(Metric::ProcessFds).unwrap() >= 2.0);
        assert!(value(Metric::ProcessCpu).is_some());
    }

    #[test]
    fn a_field_that_is_missing_or_odd_is_left_out() {
        assert_eq!(status_field("VmRSS:\t  12 kB\n", "VmRSS:"), Some(12.0));
        assert_eq!(status_field("VmRSS:\n", "VmRSS:"), None);
        assert_eq!(status_field("VmRSS: many\n", "VmRSS:"), None);
        assert_eq!(status_field("", "VmRSS:"), None);
    }
}
