// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Names of the kernel's functions.

use std::io;
use std::path::Path;

/// One function.
struct Symbol {
    address: u64,
    name: String,
    module: Option<String>,
}

/// All of them, by address.
pub struct Symbols(Vec<Symbol>);

/// The name that stands for all of user space: programs share its addresses.
pub const USER: &str = "[user]";

impl Symbols {
    /// Reads a copy of /proc/kallsyms.
    pub fn read(path: &Path) -> io::Result<Self> {
        let text = std::fs::read_to_string(path)?;
        let mut symbols: Vec<Symbol> = text.lines().filter_map(Symbol::parse).collect();
        symbols.sort_by_key(|s| s.address);
        // Of several names for one place the first that is listed stays.
        symbols.dedup_by_key(|s| s.address);
        Ok(Symbols(symbols))
    }

    /// The function at an address, and its module.
    pub fn find(&self, address: u64) -> (&str, Option<&str>) {
        if address >> 63 == 0 {
            return (USER, None);
        }
        let after = self.0.partition_point(|s| s.address <= address);
        match after.checked_sub(1).and_then(|at| self.0.get(at)) {
            Some(symbol) => (&symbol.name, symbol.module.as_deref()),
            None => ("[unknown]", None),
        }
    }
}

impl Symbol {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        let is_code = matches!(words.next()?, "t" | "T" | "w" | "W");
        let name = words.next()?;
        if !is_code || address >> 63 == 0 || name.starts_with("__pfx_") {
            return None;
        }
        let module = words.next().map(|m| m.trim_matches(['[', ']']).to_owned());
        Some(Symbol {
            address,
            name: demangle(name),
            module,
        })
    }
}

/// The path in a Rust symbol (v0 mangling), without crates' hashes and generic arguments; other
/// names as they are. For people: parts that it does not know are left out.
fn demangle(name: &str) -> String {
    if !name.starts_with("_R") {
        return name.to_owned();
    }
    let bytes = name.as_bytes();
    let mut parts: Vec<&str> = Vec::new();
    let mut at = 2;
    while at < bytes.len() {
        if bytes[at] == b's' {
            // A disambiguator: s BASE62 _
            if let Some(end) = name[at..].find('_') {
                let digits = &name[at + 1..at + end];
                if digits.bytes().all(|b| b.is_ascii_alphanumeric()) && digits.len() < 13 {
                    at += end + 1;
                    continue;
                }
            }
        }
        if !bytes[at].is_ascii_digit() {
            at += 1;
            continue;
        }
        let digits = name[at..].bytes().take_while(u8::is_ascii_digit).count();
        let len: usize = name[at..at + digits].parse().unwrap_or(0);
        let mut start = at + digits;
        if bytes.get(start) == Some(&b'_') {
            start += 1;
        }
        match name.get(start..start + len) {
            Some(part) if len > 0 => {
                parts.push(part);
                at = start + len;
            }
            _ => at += digits,
        }
    }
    if parts.is_empty() {
        name.to_owned()
    } else {
        parts.join("::")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rust_names_become_paths() {
        let mangled = "_RNvMs_NtCs123_7neonsan8transmitNtB4_10Connection8transmit";
        assert!(demangle(mangled).starts_with("neonsan::transmit"));
        assert_eq!(demangle("tcp_sendmsg"), "tcp_sendmsg");
    }

    #[test]
    fn addresses_belong_to_the_function_before_them() {
        let symbols = Symbols(
            [
                "ffffffff81000000 T first",
                "ffffffff81000010 t second\t[nbd]",
                "ffffffff81000020 d data",
            ]
            .iter()
            .filter_map(|line| Symbol::parse(line))
            .collect(),
        );
        assert_eq!(symbols.find(0xffff_ffff_8100_000f), ("first", None));
        assert_eq!(symbols.find(0xffff_ffff_8100_0030), ("second", Some("nbd")));
        assert_eq!(symbols.find(0x5555_5555_4000), (USER, None));
    }
}
