//! The `Authorization` of requests: fixed, or a file's token, which is read again as it rotates.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::HeaderValue;

/// How long a file's token is used before the file is read again, as with client-go: a minute, less
/// ten seconds.
const FRESH: Duration = Duration::from_secs(50);

/// What is sent with each request.
pub(super) enum Authorization {
    /// Nothing.
    None,
    /// The same as long as this client lives.
    Fixed(HeaderValue),
    /// A file's token.
    File(TokenFile),
}

impl Authorization {
    /// A token as a header; none when its characters cannot be in one.
    pub(super) fn bearer(token: &str) -> Option<HeaderValue> {
        let mut value = HeaderValue::try_from(format!("Bearer {token}")).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// A file's token; `otherwise` while the file cannot be read.
    pub(super) fn file(path: PathBuf, otherwise: Option<HeaderValue>) -> Result<Authorization, String> {
        let file = TokenFile { path, last: Mutex::new((otherwise, None)) };
        file.header(Instant::now()).map(|_| Authorization::File(file))
    }

    pub(super) fn is_some(&self) -> bool {
        !matches!(self, Authorization::None)
    }

    /// The header, if there is one.
    pub(super) fn header(&self) -> Result<Option<HeaderValue>, String> {
        match self {
            Authorization::None => Ok(None),
            Authorization::Fixed(value) => Ok(Some(value.clone())),
            Authorization::File(file) => file.header(Instant::now()).map(Some),
        }
    }
}

/// A file with a token, and white space around it.
pub(super) struct TokenFile {
    path: PathBuf,
    /// The header in use, and when the file was read for it.
    last: Mutex<(Option<HeaderValue>, Option<Instant>)>,
}

impl TokenFile {
    /// The header. A file that cannot be read leaves the last token in use.
    fn header(&self, now: Instant) -> Result<HeaderValue, String> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(header), Some(at)) = &*last
            && now.saturating_duration_since(*at) < FRESH
        {
            return Ok(header.clone());
        }
        match (self.read(), &last.0) {
            (Ok(header), _) => {
                *last = (Some(header.clone()), Some(now));
                Ok(header)
            }
            (Err(_), Some(header)) => Ok(header.clone()),
            (Err(reason), None) => Err(reason),
        }
    }

    fn read(&self) -> Result<HeaderValue, String> {
        let path = self.path.display();
        let text =
            std::fs::read_to_string(&self.path).map_err(|error| format!("cannot read {path}: {error}"))?;
        match text.trim() {
            "" => Err(format!("{path} is empty; write the token to it")),
            token => Authorization::bearer(token)
                .ok_or_else(|| format!("{path} has characters that are not allowed in an HTTP header")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_token_is_trimmed_read_again_and_kept_while_the_file_is_away() {
        let path = std::env::temp_dir().join(format!("sluice-token-{}", std::process::id()));
        std::fs::write(&path, "one\n").unwrap();
        let file = TokenFile { path: path.clone(), last: Mutex::default() };
        let begun = Instant::now();
        let token = |after| {
            let header = file.header(begun + Duration::from_secs(after)).unwrap();
            header.to_str().unwrap().to_owned()
        };
        assert_eq!(token(0), "Bearer one");
        std::fs::write(&path, " two \r\n").unwrap();
        assert_eq!(token(49), "Bearer one");
        assert_eq!(token(51), "Bearer two");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(token(500), "Bearer two");
        let missing = Authorization::file(path.clone(), None).err().unwrap();
        assert!(missing.contains(path.to_str().unwrap()), "{missing}");
        let otherwise = Authorization::file(path, Authorization::bearer("three")).unwrap();
        assert_eq!(otherwise.header().unwrap().unwrap(), "Bearer three");
    }
}
