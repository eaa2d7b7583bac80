//! The crowd's side of TLS: rustls over sockets that never block.

use std::io::{ErrorKind, Read};
use std::path::Path;
use std::sync::Arc;

use mio::net::TcpStream;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use crate::Result;

/// For whom the bench's certificate is.
pub const SERVER_NAME: &str = "localhost";

/// Trusts one certificate only.
pub fn trusting(certificate: &Path) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate)?)?;
    Ok(Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()))
}

/// A connection whose handshake begins with the first write.
pub fn begin(config: &Arc<ClientConfig>) -> Box<ClientConnection> {
    let name = ServerName::try_from(SERVER_NAME).expect("it is a name");
    Box::new(ClientConnection::new(Arc::clone(config), name).expect("the configuration is complete"))
}

/// Writes what waits. A socket of ours has room for the little that we say.
pub fn flush(tls: &mut ClientConnection, stream: &mut TcpStream) -> std::io::Result<()> {
    while tls.wants_write() {
        tls.write_tls(stream)?;
    }
    Ok(())
}

/// Deciphers what has come; `WouldBlock` where there is no more.
pub fn read(tls: &mut ClientConnection, stream: &mut TcpStream, buffer: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match tls.reader().read(buffer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            result => return result,
        }
        if tls.read_tls(stream)? == 0 {
            return Ok(0);
        }
        tls.process_new_packets().map_err(std::io::Error::other)?;
        flush(tls, stream)?;
    }
}
