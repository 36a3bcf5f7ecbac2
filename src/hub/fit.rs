//! Does a file fit this machine? Memory, graphics memory and disk against what a model needs.

use super::cache::Cache;
use super::name::Variant;
use crate::size::Size;
use crate::system::{memory, output, sysctl};

/// Memory beside the weights: KV cache of a long context, activations, the program.
const BESIDE_ON_GPU: u64 = 8 << 30;

/// As [`BESIDE_ON_GPU`], and what the operating system keeps for itself.
const BESIDE_IN_RAM: u64 = 12 << 30;

/// How a GPU's memory relates to the machine's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuKind {
    /// NVIDIA, with memory of its own.
    Cuda,
    /// Apple, sharing the machine's memory.
    Metal,
}

/// A graphics device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Its number among those of its kind.
    pub index: usize,
    /// The maker's name for it.
    pub name: String,
    /// Bytes that a model may fill.
    pub memory: u64,
    /// Its kind.
    pub kind: GpuKind,
    /// Whether this build computes on devices of its kind.
    pub usable: bool,
}

/// What was found on this machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The processor's name, if the system tells.
    pub cpu: String,
    /// Threads that run at a time.
    pub threads: usize,
    /// Instruction sets that the CPU kernels can use.
    pub features: Vec<&'static str>,
    /// Bytes of memory, within the limit of the container if there is one.
    pub memory: Option<u64>,
    /// Bytes of memory that are not in use.
    pub available: Option<u64>,
    /// Graphics devices, usable or not.
    pub gpus: Vec<Gpu>,
    /// Bytes free where the cache is.
    pub disk_free: Option<u64>,
}

/// Where a model would live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the memory of the GPU with this place in [`Machine::gpus`].
    Gpu(usize),
    /// In the machine's memory, computed by the CPU.
    Ram,
}

/// Whether and where a model of some size fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fit {
    /// The best place, if any.
    pub place: Option<Place>,
    /// Why, in one sentence; what is missing, when nothing fits.
    pub reason: String,
}

impl Machine {
    /// Looks at this machine. What the system does not tell is left out.
    pub fn look(cache: &Cache) -> Self {
        let (memory, available) = memory();
        Self {
            cpu: cpu_name(),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            features: cpu_features(),
            memory,
            available,
            gpus: gpus(memory),
            disk_free: cache.free_space().ok(),
        }
    }

    /// Whether a model file of `bytes` bytes fits, and where.
    pub fn fit(&self, bytes: u64) -> Fit {
        let on_gpu = bytes.saturating_add(BESIDE_ON_GPU);
        let in_ram = bytes.saturating_add(BESIDE_IN_RAM);
        let largest = |usable: bool| {
            let of_kind = self.gpus.iter().enumerate().filter(|(_, gpu)| gpu.usable == usable);
            of_kind.max_by_key(|(_, gpu)| gpu.memory)
        };
        if let Some((index, gpu)) = largest(true).filter(|(_, gpu)| gpu.memory >= on_gpu) {
            let reason = format!(
                "fits the {} of {} (needs about {})",
                Size(gpu.memory),
                gpu.name,
                Size(on_gpu)
            );
            return Fit { place: Some(Place::Gpu(index)), reason };
        }
        let gpu = match (largest(true), largest(false)) {
            (Some((_, gpu)), _) => format!("{} on the {}", Size(gpu.memory), gpu.name),
            (None, Some((_, gpu))) => format!("a {} that this build does not use", gpu.name),
            (None, None) => "no GPU".to_string(),
        };
        let needs = format!("needs about {} on a GPU or {} of memory", Size(on_gpu), Size(in_ram));
        match self.memory {
            Some(memory) if memory >= in_ram => Fit {
                place: Some(Place::Ram),
                reason: format!(
                    "fits the {} of memory, on the CPU (needs about {}; {gpu})",
                    Size(memory),
                    Size(in_ram)
                ),
            },
            Some(memory) => Fit {
                place: None,
                reason: format!("{needs}; here are {} of memory and {gpu}", Size(memory)),
            },
            None => Fit {
                place: None,
                reason: format!("{needs}; the system does not tell its memory, and {gpu}"),
            },
        }
    }

    /// The largest published model that fits, with an importance matrix.
    pub fn recommended(&self) -> Option<(Variant, Fit)> {
        [Variant::Q4Imatrix, Variant::Q2Q4Imatrix, Variant::Q2Imatrix]
            .into_iter()
            .map(|variant| (variant, self.fit(variant.usual_bytes())))
            .find(|(_, fit)| fit.place.is_some())
    }

    /// Why a file of `bytes` bytes is of no use here; nothing when it fits memory and disk.
    pub fn warning(&self, bytes: u64) -> Option<String> {
        let fit = self.fit(bytes);
        let mut problems = Vec::new();
        if fit.place.is_none() {
            problems.push(fit.reason);
        }
        if let Some(free) = self.disk_free.filter(|_| !self.has_disk_for(bytes)) {
            problems.push(format!(
                "needs {} on the disk of the cache, which has {} free",
                Size(bytes),
                Size(free)
            ));
        }
        (!problems.is_empty()).then(|| problems.join("; "))
    }

    /// Whether `bytes` more fit on the cache's disk; unknown counts as yes.
    pub fn has_disk_for(&self, bytes: u64) -> bool {
        self.disk_free.is_none_or(|free| free >= bytes.saturating_add(super::SPARE))
    }
}

#[cfg(target_os = "linux")]
fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.to_string(), |(_, name)| name.trim().to_string())
}

#[cfg(not(target_os = "linux"))]
fn cpu_name() -> String {
    sysctl("machdep.cpu.brand_string").unwrap_or_else(|| std::env::consts::ARCH.to_string())
}

fn cpu_features() -> Vec<&'static str> {
    let mut features = Vec::new();
    #[cfg(target_arch = "x86_64")]
    for (name, there) in [
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("f16c", std::arch::is_x86_feature_detected!("f16c")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
        ("avx512vnni", std::arch::is_x86_feature_detected!("avx512vnni")),
    ] {
        features.extend(there.then_some(name));
    }
    #[cfg(target_arch = "aarch64")]
    for (name, there) in [
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
        ("dotprod", std::arch::is_aarch64_feature_detected!("dotprod")),
        ("i8mm", std::arch::is_aarch64_feature_detected!("i8mm")),
        ("fp16", std::arch::is_aarch64_feature_detected!("fp16")),
    ] {
        features.extend(there.then_some(name));
    }
    features
}

/// Graphics devices, as the system tells of them: also those that this build cannot use.
fn gpus(memory: Option<u64>) -> Vec<Gpu> {
    let mut gpus = Vec::new();
    // Without the driver its program may be missing, or wait for a device that is not there.
    if std::path::Path::new("/proc/driver/nvidia").exists() {
        let query = ["--query-gpu=name,memory.total", "--format=csv,noheader,nounits"];
        gpus.extend(nvidia(&output("nvidia-smi", &query).unwrap_or_default()));
    }
    if let Some(memory) = memory.filter(|_| cfg!(target_os = "macos")) {
        // The system lets a GPU fill about three quarters of the memory unless told otherwise.
        let told = sysctl("iogpu.wired_limit_mb").and_then(|text| text.parse::<u64>().ok());
        let limit = told.filter(|megabytes| *megabytes > 0).map(|megabytes| megabytes << 20);
        gpus.push(Gpu {
            index: 0,
            name: format!("{} GPU", cpu_name()),
            memory: limit.unwrap_or(memory / 4 * 3),
            kind: GpuKind::Metal,
            usable: candle_core::utils::metal_is_available(),
        });
    }
    gpus
}

/// Lines of `NAME, MEGABYTES`.
fn nvidia(table: &str) -> Vec<Gpu> {
    let lines = table.lines().enumerate();
    lines
        .filter_map(|(index, line)| {
            let (name, megabytes) = line.rsplit_once(',')?;
            Some(Gpu {
                index,
                name: name.trim().to_string(),
                memory: megabytes.trim().parse::<u64>().ok()?.checked_mul(1 << 20)?,
                kind: GpuKind::Cuda,
                usable: candle_core::utils::cuda_is_available(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(ram: u64, gpu: Option<u64>) -> Machine {
        let gpus = gpu.map(|memory| Gpu {
            index: 0,
            name: "a GPU".into(),
            memory: memory << 30,
            kind: GpuKind::Cuda,
            usable: true,
        });
        Machine {
            cpu: String::new(),
            threads: 1,
            features: Vec::new(),
            memory: Some(ram << 30),
            available: None,
            gpus: gpus.into_iter().collect(),
            disk_free: None,
        }
    }

    fn best(ram: u64, gpu: Option<u64>) -> Option<(Variant, Place)> {
        let (variant, fit) = machine(ram, gpu).recommended()?;
        Some((variant, fit.place?))
    }

    #[test]
    fn machines_that_users_have_get_the_file_that_runs_on_them() {
        use Variant::{Q2Imatrix, Q2Q4Imatrix, Q4Imatrix};
        assert_eq!(best(16, None), None);
        assert_eq!(best(64, Some(80)), None, "an 80 GB card does not hold 81 GB");
        // A machine sold with 96 GB shows a little less.
        assert_eq!(best(94, None), Some((Q2Imatrix, Place::Ram)));
        assert_eq!(best(128, None), Some((Q2Q4Imatrix, Place::Ram)));
        assert_eq!(best(64, Some(96)), Some((Q2Imatrix, Place::Gpu(0))));
        assert_eq!(best(2048, Some(139)), Some((Q4Imatrix, Place::Ram)));
        assert_eq!(best(160, None), Some((Q2Q4Imatrix, Place::Ram)));
        assert_eq!(best(188, None), Some((Q4Imatrix, Place::Ram)));
        assert_eq!(best(64, Some(178)), Some((Q4Imatrix, Place::Gpu(0))));
    }

    #[test]
    fn what_does_not_fit_is_told_with_the_numbers() {
        let fit = machine(16, Some(24)).fit(86_720_111_488);
        assert_eq!(fit.place, None);
        for part in ["88.8 GiB", "92.8 GiB", "16.0 GiB", "24.0 GiB"] {
            assert!(fit.reason.contains(part), "{}", fit.reason);
        }
    }

    #[test]
    fn a_card_that_the_build_does_not_use_is_named_and_not_counted() {
        let mut machine = machine(16, None);
        machine.gpus = nvidia("NVIDIA H200, 143771\nsome line\nA, B, 24564\n");
        let found: Vec<_> = machine.gpus.iter().map(|g| (g.index, g.name.as_str())).collect();
        assert_eq!(found, [(0, "NVIDIA H200"), (2, "A, B")]);
        assert_eq!(machine.gpus[0].memory, 143_771 << 20);
        machine.gpus.iter_mut().for_each(|gpu| gpu.usable = false);
        let fit = machine.fit(86_720_111_488);
        assert_eq!(fit.place, None);
        assert!(
            fit.reason.contains("a NVIDIA H200 that this build does not use"),
            "{}",
            fit.reason
        );
    }
}
