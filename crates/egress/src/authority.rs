//! The certificate authority of one sandbox, in whose name the proxy answers for
//! hosts that have rules.
//!
//! Its key follows from the server's secret and the sandbox's id, so nothing has to
//! be kept, it is the same after any restart, and no other sandbox believes in it.
//! It never leaves this process; a sandbox gets the certificate. A leaf is good for
//! a day, and is only made for a host that the sandbox may reach.
//!
//! The authority is not constrained to names (RFC 5280, section 4.2.1.10): a policy
//! may get a rule for another host while programs run that have read it already.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use dormouse_provider::HostName;
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{DerSignature, SigningKey};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm,
};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::wall_clock;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How long a leaf is good for, and when the next one is made.
const LEAF_LIFE: Duration = Duration::from_secs(86_400);
const LEAF_RENEWAL: Duration = Duration::from_secs(12 * 3600);

/// Clocks inside may be behind.
const LATE: Duration = Duration::from_secs(3600);

/// Hosts whose leafs are kept.
const KEPT: usize = 256;

/// The secret that the keys of all authorities follow from.
#[derive(Clone)]
pub struct AuthoritySecret([u8; 32]);

impl AuthoritySecret {
    /// The secret with these bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl std::fmt::Debug for AuthoritySecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AuthoritySecret")
    }
}

/// The authority of one sandbox.
pub(crate) struct Authority {
    certificate: String,
    issuer: Issuer<'static, Root>,
    /// One key for all leafs: what matters is that nobody inside has it.
    leaf_key: KeyPair,
    provider: Arc<CryptoProvider>,
    leafs: Mutex<HashMap<HostName, (Instant, Arc<ServerConfig>)>>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

/// Length of a P-256 scalar, for HKDF.
struct Scalar;

impl KeyType for Scalar {
    fn len(&self) -> usize {
        32
    }
}

/// The key of an authority. It signs the same text in the same way each time
/// (RFC 6979): the certificate that a sandbox has does not change from run to run.
struct Root {
    key: SigningKey,
    /// Not compressed (SEC 1).
    public: Vec<u8>,
}

impl Root {
    fn derive(secret: &AuthoritySecret, sandbox: &str) -> Result<Self, Failure> {
        let prk = Salt::new(HKDF_SHA256, b"dormouse egress authority").extract(&secret.0);
        // One of 2^32 texts gives no scalar of the curve; the next one does.
        for attempt in 0..4_u8 {
            let mut scalar = [0; 32];
            let info = [sandbox.as_bytes(), &[attempt]];
            let expanded = prk.expand(&info, Scalar).and_then(|okm| okm.fill(&mut scalar));
            expanded.map_err(|_| "derive a key")?;
            let Ok(key) = SigningKey::from_slice(&scalar) else { continue };
            let public = key.verifying_key().to_sec1_point(false).as_bytes().to_vec();
            return Ok(Self { key, public });
        }
        Err("no scalar of the curve in four attempts".into())
    }
}

impl PublicKeyData for Root {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for Root {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature: DerSignature = self.key.sign(message);
        Ok(signature.as_bytes().to_vec())
    }
}

impl Authority {
    pub(crate) fn new(
        secret: &AuthoritySecret,
        sandbox: &str,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, Failure> {
        let key = Root::derive(secret, sandbox)?;
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.distinguished_name.push(DnType::OrganizationName, "Dormouse");
        params.distinguished_name.push(DnType::CommonName, format!("Dormouse network of {sandbox}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after) =
            (rcgen::date_time_ymd(2026, 1, 1), rcgen::date_time_ymd(2056, 1, 1));
        let certificate = params.self_signed(&key)?.pem();
        let issuer = Issuer::new(params, key);
        Ok(Self { certificate, issuer, leaf_key: KeyPair::generate()?, provider, leafs: Mutex::default() })
    }

    /// The certificate in PEM.
    pub(crate) fn certificate(&self) -> &str {
        &self.certificate
    }

    /// TLS in the name of `host`.
    pub(crate) fn server(&self, host: &HostName) -> Result<Arc<ServerConfig>, Failure> {
        let lock = || self.leafs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made, config)) = lock().get(host)
            && made.elapsed() < LEAF_RENEWAL
        {
            return Ok(config.clone());
        }
        let now = wall_clock::now();
        let mut params = CertificateParams::new(vec![host.to_string()])?;
        params.distinguished_name.push(DnType::OrganizationName, "Dormouse");
        params.not_before = (now - LATE).into();
        params.not_after = (now + LEAF_LIFE).into();
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&self.leaf_key, &self.issuer)?;
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.leaf_key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], private)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let config = Arc::new(config);
        let mut leafs = lock();
        if leafs.len() >= KEPT {
            // Who has so many hosts can wait for a leaf.
            leafs.clear();
        }
        leafs.insert(host.clone(), (Instant::now(), config.clone()));
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use rustls::RootCertStore;
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier as _;
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

    use super::*;

    fn authority(sandbox: &str) -> Authority {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        Authority::new(&AuthoritySecret::new([7; 32]), sandbox, provider).unwrap()
    }

    fn leaf(authority: &Authority, host: &str) -> CertificateDer<'static> {
        let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        params.signed_by(&authority.leaf_key, &authority.issuer).unwrap().der().clone()
    }

    fn believes(certificate: &str, leaf: &CertificateDer<'_>, host: &'static str) -> bool {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let name = ServerName::try_from(host).unwrap();
        verifier.verify_server_cert(leaf, &[], &name, &[], UnixTime::now()).is_ok()
    }

    #[test]
    fn a_sandbox_believes_in_its_own_authority_alone_after_a_restart_too() {
        let (one, again, other) = (authority("sbx_1"), authority("sbx_1"), authority("sbx_2"));
        let leaf = leaf(&one, "github.com");
        assert!(believes(one.certificate(), &leaf, "github.com"));
        assert_eq!(again.certificate(), one.certificate(), "another after a restart");
        assert!(!believes(other.certificate(), &leaf, "github.com"));
        assert!(!believes(one.certificate(), &leaf, "api.github.com"));
    }

    #[test]
    fn leafs_are_kept() {
        let authority = authority("sbx_1");
        let host: HostName = "github.com".parse().unwrap();
        let first = authority.server(&host).unwrap();
        assert!(Arc::ptr_eq(&first, &authority.server(&host).unwrap()));
        for number in 0..=KEPT {
            authority.server(&format!("h{number}.test").parse().unwrap()).unwrap();
        }
        assert!(authority.leafs.lock().unwrap().len() <= KEPT);
    }
}
