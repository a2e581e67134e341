//! What of an experiment counts, and what mode nftables must have done for it to count at all.

/// How what was seen is judged: a list of words for each try, one for each question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judged {
    /// Each question is answered, from where it went to
    Answered,
    /// The same, but only the last try's have to be
    Learned,
    /// The same, but only the last question has to be
    LastAnswered,
    /// As `Answered`; whom the endpoint saw does not count
    BySender,
    /// Each question is refused
    Refused,
    /// Some try is answered, whichever
    Recovers,
    /// Each question is answered by the same endpoint, whichever
    OneEndpoint,
}

impl Judged {
    /// What is compared with the other mode.
    pub(super) fn text(self, seen: &[Vec<String>]) -> String {
        match self {
            Self::Recovers if seen.iter().any(|words| all(words)) => "recovers".to_owned(),
            Self::OneEndpoint if self.is_right(seen) => "one endpoint".to_owned(),
            // Who learned of an MTU before, by another experiment, loses nothing.
            Self::Learned if self.is_right(seen) => {
                seen.last().map(|words| words.join("; ")).unwrap_or_default()
            }
            _ => {
                let word = |word: &String| if self == Self::BySender { unseen(word) } else { word.clone() };
                let mut tries: Vec<String> =
                    seen.iter().map(|words| words.iter().map(word).collect::<Vec<_>>().join("; ")).collect();
                tries.dedup();
                tries.join(" | ")
            }
        }
    }

    /// Whether it is what has to be.
    pub(super) fn is_right(self, seen: &[Vec<String>]) -> bool {
        match self {
            Self::Answered | Self::BySender => seen.iter().all(|words| all(words)),
            Self::Learned => seen.last().is_some_and(|words| all(words)),
            Self::LastAnswered => seen.iter().all(|words| words.last().is_some_and(|word| is_answer(word))),
            Self::Refused => seen.iter().flatten().all(|word| word == "refused"),
            Self::Recovers => seen.iter().any(|words| all(words)),
            Self::OneEndpoint => {
                let who = |word: &String| word.split(" saw ").next().map(str::to_owned);
                let mut endpoints: Vec<_> = seen.iter().flatten().map(who).collect();
                endpoints.dedup();
                seen.iter().all(|words| all(words)) && endpoints.len() == 1
            }
        }
    }
}

fn all(words: &[String]) -> bool {
    !words.is_empty() && words.iter().all(|word| is_answer(word))
}

/// Whether a word tells of an answer from where the question went to.
fn is_answer(word: &str) -> bool {
    word.contains(" saw ") && !word.contains(", ")
}

/// A word without whom the endpoint saw.
fn unseen(word: &str) -> String {
    match word.split_once(" saw ") {
        Some((who, rest)) => match rest.split_once(", ") {
            Some((_, more)) => format!("{who} answered, {more}"),
            None => format!("{who} answered"),
        },
        None => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tries(tries: &[&str]) -> Vec<Vec<String>> {
        tries.iter().map(|words| words.split("; ").map(str::to_owned).collect()).collect()
    }

    #[test]
    fn answers_have_to_come_from_where_questions_went() {
        let right = tries(&["p1 saw 10.0.0.1; p1 saw 10.0.0.1"]);
        for wrong in ["timeout", "p1 saw 10.0.0.1; refused", "p1 saw 10.0.0.1, answer from 10.0.0.9:53"] {
            assert!(Judged::Answered.is_right(&right) && !Judged::Answered.is_right(&tries(&[wrong])));
            assert!(Judged::Learned.is_right(&tries(&[wrong, "p1 saw 10.0.0.1"])), "{wrong}");
            assert!(!Judged::Learned.is_right(&tries(&["p1 saw 10.0.0.1", wrong])), "{wrong}");
            assert!(!Judged::Recovers.is_right(&tries(&[wrong])), "{wrong}");
        }
        assert!(!Judged::Answered.is_right(&tries(&["p1 saw 10.0.0.1", "timeout"])));
        assert!(Judged::LastAnswered.is_right(&tries(&["error 11/0 by 10.0.0.2; p1 saw 10.0.0.1"])));
        assert!(Judged::Refused.is_right(&tries(&["refused; refused"])));
        assert!(!Judged::Refused.is_right(&tries(&["refused; timeout"])));
    }

    #[test]
    fn what_does_not_count_is_not_compared() {
        let seen = tries(&["p1 saw 10.0.0.1; p1 saw 10.0.0.1, answer from 10.0.0.9:53"]);
        assert_eq!(Judged::BySender.text(&seen), "p1 answered; p1 answered, answer from 10.0.0.9:53");
        let moves = tries(&["timeout", "p1 saw 10.0.0.1"]);
        assert_eq!(Judged::Recovers.text(&moves), "recovers");
        assert_eq!(Judged::Answered.text(&moves), "timeout | p1 saw 10.0.0.1");
        assert_eq!(Judged::Learned.text(&moves), "p1 saw 10.0.0.1");
        assert_eq!(
            Judged::Learned.text(&tries(&["p1 saw 10.0.0.1", "timeout"])),
            "p1 saw 10.0.0.1 | timeout"
        );
        let other = tries(&["p1 saw 10.0.0.1", "p2 saw 10.0.0.1"]);
        assert_eq!(Judged::OneEndpoint.text(&other), "p1 saw 10.0.0.1 | p2 saw 10.0.0.1");
        assert_eq!(Judged::OneEndpoint.text(&tries(&["p2 saw a", "p2 saw b"])), "one endpoint");
    }
}
