//! The parsed fields of a certificate (RFC 5280 4.1 and 4.2).
//!
//! `chain` parses the certificates of a peer straight into [`Fields`] without copying them;
//! [`super::Certificate`] keeps its own. Small values (dates, flags, usages) are decoded here; long
//! ones (names, keys, constraints) stay spans of the DER. Invariant: the first critical extension
//! that is not processed is recorded, so none is overlooked.

use data_encoding::HEXUPPER;

use super::{CERTIFICATE_BYTES_MAX, CertError};
use crate::der::{self, DerError, Reader, Span, Tlv};
use crate::name;
use crate::signature::PublicKey;

/// Most extensions of one certificate.
pub(crate) const EXTENSIONS_MAX: usize = 48;

/// basicConstraints (RFC 5280 4.2.1.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BasicConstraints {
    pub(crate) ca: bool,
    /// Saturates at `u16::MAX`, which is longer than any path.
    pub(crate) path_length: Option<u16>,
}

/// keyUsage (RFC 5280 4.2.1.3), bit 0 at the left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyUsage(u16);

impl KeyUsage {
    pub(crate) fn key_cert_sign(self) -> bool {
        self.0 & (0x8000 >> 5) != 0
    }

    /// digitalSignature or keyAgreement: the uses of a key in a TLS handshake.
    pub(crate) fn signs_or_agrees_keys(self) -> bool {
        self.0 & (0x8000 | (0x8000 >> 4)) != 0
    }

    /// keyEncipherment: RSA key transport of TLS 1.2.
    pub(crate) fn key_encipherment(self) -> bool {
        self.0 & (0x8000 >> 2) != 0
    }

    pub(crate) fn crl_sign(self) -> bool {
        self.0 & (0x8000 >> 6) != 0
    }
}

/// The fields. Spans are relative to the start of the certificate.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fields {
    /// 1, 2 or 3.
    pub(crate) version: u8,
    /// TBSCertificate, header included: the signed bytes.
    pub(crate) tbs: Span,
    /// Content of the INTEGER.
    pub(crate) serial: Span,
    /// Content of the outer AlgorithmIdentifier, equal to the inner one.
    pub(crate) signature_algorithm: Span,
    pub(crate) signature: Span,
    /// Content of the Name.
    pub(crate) issuer: Span,
    /// Content of the Name.
    pub(crate) subject: Span,
    /// Seconds since 1970, inclusive.
    pub(crate) not_before: i64,
    /// Seconds since 1970, inclusive.
    pub(crate) not_after: i64,
    /// The whole SubjectPublicKeyInfo. Its parts are parsed again on use: that costs little next to
    /// any use of a key, and a process may hold millions of certificates.
    pub(crate) spki: Span,
    pub(crate) basic_constraints: Option<BasicConstraints>,
    pub(crate) key_usage: Option<KeyUsage>,
    /// Content of the SEQUENCE OF KeyPurposeId.
    pub(crate) extended_key_usage: Option<Span>,
    /// Content of the extension: a GeneralNames.
    pub(crate) subject_alt_name: Option<Span>,
    /// Content of the extension: a NameConstraints.
    pub(crate) name_constraints: Option<Span>,
    /// Content of the identifier.
    pub(crate) subject_key_id: Option<Span>,
    /// Content of the keyIdentifier, when the extension has one.
    pub(crate) authority_key_id: Option<Span>,
    /// The OID of the first critical extension that is not processed.
    pub(crate) unknown_critical: Option<Span>,
}

impl Fields {
    /// Parses one certificate that fills `der`.
    pub(crate) fn read(der: &[u8]) -> Result<Self, CertError> {
        if der.len() > CERTIFICATE_BYTES_MAX {
            return Err(CertError::TooLarge { found: der.len() });
        }
        let outside = CertError::malformed("outer structure");
        let mut file = Reader::new(der);
        let mut certificate = file.nested(der::SEQUENCE).map_err(&outside)?;
        file.finish().map_err(&outside)?;
        let tbs = certificate.expect(der::SEQUENCE).map_err(&outside)?;
        let algorithm =
            certificate.expect(der::SEQUENCE).map_err(CertError::malformed("signatureAlgorithm"))?;
        let signature = bits(&mut certificate).map_err(CertError::malformed("signature"))?;
        certificate.finish().map_err(&outside)?;

        let mut fields =
            Self { tbs: tbs.outer, signature_algorithm: algorithm.inner, signature, ..Self::default() };
        fields.read_tbs(der, Reader::within(der, tbs.inner), &algorithm)?;
        Ok(fields)
    }

    fn read_tbs(
        &mut self,
        der: &[u8],
        mut tbs: Reader<'_>,
        outer_algorithm: &Tlv<'_>,
    ) -> Result<(), CertError> {
        self.version = read_version(&mut tbs).map_err(CertError::malformed("version"))?;
        let serial = tbs.expect(der::INTEGER).map_err(CertError::malformed("serialNumber"))?;
        // RFC 5280 4.1.2.2 wants positive numbers of at most 20 bytes. Others exist and are only
        // compared, so they are accepted.
        if serial.content.is_empty() {
            return Err(CertError::malformed("serialNumber")(DerError::Value));
        }
        self.serial = serial.inner;
        let algorithm = tbs.expect(der::SEQUENCE).map_err(CertError::malformed("signature algorithm"))?;
        if algorithm.content != outer_algorithm.content {
            // RFC 5280 4.1.1.2: the same identifier inside and outside of what is signed
            return Err(CertError::malformed("the two signature algorithms differ")(DerError::Value));
        }
        self.issuer = read_name(&mut tbs).map_err(CertError::malformed("issuer"))?;
        (self.not_before, self.not_after) =
            read_validity(&mut tbs).map_err(CertError::malformed("validity"))?;
        self.subject = read_name(&mut tbs).map_err(CertError::malformed("subject"))?;
        self.read_key(der, &mut tbs).map_err(CertError::malformed("subjectPublicKeyInfo"))?;
        let rest = CertError::malformed("after subjectPublicKeyInfo");
        // issuerUniqueID and subjectUniqueID: unused.
        tbs.optional(der::context(1)).map_err(&rest)?;
        tbs.optional(der::context(2)).map_err(&rest)?;
        if let Some(extensions) = tbs.optional(der::context_constructed(3)).map_err(&rest)? {
            if self.version != 3 {
                return Err(CertError::malformed("extensions in a certificate that is not version 3")(
                    DerError::Value,
                ));
            }
            self.read_extensions(der, Reader::within(der, extensions.inner))?;
        }
        tbs.finish().map_err(&rest)
    }

    fn read_key(&mut self, der: &[u8], tbs: &mut Reader<'_>) -> Result<(), DerError> {
        self.spki = tbs.expect(der::SEQUENCE)?.outer;
        key_parts(der, self.spki).map(drop)
    }

    /// The public key. `der` must be the certificate of these fields.
    pub(crate) fn key<'a>(&self, der: &'a [u8]) -> PublicKey<'a> {
        // Parsing succeeded once, so it succeeds again.
        let (algorithm, key) = key_parts(der, self.spki).unwrap_or_default();
        PublicKey { algorithm: algorithm.slice(der), key: key.slice(der) }
    }

    fn read_extensions(&mut self, der: &[u8], mut wrapped: Reader<'_>) -> Result<(), CertError> {
        let malformed = CertError::malformed("extensions");
        let mut extensions = wrapped.nested(der::SEQUENCE).map_err(&malformed)?;
        wrapped.finish().map_err(&malformed)?;
        let mut seen = [Span::default(); EXTENSIONS_MAX];
        let mut slots = seen.iter_mut();
        let mut count = 0;
        while !extensions.is_empty() {
            let extension = Extension::read(&mut extensions).map_err(&malformed)?;
            let slot = slots.next().ok_or(CertError::TooManyExtensions)?;
            *slot = extension.oid.inner;
            self.read_extension(der, &extension)?;
            count += 1;
        }
        reject_repeated(der, seen.get(..count).unwrap_or_default())
    }

    fn read_extension(&mut self, der: &[u8], extension: &Extension<'_>) -> Result<(), CertError> {
        // id-ce is 2.5.29
        let [0x55, 0x1d, number] = extension.oid.content else {
            self.record_unknown(extension);
            return Ok(());
        };
        let value = Reader::within(der, extension.value.inner);
        match number {
            14 => {
                self.subject_key_id = Some(
                    single_value(value, der::OCTET_STRING)
                        .map_err(CertError::malformed("subjectKeyIdentifier"))?
                        .inner,
                )
            }
            15 => self.key_usage = Some(read_key_usage(value).map_err(CertError::malformed("keyUsage"))?),
            17 => self.subject_alt_name = Some(extension.value.inner),
            19 => {
                let read = read_basic_constraints(value).map_err(CertError::malformed("basicConstraints"))?;
                self.basic_constraints = Some(read);
            }
            // cRLDistributionPoints and certificatePolicies change no result: CRLs come from the
            // operator, and every policy is acceptable (RFC 5280 6.1.1 c, any-policy). OpenSSL
            // accepts both as critical.
            31 | 32 => {}
            30 => self.name_constraints = Some(extension.value.inner),
            // The identifier only helps to find the issuer; an unreadable form counts as absent.
            35 => self.authority_key_id = read_authority_key_id(value).unwrap_or(None),
            37 => {
                let read = read_extended_key_usage(value).map_err(CertError::malformed("extKeyUsage"))?;
                self.extended_key_usage = Some(read);
            }
            _ => self.record_unknown(extension),
        }
        Ok(())
    }

    fn record_unknown(&mut self, extension: &Extension<'_>) {
        if extension.critical && self.unknown_critical.is_none() {
            self.unknown_critical = Some(extension.oid.inner);
        }
    }

    pub(crate) fn is_self_issued(&self, der: &[u8]) -> bool {
        name::names_match(self.subject.slice(der), self.issuer.slice(der))
    }
}

/// One extension of a certificate or CRL.
pub(crate) struct Extension<'a> {
    pub(crate) oid: Tlv<'a>,
    pub(crate) critical: bool,
    /// The OCTET STRING; its content is the extension's own DER.
    pub(crate) value: Tlv<'a>,
}

impl<'a> Extension<'a> {
    pub(crate) fn read(list: &mut Reader<'a>) -> Result<Self, DerError> {
        let mut parts = list.nested(der::SEQUENCE)?;
        let oid = parts.expect(der::OID)?;
        // `critical FALSE` written out is not DER, but common enough that OpenSSL and webpki read
        // it
        let critical = match parts.optional(der::BOOLEAN)? {
            Some(flag) => der::boolean(flag.content)?,
            None => false,
        };
        let value = parts.expect(der::OCTET_STRING)?;
        parts.finish()?;
        Ok(Self { oid, critical, value })
    }
}

/// Rejects a repeated OID. The lists hold at most `EXTENSIONS_MAX`.
pub(crate) fn reject_repeated(der: &[u8], oids: &[Span]) -> Result<(), CertError> {
    for (index, oid) in oids.iter().enumerate() {
        let oid = oid.slice(der);
        if oids.iter().skip(index + 1).any(|other| other.slice(der) == oid) {
            let mut text = String::new();
            name::write_oid(&mut text, oid);
            return Err(CertError::RepeatedExtension { oid: text });
        }
    }
    Ok(())
}

/// The first DER value of `bytes`, or all of them when there is none. A TRUSTED CERTIFICATE block
/// has trust settings behind the certificate.
pub(crate) fn first_value(bytes: &[u8]) -> &[u8] {
    Reader::new(bytes).next().map_or(bytes, |value| value.outer.slice(bytes))
}

/// An INTEGER's content as OpenSSL prints serial numbers.
pub(crate) fn serial_hex(content: &[u8]) -> String {
    let negative = content.first().is_some_and(|first| first & 0x80 != 0);
    let mut magnitude: Vec<u8> = content.to_vec();
    if negative {
        // two's complement
        for byte in &mut magnitude {
            *byte = !*byte;
        }
        for byte in magnitude.iter_mut().rev() {
            let (sum, overflow) = byte.overflowing_add(1);
            *byte = sum;
            if !overflow {
                break;
            }
        }
    }
    let zeros = magnitude.iter().take_while(|byte| **byte == 0).count();
    let significant = magnitude.get(zeros..).unwrap_or_default();
    let mut text = String::with_capacity(significant.len() * 2 + 1);
    if negative {
        text.push('-');
    }
    if significant.is_empty() {
        text.push_str("00");
    }
    HEXUPPER.encode_append(significant, &mut text);
    text
}

/// Contents of a SubjectPublicKeyInfo's AlgorithmIdentifier and BIT STRING.
fn key_parts(der: &[u8], spki: Span) -> Result<(Span, Span), DerError> {
    let mut parts = Reader::within(der, spki).nested(der::SEQUENCE)?;
    let algorithm = parts.expect(der::SEQUENCE)?.inner;
    let key = bits(&mut parts)?;
    parts.finish()?;
    Ok((algorithm, key))
}

fn bits(reader: &mut Reader<'_>) -> Result<Span, DerError> {
    let value = reader.expect(der::BIT_STRING)?;
    der::whole_bytes(value.content)?;
    Ok(value.inner.skip_first())
}

fn read_version(tbs: &mut Reader<'_>) -> Result<u8, DerError> {
    if tbs.peek() != Some(der::context_constructed(0)) {
        return Ok(1);
    }
    let mut inside = tbs.nested(der::context_constructed(0))?;
    let version = inside.expect(der::INTEGER)?.content;
    inside.finish()?;
    match version {
        [0] => Ok(1), // the default, written out: not DER, but harmless
        [1] => Ok(2),
        [2] => Ok(3),
        _ => Err(DerError::Value),
    }
}

fn read_name(tbs: &mut Reader<'_>) -> Result<Span, DerError> {
    let name = tbs.expect(der::SEQUENCE)?;
    name::check(name.content)?;
    Ok(name.inner)
}

fn read_validity(tbs: &mut Reader<'_>) -> Result<(i64, i64), DerError> {
    let mut dates = tbs.nested(der::SEQUENCE)?;
    let not_before = der::time(&dates.next()?)?;
    let not_after = der::time(&dates.next()?)?;
    dates.finish()?;
    Ok((not_before, not_after))
}

/// Reads the only value of `reader`.
pub(crate) fn single_value<'a>(mut reader: Reader<'a>, tag: u8) -> Result<Tlv<'a>, DerError> {
    let value = reader.expect(tag)?;
    reader.finish()?;
    Ok(value)
}

fn read_key_usage(value: Reader<'_>) -> Result<KeyUsage, DerError> {
    Ok(KeyUsage(der::named_bits(single_value(value, der::BIT_STRING)?.content)?))
}

fn read_basic_constraints(mut value: Reader<'_>) -> Result<BasicConstraints, DerError> {
    let mut parts = value.nested(der::SEQUENCE)?;
    value.finish()?;
    let ca = match parts.optional(der::BOOLEAN)? {
        Some(flag) => der::boolean(flag.content)?,
        None => false,
    };
    let path_length = match parts.optional(der::INTEGER)? {
        Some(number) => Some(u16::try_from(der::small_integer(number.content)?).unwrap_or(u16::MAX)),
        None => None,
    };
    parts.finish()?;
    Ok(BasicConstraints { ca, path_length })
}

/// SEQUENCE SIZE (1..MAX) OF KeyPurposeId.
fn read_extended_key_usage(value: Reader<'_>) -> Result<Span, DerError> {
    let list = single_value(value, der::SEQUENCE)?;
    let mut purposes = Reader::new(list.content);
    if purposes.is_empty() {
        return Err(DerError::Value);
    }
    while !purposes.is_empty() {
        purposes.expect(der::OID)?;
    }
    Ok(list.inner)
}

fn read_authority_key_id(mut value: Reader<'_>) -> Result<Option<Span>, DerError> {
    let mut parts = value.nested(der::SEQUENCE)?;
    Ok(parts.optional(der::context(0))?.map(|id| id.inner))
}
