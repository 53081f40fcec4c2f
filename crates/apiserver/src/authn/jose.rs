//! JSON Web Tokens with ES256, as far as service accounts need them (RFC 7515, 7517, 7518).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::UnparsedPublicKey;
use ring::signature::{ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};

/// Why a key or token was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum JoseError {
    #[error("the service-account key is no PKCS #8 PEM of an ECDSA P-256 key: {0}")]
    Key(String),
    #[error("signing failed")]
    Sign,
    #[error("malformed token")]
    Malformed,
    #[error("unknown signing key or algorithm")]
    UnknownKey,
    #[error("wrong signature")]
    Signature,
}

/// The key that signs and verifies tokens.
pub(crate) struct SigningKey {
    pair: EcdsaKeyPair,
    id: String,
    random: SystemRandom,
}

impl SigningKey {
    /// Reads a PKCS #8 PEM.
    pub(crate) fn from_pem(pem: &str) -> Result<Self, JoseError> {
        use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject};
        let random = SystemRandom::new();
        let der =
            PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(|e| JoseError::Key(e.to_string()))?;
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der(), &random)
                .map_err(|e| JoseError::Key(e.to_string()))?;
        let id = ring::digest::digest(&ring::digest::SHA256, pair.public_key().as_ref());
        Ok(Self { id: URL_SAFE_NO_PAD.encode(id), pair, random })
    }

    /// Signs claims.
    pub(crate) fn sign(&self, claims: &Value) -> Result<String, JoseError> {
        let header = json!({"alg": "ES256", "kid": self.id});
        let mut token = format!("{}.{}", encode(&header), encode(claims));
        let signature = self.pair.sign(&self.random, token.as_bytes()).map_err(|_| JoseError::Sign)?;
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(signature));
        Ok(token)
    }

    /// The claims of a token with a right signature; times and audiences are the caller's to check.
    pub(crate) fn verify(&self, token: &str) -> Result<Value, JoseError> {
        let (signed, signature) = token.rsplit_once('.').ok_or(JoseError::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(JoseError::Malformed)?;
        let header = decode(header)?;
        if header["alg"] != "ES256" || header["kid"].as_str().is_some_and(|kid| kid != self.id) {
            return Err(JoseError::UnknownKey);
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| JoseError::Malformed)?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.pair.public_key().as_ref())
            .verify(signed.as_bytes(), &signature)
            .map_err(|_| JoseError::Signature)?;
        decode(claims)
    }

    /// The public key as a JSON Web Key Set.
    pub(crate) fn key_set(&self) -> Value {
        // An uncompressed point: 0x04, x, y.
        let point = self.pair.public_key().as_ref();
        let half = |range: std::ops::Range<usize>| URL_SAFE_NO_PAD.encode(&point[range]);
        json!({"keys": [{
            "use": "sig", "kty": "EC", "kid": self.id, "crv": "P-256", "alg": "ES256",
            "x": half(1..33), "y": half(33..65),
        }]})
    }
}

fn encode(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

fn decode(part: &str) -> Result<Value, JoseError> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| JoseError::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| JoseError::Malformed)
}

#[cfg(test)]
pub(crate) fn test_key_pem() -> String {
    rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key").serialize_pem()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_signed_can_be_verified_by_the_same_key_only() {
        let key = SigningKey::from_pem(&test_key_pem()).unwrap();
        let claims = json!({"sub": "x", "exp": 5});
        let token = key.sign(&claims).unwrap();
        assert_eq!(key.verify(&token), Ok(claims));
        let other = SigningKey::from_pem(&test_key_pem()).unwrap();
        assert_eq!(other.verify(&token), Err(JoseError::UnknownKey));
        let mut parts: Vec<String> = token.split('.').map(str::to_owned).collect();
        parts[1] = encode(&json!({"sub": "y", "exp": 5}));
        assert_eq!(key.verify(&parts.join(".")), Err(JoseError::Signature));
        parts[0] = encode(&json!({"alg": "none"}));
        assert_eq!(key.verify(&parts.join(".")), Err(JoseError::UnknownKey));
        assert_eq!(key.verify("a.b"), Err(JoseError::Malformed));
        assert!(SigningKey::from_pem("nonsense").is_err());
        assert_eq!(key.key_set()["keys"][0]["x"].as_str().map(str::len), Some(43));
    }
}
