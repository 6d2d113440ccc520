//! Checks each etcd endpoint like the control plane: connection, verification, login, permissions
//! and clock.

use std::time::Duration;

use conf::Settings;

use crate::cli::check_report::CheckReport;
use crate::store::etcd::dial::{ClientTls, Endpoint};
use crate::store::etcd::probe::{self, EndpointStatus, ProbeSettings, clock, startup};

/// Leases and tickets depend on the clock.
const CLOCK_WARN: Duration = Duration::from_secs(5);
/// Certificates that are new or about to expire verify differently at the two ends.
const CLOCK_FAIL: Duration = Duration::from_secs(300);

pub(super) async fn check(settings: &Settings, report: &mut CheckReport) {
    let etcd = &settings.deployment.etcd;
    // Invalid URLs were reported before.
    let Ok(endpoints) = Endpoint::from_config(etcd) else { return };
    let client_tls = ClientTls::of(settings);
    let probe_settings = ProbeSettings::of(etcd, &client_tls);
    let checks = endpoints.iter().map(|endpoint| check_endpoint(endpoint, probe_settings));
    let mut statuses = Vec::new();
    for (status, results) in futures_util::future::join_all(checks).await {
        statuses.extend(status);
        report.append(results);
    }
    if let Some(warning) = startup::multiple_clusters(&statuses) {
        report.fail("deployment.etcd.host", warning, "");
    }
    if statuses.len() * 2 <= endpoints.len() {
        let message = format!(
            "{} of {} endpoints respond: the etcd cluster needs at least 50% and above healthy nodes, or the control plane does \
             not start",
            statuses.len(),
            endpoints.len()
        );
        report.fail("deployment.etcd.host", message, "fix the endpoints above");
    }
}

async fn check_endpoint(
    endpoint: &Endpoint,
    probe_settings: ProbeSettings<'_>,
) -> (Option<EndpointStatus>, CheckReport) {
    let mut report = CheckReport::default();
    let subject = || format!("etcd {endpoint}");
    let status = match probe::probe(endpoint, probe_settings).await {
        Ok(status) => status,
        Err(error) => {
            report.fail(subject(), error.without_url(), "");
            return (None, report);
        }
    };
    report.ok(subject(), describe_status(&status));
    for warning in status.warnings() {
        report.warn(subject(), warning, "");
    }
    match probe::check_permissions(endpoint, probe_settings).await {
        Ok(keys) => report.ok(
            subject(),
            format!("may read and write below {}/, where {} key(s) are", probe_settings.prefix, keys),
        ),
        Err(error) => report.fail(subject(), error.without_url(), ""),
    }
    check_clock(endpoint, probe_settings, &mut report).await;
    (Some(status), report)
}

fn describe_status(status: &EndpointStatus) -> String {
    let role = if status.leader == status.member { "the leader" } else { "a follower" };
    format!(
        "etcd {}, {role} (member {:x}) of cluster {:x}, revision {}, {} MB, responded in {} ms",
        status.version,
        status.member,
        status.cluster,
        status.revision,
        status.size.div_ceil(1 << 20),
        status.elapsed.as_millis()
    )
}

async fn check_clock(endpoint: &Endpoint, probe_settings: ProbeSettings<'_>, report: &mut CheckReport) {
    let subject = format!("clock of {endpoint}");
    let clock = match clock::measure(endpoint, probe_settings.client_tls, probe_settings.timeout).await {
        Ok(clock) => clock,
        Err(error) => {
            return report
                .unknown(subject, format!("etcd dates only its HTTP responses, and there is none: {error}"));
        }
    };
    let fix = "let both machines follow one time server";
    let direction = if clock.seconds < 0 { "behind" } else { "ahead of" };
    let offset = format!("about {} s {direction} this machine's", clock.seconds.unsigned_abs());
    if clock.exceeds(CLOCK_FAIL) {
        report.fail(subject, format!("{offset}: certificates are verified differently at the two ends"), fix);
    } else if clock.exceeds(CLOCK_WARN) {
        report.warn(subject, format!("{offset}: `ttl` runs by etcd's"), fix);
    } else {
        report
            .ok(subject, format!("the same as this machine's, within {} s", clock.uncertainty.as_secs() + 1));
    }
}
