//! Certificates in PEM files, and what they say of themselves, as far as it explains why TLS refuses
//! them.

use std::path::Path;

use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::files;

/// What a certificate says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The version of X.509: 1 to 3.
    pub version: u8,
    /// Whether it may sign other certificates (`CA:TRUE`).
    pub is_authority: bool,
}

/// Reads the certificates of a PEM file, one at least, and the file's content.
///
/// # Errors
/// The file, and what is wrong with it.
pub fn read(path: &Path) -> Result<(Vec<CertificateDer<'static>>, Vec<u8>), String> {
    let pem = bytes_of(path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok((certificates, pem)),
        Ok(_) => Err(format!(
            "{}: there is no certificate in it; PEM is expected",
            path.display()
        )),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// Like [`read`], for a file whose first certificate identifies a server or a client.
///
/// # Errors
/// As for [`read`], or when TLS refuses that certificate for its version.
pub fn read_identity(path: &Path) -> Result<(Vec<CertificateDer<'static>>, Vec<u8>), String> {
    let (certificates, pem) = read(path)?;
    match certificates.first().and_then(|first| facts(first)) {
        Some(Facts {
            version: version @ ..3,
            ..
        }) => Err(format!(
            "{}: the certificate is of X.509 version {version}, and TLS needs version 3: make it \
             with extensions, such as subjectAltName (docs/security.md has the commands)",
            path.display()
        )),
        _ => Ok((certificates, pem)),
    }
}

/// Reads the private key of a PEM file, and the file's content.
///
/// # Errors
/// The file, and what is wrong with it.
pub fn read_key(path: &Path) -> Result<(PrivateKeyDer<'static>, Vec<u8>), String> {
    let pem = bytes_of(path)?;
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| {
        format!(
            "{}: there is no private key in it ({error})",
            path.display()
        )
    })?;
    Ok((key, pem))
}

fn bytes_of(path: &Path) -> Result<Vec<u8>, String> {
    files::read_limited(path, files::LARGEST_TEXT).map_err(|error| error.to_string())
}

/// The tags of the elements that are looked at (X.690, 8.1.2).
mod tag {
    pub const BOOLEAN: u8 = 0x01;
    pub const INTEGER: u8 = 0x02;
    pub const OCTET_STRING: u8 = 0x04;
    pub const OBJECT_IDENTIFIER: u8 = 0x06;
    pub const SEQUENCE: u8 = 0x30;
    /// `[0]` of a `TBSCertificate` (RFC 5280, 4.1).
    pub const VERSION: u8 = 0xa0;
    /// `[3]` of a `TBSCertificate`.
    pub const EXTENSIONS: u8 = 0xa3;
}

/// The object identifier of the extension `basicConstraints`: 2.5.29.19.
const BASIC_CONSTRAINTS: [u8; 3] = [0x55, 0x1d, 0x13];

/// What a certificate says of itself; `None` if it is not one.
pub fn facts(certificate: &[u8]) -> Option<Facts> {
    let certificate = Elements(certificate).expect(tag::SEQUENCE)?;
    let fields = Elements(Elements(certificate).expect(tag::SEQUENCE)?);

    // Version 1 is the default, and written as 0 like all of them one less.
    let version = match fields.clone().next()? {
        (tag::VERSION, version) => *Elements(version).expect(tag::INTEGER)?.last()?,
        _ => 0,
    };
    let extensions = fields
        .clone()
        .find(|(tag, _)| *tag == tag::EXTENSIONS)
        .and_then(|(_, extensions)| Elements(extensions).expect(tag::SEQUENCE));
    Some(Facts {
        version: version.saturating_add(1),
        is_authority: extensions.is_some_and(|list| Elements(list).any(is_authority)),
    })
}

/// Whether this extension says that the certificate is an authority's.
fn is_authority((_, extension): (u8, &[u8])) -> bool {
    let mut parts = Elements(extension);
    if parts.next() != Some((tag::OBJECT_IDENTIFIER, &BASIC_CONSTRAINTS)) {
        return false;
    }
    // A flag that it is critical may stand before the value.
    let value = parts.find(|(tag, _)| *tag == tag::OCTET_STRING);
    let flag = value
        .and_then(|(_, value)| Elements(value).expect(tag::SEQUENCE))
        .and_then(|constraints| Elements(constraints).expect(tag::BOOLEAN));
    flag.is_some_and(|flag| flag != [0])
}

/// The elements of DER (X.690), each with its tag and its content. They end with the first that is
/// cut off.
#[derive(Clone)]
struct Elements<'a>(&'a [u8]);

impl<'a> Elements<'a> {
    /// The content of the first element, if it has this tag.
    fn expect(mut self, tag: u8) -> Option<&'a [u8]> {
        self.next()
            .filter(|(found, _)| *found == tag)
            .map(|(_, content)| content)
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (&[tag, first], mut rest) = self.0.split_first_chunk()?;
        let mut length = usize::from(first);
        if first & 0x80 != 0 {
            let (digits, after) = rest.split_at_checked(usize::from(first & 0x7f))?;
            let add =
                |length: usize, &digit: &u8| length.checked_mul(256)?.checked_add(digit.into());
            length = digits.iter().try_fold(0, add)?;
            rest = after;
        }
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

    use super::*;

    fn certificate(is_ca: IsCa) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["localhost".into()]).unwrap();
        params.is_ca = is_ca;
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn authorities_are_told_from_servers() {
        for (is_ca, is_authority) in [
            (IsCa::NoCa, false),
            (IsCa::ExplicitNoCa, false),
            (IsCa::Ca(BasicConstraints::Unconstrained), true),
            (IsCa::Ca(BasicConstraints::Constrained(1)), true),
        ] {
            let found = facts(&certificate(is_ca));
            assert_eq!(
                found,
                Some(Facts {
                    version: 3,
                    is_authority
                })
            );
        }
    }

    #[test]
    fn damaged_certificates_say_nothing_wrong_and_end_no_program() {
        let whole = certificate(IsCa::NoCa);
        for end in 0..whole.len() {
            assert_eq!(facts(&whole[..end]), None, "{end} bytes");
        }
        for position in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[position] ^= 0xff;
            let _ = facts(&damaged);
        }
    }
}
