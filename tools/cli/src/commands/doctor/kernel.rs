// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The kernel, and the module for it.

use super::Report;
use crate::netlink::Client;
use crate::root::Root;
use std::cmp::Ordering;

/// The first release of Linux for which the module builds.
const FIRST: (u32, u32) = (7, 2);

/// Looks at both. `is_here`: of the machine that this runs on.
pub(super) fn look(report: &mut Report, root: &Root, is_here: bool) {
    let release = root.text("/proc/sys/kernel/osrelease");
    let Some(release) = release.filter(|release| !release.is_empty()) else {
        let advice = "mount proc: mount -t proc proc /proc";
        report.warning("kernel", "which kernel runs is not to be seen", advice);
        return;
    };
    let is_loaded = root.path("/sys/module/neonsan").exists();
    look_at_kernel(report, root, &release, is_loaded);
    match is_loaded {
        true => look_at_loaded(report, root, &release, is_here),
        false => look_for_module(report, root, &release),
    }
    look_at_next_kernel(report, root, &release);
}

/// The newest kernel is booted next unless somebody chooses another one, and may have come without anybody
/// thinking of the module: that is said before volumes are missed.
fn look_at_next_kernel(report: &mut Report, root: &Root, running: &str) {
    let boot = root.names("/boot").into_iter();
    let images = boot.filter_map(|name| name.strip_prefix("vmlinuz-").map(str::to_owned));
    let modules = root.names("/lib/modules").into_iter();
    let with_image = |release: &String| {
        let path = root.path(&format!("/lib/modules/{release}/vmlinuz"));
        path.exists()
    };
    let installed = images.chain(modules.filter(with_image));
    // Distributions' kernels to rescue a machine with are no newer ones.
    let installed = installed.filter(|release| !release.contains("rescue"));
    let Some(next) = installed.max_by(|a, b| compare_versions(a, b)) else {
        return;
    };
    if compare_versions(&next, running).is_le() || module_file(root, &next).is_some() {
        return;
    }
    let message = format!(
        "the newest kernel that is installed, {next}, has no module neonsan: booted with it, which the next \
         boot does unless another one is chosen, this host has no volumes"
    );
    let config = root.text(&format!("/boot/config-{next}"));
    let advice = match config.is_none_or(|text| text.lines().any(|line| line == "CONFIG_RUST=y")) {
        true => format!(
            "before the next boot install neonsan-modules-{next}, or neonsan-dkms and linux-headers-{next} \
             (`dkms status neonsan` shows for which kernels that has built one)"
        ),
        false => format!(
            "that kernel was built without Rust (CONFIG_RUST) and can have none: remove it, or choose {running} \
             for the next boot (grub-reboot)"
        ),
    };
    report.warning("kernel", message, &advice);
}

/// Orders releases of kernels as boot loaders and dpkg do: runs of digits by their value, what is between by
/// its characters, letters first.
fn compare_versions(a: &str, b: &str) -> Ordering {
    let weight = |byte: Option<u8>| match byte {
        None => 0,
        Some(b'~') => -1,
        Some(byte) if byte.is_ascii_alphabetic() => i32::from(byte),
        Some(byte) => i32::from(byte) + 256,
    };
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        let text = |s: &[u8]| s.iter().take_while(|byte| !byte.is_ascii_digit()).count();
        let (a_text, b_text) = (text(a), text(b));
        for at in 0..a_text.max(b_text) {
            let of = |s: &[u8], length| s.get(at).filter(|_| at < length).copied();
            match weight(of(a, a_text)).cmp(&weight(of(b, b_text))) {
                Ordering::Equal => {}
                order => return order,
            }
        }
        (a, b) = (&a[a_text..], &b[b_text..]);
        let digits = |s: &[u8]| s.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (a_digits, b_digits) = (digits(a), digits(b));
        let value = |s: &[u8]| {
            let zeroes = s.iter().take_while(|byte| **byte == b'0').count();
            (s.len() - zeroes, s[zeroes..].to_vec())
        };
        match value(&a[..a_digits]).cmp(&value(&b[..b_digits])) {
            Ordering::Equal if a_digits == a.len() && b_digits == b.len() => {
                return Ordering::Equal
            }
            Ordering::Equal => {}
            order => return order,
        }
        (a, b) = (&a[a_digits..], &b[b_digits..]);
    }
}

fn look_at_kernel(report: &mut Report, root: &Root, release: &str, is_loaded: bool) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next().and_then(|number| number.parse::<u32>().ok());
    let version = next().zip(next());
    // A module that runs needs no more than this kernel.
    if !is_loaded && version.is_some_and(|version| version < FIRST) {
        let (major, minor) = FIRST;
        report.problem(
            "kernel",
            format!("this is Linux {release}, and the module needs {major}.{minor} or newer"),
            "on Debian 13 install linux-image-amd64 from trixie-backports and boot it",
        );
        return;
    }
    let config = [
        format!("/boot/config-{release}"),
        format!("/usr/lib/modules/{release}/config"),
        format!("/lib/modules/{release}/build/.config"),
    ];
    let config = config.iter().find_map(|path| root.text(path));
    let has_rust = config.map(|text| text.lines().any(|line| line == "CONFIG_RUST=y"));
    match has_rust {
        _ if is_loaded => report.ok("kernel", format!("Linux {release}")),
        Some(true) => report.ok("kernel", format!("Linux {release}, built with Rust")),
        Some(false) => report.problem(
            "kernel",
            format!("Linux {release} was built without Rust (CONFIG_RUST)"),
            "boot a kernel that has it, such as Debian's from trixie-backports",
        ),
        None => report.warning(
            "kernel",
            format!("Linux {release}; whether it was built with Rust is not to be seen"),
            "look for CONFIG_RUST=y in its configuration",
        ),
    }
}

/// The file of the module for a kernel: the name, and where.
fn module_file(root: &Root, release: &str) -> Option<String> {
    let directory = format!("/lib/modules/{release}");
    ["updates", "updates/dkms", "extra", "kernel/drivers/block"]
        .iter()
        .flat_map(|place| {
            let directory = format!("{directory}/{place}");
            let names = root.names(&directory).into_iter();
            let ours = names.filter(|name| {
                let rest = name.strip_prefix("neonsan.ko");
                rest.is_some_and(|rest| matches!(rest, "" | ".xz" | ".zst" | ".gz"))
            });
            ours.map(move |name| format!("{directory}/{name}"))
        })
        .next()
}

/// The kernel for which a module was built, as its file says; of a compressed one it is not looked at.
fn made_for(root: &Root, file: &str) -> Option<String> {
    const MARK: &[u8] = b"\0vermagic=";
    let bytes = file
        .ends_with(".ko")
        .then(|| std::fs::read(root.path(file)))?;
    let bytes = bytes.ok()?;
    let at = bytes
        .windows(MARK.len())
        .position(|window| window == MARK)?;
    let text = bytes.get(at + MARK.len()..)?;
    let end = text.iter().position(|byte| *byte == b' ' || *byte == 0)?;
    Some(String::from_utf8_lossy(&text[..end]).into_owned())
}

fn look_for_module(report: &mut Report, root: &Root, release: &str) {
    let Some(file) = module_file(root, release) else {
        let others = root.names("/lib/modules").into_iter();
        let others: Vec<_> = others.filter(|r| module_file(root, r).is_some()).collect();
        let message = match others.is_empty() {
            true => format!("there is no module neonsan for this kernel ({release})"),
            false => format!(
                "there is no module neonsan for this kernel ({release}); there is for {}",
                others.join(", ")
            ),
        };
        let advice =
            "install neonsan-dkms or the package neonsan-modules for this kernel, or build it \
                      (make module KERNEL=running), or boot another kernel";
        report.problem("module", message, advice);
        return;
    };
    if let Some(other) = made_for(root, &file).filter(|made_for| made_for != release) {
        let message =
            format!("{file} was built for the kernel {other}, and is not loaded by this one");
        let advice = format!(
            "build it anew (make module KERNEL={release}), or install the package for this kernel"
        );
        report.problem("module", message, &advice);
        return;
    }
    let lockdown = root.text("/sys/kernel/security/lockdown");
    if lockdown.is_some_and(|mode| !mode.contains("[none]")) {
        report.warning(
            "module",
            format!("{file} is not loaded, and this kernel loads signed modules only (lockdown)"),
            "sign it with a key that the firmware knows (mokutil), or turn Secure Boot off",
        );
        return;
    }
    // depmod has seen it, or modprobe does not find it.
    let listed = root.text(&format!("/lib/modules/{release}/modules.dep"));
    match listed.is_some_and(|text| text.contains("neonsan.ko")) {
        true => report.warning(
            "module",
            format!("not loaded; {file} is there"),
            "modprobe neonsan; the unit neonsan@NAME does that by itself",
        ),
        false => report.problem(
            "module",
            format!("{file} is there, but modprobe does not know of it"),
            "depmod, then modprobe neonsan",
        ),
    }
}

fn look_at_loaded(report: &mut Report, root: &Root, release: &str, is_here: bool) {
    if root.text("/sys/module/neonsan/initstate").as_deref() == Some("going") {
        let message = "it is being unloaded, which waits for its devices";
        report.problem("module", message, "neonsan list shows them; detach them");
        return;
    }
    if is_here {
        if let Err(error) = Client::connect() {
            report.error("module", &error);
            return;
        }
    }
    // The identity of what runs stands in the file that it was loaded from.
    let file = module_file(root, release);
    let note = std::fs::read(root.path("/sys/module/neonsan/notes/.note.gnu.build-id"));
    let bytes = file.as_ref().filter(|file| file.ends_with(".ko"));
    let bytes = bytes.and_then(|file| std::fs::read(root.path(file)).ok());
    let is_same = match (&note, &bytes) {
        (Ok(note), Some(bytes)) if !note.is_empty() => {
            Some(bytes.windows(note.len()).any(|window| window == note))
        }
        _ => None,
    };
    match (file, is_same) {
        (Some(file), Some(false)) => report.warning(
            "module",
            format!("loaded, but {file} is another one"),
            "nothing is wrong; to use that one, detach all devices, then modprobe -r neonsan and \
             modprobe neonsan",
        ),
        (None, _) => report.warning(
            "module",
            format!(
                "loaded, but there is none for this kernel ({release}) to load at the next boot"
            ),
            "install neonsan-dkms or the package neonsan-modules for this kernel",
        ),
        _ => report.ok("module", "loaded"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_ordered_as_boot_loaders_do() {
        let ordered = [
            "6.12.48+deb13-amd64",
            "7.2.12-amd64",
            "7.3~rc4-amd64",
            "7.3.4+deb13-amd64",
            "7.3.4+deb13-cloud-amd64",
            "7.3.4+deb13.1-amd64",
            "7.3.10+deb13-amd64",
            "7.10.0-1-amd64",
        ];
        for (i, a) in ordered.iter().enumerate() {
            for (j, b) in ordered.iter().enumerate() {
                assert_eq!(compare_versions(a, b), i.cmp(&j), "{a} {b}");
            }
        }
        assert_eq!(compare_versions("7.03", "7.3"), Ordering::Equal);
        assert_eq!(compare_versions("", ""), Ordering::Equal);
    }
}
