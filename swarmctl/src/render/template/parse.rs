//! Text to parts.

use serde_json::Value;

use super::{Part, Pipeline, Word};

/// Blocks and parentheses inside each other; more is a mistake, and would only eat stack.
const DEPTH_MAX: usize = 32;

pub(super) fn template(text: &str) -> Result<Vec<Part>, String> {
    let pieces = pieces(text)?;
    let mut pieces = pieces.into_iter();
    let (parts, end) = block(&mut pieces, DEPTH_MAX)?;
    match end {
        Close::Text => Ok(parts),
        Close::End => Err("{{end}} without a beginning".to_owned()),
        Close::Else(_) => Err("{{else}} without {{if}}".to_owned()),
    }
}

enum Piece {
    Text(String),
    Action(String),
}

/// What closed a block.
enum Close {
    Text,
    End,
    /// `{{else}}`, or `{{else if …}}` with its condition.
    Else(Option<String>),
}

/// Splits at the braces; `{{-` and `-}}` eat the space beside them.
fn pieces(text: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut rest = text;
    let mut eat = false;
    while let Some((before, after)) = rest.split_once("{{") {
        let (content, following) = close(after)?;
        let (content, eat_before) = match content.strip_prefix("- ") {
            Some(content) => (content, true),
            None => (content, false),
        };
        let (content, eat_after) = match content.strip_suffix(" -") {
            Some(content) => (content, true),
            None => (content, false),
        };
        let before = if eat { before.trim_start() } else { before };
        let before = if eat_before {
            before.trim_end()
        } else {
            before
        };
        pieces.push(Piece::Text(unescape(before)));
        pieces.push(Piece::Action(content.trim().to_owned()));
        rest = following;
        eat = eat_after;
    }
    pieces.push(Piece::Text(unescape(if eat {
        rest.trim_start()
    } else {
        rest
    })));
    Ok(pieces)
}

/// The content of an action and what follows; braces inside quotes don't count.
fn close(text: &str) -> Result<(&str, &str), String> {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match quote {
            Some('"') if escaped => escaped = false,
            Some('"') if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '"' || c == '`' => quote = Some(c),
            None => {
                let (content, after) = text.split_at(at);
                if let Some(following) = after.strip_prefix("}}") {
                    return Ok((content, following));
                }
            }
        }
    }
    Err("an action is not closed by }}".to_owned())
}

fn unescape(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

fn block(
    pieces: &mut impl Iterator<Item = Piece>,
    depth: usize,
) -> Result<(Vec<Part>, Close), String> {
    let depth = depth.checked_sub(1).ok_or("blocks are nested too deep")?;
    let mut parts = Vec::new();
    while let Some(piece) = pieces.next() {
        let action = match piece {
            Piece::Text(text) => {
                if !text.is_empty() {
                    parts.push(Part::Text(text));
                }
                continue;
            }
            Piece::Action(action) => action,
        };
        if action.starts_with("/*") && action.ends_with("*/") {
            continue;
        }
        let (word, rest) = action
            .split_once(char::is_whitespace)
            .unwrap_or((&action, ""));
        match word {
            "end" => return Ok((parts, Close::End)),
            "else" => {
                let condition = rest
                    .trim()
                    .strip_prefix("if")
                    .map(|rest| rest.trim().to_owned());
                return Ok((parts, Close::Else(condition)));
            }
            "if" | "range" | "with" => parts.push(compound(word, rest, pieces, depth)?),
            _ => parts.push(Part::Print(pipeline(&action)?)),
        }
    }
    Ok((parts, Close::Text))
}

fn compound(
    word: &str,
    head: &str,
    pieces: &mut impl Iterator<Item = Piece>,
    depth: usize,
) -> Result<Part, String> {
    let depth = depth.checked_sub(1).ok_or("blocks are nested too deep")?;
    let head = pipeline(head)?;
    let (body, end) = block(pieces, depth)?;
    let otherwise = match end {
        Close::Text => return Err(format!("{{{{{word}}}}} without {{{{end}}}}")),
        Close::End => Vec::new(),
        Close::Else(Some(condition)) => vec![compound("if", &condition, pieces, depth)?],
        Close::Else(None) => match block(pieces, depth)? {
            (parts, Close::End) => parts,
            (_, Close::Text) => return Err(format!("{{{{{word}}}}} without {{{{end}}}}")),
            (_, Close::Else(_)) => return Err("{{else}} after {{else}}".to_owned()),
        },
    };
    Ok(match word {
        "range" => Part::Range {
            over: head,
            each: body,
            otherwise,
        },
        "with" => Part::With {
            value: head,
            then: body,
            otherwise,
        },
        _ => Part::If {
            condition: head,
            then: body,
            otherwise,
        },
    })
}

#[derive(Debug, PartialEq)]
enum Token {
    Path(Vec<String>),
    Root(Vec<String>),
    Name(String),
    Literal(Value),
    Open,
    Shut,
    Pipe,
}

fn pipeline(text: &str) -> Result<Pipeline, String> {
    let tokens = tokens(text)?;
    let mut tokens = tokens.into_iter();
    let (pipeline, closed) = calls(&mut tokens, DEPTH_MAX)?;
    if closed {
        return Err(format!("in {text:?}: a ) without ("));
    }
    Ok(pipeline)
}

/// Calls up to a closing parenthesis or the end, and which of them it was.
fn calls(
    tokens: &mut impl Iterator<Item = Token>,
    depth: usize,
) -> Result<(Pipeline, bool), String> {
    let depth = depth
        .checked_sub(1)
        .ok_or("parentheses are nested too deep")?;
    let mut pipeline = Vec::new();
    let mut call = Vec::new();
    let mut closed = false;
    while let Some(token) = tokens.next() {
        match token {
            Token::Path(path) => call.push(Word::Path(path)),
            Token::Root(path) => call.push(Word::Root(path)),
            Token::Name(name) => call.push(Word::Function(name)),
            Token::Literal(value) => call.push(Word::Literal(value)),
            Token::Open => match calls(tokens, depth)? {
                (inner, true) => call.push(Word::Group(inner)),
                (_, false) => return Err("a ( is not closed".to_owned()),
            },
            Token::Pipe if call.is_empty() => return Err("nothing stands before |".to_owned()),
            Token::Pipe => pipeline.push(std::mem::take(&mut call)),
            Token::Shut => {
                closed = true;
                break;
            }
        }
    }
    if call.is_empty() {
        return Err("an action is empty".to_owned());
    }
    pipeline.push(call);
    Ok((pipeline, closed))
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, after) = match first {
            '(' => (Token::Open, rest.strip_prefix('(').unwrap_or_default()),
            ')' => (Token::Shut, rest.strip_prefix(')').unwrap_or_default()),
            '|' => (Token::Pipe, rest.strip_prefix('|').unwrap_or_default()),
            '"' => quoted(rest)?,
            '`' => raw(rest)?,
            _ => word(rest)?,
        };
        tokens.push(token);
        rest = after.trim_start();
    }
    Ok(tokens)
}

fn quoted(text: &str) -> Result<(Token, &str), String> {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => {
                let (literal, after) = text.split_at(at + 1);
                let value = serde_json::from_str(literal)
                    .map_err(|_| format!("{literal} is no text in quotes"))?;
                return Ok((Token::Literal(value), after));
            }
            _ => {}
        }
    }
    Err("a quote is not closed".to_owned())
}

fn raw(text: &str) -> Result<(Token, &str), String> {
    let inner = text.strip_prefix('`').unwrap_or_default();
    let (literal, after) = inner.split_once('`').ok_or("a quote is not closed")?;
    Ok((Token::Literal(Value::String(literal.to_owned())), after))
}

fn word(text: &str) -> Result<(Token, &str), String> {
    let end = text
        .find(|c: char| c.is_whitespace() || matches!(c, '(' | ')' | '|' | '"' | '`'))
        .unwrap_or(text.len());
    let (word, after) = text.split_at(end);
    let path = |path: &str| {
        path.split('.')
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect()
    };
    let token = if let Some(rest) = word.strip_prefix('.') {
        Token::Path(path(rest))
    } else if let Some(rest) = word.strip_prefix('$') {
        if !rest.is_empty() && !rest.starts_with('.') {
            return Err(format!("variables like {word} are not supported"));
        }
        Token::Root(path(rest))
    } else if let Ok(number) = word.parse::<i64>() {
        Token::Literal(number.into())
    } else {
        match word {
            "true" => Token::Literal(Value::Bool(true)),
            "false" => Token::Literal(Value::Bool(false)),
            "nil" => Token::Literal(Value::Null),
            _ => Token::Name(word.to_owned()),
        }
    };
    Ok((token, after))
}
