// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Sizes and times as people write and read them.

/// Reads a size: a number of bytes, or a number with a unit. `K`, `M`, `G`, `T`, `P` (also written
/// `KiB`, …) are powers of 1024, `KB`, `MB`, … powers of 1000. With a unit it may have decimals, as in
/// `1.5G`, if whole blocks come out.
pub fn parse_size(text: &str) -> Result<u64, String> {
    const FORM: &str = "write a size as a number with a unit, as in 512M, 10GiB, 1.5T or 4096";
    const BLOCK: u128 = 512;
    let too_large = || "the size is larger than any volume can be".to_owned();
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let (base, power) = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => (1024, 0),
        "k" | "kib" => (1024, 1),
        "m" | "mib" => (1024, 2),
        "g" | "gib" => (1024, 3),
        "t" | "tib" => (1024, 4),
        "p" | "pib" => (1024, 5),
        "kb" => (1000, 1),
        "mb" => (1000, 2),
        "gb" => (1000, 3),
        "tb" => (1000, 4),
        "pb" => (1000, 5),
        _ if number.is_empty() => return Err(FORM.into()),
        _ => return Err(format!("'{unit}' is no unit of size: {FORM}")),
    };
    let (whole, decimals) = match number.split_once('.') {
        None => (number, ""),
        Some((_, decimals)) if decimals.is_empty() || decimals.contains('.') || power == 0 => {
            return Err(FORM.into())
        }
        Some((_, decimals)) if decimals.len() > 15 => {
            return Err(format!("{text} has more decimals than make sense: {FORM}"))
        }
        Some(parts) => parts,
    };
    if whole.is_empty() {
        return Err(FORM.into());
    }
    let digits: u128 = format!("{whole}{decimals}")
        .parse()
        .map_err(|_| too_large())?;
    let scale = 10_u128.pow(decimals.len() as u32);
    let product = digits
        .checked_mul(u128::pow(base, power))
        .ok_or_else(too_large)?;
    let bytes = product.div_ceil(scale);
    let is_whole = decimals.is_empty() || product % (scale * BLOCK) == 0;
    if bytes > i64::MAX as u128 {
        return Err(too_large());
    }
    if !is_whole {
        let next = bytes.next_multiple_of(4096);
        return Err(format!(
            "{text} does not come out at whole blocks: write the size without decimals, as in {next} \
             (bytes, the next that does)"
        ));
    }
    Ok(bytes as u64)
}

/// A size with the largest unit in which it has at least one whole; exact where that is short.
pub fn show_size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = 0;
    let mut scale = 1u64;
    while unit + 1 < UNITS.len() && bytes / scale >= 1024 {
        scale *= 1024;
        unit += 1;
    }
    if bytes % scale == 0 {
        format!("{} {}", bytes / scale, UNITS[unit])
    } else {
        format!("{:.2} {}", bytes as f64 / scale as f64, UNITS[unit])
    }
}

/// Reads a time in milliseconds: a number with `ms`, `s`, `m` or `h`; 0 needs no unit. Decimals
/// are allowed, as in `1.5s`.
pub fn parse_duration_ms(text: &str) -> Result<u32, String> {
    const FORM: &str = "write a time with its unit, as in 500ms, 5s, 2m or 1h; or 0";
    if text == "0" {
        return Ok(0);
    }
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale: u32 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "" => return Err(format!("'{text}' has no unit: {FORM}")),
        _ => return Err(format!("'{unit}' is no unit of time: {FORM}")),
    };
    let value: f64 = number.parse().map_err(|_| FORM.to_owned())?;
    let milliseconds = (value * f64::from(scale)).round();
    if milliseconds > f64::from(u32::MAX) {
        return Err("the longest time is about 49 days".into());
    }
    if milliseconds == 0.0 && value > 0.0 {
        return Err("the shortest time is 1ms".into());
    }
    Ok(milliseconds as u32)
}

/// Reads how long a node may give no sign of life, in milliseconds.
pub fn parse_api_timeout_ms(text: &str) -> Result<u32, String> {
    match parse_duration_ms(text)? {
        // No node keeps a connection to its control API for longer.
        milliseconds @ 1_000..=590_000 => Ok(milliseconds),
        _ => Err("write a time from 1s to 590s".into()),
    }
}

/// A time in the largest unit that keeps it exact enough to read.
pub fn show_duration_ms(milliseconds: u64) -> String {
    match milliseconds {
        0 => "0".into(),
        ms if ms < 1000 => format!("{ms}ms"),
        ms if ms < 60_000 && ms % 1000 == 0 => format!("{}s", ms / 1000),
        ms if ms < 60_000 => format!("{:.1}s", ms as f64 / 1000.0),
        ms if ms < 3_600_000 => show_two(ms / 60_000, "m", ms / 1000 % 60, "s"),
        ms if ms < 86_400_000 => show_two(ms / 3_600_000, "h", ms / 60_000 % 60, "m"),
        ms => show_two(ms / 86_400_000, "d", ms / 3_600_000 % 24, "h"),
    }
}

fn show_two(large: u64, large_unit: &str, small: u64, small_unit: &str) -> String {
    if small == 0 {
        format!("{large}{large_unit}")
    } else {
        format!("{large}{large_unit}{small}{small_unit}")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_binary_and_decimal_units() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("1K", 1024),
            ("1kib", 1024),
            ("1KB", 1000),
            ("10G", 10 << 30),
            ("2TiB", 2 << 40),
            ("7P", 7 << 50),
            ("1.5G", 3 << 29),
            ("0.5K", 512),
            ("2.048KB", 2048),
            ("1.50T", 3 << 39),
        ] {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
    }

    #[test]
    fn bad_sizes_say_how_to_write_one() {
        for text in [
            "", "G", "-1", "10Q", "1,5G", "ten", "1.5", "1.G", ".5G", "1.2.3G",
        ] {
            let error = parse_size(text).unwrap_err();
            assert!(error.contains("10GiB"), "{text}: {error}");
        }
        for (text, next) in [("1.3G", "1395867648"), ("0.1K", "4096"), ("1.5KB", "4096")] {
            let error = parse_size(text).unwrap_err();
            assert!(error.contains(next), "{text}: {error}");
        }
        let many = format!("0.{}G", "3".repeat(40));
        assert!(parse_size(&many).unwrap_err().contains("decimals"));
        for text in [
            "99999999999999999999",
            "9999999.9P",
            "8192P",
            "9223372036854775808",
        ] {
            assert!(parse_size(text).unwrap_err().contains("larger"), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_short() {
        for (bytes, text) in [
            (0, "0 B"),
            (512, "512 B"),
            (1024, "1 KiB"),
            (1536, "1.50 KiB"),
            (10 << 30, "10 GiB"),
            (u64::MAX, "16384.00 PiB"),
        ] {
            assert_eq!(show_size(bytes), text);
        }
    }

    #[test]
    fn times_need_a_unit() {
        for (text, ms) in [
            ("0", 0),
            ("1ms", 1),
            ("1.5s", 1500),
            ("2m", 120_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(parse_duration_ms(text).unwrap(), ms, "{text}");
        }
        for text in ["5", "s", "1d", "-1s", "1.2.3s", "0.1ms", "2000h"] {
            assert!(parse_duration_ms(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_node_is_given_some_time_and_not_for_ever() {
        for (text, ms) in [("1s", 1_000), ("90s", 90_000), ("590s", 590_000)] {
            assert_eq!(parse_api_timeout_ms(text).unwrap(), ms, "{text}");
        }
        for text in ["0", "999ms", "591s", "10m"] {
            let error = parse_api_timeout_ms(text).unwrap_err();
            assert_eq!(error, "write a time from 1s to 590s", "{text}");
        }
        assert!(parse_api_timeout_ms("5").unwrap_err().contains("no unit"));
    }

    #[test]
    fn times_are_shown_short() {
        for (ms, text) in [
            (0, "0"),
            (999, "999ms"),
            (5000, "5s"),
            (5250, "5.2s"),
            (90_000, "1m30s"),
            (7_200_000, "2h"),
            (90_000_000, "1d1h"),
        ] {
            assert_eq!(show_duration_ms(ms), text);
        }
    }
}
