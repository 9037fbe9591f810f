//! A small, honest part of the Kusto query language: what inventory queries use. Anything else is refused, rather
//! than answered wrongly.
//!
//! `Resources | where <condition> | project a, b = expression | extend … | order by x [asc|desc] | limit n | count`,
//! with conditions of `and`, `or`, `not(…)`, the comparison operators of [`Comparison`], `in`, `in~`, `isempty`,
//! `isnotempty`, and expressions of paths (`properties.osProfile`, `tags['role']`), literals, `tostring`, `tolower`.

mod parse;

use std::cmp::Ordering;

use serde_json::{Map, Value, json};

#[derive(Debug, Clone)]
enum Expression {
    Path(Vec<String>),
    Literal(Value),
    ToText(Box<Expression>),
    Lower(Box<Expression>),
}

#[derive(Debug, Clone, Copy)]
enum Comparison {
    Equal,
    EqualAnyCase,
    NotEqual,
    NotEqualAnyCase,
    Contains,
    StartsWith,
    EndsWith,
    Has,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Debug, Clone)]
enum Condition {
    Compare(Expression, Comparison, Expression),
    In { left: Expression, any_case: bool, negated: bool, list: Vec<Expression> },
    Empty(Expression),
    Not(Box<Condition>),
    And(Vec<Condition>),
    Or(Vec<Condition>),
}

#[derive(Debug, Clone)]
enum Stage {
    Where(Condition),
    Project(Vec<(String, Expression)>),
    Extend(Vec<(String, Expression)>),
    Order(Vec<(Expression, bool)>),
    Limit(usize),
    Count,
}

/// A parsed query.
#[derive(Debug, Clone)]
pub(crate) struct Query {
    pub(crate) table: String,
    stages: Vec<Stage>,
}

/// Reads a query.
///
/// # Errors
/// What is not known here, and where.
pub(crate) fn parse(text: &str) -> Result<Query, String> {
    parse::parse(text)
}

impl Query {
    /// Runs the query over rows.
    pub(crate) fn run(&self, mut rows: Vec<Value>) -> Vec<Value> {
        for stage in &self.stages {
            match stage {
                Stage::Where(condition) => rows.retain(|row| holds(condition, row)),
                Stage::Project(columns) => {
                    for row in &mut rows {
                        let new: Map<String, Value> =
                            columns.iter().map(|(name, e)| (name.clone(), value(e, row))).collect();
                        *row = Value::Object(new);
                    }
                }
                Stage::Extend(columns) => {
                    for row in &mut rows {
                        for (name, expression) in columns {
                            row[name.as_str()] = value(expression, row);
                        }
                    }
                }
                Stage::Order(keys) => rows.sort_by(|a, b| {
                    keys.iter().fold(Ordering::Equal, |order, (key, ascending)| {
                        let this = compare(&value(key, a), &value(key, b));
                        order.then(if *ascending { this } else { this.reverse() })
                    })
                }),
                Stage::Limit(count) => rows.truncate(*count),
                Stage::Count => rows = vec![json!({"Count": rows.len()})],
            }
        }
        rows
    }
}

fn value(expression: &Expression, row: &Value) -> Value {
    match expression {
        Expression::Literal(literal) => literal.clone(),
        Expression::Path(path) => walk(row, path),
        Expression::ToText(inner) => Value::from(text(&value(inner, row))),
        Expression::Lower(inner) => Value::from(text(&value(inner, row)).to_lowercase()),
    }
}

fn walk(row: &Value, path: &[String]) -> Value {
    let mut at = row;
    for (depth, part) in path.iter().enumerate() {
        let found = match (at.as_object(), at.as_array()) {
            // Columns go by any case, what is inside them does not.
            (Some(map), _) if depth == 0 => {
                map.iter().find(|(name, _)| name.eq_ignore_ascii_case(part)).map(|(_, v)| v)
            }
            (Some(map), _) => map.get(part),
            (None, Some(list)) => part.parse::<usize>().ok().and_then(|index| list.get(index)),
            (None, None) => None,
        };
        match found {
            Some(inner) => at = inner,
            None => return Value::Null,
        }
    }
    at.clone()
}

fn text(value: &Value) -> String {
    if value.is_null() {
        return String::new();
    }
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn compare(a: &Value, b: &Value) -> Ordering {
    match (a.as_i64(), b.as_i64()) {
        (Some(a), Some(b)) => a.cmp(&b),
        (Some(_) | None, _) => text(a).cmp(&text(b)),
    }
}

fn holds(condition: &Condition, row: &Value) -> bool {
    match condition {
        Condition::And(parts) => parts.iter().all(|c| holds(c, row)),
        Condition::Or(parts) => parts.iter().any(|c| holds(c, row)),
        Condition::Not(inner) => !holds(inner, row),
        Condition::Empty(expression) => text(&value(expression, row)).is_empty(),
        Condition::In { left, any_case, negated, list } => {
            let left = text(&value(left, row));
            let hit = list.iter().any(|item| {
                let item = text(&value(item, row));
                if *any_case { item.to_lowercase() == left.to_lowercase() } else { item == left }
            });
            hit != *negated
        }
        Condition::Compare(left, comparison, right) => {
            let (left, right) = (value(left, row), value(right, row));
            let (a, b) = (text(&left), text(&right));
            let (la, lb) = (a.to_lowercase(), b.to_lowercase());
            match comparison {
                Comparison::Equal => a == b,
                Comparison::NotEqual => a != b,
                Comparison::EqualAnyCase => la == lb,
                Comparison::NotEqualAnyCase => la != lb,
                Comparison::Contains => la.contains(&lb),
                Comparison::StartsWith => la.starts_with(&lb),
                Comparison::EndsWith => la.ends_with(&lb),
                Comparison::Has => la.split(|c: char| !c.is_alphanumeric()).any(|term| term == lb),
                Comparison::Less => compare(&left, &right) == Ordering::Less,
                Comparison::LessOrEqual => compare(&left, &right) != Ordering::Greater,
                Comparison::Greater => compare(&left, &right) == Ordering::Greater,
                Comparison::GreaterOrEqual => compare(&left, &right) != Ordering::Less,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(query: &str) -> Result<Vec<Value>, String> {
        let rows = vec![
            json!({"name": "a", "type": "microsoft.compute/virtualmachines", "tags": {"role": "web"}, "properties": {"n": 1}}),
            json!({"name": "b", "type": "microsoft.compute/virtualmachines", "tags": null, "properties": {"n": 2}}),
            json!({"name": "c", "type": "microsoft.network/networkinterfaces", "tags": {"role": "Web"}}),
        ];
        Ok(parse(query)?.run(rows))
    }

    fn names(query: &str) -> Vec<String> {
        run(query).unwrap().iter().map(|r| r["name"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn conditions_select_rows() {
        assert_eq!(names("Resources | where type =~ 'Microsoft.Compute/virtualMachines'"), ["a", "b"]);
        assert_eq!(
            names("Resources | where type == 'Microsoft.Compute/virtualMachines'"),
            Vec::<String>::new()
        );
        assert_eq!(names("resources | where tags['role'] =~ 'web' and name != 'a'"), ["c"]);
        assert_eq!(names("resources | where tags.role == 'web' or name in~ ('B', 'x')"), ["a", "b"]);
        assert_eq!(names("resources | where isnotempty(tags) | order by name desc"), ["c", "a"]);
        assert_eq!(names("resources | where not(name == \"a\") | order by name asc | limit 1"), ["b"]);
        assert_eq!(names("resources | where properties.n >= 2"), ["b"]);
    }

    #[test]
    fn columns_are_projected_and_counted() {
        let rows = run("resources | where name == 'a' | project id=tolower(type), role=tostring(tags.role), n = properties.n").unwrap();
        assert_eq!(rows, [json!({"id": "microsoft.compute/virtualmachines", "role": "web", "n": 1})]);
        assert_eq!(run("resources | count").unwrap(), [json!({"Count": 3})]);
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for bad in [
            "resources | summarize count() by type",
            "resources | where name matches regex 'x'",
            "resources | where",
            "resources where name == 'a'",
            "resources | project strcat(name, 'x')",
            "resources | where name == 'a",
            "resources | mv-expand x",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
