//! `deployment.admin`: listeners, keys and roles.

use super::*;

/// `deployment.admin` in block form, so that problems have lines: its first line is the third.
fn admin(text: &str) -> String {
    let lines = text.lines().map(|line| format!("    {line}\n"));
    format!("deployment:\n  admin:\n{}", lines.collect::<String>())
}

fn listeners(text: &str) -> Vec<AdminListener> {
    load_with(&admin(text), &[]).unwrap().deployment.admin.listeners
}

fn networks(listed: &[&str]) -> Option<Vec<ipnet::IpNet>> {
    Some(listed.iter().map(|network| network.parse().unwrap()).collect())
}

#[test]
fn an_entry_takes_what_it_lacks_from_the_common_keys() {
    let listed = listeners(
        "https_admin: true
admin_api_mtls: {admin_ssl_cert: a.crt, admin_ssl_cert_key: a.key, admin_ssl_ca_cert: ca.crt}
allow_admin: [10.0.0.0/8]
admin_listen:
- {ip: 0.0.0.0}
- {ip: 127.0.0.1, port: 9181, https_admin: false, allow_admin: [127.0.0.1]}
- {ip: '[::1]', port: 9182, admin_api_mtls: {admin_ssl_ca_cert: other.crt}}
- {ip: 127.0.0.1, port: 9183, admin_api_mtls: {admin_ssl_cert: b.crt, admin_ssl_cert_key: b.key}}
- {ip: 127.0.0.1, port: 9184, admin_api_mtls: {admin_ssl_ca_cert: ''}}",
    );
    let path = |name: &str| Path::new("/srv/gate/conf").join(name);
    let tls = |pair: &str, ca: Option<&str>| {
        let (cert, key) = (path(&format!("{pair}.crt")), path(&format!("{pair}.key")));
        Some(AdminTlsSettings { cert, key, ca: ca.map(path) })
    };
    let expected = [
        ("0.0.0.0:9180", tls("a", Some("ca.crt")), networks(&["10.0.0.0/8"])),
        ("127.0.0.1:9181", None, networks(&["127.0.0.1/32"])),
        ("[::1]:9182", tls("a", Some("other.crt")), networks(&["10.0.0.0/8"])),
        ("127.0.0.1:9183", tls("b", Some("ca.crt")), networks(&["10.0.0.0/8"])),
        ("127.0.0.1:9184", tls("a", None), networks(&["10.0.0.0/8"])),
    ];
    let expected =
        expected.map(|(address, tls, allow)| AdminListener { address: address.parse().unwrap(), tls, allow });
    assert_eq!(listed, expected);
    // Without a client CA anywhere, and with each combination of files once.
    let settings = load_with(
        &admin(
            "https_admin: true\nadmin_api_mtls: {admin_ssl_cert: a.crt, admin_ssl_cert_key: a.key}
admin_listen: [{port: 1}, {port: 2}]",
        ),
        &[],
    );
    assert_eq!(settings.unwrap().deployment.admin.tls_settings().len(), 1);
}

#[test]
fn errors_of_a_list_name_their_lines() {
    for (text, expected) in [
        ("admin_listen: []", "3: deployment.admin.admin_listen: 0 entries"),
        (
            "admin_listen:\n- 9180",
            ":4: deployment.admin.admin_listen[]: expected {ip, port, ...}, found the number",
        ),
        (
            "admin_listen:\n- {ip: 127.0.0.1, port: 9181}\n- {ip: 127.0.0.1, port: 9181}",
            ":5: deployment.admin.admin_listen[]: 127.0.0.1:9181 conflicts with 127.0.0.1:9181 on line 4",
        ),
        (
            "admin_listen:\n- {ip: 127.0.0.1, plain_http: true}\n- {ip: 0.0.0.0, plain_http: true}",
            ":5: deployment.admin.admin_listen[]: 0.0.0.0:9180 conflicts with 127.0.0.1:9180 on line 4",
        ),
        (
            "admin_listen:\n- {ip: 127.0.0.1, port: 1}\n- {ip: 127.0.0.1, port: x}",
            ":5: deployment.admin.admin_listen[].port: expected a port",
        ),
        (
            "admin_listen:\n- {ip: 127.0.0.1, allow_admin: [no-network]}",
            ":4: deployment.admin.admin_listen[].allow_admin[]: expected an IP address",
        ),
        (
            "admin_listen:\n- {ip: 127.0.0.1, allow_admin: null}",
            ":4: deployment.admin.admin_listen[].allow_admin: null: write a value",
        ),
        (
            "admin_listen:\n- {ip: 127.0.0.1, https_admin: true}",
            ":4: deployment.admin.admin_listen[].admin_api_mtls: missing ssl cert for https admin",
        ),
        (
            "admin_listen:\n- {ip: 127.0.0.1, admin_api_mtls: {admin_ssl_cert: a}}",
            ":4: deployment.admin.admin_listen[].admin_api_mtls: admin_ssl_cert and admin_ssl_cert_key belong together",
        ),
        (
            "admin_listen:\n- {ip: 127.0.0.1, admin_api_mtls: {admin_ssl_ca_cert: a}}",
            ":4: deployment.admin.admin_listen[].admin_api_mtls: admin_ssl_ca_cert without https_admin",
        ),
        (
            "admin_api_mtls: {admin_ssl_ca_cert: a}\nadmin_listen:\n- {ip: 127.0.0.1}",
            ":3: deployment.admin.admin_api_mtls: admin_ssl_ca_cert would verify no client",
        ),
        (
            "admin_listen:\n- {ip: 127.0.0.1, admin_lisen: 1}",
            ":4: deployment.admin.admin_listen[].admin_lisen: unknown key",
        ),
    ] {
        let found = problems(&admin(text));
        assert!(found.contains(expected), "{text}: {found}");
    }
    let many = "- {ip: 127.0.0.1, port: 0}\n".repeat(17);
    assert!(problems(&admin(&format!("admin_listen:\n{many}"))).contains("17 entries: there are 1 to 16"));
    let push = admin("admin_listen: [{ip: 127.0.0.1, port: 9280}]");
    assert!(problems(&push).contains("port 9280 conflicts with countersign.push.listen"));
}

#[test]
fn plain_http_to_other_machines_needs_a_word() {
    let word = "write plain_http: true";
    for denied in [
        "admin_listen: [{ip: 0.0.0.0}]",
        "admin_listen: [{ip: 192.0.2.1, plain_http: false}]",
        "admin_listen: [{ip: '[::]'}]",
        "allow_admin: [0.0.0.0/0]",
        "allow_admin: null",
        "allow_admin: [127.0.0.0/7]",
        "{allow_admin: [127.0.0.1, 10.0.0.0/8], admin_listen: {ip: 192.0.2.1}}",
    ] {
        let found = problems(&admin(denied));
        assert!(found.contains(word) && found.contains("plain HTTP on "), "{denied}: {found}");
    }
    for accepted in [
        "admin_listen: [{ip: 0.0.0.0, plain_http: true}]",
        "admin_listen: [{ip: 127.8.0.1}]",
        "admin_listen: [{ip: '::1'}]",
        // APISIX's form: its default answers no other machine.
        "admin_listen: {ip: 0.0.0.0}",
        "allow_admin: []",
        "allow_admin: [127.0.0.1, '::1', 127.0.0.0/8]",
        "{allow_admin: null, admin_listen: {ip: 127.0.0.1}}",
        "{allow_admin: null, admin_listen: {plain_http: true}}",
        "{allow_admin: null, https_admin: true, admin_api_mtls: {admin_ssl_cert: a, admin_ssl_cert_key: b}}",
    ] {
        assert_eq!(listeners(accepted).len(), 1, "{accepted}");
    }
    let disabled = format!("{}apisix: {{enable_admin: false}}", admin("admin_listen: [{ip: 0.0.0.0}]"));
    assert!(load_with(&disabled, &[]).unwrap().deployment.admin.listeners[0].tls.is_none());
}

#[test]
fn a_key_may_be_a_hash() {
    let keys = |text: &str| load_with(&admin(text), &[]).unwrap().deployment.admin.keys;
    let hash = "ab".repeat(32);
    let listed = format!(
        "admin_key: [{{name: a, key: 'sha256:{hash}', role: admin}}, {{name: b, key: 'SHA256:{}', role: viewer}}]",
        "CD".repeat(32)
    );
    let values = keys(&listed).into_iter().map(|key| key.key).collect::<Vec<_>>();
    assert_eq!(values, [AdminKeyValue::Sha256([0xab; 32]), AdminKeyValue::Sha256([0xcd; 32])]);
    for wrong in
        ["sha256:", "sha256:sesame", "SHA256:ab", &format!("sha256:{hash}0"), &format!("sha256: {hash}")]
    {
        let found = problems(&admin(&format!("admin_key:\n- {{name: a, key: '{wrong}', role: admin}}")));
        assert!(
            found.contains(":4: deployment.admin.admin_key[].key: sha256: must be followed by 64"),
            "{found}"
        );
        assert!(!found.contains("sesame"));
    }
    let twice = format!("admin_key:\n- &a {{name: a, key: 'sha256:{hash}', role: admin}}\n- *a");
    assert!(problems(&admin(&twice)).contains("has the same key as another one"));
    // A hash is no secret: the file may be readable.
    assert!(!load_with(&admin(&listed), &[]).unwrap().has_secrets);
    assert!(load_with(&admin("admin_key: [{name: a, key: sesame, role: admin}]"), &[]).unwrap().has_secrets);
}

#[test]
fn weak_keys_get_a_warning_with_their_line() {
    let warned = |key: &str| {
        let text = admin(&format!("admin_key:\n- {{name: ops, key: '{key}', role: admin}}"));
        let warnings = load_with(&text, &[]).unwrap().warnings;
        assert!(warnings.iter().all(|text| key.is_empty() || !text.contains(key)), "{warnings:?}");
        warnings.into_iter().find(|text| text.contains("admin_key"))
    };
    let public = warned("edd1c9f034335f136f87ad84b625c8f1").unwrap();
    assert!(
        public.contains(":4: deployment.admin.admin_key: the key of the entry \"ops\" is published"),
        "{public}"
    );
    assert!(warned("4054f7cf07e344346cd3f287985e76a2").is_some());
    assert!(warned("fifteen-letters").unwrap().contains("short enough to be guessed"));
    assert_eq!((warned("sixteen-letters!"), warned("")), (None, None));
}

#[test]
fn a_role_is_needed_where_a_key_is() {
    let without = "admin_key:\n- {name: a, key: b}";
    let found = problems(&admin(without));
    assert!(found.contains(":4: deployment.admin.admin_key[]: the entry has no role"), "{found}");
    assert!(load_with(&admin(&format!("admin_key_required: false\n{without}")), &[]).is_ok());
}

#[test]
fn client_roles_need_a_listener_that_verifies() {
    let mtls = "https_admin: true
admin_api_mtls: {admin_ssl_cert: a.crt, admin_ssl_cert_key: a.key, admin_ssl_ca_cert: ca.crt}\n";
    let roles = |text: &str| admin(&format!("{mtls}client_roles:\n{text}"));
    let text = roles(
        "- {match: {san_uri: 'spiffe://example.org/ops'}, role: admin}
- {match: {san_dns: '*.Ops.example.org'}, role: viewer}
- {match: {subject: 'CN=ops,O=Example'}, role: viewer}
- {match: {spki_sha256: '0101010101010101010101010101010101010101010101010101010101010101'}, role: admin}",
    );
    let listed = load_with(&text, &[]).unwrap().deployment.admin.client_roles;
    let shown = |role: &ClientRole| (role.name.clone(), role.role);
    let shown = listed.iter().map(shown).collect::<Vec<_>>();
    assert_eq!(shown[0], ("san_uri=spiffe://example.org/ops".to_owned(), AdminRole::Admin));
    assert_eq!(shown[1], ("san_dns=*.Ops.example.org".to_owned(), AdminRole::Viewer));
    assert_eq!((shown.len(), shown[3].1), (4, AdminRole::Admin));

    for (entry, expected) in [
        ("- {role: admin}", ":6: deployment.admin.client_roles[]: the entry has no match"),
        ("- {match: {san_dns: a.test}}", ":6: deployment.admin.client_roles[]: the entry has no role"),
        ("- {match: {san_dns: a.test}, role: root}", "client_roles[].role: expected admin or viewer"),
        (
            "- {match: {}, role: admin}",
            "client_roles[].match: match names a client in exactly one way: one of",
        ),
        ("- {match: {san_dns: a.test, subject: CN=a}, role: admin}", "in exactly one way"),
        (
            "- {match: {san_dns: ''}, role: admin}",
            "client_roles[].match.san_dns: expected the name of a client",
        ),
        (
            "- {match: {san_dns: 'a b'}, role: admin}",
            "client_roles[].match.san_dns: \"a b\" is not a DNS name",
        ),
        (
            "- {match: {spki_sha256: ab}, role: admin}",
            "client_roles[].match.spki_sha256: \"ab\" is not a SHA-256",
        ),
        ("- {match: {subject: no-network}, role: admin}", "client_roles[].match.subject: "),
        ("- {match: {cn: a}, role: admin}", "client_roles[].match.cn: unknown key"),
        ("- a", "client_roles[]: expected {match: {...}, role: admin or viewer}"),
    ] {
        let found = problems(&roles(entry));
        assert!(found.contains(expected), "{entry}: {found}");
    }
    let role = "client_roles:\n- {match: {san_dns: a.test}, role: admin}";
    assert!(problems(&admin(role)).contains("no listener verifies client certificates"));
    let list = format!(
        "{role}\nadmin_listen: [{{ip: 127.0.0.1, https_admin: true, admin_api_mtls: {{admin_ssl_cert: a, \
         admin_ssl_cert_key: b, admin_ssl_ca_cert: c}}}}, {{ip: 127.0.0.1, port: 1}}]"
    );
    assert!(load_with(&admin(&list), &[]).is_ok());
    let bypassed = problems(&admin(&format!("{mtls}{role}\nadmin_key_required: false")));
    assert!(bypassed.contains("lets every client do everything, whatever its certificate"), "{bypassed}");
    assert!(load_with(&admin(&format!("{mtls}{role}\nadmin_key: []")), &[]).is_ok());
}

#[test]
fn every_entry_of_a_list_has_its_problem() {
    let found = problems(&admin(
        "client_roles:\n- {match: {san_dns: 'a b'}, role: root}\n- {match: {}, role: admin}\n- {role: viewer}
allow_admin: [a, 127.0.0.1, b]",
    ));
    for expected in [
        ":4: deployment.admin.client_roles[].match.san_dns: \"a b\" is not",
        ":4: deployment.admin.client_roles[].role: expected admin or viewer",
        ":5: deployment.admin.client_roles[].match: match names a client",
        ":6: deployment.admin.client_roles[]: the entry has no match",
        "no listener verifies client certificates",
        "allow_admin[]: expected an IP address or a block such as 10.0.0.0/8, found the text \"a\"",
        "allow_admin[]: expected an IP address or a block such as 10.0.0.0/8, found the text \"b\"",
    ] {
        assert!(found.contains(expected), "{expected}: {found}");
    }
}

#[test]
fn an_open_listener_without_a_key_check_gets_a_warning() {
    let warned = |text: &str| {
        let text = admin(&format!("admin_key_required: false\n{text}"));
        let warnings = load_with(&text, &[]).unwrap().warnings;
        warnings.into_iter().filter(|text| text.contains("admin_key_required: false: ")).collect::<Vec<_>>()
    };
    let tls = "https_admin: true, admin_api_mtls: {admin_ssl_cert: a, admin_ssl_cert_key: b";
    let open = warned(
        "admin_listen: [{ip: 192.0.2.1, plain_http: true}, {ip: 127.0.0.1, port: 1}]\nallow_admin: null",
    );
    assert_eq!(open.len(), 1, "{open:?}");
    assert!(open[0].contains(":3: ") && open[0].contains(" 192.0.2.1:9180 takes every change"), "{open:?}");
    assert_eq!(warned(&format!("admin_listen: [{{{tls}}}}}]\nallow_admin: [10.0.0.0/8]")).len(), 1);
    for closed in [
        "",
        "allow_admin: []",
        "admin_listen: {ip: 127.0.0.1}\nallow_admin: null",
        &format!("admin_listen: [{{{tls}, admin_ssl_ca_cert: c}}}}]\nallow_admin: null"),
    ] {
        assert_eq!(warned(closed), Vec::<String>::new(), "{closed}");
    }
    let disabled = "apisix: {enable_admin: false}\n".to_owned()
        + &admin("admin_key_required: false\nallow_admin: [10.0.0.0/8]\nadmin_listen: {plain_http: true}");
    assert!(
        !load_with(&disabled, &[]).unwrap().warnings.iter().any(|text| text.contains("takes every change"))
    );
}

#[test]
fn what_apisix_lacks_is_off_by_default() {
    let settings = load_with("", &[]).unwrap();
    assert!(!settings.deployment.admin.protect_client_auth);
    assert_eq!(settings.countersign.admin.wrong_keys_per_minute, 30);
    let text =
        format!("{}countersign: {{admin: {{wrong_keys_per_minute: 0}}}}", admin("protect_client_auth: true"));
    let settings = load_with(&text, &[]).unwrap();
    assert!(settings.deployment.admin.protect_client_auth);
    assert_eq!(settings.countersign.admin.wrong_keys_per_minute, 0);
    assert!(
        problems(&admin("protect_client_auth: 1")).contains("protect_client_auth: expected true or false")
    );
    assert!(
        problems("countersign: {admin: {wrong_keys_per_minute: -1}}").contains("a whole number, 0 or more")
    );
}
