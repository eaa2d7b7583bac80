//! Certificates made for a test, a gateway that speaks TLS with them, and clients that trust them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{CertifiedKey, KeyPair};
use roost_gateway::{Certificates, Config};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::world::World;

/// Files with a certificate and its key.
pub struct Pair {
    folder: TempDir,
    pub certificate: CertificateDer<'static>,
}

impl Pair {
    pub fn new() -> Self {
        let mut pair = Self { folder: tempfile::tempdir().unwrap(), certificate: CertificateDer::from(Vec::new()) };
        pair.renew();
        pair
    }

    pub fn certificate_path(&self) -> PathBuf {
        self.folder.path().join("certificate.pem")
    }

    pub fn key_path(&self) -> PathBuf {
        self.folder.path().join("key.pem")
    }

    /// Other files in their place.
    pub fn renew(&mut self) {
        let CertifiedKey { cert, signing_key } = generate();
        std::fs::write(self.certificate_path(), cert.pem()).unwrap();
        std::fs::write(self.key_path(), signing_key.serialize_pem()).unwrap();
        self.certificate = cert.der().clone();
    }

    pub fn open(&self) -> Arc<Certificates> {
        Certificates::open(&self.certificate_path(), &self.key_path()).expect("a good pair")
    }

    /// A gateway's configuration.
    pub fn config(&self) -> Config {
        Config { tls: Some(self.open()), ..World::config() }
    }

    /// A client that trusts this certificate only.
    pub fn trusting(&self, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config
    }
}

pub fn generate() -> CertifiedKey<KeyPair> {
    rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap()
}

pub async fn secure<S: AsyncRead + AsyncWrite + Unpin>(
    config: impl Into<Arc<ClientConfig>>,
    stream: S,
) -> std::io::Result<TlsStream<S>> {
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(config.into()).connect(name, stream).await
}

/// A socket with TLS on it.
pub async fn dial(config: impl Into<Arc<ClientConfig>>, address: SocketAddr) -> TlsStream<TcpStream> {
    let stream = TcpStream::connect(address).await.expect("the gateway accepts");
    stream.set_nodelay(true).unwrap();
    secure(config, stream).await.expect("the handshake completes")
}
