//! From the text of a query to its meaning.

use serde_json::{Value, json};

use super::{Comparison, Condition, Expression, Query, Stage};

/// A piece of the text.
#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    Text(String),
    Number(i64),
    Sign(&'static str),
}

const SIGNS: [&str; 17] =
    ["=~", "!~", "==", "!=", "<=", ">=", "=", "<", ">", "(", ")", "[", "]", ",", "|", ".", "~"];

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut found = vec![];
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        if rest.starts_with("//") {
            rest = rest.split_once('\n').map_or("", |(_, after)| after).trim_start();
            continue;
        }
        let taken = if first == '\'' || first == '"' {
            let (text, length) = quoted(rest, first)?;
            found.push(Token::Text(text));
            length
        } else if first.is_ascii_digit() {
            let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            found.push(Token::Number(
                rest[..end].parse().map_err(|_| format!("{} is too large", &rest[..end]))?,
            ));
            end
        } else if first.is_alphabetic() || first == '_' || first == '$' {
            let word = |c: char| c.is_alphanumeric() || c == '_' || c == '$' || c == '-';
            let end = rest.find(|c: char| !word(c)).unwrap_or(rest.len());
            found.push(Token::Word(rest[..end].to_owned()));
            end
        } else if let Some(sign) = SIGNS.iter().find(|s| rest.starts_with(**s)) {
            found.push(Token::Sign(sign));
            sign.len()
        } else {
            return Err(format!("unexpected character '{first}'"));
        };
        rest = rest[taken..].trim_start();
    }
    Ok(found)
}

/// The inside of a quoted text, and how much of the source it takes.
fn quoted(rest: &str, quote: char) -> Result<(String, usize), String> {
    let mut text = String::new();
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match (escaped, c) {
            (true, c) => {
                text.push(c);
                escaped = false;
            }
            (false, '\\') => escaped = true,
            (false, c) if c == quote => return Ok((text, at + 1)),
            (false, c) => text.push(c),
        }
    }
    Err("a text does not end".into())
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn next(&mut self) -> Option<Token> {
        self.at += 1;
        self.tokens.get(self.at - 1).cloned()
    }

    fn sign(&mut self, sign: &str) -> bool {
        let hit = matches!(self.peek(), Some(Token::Sign(s)) if *s == sign);
        self.at += usize::from(hit);
        hit
    }

    fn expect(&mut self, sign: &str) -> Result<(), String> {
        if self.sign(sign) { Ok(()) } else { Err(format!("'{sign}' expected, found {}", self.here())) }
    }

    fn here(&self) -> String {
        match self.peek() {
            Some(Token::Word(w)) => format!("'{w}'"),
            Some(Token::Text(t)) => format!("'{t}'"),
            Some(Token::Number(n)) => n.to_string(),
            Some(Token::Sign(s)) => format!("'{s}'"),
            None => "the end".into(),
        }
    }

    /// The next word in lower case, if it is a word.
    fn peek_word(&self) -> Option<String> {
        if let Some(Token::Word(word)) = self.peek() { Some(word.to_lowercase()) } else { None }
    }

    fn word(&mut self) -> Result<String, String> {
        let here = self.here();
        if let Some(Token::Word(word)) = self.next() {
            Ok(word)
        } else {
            Err(format!("a name expected, found {here}"))
        }
    }

    fn keyword(&mut self, word: &str) -> bool {
        let hit = self.peek_word().as_deref() == Some(word);
        self.at += usize::from(hit);
        hit
    }

    fn query(&mut self) -> Result<Query, String> {
        let table = self.word()?;
        let mut stages = vec![];
        while self.sign("|") {
            let stage = self.word()?.to_lowercase();
            stages.push(match stage.as_str() {
                "where" => Stage::Where(self.any()?),
                "project" => Stage::Project(self.columns()?),
                "extend" => Stage::Extend(self.columns()?),
                "order" | "sort" => {
                    if !self.keyword("by") {
                        return Err(format!("'by' expected, found {}", self.here()));
                    }
                    Stage::Order(self.order()?)
                }
                "limit" | "take" => Stage::Limit(self.count()?),
                "count" => Stage::Count,
                other => return Err(format!("the operator '{other}' is not known here")),
            });
        }
        if self.peek().is_some() {
            return Err(format!("'|' or the end expected, found {}", self.here()));
        }
        Ok(Query { table, stages })
    }

    fn count(&mut self) -> Result<usize, String> {
        let here = self.here();
        match self.next() {
            Some(Token::Number(n)) => usize::try_from(n).map_err(|e| e.to_string()),
            Some(Token::Word(_) | Token::Text(_) | Token::Sign(_)) | None => {
                Err(format!("a number expected, found {here}"))
            }
        }
    }

    fn columns(&mut self) -> Result<Vec<(String, Expression)>, String> {
        let mut columns = vec![];
        loop {
            let start = self.at;
            let named = self.word().is_ok() && self.sign("=");
            if !named {
                self.at = start;
            }
            let name = if let (true, Some(Token::Word(word))) = (named, self.tokens.get(start)) {
                Some(word.clone())
            } else {
                None
            };
            let expression = self.expression()?;
            let name = match (name, &expression) {
                (Some(name), _) => name,
                (None, Expression::Path(path)) => path.join("_"),
                (None, Expression::Literal(_) | Expression::ToText(_) | Expression::Lower(_)) => {
                    format!("Column{}", columns.len() + 1)
                }
            };
            columns.push((name, expression));
            if !self.sign(",") {
                return Ok(columns);
            }
        }
    }

    fn order(&mut self) -> Result<Vec<(Expression, bool)>, String> {
        let mut keys = vec![];
        loop {
            let expression = self.expression()?;
            // Kusto sorts downwards unless told otherwise.
            let ascending = self.keyword("asc");
            if !ascending {
                self.keyword("desc");
            }
            keys.push((expression, ascending));
            if !self.sign(",") {
                return Ok(keys);
            }
        }
    }

    fn any(&mut self) -> Result<Condition, String> {
        let mut parts = vec![self.all()?];
        while self.keyword("or") {
            parts.push(self.all()?);
        }
        Ok(if parts.len() == 1 { parts.swap_remove(0) } else { Condition::Or(parts) })
    }

    fn all(&mut self) -> Result<Condition, String> {
        let mut parts = vec![self.single()?];
        while self.keyword("and") {
            parts.push(self.single()?);
        }
        Ok(if parts.len() == 1 { parts.swap_remove(0) } else { Condition::And(parts) })
    }

    fn single(&mut self) -> Result<Condition, String> {
        if self.sign("(") {
            let inner = self.any()?;
            self.expect(")")?;
            return Ok(inner);
        }
        match self.peek_word().as_deref() {
            Some("not") => {
                self.at += 1;
                self.expect("(")?;
                let inner = self.any()?;
                self.expect(")")?;
                return Ok(Condition::Not(Box::new(inner)));
            }
            Some(function @ ("isempty" | "isnotempty" | "isnull" | "isnotnull")) => {
                let negated = function.starts_with("isnot");
                self.at += 1;
                self.expect("(")?;
                let inner = Condition::Empty(self.expression()?);
                self.expect(")")?;
                return Ok(if negated { Condition::Not(Box::new(inner)) } else { inner });
            }
            Some(_) | None => {}
        }
        let left = self.expression()?;
        if let Some(condition) = self.membership(&left)? {
            return Ok(condition);
        }
        let comparison = self.comparison()?;
        Ok(Condition::Compare(left, comparison, self.expression()?))
    }

    /// `in (…)`, `in~ (…)`, `!in` is written `not(… in …)` here.
    fn membership(&mut self, left: &Expression) -> Result<Option<Condition>, String> {
        if !self.keyword("in") {
            return Ok(None);
        }
        let any_case = self.sign("~");
        self.expect("(")?;
        let mut list = vec![self.expression()?];
        while self.sign(",") {
            list.push(self.expression()?);
        }
        self.expect(")")?;
        Ok(Some(Condition::In { left: left.clone(), any_case, negated: false, list }))
    }

    fn comparison(&mut self) -> Result<Comparison, String> {
        let here = self.here();
        let found = match self.next() {
            Some(Token::Sign(sign)) => match sign {
                "==" => Some(Comparison::Equal),
                "=~" => Some(Comparison::EqualAnyCase),
                "!=" => Some(Comparison::NotEqual),
                "!~" => Some(Comparison::NotEqualAnyCase),
                "<" => Some(Comparison::Less),
                "<=" => Some(Comparison::LessOrEqual),
                ">" => Some(Comparison::Greater),
                ">=" => Some(Comparison::GreaterOrEqual),
                _ => None,
            },
            Some(Token::Word(word)) => match word.to_lowercase().as_str() {
                "contains" => Some(Comparison::Contains),
                "startswith" => Some(Comparison::StartsWith),
                "endswith" => Some(Comparison::EndsWith),
                "has" => Some(Comparison::Has),
                _ => None,
            },
            Some(Token::Text(_) | Token::Number(_)) | None => None,
        };
        found.ok_or_else(|| format!("a comparison expected, found {here}"))
    }

    fn expression(&mut self) -> Result<Expression, String> {
        let here = self.here();
        match self.next() {
            Some(Token::Text(text)) => Ok(Expression::Literal(Value::from(text))),
            Some(Token::Number(number)) => Ok(Expression::Literal(Value::from(number))),
            Some(Token::Word(word)) => self.named(word),
            Some(Token::Sign(_)) | None => Err(format!("a value expected, found {here}")),
        }
    }

    fn named(&mut self, word: String) -> Result<Expression, String> {
        if self.sign("(") {
            let inner = Box::new(self.expression()?);
            self.expect(")")?;
            return match word.to_lowercase().as_str() {
                "tostring" => Ok(Expression::ToText(inner)),
                "tolower" => Ok(Expression::Lower(inner)),
                other => Err(format!("the function '{other}' is not known here")),
            };
        }
        match word.to_lowercase().as_str() {
            "true" => return Ok(Expression::Literal(json!(true))),
            "false" => return Ok(Expression::Literal(json!(false))),
            _ => {}
        }
        let mut path = vec![word];
        loop {
            if self.sign(".") {
                path.push(self.word()?);
            } else if self.sign("[") {
                let here = self.here();
                path.push(match self.next() {
                    Some(Token::Text(text)) => text,
                    Some(Token::Number(number)) => number.to_string(),
                    Some(Token::Word(_) | Token::Sign(_)) | None => {
                        return Err(format!("a name in quotes or an index expected, found {here}"));
                    }
                });
                self.expect("]")?;
            } else {
                return Ok(Expression::Path(path));
            }
        }
    }
}

/// Reads a query.
///
/// # Errors
/// What is not known here, and where.
pub(super) fn parse(text: &str) -> Result<Query, String> {
    Parser { tokens: tokens(text)?, at: 0 }.query()
}
