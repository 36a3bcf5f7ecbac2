//! What the operating system tells of this machine: memory, disks, its own table.

use std::io;
use std::path::Path;

/// Bytes free for this user on the disk that holds `path`, or would: that of the nearest folder
/// that exists.
///
/// # Errors
/// The file system does not say.
pub(crate) fn free_space(path: &Path) -> io::Result<u64> {
    let absolute = std::path::absolute(path)?;
    let there = absolute.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(there)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Bytes of memory in all, within the limit of the container if there is one, and bytes not in use.
#[cfg(target_os = "linux")]
pub(crate) fn memory() -> (Option<u64>, Option<u64>) {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/meminfo");
    let (total, available) = (meminfo(&info, "MemTotal"), meminfo(&info, "MemAvailable"));
    let number = |path: &str| read(path).trim().parse::<u64>().ok();
    // "max" is no number: no limit.
    let limit = number("/sys/fs/cgroup/memory.max");
    let Some(limit) = limit.filter(|limit| total.is_some_and(|total| *limit < total)) else {
        return (total, available);
    };
    let used = number("/sys/fs/cgroup/memory.current").unwrap_or(0);
    (Some(limit), available.map(|available| available.min(limit.saturating_sub(used))))
}

/// A field of `/proc/meminfo`, in bytes.
#[cfg(target_os = "linux")]
fn meminfo(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Bytes of memory in all; the system does not tell how much of it is in use.
#[cfg(not(target_os = "linux"))]
pub(crate) fn memory() -> (Option<u64>, Option<u64>) {
    (sysctl("hw.memsize").and_then(|text| text.parse().ok()), None)
}

/// A value of the system's own table, through the program that shows it.
pub(crate) fn sysctl(name: &str) -> Option<String> {
    output("/usr/sbin/sysctl", &["-n", name])
}

/// What a program prints, if it is there and prints anything.
pub(crate) fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = std::process::Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_string();
    (!text.is_empty()).then_some(text)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        let text = "MemTotal:       24689640 kB\nMemAvailable:   21000000 kB\n";
        assert_eq!(meminfo(text, "MemTotal"), Some(24_689_640 * 1024));
        assert_eq!(meminfo(text, "MemFree"), None);
        assert!(memory().0.is_some_and(|total| total > 64 << 20));
    }
}
