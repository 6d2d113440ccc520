//! From a document to the resource it means, with the values that it leaves to this process's environment.
//!
//! The one way in, for a document that is written (`change`) and for one that is stored (`publish`): what the first accepts the second
//! pushes. The document itself keeps its references; only the resource, which travels to the data planes, has the values.

use aws_lc_rs::digest::{Context, SHA256};
use model::{Id, Kind, Problem, Resource, resolve_references};
use pki::Keyring;
use serde_json::Value;

/// A resource, and what it took from the environment.
#[derive(Debug)]
pub struct Compiled {
    /// The resource.
    pub resource: Resource,
    /// A digest over references and values; none for a document that says everything itself.
    drawn: Option<u64>,
}

impl Compiled {
    /// The version under which data planes get it: the revision that wrote the document and, where there are references, what they
    /// stand for now. So a variable that was changed while the control plane was down reaches nodes that hold the old value.
    pub fn version(&self, modified: u64) -> u64 {
        self.drawn.map_or(modified, |drawn| drawn ^ modified)
    }
}

/// Checks a document and compiles it.
///
/// # Errors
/// The first problem: a reference that cannot be resolved, or what `model::check` says.
pub fn compile(kind: Kind, id: &Id, document: &Value, keyring: &Keyring) -> Result<Compiled, Problem> {
    compile_in(kind, id, document, keyring, &|name| std::env::var(name).ok())
}

fn compile_in(
    kind: Kind,
    id: &Id,
    document: &Value,
    keyring: &Keyring,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Compiled, Problem> {
    let resolved = resolve_references(kind, document, environment)?;
    for (uri, _) in resolved.drawn() {
        tracing::info!("fetching data from env uri: {uri}");
    }
    let resource = model::check(kind, id, resolved.document(), keyring)?;
    Ok(Compiled { resource, drawn: digest(resolved.drawn()) })
}

fn digest<'a>(drawn: impl Iterator<Item = (&'a str, &'a str)>) -> Option<u64> {
    let mut drawn = drawn.peekable();
    drawn.peek()?;
    let mut context = Context::new(&SHA256);
    for text in drawn.flat_map(|(uri, value)| [uri, value]) {
        context.update(&text.len().to_le_bytes());
        context.update(text.as_bytes());
    }
    context.finish().as_ref().first_chunk().map(|first| u64::from_le_bytes(*first))
}

#[cfg(test)]
mod tests {
    use pki::mint::{Authority, AuthoritySpec, LeafSpec, Minted};
    use serde_json::json;

    use super::*;

    fn pair(authority: &Authority) -> Minted {
        authority.issue(&LeafSpec::server("test.com")).unwrap()
    }

    fn compiled(document: &Value, minted: &Minted) -> Result<Compiled, Problem> {
        let environment = |name: &str| match name {
            "CERT" => Some(minted.certificate_pem.clone()),
            "KEY" => Some(minted.key_pem.to_string()),
            "AGAIN" => Some("$env://CERT".to_owned()),
            _ => None,
        };
        compile_in(Kind::Ssl, &Id::parse("1").unwrap(), document, &Keyring::none(), &environment)
    }

    #[test]
    fn a_reference_means_its_value_and_is_part_of_the_version() {
        let authority = Authority::root(&AuthoritySpec::new("CA")).unwrap();
        let (one, two) = (pair(&authority), pair(&authority));
        let plain = json!({"cert": one.certificate_pem, "key": &*one.key_pem, "sni": "test.com"});
        let refers = json!({"cert": "$env://CERT", "key": "$env://KEY", "sni": "test.com"});
        let written = compiled(&plain, &one).unwrap();
        let drawn = compiled(&refers, &one).unwrap();
        assert!(written.resource == drawn.resource);
        assert_eq!(written.version(7), 7);
        assert_eq!(drawn.version(7), compiled(&refers, &one).unwrap().version(7));
        assert_ne!(drawn.version(7), drawn.version(8));
        assert_ne!(drawn.version(7), compiled(&refers, &two).unwrap().version(7));
    }

    #[test]
    fn a_value_is_judged_like_a_text_and_never_quoted() {
        let authority = Authority::root(&AuthoritySpec::new("CA")).unwrap();
        let (own, other) = (pair(&authority), pair(&authority));
        for (document, field) in [
            (json!({"cert": "$env://KEY", "key": "$env://KEY", "sni": "test.com"}), "cert"),
            (json!({"cert": "$env://CERT", "key": "$env://CERT", "sni": "test.com"}), "key"),
            (json!({"cert": other.certificate_pem, "key": "$env://KEY", "sni": "test.com"}), "key"),
            // A value is no reference again.
            (json!({"cert": "$env://AGAIN", "key": "$env://KEY", "sni": "test.com"}), "cert"),
            (json!({"cert": "$env://CERT", "key": "$env://GONE", "sni": "test.com"}), "key"),
        ] {
            let problem = compiled(&document, &own).unwrap_err();
            assert_eq!(problem.field, field, "{problem}");
            let shown = format!("{problem:?}");
            let mut secrets = own.key_pem.lines().filter(|line| !line.starts_with('-'));
            assert!(!secrets.any(|line| shown.contains(line)), "{shown}");
        }
    }
}
