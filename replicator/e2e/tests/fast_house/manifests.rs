//! Who may depend on whom, which package of others has its place where, and whether it is used at
//! all, as cargo says. It must never judge by file names: the manifests are what counts.

use super::{files, read, scan};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// Our crates, and whom of ours each may use, in tests too. A new crate gets a row here.
const ARROWS: &[(&str, &[&str])] = &[
    ("redoubt-ebpf", &[]),
    ("redoubt-log", &[]),
    ("redoubt-engine", &[]),
    ("redoubt-tracker", &["redoubt-ebpf", "redoubt-log"]),
    ("redoubt-control", &["redoubt-log"]),
    ("redoubt-protocol", &["redoubt-log"]),
    ("redoubt-transport", &["redoubt-log", "redoubt-protocol"]),
    (
        "redoubt-agent",
        &[
            "redoubt-control",
            "redoubt-engine",
            "redoubt-log",
            "redoubt-protocol",
            "redoubt-tracker",
            "redoubt-transport",
        ],
    ),
    (
        "redoubt-master-target",
        &[
            "redoubt-control",
            "redoubt-engine",
            "redoubt-log",
            "redoubt-protocol",
            "redoubt-transport",
        ],
    ),
    (
        "redoubt-cli",
        // Its tests make stores to be inspected: hence the engine.
        &[
            "redoubt-agent",
            "redoubt-control",
            "redoubt-engine",
            "redoubt-log",
            "redoubt-master-target",
        ],
    ),
    ("redoubt-e2e", &[]),
    // The harness runs the product as its tests do (e2e) and asks it over its socket (control): a
    // command for each look would cost what is measured. Frames and journal, with the buffers they
    // need, it measures by themselves. Nobody uses the benches.
    (
        "redoubt-benches",
        &[
            "redoubt-control",
            "redoubt-e2e",
            "redoubt-engine",
            "redoubt-log",
            "redoubt-master-target",
        ],
    ),
];

/// Packages of others that have one place, and the crates that are it.
const PLACES: &[(&str, &[&str])] = &[
    ("bincode", &["redoubt-log"]),
    // The benches measure it beside ours.
    ("lz4_flex", &["redoubt-log", "redoubt-benches"]),
    ("quinn", &["redoubt-transport"]),
    ("rustls", &["redoubt-transport"]),
    ("rcgen", &["redoubt-transport"]),
    ("io-uring", &["redoubt-engine"]),
    // The benches read the kernel's counts of programs by it.
    ("libbpf-rs", &["redoubt-ebpf", "redoubt-tracker", "redoubt-benches"]),
    ("libbpf-sys", &["redoubt-ebpf", "redoubt-tracker"]),
    ("libbpf-cargo", &["redoubt-ebpf"]),
    ("clap", &["redoubt-cli", "redoubt-benches"]),
    ("rusqlite", &["redoubt-e2e"]),
    // The JSON interface is described by the tests of one crate, and checked by those of the other.
    ("schemars", &["redoubt-control"]),
    ("jsonschema", &["redoubt-e2e"]),
];

/// Where errors may be untyped outside tests.
const ANYHOW: &[&str] = &["redoubt-cli", "redoubt-e2e", "redoubt-benches"];

/// Used by code that the build generates: the source does not name it.
const GENERATED: &[(&str, &str)] = &[("redoubt-ebpf", "libbpf-rs")];

/// What each rule finds wrong in the workspace's manifests.
pub fn problems(repository: &Path) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    let metadata = metadata(repository)?;
    let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
    for package in packages {
        let name = package["name"].as_str().context("a package has no name")?;
        let Some((_, allowed)) = ARROWS.iter().find(|(ours, _)| *ours == name) else {
            problems.push(format!("{name} has no row in the arrows of fast_house/manifests.rs"));
            continue;
        };
        let manifest = package["manifest_path"].as_str().context("a package has no manifest")?;
        let code = code_beside(Path::new(manifest))?;
        for dependency in package["dependencies"].as_array().context("no dependencies")? {
            check_dependency(name, allowed, dependency, &mut problems)?;
            check_used(name, &code, dependency, &mut problems)?;
        }
        check_versions(name, Path::new(manifest), &mut problems)?;
    }
    for (name, _) in ARROWS {
        if !packages.iter().any(|package| package["name"] == *name) {
            problems.push(format!("{name} has a row in the arrows and is no package"));
        }
    }
    Ok(problems)
}

fn check_dependency(
    name: &str,
    allowed: &[&str],
    dependency: &Value,
    problems: &mut Vec<String>,
) -> Result<()> {
    let on = dependency["name"].as_str().context("a dependency has no name")?;
    // A crate's tests may ask the crate itself for a feature.
    if on.starts_with("redoubt-") && on != name && !allowed.contains(&on) {
        problems.push(format!("{name} must not depend on {on}: arrows point down only"));
    }
    if let Some((_, places)) = PLACES.iter().find(|(package, _)| *package == on)
        && !places.contains(&name)
    {
        problems.push(format!("{name} must not depend on {on}: that lives in {places:?}"));
    }
    if on == "anyhow" && dependency["kind"] != "dev" && !ANYHOW.contains(&name) {
        problems.push(format!("{name} must have typed errors outside its tests, not anyhow"));
    }
    Ok(())
}

/// All the code of the crate with this manifest.
fn code_beside(manifest: &Path) -> Result<String> {
    let directory = manifest.parent().context("a manifest stands nowhere")?;
    let mut code = String::new();
    for file in files(&["rs"])?.iter().filter(|file| file.starts_with(directory)) {
        code.push_str(&scan::code_only(&read(file)?.1));
    }
    Ok(code)
}

fn check_used(
    name: &str,
    code: &str,
    dependency: &Value,
    problems: &mut Vec<String>,
) -> Result<()> {
    let on = dependency["name"].as_str().context("a dependency has no name")?;
    let path = format!("{}::", on.replace('-', "_"));
    if on != name && !code.contains(&path) && !GENERATED.contains(&(name, on)) {
        problems.push(format!("{name} depends on {on} and does not use it"));
    }
    Ok(())
}

/// Versions and lints stand in the root manifest; the others only point there.
fn check_versions(name: &str, manifest: &Path, problems: &mut Vec<String>) -> Result<()> {
    let text = std::fs::read_to_string(manifest).with_context(|| manifest.display().to_string())?;
    let manifest: toml::Table = text.parse().with_context(|| manifest.display().to_string())?;
    if manifest.get("lints").and_then(|lints| lints.get("workspace")?.as_bool()) != Some(true) {
        problems.push(format!("{name} does not take the lints of the workspace"));
    }
    let tables = ["dependencies", "dev-dependencies", "build-dependencies"];
    for (on, value) in tables.iter().filter_map(|table| manifest.get(*table)?.as_table()).flatten()
    {
        if on != name && value.get("workspace").and_then(toml::Value::as_bool) != Some(true) {
            problems.push(format!("{name}: the version of {on} belongs in the root manifest"));
        }
    }
    if manifest.contains_key("target") {
        problems.push(format!("{name}: dependencies by target escape the checks of this test"));
    }
    Ok(())
}

fn metadata(repository: &Path) -> Result<Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(repository)
        .output()
        .context("cannot run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}
