//! Probes an endpoint: identity, version, login and permissions. Changes nothing.
//!
//! `startup` probes all endpoints when the control plane starts, with the messages of the contract
//! (9.2). `doctor` adds `check_permissions` and `clock`. `version` knows etcd's versions.

pub(crate) mod clock;
pub(crate) mod startup;
pub(crate) mod version;

use std::time::{Duration, Instant};

use conf::Secret;
use etcd_client::{
    Channel, Client, Compare, CompareOp, ConnectOptions, GetOptions, StatusResponse, Txn, TxnOp,
};
use tonic::{Code, Status};

use super::dial::{self, ClientTls, DialError, DialStep, Endpoint};

/// The part of the quota, in percent, from which a database is warned about.
const FULL_PERCENT: u64 = 80;
/// The length at which a server's message is cut.
const MESSAGE_LETTERS_MAX: usize = 300;
/// etcd's quota without `--quota-backend-bytes`; versions before 3.6 do not report it.
const DEFAULT_QUOTA: u64 = 2 << 30;

/// The upper bound of the time-out: a member that drops packets must not delay a start that the
/// other members allow.
const TIMEOUT_MAX: Duration = Duration::from_secs(5);

/// The name of the call that checks write permission, in errors.
const WRITE: &str = "a write";
/// An id that is never written.
const PROBE_ID: &str = "countersign-doctor";
/// The directory of internal entries and extension fields.
const OWN_DIRECTORY: &str = "countersign";

#[derive(Debug, Clone, Copy)]
pub(crate) struct ProbeSettings<'a> {
    pub client_tls: &'a ClientTls,
    /// User and password; `None`: anonymous, or the common name of the client certificate.
    pub login: Option<(&'a str, &'a Secret)>,
    /// The prefix of all keys, such as `/apisix`.
    pub prefix: &'a str,
    /// Applies to the connection, and again to the responses.
    pub timeout: Duration,
}

impl<'a> ProbeSettings<'a> {
    /// From `deployment.etcd`.
    pub(crate) fn of(etcd: &'a conf::EtcdSettings, client_tls: &'a ClientTls) -> Self {
        let login = etcd.user.as_deref().zip(etcd.password.as_ref());
        Self { client_tls, login, prefix: &etcd.prefix, timeout: etcd.timeout.min(TIMEOUT_MAX) }
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
        "etcd rejects the login of user {user:?}: {message}. Check deployment.etcd.user and password (`etcdctl user list`, \
         `etcdctl user passwd {user}`)"
    )]
    LoginFailed {
        user: String,
        /// etcd's message: "invalid user ID or password".
        message: String,
    },
    /// A login is configured, and etcd has authentication disabled.
    #[error(
        "deployment.etcd.user is set, but etcd says: {message}. Run `etcdctl auth enable` there, or remove user and password"
    )]
    AuthDisabled {
        /// etcd's message: "authentication is not enabled".
        message: String,
    },
    /// No login is configured, and etcd requires one.
    #[error(
        "insufficient credentials code: 401: etcd has authentication enabled and wants a user ({message}): set \
         deployment.etcd.user and password, or give a client certificate whose common name is a user"
    )]
    LoginRequired { message: String },
    /// The user lacks a permission.
    #[error(
        "etcd forbidden code: 403: {who} may not {what} below {prefix}/ ({message}): grant it: `etcdctl role \
         grant-permission ROLE --prefix=true readwrite {prefix}/`"
    )]
    Forbidden {
        who: String,
        /// "read" or "write".
        what: &'static str,
        prefix: String,
        message: String,
    },
    /// The endpoint accepted the connection and does not answer.
    #[error(
        "no response to {what} within {}: etcd is overloaded or stopped, or its cluster has no majority", dial::format_duration(*.timeout)
    )]
    Timeout { what: &'static str, timeout: Duration },
    #[error("etcd responded to {what} with: {message}")]
    UnexpectedResponse { what: &'static str, message: String },
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
    settings: ProbeSettings<'_>,
) -> Result<EndpointStatus, ProbeError> {
    let started = Instant::now();
    let (mut client, status) = connect_and_login(endpoint, settings).await?;
    count_keys(endpoint, settings, &mut client, Consistency::Serializable).await?;
    Ok(endpoint_status(endpoint, &status, started.elapsed()))
}

/// Connects, checks the version, and logs in.
async fn connect_and_login(
    endpoint: &Endpoint,
    settings: ProbeSettings<'_>,
) -> Result<(Client, StatusResponse), ProbeError> {
    let prober = Prober { endpoint, settings };
    let channel = dial::connect(endpoint, settings.client_tls, settings.timeout).await?;
    let open = |options| Client::from_channel(Channel::Tonic(channel.clone()), options);
    let mut client = prober.call("a hello", open(None)).await?;
    // Before the login, which an old version may not support.
    let status = match prober.call("the status", client.status()).await {
        Ok(status) => Some(check_version(status)?),
        Err(ProbeError::LoginRequired { .. } | ProbeError::Forbidden { .. }) if settings.login.is_some() => {
            None
        }
        Err(error) => return Err(error),
    };
    if let Some((user, password)) = settings.login {
        let options = ConnectOptions::new().with_user(user, password.expose());
        client = prober.login(user, open(Some(options))).await?;
    }
    let status = match status {
        Some(status) => status,
        None => check_version(prober.call("the status", client.status()).await?)?,
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
    settings: ProbeSettings<'_>,
    client: &mut Client,
    consistency: Consistency,
) -> Result<i64, ProbeError> {
    let options = GetOptions::new().with_prefix().with_count_only();
    let options =
        if consistency == Consistency::Serializable { options.with_serializable() } else { options };
    let keys = format!("{}/", settings.prefix);
    let prober = Prober { endpoint, settings };
    Ok(prober.call("a read", client.get(keys, Some(options))).await?.count())
}

/// Makes a linearizable read, which needs a majority, and checks write permission without writing:
/// etcd checks the permissions of a transaction before it runs, for both of its branches, so a
/// transaction whose condition cannot hold checks the write permission for every kind. Returns the
/// number of keys below the prefix.
///
/// # Errors
/// The missing permission, or the failure of the call.
pub(crate) async fn check_permissions(
    endpoint: &Endpoint,
    settings: ProbeSettings<'_>,
) -> Result<i64, ProbeError> {
    let (mut client, _) = connect_and_login(endpoint, settings).await?;
    let keys = count_keys(endpoint, settings, &mut client, Consistency::Linearizable).await?;
    let directories = model::Kind::ALL.map(|kind| kind.plural()).into_iter().chain([OWN_DIRECTORY]);
    let key = |directory| format!("{}/{directory}/{PROBE_ID}", settings.prefix);
    let writes: Vec<_> = directories.map(|directory| TxnOp::put(key(directory), "", None)).collect();
    // No key has fewer than zero versions.
    let never = Compare::version(key(OWN_DIRECTORY), CompareOp::Less, 0);
    let prober = Prober { endpoint, settings };
    prober.call(WRITE, client.txn(Txn::new().when([never]).and_then(writes))).await?;
    Ok(keys)
}

fn endpoint_status(endpoint: &Endpoint, status: &StatusResponse, elapsed: Duration) -> EndpointStatus {
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
        elapsed,
    }
}

impl EndpointStatus {
    /// The problems of an endpoint that answers, each with its fix.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings: Vec<String> = version::vulnerability(&self.version).into_iter().collect();
        if self.leader == 0 {
            warnings.push(
                "its cluster has no leader: nothing can be written; start the missing members".to_owned(),
            );
        }
        if self.is_learner {
            let text =
                "it is a learner, which serves no current reads: promote it, or name voting members only";
            warnings.push(text.to_owned());
        }
        for alarm in &self.alarms {
            warnings.push(alarm_hint(alarm));
        }
        let quota = self.quota.unwrap_or(DEFAULT_QUOTA);
        if self.size > quota / 100 * FULL_PERCENT {
            warnings.push(format!(
                "its database has {} MB of {} MB ({}): compact and defragment it, or raise --quota-backend-bytes; when it is \
                 full it rejects writes",
                self.size >> 20,
                quota >> 20,
                if self.quota.is_some() { "its quota" } else { "the default quota; it does not tell its own" },
            ));
        }
        warnings
    }
}

fn alarm_hint(alarm: &str) -> String {
    if alarm.contains("NOSPACE") {
        format!(
            "alarm NOSPACE ({alarm}): its database is full and rejects writes: compact, `etcdctl defrag`, then `etcdctl \
             alarm disarm`"
        )
    } else if alarm.contains("CORRUPT") {
        format!(
            "alarm CORRUPT ({alarm}): members hold different data: restore the cluster before relying on it"
        )
    } else {
        format!("it complains: {alarm}")
    }
}

/// The message without control characters, and cut.
fn printable(text: &str) -> String {
    let sanitized = |letter: char| if letter.is_control() { char::REPLACEMENT_CHARACTER } else { letter };
    text.chars().take(MESSAGE_LETTERS_MAX).map(sanitized).collect()
}

/// Makes calls and maps etcd's errors to messages.
struct Prober<'a> {
    endpoint: &'a Endpoint,
    settings: ProbeSettings<'a>,
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
                ProbeError::LoginFailed { user: user.to_owned(), message: printable(status.message()) }
            }
            etcd_client::Error::GRpcStatus(status) if status.code() == Code::FailedPrecondition => {
                ProbeError::AuthDisabled { message: printable(status.message()) }
            }
            _ => self.explain_other("the login", &error),
        })
    }

    async fn with_timeout<T>(
        &self,
        what: &'static str,
        call: impl Future<Output = T>,
    ) -> Result<T, ProbeError> {
        let timeout = self.settings.timeout;
        tokio::time::timeout(timeout, call).await.map_err(|_| ProbeError::Timeout { what, timeout })
    }

    fn explain_status(&self, what: &'static str, status: &Status, error: &etcd_client::Error) -> ProbeError {
        let message = || printable(status.message());
        match status.code() {
            Code::PermissionDenied => ProbeError::Forbidden {
                who: match self.settings.login {
                    Some((user, _)) => format!("the user {user:?}"),
                    None => "the user that our client certificate names".to_owned(),
                },
                what: if what == WRITE { "write" } else { "read" },
                prefix: self.settings.prefix.to_owned(),
                message: message(),
            },
            Code::InvalidArgument if status.message().contains("user name is empty") => {
                ProbeError::LoginRequired { message: message() }
            }
            Code::Unauthenticated => ProbeError::LoginRequired { message: message() },
            _ => self.explain_other(what, error),
        }
    }

    fn explain_other(&self, what: &'static str, error: &etcd_client::Error) -> ProbeError {
        match (dial::find_dial_error(error, self.endpoint), error) {
            (Some(cause), _) => cause.into(),
            (None, etcd_client::Error::GRpcStatus(status)) => ProbeError::UnexpectedResponse {
                what,
                message: format!("{} ({:?})", printable(status.message()), status.code()),
            },
            (None, error) => ProbeError::UnexpectedResponse { what, message: printable(&error.to_string()) },
        }
    }
}

#[cfg(test)]
mod tests;
