//! A result that is written back to the streams by the launch that computes it.

use crate::device::cuda::Address;

/// Values that a block leaves for the way in; `SPREAD_SUMS` of include/cuda/spread.h.
pub(super) const SUMS: usize = 34;
/// Rows of the projection.
pub(super) const ROWS: usize = 24;

/// Mirrors `Spread` of include/cuda/spread.h.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Spread {
    pub(super) state: Address,
    pub(super) due: Address,
    pub(super) projection: Address,
    pub(super) sums: Address,
    pub(super) hidden: u32,
    pub(super) blocks: u32,
}

impl Spread {
    /// The result goes to memory.
    pub(crate) const NONE: Self = Self {
        state: Address::NULL,
        due: Address::NULL,
        projection: Address::NULL,
        sums: Address::NULL,
        hidden: 0,
        blocks: 0,
    };

    /// Whether there is anything to do.
    pub(crate) fn is_some(&self) -> bool {
        self.state != Address::NULL
    }

    /// Shared memory of a block of so many rows (`SpreadRoom`).
    pub(crate) fn bytes(rows: usize) -> usize {
        2 * 4 * ROWS * rows + 4 * (4 * rows + ROWS + 128 + rows)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_parameter_struct_is_the_headers() {
        assert_eq!(size_of::<super::Spread>(), 40);
    }
}
