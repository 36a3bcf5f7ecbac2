//! `ds4 doctor`: what this machine is, and which model fits it.

use std::io::Write;

use serde_json::json;

use crate::hub::{Cache, Fit, GpuKind, Machine, Place, Settings, Variant};
use crate::size::Size;

/// Prints devices, memory, disk, and for each published model whether it fits and why. Returns the
/// status to exit with: 1 when none fits.
///
/// # Errors
/// The environment is unusable; those of `out`.
pub fn run(json: bool, out: &mut dyn Write) -> anyhow::Result<u8> {
    let settings = Settings::from_env()?;
    let cache = Cache::at(settings.cache);
    let machine = Machine::look(&cache);
    report(&machine, &cache, json, out)?;
    out.flush()?;
    Ok(u8::from(machine.recommended().is_none()))
}

fn report(
    machine: &Machine,
    cache: &Cache,
    json: bool,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    let models: Vec<(Variant, Fit)> = Variant::ALL
        .into_iter()
        .filter(|variant| variant.is_model())
        .map(|variant| (variant, machine.fit(variant.usual_bytes())))
        .collect();
    let best = machine.recommended();
    if json {
        let models: Vec<_> = models
            .iter()
            .map(|(variant, fit)| {
                json!({
                    "name": variant.name(),
                    "bytes": variant.usual_bytes(),
                    "fits": fit.place.is_some(),
                    "where": fit.place.map(|place| place_name(machine, place)),
                    "disk": machine.has_disk_for(variant.usual_bytes()),
                    "reason": fit.reason,
                })
            })
            .collect();
        let gpus: Vec<_> = machine
            .gpus
            .iter()
            .map(|gpu| {
                json!({
                    "kind": kind(gpu.kind),
                    "name": gpu.name,
                    "memory": gpu.memory,
                    "usable": gpu.usable,
                })
            })
            .collect();
        let report = json!({
            "cpu": machine.cpu,
            "threads": machine.threads,
            "features": machine.features,
            "memory": machine.memory,
            "available": machine.available,
            "gpus": gpus,
            "cache": cache.root(),
            "disk_free": machine.disk_free,
            "models": models,
            "recommended": best.as_ref().map(|(variant, _)| variant.name()),
        });
        return writeln!(out, "{report:#}");
    }
    let size = |bytes: Option<u64>| bytes.map_or("unknown".into(), |b| Size(b).to_string());
    let available =
        machine.available.map_or(String::new(), |b| format!(", {} of it not in use", Size(b)));
    writeln!(out, "cpu      {}, {} threads", machine.cpu, machine.threads)?;
    writeln!(out, "         {}", machine.features.join(" "))?;
    writeln!(out, "memory   {}{available}", size(machine.memory))?;
    for gpu in &machine.gpus {
        let (kind, index) = (kind(gpu.kind), gpu.index);
        let unused = if gpu.usable { "" } else { ", not used by this build" };
        writeln!(out, "gpu      {}, {} ({kind} {index}){unused}", gpu.name, Size(gpu.memory))?;
    }
    let free = size(machine.disk_free);
    writeln!(out, "cache    {}, {free} free on its disk", cache.root().display())?;
    writeln!(out)?;
    for (variant, fit) in &models {
        let verdict = if fit.place.is_some() { "fits" } else { "no" };
        let bytes = variant.usual_bytes();
        let reason = fit.reason.strip_prefix("fits ").unwrap_or(&fit.reason);
        let disk = if machine.has_disk_for(bytes) { "" } else { "; too big for the disk" };
        let size = Size(bytes).to_string();
        writeln!(out, "{variant:<14} {size:>9}  {verdict:<4}  {reason}{disk}")?;
    }
    writeln!(out)?;
    match best {
        Some((variant, _)) => {
            writeln!(out, "fetch the best one that fits with: ds4 pull {variant}")?;
            if !machine.has_disk_for(variant.usual_bytes()) {
                writeln!(
                    out,
                    "it needs {} on the disk: free some space, or set HF_HUB_CACHE to a folder on \
                     a larger one",
                    Size(variant.usual_bytes())
                )?;
            }
            Ok(())
        }
        None => writeln!(out, "nothing fits: use a machine with 96 GB of memory or of GPU memory"),
    }
}

fn kind(kind: GpuKind) -> &'static str {
    match kind {
        GpuKind::Cuda => "cuda",
        GpuKind::Metal => "metal",
    }
}

fn place_name(machine: &Machine, place: Place) -> String {
    match place {
        Place::Ram => "cpu".to_string(),
        Place::Gpu(index) => machine
            .gpus
            .get(index)
            .map_or("gpu".to_string(), |gpu| format!("{} {}", kind(gpu.kind), gpu.index)),
    }
}
