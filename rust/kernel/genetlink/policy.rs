// SPDX-License-Identifier: GPL-2.0

//! What attributes a request may have. The core checks it before an operation is called, and user
//! space can ask for it.

use neonsan_bindings as bindings;

/// What one attribute may be.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Check(bindings::nla_policy);

// SAFETY: Never changed, and nested policies are static.
unsafe impl Sync for Check {}

impl Check {
    const fn of(kind: u32, validation: u32, len: u16) -> bindings::nla_policy {
        let mut policy: bindings::nla_policy = pin_init::zeroed();
        policy.type_ = kind as u8;
        policy.validation_type = validation as u8;
        policy.len = len;
        policy
    }

    const fn ranged(kind: u32, min: i16, max: Option<i16>) -> Self {
        let (validation, max) = match max {
            Some(max) => (bindings::nla_policy_validation_NLA_VALIDATE_RANGE, max),
            None => (bindings::nla_policy_validation_NLA_VALIDATE_MIN, 0),
        };
        let mut policy = Self::of(kind, validation, 0);
        policy.__bindgen_anon_1.__bindgen_anon_1 =
            bindings::nla_policy__bindgen_ty_1__bindgen_ty_1 { min, max };
        Check(policy)
    }

    /// Not allowed.
    const REFUSED: Check = Check(Self::of(bindings::NLA_REJECT, 0, 0));

    /// Any `u32`.
    pub const fn u32() -> Self {
        Check(Self::of(bindings::NLA_U32, 0, 0))
    }

    /// A `u32` of at least `min`.
    pub const fn u32_min(min: i16) -> Self {
        Self::ranged(bindings::NLA_U32, min, None)
    }

    /// A `u32` from `min` to `max`.
    pub const fn u32_range(min: i16, max: i16) -> Self {
        Self::ranged(bindings::NLA_U32, min, Some(max))
    }

    /// A `u16` of at least `min`.
    pub const fn u16_min(min: i16) -> Self {
        Self::ranged(bindings::NLA_U16, min, None)
    }

    /// A `u32` in network byte order.
    pub const fn be32() -> Self {
        Check(Self::of(bindings::NLA_BE32, 0, 0))
    }

    /// There or not there.
    pub const fn flag() -> Self {
        Check(Self::of(bindings::NLA_FLAG, 0, 0))
    }

    /// A text of at most `max_bytes`.
    pub const fn string(max_bytes: u16) -> Self {
        Check(Self::of(bindings::NLA_STRING, 0, max_bytes))
    }

    /// Exactly this many bytes.
    pub const fn exact(bytes: i16) -> Self {
        Self::ranged(bindings::NLA_BINARY, bytes, Some(bytes))
    }

    /// Attributes of their own.
    pub const fn nested(policy: &'static Policy) -> Self {
        let mut check = Self::of(bindings::NLA_NESTED, 0, policy.maxattr() as u16);
        check.__bindgen_anon_1.nested_policy = policy.as_ptr();
        Check(check)
    }
}

/// The most attribute types that a [`Policy`] has room for.
const TYPES: usize = 40;

/// What attributes may be there. Those that are not named are refused.
///
/// # Invariants
///
/// `maxattr < TYPES`.
pub struct Policy {
    checks: [Check; TYPES],
    maxattr: u16,
}

impl Policy {
    /// A policy of attribute types and what each may be. For const context: panics if a type is
    /// too high.
    // Inline, so that no code is made of it: it runs at compile time only.
    #[inline]
    pub const fn new(checks: &[(u16, Check)]) -> Self {
        let mut policy = Policy {
            checks: [Check::REFUSED; TYPES],
            maxattr: 0,
        };
        let mut at = 0;
        while at < checks.len() {
            let (kind, check) = checks[at];
            assert!((kind as usize) < TYPES, "raise TYPES");
            policy.checks[kind as usize] = check;
            if kind > policy.maxattr {
                policy.maxattr = kind;
            }
            at += 1;
        }
        // INVARIANT: Each type was checked above.
        policy
    }

    pub(super) const fn as_ptr(&'static self) -> *const bindings::nla_policy {
        self.checks.as_ptr().cast()
    }

    pub(super) const fn maxattr(&self) -> u32 {
        self.maxattr as u32
    }
}
