//! Checks each etcd endpoint like the control plane: connection, verification, login, permissions
//! and clock.

use std::time::Duration;

use conf::Settings;

use crate::cli::check_report::CheckReport;
use crate::store::etcd::dial::{ClientTls, Endpoint};
use crate::store::etcd::probe::{self, EndpointStatus, ProbeSettings, clock, permissions, startup};

/// Leases and tickets depend on the clock.
const CLOCK_WARN: Duration = Duration::from_secs(5);
/// Certificates that are new or about to expire verify differently at the two ends.
const CLOCK_FAIL: Duration = Duration::from_secs(300);

pub(super) async fn check(settings: &Settings, found: &mut CheckReport) {
    let etcd = &settings.deployment.etcd;
    // Invalid URLs were reported before.
    let Ok(endpoints) = Endpoint::from_config(etcd) else { return };
    let security = ClientTls::of(settings);
    let asking = ProbeSettings::of(etcd, &security);
    let asked = endpoints.iter().map(|endpoint| check_endpoint(endpoint, asking));
    let mut reports = Vec::new();
    for (report, rows) in futures_util::future::join_all(asked).await {
        reports.extend(report);
        found.append(rows);
    }
    if let Some(warning) = startup::multiple_clusters(&reports) {
        found.fail("deployment.etcd.host", warning, "");
    }
    if reports.len() * 2 <= endpoints.len() {
        let text = format!(
            "{} of {} endpoints answer: the etcd cluster needs at least 50% and above healthy nodes, or the control plane does \
             not start",
            reports.len(),
            endpoints.len()
        );
        found.fail("deployment.etcd.host", text, "mend the endpoints above");
    }
}

async fn check_endpoint(
    endpoint: &Endpoint,
    asking: ProbeSettings<'_>,
) -> (Option<EndpointStatus>, CheckReport) {
    let mut found = CheckReport::default();
    let what = || format!("etcd {endpoint}");
    let report = match probe::probe(endpoint, asking).await {
        Ok(report) => report,
        Err(error) => {
            found.fail(what(), error.without_url(), "");
            return (None, found);
        }
    };
    found.ok(what(), describe_status(&report));
    for warning in report.warnings() {
        found.warn(what(), warning, "");
    }
    match permissions::check(endpoint, asking).await {
        Ok(rights) => found.ok(
            what(),
            format!("may read and write below {}/, where {} key(s) are", asking.prefix, rights.keys),
        ),
        Err(error) => found.fail(what(), error.without_url(), ""),
    }
    check_clock(endpoint, asking, &mut found).await;
    (Some(report), found)
}

fn describe_status(report: &EndpointStatus) -> String {
    let role = if report.leader == report.member { "the leader" } else { "a follower" };
    format!(
        "etcd {}, {role} (member {:x}) of cluster {:x}, revision {}, {} MB, answered in {} ms",
        report.version,
        report.member,
        report.cluster,
        report.revision,
        report.size.div_ceil(1 << 20),
        report.elapsed.as_millis()
    )
}

async fn check_clock(endpoint: &Endpoint, asking: ProbeSettings<'_>, found: &mut CheckReport) {
    let what = format!("clock of {endpoint}");
    let clock = match clock::measure(endpoint, asking.security, asking.timeout).await {
        Ok(clock) => clock,
        Err(why) => {
            return found
                .unknown(what, format!("etcd dates only its HTTP answers, and there is none: {why}"));
        }
    };
    let mend = "let both machines follow one time server";
    let side = if clock.seconds < 0 { "behind" } else { "ahead of" };
    let apart = format!("about {} s {side} this machine's", clock.seconds.unsigned_abs());
    if clock.exceeds(CLOCK_FAIL) {
        found.fail(what, format!("{apart}: certificates are judged differently at the two ends"), mend);
    } else if clock.exceeds(CLOCK_WARN) {
        found.warn(what, format!("{apart}: `ttl` runs by etcd's"), mend);
    } else {
        found.ok(what, format!("the same as this machine's, within {} s", clock.uncertainty.as_secs() + 1));
    }
}
