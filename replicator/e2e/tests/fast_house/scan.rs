//! Reads source text just well enough for the house rules: what is code, and where a function ends.
//! It must never take a comment or a string for code, and needs no compiler.

/// A function as it stands in a file.
pub struct Function {
    /// Its name.
    pub name: String,
    /// The line of its `fn`, counted from one.
    pub first_line: usize,
    /// From the `fn` to the closing brace, both included.
    pub line_count: usize,
}

/// The text with comments, strings and character literals blanked; lines stay where they are.
pub fn code_only(text: &str) -> String {
    let source: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < source.len() {
        let end = literal_end(&source, at).unwrap_or(at);
        if end == at {
            code.push(source[at]);
            at += 1;
        } else {
            code.extend(source[at..end].iter().map(|&c| if c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    code
}

/// Where the comment or literal that begins at `at` ends; none where code goes on.
fn literal_end(source: &[char], at: usize) -> Option<usize> {
    let rest = &source[at..];
    let word_before = at > 0 && is_word(source[at - 1]);
    match rest {
        ['/', '/', ..] => Some(at + rest.iter().position(|&c| c == '\n').unwrap_or(rest.len())),
        ['/', '*', ..] => Some(at + block_comment_length(rest)),
        ['"', ..] => Some(at + quoted_length(rest)),
        ['r', '"' | '#', ..] | ['b', 'r', '"' | '#', ..] if !word_before => {
            raw_string_length(rest).map(|length| at + length)
        }
        ['\'', '\\', _, tail @ ..] => {
            tail.iter().position(|&c| c == '\'').map(|more| at + 3 + more + 1)
        }
        ['\'', _, '\'', ..] => Some(at + 3),
        _ => None,
    }
}

fn block_comment_length(rest: &[char]) -> usize {
    let mut depth = 0usize;
    let mut at = 0;
    while at < rest.len() {
        match &rest[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn quoted_length(rest: &[char]) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != '"' {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

fn raw_string_length(rest: &[char]) -> Option<usize> {
    let start = rest.iter().position(|&c| c == 'r')? + 1;
    let hashes = rest[start..].iter().take_while(|&&c| c == '#').count();
    // `r#name` is an identifier, not a string.
    if rest.get(start + hashes) != Some(&'"') {
        return None;
    }
    let mut at = start + hashes + 1;
    while at < rest.len() {
        let closes = rest[at] == '"'
            && rest[at + 1..].iter().take(hashes).filter(|&&c| c == '#').count() == hashes;
        at += 1;
        if closes {
            return Some(at + hashes);
        }
    }
    Some(rest.len())
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether `word` stands in the code as a word of its own.
pub fn has_word(code: &str, word: &str) -> bool {
    code.split(|c| !is_word(c)).any(|found| found == word)
}

/// Every function with a body in code that `code_only` has cleaned.
pub fn functions(code: &str) -> Vec<Function> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        if code[..at].chars().next_back().is_some_and(is_word) {
            continue;
        }
        let name: String = code[at + 3..].chars().take_while(|&c| is_word(c)).collect();
        // Without a name it is the type of a function pointer.
        let Some(length) = body_length(&code[at..]).filter(|_| !name.is_empty()) else { continue };
        let first_line = code[..at].matches('\n').count() + 1;
        let line_count = code[at..at + length].matches('\n').count() + 1;
        found.push(Function { name, first_line, line_count });
    }
    found
}

/// Bytes up to the closing brace of a function's body; none where only the signature is declared.
fn body_length(code: &str) -> Option<usize> {
    let mut depth = 0usize;
    let mut brackets = 0usize;
    for (at, c) in code.char_indices() {
        match c {
            '(' | '[' => brackets += 1,
            ')' | ']' => brackets = brackets.saturating_sub(1),
            ';' if depth == 0 && brackets == 0 => return None,
            '{' => depth += 1,
            '}' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
    }
    None
}

#[test]
fn comments_and_literals_are_no_code() {
    let text =
        "let a = \"unsafe \\\" {\"; // unsafe\nlet b = r#\"todo!(\"x\")\"#; /* fn x() { */ c('{')";
    let code = code_only(text);
    assert_eq!(code.matches('\n').count(), 1);
    assert!(!has_word(&code, "unsafe") && !code.contains("todo!") && !code.contains('{'));
    assert!(has_word(&code, "c"), "{code}");
    assert!(has_word(&code_only("fn f<'a>(x: &'a u8) { unsafe {} }"), "unsafe"));
    assert!(has_word(&code_only("let r#type = 1; unsafe {}"), "unsafe"));
    assert!(!has_word("#![forbid(unsafe_code)]", "unsafe"));
}

#[test]
fn functions_are_measured() {
    let code = "fn one() {\n  let f: fn (u8) = g;\n}\n\
                trait T {\n fn two(&self, x: [u8; 2]);\n}\nfn three() {}";
    let found = functions(code);
    let measured: Vec<_> =
        found.iter().map(|f| (f.name.as_str(), f.first_line, f.line_count)).collect();
    assert_eq!(measured, [("one", 1, 3), ("three", 7, 1)]);
}
