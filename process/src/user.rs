//! The user that a program goes on as which was started by root.
//!
//! It leaves root before it opens anything but its settings, and keeps the one capability to bind
//! ports below 1024, as a systemd unit gives it: so a listener that appears later, and a successor,
//! can have such a port. Whatever it opens later it must be able to open again. Invariant: after
//! [`leave_root`] has switched, no thread of the process can become root again.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{AccessFlags, Group, Uid, User, access, initgroups, setgid, setuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, configure_capability_in_ambient_set, set_capabilities,
    set_keep_capabilities,
};

use crate::core_dumps;

/// Root cannot be left.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// There is no such user.
    #[error("there is no user {0:?} on this machine: make it (useradd --system {0}), or write another one")]
    NoUser(String),
    /// There is no such group.
    #[error("there is no group {0:?} on this machine: make it (groupadd --system {0}), or write another one")]
    NoGroup(String),
    /// The users of the machine cannot be read.
    #[error("the users of this machine cannot be read: {0}")]
    Lookup(Errno),
    /// The kernel refuses a step.
    #[error(
        "{step}: {error}: root needs the capabilities CAP_SETUID and CAP_SETGID for it, or start the program as that user"
    )]
    Refused {
        /// What was tried.
        step: &'static str,
        /// The kernel's answer.
        error: io::Error,
    },
    /// The process could become root again.
    #[error("the process could still become root")]
    StillRoot,
}

/// Switches to this user, and its group if one is given, when the process runs as root. Returns
/// whether it did. Without a user it stays root, with a warning; another user stays as it is, as in
/// nginx. `settings`: the file that a reload reads again.
///
/// # Errors
/// [`UserError`]; the process must end then.
pub fn leave_root(user: Option<(&str, Option<&str>)>, settings: &Path) -> Result<bool, UserError> {
    if !Uid::effective().is_root() {
        return Ok(false);
    }
    let Some((name, group)) = user else {
        tracing::warn!(
            "this program runs as root: name a user in nginx_config.user, to which it switches, or start it as one (systemd: User=)"
        );
        return Ok(false);
    };
    let account = User::from_name(name).map_err(UserError::Lookup)?;
    let account = account.ok_or_else(|| UserError::NoUser(name.to_owned()))?;
    let find = |name: &str| Group::from_name(name).map_err(UserError::Lookup);
    let gid = match group {
        Some(group) => find(group)?.ok_or_else(|| UserError::NoGroup(group.to_owned()))?.gid,
        // nginx: the group of the user's name.
        None => find(name)?.map_or(account.gid, |group| group.gid),
    };
    if account.uid.is_root() {
        return Ok(false);
    }
    switch(&account, gid)?;
    if let Err(error) = File::open(settings) {
        let path = settings.display();
        tracing::warn!("the user {name:?} cannot read {path}: {error}; a reload and an upgrade will fail");
    }
    tracing::info!(user = name, uid = account.uid.as_raw(), gid = gid.as_raw(), "root was left");
    Ok(true)
}

fn switch(account: &User, gid: nix::unistd::Gid) -> Result<(), UserError> {
    let refused = |step| move |error: io::Error| UserError::Refused { step, error };
    let name = CString::new(account.name.as_str()).map_err(|_| UserError::NoUser(account.name.clone()))?;
    // Of this thread alone; the others lose theirs with root.
    set_keep_capabilities(true).map_err(|error| refused("prctl")(error.into()))?;
    initgroups(&name, gid).map_err(|error| refused("initgroups")(error.into()))?;
    setgid(gid).map_err(|error| refused("setgid")(error.into()))?;
    // The C library switches every thread.
    setuid(account.uid).map_err(|error| refused("setuid")(error.into()))?;
    keep_low_ports().map_err(refused("capset"))?;
    // The kernel allowed core dumps again when the user changed.
    core_dumps::disable().map_err(refused("prctl"))?;
    if setuid(Uid::from_raw(0)).is_ok() || Uid::effective().is_root() {
        return Err(UserError::StillRoot);
    }
    Ok(())
}

/// Keeps the capability to bind ports below 1024, for the threads and programs that this thread
/// starts, too, and none besides.
fn keep_low_ports() -> io::Result<()> {
    let kept = capabilities(None)?.permitted & CapabilitySet::NET_BIND_SERVICE;
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: kept })?;
    if !kept.is_empty() {
        configure_capability_in_ambient_set(CapabilitySet::NET_BIND_SERVICE, true)?;
    }
    Ok(set_keep_capabilities(false)?)
}

/// Checks that this process can read a file, if it is there, and put another one in its place: the
/// folder must be there or be made.
///
/// # Errors
/// The path that it may not use, and why.
pub fn check_replaceable(file: &Path) -> Result<(), (std::path::PathBuf, io::Error)> {
    let may = |path: &Path, flags| match access(path, flags) {
        Ok(()) => Ok(true),
        Err(Errno::ENOENT) => Ok(false),
        Err(error) => Err((path.to_owned(), error.into())),
    };
    may(file, AccessFlags::R_OK)?;
    for folder in file.ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty()) {
        if may(folder, AccessFlags::W_OK | AccessFlags::X_OK)? {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_users_and_groups_are_named() {
        if !Uid::effective().is_root() {
            return;
        }
        let file = Path::new("/dev/null");
        let error = leave_root(Some(("no-such-user", None)), file).unwrap_err().to_string();
        assert!(error.contains("\"no-such-user\"") && error.contains("useradd"), "{error}");
        let error = leave_root(Some(("root", Some("no-such-group"))), file).unwrap_err().to_string();
        assert!(error.contains("\"no-such-group\"") && error.contains("groupadd"), "{error}");
        assert!(!leave_root(Some(("root", None)), file).unwrap(), "root that is wanted stays");
        assert!(!leave_root(None, file).unwrap());
    }

    #[test]
    fn for_a_missing_folder_the_one_above_decides() {
        let folder = tempfile::tempdir().unwrap();
        check_replaceable(&folder.path().join("new/file")).unwrap();
        std::fs::write(folder.path().join("file"), "").unwrap();
        check_replaceable(&folder.path().join("file")).unwrap();
        let (path, _) = check_replaceable(Path::new("/proc/1/no/file")).unwrap_err();
        assert_eq!(path, Path::new("/proc/1"));
    }
}
