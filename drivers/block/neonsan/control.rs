// SPDX-License-Identifier: GPL-2.0
//! Placeholder of K1 until K2's control.rs lands (overwrite it).
use crate::device::Device;
pub fn event_attached(_: &Device) {}
pub fn event_detached(_: &Device) {}
pub fn event_connection_lost(_: &Device, _: u32, _: &str) {}
pub fn event_connection_recovered(_: &Device, _: u32) {}
pub fn event_failed(_: &Device, _: &str) {}
pub fn event_resized(_: &Device, _: u64) {}
pub fn event_going_away(_: &Device, _: &str) {}
pub fn event_data_at_risk(_: &Device, _: &str) {}
