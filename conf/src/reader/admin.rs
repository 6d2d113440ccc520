//! `deployment.admin`: who may use the Admin API, by key and by client certificate.
//!
//! Invariant: no message shows a key, and a key that looks like a hash is never taken as a key in
//! clear.

use data_encoding::HEXLOWER_PERMISSIVE;
use model::ClientIdentity;

use super::Reader;
use super::admin_listen::allows_only_loopback;
use crate::settings::{
    AdminKey, AdminKeyValue, AdminListener, AdminRole, AdminSettings, ClientRole, DeploymentRole,
};
use crate::tree::{YamlNode, YamlValue};
use crate::value::{self, ValueError};

const ADMIN_KEY: &str = "deployment.admin.admin_key";
const KEY_REQUIRED: &str = "deployment.admin.admin_key_required";
const CLIENT_ROLES: &str = "deployment.admin.client_roles";

/// The keys of APISIX's old default configuration and of its documentation.
const PUBLIC_KEYS: [&str; 2] = ["edd1c9f034335f136f87ad84b625c8f1", "4054f7cf07e344346cd3f287985e76a2"];

/// Characters below which a key in clear gets a warning.
const KEY_CHARACTERS: usize = 16;

/// A member of `client_roles[].match`, and the attribute of an allow-list that it is compared as.
const MATCHERS: [(&str, &str); 4] =
    [("san_uri", "uri"), ("san_dns", "dns"), ("subject", "subject"), ("spki_sha256", "spki_sha256")];

impl Reader<'_> {
    pub(super) fn admin(&mut self, role: DeploymentRole) -> AdminSettings {
        // The role data_plane has no Admin API.
        let enabled = self.flag("apisix.enable_admin") && role != DeploymentRole::DataPlane;
        let key_required = self.required(KEY_REQUIRED, value::boolean);
        let keys = self.admin_keys(key_required);
        let listeners = self.admin_listeners(enabled);
        let client_roles = self.client_roles(enabled, key_required, &listeners);
        if enabled && !key_required {
            self.warn_of_open_listeners(&listeners);
        }
        if enabled && key_required && keys.is_empty() && !self.states_client_roles() {
            let message = "ERROR: missing valid Admin API token. Please modify \"admin_key\": give at least one \
                           {name, key, role} (an empty key is generated), or set admin_key_required: false";
            self.problem(ADMIN_KEY, message.into());
        }
        AdminSettings {
            enabled,
            key_required,
            keys,
            client_roles,
            listeners,
            protect_client_auth: self.flag("deployment.admin.protect_client_auth"),
            cors: self.flag("deployment.admin.enable_admin_cors"),
            v3: self.optional("deployment.admin.admin_api_version", value::text).as_deref() == Some("v3"),
        }
    }

    fn admin_keys(&mut self, key_required: bool) -> Vec<AdminKey> {
        let entries = self.optional(ADMIN_KEY, |node| {
            value::list(node, |entry| Ok((entry.line, admin_key(entry, key_required)?)))
        });
        let entries = entries.unwrap_or_default();
        for (nth, (line, key)) in entries.iter().enumerate() {
            let twin =
                |(_, other): &(usize, AdminKey)| other.key == key.key && key.key != AdminKeyValue::Generated;
            if entries.iter().take(nth).any(twin) {
                let message = format!("the entry {:?} has the same key as another one", key.name);
                self.problem_at(Some(*line), ADMIN_KEY, message);
            }
            if let Some(weakness) = weakness(&key.key).filter(|_| key_required) {
                let text = format!(
                    "{ADMIN_KEY}: the key of the entry {:?} {weakness}: put a random one there (openssl rand -hex 16)",
                    key.name
                );
                self.warnings.push((*line, text));
            }
        }
        entries.into_iter().map(|(_, key)| key).collect()
    }

    fn client_roles(
        &mut self,
        enabled: bool,
        key_required: bool,
        listeners: &[AdminListener],
    ) -> Vec<ClientRole> {
        let roles = self.required(CLIENT_ROLES, |node| value::list(node, client_role));
        if !enabled || !self.states_client_roles() {
            return roles;
        }
        if !key_required {
            let message = "admin_key_required: false lets every client do everything, whatever its certificate: remove that \
                           line, or the roles (for certificates without any key: admin_key: [])";
            self.problem(CLIENT_ROLES, message.into());
        }
        if !listeners.iter().any(verifies_clients) {
            let message = "no listener verifies client certificates, so no entry can match: set https_admin: true and \
                           admin_api_mtls.admin_ssl_ca_cert";
            self.problem(CLIENT_ROLES, message.into());
        }
        roles
    }

    /// Whether `client_roles` has entries, valid or not.
    fn states_client_roles(&self) -> bool {
        let node = self.merged.get_path(CLIENT_ROLES);
        node.is_some_and(|node| matches!(&node.value, YamlValue::List(entries) if !entries.is_empty()))
    }

    /// Without a key check, a client certificate is all that can keep another machine out.
    fn warn_of_open_listeners(&mut self, listeners: &[AdminListener]) {
        let is_local = |listener: &AdminListener| {
            let address = listener.address.ip().to_canonical();
            address.is_loopback() || allows_only_loopback(listener.allow.as_deref())
        };
        for listener in listeners.iter().filter(|listener| !verifies_clients(listener) && !is_local(listener))
        {
            let text = format!(
                "false: {} takes every change from every machine that reaches it, with neither key nor client certificate: \
                 remove this line, or set admin_ssl_ca_cert, or allow_admin: [127.0.0.0/8]",
                listener.address
            );
            self.warn(KEY_REQUIRED, &text);
        }
    }
}

fn verifies_clients(listener: &AdminListener) -> bool {
    listener.tls.as_ref().is_some_and(|tls| tls.ca.is_some())
}

/// Why a client might guess this key.
fn weakness(key: &AdminKeyValue) -> Option<&'static str> {
    match key {
        AdminKeyValue::Clear(key) if PUBLIC_KEYS.contains(&key.expose()) => Some("is published with APISIX"),
        AdminKeyValue::Clear(key) if key.expose().chars().count() < KEY_CHARACTERS => {
            Some("is short enough to be guessed")
        }
        AdminKeyValue::Clear(_) | AdminKeyValue::Generated | AdminKeyValue::Sha256(_) => None,
    }
}

fn admin_key(node: &YamlNode, role_required: bool) -> Result<AdminKey, ValueError> {
    let YamlValue::Map(_) = &node.value else {
        // The value may be a misplaced key, so it is not shown.
        return Err(ValueError::new("expected {name, key, role}, found something else").on_line(node.line));
    };
    let part = |name: &'static str| node.get(name).filter(|node| !node.is_null());
    let name = part("name")
        .map_or(Ok(String::new()), |node| value::text(node).map_err(|error| error.below("name")))?;
    let key = part("key").map_or(Ok(AdminKeyValue::Generated), key_value);
    let key = key.map_err(|error| error.below("key"))?;
    let role = match part("role") {
        Some(node) => role(node)?,
        // Without a key check no role is looked at (APISIX 3.21).
        None if !role_required => AdminRole::Viewer,
        None => {
            return Err(
                ValueError::new("the entry has no role; give role: admin or role: viewer").on_line(node.line)
            );
        }
    };
    Ok(AdminKey { name, key, role })
}

fn key_value(node: &YamlNode) -> Result<AdminKeyValue, ValueError> {
    let secret = value::secret(node)?;
    let Some(digits) = value::sha256_digits(secret.expose()) else {
        return Ok(if secret.is_empty() { AdminKeyValue::Generated } else { AdminKeyValue::Clear(secret) });
    };
    let bytes = HEXLOWER_PERMISSIVE.decode(digits.as_bytes()).unwrap_or_default();
    bytes.try_into().map(AdminKeyValue::Sha256).map_err(|_| {
        let message =
            "sha256: must be followed by 64 hexadecimal digits, as `controlplane hash-key` prints them";
        ValueError::new(message).on_line(node.line)
    })
}

fn client_role(node: &YamlNode) -> Result<ClientRole, ValueError> {
    let YamlValue::Map(_) = &node.value else {
        return Err(ValueError::expected("{match: {...}, role: admin or viewer}", node));
    };
    let none = |name| ValueError::new(&format!("the entry has no {name}")).on_line(node.line);
    let matcher = node.get("match").ok_or_else(|| none("match"));
    let client = matcher.and_then(|matcher| client(matcher).map_err(|error| error.below("match")));
    let role = node.get("role").ok_or_else(|| none("role")).and_then(role);
    let ((name, client), role) = value::both(client, role)?;
    Ok(ClientRole { name, client, role })
}

/// The client that a `match` names in exactly one way, with its name for logs.
fn client(matcher: &YamlNode) -> Result<(String, ClientIdentity), ValueError> {
    let mut given = MATCHERS.iter().filter_map(|names| Some((names, matcher.get(names.0)?)));
    let (Some(((member, attribute), node)), None) = (given.next(), given.next()) else {
        let members = MATCHERS.map(|(member, _)| member).join(", ");
        let text = format!("match names a client in exactly one way: one of {members}");
        return Err(ValueError::new(&text).on_line(matcher.line));
    };
    let invalid = |error: ValueError| error.below(member);
    let text = value::text(node).map_err(invalid)?;
    if text.is_empty() {
        return Err(invalid(ValueError::expected("the name of a client", node)));
    }
    let client = ClientIdentity::with_attribute(attribute, &text).map_err(|problem| {
        let hint = problem.hint.map(|hint| format!(": {hint}")).unwrap_or_default();
        invalid(ValueError::new(&format!("{}{hint}", problem.message)).on_line(node.line))
    })?;
    Ok((format!("{member}={text}"), client))
}

fn role(node: &YamlNode) -> Result<AdminRole, ValueError> {
    match value::text(node).as_deref() {
        Ok("admin") => Ok(AdminRole::Admin),
        Ok("viewer") => Ok(AdminRole::Viewer),
        _ => Err(ValueError::expected("admin or viewer", node).below("role")),
    }
}
