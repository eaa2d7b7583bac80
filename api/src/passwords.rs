//! Passwords: argon2id on a few blocking threads, with a bounded queue before them.

use std::sync::Arc;

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use roost_protocol::{ErrorCode, limits};
use tokio::sync::Semaphore;

use crate::config::PasswordCost;
use crate::problem::Problem;

/// Hashes and verifies passwords.
pub(crate) struct Passwords {
    argon2: Argon2<'static>,
    nobody: String,
    // Who may wait at all, and whose turn it is.
    admitted: Arc<Semaphore>,
    running: Arc<Semaphore>,
}

impl Passwords {
    /// # Panics
    ///
    /// If argon2 does not know such a cost: the configuration is checked before.
    pub(crate) fn new(cost: PasswordCost) -> Self {
        let params = Params::new(cost.memory_kib, cost.passes, 1, None).expect("a cost that argon2 knows");
        // A hash that no password has, of the present cost: verifying against it takes as long as any other.
        let nobody = format!(
            "$argon2id$v=19$m={},t={},p=1${}${}",
            cost.memory_kib,
            cost.passes,
            STANDARD_NO_PAD.encode(rand::random::<[u8; 16]>()),
            STANDARD_NO_PAD.encode(rand::random::<[u8; 32]>()),
        );
        Self {
            argon2: Argon2::new(Algorithm::Argon2id, Version::V0x13, params),
            nobody,
            admitted: Arc::new(Semaphore::new(cost.parallel_max + cost.waiting_max)),
            running: Arc::new(Semaphore::new(cost.parallel_max)),
        }
    }

    /// Whether a password may be set: its length only, in bytes.
    pub(crate) fn check(password: &str) -> Result<(), Problem> {
        if (limits::PASSWORD_BYTES_MIN..=limits::PASSWORD_BYTES_MAX).contains(&password.len()) {
            return Ok(());
        }
        let (min, max) = (limits::PASSWORD_BYTES_MIN, limits::PASSWORD_BYTES_MAX);
        Err(Problem::field(format!("password: {min} to {max} bytes")))
    }

    /// The hash of a new password, in PHC form.
    pub(crate) async fn hash(&self, password: String) -> Result<String, Problem> {
        let argon2 = self.argon2.clone();
        self.run(move || argon2.hash_password(password.as_bytes()).map(|hash| hash.to_string()))
            .await?
            .map_err(|error| Problem::internal(&error))
    }

    /// Whether the password is the hash's; takes the same time where there is no account and hence no hash.
    pub(crate) async fn verify(&self, password: String, hash: Option<String>) -> Result<bool, Problem> {
        let argon2 = self.argon2.clone();
        let (hash, exists) = match hash {
            Some(hash) => (hash, true),
            None => (self.nobody.clone(), false),
        };
        let verified = self.run(move || {
            let parsed = PasswordHash::new(&hash)?;
            // Argon2 compares in constant time.
            match argon2.verify_password(password.as_bytes(), &parsed) {
                Err(argon2::password_hash::Error::PasswordInvalid) => Ok(false),
                other => other.map(|()| true),
            }
        });
        let verified = verified.await?.map_err(|error: argon2::password_hash::Error| Problem::internal(&error))?;
        Ok(verified && exists)
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
        let busy = || Problem::new(ErrorCode::Busy, "Too many passwords are being checked.");
        let admitted = Arc::clone(&self.admitted).try_acquire_owned().map_err(|_| busy())?;
        let running = Arc::clone(&self.running).acquire_owned().await.map_err(|_| busy())?;
        tokio::task::spawn_blocking(move || {
            // The permits belong to the thread: a request that is given up frees nothing early.
            let _permits = (admitted, running);
            work()
        })
        .await
        .map_err(|error| Problem::internal(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passwords(waiting_max: usize) -> Passwords {
        Passwords::new(PasswordCost { memory_kib: 64, passes: 1, parallel_max: 1, waiting_max })
    }

    #[tokio::test]
    async fn a_password_is_verified_against_its_own_hash_only() {
        let passwords = passwords(8);
        let hash = passwords.hash("correct horse".to_owned()).await.expect("a hash");
        assert!(hash.starts_with("$argon2id$v=19$m=64,t=1,p=1$"), "{hash}");
        assert_eq!(passwords.verify("correct horse".to_owned(), Some(hash.clone())).await, Ok(true));
        assert_eq!(passwords.verify("wrong horse".to_owned(), Some(hash)).await, Ok(false));
        assert_eq!(passwords.verify("correct horse".to_owned(), None).await, Ok(false));
    }

    #[tokio::test]
    async fn the_queue_before_the_threads_is_bounded() {
        let passwords = Arc::new(passwords(2));
        let hashes = (0..20).map(|_| passwords.hash("correct horse".to_owned()));
        let results = futures::future::join_all(hashes).await;
        let refused = results.iter().filter(|result| result.as_ref().is_err_and(|problem| problem.code == "busy"));
        assert_eq!(refused.count(), 17);
    }

    #[tokio::test]
    async fn a_damaged_hash_is_our_failure_and_not_a_wrong_password() {
        let problem = passwords(1).verify("x".to_owned(), Some("$argon2id$".to_owned())).await.expect_err("damaged");
        assert_eq!(problem.status, 500);
    }
}
