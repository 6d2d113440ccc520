//! Who answers at an endpoint, and will it do? One connection, a few questions, nothing changed.
//!
//! `start` asks all endpoints when the control plane starts, and says what the contract wants said (9.2); `doctor` asks the same and then
//! `rights` and `clock`. What is known of etcd's versions is in `version`.

pub mod clock;
pub mod rights;
pub mod start;
pub mod version;

use std::time::{Duration, Instant};

use conf::Secret;
use etcd_client::{Channel, Client, ConnectOptions, GetOptions, StatusResponse};
use tonic::{Code, Status};

use super::dial::{self, ClientTls, DialError, DialStep, Endpoint};

/// A database this full is warned about: part of the quota, in percent.
const FULL_PERCENT: u64 = 80;
/// Letters of a server's words that are passed on.
const QUOTED: usize = 300;
/// etcd's quota when nobody sets `--quota-backend-bytes`; versions before 3.6 do not tell theirs.
const DEFAULT_QUOTA: u64 = 2 << 30;

/// The longest that an endpoint is waited for here, whatever `timeout` says: a member that drops packets must not hold up the
/// start of a control plane that the others would serve.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// How to ask.
#[derive(Debug, Clone, Copy)]
pub struct Asking<'a> {
    /// What connections are secured with.
    pub security: &'a ClientTls,
    /// User and password; `None`: nobody, or the common name of the client certificate.
    pub login: Option<(&'a str, &'a Secret)>,
    /// Of the keys, `/apisix`.
    pub prefix: &'a str,
    /// For connecting, and again for the answers.
    pub timeout: Duration,
}

impl<'a> Asking<'a> {
    /// As `deployment.etcd` says.
    pub fn of(etcd: &'a conf::Etcd, security: &'a ClientTls) -> Self {
        let login = etcd.user.as_deref().zip(etcd.password.as_ref());
        Self { security, login, prefix: &etcd.prefix, timeout: etcd.timeout.min(ANSWER_MAX) }
    }
}

/// What one endpoint said.
#[derive(Debug, Clone)]
pub struct Report {
    /// Who was asked.
    pub endpoint: Endpoint,
    /// `3.4.23`
    pub version: String,
    /// Equal for the members of one cluster.
    pub cluster: u64,
    /// Of this member.
    pub member: u64,
    /// The member that leads; 0: none.
    pub leader: u64,
    /// A member that only listens: it answers no reads that must be current.
    pub learner: bool,
    /// The store's revision as this member knows it.
    pub revision: i64,
    /// What it complains about: alarms, no leader.
    pub complaints: Vec<String>,
    /// Bytes of its database file.
    pub size: u64,
    /// Most bytes it may have, where known.
    pub quota: Option<u64>,
    /// From the first step to the last answer.
    pub took: Duration,
}

/// Why an endpoint will not do.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProbeError {
    /// There is no connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// Too old.
    #[error(
        "etcd cluster version {found} is less than the required version {}, please upgrade your etcd cluster",
        version::REQUIRED
    )]
    Old {
        /// Its version.
        found: String,
    },
    /// `deployment.etcd.user` is not let in.
    #[error(
        "etcd refuses the login of user {user:?}: {says}. Check deployment.etcd.user and password (`etcdctl user list`, \
         `etcdctl user passwd {user}`)"
    )]
    Login {
        /// Whom we said we are.
        user: String,
        /// etcd's words: "invalid user ID or password".
        says: String,
    },
    /// There is a login, and nobody is asked for one.
    #[error(
        "deployment.etcd.user is set, but etcd says: {says}. Run `etcdctl auth enable` there, or remove user and password"
    )]
    NoAuth {
        /// "authentication is not enabled".
        says: String,
    },
    /// There is no login, and one is needed.
    #[error(
        "insufficient credentials code: 401: etcd has authentication enabled and wants a user ({says}): set \
         deployment.etcd.user and password, or give a client certificate whose common name is a user"
    )]
    Anonymous {
        /// etcd's words.
        says: String,
    },
    /// The user may not.
    #[error(
        "etcd forbidden code: 403: {who} may not {what} below {prefix}/ ({says}): grant it: `etcdctl role \
         grant-permission ROLE --prefix=true readwrite {prefix}/`"
    )]
    Forbidden {
        /// The user.
        who: String,
        /// "read" or "write".
        what: &'static str,
        /// The keys.
        prefix: String,
        /// etcd's words.
        says: String,
    },
    /// Connected, and then no answer.
    #[error(
        "no answer to {what} within {}: etcd is overloaded or stopped, or its cluster has no majority", dial::span(*.after)
    )]
    Silent {
        /// The question.
        what: &'static str,
        /// How long we waited.
        after: Duration,
    },
    /// Another answer than the questions have.
    #[error("etcd answered {what} with: {says}")]
    Answer {
        /// The question.
        what: &'static str,
        /// The answer.
        says: String,
    },
}

impl ProbeError {
    /// Without the endpoint's URL, for texts that name it already.
    pub fn without_url(&self) -> String {
        match self {
            Self::Dial(error) => error.problem.to_string(),
            other => other.to_string(),
        }
    }

    /// Whether trying again cannot help: the configuration and the cluster do not fit.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Dial(error) => error.problem.step() == DialStep::Settings,
            Self::Silent { .. } | Self::Answer { .. } => false,
            _ => true,
        }
    }
}

/// Asks one endpoint.
///
/// # Errors
/// Why it will not do.
pub async fn probe(endpoint: &Endpoint, asking: Asking<'_>) -> Result<Report, ProbeError> {
    let began = Instant::now();
    let (mut client, status) = enter(endpoint, asking).await?;
    may_read(endpoint, asking, &mut client, Freshness::Local).await?;
    Ok(report(endpoint, &status, began.elapsed()))
}

/// Connects, asks for the version, and logs in.
async fn enter(endpoint: &Endpoint, asking: Asking<'_>) -> Result<(Client, StatusResponse), ProbeError> {
    let question = Question { endpoint, asking };
    let channel = dial::connect(endpoint, asking.security, asking.timeout).await?;
    let open = |options| Client::from_channel(Channel::Tonic(channel.clone()), options);
    let mut client = question.answer("a hello", open(None)).await?;
    // Before the login: a version that is too old may not know it.
    let status = match question.answer("the status", client.status()).await {
        Ok(status) => Some(too_old(status)?),
        Err(ProbeError::Anonymous { .. } | ProbeError::Forbidden { .. }) if asking.login.is_some() => None,
        Err(error) => return Err(error),
    };
    if let Some((user, password)) = asking.login {
        let options = ConnectOptions::new().with_user(user, password.expose());
        client = question.login(user, open(Some(options))).await?;
    }
    let status = match status {
        Some(status) => status,
        None => too_old(question.answer("the status", client.status()).await?)?,
    };
    Ok((client, status))
}

fn too_old(status: StatusResponse) -> Result<StatusResponse, ProbeError> {
    if version::is_enough(status.version()) {
        Ok(status)
    } else {
        Err(ProbeError::Old { found: printable(status.version()) })
    }
}

/// Whether an answer must be the cluster's, or one member's knowledge will do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Freshness {
    Local,
    Cluster,
}

/// Reads how many keys there are. Needs the right to read all of them.
async fn may_read(
    endpoint: &Endpoint,
    asking: Asking<'_>,
    client: &mut Client,
    freshness: Freshness,
) -> Result<i64, ProbeError> {
    let options = GetOptions::new().with_prefix().with_count_only();
    let options = if freshness == Freshness::Local { options.with_serializable() } else { options };
    let keys = format!("{}/", asking.prefix);
    let question = Question { endpoint, asking };
    Ok(question.answer("a read", client.get(keys, Some(options))).await?.count())
}

fn report(endpoint: &Endpoint, status: &StatusResponse, took: Duration) -> Report {
    let header = status.header();
    let size = |bytes: i64| u64::try_from(bytes).unwrap_or_default();
    Report {
        endpoint: endpoint.clone(),
        version: printable(status.version()),
        cluster: header.map_or(0, |header| header.cluster_id()),
        member: header.map_or(0, |header| header.member_id()),
        leader: status.leader(),
        learner: status.is_learner(),
        revision: header.map_or(0, |header| header.revision()),
        complaints: status.errors().iter().map(|text| printable(text.trim())).collect(),
        size: size(status.db_size()),
        quota: Some(size(status.db_size_quota())).filter(|quota| *quota > 0),
        took,
    }
}

impl Report {
    /// What is wrong with a server that answers, each with what to do.
    pub fn warnings(&self) -> Vec<String> {
        let mut found: Vec<String> = version::warning(&self.version).into_iter().collect();
        if self.leader == 0 {
            found.push(
                "its cluster has no leader: nothing can be written; start the missing members".to_owned(),
            );
        }
        if self.learner {
            let text =
                "it is a learner, which answers no current reads: promote it, or name voting members only";
            found.push(text.to_owned());
        }
        for complaint in &self.complaints {
            found.push(complaint_explained(complaint));
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

fn complaint_explained(complaint: &str) -> String {
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

/// What a server says, fit for one line of a log.
fn printable(text: &str) -> String {
    let shown = |letter: char| if letter.is_control() { char::REPLACEMENT_CHARACTER } else { letter };
    text.chars().take(QUOTED).map(shown).collect()
}

/// Puts what etcd answers into words.
struct Question<'a> {
    endpoint: &'a Endpoint,
    asking: Asking<'a>,
}

impl Question<'_> {
    async fn answer<T>(
        &self,
        what: &'static str,
        call: impl Future<Output = Result<T, etcd_client::Error>>,
    ) -> Result<T, ProbeError> {
        self.in_time(what, call).await?.map_err(|error| match &error {
            etcd_client::Error::GRpcStatus(status) => self.explained(what, status, &error),
            _ => self.other(what, &error),
        })
    }

    async fn login<T>(
        &self,
        user: &str,
        call: impl Future<Output = Result<T, etcd_client::Error>>,
    ) -> Result<T, ProbeError> {
        self.in_time("the login", call).await?.map_err(|error| match &error {
            etcd_client::Error::GRpcStatus(status) if status.code() == Code::InvalidArgument => {
                ProbeError::Login { user: user.to_owned(), says: printable(status.message()) }
            }
            etcd_client::Error::GRpcStatus(status) if status.code() == Code::FailedPrecondition => {
                ProbeError::NoAuth { says: printable(status.message()) }
            }
            _ => self.other("the login", &error),
        })
    }

    async fn in_time<T>(&self, what: &'static str, call: impl Future<Output = T>) -> Result<T, ProbeError> {
        let after = self.asking.timeout;
        tokio::time::timeout(after, call).await.map_err(|_| ProbeError::Silent { what, after })
    }

    fn explained(&self, what: &'static str, status: &Status, error: &etcd_client::Error) -> ProbeError {
        let says = || printable(status.message());
        match status.code() {
            Code::PermissionDenied => ProbeError::Forbidden {
                who: match self.asking.login {
                    Some((user, _)) => format!("the user {user:?}"),
                    None => "the user that our client certificate names".to_owned(),
                },
                what: if what == rights::WRITE { "write" } else { "read" },
                prefix: self.asking.prefix.to_owned(),
                says: says(),
            },
            Code::InvalidArgument if status.message().contains("user name is empty") => {
                ProbeError::Anonymous { says: says() }
            }
            Code::Unauthenticated => ProbeError::Anonymous { says: says() },
            _ => self.other(what, error),
        }
    }

    fn other(&self, what: &'static str, error: &etcd_client::Error) -> ProbeError {
        match (dial::find_dial_error(error, self.endpoint), error) {
            (Some(cause), _) => cause.into(),
            (None, etcd_client::Error::GRpcStatus(status)) => ProbeError::Answer {
                what,
                says: format!("{} ({:?})", printable(status.message()), status.code()),
            },
            (None, error) => ProbeError::Answer { what, says: printable(&error.to_string()) },
        }
    }
}

#[cfg(test)]
mod tests;
