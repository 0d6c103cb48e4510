//! `swarmctl image ls`.

use swarm_proto::{amount, own};

use super::super::session::Session;
use super::{all, familiar};
use crate::cli::Listing;
use crate::error::Error;
use crate::render::list::{Column, Cut, Filters, Format, Row, render};
use crate::render::time::ago;

const COLUMNS: &[Column] = &[
    Column::new("Name", "Name", Cut::Never),
    Column::new("ID", "Digest", Cut::Id),
    Column::new("Size", "Size", Cut::Never),
    Column::new("Created", "Created", Cut::Never),
    Column::new("Used", "Last Used", Cut::Never),
    Column::new("Tasks", "Tasks", Cut::Never),
];

/// A checked command line.
pub(super) struct List {
    listing: Listing,
    format: Format,
    filters: Filters,
}

impl List {
    pub(super) fn check(listing: &Listing) -> Result<Self, Error> {
        Ok(Self {
            listing: listing.clone(),
            format: Format::of(listing)?,
            filters: Filters::parse(listing, &["name"])?,
        })
    }

    pub(super) async fn run(self, session: &mut Session<'_>) -> Result<(), Error> {
        let mut images = all(session).await?;
        images.retain(|image| {
            let names = [image.name.clone(), familiar(&image.name)];
            self.filters.allow("name", |prefix| {
                names.iter().any(|name| name.starts_with(prefix))
            })
        });
        let rows: Vec<Row> = images.iter().map(|image| row(image, session)).collect();
        let colour = session.colour();
        let lines = render(&self.format, COLUMNS, &rows, (&self.listing, colour))?;
        session.print(&lines)
    }
}

fn row(image: &own::LocalImage, session: &Session<'_>) -> Row {
    let since = |seconds: i64| {
        let at = prost_types::Timestamp { seconds, nanos: 0 };
        ago(session.now(), (seconds > 0).then_some(&at))
    };
    let created = humantime::parse_rfc3339_weak(&image.created).ok();
    let created = created
        .and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok())
        .and_then(|at| i64::try_from(at.as_secs()).ok());
    let digest = image.digest.strip_prefix("sha256:");
    Row::new([
        ("ID", digest.unwrap_or(&image.digest).into()),
        ("Name", familiar(&image.name).into()),
        ("Digest", image.digest.as_str().into()),
        (
            "Size",
            amount::bytes(i64::try_from(image.size).unwrap_or(i64::MAX)).into(),
        ),
        ("Bytes", image.size.into()),
        ("Created", since(created.unwrap_or(0)).into()),
        (
            "Used",
            since(i64::try_from(image.used_seconds).unwrap_or(0)).into(),
        ),
        ("Tasks", image.task_ids.len().into()),
        ("TaskIDs", image.task_ids.join(",").into()),
    ])
}
