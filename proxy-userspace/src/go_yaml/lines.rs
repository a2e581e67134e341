//! On which lines of a text its fields are.

use std::collections::HashMap;

/// The lines of fields and items, from 1, by their paths.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lines(HashMap<String, usize>);

impl Lines {
    /// The line of a path, or of what is around it: a field that is not written stands for its
    /// section.
    pub fn of(&self, path: &str) -> Option<usize> {
        let mut path = path;
        loop {
            if let Some(line) = self.0.get(path) {
                return Some(*line);
            }
            path = &path[..path.rfind(['.', '['])?];
        }
    }

    /// Notes where something is. Of what is given twice, the last one counts.
    pub(super) fn note(&mut self, path: &[String], line: usize) {
        self.0.insert(joined(path), line);
    }
}

/// A path as one text.
pub(super) fn joined(path: &[String]) -> String {
    path.join(".").replace(".[", "[")
}

#[cfg(test)]
mod tests {
    use super::super::first_document;

    #[test]
    fn every_field_and_item_has_its_line() {
        let text = "# head\na: 1\nb:\n  c: {d: 2}\n  e:\n  - 3\n  - f: 4\na: 5\n";
        let lines = first_document(text).unwrap().lines;
        for (path, line) in
            [("a", 8), ("b", 3), ("b.c.d", 4), ("b.e[0]", 6), ("b.e[1].f", 7), ("b.c.x", 4), ("b.e[7]", 5)]
        {
            assert_eq!(lines.of(path), Some(line), "{path}");
        }
        assert_eq!((lines.of("x"), lines.of("x.y")), (None, None));
        let json = "{\n \"a\":\n  [1,\n   2]}";
        assert_eq!(first_document(json).unwrap().lines.of("a[1]"), Some(4));
    }
}
