//! The rule that divides a host's room among the tenants with ready tasks.

use crate::id::TenantId;

/// A tenant with ready tasks and how many of them this host would take at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The tenant.
    pub tenant: TenantId,
    /// The most it may be given now.
    pub cap: usize,
}

/// Divides `room` evenly among `claims`, none above its cap, what is left over going round again.
///
/// `claims` is in order of tenant, each tenant once. Sharing starts behind `after`, the tenant that was served
/// last, so with less room than tenants everyone has a turn within `claims.len() / room + 1` calls.
/// Returns the tenants that get something, in the order of sharing.
pub fn shares(claims: &[Claim], room: usize, after: Option<TenantId>) -> Vec<(TenantId, usize)> {
    let start = after.map_or(0, |last| claims.partition_point(|claim| claim.tenant <= last));
    let order: Vec<&Claim> = claims[start..].iter().chain(&claims[..start]).collect();
    let mut given = vec![0usize; order.len()];
    let mut room = room;
    loop {
        let open: Vec<usize> = (0..order.len()).filter(|&i| given[i] < order[i].cap).collect();
        if open.is_empty() || room == 0 {
            break;
        }
        let each = (room / open.len()).max(1);
        for i in open {
            let more = each.min(order[i].cap - given[i]).min(room);
            given[i] += more;
            room -= more;
        }
    }
    let served = order.iter().zip(given).filter(|(_, given)| *given > 0);
    served.map(|(claim, given)| (claim.tenant, given)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(caps: &[usize], room: usize, after: Option<i64>, expected: &[(i64, usize)]) {
        let claims: Vec<Claim> =
            caps.iter().enumerate().map(|(i, &cap)| Claim { tenant: TenantId(i as i64), cap }).collect();
        let got = shares(&claims, room, after.map(TenantId));
        let expected: Vec<_> = expected.iter().map(|&(tenant, n)| (TenantId(tenant), n)).collect();
        assert_eq!(got, expected, "caps {caps:?}, room {room}, after {after:?}");
    }

    #[test]
    fn room_is_divided_evenly_and_caps_hold() {
        check(&[], 10, None, &[]);
        check(&[5], 0, None, &[]);
        check(&[5], 10, None, &[(0, 5)]);
        check(&[100, 100], 10, None, &[(0, 5), (1, 5)]);
        check(&[2, 100], 10, None, &[(0, 2), (1, 8)]);
        check(&[0, 100], 10, None, &[(1, 10)]);
        check(&[9, 9, 9], 2, None, &[(0, 1), (1, 1)]);
        check(&[9, 9, 9], 2, Some(1), &[(2, 1), (0, 1)]);
        check(&[9, 9, 9], 2, Some(7), &[(0, 1), (1, 1)]);
    }

    proptest! {
        #[test]
        fn nobody_is_starved_and_nothing_is_invented(
            caps in prop::collection::vec(1usize..50, 1..40),
            room in 1usize..60,
        ) {
            let claims: Vec<Claim> = caps.iter().enumerate()
                .map(|(i, &cap)| Claim { tenant: TenantId(i as i64), cap }).collect();
            let mut served = std::collections::BTreeSet::new();
            let mut after = None;
            for _ in 0..=caps.len() / room {
                let round = shares(&claims, room, after);
                let total: usize = round.iter().map(|(_, n)| n).sum();
                prop_assert_eq!(total, room.min(caps.iter().sum()));
                for &(tenant, n) in &round {
                    prop_assert!(n <= caps[tenant.0 as usize]);
                    served.insert(tenant);
                }
                after = round.last().map(|&(tenant, _)| tenant);
            }
            prop_assert_eq!(served.len(), caps.len());
        }
    }
}
