//! Links: a program at a cgroup or an interface, pinned, so that it stays when nobody has it open.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use super::load::Program;
use super::{BpfError, Cgroup, syscall};

/// `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS`.
pub(super) const TCX: [u32; 2] = [46, 47];

/// The attach types of `programs::SOCKET`: `BPF_CGROUP_INET4_CONNECT`, `INET6_CONNECT`,
/// `UDP4_SENDMSG`, `UDP6_SENDMSG`, `UDP4_RECVMSG`, `UDP6_RECVMSG`, `INET4_GETPEERNAME`,
/// `INET6_GETPEERNAME`.
pub(super) const SOCKET: [u32; 8] = [10, 11, 14, 15, 19, 20, 29, 30];

/// Where a program is attached.
#[derive(Clone, Copy)]
pub(super) enum Target<'a> {
    Cgroup(&'a Cgroup),
    Interface(u32),
}

impl Target<'_> {
    /// As links tell it.
    fn id(self) -> u64 {
        match self {
            Target::Cgroup(cgroup) => cgroup.id(),
            Target::Interface(index) => u64::from(index),
        }
    }

    /// As the kernel wants it.
    fn argument(self) -> u32 {
        match self {
            Target::Cgroup(cgroup) => cgroup.fd(),
            Target::Interface(index) => index,
        }
    }
}

/// What had to be done for a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Done {
    /// Nothing.
    Kept,
    /// It had another program.
    Updated,
    /// There was none.
    Attached,
}

/// Sees to it that the link of that name is at the target and has the program.
pub(super) fn ensure(
    path: &Path,
    program: &Program,
    attach_type: u32,
    target: Target<'_>,
) -> Result<Done, BpfError> {
    let failed = |doing: &str| {
        let operation = format!("{doing} link {}", path.display());
        move |source| BpfError::system(operation, source)
    };
    if let Some(link) = open(path)? {
        match syscall::link_info(link.as_fd()) {
            Ok(info) if info.target != target.id() => {}
            Ok(info) if info.program == program.id => return Ok(Done::Kept),
            Ok(_) => match syscall::update_link(link.as_fd(), program.fd()) {
                Ok(()) => return Ok(Done::Updated),
                // What it was attached to has just gone.
                Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
                Err(error) => return Err(failed("replace the program of")(error)),
            },
            // Something else has that name.
            Err(_) => {}
        }
    }
    let link = create(program, target, attach_type).map_err(failed("create"))?;
    // Under another name first: what is at the old one goes on until this is in its place.
    let mut next = path.as_os_str().to_owned();
    next.push("-next");
    let next = Path::new(&next);
    let _ = std::fs::remove_file(next);
    syscall::pin(link.as_fd(), next).map_err(failed("pin"))?;
    std::fs::rename(next, path).map_err(failed("rename"))?;
    Ok(Done::Attached)
}

/// Makes a link. The kernel ends a link whose name was removed a moment later, and takes no second
/// one of the same program beside it.
fn create(program: &Program, target: Target<'_>, attach_type: u32) -> io::Result<OwnedFd> {
    let mut attempts = 5;
    loop {
        match syscall::create_link(program.fd(), target.argument(), attach_type) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) && attempts > 0 => attempts -= 1,
            other => return other,
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// Opens a pinned link.
fn open(path: &Path) -> Result<Option<OwnedFd>, BpfError> {
    match syscall::open(path) {
        Ok(fd) => Ok(Some(fd)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(BpfError::system(format!("open link {}", path.display()), source)),
    }
}

/// What a pinned link is at (zero: nothing any more), and the number of its program.
pub(super) fn state(path: &Path) -> Result<Option<(u64, u32)>, BpfError> {
    let Some(link) = open(path)? else { return Ok(None) };
    let info = syscall::link_info(link.as_fd()).map_err(|source| {
        BpfError::system(format!("get information about link {}", path.display()), source)
    })?;
    Ok(Some((info.target, info.program)))
}

/// Whether the kernel knows TCX. Asked with an interface that cannot be, so that nothing happens.
pub(super) fn has_tcx(program: &Program) -> bool {
    const NOWHERE: u32 = i32::MAX as u32;
    let error = syscall::create_link(program.fd(), NOWHERE, TCX[0]).err();
    error.and_then(|error| error.raw_os_error()) == Some(libc::ENODEV)
}
