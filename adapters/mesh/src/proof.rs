//! The proofs that both ends of a stream know the shared secret: HMAC-SHA256 over both nonces and what is asked.

use hmac::{Hmac, KeyInit, Mac};
use roost_protocol::Incarnation;
use sha2::Sha256;

use crate::config::Secret;

/// Fresh random bytes of one end; 16 of them.
pub(crate) type Nonce = [u8; 16];

/// A new nonce.
pub(crate) fn nonce() -> Nonce {
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).expect("the system has random bytes");
    nonce
}

/// What both ends know of the stream that is being opened.
pub(crate) struct Transcript {
    pub(crate) sender: [u8; 16],
    pub(crate) sender_nonce: Nonce,
    pub(crate) receiver_nonce: Nonce,
}

impl Transcript {
    /// The receiver's proof, which comes first: messages are sent only to who has given it.
    pub(crate) fn receiver_proof(&self, secret: Option<&Secret>) -> Vec<u8> {
        self.mac(secret, b"roost.mesh.v1 receiver", Incarnation(0)).finalize().into_bytes().to_vec()
    }

    /// Whether this is the receiver's proof, compared in constant time.
    pub(crate) fn is_receiver_proof(&self, secret: Option<&Secret>, proof: &[u8]) -> bool {
        self.mac(secret, b"roost.mesh.v1 receiver", Incarnation(0)).verify_slice(proof).is_ok()
    }

    /// The sender's proof for the incarnation that it means.
    pub(crate) fn sender_proof(&self, secret: Option<&Secret>, to: Incarnation) -> Vec<u8> {
        self.mac(secret, b"roost.mesh.v1 sender", to).finalize().into_bytes().to_vec()
    }

    /// Whether this is the sender's proof, compared in constant time.
    pub(crate) fn is_sender_proof(&self, secret: Option<&Secret>, to: Incarnation, proof: &[u8]) -> bool {
        self.mac(secret, b"roost.mesh.v1 sender", to).verify_slice(proof).is_ok()
    }

    /// Without a secret the key is empty: two processes without one understand each other, and nobody else does.
    fn mac(&self, secret: Option<&Secret>, label: &[u8], to: Incarnation) -> Hmac<Sha256> {
        let key = secret.map_or(&[][..], Secret::bytes);
        let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of every length");
        mac.update(label);
        mac.update(&self.sender);
        mac.update(&self.sender_nonce);
        mac.update(&self.receiver_nonce);
        mac.update(&to.0.to_be_bytes());
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_holds_for_its_end_its_nonces_and_its_secret_only() {
        let secret = Secret::new(&"a".repeat(32)).expect("long enough");
        let other = Secret::new(&"b".repeat(32)).expect("long enough");
        let told = Transcript { sender: [1; 16], sender_nonce: [2; 16], receiver_nonce: [3; 16] };
        let later = Transcript { receiver_nonce: [4; 16], ..told };
        let to = Incarnation(7);
        let proof = told.sender_proof(Some(&secret), to);
        assert!(told.is_sender_proof(Some(&secret), to, &proof));
        assert!(!told.is_sender_proof(Some(&other), to, &proof));
        assert!(!told.is_sender_proof(None, to, &proof));
        assert!(!told.is_sender_proof(Some(&secret), Incarnation(8), &proof));
        assert!(!told.is_sender_proof(Some(&secret), to, &proof[..31]));
        assert!(!later.is_sender_proof(Some(&secret), to, &proof), "a recorded proof is worth nothing later");
        let back = told.receiver_proof(Some(&secret));
        assert!(told.is_receiver_proof(Some(&secret), &back));
        assert!(
            !told.is_sender_proof(Some(&secret), Incarnation(0), &back),
            "the receiver's proof cannot be sent back"
        );
    }
}
