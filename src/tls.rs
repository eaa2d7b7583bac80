//! TLS for the gateway's port: its files, and the watch over them.

use std::sync::Arc;
use std::time::Duration;

use roost_gateway::Certificates;

use crate::cli::TlsArgs;
use crate::compose::Problem;

/// The files are looked at this often; SIGHUP says that they are to be looked at now.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Reads the certificate and its key, and from then on uses whatever takes their place. `None`: plaintext is spoken.
pub fn open(args: &TlsArgs) -> Result<Option<Arc<Certificates>>, Problem> {
    let (certificate, key) = match (&args.tls_certificate, &args.tls_key) {
        (Some(certificate), Some(key)) => (certificate, key),
        (None, None) => return Ok(None),
        (Some(_), None) => return Err(Problem::Setting("tls-certificate needs tls-key, the file with its key".into())),
        (None, Some(_)) => return Err(Problem::Setting("tls-key needs tls-certificate, the file it is for".into())),
    };
    let certificates =
        Certificates::open(certificate, key).map_err(|error| Problem::Setting(format!("TLS: {error}")))?;
    tokio::spawn(watch(Arc::clone(&certificates)));
    Ok(Some(certificates))
}

async fn watch(certificates: Arc<Certificates>) {
    use tokio::signal::unix::{SignalKind, signal};
    let mut hang_up = match signal(SignalKind::hangup()) {
        Ok(hang_up) => Some(hang_up),
        Err(error) => {
            tracing::error!(%error, "SIGHUP cannot be heard; the certificate is still looked at every few seconds");
            None
        }
    };
    loop {
        let asked = async {
            match &mut hang_up {
                Some(hang_up) => hang_up.recv().await,
                None => std::future::pending().await,
            }
        };
        let was_asked = tokio::select! {
            _ = asked => true,
            () = tokio::time::sleep(LOOK_EVERY) => false,
        };
        let reading = Arc::clone(&certificates);
        match tokio::task::spawn_blocking(move || reading.reload(was_asked)).await {
            Ok(Ok(true)) => tracing::info!("the TLS certificate has changed; new connections get the new one"),
            Ok(Ok(false)) if was_asked => tracing::info!("SIGHUP: the TLS certificate stays what it was"),
            Ok(Ok(false)) => {}
            Ok(Err(error)) => tracing::error!(%error, "the TLS certificate stays what it was"),
            Err(error) => tracing::error!(%error, "the TLS certificate could not be looked at"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_wrong_is_said_in_words() {
        let told = |certificate: Option<&str>, key: Option<&str>| {
            let args = TlsArgs { tls_certificate: certificate.map(Into::into), tls_key: key.map(Into::into) };
            open(&args).err().map(|problem| problem.to_string()).unwrap_or_default()
        };
        assert_eq!(told(None, None), "");
        assert!(told(Some("a"), None).contains("tls-key"));
        assert!(told(None, Some("a")).contains("tls-certificate"));
        let missing = told(Some("/no/such.pem"), Some("/no/such.key"));
        assert!(missing.contains("TLS: /no/such.pem cannot be read"), "{missing}");
    }
}
