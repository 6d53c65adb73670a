//! Which host the first bytes of a connection name: the ClientHello of TLS
//! (RFC 8446, section 4.1.2; RFC 6066, section 3), read and nothing more.

use dormouse_provider::HostName;
use rustls::server::Acceptor;

/// Largest ClientHello that is read, in bytes: with keys that withstand quantum
/// computers and a ticket, some 4 KiB.
pub(crate) const MAX_HELLO: usize = 16 << 10;

/// What the first bytes say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Hello {
    /// It may become one.
    More,
    /// TLS, to this host.
    Tls(HostName),
    /// TLS that names no host, or an address.
    Nameless,
    /// Something else, or nothing that TLS allows.
    Other,
}

/// Reads what has come so far.
pub(crate) fn read(bytes: &[u8]) -> Hello {
    // A record of the handshake (RFC 8446, section 5.1).
    match bytes {
        [] | [22] => return Hello::More,
        [22, 3, ..] => {}
        _ => return Hello::Other,
    }
    let mut acceptor = Acceptor::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        match acceptor.read_tls(&mut rest) {
            Ok(0) => break,
            Ok(_) => {}
            Err(_) => return Hello::Other,
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                return match accepted.client_hello().server_name().map(str::parse) {
                    Some(Ok(name)) => Hello::Tls(name),
                    Some(Err(_)) => Hello::Other,
                    None => Hello::Nameless,
                };
            }
            Ok(None) => {}
            Err(_) => return Hello::Other,
        }
    }
    if bytes.len() >= MAX_HELLO { Hello::Other } else { Hello::More }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use rustls::pki_types::ServerName;

    use super::*;

    /// What a client of ours says first.
    pub(crate) fn hello(name: &str, with_name: bool) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.enable_sni = with_name;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// The same with another name in it, of the same length.
    fn renamed(name: &[u8]) -> Vec<u8> {
        let stand_in = "x".repeat(name.len() - 5) + ".test";
        let mut bytes = hello(&stand_in, true);
        let at = bytes.windows(name.len()).position(|window| window == stand_in.as_bytes()).unwrap();
        bytes[at..at + name.len()].copy_from_slice(name);
        bytes
    }

    #[test]
    fn the_name_is_read_in_its_one_form() {
        let name = |text: &str| Hello::Tls(text.parse().unwrap());
        assert_eq!(read(&hello("api.github.com", true)), name("api.github.com"));
        assert_eq!(read(&renamed(b"API.GitHub.com")), name("api.github.com"));
        assert_eq!(read(&hello("github.com", false)), Hello::Nameless);
        // An address is sent without a name.
        assert_eq!(read(&hello("1.2.3.4", true)), Hello::Nameless);
    }

    #[test]
    fn names_that_could_be_read_in_two_ways_are_none() {
        for bad in [
            &b"api.test\0.evil.test"[..],
            b"api.test/evil.test",
            b"api..evil.test",
            b" api.github.com",
            b"b\xc3\xbccher.test",
            b"api.test:443.evil",
        ] {
            let read = read(&renamed(bad));
            assert!(matches!(read, Hello::Other | Hello::Nameless), "{bad:?}: {read:?}");
        }
    }

    #[test]
    fn it_comes_in_pieces() {
        let bytes = hello("github.com", true);
        for cut in 0..bytes.len() {
            assert_eq!(read(&bytes[..cut]), Hello::More, "{cut}");
        }
        // In records of one byte each.
        let handshake = &bytes[5..];
        let records: Vec<u8> = handshake.iter().flat_map(|byte| [22, 3, 1, 0, 1, *byte]).collect();
        assert_eq!(read(&records), Hello::Tls("github.com".parse().unwrap()));
        assert_eq!(read(&[22; MAX_HELLO]), Hello::Other);
        for other in [&b"GET / HTTP/1.1\r\n"[..], b"SSH-2.0-x", b"\x16GET", b"\x80\x2e"] {
            assert_eq!(read(other), Hello::Other);
        }
    }

    /// Twice the same extension, with another name.
    #[test]
    fn two_names_are_none() {
        let bytes = hello("github.com", true);
        let name = b"github.com";
        let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
        // Type and length, length of the list, type and length of the name.
        let extension = bytes[at - 9..at + name.len()].to_vec();
        let mut twice = bytes.clone();
        twice.splice(at + name.len()..at + name.len(), extension.iter().copied());
        let add = |bytes: &mut [u8], at: usize, by: usize| {
            let value = u16::from_be_bytes([bytes[at], bytes[at + 1]]) + u16::try_from(by).unwrap();
            bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
        };
        add(&mut twice, 3, extension.len());
        add(&mut twice, 7, extension.len());
        // Behind version, random, session, suites and compression.
        let session = usize::from(twice[43]);
        let suites = usize::from(u16::from_be_bytes([twice[44 + session], twice[45 + session]]));
        add(&mut twice, 44 + session + 2 + suites + 2, extension.len());
        assert_eq!(read(&twice), Hello::Other);
    }

    /// What clients say that hide their names (RFC 9849) or send what nobody knows
    /// (RFC 8701): the name outside is the one that counts, as it is for the other side.
    #[test]
    fn what_is_not_known_is_passed_over() {
        let kept = |name: &str| std::fs::read(format!("{CORPUS}/{name}")).unwrap();
        let github = || Hello::Tls("github.com".parse().unwrap());
        assert_eq!(read(&kept("grease")), github());
        let hidden = encrypted("github.com");
        // Type of the extension, encrypted_client_hello.
        assert!(hidden.windows(2).any(|window| window == [0xfe, 0x0d]), "no ECH in it");
        assert_eq!(read(&hidden), github());
    }

    /// The first bytes of a client that pretends to have encrypted another hello.
    fn encrypted(name: &str) -> Vec<u8> {
        use rustls::client::{EchGreaseConfig, EchMode};
        use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_128 as SUITE;
        use rustls::crypto::hpke::Hpke as _;
        let (key, _) = SUITE.generate_key_pair().unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_ech(EchMode::Grease(EchGreaseConfig::new(SUITE, key)))
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/hello");

    /// Whatever comes is read to an end, and what is read stays so when more comes.
    #[test]
    fn nothing_breaks_the_reader() {
        dormouse_fuzz::run(CORPUS, |bytes| {
            let whole = read(bytes);
            let part = read(&bytes[..bytes.len() / 2]);
            assert!(part == Hello::More || part == whole, "{part:?}, then {whole:?}");
            assert!(bytes.len() < MAX_HELLO || whole != Hello::More);
        });
    }
}
