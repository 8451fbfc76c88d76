//! Compiles the kernel side into a skeleton and hands the numbers of record.h to lib.rs. It must
//! never write outside OUT_DIR.

use libbpf_cargo::SkeletonBuilder;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const SOURCE: &str = "src/capture.bpf.c";
/// What user space shares.
const RECORD: &str = "src/record.h";
const HEADERS: [&str; 3] = ["src/kernel.bpf.h", "src/maps.bpf.h", RECORD];

fn main() {
    println!("cargo:rerun-if-changed={SOURCE}");
    for header in HEADERS {
        println!("cargo:rerun-if-changed={header}");
    }
    println!("cargo:rerun-if-env-changed=CLANG");
    if let Err(why) = build() {
        eprintln!("redoubt-ebpf: {why}");
        std::process::exit(1);
    }
}

fn build() -> Result<(), String> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: build with cargo")?);
    let clang = find_clang()?;
    let header = fs::read_to_string(RECORD).map_err(|error| format!("{RECORD}: {error}"))?;
    fs::write(out.join("numbers.rs"), numbers(&header)?)
        .map_err(|error| format!("numbers.rs: {error}"))?;
    SkeletonBuilder::new()
        .source(SOURCE)
        .clang(&clang)
        .clang_args(["-O2", "-mcpu=v3", "-Wall", "-Werror"])
        .build_and_generate(out.join("capture.skel.rs"))
        .map_err(|error| format!("{SOURCE} does not compile with {}: {error:#}", clang.display()))
}

/// The compiler for the kernel side, proven to run.
fn find_clang() -> Result<PathBuf, String> {
    let clang = PathBuf::from(env::var_os("CLANG").unwrap_or_else(|| "clang".into()));
    let runs = |clang: &Path| {
        Command::new(clang)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    if runs(&clang) {
        return Ok(clang);
    }
    Err(format!(
        "{} does not run, and the kernel side needs it: install clang 14 or later \
         (apt install clang), or name one in the environment variable CLANG",
        clang.display()
    ))
}

/// Every `#define REDOUBT_NAME number` of the header as a constant.
fn numbers(header: &str) -> Result<String, String> {
    let mut out = String::new();
    for line in header.lines() {
        let mut words = line.split_whitespace();
        let (Some("#define"), Some(name), Some(value)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        let Some(name) = name.strip_prefix("REDOUBT_") else { continue };
        let value: u32 = value.parse().map_err(|_| format!("{name} is not a plain number"))?;
        writeln!(out, "/// `REDOUBT_{name}` of record.h.\npub const {name}: u32 = {value};")
            .map_err(|error| error.to_string())?;
    }
    Ok(out)
}
