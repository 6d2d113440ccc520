//! GeneralNames (RFC 5280 4.2.1.6): the entries of a subject alternative name.
//!
//! `identity` shows them, `chain::name_constraints` and `chain::server_name` match them.
//! Uninterpreted forms are kept as [`GeneralName::Other`], because a name constraint of such a form
//! must reject them. Invariant: a list is parsed to its end or is an error.

use std::net::IpAddr;

use crate::der::{self, DerError, Reader};

/// One name. Texts are the unchecked bytes of an IA5String.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GeneralName<'a> {
    Email(&'a [u8]),
    Dns(&'a [u8]),
    Uri(&'a [u8]),
    Ip(&'a [u8]),
    /// Content of the `Name`.
    Directory(&'a [u8]),
    /// otherName, x400Address, ediPartyName, registeredID: the tag number of the choice.
    Other(u8),
}

impl<'a> GeneralName<'a> {
    /// Length in bytes: the cost of a comparison.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Email(bytes)
            | Self::Dns(bytes)
            | Self::Uri(bytes)
            | Self::Ip(bytes)
            | Self::Directory(bytes) => bytes.len(),
            Self::Other(_) => 0,
        }
    }

    /// Reads the next name of `list`.
    pub(crate) fn read(list: &mut Reader<'a>) -> Result<Self, DerError> {
        let value = list.next()?;
        Ok(match value.tag {
            0x81 => Self::Email(value.content),
            0x82 => Self::Dns(value.content),
            0xa4 => Self::Directory(directory(value.content)?),
            0x86 => Self::Uri(value.content),
            0x87 => Self::Ip(value.content),
            0xa0 | 0xa3 | 0xa5 | 0x88 => Self::Other(value.tag & 0x1f),
            _ => return Err(DerError::Tag),
        })
    }
}

/// directoryName is explicitly tagged, because a Name is a CHOICE.
fn directory(content: &[u8]) -> Result<&[u8], DerError> {
    let mut inside = Reader::new(content);
    let name = inside.expect(der::SEQUENCE)?.content;
    inside.finish()?;
    crate::name::check(name)?;
    Ok(name)
}

/// The entries of a GeneralNames extension value, whose outer SEQUENCE must fill it. Ends after the
/// first error.
pub(crate) fn parse_list(value: &[u8]) -> impl Iterator<Item = Result<GeneralName<'_>, DerError>> {
    let mut file = Reader::new(value);
    let mut opened = Some(file.nested(der::SEQUENCE).and_then(|inside| file.finish().map(|()| inside)));
    std::iter::from_fn(move || match opened.take()? {
        Ok(inside) if inside.is_empty() => None,
        Ok(mut inside) => {
            let name = GeneralName::read(&mut inside);
            if name.is_ok() {
                opened = Some(Ok(inside));
            }
            Some(name)
        }
        Err(error) => Some(Err(error)),
    })
}

/// An iPAddress of a subject alternative name: 4 or 16 bytes.
pub(crate) fn ip_address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(four));
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}
