//! A reply's grammar, in the Lark dialect of `llguidance`.
//!
//! With `¤` for the marker's token, a block of calls of a tool `NAME` with parameters `a`, `b` is
//!
//! ```text
//! \n\n<¤tool_calls>\n
//! <¤invoke name="NAME">\n
//! <¤parameter name="a" string="true">text</¤parameter>\n
//! <¤parameter name="b" string="false">JSON</¤parameter>\n
//! </¤invoke>\n
//! </¤tool_calls>
//! ```
//!
//! Parameters may come in any order: a parametric rule carries the set of those that were given.

use std::fmt::Write as _;

use serde_json::{json, Value};

use super::schema::{Parameters, Spelling};
use super::{GuideError, Wanted};
use crate::prompt::Tool;

/// Parameters whose order is free; a rule's parameter has so many bits.
const FREE_ORDER: usize = 64;
/// A limit on a text's length that a grammar can hold; longer ones are left to the tool.
const LONGEST_TEXT: u64 = 2048;

/// The block of calls that a reply may or must have.
pub(super) struct Calls {
    rules: String,
    required: bool,
}

/// The grammar that begins with the reply; `None` if it begins with free text.
pub(super) fn start(calls: Option<&Calls>, text: Option<&Value>) -> Option<String> {
    let calls = calls.map(|calls| (calls.required, &calls.rules));
    match (calls, text) {
        (Some((true, rules)), _) => Some(format!("start: \"\\n\\n<\" marker block\n{rules}")),
        (Some((false, rules)), Some(schema)) => {
            let start = "start: response | \"\\n\\n<\" marker block";
            Some(format!("{start}\nresponse: %json {schema}\n{rules}"))
        }
        (None, Some(schema)) => Some(format!("start: response\nresponse: %json {schema}\n")),
        (Some((false, _)) | None, None) => None,
    }
}

impl Calls {
    /// The calls that are wanted, if any may be made; `compiles` says whether a grammar is one.
    ///
    /// # Errors
    /// A tool that is not there, or a strict one whose schema cannot be enforced.
    pub(super) fn new(
        wanted: &Wanted<'_>,
        marker: u32,
        compiles: impl Fn(&str) -> Result<(), String>,
    ) -> Result<Option<Self>, GuideError> {
        let (tools, required): (Vec<&Tool>, bool) = match wanted.calls {
            super::Calls::Never => return Ok(None),
            super::Calls::Optional => (wanted.tools.iter().collect(), false),
            super::Calls::Required => (wanted.tools.iter().collect(), true),
            super::Calls::Named(name) => {
                let named = wanted.tools.iter().find(|tool| tool.name() == name);
                (vec![named.ok_or_else(|| GuideError::UnknownTool(name.to_owned()))?], true)
            }
        };
        match (tools.is_empty(), required) {
            (true, true) => return Err(GuideError::NoTools),
            (true, false) => return Ok(None),
            (false, _) => {}
        }
        let several = if wanted.parallel { "+" } else { "" };
        let frame = format!(
            "marker: <[{marker}]>\n\
             block: \"tool_calls>\\n\" invoke{several} \"</\" marker \"tool_calls>\"\n\
             invoke: \"<\" marker \"invoke name=\\\"\" called \"</\" marker \"invoke>\\n\"\n\
             any_json: %json {}\n\
             ANY_TEXT: /(?s:.*)<\\//\n\
             ANY_NAME: /[^\"<>\\x00-\\x1F]{{1,64}}\" string=\"/\n",
            super::schema::any(),
        );
        // As a rule all of it can be enforced; only otherwise is it asked what cannot.
        let mut rules = frame.clone();
        rules.push_str(&called(&tools, |_, _| Strictness::Strict));
        let grammar = |rules: &str| format!("start: block\n{rules}");
        if compiles(&grammar(&rules)).is_err() {
            let mut failed = None;
            let with = called(&tools, |tool, parameter| {
                let try_with = |strictness| {
                    let only = only(tool, parameter, strictness);
                    compiles(&grammar(&format!("{frame}{only}")))
                };
                let strict = tool.function().get("strict") == Some(&Value::Bool(true));
                match try_with(Strictness::Strict) {
                    Ok(()) => Strictness::Strict,
                    Err(reason) if strict => {
                        let of = format!("parameter {parameter:?} of tool {:?}", tool.name());
                        failed.get_or_insert(GuideError::Schema { of, reason });
                        Strictness::None
                    }
                    Err(_) => match try_with(Strictness::Lenient) {
                        Ok(()) => Strictness::Lenient,
                        Err(_) => Strictness::None,
                    },
                }
            });
            if let Some(error) = failed {
                return Err(error);
            }
            rules = frame + &with;
        }
        Ok(Some(Self { rules, required }))
    }

    /// Whether there must be a call.
    pub(super) fn required(&self) -> bool {
        self.required
    }

    /// The grammar of what follows the block's first marker.
    pub(super) fn block(&self) -> String {
        format!("start: block\n{}", self.rules)
    }
}

/// How much of a parameter's schema is enforced.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Strictness {
    /// All of it.
    Strict,
    /// What the grammar engine knows.
    Lenient,
    /// That it is text or JSON.
    None,
}

/// The rules of all tools.
fn called(tools: &[&Tool], mut strictness: impl FnMut(&Tool, &str) -> Strictness) -> String {
    let names: Vec<String> = (0..tools.len()).map(|tool| format!("tool_{tool}")).collect();
    let mut rules = format!("called: {}\n", names.join(" | "));
    for (index, tool) in tools.iter().enumerate() {
        push_tool(&mut rules, index, tool, |name| strictness(tool, name));
    }
    rules
}

/// The rules of a tool that has one parameter only.
fn only(tool: &Tool, parameter: &str, strictness: Strictness) -> String {
    let mut rules = "called: tool_0\n".to_owned();
    push_tool(
        &mut rules,
        0,
        tool,
        |name| {
            if name == parameter {
                strictness
            } else {
                Strictness::None
            }
        },
    );
    rules
}

fn push_tool(
    rules: &mut String,
    tool: usize,
    declared: &Tool,
    mut strictness: impl FnMut(&str) -> Strictness,
) {
    let head = literal(&format!("{}\">\n", declared.name()));
    let parameters = Parameters::read(declared.function().get("parameters"));
    let Some(parameters) = parameters.filter(|parameters| !parameters.open) else {
        let value = "\"true\\\">\" ANY_TEXT | \"false\\\">\" any_json \"</\"";
        let _ = write!(
            rules,
            "tool_{tool}: {head} (\"\\n\" | (any_{tool} \"\\n\")+)\n\
             any_{tool}: \"<\" marker \"parameter name=\\\"\" ANY_NAME ({value}) marker \
             \"parameter>\"\n"
        );
        return;
    };
    let count = parameters.declared.len();
    let required = parameters.required;
    let none = if required == 0 { "\"\\n\"" } else { "" };
    let some = match count {
        0 => String::new(),
        1..=FREE_ORDER => format!("some_{tool}::0x0"),
        _ => (0..count)
            .map(|parameter| {
                let optional = if parameter < required { "" } else { "?" };
                format!("(parameter_{tool}_{parameter} \"\\n\"){optional} ")
            })
            .collect(),
    };
    let either = if none.is_empty() || some.is_empty() { "" } else { " | " };
    let _ = writeln!(rules, "tool_{tool}: {head} ({none}{either}{some})");
    if (1..=FREE_ORDER).contains(&count) {
        // At least one: without any there is a line instead.
        let enough = match required {
            0 => "ne(_, 0)".to_owned(),
            required => format!("is_ones([0:{required}])"),
        };
        let _ = writeln!(rules, "some_{tool}::_: \"\" %if {enough}");
        for parameter in 0..count {
            let _ = writeln!(
                rules,
                "  | parameter_{tool}_{parameter} \"\\n\" some_{tool}::set_bit({parameter}) %if \
                 bit_clear({parameter})"
            );
        }
    }
    for (index, parameter) in parameters.declared.iter().enumerate() {
        let id = format!("{tool}_{index}");
        let strictness = strictness(parameter.name);
        push_parameter(rules, &id, &parameters, parameter.name, parameter.schema, strictness);
    }
}

fn push_parameter<'a>(
    rules: &mut String,
    id: &str,
    parameters: &Parameters<'a>,
    name: &str,
    schema: &'a Value,
    strictness: Strictness,
) {
    let head = |string: bool| literal(&format!("parameter name=\"{name}\" string=\"{string}\">"));
    let mut forms = Vec::new();
    let mut terminals = String::new();
    let spelling = match strictness {
        Strictness::None => Some(Spelling::Text { min: 0, max: None, pattern: None }),
        _ => parameters.spelling(schema),
    };
    if let Some(spelling) = spelling {
        forms.push(format!("{} TEXT_{id}", head(true)));
        push_text(&mut terminals, id, &spelling, strictness);
    }
    if strictness == Strictness::None || !parameters.is_text(schema) {
        forms.push(format!("{} json_{id} \"</\"", head(false)));
        let schema = match strictness {
            Strictness::None => super::schema::any(),
            _ => parameters.alone(schema, strictness == Strictness::Lenient),
        };
        let _ = writeln!(terminals, "json_{id}: %json {schema}");
    }
    let forms = forms.join(" | ");
    let _ = writeln!(rules, "parameter_{id}: \"<\" marker ({forms}) marker \"parameter>\"");
    rules.push_str(&terminals);
}

/// The terminal of a text with the `</` that ends it: the grammar engine takes the longest match,
/// and only the marker after it tells it from a text that goes on.
fn push_text(rules: &mut String, id: &str, spelling: &Spelling<'_>, strictness: Strictness) {
    let _ = match spelling {
        Spelling::OneOf(texts) => {
            let texts: Vec<String> =
                texts.iter().map(|text| literal(&format!("{text}</"))).collect();
            writeln!(rules, "TEXT_{id}: {}", texts.join(" | "))
        }
        Spelling::Text { min: 0, max: None, pattern: None } => {
            writeln!(rules, "TEXT_{id}: ANY_TEXT")
        }
        Spelling::Text { min, max, pattern } => {
            let (min, max) = (*min.min(&LONGEST_TEXT), max.filter(|&max| max <= LONGEST_TEXT));
            let max = max.map_or(String::new(), |max| max.to_string());
            let pattern = match pattern {
                Some(pattern) if strictness == Strictness::Strict => {
                    format!(" & {}", anywhere(pattern))
                }
                _ => String::new(),
            };
            writeln!(
                rules,
                "BARE_{id}: /(?s:.{{{min},{max}}})/{pattern}\nTEXT_{id}: BARE_{id} \"</\""
            )
        }
    };
}

/// A pattern of JSON Schema, which may match anywhere in a text, as a terminal that matches all of
/// the text.
fn anywhere(pattern: &str) -> String {
    let (before, pattern) = match pattern.strip_prefix('^') {
        Some(rest) => ("", rest),
        None => ("(?s:.*)", pattern),
    };
    let (pattern, after) = match pattern.strip_suffix('$').filter(|rest| !rest.ends_with('\\')) {
        Some(rest) => (rest, ""),
        None => (pattern, "(?s:.*)"),
    };
    format!("/{before}({}){after}/", pattern.replace('/', "\\/").replace('\n', "\\n"))
}

/// Text as a literal of the grammar.
fn literal(text: &str) -> String {
    json!(text).to_string()
}
