//! What is left of a disk.

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
