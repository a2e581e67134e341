//! Mutation of bytes that know nothing of their structure but lines, and words that matter.

use fastrand::Rng;

/// No input becomes longer than this: what is to be found is not that long texts take long.
const LONGEST: usize = 64 << 10;
/// One input of so many is nothing but noise.
const NOISE: usize = 50;
/// At most so many changes of one input.
const CHANGES: usize = 8;

/// Makes inputs from valid ones, and from words that readers know.
#[derive(Debug, Clone)]
pub struct Bytes {
    corpus: Vec<Vec<u8>>,
    words: Vec<Vec<u8>>,
}

impl Bytes {
    /// From valid inputs and words. Numbers at limits are words for every reader of text.
    pub fn new(corpus: Vec<Vec<u8>>, words: &[&str]) -> Self {
        let limits = ["0", "-1", "65535", "65536", "4294967296", "9223372036854775807", "1e400", "null", "~"];
        let words = words.iter().chain(&limits).map(|word| word.as_bytes().to_vec()).collect();
        Bytes { corpus, words }
    }

    /// The next input.
    pub fn next(&self, rng: &mut Rng) -> Vec<u8> {
        if rng.usize(..NOISE) == 0 {
            return noise(rng, 300);
        }
        let mut bytes = rng.choice(&self.corpus).cloned().unwrap_or_default();
        self.mutate(&mut bytes, rng);
        bytes
    }

    /// Changes bytes in some places.
    pub fn mutate(&self, bytes: &mut Vec<u8>, rng: &mut Rng) {
        for _ in 0..rng.usize(1..=CHANGES) {
            self.change(bytes, rng);
            bytes.truncate(LONGEST);
        }
    }

    fn change(&self, bytes: &mut Vec<u8>, rng: &mut Rng) {
        let place = part(bytes.len(), rng);
        match rng.u8(..11) {
            0 => flip(bytes, rng),
            1 => set(bytes, rng),
            2 => drop(bytes.splice(place.start..place.start, self.word(rng))),
            3 => drop(bytes.splice(place, self.word(rng))),
            4 => drop(bytes.drain(place)),
            5 => {
                let most = if rng.u8(..8) == 0 { 200.min(LONGEST / place.len().max(1)) } else { 2 };
                let copy = bytes[place.clone()].repeat(rng.usize(1..=most.max(1)));
                drop(bytes.splice(place.start..place.start, copy));
            }
            6 => {
                let other = rng.choice(&self.corpus).cloned().unwrap_or_default();
                let from = part(other.len(), rng);
                drop(bytes.splice(place, other[from].iter().copied()));
            }
            7 => bytes.truncate(place.start),
            8 => {
                let noise = noise(rng, 8);
                drop(bytes.splice(place, noise));
            }
            _ => lines(bytes, rng),
        }
    }

    fn word(&self, rng: &mut Rng) -> Vec<u8> {
        rng.choice(&self.words).cloned().unwrap_or_default()
    }
}

fn noise(rng: &mut Rng, most: usize) -> Vec<u8> {
    (0..rng.usize(..most)).map(|_| rng.u8(..)).collect()
}

/// A part of so many bytes, mostly a short one.
fn part(len: usize, rng: &mut Rng) -> std::ops::Range<usize> {
    let start = rng.usize(..=len);
    let longest = if rng.u8(..4) == 0 { len } else { 16 };
    start..(start + rng.usize(..=longest)).min(len)
}

fn flip(bytes: &mut [u8], rng: &mut Rng) {
    if let Some(byte) = rng.choice(bytes) {
        *byte ^= 1 << rng.u8(..8);
    }
}

fn set(bytes: &mut [u8], rng: &mut Rng) {
    if let Some(byte) = rng.choice(bytes) {
        let any = rng.u8(..);
        *byte = rng.choice([0, 1, 0x7f, 0x80, 0xff, b' ', b'\t', b'\n', b'"', any]).unwrap_or(any);
    }
}

/// Takes a line away, has it twice, indents it, or exchanges it for another one.
fn lines(bytes: &mut Vec<u8>, rng: &mut Rng) {
    let mut lines: Vec<Vec<u8>> = bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    if lines.is_empty() {
        return;
    }
    let (at, other) = (rng.usize(..lines.len()), rng.usize(..lines.len()));
    match rng.u8(..4) {
        0 => drop(lines.remove(at)),
        1 => lines.insert(other, lines[at].clone()),
        2 => lines.swap(at, other),
        _ => {
            let indent = b" ".repeat(rng.usize(1..4));
            drop(lines[at].splice(..0, indent));
        }
    }
    *bytes = lines.concat();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_inputs_and_another_one_others() {
        let bytes = Bytes::new(vec![b"a: 1\nb: 2\n".to_vec()], &["kind"]);
        let inputs = |seed| {
            let mut rng = Rng::with_seed(seed);
            (0..500).map(|_| bytes.next(&mut rng)).collect::<Vec<_>>()
        };
        assert_eq!(inputs(1), inputs(1));
        assert_ne!(inputs(1), inputs(2));
        assert!(inputs(1).iter().all(|input| input.len() <= LONGEST));
        assert!(inputs(1).iter().filter(|input| input.windows(4).any(|part| part == b"kind")).count() > 15);
    }
}
