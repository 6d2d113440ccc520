//! The versions of etcd: the minimum, and known vulnerabilities.

/// The oldest supported version (contract 9.1).
pub(crate) const MINIMUM: &str = "3.4.0";
const OLDEST: (u32, u32, u32) = (3, 4, 0);

/// The first release of each line without CVE-2026-44283 (GHSA-x35m-3gp4-4fh5); newer lines were
/// never affected.
const FIXED_RELEASES: [(u32, u32, u32); 3] = [(3, 4, 44), (3, 5, 30), (3, 6, 11)];

/// Whether the version is at least the minimum; false for an unparsable version.
pub(crate) fn is_supported(version: &str) -> bool {
    parse(version).is_some_and(|found| found >= OLDEST)
}

/// A warning about a vulnerable version.
pub(crate) fn vulnerability(version: &str) -> Option<String> {
    let (major, minor, patch) = parse(version)?;
    let (.., mended) = FIXED_RELEASES.into_iter().find(|line| (line.0, line.1) == (major, minor))?;
    (patch < mended).then(|| {
        format!(
            "etcd {version} has CVE-2026-44283: a user of it can read values, and attach leases, that its roles do not allow. \
             Upgrade to {major}.{minor}.{mended} or later, or see that your distribution has mended its build"
        )
    })
}

/// `3.5.0-rc.1` is 3.5.0.
fn parse(version: &str) -> Option<(u32, u32, u32)> {
    let mut numbers = version.split(['-', '+']).next()?.split('.').map(|part| part.parse().ok());
    let found = (numbers.next()??, numbers.next()??, numbers.next()??);
    numbers.next().is_none().then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_and_unparsable_versions_are_unsupported() {
        for (version, enough) in [
            ("3.3.27", false),
            ("3.4.0", true),
            ("3.10.1", true),
            ("4.0.0", true),
            ("3.5.0-rc.1", true),
            ("", false),
            ("3.5", false),
            ("3.5.1.1", false),
            ("not one", false),
        ] {
            assert_eq!(is_supported(version), enough, "{version}");
        }
    }

    #[test]
    fn each_release_line_has_its_first_fixed_release() {
        for (version, warned) in [
            ("3.4.43", true),
            ("3.4.44", false),
            ("3.5.29", true),
            ("3.5.30", false),
            ("3.6.10", true),
            ("3.6.11", false),
            ("3.7.0", false),
        ] {
            assert_eq!(vulnerability(version).is_some(), warned, "{version}");
        }
    }
}
