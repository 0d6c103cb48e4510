//! `swarmctl cluster …`.

mod backup;
mod ca;
mod external_ca;
mod join_token;
mod settings;
pub(super) mod status;
mod unlock;

use swarm_proto::pb;

use super::session::{Session, Target};
use crate::cli::{Cluster, Listing};
use crate::environment::Environment;
use crate::error::Error;
use crate::render::list::{Column, Cut, Filters, Format, Row, render};
use crate::render::show;
use crate::resolve::cluster_name;
use crate::terminal::Terminal;

const COLUMNS: &[Column] = &[
    Column::new("ID", "ID", Cut::Never),
    Column::new("Name", "Name", Cut::Never),
];

pub(super) async fn run(
    cluster: Cluster,
    target: &Target,
    environment: Environment,
    terminal: &mut Terminal,
) -> Result<(), Error> {
    match cluster {
        Cluster::Ls { listing } => {
            let filters = Filters::parse(&listing, &["id", "name"])?;
            let format = Format::of(&listing)?;
            let mut session = Session::open(target, environment, terminal).await?;
            list(&mut session, &listing, (&filters, &format)).await
        }
        Cluster::Inspect { cluster, showing } => {
            let format = show::Format::of(&showing)?;
            let mut session = Session::open(target, environment, terminal).await?;
            settings::inspect(&mut session, cluster.as_deref(), &format).await
        }
        Cluster::Status { showing } => {
            let format = show::Format::of(&showing)?;
            let mut session = Session::open(target, environment, terminal).await?;
            status::run(&mut session, &format).await
        }
        Cluster::Update(flags) => {
            let change = settings::Change::check(&flags).await?;
            let mut session = Session::open(target, environment, terminal).await?;
            settings::update(&mut session, &flags, &change).await
        }
        Cluster::Backup(flags) => {
            backup::check(&flags)?;
            let mut session = Session::open(target, environment, terminal).await?;
            backup::run(&mut session, &flags).await
        }
        Cluster::Ca(flags) => {
            let change = ca::Change::check(&flags).await?;
            let mut session = Session::open(target, environment, terminal).await?;
            ca::run(&mut session, &flags, &change).await
        }
        Cluster::JoinToken(flags) => {
            let mut session = Session::open(target, environment, terminal).await?;
            join_token::run(&mut session, &flags).await
        }
        Cluster::UnlockKey(flags) => {
            let mut session = Session::open(target, environment, terminal).await?;
            unlock::show_key(&mut session, &flags).await
        }
        Cluster::Unlock => {
            let secret = environment.secret.clone();
            let mut session = Session::open(target, environment, terminal).await?;
            unlock::run(&mut session, &secret).await
        }
    }
}

async fn list(
    session: &mut Session<'_>,
    listing: &Listing,
    (filters, format): (&Filters, &Format),
) -> Result<(), Error> {
    let wire = pb::list_clusters_request::Filters {
        id_prefixes: filters.values("id").to_vec(),
        name_prefixes: filters.values("name").to_vec(),
        ..Default::default()
    };
    let clusters = session.client.list_clusters(wire).await?;
    let row = |cluster: &pb::Cluster| {
        Row::new([
            ("ID", cluster.id.as_str().into()),
            ("Name", cluster_name(cluster).into()),
        ])
    };
    let rows: Vec<Row> = clusters.iter().map(row).collect();
    let lines = render(format, COLUMNS, &rows, (listing, session.colour()))?;
    session.print(&lines)
}
