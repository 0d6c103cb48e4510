//! `swarmctl task why`: the manager's explanation of where a task is.

use serde_json::Value;
use swarm_proto::own;

use super::super::session::{Failures, Session};
use crate::cli::InspectTask;
use crate::error::Error;
use crate::render::show::Format;
use crate::render::{json, table};
use crate::resolve::{self, task_name};

pub(super) async fn run(
    session: &mut Session<'_>,
    flags: &InspectTask,
    format: &Format,
) -> Result<(), Error> {
    let mut failures = Failures::default();
    let mut answers = Vec::new();
    for name in &flags.tasks {
        answers.extend(failures.note(explain(session, name).await));
    }
    let values = answers.iter().map(|(_, answer)| value(answer));
    if !session.print_values(format, values)? {
        for (index, (name, answer)) in answers.iter().enumerate() {
            let mut lines = if index > 0 {
                vec![String::new()]
            } else {
                Vec::new()
            };
            lines.extend(details(session, name, answer));
            session.print(&lines)?;
        }
    }
    failures.end()
}

async fn explain(
    session: &mut Session<'_>,
    name: &str,
) -> Result<(String, own::ExplainTaskResponse), Error> {
    let task = resolve::task(&mut session.client, name).await?;
    let name = format!("{} ({})", task_name(&task, session.naming), task.id);
    let request = session
        .client
        .request(own::ExplainTaskRequest { task_id: task.id });
    let answer = session.client.operator().explain_task(request).await;
    let answer = answer.map_err(|status| Error::refused(format!("explain task {name}"), status))?;
    Ok((name, answer.into_inner()))
}

fn value(answer: &own::ExplainTaskResponse) -> Value {
    json::value("swarm.v1.ExplainTaskResponse", answer)
}

fn details(session: &Session<'_>, name: &str, answer: &own::ExplainTaskResponse) -> Vec<String> {
    // A summary that begins with the task's name gets the id put in.
    let short = name.split(' ').next().unwrap_or(name);
    let first = match answer.summary.strip_prefix(short) {
        Some(rest) => format!("{name}{rest}"),
        None => format!("{name}: {}", answer.summary),
    };
    let mut lines = vec![first];
    lines.extend(answer.reasons.iter().map(|reason| format!("  {reason}")));
    if answer.nodes.is_empty() {
        return lines;
    }
    let headers = ["Node", "Fits", "Because"].map(str::to_owned);
    let mut nodes = answer.nodes.clone();
    nodes.sort_by(|a, b| {
        b.fits
            .cmp(&a.fits)
            .then_with(|| a.hostname.cmp(&b.hostname))
    });
    let row = |node: &own::NodeVerdict| {
        let ids = session.naming == resolve::Naming::Ids || node.hostname.is_empty();
        let name = if ids {
            node.node_id.clone()
        } else {
            node.hostname.clone()
        };
        vec![
            name,
            if node.fits { "yes" } else { "no" }.to_owned(),
            node.reasons.join("; "),
        ]
    };
    let rows: Vec<Vec<String>> = nodes.iter().map(row).collect();
    lines.push(String::new());
    lines.extend(table::lines(&headers, &rows, session.colour()));
    lines
}
