//! Decodes a row once and copies it to the other streams.

use crate::matrix::HostMatrix;

/// Overwrites `out` `[tokens, streams, hidden]`; the ids are below the table's length.
pub(super) fn embed(
    ids: &[u32],
    table: HostMatrix,
    streams: usize,
    hidden: usize,
    out: &mut [f32],
) {
    if streams * hidden == 0 {
        return;
    }
    for (&id, out) in ids.iter().zip(out.chunks_exact_mut(streams * hidden)) {
        let (first, others) = out.split_at_mut(hidden);
        table.decode(id as usize, 0, first);
        for stream in others.chunks_exact_mut(hidden) {
            stream.copy_from_slice(first);
        }
    }
}
