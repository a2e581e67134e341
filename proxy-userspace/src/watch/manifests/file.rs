//! A manifest on disk: which files are manifests, and what one says.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const MAX_FILE_BYTES: u64 = 256 << 20;

/// Whether a name that appeared is a file that somebody is writing, and not a link to one that is
/// there.
pub(super) fn is_being_written(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|file| file.is_file() && file.nlink() == 1)
}

/// Whether a file's name is that of a manifest.
pub(super) fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().and_then(OsStr::to_str).is_none_or(|name| name.starts_with('.'));
    let known = path.extension().and_then(OsStr::to_str);
    !hidden && matches!(known, Some("yaml" | "yml" | "json"))
}

/// Why a file has nothing to say.
pub(super) enum ReadError {
    /// It is not there.
    Gone,
    /// It could not be read at all, which may pass without another change of the file.
    Failed(String),
    /// What it is, or has, is of no use.
    Unusable(String),
}

/// The text of a file.
pub(super) fn read_text(path: &Path) -> Result<String, ReadError> {
    let unusable = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => ReadError::Gone,
        _ => ReadError::Failed(format!("cannot be read: {error}; its last objects stay in force")),
    };
    let metadata = std::fs::metadata(path).map_err(unusable)?;
    // Reading a pipe would wait for a writer, and reading a device would never end.
    if !metadata.is_file() {
        return Err(ReadError::Unusable("is not a regular file; its last objects stay in force".into()));
    }
    if metadata.len() > MAX_FILE_BYTES {
        return Err(ReadError::Unusable(format!("has {} bytes, more than {MAX_FILE_BYTES}", metadata.len())));
    }
    let bytes = std::fs::read(path).map_err(unusable)?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        ReadError::Unusable(format!("is not text (byte {at} is not UTF-8); its last objects stay in force"))
    })
}
