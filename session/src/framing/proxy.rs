//! The PROXY protocol, version 2: what a proxy that passes bytes on says before them about the client's address.
//!
//! Source: the HAProxy project's "The PROXY protocol", section 2.2. Version 1 (text) is not spoken.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What every header begins with: bytes that no HTTP request and no TLS hello begins with.
pub const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The fixed part: signature, version and command, family, and the length of the rest.
pub const FIXED_BYTES: usize = 16;
/// The longest rest that is read. Addresses take 36 bytes at most here; the remainder are extensions that are skipped.
pub const REST_BYTES_MAX: usize = 2_048;

/// Why a header is refused. The connection is closed without an answer: whoever is there does not speak for a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidHeader {
    /// The first bytes are something else.
    #[error("no PROXY v2 header")]
    Signature,
    /// A version or command that is not of this version.
    #[error("a PROXY header of another version")]
    Version,
    /// The rest is longer than [`REST_BYTES_MAX`].
    #[error("a PROXY header that is too long")]
    TooLong,
    /// The rest is shorter than its addresses.
    #[error("a PROXY header without its addresses")]
    TooShort,
}

/// The fixed part of a header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fixed {
    local: bool,
    family: u8,
    /// So many bytes follow.
    pub rest_bytes: usize,
}

impl Fixed {
    /// Reads the first [`FIXED_BYTES`] of a connection.
    pub fn parse(bytes: &[u8; FIXED_BYTES]) -> Result<Self, InvalidHeader> {
        if bytes[..12] != SIGNATURE {
            return Err(InvalidHeader::Signature);
        }
        let local = match bytes[12] {
            0x20 => true,
            0x21 => false,
            _ => return Err(InvalidHeader::Version),
        };
        let rest_bytes = usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
        if rest_bytes > REST_BYTES_MAX {
            return Err(InvalidHeader::TooLong);
        }
        Ok(Self { local, family: bytes[13], rest_bytes })
    }

    /// Reads the rest: whom the proxy speaks for, or nobody where it speaks for itself (its own health checks) or the
    /// client has no IP address.
    pub fn source(self, rest: &[u8]) -> Result<Option<SocketAddr>, InvalidHeader> {
        let port = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
        match self.family {
            _ if self.local => Ok(None),
            // TCP over IPv4: two addresses, two ports.
            0x11 => {
                let octets = rest.first_chunk::<4>().filter(|_| rest.len() >= 12).ok_or(InvalidHeader::TooShort)?;
                Ok(Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::from(*octets)), port(8))))
            }
            // TCP over IPv6.
            0x21 => {
                let octets = rest.first_chunk::<16>().filter(|_| rest.len() >= 36).ok_or(InvalidHeader::TooShort)?;
                Ok(Some(SocketAddr::new(IpAddr::V6(Ipv6Addr::from(*octets)), port(32))))
            }
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([command, family]);
        bytes.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
        bytes.extend(rest);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Option<SocketAddr>, InvalidHeader> {
        let fixed = Fixed::parse(bytes.first_chunk().unwrap())?;
        fixed.source(&bytes[FIXED_BYTES..FIXED_BYTES + fixed.rest_bytes])
    }

    #[test]
    fn the_source_is_the_client() {
        let v4 = [203, 0, 113, 9, 192, 0, 2, 1, 0x12, 0x67, 0x1f, 0x90];
        assert_eq!(read(&header(0x21, 0x11, &v4)), Ok(Some("203.0.113.9:4711".parse().unwrap())));
        let mut extended = v4.to_vec();
        extended.extend([0x04, 0, 3, 1, 2, 3]);
        assert_eq!(read(&header(0x21, 0x11, &extended)), Ok(Some("203.0.113.9:4711".parse().unwrap())));
        let mut v6 = "2001:db8::9".parse::<Ipv6Addr>().unwrap().octets().to_vec();
        v6.extend([0; 16]);
        v6.extend([0x12, 0x67, 0, 80]);
        assert_eq!(read(&header(0x21, 0x21, &v6)), Ok(Some("[2001:db8::9]:4711".parse().unwrap())));
        assert_eq!(read(&header(0x20, 0x11, &v4)), Ok(None), "the proxy's own connection");
        assert_eq!(read(&header(0x21, 0x00, &[])), Ok(None), "an address that is not told");
        assert_eq!(read(&header(0x21, 0x31, &[0; 216])), Ok(None), "a local socket");
    }

    #[test]
    fn what_is_no_header_is_refused() {
        assert_eq!(read(b"GET /v1/connect "), Err(InvalidHeader::Signature));
        assert_eq!(read(&header(0x11, 0x11, &[0; 12])), Err(InvalidHeader::Version));
        assert_eq!(read(&header(0x22, 0x11, &[0; 12])), Err(InvalidHeader::Version));
        assert_eq!(read(&header(0x21, 0x11, &[0; 11])), Err(InvalidHeader::TooShort));
        assert_eq!(read(&header(0x21, 0x21, &[0; 35])), Err(InvalidHeader::TooShort));
        assert_eq!(
            Fixed::parse(header(0x21, 0x11, &[0; 2_049])[..16].first_chunk().unwrap()),
            Err(InvalidHeader::TooLong)
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(command: u8, family: u8, rest in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = read(&header(command, family, &rest));
        }
    }
}
