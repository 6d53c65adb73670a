//! API keys: made, shown once, stored as a hash.

use dormouse_types::hex;
use sha2::{Digest as _, Sha256};

/// First characters of every key, for people and secret scanners.
const PREFIX: &str = "dormouse_sk_";

/// A key in the clear. It exists only between its making and its showing.
pub struct ApiKey(String);

impl ApiKey {
    /// A new key: 256 random bits in hex behind `dormouse_sk_`.
    ///
    /// # Errors
    /// The operating system's error when it has no randomness to give.
    pub fn generate() -> std::io::Result<Self> {
        let mut bytes = [0_u8; 32];
        getrandom::fill(&mut bytes).map_err(|error| std::io::Error::other(error.to_string()))?;
        Ok(Self(format!("{PREFIX}{}", hex(&bytes))))
    }

    /// The key itself, to show once.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether a bearer token is a key of ours rather than a JWT.
    #[must_use]
    pub fn looks_like(token: &str) -> bool {
        token.starts_with(PREFIX)
    }
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// What is stored and looked up for a key. A fast hash is right here: there is
/// nothing to guess in 256 random bits.
#[must_use]
pub fn hash_secret(secret: &str) -> String {
    hex(&Sha256::digest(secret.as_bytes()))
}
