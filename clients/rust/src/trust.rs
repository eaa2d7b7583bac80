//! Which servers are believed to be who they say: TLS's side of a client.

use std::io;
use std::sync::{Arc, OnceLock};

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Why certificates cannot be trusted.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TrustError {
    /// The text holds none.
    #[error("no certificate in PEM that can be trusted: {0}")]
    Unusable(String),
}

/// Which certificates are trusted: those that this system trusts, and what is added. Clones share what they learn about
/// servers, so that connections after the first are quicker.
#[derive(Clone, Debug, Default)]
pub struct Trust(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    added: Vec<CertificateDer<'static>>,
    config: OnceLock<Arc<ClientConfig>>,
}

impl Trust {
    /// Also trusts the certificates of a text in PEM: a private authority's, or a server's own.
    pub fn with_certificates(pem: &[u8]) -> Result<Self, TrustError> {
        let unusable = |error: &dyn ToString| TrustError::Unusable(error.to_string());
        let added =
            CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().map_err(|error| unusable(&error))?;
        if added.is_empty() {
            return Err(unusable(&"there is no block that begins with -----BEGIN CERTIFICATE-----"));
        }
        let mut roots = RootCertStore::empty();
        for certificate in &added {
            roots.add(certificate.clone()).map_err(|error| unusable(&error))?;
        }
        Ok(Self(Arc::new(Inner { added, config: OnceLock::new() })))
    }

    /// Built when TLS is first spoken: reading what the system trusts takes a while.
    pub(crate) fn config(&self) -> Arc<ClientConfig> {
        let build = || {
            let mut roots = RootCertStore::empty();
            let found = rustls_native_certs::load_native_certs();
            // A system that trusts nobody is found out by the first connection, which says so.
            roots.add_parsable_certificates(found.certs);
            roots.add_parsable_certificates(self.0.added.iter().cloned());
            Arc::new(with_roots(roots))
        };
        Arc::clone(self.0.config.get_or_init(build))
    }

    /// TLS on a socket.
    pub(crate) async fn secure(&self, stream: TcpStream, host: &str) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        TlsConnector::from(self.config()).connect(name, stream).await
    }
}

/// For a client that speaks no TLS.
pub(crate) fn nobody() -> ClientConfig {
    with_roots(RootCertStore::empty())
}

/// Whether the cause is a certificate that is not trusted, and why it is not.
pub(crate) fn distrust(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let found = match inner {
            Some(inner) => inner.downcast_ref::<rustls::Error>(),
            None => error.downcast_ref::<rustls::Error>(),
        };
        if let Some(rustls::Error::InvalidCertificate(why)) = found {
            return Some(why.to_string());
        }
        cause = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

fn with_roots(roots: RootCertStore) -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .expect("ring has suites for both versions")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_no_certificate_is_refused() {
        for wrong in ["", "no PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert!(Trust::with_certificates(wrong.as_bytes()).is_err(), "{wrong:?}");
        }
    }
}
