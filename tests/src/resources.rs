//! CPU time, resident memory and core affinity of processes, from `/proc`.
//!
//! CPU time comes from each thread's `schedstat`, in nanoseconds, which ends with the thread. When
//! a thread ended between two readings, the difference falls back to `/proc/PID/stat`, which keeps
//! dead threads but counts clock ticks; [`CpuUsed::exact`] tells which one it was.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::process::Command;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde::Serialize;

/// Pins the calling thread, and the threads and processes that it starts from now on, to one core.
///
/// # Errors
/// When the core does not exist or is not available to this process.
pub fn pin_current_thread(cpu: usize) -> io::Result<()> {
    pin(0, cpu)
}

/// Pins every thread of a process, for servers that choose their cores themselves.
///
/// # Errors
/// When the process is gone or the core is not available.
pub fn pin_process(pid: u32, cpu: usize) -> io::Result<()> {
    for thread in threads(pid)? {
        pin(thread, cpu)?;
    }
    Ok(())
}

/// Runs `work` on one core.
///
/// # Errors
/// When the core does not exist or is not available to this process.
pub fn pinned<T>(cpu: usize, work: impl FnOnce() -> T) -> io::Result<T> {
    let this = Pid::from_raw(0);
    let before = sched_getaffinity(this)?;
    pin(0, cpu)?;
    let done = work();
    sched_setaffinity(this, &before)?;
    Ok(done)
}

/// Schedules all threads of a process only when its cores are otherwise idle (`SCHED_IDLE`), from
/// now on.
///
/// # Errors
/// When there is no `chrt`, or the process is gone.
pub fn set_idle_policy(pid: u32) -> io::Result<()> {
    let arguments = ["--all-tasks", "--idle", "--pid", "0", &pid.to_string()];
    let output = Command::new("chrt").args(arguments).output().map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("chrt cannot be run ({error}); it is in Debian's package util-linux"),
        )
    })?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("chrt: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

fn pin(thread: u32, cpu: usize) -> io::Result<()> {
    let thread = Pid::from_raw(i32::try_from(thread).map_err(io::Error::other)?);
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(thread, &set).map_err(|error| {
        io::Error::new(io::Error::from(error).kind(), format!("cannot run on core {cpu}: {error}"))
    })
}

/// The process and its descendants, parents first.
///
/// # Errors
/// When `/proc` cannot be read, or `pid` does not exist.
pub fn family(pid: u32) -> io::Result<Vec<u32>> {
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(child) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // A process that ended meanwhile has no parent.
        if let Some(parent) = stat_fields(child).ok().and_then(|fields| fields.get(1)?.parse::<u32>().ok()) {
            parents.insert(child, parent);
        }
    }
    if !parents.contains_key(&pid) {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("no process {pid}")));
    }
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        found.extend(parents.iter().filter(|(_, of)| **of == parent).map(|(child, _)| *child));
        next += 1;
    }
    Ok(found)
}

/// The fields of a thread's `schedstat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct SchedStat {
    nanos: u64,
    /// How often it was scheduled: after each sleep, and after each preemption.
    timeslices: u64,
}

impl SchedStat {
    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split_ascii_whitespace().map(|field| field.parse().ok());
        // The second is the time that it waited for a core.
        let (nanos, _, timeslices) = (fields.next()??, fields.next()??, fields.next()??);
        Some(Self { nanos, timeslices })
    }

    fn since(self, earlier: Self) -> Self {
        Self {
            nanos: self.nanos.saturating_sub(earlier.nanos),
            timeslices: self.timeslices.saturating_sub(earlier.timeslices),
        }
    }
}

/// CPU time of processes so far.
#[derive(Clone, Debug, Default)]
pub struct CpuReading {
    threads: BTreeMap<u32, SchedStat>,
    /// From the ticks of all threads, dead ones included.
    user: Duration,
    system: Duration,
}

/// CPU time between two readings.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct CpuUsed {
    /// User and system time together, in nanoseconds.
    pub total_ns: u64,
    /// The share in user mode, 0.0 to 1.0, from clock ticks (coarse in short runs).
    pub user_share: f64,
    /// How often a thread was scheduled; absent when a thread ended meanwhile, and its count with
    /// it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeslices: Option<u64>,
    /// From schedstat; false when a thread ended meanwhile, which leaves clock ticks of 10 ms.
    pub exact: bool,
}

impl CpuReading {
    /// Reads all threads of these processes.
    ///
    /// # Errors
    /// When one of the processes is gone.
    pub fn take(pids: &[u32]) -> io::Result<Self> {
        let mut reading = Self::default();
        for pid in pids {
            for thread in threads(*pid)? {
                // A thread that ends between the listing and the reading is absent, as it will be
                // later.
                if let Ok(text) = fs::read_to_string(format!("/proc/{pid}/task/{thread}/schedstat")) {
                    reading.threads.insert(thread, SchedStat::parse(&text).unwrap_or_default());
                }
            }
            let fields = stat_fields(*pid)?;
            let ticks =
                |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
            // Fields 14 and 15 of proc_pid_stat(5), counted from field 3; USER_HZ is 100 on Linux.
            reading.user += Duration::from_millis(ticks(11) * 10);
            reading.system += Duration::from_millis(ticks(12) * 10);
        }
        Ok(reading)
    }

    /// The difference to an earlier reading of the same processes.
    pub fn since(&self, earlier: &Self) -> CpuUsed {
        let user = self.user.saturating_sub(earlier.user);
        let system = self.system.saturating_sub(earlier.system);
        let exact = earlier.threads.keys().all(|thread| self.threads.contains_key(thread));
        let mut used = SchedStat::default();
        for (thread, now) in &self.threads {
            let since = now.since(earlier.threads.get(thread).copied().unwrap_or_default());
            used.nanos += since.nanos;
            used.timeslices += since.timeslices;
        }
        if !exact {
            used.nanos = u64::try_from((user + system).as_nanos()).unwrap_or(u64::MAX);
        }
        let ticks = (user + system).as_secs_f64();
        let user_share = if ticks > 0.0 { user.as_secs_f64() / ticks } else { 0.0 };
        CpuUsed { total_ns: used.nanos, user_share, timeslices: exact.then_some(used.timeslices), exact }
    }
}

/// CPU time of the calling thread so far, in nanoseconds.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn own_thread_nanos() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/thread-self/schedstat")?;
    let on_core =
        SchedStat::parse(&text).ok_or_else(|| io::Error::other("schedstat has not three fields"))?;
    Ok(on_core.nanos)
}

/// Resident memory of these processes together, in bytes: private and shared pages in RAM.
///
/// `smaps_rollup` walks the page tables and is exact; `statm`, the fallback without permission for
/// the former, lags by up to 32 pages a core.
///
/// # Errors
/// When one of the processes is gone.
pub fn resident_bytes(pids: &[u32]) -> io::Result<u64> {
    let mut total = 0;
    for pid in pids {
        total += match fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) {
            Ok(text) => rollup_rss(&text).ok_or_else(|| io::Error::other("smaps_rollup has no Rss line"))?,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => statm_rss(*pid)?,
            Err(error) => return Err(error),
        };
    }
    Ok(total)
}

fn rollup_rss(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
}

fn statm_rss(pid: u32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let pages = text.split_ascii_whitespace().nth(1).and_then(|field| field.parse::<u64>().ok());
    Ok(pages.ok_or_else(|| io::Error::other("statm has no second field"))? * 4096)
}

/// The peak of a process's resident memory so far, in bytes (`VmHWM`).
pub fn memory_peak(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kilobytes.expect("Linux reports the peak") * 1024
}

/// CPU time of a process so far, all threads together, in clock ticks.
pub fn cpu_time(pid: u32) -> Duration {
    let reading = CpuReading::take(&[pid]).expect("the process runs");
    reading.user + reading.system
}

/// Raises this process's limit of open file descriptors to `count`.
///
/// # Errors
/// When the hard limit is lower and may not be raised: names the command that does it.
pub fn allow_descriptors(count: u64) -> io::Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft >= count {
        return Ok(());
    }
    setrlimit(Resource::RLIMIT_NOFILE, count, hard.max(count)).map_err(|error| {
        io::Error::other(format!(
            "{count} open files are needed and the limit is {hard} ({error}); run `ulimit -n {count}` as root first"
        ))
    })
}

fn threads(pid: u32) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))
        .map_err(|error| io::Error::new(error.kind(), format!("process {pid} cannot be read: {error}")))?
    {
        found.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    Ok(found)
}

/// The fields of `/proc/PID/stat` from the third (state) on: the second may hold blanks and
/// brackets.
fn stat_fields(pid: u32) -> io::Result<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = text.rsplit_once(')').map_or("", |(_, after)| after);
    Ok(after.split_ascii_whitespace().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_cpu_and_memory() {
        let pids = family(std::process::id()).unwrap();
        let before = CpuReading::take(&pids).unwrap();
        let mut sum = 0u64;
        let started = std::time::Instant::now();
        while started.elapsed() < Duration::from_millis(30) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        let used = CpuReading::take(&pids).unwrap().since(&before);
        assert!(used.total_ns > 1_000_000, "{used:?}");
        assert!(own_thread_nanos().unwrap() > 1_000_000);
        assert!(resident_bytes(&pids).unwrap() > 100_000);
    }

    #[test]
    fn schedstat_must_have_three_numbers() {
        assert_eq!(SchedStat::parse("12 34 5\n"), Some(SchedStat { nanos: 12, timeslices: 5 }));
        for text in ["", "12 34", "12 x 5"] {
            assert_eq!(SchedStat::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_thread_that_ended_leaves_clock_ticks_only() {
        let reading = |threads: &[(u32, u64, u64)]| CpuReading {
            threads: threads
                .iter()
                .map(|(id, nanos, timeslices)| (*id, SchedStat { nanos: *nanos, timeslices: *timeslices }))
                .collect(),
            ..CpuReading::default()
        };
        let before = reading(&[(1, 100, 10), (2, 100, 10)]);
        let used = reading(&[(1, 150, 12), (2, 110, 11), (3, 5, 1)]).since(&before);
        assert_eq!((used.total_ns, used.timeslices, used.exact), (65, Some(4), true));
        let used = reading(&[(1, 150, 12)]).since(&before);
        assert_eq!(
            (used.total_ns, used.timeslices, used.exact),
            (0, None, false),
            "no tick of 10 ms has passed"
        );
    }

    #[test]
    fn a_pinned_child_is_found_and_inherits_the_affinity() {
        let mut child = pinned(0, || Command::new("sleep").arg("30").spawn()).unwrap().unwrap();
        let found = family(std::process::id()).unwrap();
        let mask = sched_getaffinity(Pid::from_raw(child.id() as i32)).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.contains(&child.id()));
        assert!(mask.is_set(0).unwrap() && !mask.is_set(1).unwrap());
    }

    #[test]
    fn the_idle_policy_is_set() {
        let mut child = Command::new("sleep").arg("30").spawn().unwrap();
        set_idle_policy(child.id()).unwrap();
        let stat = stat_fields(child.id()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        // Field 41 of proc_pid_stat(5), counted from field 3; SCHED_IDLE is 5.
        assert_eq!(stat[38], "5");
        assert!(set_idle_policy(u32::MAX - 1).is_err());
    }

    #[test]
    fn the_affinity_is_restored_after_pinned_work() {
        let mask = || sched_getaffinity(Pid::from_raw(0)).unwrap();
        let before = mask();
        let during = pinned(0, mask).unwrap();
        assert!(during.is_set(0).unwrap() && !during.is_set(1).unwrap());
        assert_eq!(mask(), before);
    }

    #[test]
    fn a_missing_process_is_an_error() {
        assert!(family(u32::MAX - 1).is_err());
        assert!(CpuReading::take(&[u32::MAX - 1]).is_err());
    }
}
