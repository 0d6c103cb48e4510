//! SwarmKit's templates in environment, hostname and mounts: `{{.Service.Name}}-{{.Task.Slot}}`.
//!
//! The part of Go's template language that SwarmKit documents: fields of `.Service`, `.Node` and
//! `.Task`, `index` on labels, and `join`. Anything else is an error, as is a label that is not there.

use swarm_proto::pb;

use crate::error::Error;
use crate::executor::NodeFacts;

/// What templates can refer to.
#[derive(Debug)]
pub(super) struct Templates<'a> {
    pub task: &'a pb::Task,
    pub node: &'a NodeFacts,
}

impl Templates<'_> {
    /// Expands a text; `object` names it in errors.
    pub(super) fn expand(&self, object: &str, text: &str) -> Result<String, Error> {
        let mut expanded = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            expanded.push_str(before);
            let Some((action, after)) = after.split_once("}}") else {
                return Err(bad(object, text, "an action is not closed"));
            };
            // Go's trim markers.
            let trimmed = action.strip_prefix("- ");
            if trimmed.is_some() {
                expanded.truncate(expanded.trim_end().len());
            }
            let action = trimmed.unwrap_or(action);
            let (action, after) = match action.strip_suffix(" -") {
                Some(action) => (action, after.trim_start()),
                None => (action, after),
            };
            let value = self
                .action(action)
                .map_err(|reason| bad(object, text, &reason))?;
            expanded.push_str(&value);
            rest = after;
        }
        expanded.push_str(rest);
        Ok(expanded)
    }

    fn action(&self, action: &str) -> Result<String, String> {
        let words = words(action)?;
        match words.as_slice() {
            [Word::Field(path)] => self.field(path),
            [Word::Text(text)] => Ok(text.clone()),
            [Word::Name(name), Word::Field(path), Word::Text(key)] if name == "index" => {
                self.label(path, key)
            }
            [Word::Name(name), separator, parts @ ..] if name == "join" => {
                let separator = self.value(separator)?;
                let parts: Result<Vec<String>, String> =
                    parts.iter().map(|part| self.value(part)).collect();
                Ok(parts?.join(&separator))
            }
            _ => Err(format!("{:?} is not understood", action.trim())),
        }
    }

    fn value(&self, word: &Word) -> Result<String, String> {
        match word {
            Word::Field(path) => self.field(path),
            Word::Text(text) => Ok(text.clone()),
            Word::Name(name) => Err(format!("{name:?} is not understood")),
        }
    }

    fn label(&self, path: &str, key: &str) -> Result<String, String> {
        if path != ".Service.Labels" {
            return Err(format!("{path} has no labels; .Service.Labels has"));
        }
        let labels = self
            .task
            .service_annotations
            .as_ref()
            .map(|service| &service.labels);
        let value = labels.and_then(|labels| labels.get(key));
        value
            .cloned()
            .ok_or_else(|| format!("the service has no label {key}"))
    }

    fn field(&self, path: &str) -> Result<String, String> {
        let platform = || -> (&str, &str) { (&self.node.os, &self.node.arch) };
        match path {
            ".Service.ID" => Ok(self.task.service_id.clone()),
            ".Service.Name" => Ok(service_name(self.task).to_owned()),
            ".Node.ID" => Ok(self.node.id.clone()),
            ".Node.Hostname" => Ok(self.node.hostname.clone()),
            ".Node.Platform.OS" => Ok(platform().0.to_owned()),
            ".Node.Platform.Architecture" => Ok(platform().1.to_owned()),
            ".Task.ID" => Ok(self.task.id.clone()),
            ".Task.Name" => Ok(task_name(self.task)),
            ".Task.Slot" => Ok(slot(self.task)),
            _ => match path.strip_prefix(".Service.Labels.") {
                Some(key) => self.label(".Service.Labels", key),
                None => Err(format!("there is no {path}")),
            },
        }
    }
}

fn bad(object: &str, text: &str, reason: &str) -> Error {
    Error::Fatal(format!("{object}: template {text:?}: {reason}"))
}

fn service_name(task: &pb::Task) -> &str {
    task.service_annotations
        .as_ref()
        .map_or("", |service| service.name.as_str())
}

/// The slot, or for a task of a global service its node.
fn slot(task: &pb::Task) -> String {
    if task.slot == 0 {
        task.node_id.clone()
    } else {
        task.slot.to_string()
    }
}

/// SwarmKit's name of a task: `<service>.<slot or node>.<task id>`.
pub(super) fn task_name(task: &pb::Task) -> String {
    match task.annotations.as_ref().map(|task| task.name.as_str()) {
        Some(name) if !name.is_empty() => name.to_owned(),
        Some(_) | None => format!("{}.{}.{}", service_name(task), slot(task), task.id),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Word {
    Field(String),
    Text(String),
    Name(String),
}

fn words(action: &str) -> Result<Vec<Word>, String> {
    let mut words = Vec::new();
    let mut rest = action.trim();
    while !rest.is_empty() {
        let (word, after) = match rest.strip_prefix(['"', '`']) {
            Some(quoted) => {
                let quote = if rest.starts_with('"') { '"' } else { '`' };
                let (text, after) = quoted
                    .split_once(quote)
                    .ok_or_else(|| "a quoted text is not closed".to_owned())?;
                (Word::Text(text.to_owned()), after)
            }
            None => {
                let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
                let (word, after) = rest.split_at(end);
                let word = word.to_owned();
                (
                    if word.starts_with('.') {
                        Word::Field(word)
                    } else {
                        Word::Name(word)
                    },
                    after,
                )
            }
        };
        words.push(word);
        rest = after.trim_start();
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task() -> pb::Task {
        let mut service = pb::Annotations {
            name: "web".to_owned(),
            ..Default::default()
        };
        service.labels.insert("tier".to_owned(), "front".to_owned());
        service.labels.insert("a.b".to_owned(), "dotted".to_owned());
        pb::Task {
            id: "t1".to_owned(),
            service_id: "s1".to_owned(),
            slot: 3,
            node_id: "n1".to_owned(),
            service_annotations: Some(service),
            ..Default::default()
        }
    }

    fn expand(text: &str) -> Result<String, String> {
        let task = task();
        let node = NodeFacts {
            id: "n1".to_owned(),
            hostname: "host".to_owned(),
            os: "linux".to_owned(),
            arch: "amd64".to_owned(),
        };
        let templates = Templates {
            task: &task,
            node: &node,
        };
        templates
            .expand("env X", text)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn expands_what_swarmkit_documents() {
        for (text, expected) in [
            ("plain {not} a template", "plain {not} a template"),
            ("{{.Service.Name}}-{{ .Task.Slot }}", "web-3"),
            ("{{.Task.Name}}", "web.3.t1"),
            (
                "{{.Node.Hostname}}/{{.Node.Platform.OS}}/{{.Node.Platform.Architecture}}",
                "host/linux/amd64",
            ),
            ("{{.Service.Labels.tier}}", "front"),
            (r#"{{index .Service.Labels "a.b"}}"#, "dotted"),
            (r#"{{join "-" .Service.ID "x" .Node.ID}}"#, "s1-x-n1"),
            ("a {{- .Task.ID -}} b", "a{{- .Task.ID -}}b"),
        ] {
            let expected = expected.replace("{{- .Task.ID -}}", "t1");
            assert_eq!(expand(text).as_deref(), Ok(expected.as_str()), "{text}");
        }
    }

    #[test]
    fn refuses_the_rest() {
        for text in [
            "{{.Service.Nope}}",
            "{{",
            "{{env \"X\"}}",
            "{{.Service.Labels.no}}",
            "{{\"x}}",
        ] {
            let error = expand(text).unwrap_err();
            assert!(error.starts_with("env X: template"), "{error}");
        }
    }

    #[test]
    fn a_global_task_has_its_node_for_slot() {
        let task = pb::Task { slot: 0, ..task() };
        assert_eq!(task_name(&task), "web.n1.t1");
    }
}
