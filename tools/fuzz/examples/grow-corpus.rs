// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Grows the committed corpus: keeps the seeds, and every changed input that makes a target do
//! something which no input before it did.
//! `cargo run --release -p neonsan-fuzz --example grow-corpus [SECONDS]`

use neonsan_fuzz::random::Random;
use neonsan_fuzz::targets::TARGETS;
use std::collections::{BTreeSet, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::Path;
use std::time::{Duration, Instant};

const MAX_FILES: usize = 150;
const MAX_BYTES: usize = 3000;

fn main() -> std::io::Result<()> {
    let seconds = std::env::args()
        .nth(1)
        .and_then(|s| s.parse().ok())
        .unwrap_or(5);
    for target in TARGETS {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("corpus")
            .join(target.name);
        std::fs::create_dir_all(&dir)?;
        let mut inputs: Vec<Vec<u8>> = Vec::new();
        for entry in std::fs::read_dir(&dir)? {
            inputs.push(std::fs::read(entry?.path())?);
        }
        inputs.extend((target.seeds)());
        let mut seen = BTreeSet::new();
        let mut kept: Vec<Vec<u8>> = Vec::new();
        for input in inputs {
            if seen.insert((target.run)(&input)) && input.len() <= MAX_BYTES {
                kept.push(input);
            }
        }
        let mut random = Random::new(kept.len() as u64);
        let begun = Instant::now();
        while kept.len() < MAX_FILES && begun.elapsed() < Duration::from_secs(seconds) {
            let mut input = kept[random.below(kept.len())].clone();
            random.mutate(&mut input);
            if input.len() <= MAX_BYTES && seen.insert((target.run)(&input)) {
                kept.push(input);
            }
        }
        let mut names = HashSet::new();
        for input in &kept {
            let mut hasher = DefaultHasher::new();
            input.hash(&mut hasher);
            let name = format!("{:016x}", hasher.finish());
            std::fs::write(dir.join(&name), input)?;
            names.insert(name);
        }
        for entry in std::fs::read_dir(&dir)? {
            let entry = entry?;
            if !names.contains(entry.file_name().to_string_lossy().as_ref()) {
                std::fs::remove_file(entry.path())?;
            }
        }
        println!("{}: {} files", target.name, kept.len());
    }
    Ok(())
}
