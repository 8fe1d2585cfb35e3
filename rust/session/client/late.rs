// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What is to be done about a request that takes longer than the request timeout.

use super::{GateState, SlotState};

/// What a request that is looked at for its age asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Late {
    /// Nothing: it is not late, or it waits for something that has a timeout of its own.
    No,
    /// It should have been sent long ago. It is counted, and the work of its connection looks at it.
    Unsent,
    /// The node has it and does not answer. It is counted, and the connection is given up.
    GivenUp,
}

/// Judges a request that has been where it is for `age_ms`.
///
/// What is parked, and what waits while its connection is parked, waits for recovery, which has the
/// loss timeout. What waits to be sent is not given up for that: it has its turn when others do (a
/// deep queue on a slow link takes minutes, with the gate open whenever a thread is sending), and
/// those, or the silence of the node, have timeouts of their own. Still it is counted, so that it can
/// be seen, and the work of its connection looks at it.
pub fn judge_late(state: SlotState, gate: GateState, age_ms: u64, limit_ms: u64) -> Late {
    if age_ms < limit_ms {
        return Late::No;
    }
    match (state, gate) {
        (SlotState::InFlight | SlotState::Receiving, _) => Late::GivenUp,
        (SlotState::Queued, GateState::Open | GateState::Blocked | GateState::Window) => {
            Late::Unsent
        }
        (SlotState::Queued, GateState::Parked) | (SlotState::Free | SlotState::Parked, _) => {
            Late::No
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT_MS: u64 = 1000;
    const GATES: [GateState; 4] = [
        GateState::Open,
        GateState::Parked,
        GateState::Blocked,
        GateState::Window,
    ];

    fn judge(state: SlotState, gate: GateState, age_ms: u64) -> Late {
        judge_late(state, gate, age_ms, LIMIT_MS)
    }

    #[test]
    fn nothing_is_late_before_its_time() {
        let states = [
            SlotState::Free,
            SlotState::Queued,
            SlotState::InFlight,
            SlotState::Receiving,
            SlotState::Parked,
        ];
        for state in states {
            for gate in GATES {
                assert_eq!(judge(state, gate, LIMIT_MS - 1), Late::No);
            }
        }
    }

    #[test]
    fn what_the_node_has_is_given_up_at_the_limit() {
        for gate in GATES {
            assert_eq!(judge(SlotState::InFlight, gate, LIMIT_MS), Late::GivenUp);
            assert_eq!(judge(SlotState::Receiving, gate, LIMIT_MS), Late::GivenUp);
        }
    }

    #[test]
    fn a_request_behind_others_is_seen_and_kept() {
        for gate in [GateState::Open, GateState::Blocked, GateState::Window] {
            assert_eq!(judge(SlotState::Queued, gate, 100 * LIMIT_MS), Late::Unsent);
        }
    }

    #[test]
    fn what_waits_for_recovery_is_not_late() {
        let forever_ms = 100 * LIMIT_MS;
        for gate in GATES {
            assert_eq!(judge(SlotState::Parked, gate, forever_ms), Late::No);
            assert_eq!(judge(SlotState::Free, gate, forever_ms), Late::No);
        }
        assert_eq!(
            judge(SlotState::Queued, GateState::Parked, forever_ms),
            Late::No
        );
    }
}
