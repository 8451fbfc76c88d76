//! The JSON Schema of everything that `--json` prints, made from the types that print it and
//! compared with the files in docs/interface. Only tests know it: the product carries no schema.

use crate::inspection::Inspection;
use crate::status::{CheckReport, DeviceReport, PointStatus, RoleStatus};
use crate::{AuditEntry, CopiedOut, Invited, Marked, Told, UtcTime, VerifyReport};
use redoubt_log::Name;
use schemars::generate::SchemaSettings;
use schemars::transform::RecursiveTransform;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// Set, it makes the test write the files that it otherwise compares.
const REWRITE: &str = "REDOUBT_REWRITE_SCHEMAS";
const REWRITE_COMMAND: &str = "REDOUBT_REWRITE_SCHEMAS=1 cargo test -p redoubt-control schemas";

/// How a [`Name`] is written: that type lives in the log, which knows nothing of schemas.
pub struct NameText;

impl JsonSchema for NameText {
    fn schema_name() -> Cow<'static, str> {
        "Name".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "The name of a machine or of a disk.",
            "type": "string",
            "pattern": format!("^[a-z0-9][a-z0-9._-]{{0,{}}}$", Name::LENGTH_LIMIT - 1),
        })
    }
}

impl JsonSchema for UtcTime {
    fn schema_name() -> Cow<'static, str> {
        "Time".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A moment by RFC 3339, in UTC.",
            "type": "string",
            "format": "date-time",
            "pattern": "Z$",
        })
    }
}

/// Every file, what it describes, and the schema.
fn all() -> Vec<(&'static str, Value)> {
    let files = [
        file::<RoleStatus>("status", "a line of `redoubt status --json`"),
        file::<Vec<PointStatus>>("points", "`redoubt points --json`"),
        file::<Marked>("mark", "`redoubt mark --json`"),
        file::<CopiedOut>("copy-out", "`redoubt copy-out --json`"),
        file::<VerifyReport>("verify", "`redoubt verify --json`"),
        file::<Told>("order", "`redoubt pause|resume|unprotect|place --json`"),
        file::<Vec<DeviceReport>>("disks", "`redoubt disks --json`"),
        file::<CheckReport>("check", "`redoubt agent --check --json`"),
        file::<Invited>("invite", "`redoubt invite --json`"),
        file::<Inspection>("inspect", "`redoubt inspect --json`"),
        file::<AuditEntry>("audit", "a line of a role's `audit.jsonl`"),
    ];
    files.into()
}

fn file<T: JsonSchema>(name: &'static str, title: &str) -> (&'static str, Value) {
    let settings = SchemaSettings::draft2020_12()
        .for_serialize()
        .with_transform(RecursiveTransform(close))
        .with_transform(RecursiveTransform(join_lines));
    let mut schema = settings.into_generator().into_root_schema_for::<T>();
    schema.insert("title".into(), title.into());
    (name, schema.to_value())
}

/// An object has the fields that it has, and no others.
fn close(schema: &mut Schema) {
    if schema.get("properties").is_some() {
        schema.insert("additionalProperties".into(), Value::Bool(false));
    }
}

/// Where a comment breaks its lines says nothing.
fn join_lines(schema: &mut Schema) {
    if let Some(Value::String(text)) = schema.get_mut("description") {
        *text = text.split('\n').map(str::trim).collect::<Vec<_>>().join(" ");
    }
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/interface")
}

#[test]
fn the_files_are_what_the_product_prints() {
    let mut known = BTreeSet::new();
    for (name, schema) in all() {
        let path = directory().join(format!("{name}.schema.json"));
        let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
        if env::var_os(REWRITE).is_some() {
            fs::write(&path, &text).unwrap();
        }
        let stored = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            stored == text,
            "{name}.schema.json is not what the product prints. Where that is meant (fields are \
             only ever added), run: {REWRITE_COMMAND}"
        );
        known.insert(path.file_name().unwrap().to_owned());
    }
    let entries = fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().file_name());
    let stored: BTreeSet<_> =
        entries.filter(|name| name.to_string_lossy().ends_with(".schema.json")).collect();
    assert_eq!(stored, known, "each file describes something that is printed");
    let manual = fs::read_to_string(directory().join("README.md")).unwrap();
    for name in stored {
        let name = name.to_string_lossy();
        assert!(manual.contains(&format!("]({name})")), "the README leads to {name}");
    }
}

/// Calls `visit` with every schema in `schema` that describes a field, and the field's name.
fn fields(schema: &Value, visit: &mut dyn FnMut(&str, &Value)) {
    match schema {
        Value::Object(keywords) => {
            for (keyword, value) in keywords {
                if keyword == "properties" {
                    value.as_object().unwrap().iter().for_each(|(name, field)| visit(name, field));
                }
                fields(value, visit);
            }
        }
        Value::Array(parts) => parts.iter().for_each(|part| fields(part, visit)),
        _ => {}
    }
}

#[test]
fn every_field_is_explained_with_its_unit() {
    for (file, schema) in all() {
        let mut seen = 0;
        fields(&schema, &mut |name, field| {
            let text = field["description"].as_str();
            let text = text.unwrap_or_else(|| panic!("{file}: {name} is explained")).to_lowercase();
            for (part, unit) in
                [("byte", "byte"), ("offset", "byte"), ("length", "byte"), ("seconds", "second")]
            {
                assert!(!name.contains(part) || text.contains(unit), "{file}: {name} in {unit}s");
            }
            seen += 1;
        });
        assert!(seen > 0, "{file} has fields");
    }
}

#[test]
fn objects_are_closed_and_every_field_is_always_there() {
    fn check(file: &str, schema: &Value) {
        if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
            assert_eq!(schema["additionalProperties"], json!(false), "{file}");
            let required = schema["required"].as_array().expect("fields are required");
            assert_eq!(required.len(), properties.len(), "{file}: {required:?}");
        }
        match schema {
            Value::Object(keywords) => keywords.values().for_each(|value| check(file, value)),
            Value::Array(parts) => parts.iter().for_each(|part| check(file, part)),
            _ => {}
        }
    }
    for (file, schema) in all() {
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        check(file, &schema);
    }
}
