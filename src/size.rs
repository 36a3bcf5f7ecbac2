//! Byte counts as people read them.

use std::fmt;

/// A number of bytes, shown in the unit that suits it (binary units, one decimal).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        if self.0 < 1024 {
            return f.pad(&format!("{} B", self.0));
        }
        let mut value = self.0 as f64 / 1024.0;
        let mut units = UNITS.iter();
        let mut unit = units.next().copied().unwrap_or_default();
        // 1023.95 and above would be printed as 1024.0 of the smaller unit.
        while value >= 1023.95 {
            let Some(next) = units.next() else { break };
            (value, unit) = (value / 1024.0, next);
        }
        f.pad(&format!("{value:.1} {unit}"))
    }
}

#[cfg(test)]
mod tests {
    use super::Size;

    #[test]
    fn a_size_never_reads_1024_of_a_unit() {
        let shown = |n| Size(n).to_string();
        assert_eq!(shown(0), "0 B");
        assert_eq!(shown(1023), "1023 B");
        assert_eq!(shown(1024), "1.0 KiB");
        assert_eq!(shown(1024 * 1024 - 1), "1.0 MiB");
        assert_eq!(shown(86_720_111_488), "80.8 GiB");
        assert_eq!(shown(u64::MAX), "16.0 EiB");
    }
}
