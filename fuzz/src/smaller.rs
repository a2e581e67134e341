//! Makes an input smaller that something fails on.

use std::time::{Duration, Instant};

/// After this time it is small enough.
const PATIENCE: Duration = Duration::from_secs(20);

/// Takes parts out of an input, big ones first, as long as it fails without them.
pub(crate) fn smaller(input: &[u8], mut fails: impl FnMut(&[u8]) -> bool) -> Vec<u8> {
    let end = Instant::now() + PATIENCE;
    let mut input = input.to_vec();
    let mut part = input.len().div_ceil(2);
    while part > 0 {
        let mut at = 0;
        while at < input.len() && Instant::now() < end {
            let mut without = input.clone();
            without.drain(at..(at + part).min(input.len()));
            if fails(&without) {
                input = without;
            } else {
                at += part;
            }
        }
        part = if part == 1 { 0 } else { part.div_ceil(2) };
    }
    input
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_matters_is_left() {
        let input = [vec![b'x'; 700], b"ab".to_vec(), vec![b'y'; 301]].concat();
        assert_eq!(smaller(&input, |bytes| bytes.windows(2).any(|pair| pair == b"ab")), b"ab");
        assert_eq!(smaller(b"", |_| true), b"");
    }
}
