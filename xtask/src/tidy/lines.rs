//! How long files, lines of prose and of comments, and cells of tables may be.

use super::Finding;
use super::tree::Tree;

/// Lines of a file of Rust.
const FILE: usize = 700;
/// Columns of a line of prose, in a page or in a comment.
const PROSE: usize = 100;
/// Characters of a cell of a table, without the targets of links.
const CELL: usize = 120;

/// Files of Rust that are too long to be read in one go.
pub(super) fn check_files(tree: &Tree) -> Vec<Finding> {
    let long = |(path, text): (&str, &str)| {
        let lines = text.lines().count();
        (lines > FILE).then(|| Finding {
            path: path.to_owned(),
            line: FILE + 1,
            what: format!("{lines} lines are more than {FILE}: move a part to another file"),
        })
    };
    tree.ending(".rs").filter_map(long).collect()
}

/// Pages and comments with long lines or long cells.
pub(super) fn check_prose(tree: &Tree) -> Vec<Finding> {
    let pages = tree.ending(".md").flat_map(|(path, text)| problems(path, text, |line| Some(line)));
    let comments = tree.ending(".rs").flat_map(|(path, text)| problems(path, text, comment));
    pages.chain(comments).collect()
}

/// What is wrong with the lines of a file that `prose` takes for prose, code blocks left out.
fn problems(path: &str, text: &str, prose: fn(&str) -> Option<&str>) -> Vec<Finding> {
    let mut block = None;
    let mut findings = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let Some(words) = prose(line) else {
            block = None;
            continue;
        };
        match (block, fence(words)) {
            (None, Some(opening)) => block = Some(opening.mark),
            (Some(open), Some(fence)) if fence.closes(open) => block = None,
            _ => {}
        }
        let what = if block.is_some() { None } else { problem(line, words) };
        findings.extend(what.map(|what| Finding { path: path.to_owned(), line: index + 1, what }));
    }
    findings
}

/// The characters of a fence, and how many there are.
type Mark = (char, usize);

/// A line that begins or ends a block of code: at least three backticks or tildes.
struct Fence<'a> {
    mark: Mark,
    /// What follows, usually the language of the code.
    rest: &'a str,
}

impl Fence<'_> {
    /// A block ends with the character of its opening fence, as often at least, and nothing else.
    fn closes(&self, (character, count): Mark) -> bool {
        self.mark.0 == character && self.mark.1 >= count && self.rest.is_empty()
    }
}

fn fence(line: &str) -> Option<Fence<'_>> {
    let line = line.trim();
    let character = line.chars().next().filter(|c| matches!(c, '`' | '~'))?;
    let rest = line.trim_start_matches(character);
    let count = line.len() - rest.len();
    // Backticks in the rest make it code in a line of prose.
    let is_fence = count >= 3 && !(character == '`' && rest.contains('`'));
    is_fence.then_some(Fence { mark: (character, count), rest: rest.trim() })
}

/// What a line says that is a comment as a whole.
fn comment(line: &str) -> Option<&str> {
    Some(line.trim_start().strip_prefix("//")?.trim_start_matches(['/', '!']).trim_start())
}

fn problem(line: &str, words: &str) -> Option<String> {
    if words.starts_with('|') {
        let longest = cells(words).map(|cell| shown(cell).chars().count()).max()?;
        return (longest > CELL).then(|| format!("a cell of {longest} characters: make it a paragraph"));
    }
    let columns = line.chars().count();
    // What has no place to break it, a long link, stands alone.
    let can_break = words.trim_start().trim_start_matches(['-', '*', '#', '>', ' ']).contains(' ');
    (columns > PROSE && can_break).then(|| format!("{columns} columns are more than {PROSE}"))
}

/// The cells of a row: a bar in code is `\|`.
fn cells(row: &str) -> impl Iterator<Item = &str> {
    let mut escaped = false;
    row.split(move |c| {
        let is_bar = c == '|' && !escaped;
        escaped = c == '\\';
        is_bar
    })
    .map(str::trim)
}

/// A text without the targets of its links.
fn shown(text: &str) -> String {
    let mut parts = text.split("](");
    let mut shown = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        shown.push_str(part.split_once(')').map_or(part, |(_, rest)| rest));
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_file_is_found() {
        let (short, long) = ("x\n".repeat(FILE), "x\n".repeat(FILE + 1));
        let tree = Tree::of(&[("a.rs", &short), ("b.rs", &long), ("c.md", &long)]);
        let findings = check_files(&tree);
        assert_eq!(findings.iter().map(|finding| finding.path.as_str()).collect::<Vec<_>>(), ["b.rs"]);
    }

    #[test]
    fn long_comments_are_found_outside_of_code() {
        let long = "word ".repeat(20);
        let text =
            format!("    /// {long}\n/// ```\n/// {long}\n/// ```\nlet a = \"{long}\"; // {long}\n//! a\n");
        let findings = check_prose(&Tree::of(&[("a.rs", &text)]));
        let whats: Vec<_> = findings.iter().map(ToString::to_string).collect();
        assert_eq!(whats, ["a.rs:1: 108 columns are more than 100"]);
    }

    #[test]
    fn code_blocks_end_with_the_fence_that_began_them() {
        let long = "word ".repeat(21);
        let lines_of = |page: String| -> Vec<usize> {
            check_prose(&Tree::of(&[("a.md", &page)])).iter().map(|finding| finding.line).collect()
        };
        assert_eq!(lines_of(format!("~~~\n{long}\n~~~\n{long}\n")), [4]);
        // Other or shorter fences, and fences with a language, are part of the code.
        assert_eq!(lines_of(format!("~~~\n```\n{long}\n~~~\n{long}\n")), [5]);
        assert_eq!(lines_of(format!("````\n```\n{long}\n````\n{long}\n")), [5]);
        assert_eq!(lines_of(format!("```\n```sh\n{long}\n```\n{long}\n")), [5]);
        assert_eq!(lines_of(format!("```a``` b\n{long}\n")), [2]);
    }

    #[test]
    fn long_lines_and_cells_are_found_outside_of_code() {
        let long = "word ".repeat(21);
        let cell = format!("| a | {} |\n", "word ".repeat(25));
        let link = format!("| [a]({}) |\n", "x".repeat(200));
        let page = format!("{long}\n```\n{long}\n```\n{cell}{link}- {}\nshort\n", "x".repeat(120));
        let findings = check_prose(&Tree::of(&[("docs/a.md", &page)]));
        let whats: Vec<_> = findings.iter().map(ToString::to_string).collect();
        assert_eq!(
            whats,
            [
                "docs/a.md:1: 105 columns are more than 100",
                "docs/a.md:5: a cell of 124 characters: make it a paragraph"
            ]
        );
    }
}
