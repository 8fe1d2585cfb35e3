// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The simulator can fail: each fault put in on purpose is found within a stated number of seeds.

use neonsan_sim::{run, Failure, Planted};

/// The first failure among the seeds below `bound`.
fn find(planted: Planted, bound: u64) -> Box<Failure> {
    let failure = (0..bound).find_map(|seed| run(seed, planted).err());
    let failure = failure.unwrap_or_else(|| panic!("{planted:?} stays hidden for {bound} seeds"));
    println!("{planted:?}: seed {}, {}", failure.seed, failure.what);
    assert!(
        run(failure.seed, Planted::Nothing).is_ok(),
        "the seed fails without the planted fault too"
    );
    failure
}

#[test]
fn letting_in_before_the_drain_is_found() {
    find(Planted::NoFencing, 100);
}

#[test]
fn letting_in_before_the_drain_is_found_by_the_bytes_alone() {
    let failure = find(Planted::StaleWrites, 400);
    assert!(failure.what.contains("reads as version"), "{failure}");
}

#[test]
fn resending_before_the_drain_is_found() {
    find(Planted::EarlyResend, 100);
}

#[test]
fn cookies_that_are_used_again_are_found() {
    find(Planted::ReusedCookies, 100);
}

#[test]
fn answering_twice_is_found() {
    find(Planted::DoubleAnswer, 30);
}

#[test]
fn a_flush_that_lies_is_found() {
    find(Planted::LyingFlush, 50);
}

#[test]
fn not_minding_another_boot_id_is_found() {
    find(Planted::IgnoredBootId, 50);
}

#[test]
fn a_loss_that_a_node_keeps_to_itself_is_found() {
    find(Planted::SilentLoss, 200);
}

#[test]
fn late_operations_of_a_node_that_lost_the_volume_are_found_by_the_bytes_alone() {
    let failure = find(Planted::NoBlocklist, 100);
    assert!(failure.what.contains("reads as version"), "{failure}");
}

#[test]
fn a_node_that_forgets_who_was_displaced_is_found() {
    find(Planted::ForgetfulNode, 800);
}
