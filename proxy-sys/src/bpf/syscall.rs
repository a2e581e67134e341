//! bpf(2), as far as it is needed here. Numbers and layouts: linux/bpf.h.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

#[derive(Clone, Copy, Debug)]
#[repr(i32)]
enum Command {
    MapCreate = 0,
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    MapNextKey = 4,
    ObjectPin = 6,
    ObjectGet = 7,
    ProgramTestRun = 10,
    ObjectInfo = 15,
    MapLookupBatch = 24,
    MapUpdateBatch = 26,
    MapDeleteBatch = 27,
    LinkCreate = 28,
    LinkUpdate = 29,
}

/// Arguments of a command: the beginning of `union bpf_attr`, of which the kernel takes the rest as
/// zeros.
///
/// # Safety
///
/// `repr(C)`, without padding, every pointer in it as the kernel expects it for the command that it
/// is given to.
unsafe trait Arguments {}

/// Calls the kernel.
///
/// # Safety
///
/// What the arguments point to must be as long as the command reads or writes.
unsafe fn bpf<T: Arguments>(command: Command, arguments: &mut T) -> io::Result<i64> {
    // SAFETY: pointer and size describe `arguments`, which lives through the call; the caller
    // answers for what is behind pointers in it.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as i32, std::ptr::from_mut(arguments), std::mem::size_of::<T>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(fd: i64) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

#[repr(C)]
struct CreateMap {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner_map: u32,
    numa_node: u32,
    name: [u8; 16],
}

// SAFETY: as linux/bpf.h has it; no pointers.
unsafe impl Arguments for CreateMap {}

/// What a map is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MapShape {
    pub(super) map_type: u32,
    pub(super) key_size: u32,
    pub(super) value_size: u32,
    pub(super) max_entries: u32,
    pub(super) flags: u32,
}

pub(super) fn create_map(name: &str, shape: MapShape) -> io::Result<OwnedFd> {
    let mut short = [0; 16];
    for (to, from) in short.iter_mut().zip(name.bytes().take(15)) {
        *to = from;
    }
    let MapShape { map_type, key_size, value_size, max_entries, flags } = shape;
    let mut arguments = CreateMap {
        map_type,
        key_size,
        value_size,
        max_entries,
        flags,
        inner_map: 0,
        numa_node: 0,
        name: short,
    };
    // SAFETY: the command takes no pointers.
    unsafe { bpf(Command::MapCreate, &mut arguments) }.map(owned)
}

#[repr(C)]
struct Element {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

// SAFETY: as linux/bpf.h has it; the functions below check lengths.
unsafe impl Arguments for Element {}

fn element(map: BorrowedFd<'_>, key: *const u8, value: *const u8, flags: u64) -> Element {
    Element { map: map.as_raw_fd() as u32, padding: 0, key: key as u64, value: value as u64, flags }
}

/// Reads the value of a key into `value`.
///
/// # Safety
///
/// `key` and `value` must be as long as those of the map (values of per-CPU maps: for each possible
/// CPU, rounded up to 8).
pub(super) unsafe fn lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<()> {
    let mut arguments = element(map, key.as_ptr(), value.as_mut_ptr(), 0);
    // SAFETY: the caller answers for the lengths; both slices live through the call.
    unsafe { bpf(Command::MapLookup, &mut arguments) }.map(drop)
}

/// Writes one entry.
///
/// # Safety
///
/// As for [`lookup`].
pub(super) unsafe fn update(map: BorrowedFd<'_>, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
    let mut arguments = element(map, key.as_ptr(), value.as_ptr(), flags);
    // SAFETY: the caller answers for the lengths; both slices live through the call.
    unsafe { bpf(Command::MapUpdate, &mut arguments) }.map(drop)
}

/// Deletes one entry.
///
/// # Safety
///
/// `key` must be as long as those of the map.
pub(super) unsafe fn delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<()> {
    let mut arguments = element(map, key.as_ptr(), std::ptr::null(), 0);
    // SAFETY: the caller answers for the length; the slice lives through the call.
    unsafe { bpf(Command::MapDelete, &mut arguments) }.map(drop)
}

/// The key after another, or the first.
///
/// # Safety
///
/// Keys must be as long as those of the map.
pub(super) unsafe fn next_key(map: BorrowedFd<'_>, key: Option<&[u8]>, next: &mut [u8]) -> io::Result<()> {
    let key = key.map_or(std::ptr::null(), <[u8]>::as_ptr);
    let mut arguments = element(map, key, next.as_mut_ptr(), 0);
    // SAFETY: the caller answers for the lengths; the slices live through the call.
    unsafe { bpf(Command::MapNextKey, &mut arguments) }.map(drop)
}

#[repr(C)]
struct Batch {
    from: u64,
    to: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

// SAFETY: as linux/bpf.h has it; the functions below check lengths.
unsafe impl Arguments for Batch {}

/// How far an operation on many entries came.
pub(super) struct Progress {
    /// Entries done.
    pub(super) done: usize,
    /// Why it ended there, if not because all are done.
    pub(super) result: io::Result<()>,
}

/// Reads entries from where `from` says, and says in `to` where to go on. At the end the result is
/// ENOENT.
///
/// # Safety
///
/// `keys` and `values` must have room for `count` entries; `from` and `to` for the map's key and
/// not less than 4 bytes.
pub(super) unsafe fn lookup_batch(
    map: BorrowedFd<'_>,
    from: Option<&[u8]>,
    to: &mut [u8],
    keys: &mut [u8],
    values: &mut [u8],
    count: usize,
) -> Progress {
    let mut arguments = Batch {
        from: from.map_or(0, |from| from.as_ptr() as u64),
        to: to.as_mut_ptr() as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: count as u32,
        map: map.as_raw_fd() as u32,
        element_flags: 0,
        flags: 0,
    };
    // SAFETY: the caller answers for the lengths; all slices live through the call.
    let result = unsafe { bpf(Command::MapLookupBatch, &mut arguments) }.map(drop);
    Progress { done: arguments.count as usize, result }
}

/// Writes entries.
///
/// # Safety
///
/// `keys` and `values` must hold `count` entries.
pub(super) unsafe fn update_batch(map: BorrowedFd<'_>, keys: &[u8], values: &[u8], count: usize) -> Progress {
    // SAFETY: the caller answers for the lengths.
    unsafe { write_batch(Command::MapUpdateBatch, map, keys, values, count) }
}

/// Deletes entries. A key that is not there ends it.
///
/// # Safety
///
/// `keys` must hold `count` keys.
pub(super) unsafe fn delete_batch(map: BorrowedFd<'_>, keys: &[u8], count: usize) -> Progress {
    // SAFETY: the caller answers for the lengths; the command reads no values.
    unsafe { write_batch(Command::MapDeleteBatch, map, keys, &[], count) }
}

/// # Safety
///
/// As for [`update_batch`] and [`delete_batch`].
unsafe fn write_batch(
    command: Command,
    map: BorrowedFd<'_>,
    keys: &[u8],
    values: &[u8],
    count: usize,
) -> Progress {
    let mut arguments = Batch {
        from: 0,
        to: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: count as u32,
        map: map.as_raw_fd() as u32,
        element_flags: 0,
        flags: 0,
    };
    // SAFETY: the caller answers for the lengths; both slices live through the call.
    let result = unsafe { bpf(command, &mut arguments) }.map(drop);
    let done = if result.is_ok() { count } else { (arguments.count as usize).min(count) };
    Progress { done, result }
}

#[repr(C)]
struct Pin {
    path: u64,
    fd: u32,
    flags: u32,
}

// SAFETY: as linux/bpf.h has it; the functions below give a text that ends with a zero.
unsafe impl Arguments for Pin {}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Gives an object a name in a bpf filesystem.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut arguments = Pin { path: path.as_ptr() as u64, fd: object.as_raw_fd() as u32, flags: 0 };
    // SAFETY: `path` ends with a zero and lives through the call.
    unsafe { bpf(Command::ObjectPin, &mut arguments) }.map(drop)
}

/// Opens what has a name in a bpf filesystem.
pub(super) fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut arguments = Pin { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: `path` ends with a zero and lives through the call.
    unsafe { bpf(Command::ObjectGet, &mut arguments) }.map(owned)
}

#[repr(C)]
struct Info {
    fd: u32,
    len: u32,
    info: u64,
}

// SAFETY: as linux/bpf.h has it; `info` gives room for as much as it says.
unsafe impl Arguments for Info {}

/// What the kernel tells of an object, as 32-bit words. What it does not know is zero.
fn info<const N: usize>(object: BorrowedFd<'_>) -> io::Result<[u32; N]> {
    let mut words = [0u32; N];
    let len = std::mem::size_of_val(&words) as u32;
    let mut arguments = Info { fd: object.as_raw_fd() as u32, len, info: words.as_mut_ptr() as u64 };
    // SAFETY: `words` has room for `len` bytes and lives through the call; the kernel writes no
    // more than that.
    unsafe { bpf(Command::ObjectInfo, &mut arguments) }?;
    Ok(words)
}

/// The shape of a map.
pub(super) fn map_shape(map: BorrowedFd<'_>) -> io::Result<MapShape> {
    // struct bpf_map_info: type, id, key_size, value_size, max_entries, map_flags
    let [map_type, _, key_size, value_size, max_entries, flags] = info(map)?;
    Ok(MapShape { map_type, key_size, value_size, max_entries, flags })
}

/// The number of a program.
pub(super) fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    // struct bpf_prog_info: type, id
    let [_, id] = info(program)?;
    Ok(id)
}

/// What the kernel tells of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkInfo {
    /// The program.
    pub(super) program: u32,
    /// Of a cgroup's link: the cgroup's number; of an interface's: its index; 0 when that is gone.
    pub(super) target: u64,
}

const LINK_TYPE_CGROUP: u32 = 3;

pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    // struct bpf_link_info: type, id, prog_id, padding, then for cgroups u64 cgroup_id, for TCX u32
    // ifindex
    let [link_type, _, program, _, low, high]: [u32; 6] = info(link)?;
    let target = match link_type {
        LINK_TYPE_CGROUP if cfg!(target_endian = "little") => u64::from(high) << 32 | u64::from(low),
        LINK_TYPE_CGROUP => u64::from(low) << 32 | u64::from(high),
        _ => u64::from(low),
    };
    Ok(LinkInfo { program, target })
}

#[repr(C)]
struct CreateLink {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

// SAFETY: as linux/bpf.h has it; no pointers.
unsafe impl Arguments for CreateLink {}

/// Attaches a program. `target` is a cgroup's descriptor or an interface's index.
pub(super) fn create_link(program: BorrowedFd<'_>, target: u32, attach_type: u32) -> io::Result<OwnedFd> {
    let mut arguments = CreateLink { program: program.as_raw_fd() as u32, target, attach_type, flags: 0 };
    // SAFETY: the command takes no pointers.
    unsafe { bpf(Command::LinkCreate, &mut arguments) }.map(owned)
}

#[repr(C)]
struct UpdateLink {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

// SAFETY: as linux/bpf.h has it; no pointers.
unsafe impl Arguments for UpdateLink {}

/// Puts another program in the place of a link's: every packet meets one of both.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let (link, program) = (link.as_raw_fd() as u32, program.as_raw_fd() as u32);
    let mut arguments = UpdateLink { link, program, flags: 0, old_program: 0 };
    // SAFETY: the command takes no pointers.
    unsafe { bpf(Command::LinkUpdate, &mut arguments) }.map(drop)
}

#[repr(C)]
struct TestRun {
    program: u32,
    result: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

// SAFETY: as linux/bpf.h has it; the function below gives the length of what it points to.
unsafe impl Arguments for TestRun {}

/// Runs a program for packets once on a packet that is nowhere else; what it returns.
pub(super) fn run_program(program: BorrowedFd<'_>, packet: &[u8]) -> io::Result<u32> {
    let mut arguments = TestRun {
        program: program.as_raw_fd() as u32,
        result: 0,
        data_size_in: packet.len() as u32,
        data_size_out: 0,
        data_in: packet.as_ptr() as u64,
        data_out: 0,
        repeat: 1,
        duration: 0,
    };
    // SAFETY: the packet lives through the call, and is as long as it says; nothing is written.
    unsafe { bpf(Command::ProgramTestRun, &mut arguments) }?;
    Ok(arguments.result)
}
