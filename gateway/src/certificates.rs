//! The certificate and key that TLS is spoken with: read from files, checked against each other, and exchanged while
//! connections live.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{InconsistentKeys, ServerConfig};

/// What is spoken inside: a client that offers only something else is refused.
const PROTOCOL: &[u8] = b"http/1.1";
/// One ticket is enough to resume with, and each costs a record.
const TICKETS: usize = 1;

/// Why a certificate or its key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The certificate's file is not what it should be.
    #[error("{} holds no certificate that can be read: {reason}; it must be PEM, the server's certificate first", path.display())]
    Certificate {
        /// Which file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The key's file is not what it should be.
    #[error("{} holds no private key that can be used: {reason}", path.display())]
    Key {
        /// Which file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// They are not a pair.
    #[error("the key in {} does not belong to the certificate in {}", key.display(), certificate.display())]
    Mismatch {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        certificate: PathBuf,
    },
    /// The system has no randomness, say.
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
}

/// A certificate, its key, and all that TLS is set up with. Shared by the shards.
#[derive(Debug)]
pub struct Certificates {
    certificate: PathBuf,
    key: PathBuf,
    current: Arc<Current>,
    config: Arc<ServerConfig>,
    /// A hash of what was read last, good or bad, or of why it could not be read.
    seen: Mutex<u64>,
}

impl Certificates {
    /// Reads a certificate chain and its key, both PEM.
    pub fn open(certificate: &Path, key: &Path) -> Result<Arc<Self>, CertificateError> {
        let provider = Arc::new(ring::default_provider());
        let files = Files::read(certificate, key)?;
        let pair = files.parse(certificate, key, &provider)?;
        warn_if_readable(key);
        let current = Arc::new(Current(RwLock::new(Arc::new(pair))));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13, &TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&current) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        // Sessions are resumed from what the client brings: nothing is kept here.
        config.ticketer = ring::Ticketer::new()?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = TICKETS;
        let seen = Mutex::new(files.hash());
        let (certificate, key) = (certificate.to_owned(), key.to_owned());
        Ok(Arc::new(Self { certificate, key, current, config: Arc::new(config), seen }))
    }

    /// Reads the files again, and uses them for new connections if they have changed. Those that live keep theirs. A
    /// pair that cannot be used changes nothing, and is an error once, or whenever somebody has `asked`. Returns whether
    /// another pair is used now.
    pub fn reload(&self, asked: bool) -> Result<bool, CertificateError> {
        let files = Files::read(&self.certificate, &self.key);
        let hash = files.as_ref().map_or_else(|error| hash_of(&error.to_string()), Files::hash);
        if std::mem::replace(&mut *self.seen.lock(), hash) == hash && !asked {
            return Ok(false);
        }
        let pair = Arc::new(files?.parse(&self.certificate, &self.key, self.config.crypto_provider())?);
        warn_if_readable(&self.key);
        let mut current = self.current.0.write();
        let changed = current.cert != pair.cert;
        *current = pair;
        Ok(changed)
    }

    /// For the driver. The echo of the conformance suite makes one of its own.
    #[doc(hidden)]
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }
}

/// The pair for the next connection.
#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read()))
    }
}

/// The files as they were at one time.
struct Files {
    certificate: Vec<u8>,
    /// Not to be logged.
    key: Vec<u8>,
}

impl Files {
    fn read(certificate: &Path, key: &Path) -> Result<Self, CertificateError> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|source| CertificateError::Unreadable { path: path.to_owned(), source })
        };
        Ok(Self { certificate: read(certificate)?, key: read(key)? })
    }

    fn hash(&self) -> u64 {
        hash_of(&(&self.certificate, &self.key))
    }

    fn parse(
        &self,
        certificate: &Path,
        key: &Path,
        provider: &CryptoProvider,
    ) -> Result<CertifiedKey, CertificateError> {
        let bad_certificate = |reason: String| CertificateError::Certificate { path: certificate.to_owned(), reason };
        let bad_key = |reason: String| CertificateError::Key { path: key.to_owned(), reason };
        let chain = CertificateDer::pem_slice_iter(&self.certificate)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| bad_certificate(error.to_string()))?;
        if chain.is_empty() {
            return Err(bad_certificate("there is no block that begins with -----BEGIN CERTIFICATE-----".to_owned()));
        }
        let secret = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|_| bad_key("there is no unencrypted PKCS #8, SEC 1 or PKCS #1 key in PEM in it".to_owned()))?;
        let secret = provider.key_provider.load_private_key(secret).map_err(|error| bad_key(error.to_string()))?;
        let pair = CertifiedKey::new(chain, secret);
        match pair.keys_match() {
            // Unknown: a key of a kind that does not tell its public half.
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(pair),
            Err(rustls::Error::InconsistentKeys(_)) => {
                Err(CertificateError::Mismatch { key: key.to_owned(), certificate: certificate.to_owned() })
            }
            Err(error) => Err(bad_certificate(error.to_string())),
        }
    }
}

fn hash_of(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// A key that others may read is no secret on a shared machine.
fn warn_if_readable(key: &Path) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(key).map_or(0, |metadata| metadata.permissions().mode());
        if mode & 0o077 != 0 {
            let mode = format!("{:o}", mode & 0o777);
            tracing::warn!(path = %key.display(), mode, "others may read the TLS key: chmod 600 it");
        }
    }
}
