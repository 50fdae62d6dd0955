//! One file, line by line: its text, and its code without comments and literals.

/// One file: its name in the workspace, its text, and its code without comments and literals, line by line.
pub(crate) struct Source {
    pub(crate) name: String,
    pub(crate) text: String,
    pub(crate) code: Vec<String>,
}

impl Source {
    pub(crate) fn new(name: &str, text: &str) -> Self {
        let code = strip(text).lines().map(str::to_owned).collect();
        Self { name: name.to_owned(), text: text.to_owned(), code }
    }

    /// Returns the code before the file's tests, with line numbers from 1.
    pub(crate) fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code.iter().take(self.nr_before_tests()).enumerate().map(|(i, l)| (i + 1, l.as_str()))
    }

    pub(crate) fn nr_before_tests(&self) -> usize {
        let is_test = |l: &String| {
            let l = l.trim_start();
            l.starts_with("#[cfg(test)]") || l.starts_with("#[cfg(all(test")
        };
        let is_module = |i: usize| self.code.iter().skip(i + 1).take(2).any(|l| l.trim_start().starts_with("mod "));
        (0..self.code.len()).find(|i| is_test(&self.code[*i]) && is_module(*i)).unwrap_or(self.code.len())
    }

    /// Returns what the comments of lines `from..=to` say, as one text.
    pub(crate) fn comments(&self, from: usize, to: usize) -> String {
        let lines = self.text.lines().skip(from - 1).take((to + 1).saturating_sub(from));
        let said = lines.filter_map(|l| l.find("//").map(|i| l[i..].trim_start_matches(['/', '!']).trim()));
        said.collect::<Vec<_>>().join(" ")
    }

    pub(crate) fn complain(&self, line: usize, what: &str) -> String {
        format!("{}:{line}: {what}", self.name)
    }
}

/// Returns `text` with comments, strings and character literals blanked; lines stay lines.
pub(crate) fn strip(text: &str) -> String {
    let s: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut i = 0;
    let at = |i: usize| s.get(i).copied().unwrap_or('\0');
    // Copies nothing but line ends of `s[from..to]`.
    let blank = |out: &mut String, from: usize, to: usize| {
        out.extend(s[from..to.min(s.len())].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
    };
    while i < s.len() {
        let end = match (at(i), at(i + 1)) {
            ('/', '/') => (i..s.len()).find(|j| s[*j] == '\n').unwrap_or(s.len()),
            ('/', '*') => block_comment_end(&s, i),
            ('r', '"' | '#') if !is_word(at(i.wrapping_sub(1))) => raw_string_end(&s, i).unwrap_or(i),
            ('"', _) => string_end(&s, i, '"'),
            ('\'', '\\') => string_end(&s, i, '\''),
            ('\'', _) if at(i + 2) == '\'' => i + 3,
            _ => i,
        };
        if end == i {
            out.push(s[i]);
            i += 1;
        } else {
            blank(&mut out, i, end);
            i = end;
        }
    }
    out
}

fn block_comment_end(s: &[char], start: usize) -> usize {
    let (mut depth, mut i) = (0, start);
    while i + 1 < s.len() {
        match (s[i], s[i + 1]) {
            ('/', '*') => depth += 1,
            ('*', '/') => depth -= 1,
            _ => {
                i += 1;
                continue;
            }
        }
        i += 2;
        if depth == 0 {
            return i;
        }
    }
    s.len()
}

fn string_end(s: &[char], start: usize, quote: char) -> usize {
    let mut i = start + 1;
    while i < s.len() && s[i] != quote {
        i += if s[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

fn raw_string_end(s: &[char], start: usize) -> Option<usize> {
    let hashes = s[start + 1..].iter().take_while(|c| **c == '#').count();
    let open = start + 1 + hashes;
    if s.get(open) != Some(&'"') {
        return None;
    }
    let closes = |i: &usize| s[*i] == '"' && (1..=hashes).all(|h| s.get(i + h) == Some(&'#'));
    Some((open + 1..s.len()).find(closes).map_or(s.len(), |i| i + 1 + hashes))
}

pub(crate) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Returns what follows each occurrence of `word` as a whole word in `line`.
pub(crate) fn after_word<'a>(line: &'a str, word: &'a str) -> impl Iterator<Item = &'a str> {
    line.match_indices(word).filter_map(move |(i, _)| {
        let before = line[..i].chars().next_back().unwrap_or(' ');
        let rest = &line[i + word.len()..];
        (!is_word(before) && !rest.starts_with(is_word)).then_some(rest)
    })
}

pub(crate) fn has_word(line: &str, word: &str) -> bool {
    after_word(line, word).next().is_some()
}

mod can_fail {
    use super::*;

    #[test]
    fn comments_and_literals_are_no_code() {
        let code =
            strip("a // unsafe\n/* unsafe /* */ unsafe */ b \"unsafe \\\" unsafe\" c r#\"unsafe\"# '\\'' '\"' 'x d");
        assert!(!code.contains("unsafe"), "{code}");
        assert_eq!(code.split_whitespace().collect::<Vec<_>>(), ["a", "b", "c", "'x", "d"]);
        assert_eq!(code.lines().count(), 2);
    }
}
