//! Probes an endpoint: identity, version, login and permissions. Changes nothing.
//!
//! `startup` probes all endpoints when the control plane starts, with the messages of the contract
//! (9.2). `doctor` adds `permissions` and `clock`. `version` knows etcd's versions.

pub(crate) mod clock;
pub(crate) mod permissions;
pub(crate) mod startup;
pub(crate) mod version;

use std::time::{Duration, Instant};

use conf::Secret;
use etcd_client::{Channel, Client, ConnectOptions, GetOptions, StatusResponse};
use tonic::{Code, Status};

use super::dial::{self, ClientTls, DialError, DialStep, Endpoint};

/// The part of the quota, in percent, from which a database is warned about.
const FULL_PERCENT: u64 = 80;
/// The length at which a server's message is cut.
const QUOTED: usize = 300;
/// etcd's quota without `--quota-backend-bytes`; versions before 3.6 do not report it.
const DEFAULT_QUOTA: u64 = 2 << 30;

/// The upper bound of the time-out: a member that drops packets must not delay a start that the
/// other members allow.
const ANSWER_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy)]
pub(crate) struct ProbeSettings<'a> {
    pub security: &'a ClientTls,
    /// User and password; `None`: anonymous, or the common name of the client certificate.
    pub login: Option<(&'a str, &'a Secret)>,
    /// The prefix of all keys, such as `/apisix`.
    pub prefix: &'a str,
    /// Applies to the connection, and again to the responses.
    pub timeout: Duration,
}

impl<'a> ProbeSettings<'a> {
    /// From `deployment.etcd`.
    pub(crate) fn of(etcd: &'a conf::EtcdSettings, security: &'a ClientTls) -> Self {
        let login = etcd.user.as_deref().zip(etcd.password.as_ref());
        Self { security, login, prefix: &etcd.prefix, timeout: etcd.timeout.min(ANSWER_MAX) }
    }
}

/// The status of one endpoint.
#[derive(Debug, Clone)]
pub(crate) struct EndpointStatus {
    pub endpoint: Endpoint,
    /// `3.4.23`
    pub version: String,
    /// Equal for the members of one cluster.
    pub cluster: u64,
    pub member: u64,
    /// The leader's member id; 0: none.
    pub leader: u64,
    /// A learner answers no linearizable reads.
    pub is_learner: bool,
    pub revision: i64,
    /// Alarms and other errors in the status of the member.
    pub alarms: Vec<String>,
    /// The size of its database in bytes.
    pub size: u64,
    /// `None`: not reported.
    pub quota: Option<u64>,
    /// The time from the first step to the last response.
    pub elapsed: Duration,
}

#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ProbeError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error(
        "etcd cluster version {found} is less than the required version {}, please upgrade your etcd cluster",
        version::MINIMUM
    )]
    VersionTooOld { found: String },
    #[error(
        "etcd refuses the login of user {user:?}: {says}. Check deployment.etcd.user and password (`etcdctl user list`, \
         `etcdctl user passwd {user}`)"
    )]
    LoginFailed {
        user: String,
        /// etcd's message: "invalid user ID or password".
        says: String,
    },
    /// A login is configured, and etcd has authentication disabled.
    #[error(
        "deployment.etcd.user is set, but etcd says: {says}. Run `etcdctl auth enable` there, or remove user and password"
    )]
    AuthDisabled {
        /// etcd's message: "authentication is not enabled".
        says: String,
    },
    /// No login is configured, and etcd requires one.
    #[error(
        "insufficient credentials code: 401: etcd has authentication enabled and wants a user ({says}): set \
         deployment.etcd.user and password, or give a client certificate whose common name is a user"
    )]
    LoginRequired { says: String },
    /// The user lacks a permission.
    #[error(
        "etcd forbidden code: 403: {who} may not {what} below {prefix}/ ({says}): grant it: `etcdctl role \
         grant-permission ROLE --prefix=true readwrite {prefix}/`"
    )]
    Forbidden {
        who: String,
        /// "read" or "write".
        what: &'static str,
        prefix: String,
        says: String,
    },
    /// The endpoint accepted the connection and does not answer.
    #[error(
        "no answer to {what} within {}: etcd is overloaded or stopped, or its cluster has no majority", dial::format_duration(*.after)
    )]
    Timeout { what: &'static str, after: Duration },
    #[error("etcd answered {what} with: {says}")]
    UnexpectedResponse { what: &'static str, says: String },
}

impl ProbeError {
    /// The message without the endpoint's URL, for texts that name it.
    pub(crate) fn without_url(&self) -> String {
        match self {
            Self::Dial(error) => error.problem.to_string(),
            other => other.to_string(),
        }
    }

    /// Whether a retry cannot help, because the configuration does not match the cluster.
    pub(crate) fn is_permanent(&self) -> bool {
        match self {
            Self::Dial(error) => error.problem.step() == DialStep::Settings,
            Self::Timeout { .. } | Self::UnexpectedResponse { .. } => false,
            _ => true,
        }
    }
}

/// Probes one endpoint.
///
/// # Errors
/// The first failing check.
pub(crate) async fn probe(
    endpoint: &Endpoint,
    asking: ProbeSettings<'_>,
) -> Result<EndpointStatus, ProbeError> {
    let began = Instant::now();
    let (mut client, status) = connect_and_login(endpoint, asking).await?;
    count_keys(endpoint, asking, &mut client, Consistency::Serializable).await?;
    Ok(endpoint_status(endpoint, &status, began.elapsed()))
}

/// Connects, checks the version, and logs in.
async fn connect_and_login(
    endpoint: &Endpoint,
    asking: ProbeSettings<'_>,
) -> Result<(Client, StatusResponse), ProbeError> {
    let question = Prober { endpoint, asking };
    let channel = dial::connect(endpoint, asking.security, asking.timeout).await?;
    let open = |options| Client::from_channel(Channel::Tonic(channel.clone()), options);
    let mut client = question.call("a hello", open(None)).await?;
    // Before the login, which an old version may not support.
    let status = match question.call("the status", client.status()).await {
        Ok(status) => Some(check_version(status)?),
        Err(ProbeError::LoginRequired { .. } | ProbeError::Forbidden { .. }) if asking.login.is_some() => {
            None
        }
        Err(error) => return Err(error),
    };
    if let Some((user, password)) = asking.login {
        let options = ConnectOptions::new().with_user(user, password.expose());
        client = question.login(user, open(Some(options))).await?;
    }
    let status = match status {
        Some(status) => status,
        None => check_version(question.call("the status", client.status()).await?)?,
    };
    Ok((client, status))
}

fn check_version(status: StatusResponse) -> Result<StatusResponse, ProbeError> {
    if version::is_supported(status.version()) {
        Ok(status)
    } else {
        Err(ProbeError::VersionTooOld { found: printable(status.version()) })
    }
}

/// The consistency of a read, in etcd's terms.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Consistency {
    Serializable,
    Linearizable,
}

/// Counts the keys below the prefix, which needs read permission on all of them.
async fn count_keys(
    endpoint: &Endpoint,
    asking: ProbeSettings<'_>,
    client: &mut Client,
    freshness: Consistency,
) -> Result<i64, ProbeError> {
    let options = GetOptions::new().with_prefix().with_count_only();
    let options = if freshness == Consistency::Serializable { options.with_serializable() } else { options };
    let keys = format!("{}/", asking.prefix);
    let question = Prober { endpoint, asking };
    Ok(question.call("a read", client.get(keys, Some(options))).await?.count())
}

fn endpoint_status(endpoint: &Endpoint, status: &StatusResponse, took: Duration) -> EndpointStatus {
    let header = status.header();
    let size = |bytes: i64| u64::try_from(bytes).unwrap_or_default();
    EndpointStatus {
        endpoint: endpoint.clone(),
        version: printable(status.version()),
        cluster: header.map_or(0, |header| header.cluster_id()),
        member: header.map_or(0, |header| header.member_id()),
        leader: status.leader(),
        is_learner: status.is_learner(),
        revision: header.map_or(0, |header| header.revision()),
        alarms: status.errors().iter().map(|text| printable(text.trim())).collect(),
        size: size(status.db_size()),
        quota: Some(size(status.db_size_quota())).filter(|quota| *quota > 0),
        elapsed: took,
    }
}

impl EndpointStatus {
    /// The problems of an endpoint that answers, each with its fix.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut found: Vec<String> = version::vulnerability(&self.version).into_iter().collect();
        if self.leader == 0 {
            found.push(
                "its cluster has no leader: nothing can be written; start the missing members".to_owned(),
            );
        }
        if self.is_learner {
            let text =
                "it is a learner, which answers no current reads: promote it, or name voting members only";
            found.push(text.to_owned());
        }
        for complaint in &self.alarms {
            found.push(alarm_hint(complaint));
        }
        let quota = self.quota.unwrap_or(DEFAULT_QUOTA);
        if self.size > quota / 100 * FULL_PERCENT {
            found.push(format!(
                "its database has {} MB of {} MB ({}): compact and defragment it, or raise --quota-backend-bytes; when it is \
                 full it refuses writes",
                self.size >> 20,
                quota >> 20,
                if self.quota.is_some() { "its quota" } else { "the default quota; it does not tell its own" },
            ));
        }
        found
    }
}

fn alarm_hint(complaint: &str) -> String {
    if complaint.contains("NOSPACE") {
        format!(
            "alarm NOSPACE ({complaint}): its database is full and refuses writes: compact, `etcdctl defrag`, then `etcdctl \
             alarm disarm`"
        )
    } else if complaint.contains("CORRUPT") {
        format!(
            "alarm CORRUPT ({complaint}): members hold different data: restore the cluster before relying on it"
        )
    } else {
        format!("it complains: {complaint}")
    }
}

/// The message without control characters, and cut.
fn printable(text: &str) -> String {
    let shown = |letter: char| if letter.is_control() { char::REPLACEMENT_CHARACTER } else { letter };
    text.chars().take(QUOTED).map(shown).collect()
}

/// Makes calls and maps etcd's errors to messages.
struct Prober<'a> {
    endpoint: &'a Endpoint,
    asking: ProbeSettings<'a>,
}

impl Prober<'_> {
    async fn call<T>(
        &self,
        what: &'static str,
        call: impl Future<Output = Result<T, etcd_client::Error>>,
    ) -> Result<T, ProbeError> {
        self.with_timeout(what, call).await?.map_err(|error| match &error {
            etcd_client::Error::GRpcStatus(status) => self.explain_status(what, status, &error),
            _ => self.explain_other(what, &error),
        })
    }

    async fn login<T>(
        &self,
        user: &str,
        call: impl Future<Output = Result<T, etcd_client::Error>>,
    ) -> Result<T, ProbeError> {
        self.with_timeout("the login", call).await?.map_err(|error| match &error {
            etcd_client::Error::GRpcStatus(status) if status.code() == Code::InvalidArgument => {
                ProbeError::LoginFailed { user: user.to_owned(), says: printable(status.message()) }
            }
            etcd_client::Error::GRpcStatus(status) if status.code() == Code::FailedPrecondition => {
                ProbeError::AuthDisabled { says: printable(status.message()) }
            }
            _ => self.explain_other("the login", &error),
        })
    }

    async fn with_timeout<T>(
        &self,
        what: &'static str,
        call: impl Future<Output = T>,
    ) -> Result<T, ProbeError> {
        let after = self.asking.timeout;
        tokio::time::timeout(after, call).await.map_err(|_| ProbeError::Timeout { what, after })
    }

    fn explain_status(&self, what: &'static str, status: &Status, error: &etcd_client::Error) -> ProbeError {
        let says = || printable(status.message());
        match status.code() {
            Code::PermissionDenied => ProbeError::Forbidden {
                who: match self.asking.login {
                    Some((user, _)) => format!("the user {user:?}"),
                    None => "the user that our client certificate names".to_owned(),
                },
                what: if what == permissions::WRITE { "write" } else { "read" },
                prefix: self.asking.prefix.to_owned(),
                says: says(),
            },
            Code::InvalidArgument if status.message().contains("user name is empty") => {
                ProbeError::LoginRequired { says: says() }
            }
            Code::Unauthenticated => ProbeError::LoginRequired { says: says() },
            _ => self.explain_other(what, error),
        }
    }

    fn explain_other(&self, what: &'static str, error: &etcd_client::Error) -> ProbeError {
        match (dial::find_dial_error(error, self.endpoint), error) {
            (Some(cause), _) => cause.into(),
            (None, etcd_client::Error::GRpcStatus(status)) => ProbeError::UnexpectedResponse {
                what,
                says: format!("{} ({:?})", printable(status.message()), status.code()),
            },
            (None, error) => ProbeError::UnexpectedResponse { what, says: printable(&error.to_string()) },
        }
    }
}

#[cfg(test)]
mod tests;
