// SPDX-License-Identifier: GPL-2.0 OR MIT

//! How virtual machines use a device.
//!
//! QEMU does not ask a host device for its block sizes, and a guest whose disk was made for other
//! sizes does not find its partition table: both sizes are always passed. A guest knows its disks by
//! their serial numbers, and QEMU gives them none.

use crate::device::Device;

/// The arguments of QEMU that make the device a disk of the guest.
///
/// `cache=none` keeps the host's page cache out, so a flush of the guest is one of the volume;
/// `discard=unmap` only where the volume can discard.
pub fn qemu_arguments(device: &Device) -> Vec<String> {
    let mut drive = format!(
        "file={},format=raw,if=none,id={},cache=none,aio=native",
        device.device, device.name
    );
    if discards(device) {
        drive.push_str(",discard=unmap");
    }
    if device.read_only {
        drive.push_str(",readonly=on");
    }
    let mut disk = format!(
        "virtio-blk-pci,drive={},logical_block_size={},physical_block_size={}",
        device.name, device.limits.logical_block_size, device.limits.physical_block_size
    );
    if let Some(serial) = serial(device) {
        disk.push_str(&format!(",serial={serial}"));
    }
    vec!["-drive".into(), drive, "-device".into(), disk]
}

/// The `<disk>` element of libvirt's domain XML that makes the device the guest's disk `target`.
pub fn libvirt_disk(device: &Device, target: &str) -> String {
    let discard = if discards(device) {
        " discard='unmap'"
    } else {
        ""
    };
    let read_only = if device.read_only {
        "  <readonly/>\n"
    } else {
        ""
    };
    let serial = match serial(device) {
        Some(serial) => format!("  <serial>{serial}</serial>\n"),
        None => String::new(),
    };
    format!(
        "<disk type='block' device='disk'>\n  \
           <driver name='qemu' type='raw' cache='none' io='native'{discard}/>\n  \
           <source dev='{source}'/>\n  \
           <target dev='{target}' bus='virtio'/>\n  \
           <blockio logical_block_size='{logical}' physical_block_size='{physical}'/>\n\
         {serial}{read_only}</disk>\n",
        source = escaped(&device.device),
        target = escaped(target),
        logical = device.limits.logical_block_size,
        physical = device.limits.physical_block_size,
    )
}

/// The serial number of the guest's disk, by which it finds the disk again (`/dev/disk/by-id`): the
/// beginning of the volume's identity, since virtio has room for 20 characters.
fn serial(device: &Device) -> Option<String> {
    let id = device.volume_id.as_deref()?;
    let digits = id.chars().filter(char::is_ascii_hexdigit);
    Some(digits.take(20).collect())
}

fn discards(device: &Device) -> bool {
    device.limits.discard_max > 0 && !device.read_only
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('\'', "&apos;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::tests::sample_message;
    use crate::netlink::Attrs;

    fn sample() -> Device {
        Device::parse(Attrs(sample_message().as_bytes()))
    }

    #[test]
    fn qemu_gets_both_block_sizes() {
        assert_eq!(
            qemu_arguments(&sample()),
            [
                "-drive",
                "file=/dev/neonsan3,format=raw,if=none,id=neonsan3,cache=none,aio=native,discard=unmap",
                "-device",
                "virtio-blk-pci,drive=neonsan3,logical_block_size=512,physical_block_size=4096,serial=22222222222222222222",
            ]
        );
    }

    #[test]
    fn a_read_only_device_stays_so() {
        let device = Device {
            read_only: true,
            ..sample()
        };
        assert!(qemu_arguments(&device)[1].ends_with("aio=native,readonly=on"));
        assert!(libvirt_disk(&device, "vda").contains("<readonly/>"));
    }

    #[test]
    fn libvirt_gets_both_block_sizes() {
        assert_eq!(
            libvirt_disk(&sample(), "vd'b"),
            "<disk type='block' device='disk'>\n  \
               <driver name='qemu' type='raw' cache='none' io='native' discard='unmap'/>\n  \
               <source dev='/dev/neonsan3'/>\n  \
               <target dev='vd&apos;b' bus='virtio'/>\n  \
               <blockio logical_block_size='512' physical_block_size='4096'/>\n  \
               <serial>22222222222222222222</serial>\n\
             </disk>\n"
        );
    }
}
