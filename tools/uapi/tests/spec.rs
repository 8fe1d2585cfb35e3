// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Holds `drivers/block/neonsan/uapi.rs`, which the module and the tools share, against the YAML
//! spec of the family. `NEONSAN_UPDATE=1 cargo test -p neonsan-uapi` writes it anew
//! after a change of the spec.

use serde_norway::Value;
use std::fmt::Write as _;
use std::path::PathBuf;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key).and_then(Value::as_str)
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value
        .get(key)
        .and_then(Value::as_sequence)
        .map_or(&[], Vec::as_slice)
}

fn camel(name: &str) -> String {
    name.split('-')
        .map(|part| part[..1].to_uppercase() + &part[1..])
        .collect()
}

fn upper(name: &str) -> String {
    name.replace('-', "_").to_uppercase()
}

fn lower(name: &str) -> String {
    name.replace('-', "_")
}

/// Writes the `doc` of an item as a doc comment, or `otherwise` if it has none.
fn doc(out: &mut String, indent: &str, item: &Value, otherwise: &str) {
    let mut line = format!("{indent}///");
    for word in text(item, "doc").unwrap_or(otherwise).split_whitespace() {
        if line.len() + 1 + word.len() > 99 {
            let _ = writeln!(out, "{line}");
            line = format!("{indent}///");
        }
        line.push(' ');
        line.push_str(word);
    }
    let _ = writeln!(out, "{line}");
}

/// Entries of an enum or flags with their position: a plain string or a mapping with `name`.
fn entries(definition: &Value) -> Vec<(String, &Value)> {
    list(definition, "entries")
        .iter()
        .map(|entry| {
            let name = entry.as_str().or_else(|| text(entry, "name"));
            (name.expect("an entry has a name").to_owned(), entry)
        })
        .collect()
}

fn write_const(out: &mut String, definition: &Value) {
    let name = text(definition, "name").expect("name");
    let value = definition
        .get("value")
        .and_then(Value::as_u64)
        .expect("value");
    let otherwise = format!("`{name}` of the spec.");
    doc(out, "", definition, &otherwise);
    let _ = writeln!(out, "pub const {}: usize = {value};\n", upper(name));
}

fn write_enum(out: &mut String, definition: &Value) {
    let name = text(definition, "name").expect("name");
    let ty = camel(name);
    let entries = entries(definition);
    doc(out, "", definition, &format!("`{name}` of the spec."));
    let _ = writeln!(out, "#[derive(Clone, Copy, Debug, PartialEq, Eq)]");
    let _ = writeln!(out, "#[repr(u32)]\npub enum {ty} {{");
    for (value, (entry, item)) in entries.iter().enumerate() {
        doc(out, "    ", item, &format!("`{entry}`."));
        let _ = writeln!(out, "    {} = {value},", camel(entry));
    }
    let _ = writeln!(out, "}}\n\nimpl {ty} {{");
    let _ = writeln!(out, "    /// Every value, in order.");
    let _ = writeln!(out, "    pub const ALL: &'static [{ty}] = &[");
    for (entry, _) in &entries {
        let _ = writeln!(out, "        {ty}::{},", camel(entry));
    }
    let _ = writeln!(out, "    ];\n");
    let _ = writeln!(
        out,
        "    /// The value of an attribute; `None` if this version does not know it."
    );
    let _ = writeln!(out, "    pub fn from_raw(raw: u32) -> Option<Self> {{");
    let _ = writeln!(
        out,
        "        Self::ALL.get(raw as usize).copied()\n    }}\n"
    );
    let _ = writeln!(out, "    /// The name in the spec.");
    let _ = writeln!(
        out,
        "    pub const fn name(self) -> &'static str {{\n        match self {{"
    );
    for (entry, _) in &entries {
        let _ = writeln!(out, "            {ty}::{} => \"{entry}\",", camel(entry));
    }
    let _ = writeln!(out, "        }}\n    }}\n}}\n");
}

fn write_flags(out: &mut String, definition: &Value) {
    let name = text(definition, "name").expect("name");
    doc(out, "", definition, &format!("`{name}` of the spec."));
    let _ = writeln!(out, "pub mod {} {{", lower(name));
    let entries = entries(definition);
    for (bit, (entry, item)) in entries.iter().enumerate() {
        doc(out, "    ", item, &format!("`{entry}`."));
        let _ = writeln!(out, "    pub const {}: u32 = 1 << {bit};\n", upper(entry));
    }
    let _ = writeln!(out, "    /// Every flag with its name in the spec.");
    let _ = writeln!(out, "    pub const NAMES: &[(&str, u32)] = &[");
    for (entry, _) in &entries {
        let _ = writeln!(out, "        (\"{entry}\", {}),", upper(entry));
    }
    let _ = writeln!(out, "    ];\n}}\n");
}

fn write_attributes(out: &mut String, spec: &Value) {
    let _ = writeln!(
        out,
        "/// Attribute types, one module for each set.\npub mod attr {{"
    );
    for (position, set) in list(spec, "attribute-sets").iter().enumerate() {
        let name = text(set, "name").expect("name");
        if position > 0 {
            out.push('\n');
        }
        doc(
            out,
            "    ",
            set,
            "A block device and the session behind it.",
        );
        let _ = writeln!(out, "    pub mod {} {{", lower(name));
        let attributes = list(set, "attributes");
        for (index, attribute) in attributes.iter().enumerate() {
            let name = text(attribute, "name").expect("name");
            doc(out, "        ", attribute, &format!("`{name}`."));
            let _ = writeln!(
                out,
                "        pub const {}: u16 = {};",
                upper(name),
                index + 1
            );
        }
        let _ = writeln!(out, "        /// The highest attribute type of this set.");
        let _ = writeln!(out, "        pub const MAX: u16 = {};", attributes.len());
        let _ = writeln!(out, "    }}");
    }
    let _ = writeln!(out, "}}");
}

fn generate(spec: &Value) -> String {
    let mut out = String::from(
        "// SPDX-License-Identifier: GPL-2.0 OR MIT\n\n\
         //! Numbers of the generic netlink family `neonsan`, shared by the module and the command line.\n\
         //!\n\
         //! Made from `Documentation/netlink/specs/neonsan.yaml` by the test `tools/uapi/tests/spec.rs`,\n\
         //! which also notices when the two differ. Change the spec, not this file. It is part of the\n\
         //! interface between kernel and user space: numbers are only ever added, at the end.\n\n",
    );
    let _ = writeln!(
        out,
        "/// Name of the family.\npub const FAMILY_NAME: &str = \"{}\";\n",
        text(spec, "name").expect("name")
    );
    let _ = writeln!(
        out,
        "/// Version of the family.\npub const FAMILY_VERSION: u8 = 1;\n"
    );
    for definition in list(spec, "definitions") {
        match text(definition, "type").expect("type") {
            "const" => write_const(&mut out, definition),
            "enum" => write_enum(&mut out, definition),
            "flags" => write_flags(&mut out, definition),
            other => panic!("the spec has a definition of type {other}"),
        }
    }
    let _ = writeln!(out, "/// Commands and events.\npub mod cmd {{");
    let operations = spec.get("operations").expect("operations");
    for (index, operation) in list(operations, "list").iter().enumerate() {
        let name = text(operation, "name").expect("name");
        doc(&mut out, "    ", operation, name);
        let _ = writeln!(out, "    pub const {}: u8 = {};", upper(name), index + 1);
    }
    let _ = writeln!(out, "}}\n");
    let _ = writeln!(out, "/// Names of the multicast groups.\npub mod group {{");
    for group in list(spec.get("mcast-groups").expect("mcast-groups"), "list") {
        let name = text(group, "name").expect("name");
        let _ = writeln!(
            out,
            "    /// Every event.\n    pub const {}: &str = \"{name}\";",
            upper(name)
        );
    }
    let _ = writeln!(out, "}}\n");
    write_attributes(&mut out, spec);
    out
}

/// The text without what rustfmt decides: white space, and commas at the end of a list.
fn squeezed(text: &str) -> String {
    let text: String = text.split_whitespace().collect();
    text.replace(",]", "]")
}

#[test]
fn numbers_are_those_of_the_spec() {
    let spec = std::fs::read_to_string(root().join("Documentation/netlink/specs/neonsan.yaml"))
        .expect("the spec can be read");
    let spec: Value = serde_norway::from_str(&spec).expect("the spec is YAML");
    let made = generate(&spec);
    let path = root().join("drivers/block/neonsan/uapi.rs");
    if std::env::var_os("NEONSAN_UPDATE").is_some() {
        std::fs::write(&path, &made).expect("uapi.rs can be written");
        return;
    }
    let stored = std::fs::read_to_string(&path).expect("uapi.rs can be read");
    assert!(
        squeezed(&made) == squeezed(&stored),
        "drivers/block/neonsan/uapi.rs is not what the spec says; make it anew with NEONSAN_UPDATE=1"
    );
}

#[test]
fn tracepoints_show_the_names_of_the_spec() {
    let spec = std::fs::read_to_string(root().join("Documentation/netlink/specs/neonsan.yaml"))
        .expect("the spec can be read");
    let spec: Value = serde_norway::from_str(&spec).expect("the spec is YAML");
    let header = std::fs::read_to_string(root().join("drivers/block/neonsan/trace.h"))
        .expect("trace.h can be read");
    for (name, macro_name) in [
        ("op", "neonsan_show_op"),
        ("session-state", "neonsan_show_session_state"),
        ("connection-state", "neonsan_show_connection_state"),
    ] {
        let definition = list(&spec, "definitions")
            .iter()
            .find(|definition| text(definition, "name") == Some(name))
            .expect("the spec has the enum");
        let expected: Vec<String> = entries(definition)
            .iter()
            .enumerate()
            .map(|(value, (entry, _))| format!("{{ {value}, \"{entry}\" }}"))
            .collect();
        let start = header
            .find(&format!("#define {macro_name}("))
            .expect("the macro");
        // The macro goes on for as long as its lines end in a backslash.
        let body: Vec<&str> = header[start..]
            .split_inclusive('\n')
            .scan(true, |more, line| {
                let go_on = *more;
                *more = line.trim_end().ends_with('\\');
                go_on.then_some(line)
            })
            .collect();
        let body = body.concat();
        let found: Vec<String> = body
            .match_indices("{ ")
            .filter_map(|(at, _)| Some(body[at..=at + body[at..].find('}')?].to_owned()))
            .collect();
        assert_eq!(found, expected, "{macro_name}");
    }
}

#[test]
fn bounds_of_timeouts_are_those_of_the_session() {
    let spec = std::fs::read_to_string(root().join("Documentation/netlink/specs/neonsan.yaml"))
        .expect("the spec can be read");
    let spec: Value = serde_norway::from_str(&spec).expect("the spec is YAML");
    let set = list(&spec, "attribute-sets")
        .iter()
        .find(|set| text(set, "name") == Some("timeouts"))
        .expect("the spec has timeouts");
    let attributes = list(set, "attributes");
    let bounds = neonsan_session::Timeouts::BOUNDS;
    assert_eq!(attributes.len(), bounds.len());
    for (attribute, bound) in attributes.iter().zip(bounds) {
        assert_eq!(text(attribute, "name"), Some(bound.name));
        let check = |name| attribute.get("checks")?.get(name)?.as_u64();
        let max = u64::from(neonsan_session::MAX_TIMEOUT_MS);
        assert_eq!(check("max"), Some(max), "{}", bound.name);
        assert_eq!(
            check("min").unwrap_or(0),
            bound.min_ms.into(),
            "{}",
            bound.name
        );
    }
}
