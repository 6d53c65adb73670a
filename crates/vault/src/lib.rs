//! The operator's key. It seals what is secret in the database (injected headers,
//! environments, secrets of organizations), and other keys follow from it.
//!
//! Sealing is AES-256-GCM-SIV (RFC 8452) with a random nonce, which forgives one that
//! comes twice; the purpose of a text is authenticated with it, so that a text cannot
//! be put into another column.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use dormouse_types::hex;

/// Length of the key and of what follows from it, in bytes.
pub const KEY_LENGTH: usize = 32;

/// What sealed texts begin with: the version of their form.
const PREFIX: &str = "sealed:1:";

/// Why a key or a text cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The key file cannot be read or made.
    #[error("the secret key in {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others than its owner may read the key file.
    #[error("{0} can be read by others than its owner: chmod 600 it, and consider the key known")]
    Open(PathBuf),
    /// The key is none.
    #[error("{0} is no secret key: 64 hexadecimal digits, such as `openssl rand -hex 32` prints")]
    Key(String),
    /// There is no randomness, or no memory.
    #[error("the cryptographic library failed")]
    Library,
    /// A text was sealed with another key, for another purpose, or not at all.
    #[error("a sealed text cannot be opened with this key")]
    Sealed,
}

/// The key, ready for use.
pub struct Vault {
    sealing: LessSafeKey,
    key: [u8; KEY_LENGTH],
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Vault")
    }
}

struct Length;

impl KeyType for Length {
    fn len(&self) -> usize {
        KEY_LENGTH
    }
}

fn derive(key: &[u8; KEY_LENGTH], purpose: &str) -> Result<[u8; KEY_LENGTH], VaultError> {
    let mut derived = [0; KEY_LENGTH];
    let prk = Salt::new(HKDF_SHA256, b"dormouse").extract(key);
    let expanded = prk.expand(&[purpose.as_bytes()], Length).and_then(|okm| okm.fill(&mut derived));
    expanded.map_err(|_| VaultError::Library)?;
    Ok(derived)
}

impl Vault {
    /// The vault of this key.
    ///
    /// # Errors
    /// [`VaultError::Library`].
    pub fn new(key: [u8; KEY_LENGTH]) -> Result<Self, VaultError> {
        let sealing = UnboundKey::new(&AES_256_GCM_SIV, &derive(&key, "seal")?);
        Ok(Self { sealing: LessSafeKey::new(sealing.map_err(|_| VaultError::Library)?), key })
    }

    /// The key that `text` spells.
    ///
    /// # Errors
    /// [`VaultError::Key`] that names `source` and not the text.
    pub fn from_text(text: &str, source: &str) -> Result<Self, VaultError> {
        let digits = text.trim().as_bytes();
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let mut key = [0; KEY_LENGTH];
        if digits.len() != 2 * KEY_LENGTH {
            return Err(VaultError::Key(source.to_owned()));
        }
        for (byte, pair) in key.iter_mut().zip(digits.chunks(2)) {
            let wrong = || VaultError::Key(source.to_owned());
            let (high, low) = (digit(pair[0]).ok_or_else(wrong)?, digit(pair[1]).ok_or_else(wrong)?);
            // Two digits fit into a byte.
            *byte = (high * 16 + low) as u8;
        }
        Self::new(key)
    }

    /// The key in the file at `path`, which is made where there is none, for its
    /// owner alone.
    ///
    /// # Errors
    /// [`VaultError`] when it cannot be read or made, is none, or is open to others.
    pub fn open_file(path: &Path) -> Result<Self, VaultError> {
        let failed = |source| VaultError::File { path: path.to_owned(), source };
        match fs::read_to_string(path) {
            Ok(text) => {
                let mode = fs::metadata(path).map_err(failed)?.permissions().mode();
                if mode & 0o077 != 0 {
                    return Err(VaultError::Open(path.to_owned()));
                }
                Self::from_text(&text, &path.display().to_string())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut key = [0; KEY_LENGTH];
                aws_lc_rs::rand::fill(&mut key).map_err(|_| VaultError::Library)?;
                write_secret(path, format!("{}\n", hex(&key)).as_bytes()).map_err(failed)?;
                Self::new(key)
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// Tells keys apart without telling them.
    ///
    /// # Errors
    /// [`VaultError::Library`].
    pub fn id(&self) -> Result<String, VaultError> {
        Ok(hex(&derive(&self.key, "id")?[..8]))
    }

    /// A key for another purpose.
    ///
    /// # Errors
    /// [`VaultError::Library`].
    pub fn derive(&self, purpose: &str) -> Result<[u8; KEY_LENGTH], VaultError> {
        derive(&self.key, &format!("for {purpose}"))
    }

    /// Seals a text for one purpose.
    ///
    /// # Errors
    /// [`VaultError::Library`].
    pub fn seal(&self, purpose: &str, text: &str) -> Result<String, VaultError> {
        let mut nonce = [0; NONCE_LEN];
        aws_lc_rs::rand::fill(&mut nonce).map_err(|_| VaultError::Library)?;
        let mut bytes = text.as_bytes().to_vec();
        let key = Nonce::assume_unique_for_key(nonce);
        let sealed = self.sealing.seal_in_place_append_tag(key, Aad::from(purpose.as_bytes()), &mut bytes);
        sealed.map_err(|_| VaultError::Library)?;
        Ok(format!("{PREFIX}{}", BASE64_STANDARD_NO_PAD.encode([&nonce[..], &bytes].concat())))
    }

    /// Opens what was sealed for that purpose.
    ///
    /// # Errors
    /// [`VaultError::Sealed`].
    pub fn open(&self, purpose: &str, sealed: &str) -> Result<String, VaultError> {
        let text = sealed.strip_prefix(PREFIX).ok_or(VaultError::Sealed)?;
        let mut bytes = BASE64_STANDARD_NO_PAD.decode(text).map_err(|_| VaultError::Sealed)?;
        let (nonce, sealed) = bytes.split_first_chunk_mut::<NONCE_LEN>().ok_or(VaultError::Sealed)?;
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = self.sealing.open_in_place(nonce, Aad::from(purpose.as_bytes()), sealed);
        let opened = opened.map_err(|_| VaultError::Sealed)?;
        String::from_utf8(opened.to_vec()).map_err(|_| VaultError::Sealed)
    }
}

/// Whether a text is sealed, and not from before there was a key.
#[must_use]
pub fn is_sealed(text: &str) -> bool {
    text.starts_with(PREFIX)
}

/// Puts a file in place, for its owner alone, whole or not at all, also where the host
/// dies in the middle: half a key would keep the server from starting ever again.
///
/// # Errors
/// What the file system says.
pub fn write_secret(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let partial = path.with_extension("partial");
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&partial, path)?;
    fs::File::open(path.parent().unwrap_or(path))?.sync_all()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn vault(byte: u8) -> Vault {
        Vault::new([byte; KEY_LENGTH]).unwrap()
    }

    proptest! {
        #[test]
        fn what_was_sealed_is_opened(text in ".*") {
            let sealed = vault(1).seal("a", &text).unwrap();
            prop_assert!(is_sealed(&sealed) && (text.len() < 4 || !sealed.contains(&text)));
            prop_assert_eq!(vault(1).open("a", &sealed).unwrap(), text);
        }
    }

    #[test]
    fn nothing_else_opens_it() {
        let sealed = vault(1).seal("a", "s3cret").unwrap();
        assert!(matches!(vault(2).open("a", &sealed), Err(VaultError::Sealed)), "another key");
        assert!(matches!(vault(1).open("b", &sealed), Err(VaultError::Sealed)), "another purpose");
        assert_ne!(sealed, vault(1).seal("a", "s3cret").unwrap(), "the same text twice");
        for at in PREFIX.len()..sealed.len() {
            let mut changed = sealed.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            assert!(vault(1).open("a", &String::from_utf8(changed).unwrap()).is_err(), "byte {at}");
        }
        for bad in ["", "s3cret", "sealed:1:", "sealed:1:AAAA", "sealed:2:AAAA"] {
            assert!(vault(1).open("a", bad).is_err(), "{bad}");
        }
        assert_ne!(vault(1).id().unwrap(), vault(2).id().unwrap());
        assert_ne!(vault(1).derive("x").unwrap(), vault(1).derive("y").unwrap());
    }

    #[test]
    fn the_key_is_made_once_and_for_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret.key");
        let id = Vault::open_file(&path).unwrap().id().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Vault::open_file(&path).unwrap().id().unwrap(), id);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(Vault::from_text(&text, "x").unwrap().id().unwrap(), id);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Vault::open_file(&path), Err(VaultError::Open(_))));
        for bad in ["", "abc", &"g".repeat(64)] {
            let error = Vault::from_text(bad, "DORMOUSE_SECRET_KEY").unwrap_err();
            assert!(error.to_string().starts_with("DORMOUSE_SECRET_KEY is no secret key"));
        }
    }
}
