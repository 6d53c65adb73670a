//! Who a forwarded request is from: a signed token (RS256, RFC 7519) that the
//! receiver checks with the keys that this server publishes (RFC 7517), as Vercel's
//! does (provider contract, section 6).

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;

use crate::wall_clock;

/// How long a token is good for, in seconds.
const LIFE: u64 = 300;

/// Signs tokens.
pub struct Signer {
    issuer: String,
    key: EncodingKey,
    id: String,
    modulus: String,
    exponent: String,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({})", self.issuer)
    }
}

/// Why there is no signer.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// The key could not be made or read.
    #[error("the key of identity tokens: {0}")]
    Key(&'static str),
    /// A token could not be signed.
    #[error("sign an identity token")]
    Sign(#[from] jsonwebtoken::errors::Error),
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    aud: &'a str,
    sub: &'a str,
    iat: u64,
    nbf: u64,
    exp: u64,
    team_id: &'a str,
    project_id: &'a str,
    sandbox_id: &'a str,
}

impl Signer {
    /// A new key, in PKCS #8, to be kept where only this server reads it.
    ///
    /// # Errors
    /// [`SignerError::Key`] without randomness.
    pub fn generate() -> Result<Vec<u8>, SignerError> {
        let pair = KeyPair::generate(KeySize::Rsa2048).map_err(|_| SignerError::Key("cannot be made"))?;
        let der = AsDer::<Pkcs8V1Der<'_>>::as_der(&pair);
        Ok(der.map_err(|_| SignerError::Key("cannot be written"))?.as_ref().to_vec())
    }

    /// Signs with the key `pkcs8` in the name of `issuer`, a URL below which
    /// [`Signer::keys`] are at `.well-known/jwks`.
    ///
    /// # Errors
    /// [`SignerError::Key`] for something else.
    pub fn new(issuer: String, pkcs8: &[u8]) -> Result<Self, SignerError> {
        let pair = KeyPair::from_pkcs8(pkcs8).map_err(|_| SignerError::Key("is none"))?;
        let public = pair.public_key();
        let text = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        let modulus = text(public.modulus().big_endian_without_leading_zero());
        let exponent = text(public.exponent().big_endian_without_leading_zero());
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, public.as_ref());
        let key = BASE64_URL_SAFE_NO_PAD.encode(&digest.as_ref()[..12]);
        // PKCS #1 is inside PKCS #8; the library takes the first.
        let pem = pem(pkcs8);
        Ok(Self { issuer, key: EncodingKey::from_rsa_pem(pem.as_bytes())?, id: key, modulus, exponent })
    }

    /// A token for the receiver at `url`.
    pub(crate) fn sign(
        &self,
        sandbox: &str,
        team_id: &str,
        project_id: &str,
        url: &str,
    ) -> Result<String, SignerError> {
        let now = wall_clock::since_epoch().as_secs();
        let claims = Claims {
            iss: &self.issuer,
            aud: url.trim_end_matches('/'),
            sub: sandbox,
            iat: now,
            nbf: now,
            exp: now + LIFE,
            team_id,
            project_id,
            sandbox_id: sandbox,
        };
        let header = Header { kid: Some(self.id.clone()), ..Header::new(Algorithm::RS256) };
        Ok(jsonwebtoken::encode(&header, &claims, &self.key)?)
    }

    /// The issuer's URL.
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The public keys (RFC 7517).
    #[must_use]
    pub fn keys(&self) -> serde_json::Value {
        serde_json::json!({ "keys": [{
            "kty": "RSA", "use": "sig", "alg": "RS256", "kid": self.id, "n": self.modulus, "e": self.exponent,
        }] })
    }
}

/// A private key in PEM (RFC 7468).
#[must_use]
pub fn pem(pkcs8: &[u8]) -> String {
    let text = base64::prelude::BASE64_STANDARD.encode(pkcs8);
    let mut pem = "-----BEGIN PRIVATE KEY-----\n".to_owned();
    for line in text.as_bytes().chunks(64) {
        // Base64 is ASCII.
        pem.extend(line.iter().map(|byte| char::from(*byte)));
        pem.push('\n');
    }
    pem + "-----END PRIVATE KEY-----\n"
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::jwk::JwkSet;
    use jsonwebtoken::{DecodingKey, Validation};

    use super::*;

    #[test]
    fn a_token_is_checked_with_the_published_keys() {
        let signer = Signer::new("https://box.test/oidc".to_owned(), &Signer::generate().unwrap()).unwrap();
        let token = signer.sign("sbx_1", "team_1", "prj_1", "https://proxy.test/in/").unwrap();
        let keys: JwkSet = serde_json::from_value(signer.keys()).unwrap();
        let kid = jsonwebtoken::decode_header(&token).unwrap().kid.unwrap();
        let key = DecodingKey::from_jwk(keys.find(&kid).unwrap()).unwrap();
        let mut validation = Validation::new(Algorithm::RS256);
        validation.set_audience(&["https://proxy.test/in"]);
        validation.set_issuer(&["https://box.test/oidc"]);
        let claims = jsonwebtoken::decode::<serde_json::Value>(&token, &key, &validation).unwrap().claims;
        assert_eq!(claims["sandbox_id"], "sbx_1");
        assert_eq!(
            (claims["team_id"].as_str(), claims["project_id"].as_str()),
            (Some("team_1"), Some("prj_1"))
        );
        validation.set_audience(&["https://other.test"]);
        assert!(jsonwebtoken::decode::<serde_json::Value>(&token, &key, &validation).is_err());
    }
}
