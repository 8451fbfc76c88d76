//! The house rules that a machine can check: arrows, sizes, openings, where `unsafe` stands.
//! It must never need more than the source tree and cargo.

mod manifests;
mod scan;

use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

const LINES_PER_FILE_MAX: usize = 600;
/// A function fits on a screen.
const LINES_PER_FUNCTION_MAX: usize = 70;
const COLUMNS_MAX: usize = 100;

/// The hardware boundary: the only files in which `unsafe` may stand.
const UNSAFE_FILES: &[&str] = &[
    // The kernel's plain structs, read from bytes.
    "ebpf/src/lib.rs",
    // Memory shared with the kernel, io_uring's and BPF's, and the calls that share it.
    "replicator/engine/src/buffer.rs",
    "replicator/engine/src/ring.rs",
    "replicator/engine/src/ring/queue.rs",
    "replicator/engine/src/ring/registration.rs",
    "tracker/core/src/canary.rs",
    "tracker/core/src/probe/counters.rs",
    "tracker/core/src/probe/memory.rs",
    "tracker/core/src/ring.rs",
];

/// Directories in which nothing is source of ours.
const NOT_OURS: &[&str] = &["target", ".git"];

#[test]
fn arrows_point_down_and_versions_stand_in_one_place() -> Result<()> {
    expect_none(&manifests::problems(&repository())?);
    Ok(())
}

#[test]
fn files_and_functions_fit_on_a_screen() -> Result<()> {
    let mut problems = Vec::new();
    for file in files(&["rs", "c", "h", "sh"])? {
        let (name, text) = read(&file)?;
        let lines = text.lines().count();
        if lines > LINES_PER_FILE_MAX {
            problems.push(format!("{name}: {lines} lines, {LINES_PER_FILE_MAX} are the most"));
        }
        for (index, line) in text.lines().enumerate() {
            let columns = line.chars().count() + 7 * line.matches('\t').count();
            if columns > COLUMNS_MAX && !name.ends_with(".sh") {
                problems.push(format!(
                    "{name}:{}: {columns} columns, {COLUMNS_MAX} are the most",
                    index + 1
                ));
            }
        }
        if name.ends_with(".rs") {
            problems.extend(long_functions(&name, &text));
        }
    }
    expect_none(&problems);
    Ok(())
}

fn long_functions(name: &str, text: &str) -> Vec<String> {
    scan::functions(&scan::code_only(text))
        .into_iter()
        .filter(|function| function.line_count > LINES_PER_FUNCTION_MAX)
        .map(|function| {
            let (line, lines) = (function.first_line, function.line_count);
            format!(
                "{name}:{line}: fn {} has {lines} lines, {LINES_PER_FUNCTION_MAX} are the most",
                function.name
            )
        })
        .collect()
}

#[test]
fn every_file_opens_with_its_job() -> Result<()> {
    let mut problems = Vec::new();
    for file in files(&["rs", "c", "h"])? {
        let (name, text) = read(&file)?;
        let opening = if name.ends_with(".rs") { "//!" } else { "/" };
        if !text.starts_with(opening) && !text.starts_with("/*") {
            problems.push(format!("{name}: does not open with {opening} and its job"));
        }
    }
    expect_none(&problems);
    Ok(())
}

#[test]
fn unsafe_stands_only_at_the_hardware_boundary() -> Result<()> {
    let mut problems = Vec::new();
    let mut used = vec![false; UNSAFE_FILES.len()];
    for file in files(&["rs"])? {
        let (name, text) = read(&file)?;
        if !scan::has_word(&scan::code_only(&text), "unsafe") {
            continue;
        }
        match UNSAFE_FILES.iter().position(|listed| *listed == name) {
            Some(index) => used[index] = true,
            None => problems.push(format!("{name}: holds unsafe and is not in the list")),
        }
    }
    for (listed, _) in UNSAFE_FILES.iter().zip(used).filter(|(_, used)| !used) {
        problems.push(format!("{listed}: is in the list and holds no unsafe; strike it"));
    }
    expect_none(&problems);
    Ok(())
}

#[test]
fn nothing_is_left_for_later_or_without_a_name() -> Result<()> {
    let mut problems = Vec::new();
    for file in files(&["rs"])? {
        let (name, text) = read(&file)?;
        let code = scan::code_only(&text);
        for left in ["todo!", "unimplemented!", "dbg!", "#[ignore"] {
            if code.contains(left) {
                problems.push(format!("{name}: holds {left}"));
            }
        }
        let path = Path::new(&name);
        let is_util = |part: &std::ffi::OsStr| {
            ["util", "utils", "helpers", "misc"].iter().any(|word| part == *word)
        };
        if path.file_stem().is_some_and(is_util) || path.iter().any(is_util) {
            problems.push(format!("{name}: a module is named after its job"));
        }
    }
    expect_none(&problems);
    Ok(())
}

#[test]
fn scripts_run_and_stop_at_the_first_error() -> Result<()> {
    let mut problems = Vec::new();
    let scripts = files(&["sh"])?.into_iter().chain([repository().join(".ci/run")]);
    for script in scripts {
        let (name, text) = read(&script)?;
        if fs::metadata(&script)?.permissions().mode() & 0o111 != 0o111 {
            problems.push(format!("{name}: is not executable"));
        }
        if !text.starts_with("#!/usr/bin/env bash\n# ") {
            problems.push(format!("{name}: does not open with its interpreter and its job"));
        }
        if !text.contains("set -euo pipefail") && !text.contains("Sourced, never run") {
            problems.push(format!("{name}: does not stop at the first error"));
        }
    }
    expect_none(&problems);
    Ok(())
}

/// Each test binary belongs to a tier by its name, or the runner's profiles would miss it.
#[test]
fn every_test_binary_has_a_tier() -> Result<()> {
    let mut problems = Vec::new();
    for file in files(&["rs"])? {
        let (name, _) = read(&file)?;
        let parts: Vec<&str> = name.split('/').collect();
        let Some(at) = parts.iter().position(|part| *part == "tests") else { continue };
        // Below src it is a module of unit tests.
        let Some(binary) = parts.get(at + 1).filter(|_| !parts[..at].contains(&"src")) else {
            continue;
        };
        // A directory without a main.rs is shared by the binaries beside it.
        let is_binary = parts.len() == at + 2 || parts.get(at + 2) == Some(&"main.rs");
        let has_tier = ["fast_", "root_", "all_", "vm_"].iter().any(|t| binary.starts_with(t));
        if is_binary && !has_tier {
            problems.push(format!("{name}: a test binary is named fast_, root_, all_ or vm_"));
        }
    }
    expect_none(&problems);
    Ok(())
}

fn expect_none(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// The file's path within the repository, and its text.
fn read(file: &Path) -> Result<(String, String)> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let name = file.strip_prefix(repository())?.display().to_string();
    Ok((name, text))
}

/// Every file of ours with one of the extensions; at least one, or the walk is broken.
fn files(extensions: &[&str]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut directories = vec![repository()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && !path.is_symlink() {
                if !NOT_OURS.contains(&name.as_str()) {
                    directories.push(path);
                }
            } else if path.extension().is_some_and(|ext| extensions.iter().any(|e| ext == *e)) {
                found.push(path);
            }
        }
    }
    anyhow::ensure!(!found.is_empty(), "no source files below {}", repository().display());
    found.sort();
    Ok(found)
}
