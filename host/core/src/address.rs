//! Which addresses of the network are public.
//!
//! Whoever lets others choose what a host connects to must know what those could not reach themselves: this machine, its
//! neighbours, and the services that clouds put beside it. What is not known to be public is not: an address counts only where
//! IANA's registries of special purposes leave it to the Internet. An address that carries one of version 4 is judged by that.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What of version 4 is not the Internet's: addresses, and how many of their first bits count.
const SPECIAL_V4: &[([u8; 4], u32)] = &[
    // This network.
    ([0, 0, 0, 0], 8),
    // Private, and shared between a provider and its customers.
    ([10, 0, 0, 0], 8),
    ([100, 64, 0, 0], 10),
    ([172, 16, 0, 0], 12),
    ([192, 168, 0, 0], 16),
    // This machine.
    ([127, 0, 0, 0], 8),
    // The neighbours, the metadata of clouds among them.
    ([169, 254, 0, 0], 16),
    // Protocols, documents, measurements, and relays to version 6.
    ([192, 0, 0, 0], 24),
    ([192, 0, 2, 0], 24),
    ([192, 31, 196, 0], 24),
    ([192, 52, 193, 0], 24),
    ([192, 88, 99, 0], 24),
    ([192, 175, 48, 0], 24),
    ([198, 18, 0, 0], 15),
    ([198, 51, 100, 0], 24),
    ([203, 0, 113, 0], 24),
    // Groups, and what is kept for later, with everybody on this network.
    ([224, 0, 0, 0], 4),
    ([240, 0, 0, 0], 4),
];
/// What of version 6 is the Internet's: `2000::/3`; and what of that is not.
const SPECIAL_V6: &[([u16; 2], u32)] = &[
    // Protocols, Teredo among them, which carries an address of version 4.
    ([0x2001, 0], 23),
    // Documents.
    ([0x2001, 0xdb8], 32),
    ([0x3fff, 0], 20),
    // 6to4, which carries an address of version 4.
    ([0x2002, 0], 16),
];
/// Behind this an address of version 4 stands in the last 32 bits, for networks that know version 6 only.
const TRANSLATED: [u16; 6] = [0x64, 0xff9b, 0, 0, 0, 0];

/// Whether an address is a public one.
pub fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let within = |(special, bits): &([u8; 4], u32)| {
        let apart = address.to_bits() ^ u32::from_be_bytes(*special);
        apart.leading_zeros() >= *bits
    };
    !SPECIAL_V4.iter().any(within)
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    if segments[..6] == TRANSLATED {
        let [_, _, _, _, _, _, high, low] = segments;
        return is_public_v4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    }
    let first = u32::from(segments[0]) << 16 | u32::from(segments[1]);
    let within = |([high, low], bits): &([u16; 2], u32)| {
        (first ^ (u32::from(*high) << 16 | u32::from(*low))).leading_zeros() >= *bits
    };
    segments[0] >> 13 == 1 && !SPECIAL_V6.iter().any(within)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: bool) {
        assert_eq!(is_public(text.parse().unwrap()), expected, "{text}");
    }

    #[test]
    fn special_addresses_are_not_public_up_to_their_edges() {
        for (first, last) in [
            ("0.0.0.0", "0.255.255.255"),
            ("10.0.0.0", "10.255.255.255"),
            ("100.64.0.0", "100.127.255.255"),
            ("127.0.0.0", "127.255.255.255"),
            ("169.254.0.0", "169.254.255.255"),
            ("172.16.0.0", "172.31.255.255"),
            ("192.0.0.0", "192.0.0.255"),
            ("192.0.2.0", "192.0.2.255"),
            ("192.168.0.0", "192.168.255.255"),
            ("198.18.0.0", "198.19.255.255"),
            ("198.51.100.0", "198.51.100.255"),
            ("203.0.113.0", "203.0.113.255"),
        ] {
            let bits = |text: &str| text.parse::<Ipv4Addr>().unwrap().to_bits();
            let (first, last) = (bits(first), bits(last));
            for inside in [first, first + 1, last - 1, last] {
                check(&Ipv4Addr::from_bits(inside).to_string(), false);
            }
            check(&Ipv4Addr::from_bits(last + 1).to_string(), true);
            if first > 0 {
                check(&Ipv4Addr::from_bits(first - 1).to_string(), true);
            }
        }
        for text in ["224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "192.88.99.1"] {
            check(text, false);
        }
    }

    #[test]
    fn public_addresses_are_public() {
        for text in [
            "1.1.1.1",
            "9.255.255.255",
            "140.82.112.34",
            "223.255.255.255",
            "2606:4700::1111",
            "2a00:1450::1",
        ] {
            check(text, true);
        }
    }

    #[test]
    fn of_version_6_only_the_internets_part_is_public() {
        for text in [
            "::",
            "::1",
            "::2",
            "100::1",
            "64:ff9b:1::1",
            "1fff::1",
            "2001::1",
            "2001:1ff:ffff::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:808:808::",
            "3fff::1",
            "3fff:fff::1",
            "4000::1",
            "5f00::1",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            check(text, false);
        }
        for text in ["2000::1", "2001:200::1", "2001:db7:ffff::1", "2001:db9::1", "2003::1", "3fff:1000::1"] {
            check(text, true);
        }
    }

    #[test]
    fn an_address_that_carries_one_of_version_4_is_judged_by_that() {
        for (text, expected) in [
            ("::ffff:127.0.0.1", false),
            ("::ffff:169.254.169.254", false),
            ("::ffff:1.1.1.1", true),
            ("64:ff9b::10.0.0.1", false),
            ("64:ff9b::1.1.1.1", true),
            // Compatible addresses, which nobody routes.
            ("::1.1.1.1", false),
        ] {
            check(text, expected);
        }
    }
}
