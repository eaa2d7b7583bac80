//! Whose connection it is: networks, the proxies that are believed, and what they say about whom they speak for.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU64;
use std::str::FromStr;

/// A network of addresses, such as `10.0.0.0/8` or `2001:db8::/32`; a lone address is a network of one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Network {
    /// Its first address, as IPv6 (IPv4 mapped).
    first: u128,
    /// So many leading bits of 128 are the network's.
    bits: u32,
}

/// A text that is no network.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is no network: write an address, or one with its prefix's length, such as 10.0.0.0/8")]
pub struct InvalidNetwork(String);

impl Network {
    /// Whether the address is in it. An IPv4 address is the same however it is written.
    pub fn contains(&self, address: IpAddr) -> bool {
        let differing = wide(address) ^ self.first;
        differing.leading_zeros() >= self.bits
    }
}

impl FromStr for Network {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let invalid = || InvalidNetwork(text.to_owned());
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| invalid())?;
        let (before, bits_max) = if address.is_ipv4() { (96, 32) } else { (0, 128) };
        let bits = match length {
            Some(length) if length.bytes().all(|byte| byte.is_ascii_digit()) => {
                length.parse().map_err(|_| invalid())?
            }
            Some(_) => return Err(invalid()),
            None => bits_max,
        };
        if bits > bits_max {
            return Err(invalid());
        }
        let bits = before + bits;
        let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
        let first = wide(address);
        // Bits beyond the prefix are a slip of the pen, and which of both was meant cannot be known.
        if first & !mask != 0 {
            return Err(invalid());
        }
        Ok(Self { first, bits })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Ipv6Addr::from(self.first).to_ipv4_mapped() {
            Some(v4) if self.bits >= 96 => write!(out, "{v4}/{}", self.bits - 96),
            _ => write!(out, "{}/{}", Ipv6Addr::from(self.first), self.bits),
        }
    }
}

/// The proxies that are believed. Everybody else speaks for themselves.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Proxies(Vec<Network>);

impl Proxies {
    /// Those in any of the networks.
    pub fn new(networks: Vec<Network>) -> Self {
        Self(networks)
    }

    /// Whether this one is believed.
    pub fn trusts(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(address))
    }

    /// Who is behind a connection, by the lines of `X-Forwarded-For` in their order. Goes back from the connection, hop
    /// by hop, as long as the hop is one of ours: what a stranger wrote there counts for nothing.
    pub fn client_behind<'l>(&self, connected: IpAddr, lines: impl DoubleEndedIterator<Item = &'l [u8]>) -> IpAddr {
        let mut address = connected.to_canonical();
        let mut hops = lines.rev().flat_map(|line| line.rsplit(|byte| *byte == b','));
        while self.trusts(address) {
            let Some(before) = hops.next().and_then(parse_hop) else { break };
            address = before;
        }
        address
    }
}

impl FromIterator<Network> for Proxies {
    fn from_iter<I: IntoIterator<Item = Network>>(networks: I) -> Self {
        Self(networks.into_iter().collect())
    }
}

/// An address; some proxies add the port, and brackets around IPv6.
fn parse_hop(hop: &[u8]) -> Option<IpAddr> {
    let hop = std::str::from_utf8(hop).ok()?.trim();
    let address =
        hop.parse::<IpAddr>().ok().or_else(|| hop.parse().map(|socket: std::net::SocketAddr| socket.ip()).ok());
    address.or_else(|| hop.strip_prefix('[')?.strip_suffix(']')?.parse().ok()).map(|address| address.to_canonical())
}

fn wide(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// Whom connections are counted for: an IPv4 address, or an IPv6 network of 64 bits, for who has one address there has
/// all of them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Neighbour(NonZeroU64);

impl Neighbour {
    /// The neighbour of an address.
    pub fn of(address: IpAddr) -> Self {
        let number = match address.to_canonical() {
            // The network ::/32 is nobody's, so that both kinds have their own numbers. (All of ::/64 is loopback.)
            IpAddr::V4(v4) => u64::from(v4.to_bits()),
            IpAddr::V6(v6) => (v6.to_bits() >> 64) as u64,
        };
        // Upside down, because the highest number is a multicast network, from which nothing comes, and 0 is loopback.
        Self(NonZeroU64::new(!number).unwrap_or(NonZeroU64::MIN))
    }

    fn number(self) -> u64 {
        !self.0.get()
    }
}

impl fmt::Display for Neighbour {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match u32::try_from(self.number()) {
            Ok(v4) => Ipv4Addr::from(v4).fmt(out),
            Err(_) => write!(out, "{}/64", Ipv6Addr::from(u128::from(self.number()) << 64)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn networks_hold_their_addresses_and_no_others() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
            ("192.0.2.7", "::ffff:192.0.2.7", "192.0.2.8"),
            ("0.0.0.0/0", "203.0.113.9", "2001:db8::1"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::"),
            ("::1", "::1", "::2"),
            ("::/0", "10.0.0.1", "10.0.0.1"),
        ] {
            let parsed: Network = network.parse().expect(network);
            assert!(parsed.contains(ip(inside)), "{inside} is in {network}");
            assert!(network == "::/0" || !parsed.contains(ip(outside)), "{outside} is not in {network}");
            assert_eq!(parsed.to_string().parse::<Network>().expect("its own form"), parsed);
        }
        for wrong in ["", "10.0.0.0/33", "10.0.0.1/8", "::/129", "10.0.0.0/+8", "10.0.0/8", "localhost", "10.0.0.0/"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_the_proxies_are_believed() {
        let seen = |connected: &str, trusted: &[&str], lines: &[&str]| {
            let proxies: Proxies = trusted.iter().map(|network| network.parse().expect("a network")).collect();
            proxies.client_behind(ip(connected), lines.iter().map(|line| line.as_bytes()))
        };
        let lines = ["203.0.113.9, 198.51.100.7", "10.0.0.2"];
        assert_eq!(seen("192.0.2.1", &[], &lines), ip("192.0.2.1"));
        assert_eq!(seen("10.0.0.1", &["10.0.0.0/24"], &lines), ip("198.51.100.7"));
        assert_eq!(seen("10.0.0.1", &["10.0.0.1"], &lines), ip("10.0.0.2"));
        assert_eq!(seen("192.0.2.1", &["10.0.0.0/8"], &lines), ip("192.0.2.1"), "a stranger speaks for nobody");
        assert_eq!(seen("::ffff:10.0.0.1", &["10.0.0.1"], &["[2001:db8::1]:4711"]), ip("2001:db8::1"));
        assert_eq!(seen("10.0.0.1", &["10.0.0.1"], &["203.0.113.9:80"]), ip("203.0.113.9"));
        for nonsense in [&["unknown"][..], &[""], &[","], &["203.0.113.9, _hidden"], &[]] {
            assert_eq!(seen("10.0.0.1", &["10.0.0.1"], nonsense), ip("10.0.0.1"), "{nonsense:?}");
        }
    }

    #[test]
    fn neighbours_are_one() {
        let of = |text| Neighbour::of(ip(text));
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.2"), of("192.0.2.1"));
        assert_ne!(of("::1"), of("192.0.2.1"));
        assert_eq!(size_of::<Option<Neighbour>>(), 8);
        assert_eq!(of("192.0.2.1").to_string(), "192.0.2.1");
        assert_eq!(of("2001:db8:1:2:3::1").to_string(), "2001:db8:1:2::/64");
    }
}
