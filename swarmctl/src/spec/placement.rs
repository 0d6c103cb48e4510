//! Constraints and placement preferences.

use swarm_proto::pb::{PlacementPreference, SpreadOver, placement_preference};

use super::Form;

/// SwarmKit's constraint expressions.
pub(super) const CONSTRAINT: Form<String> = Form {
    accepted: "KEY==VALUE or KEY!=VALUE with one of node.id, node.hostname, node.ip, node.role, node.platform.os, node.platform.arch, node.labels.NAME, engine.labels.NAME",
    parse: constraint,
};

/// Docker's spelling of a spread.
pub(super) const PREFERENCE: Form<PlacementPreference> = Form {
    accepted: "spread=node.labels.NAME or spread=engine.labels.NAME",
    parse: preference,
};

fn constraint(text: &str) -> Result<String, String> {
    let unequal = text.find("!=");
    let (key, operator, value) = match (text.find("=="), unequal) {
        (Some(at), None) => parts(text, at, "=="),
        (None, Some(at)) => parts(text, at, "!="),
        (Some(equal), Some(unequal)) if equal < unequal => parts(text, equal, "=="),
        (Some(_), Some(unequal)) => parts(text, unequal, "!="),
        (None, None) => return Err("there is neither == nor !=".to_owned()),
    };
    if value.is_empty() {
        return Err("the value is empty".to_owned());
    }
    if let Some(bad) = value
        .chars()
        .find(|c| !c.is_ascii_alphanumeric() && !r":-_.*()?+[]\^$|/ ".contains(*c))
    {
        return Err(format!("the value has the character {bad:?}"));
    }
    check_key(key, value)?;
    Ok(format!("{key}{operator}{value}"))
}

fn parts<'a>(text: &'a str, at: usize, operator: &'static str) -> (&'a str, &'static str, &'a str) {
    let (key, rest) = text.split_at(at);
    (
        key.trim(),
        operator,
        rest.strip_prefix(operator).unwrap_or(rest).trim(),
    )
}

/// A key that no node has would leave every task pending.
fn check_key(key: &str, value: &str) -> Result<(), String> {
    let lower = key.to_ascii_lowercase();
    if lower == "node.role" {
        return match value.to_ascii_lowercase().as_str() {
            "worker" | "manager" => Ok(()),
            other => Err(format!("the role {other:?} is neither worker nor manager")),
        };
    }
    if matches!(
        lower.as_str(),
        "node.id" | "node.hostname" | "node.ip" | "node.platform.os" | "node.platform.arch"
    ) {
        return Ok(());
    }
    let label = lower
        .strip_prefix("node.labels.")
        .or(lower.strip_prefix("engine.labels."));
    match label {
        None => Err(format!("unknown key {key:?}")),
        Some("") => Err("the label has no name".to_owned()),
        Some(name) => {
            match name
                .chars()
                .find(|c| !c.is_ascii_alphanumeric() && !"-_.".contains(*c))
            {
                Some(bad) => Err(format!("the label has the character {bad:?}")),
                None => Ok(()),
            }
        }
    }
}

fn preference(text: &str) -> Result<PlacementPreference, String> {
    let (strategy, descriptor) = text.split_once('=').ok_or("there is no =")?;
    if strategy != "spread" {
        return Err(format!("unknown strategy {strategy:?}"));
    }
    let label = descriptor
        .strip_prefix("node.labels.")
        .or(descriptor.strip_prefix("engine.labels."));
    if label.is_none_or(str::is_empty) {
        return Err(format!("{descriptor:?} is not a label of nodes"));
    }
    let spread = SpreadOver {
        spread_descriptor: descriptor.to_owned(),
    };
    Ok(PlacementPreference {
        preference: Some(placement_preference::Preference::Spread(spread)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constraints() {
        assert_eq!(
            constraint("node.labels.disk == ssd").as_deref(),
            Ok("node.labels.disk==ssd")
        );
        assert_eq!(
            constraint("node.ip!=10.0.0.0/8").as_deref(),
            Ok("node.ip!=10.0.0.0/8")
        );
        for (bad, reason) in [
            ("node.role", "there is neither == nor !="),
            ("node.role=worker", "there is neither == nor !="),
            (
                "node.role==boss",
                "the role \"boss\" is neither worker nor manager",
            ),
            ("node.colour==red", "unknown key \"node.colour\""),
            ("node.labels.==x", "the label has no name"),
            ("node.labels.a b==x", "the label has the character ' '"),
            ("node.id==", "the value is empty"),
            ("node.id==a=b", "the value has the character '='"),
        ] {
            assert_eq!(constraint(bad).unwrap_err(), reason, "{bad}");
        }
    }

    #[test]
    fn preferences() {
        assert!(preference("spread=node.labels.rack").is_ok());
        for bad in [
            "node.labels.rack",
            "pack=node.labels.rack",
            "spread=node.labels.",
            "spread=x",
        ] {
            assert!(preference(bad).is_err(), "{bad}");
        }
    }
}
