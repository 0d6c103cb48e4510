//! Templates in the language operators know from `docker --format`: a small part of Go's text/template.
//!
//! `{{.Field.Inner}}`, `{{index .Map "key"}}`, `{{if …}} {{else if …}} {{else}} {{end}}`,
//! `{{range …}} {{else}} {{end}}`, `{{with …}}`, pipelines, and the functions of `eval`. `\t` and `\n`
//! outside actions are a tab and a newline. Fields are found whatever their case, and a field that does
//! not exist is an error that lists those that do: a typing error never prints nothing.

mod eval;
mod parse;

use serde_json::Value;

/// A parsed template.
#[derive(Debug)]
pub(crate) struct Template(Vec<Part>);

/// One part of a template.
#[derive(Debug)]
enum Part {
    Text(String),
    Print(Pipeline),
    If {
        condition: Pipeline,
        then: Vec<Part>,
        otherwise: Vec<Part>,
    },
    Range {
        over: Pipeline,
        each: Vec<Part>,
        otherwise: Vec<Part>,
    },
    With {
        value: Pipeline,
        then: Vec<Part>,
        otherwise: Vec<Part>,
    },
}

/// Calls whose result is the last argument of the next.
type Pipeline = Vec<Vec<Word>>;

/// One word of a call.
#[derive(Debug)]
enum Word {
    /// Fields of the current value; none is the value itself.
    Path(Vec<String>),
    /// Fields of the value the template was given.
    Root(Vec<String>),
    Literal(Value),
    Function(String),
    Group(Pipeline),
}

impl Template {
    /// Parses a template; the error says what and where.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if !text.contains("{{") {
            return Err(format!(
                "{text:?} is no format; give table, json, or a template like '{{{{.ID}}}}\\t{{{{.Name}}}}'"
            ));
        }
        parse::template(text).map(Self)
    }

    /// The text of the template for `value`.
    pub(crate) fn render(&self, value: &Value) -> Result<String, String> {
        eval::render(&self.0, value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn check(template: &str, want: &str) {
        let value = json!({
            "id": "x1", "name": "web", "replicas": 3, "none": null, "on": true, "image": "a:1",
            "labels": {"tier": "front", "a.b": "c"}, "env": ["A=1", "B=2"],
            "spec": {"desiredRole": "MANAGER", "ports": [{"target": 80}, {"target": 443}]},
        });
        let got = Template::parse(template).and_then(|template| template.render(&value));
        let got = got.unwrap_or_else(|error| format!("error: {error}"));
        assert_eq!(got, want, "{template}");
    }

    #[test]
    fn fields() {
        check(r"{{.ID}}\t{{.Name}}", "x1\tweb");
        check("{{ .Spec.DesiredRole }}", "MANAGER");
        check("{{.spec.desired_role}}", "MANAGER");
        check("{{.None}}", "<no value>");
        check("{{.None.Deeper}}", "<no value>");
        check("{{.Labels.tier}}/{{.Labels.other}}", "front/<no value>");
        check("{{.Env}}", "[A=1 B=2]");
        check("{{.Labels}}", "map[a.b:c tier:front]");
    }

    #[test]
    fn functions_and_pipelines() {
        check("{{json .Labels}}", r#"{"a.b":"c","tier":"front"}"#);
        check("{{.Env | json}}", r#"["A=1","B=2"]"#);
        check("{{upper .Name}} {{.Name | title}}", "WEB Web");
        check(r#"{{index .Labels "a.b"}} {{index .Env 1}}"#, "c B=2");
        check(r#"{{join .Env ", "}} {{len .Env}}"#, "A=1, B=2 2");
        check(r#"{{(index (split .Image ":") 1)}}"#, "1");
        check(r#"{{printf "%s has %d" .Name .Replicas}}"#, "web has 3");
        check("{{println .Name}}", "web\n");
        check("{{truncate .Name 2}}", "we");
        check(r#"{{"{{"}}"#, "{{");
    }

    #[test]
    fn branches_and_loops() {
        check(
            "{{if .On}}a{{else}}b{{end}}{{if .None}}a{{else if eq .Name \"web\"}}c{{end}}",
            "ac",
        );
        check("{{range .Spec.Ports}}{{.Target}} {{end}}", "80 443 ");
        check("{{range .None}}x{{else}}empty{{end}}", "empty");
        check(
            "{{with .Spec}}{{.DesiredRole}} of {{$.Name}}{{end}}",
            "MANAGER of web",
        );
        check(
            "{{if and .On (not .None)}}y{{end}}{{if or .None .Name}}z{{end}}",
            "yz",
        );
        check(
            "{{if gt .Replicas 2}}many{{end}}{{if ne .Name \"x\"}}!{{end}}",
            "many!",
        );
        check("a {{- .Name -}} b", "awebb");
        check("{{/* nothing */}}x", "x");
    }

    #[test]
    fn errors_say_what_is_wrong() {
        check(
            "{{.Nmae}}",
            "error: no field \"Nmae\"; there are env, id, image, labels, name, none, on, replicas, spec",
        );
        check("{{frob .Name}}", "error: unknown function \"frob\"");
        check("{{.Name", "error: an action is not closed by }}");
        check("{{if .On}}x", "error: {{if}} without {{end}}");
        check("x{{end}}", "error: {{end}} without a beginning");
        check(
            "plain",
            "error: \"plain\" is no format; give table, json, or a template like '{{.ID}}\\t{{.Name}}'",
        );
        check("{{index .Env 7}}", "error: no element 7 in a list of 2");
        check(
            "{{.Name.First}}",
            "error: \"Name\" has no fields, so no \"First\"",
        );
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "[{}.a-c \"()|$\\\\-]{0,24}") {
            if let Ok(template) = Template::parse(&text) {
                let _ = template.render(&json!({"a": {"b": [1]}}));
            }
        }
    }
}
