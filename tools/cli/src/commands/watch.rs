// SPDX-License-Identifier: GPL-2.0 OR MIT

//! `neonsan watch`

use super::{parse_device_name, DeviceName};
use crate::cli::{Common, Watch};
use crate::error::{Error, Kind, Result};
use crate::netlink::{Client, Event};
use crate::output::{plain, print, print_json_line};
use crate::uapi::{self, attr, cmd};
use crate::units::{show_duration_ms, show_size};
use neonsan_api::show_time;
use serde::Serialize;
use std::time::{SystemTime, UNIX_EPOCH};

/// One event, as in Documentation/cli-json.rst.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Happened {
    event: &'static str,
    time_unix_ms: u64,
    device: Option<String>,
    index: Option<u32>,
    volume: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connection: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lost_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    at_risk_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fenced: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<&'static str>,
}

/// Prints events until enough were seen or the program is stopped.
pub fn run(common: &Common, args: &Watch) -> Result<()> {
    let only = match args.device.as_deref().map(parse_device_name) {
        None => None,
        Some(DeviceName::Index(index)) => Some(index),
        Some(DeviceName::Volume(_) | DeviceName::Unknown(_)) => {
            let name = args.device.as_deref().unwrap_or_default();
            let message = format!("'{name}' is no device");
            return Err(Error::new(Kind::Usage, message)
                .with_hint("write neonsan0, /dev/neonsan0 or 0; it need not be attached yet"));
        }
    };
    let mut client = Client::connect()?;
    client.subscribe()?;
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        let happened = match client.next_events()? {
            Some(events) => events.iter().filter_map(Happened::parse).collect(),
            None => vec![Happened {
                event: "events-lost",
                ..Happened::default()
            }],
        };
        for mut happened in happened {
            let wanted = only.is_none() || happened.index.is_none() || happened.index == only;
            if !wanted || left == 0 {
                continue;
            }
            left -= 1;
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            happened.time_unix_ms = now.as_millis().try_into().unwrap_or(u64::MAX);
            if common.json {
                print_json_line(&happened)?;
            } else {
                print(&happened.show())?;
            }
        }
    }
    Ok(())
}

impl Happened {
    /// Reads an event; `None` for one that this program does not know.
    fn parse(event: &Event) -> Option<Self> {
        use attr::device as a;
        let name = match event.cmd {
            cmd::ATTACHED => "attached",
            cmd::DETACHED => "detached",
            cmd::CONNECTION_LOST => "connection-lost",
            cmd::CONNECTION_RECOVERED => "connection-recovered",
            cmd::FAILED => "failed",
            cmd::RESIZED => "resized",
            cmd::GOING_AWAY => "going-away",
            cmd::DATA_AT_RISK => "data-at-risk",
            cmd::SUSPENDED => "suspended",
            cmd::RESUMED => "resumed",
            cmd::STILL_LOST => "still-lost",
            cmd::SHRUNK => "shrunk",
            _ => return None,
        };
        let attrs = event.attrs();
        Some(Happened {
            event: name,
            time_unix_ms: 0,
            device: attrs.text(a::NAME).map(|name| format!("/dev/{name}")),
            index: attrs.u32(a::INDEX),
            volume: attrs.text(a::VOLUME),
            connection: attrs.u32(a::CONNECTION_INDEX),
            lost_ms: attrs.number(a::LOST_MS),
            size_bytes: attrs.number(a::SIZE).or(attrs.number(a::SHRUNK_SIZE)),
            message: attrs.text(a::MESSAGE),
            at_risk_bytes: attrs.number(a::AT_RISK_BYTES),
            fenced: attrs.text(a::FENCED),
            mode: attrs
                .u32(a::SUSPEND)
                .and_then(uapi::SuspendMode::from_raw)
                .map(uapi::SuspendMode::name),
        })
    }

    fn show(&self) -> String {
        let time = show_time(self.time_unix_ms / 1000);
        let mut line = format!("{time}  {}", self.event);
        for (before, part) in [
            ("  ", self.device.clone()),
            ("  ", self.volume.clone()),
            (
                "  connection ",
                self.connection.map(|index| index.to_string()),
            ),
            ("  lost for ", self.lost_ms.map(show_duration_ms)),
            ("  ", self.size_bytes.map(show_size)),
            ("  ", self.message.clone()),
            ("  ", self.mode.map(str::to_owned)),
            ("  fenced: ", self.fenced.clone()),
        ] {
            if let Some(part) = part {
                line.push_str(before);
                line.push_str(&plain(&part));
            }
        }
        line.push('\n');
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_what_the_event_has() {
        let lost = Happened {
            event: "connection-lost",
            time_unix_ms: 86_400_000 + 3_723_004,
            device: Some("/dev/neonsan0".into()),
            volume: Some("p/v".into()),
            connection: Some(2),
            message: Some("reset by the node".into()),
            ..Happened::default()
        };
        assert_eq!(
            lost.show(),
            "1970-01-02 01:02:03 UTC  connection-lost  /dev/neonsan0  p/v  connection 2  reset by the node\n"
        );
        let still_lost = Happened {
            event: "still-lost",
            device: Some("/dev/neonsan0".into()),
            lost_ms: Some(35_000),
            message: Some("no answer".into()),
            ..Happened::default()
        };
        assert_eq!(
            still_lost.show(),
            "1970-01-01 00:00:00 UTC  still-lost  /dev/neonsan0  lost for 35s  no answer\n"
        );
    }
}
