//! Packed rows as f32 at the speed of the machine's registers.

use super::RowFormat;
use crate::device::for_each_row;

/// [`RowFormat::unpack`] of consecutive rows; on all cores if there are many.
pub(super) fn unpack_rows(format: RowFormat, bytes: &[u8], values: &mut [f32]) {
    let row_bytes = format.row_bytes();
    for_each_row(values, format.width(), |index, row| {
        unpack_row(format, &bytes[index * row_bytes..][..row_bytes], row);
    });
}

/// [`RowFormat::unpack`].
pub(super) fn unpack_row(format: RowFormat, bytes: &[u8], row: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if crate::dot::avx2::available() {
        #[target_feature(enable = "avx2,fma")]
        fn run(format: RowFormat, bytes: &[u8], row: &mut [f32]) {
            format.unpack(bytes, row);
        }
        // SAFETY: the features were just found to be there.
        return unsafe { run(format, bytes, row) };
    }
    format.unpack(bytes, row);
}
