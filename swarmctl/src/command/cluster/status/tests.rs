//! Verdicts.

use std::time::UNIX_EPOCH;

use super::*;

fn manager(name: &str, heard_ms: Option<u64>) -> own::ManagerView {
    own::ManagerView {
        node_id: format!("id-{name}"),
        hostname: name.to_owned(),
        addresses: vec![format!("{name}:4242")],
        voter: true,
        answers: heard_ms.is_none(),
        heard_ms,
        behind: Some(0),
    }
}

fn local() -> own::LocalStatusResponse {
    own::LocalStatusResponse {
        role: "manager".to_owned(),
        manager_addr: "m1:4242".to_owned(),
        certificate_begins: 10_000,
        certificate_ends: 100_000,
        consensus: Some(own::ConsensusView {
            managers: vec![
                manager("m1", None),
                manager("m2", Some(1)),
                manager("m3", Some(1)),
            ],
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn cluster(managers: Vec<own::ManagerView>) -> Cluster {
    Cluster {
        consensus: own::ConsensusView {
            leader: "id-m1".to_owned(),
            managers,
            ..Default::default()
        },
        nodes: Vec::new(),
        services: vec![("web".to_owned(), 3, 3)],
    }
}

fn judged(local: own::LocalStatusResponse, cluster: Option<Result<Cluster, Error>>) -> Verdict {
    let now = UNIX_EPOCH + Duration::from_secs(50_000);
    Facts {
        now,
        local,
        cluster,
    }
    .verdict()
}

#[track_caller]
fn says(verdict: &Verdict, level: Level, words: &str) {
    let text = verdict.lines().join("\n");
    assert_eq!(verdict.level, level, "{text}");
    assert!(text.contains(words), "{text}");
}

#[test]
fn a_whole_cluster_is_healthy() {
    let three = || {
        vec![
            manager("m1", None),
            manager("m2", Some(50)),
            manager("m3", Some(80)),
        ]
    };
    let verdict = judged(local(), Some(Ok(cluster(three()))));
    says(&verdict, Level::Healthy, "nothing to do");
    assert!(verdict.end().is_ok());
}

#[test]
fn what_is_not_as_it_should_be_is_named_with_the_way_out() {
    let lost = vec![
        manager("m1", None),
        manager("m2", Some(50)),
        manager("m3", Some(60_000)),
    ];
    let verdict = judged(local(), Some(Ok(cluster(lost))));
    says(
        &verdict,
        Level::Degraded,
        "m3 (m3:4242). 2 of 3 must be up: none more may fail",
    );
    let two = vec![manager("m1", None), manager("m2", Some(50))];
    says(
        &judged(local(), Some(Ok(cluster(two)))),
        Level::Degraded,
        "A third lets one fail",
    );
    let mut short = cluster(vec![manager("m1", None)]);
    short.services.push(("db".to_owned(), 1, 2));
    says(
        &judged(local(), Some(Ok(short))),
        Level::Degraded,
        "db (1/2)",
    );
    let node = pb::Node {
        id: "n9".to_owned(),
        ..Default::default()
    };
    let mut down = cluster(vec![manager("m1", None)]);
    down.nodes.push(node);
    says(
        &judged(local(), Some(Ok(down))),
        Level::Degraded,
        "1 node not ready: n9",
    );
    let mut slow = cluster(vec![
        manager("m1", None),
        manager("m2", Some(5)),
        manager("m3", Some(5)),
    ]);
    slow.consensus.managers[2].behind = Some(5000);
    says(
        &judged(local(), Some(Ok(slow))),
        Level::Degraded,
        "5000 log entries behind",
    );
    let mut ending = local();
    ending.certificate_ends = 53_600;
    says(
        &judged(ending, alone()),
        Level::Degraded,
        "certificate ends in 1h",
    );
}

fn alone() -> Option<Result<Cluster, Error>> {
    Some(Ok(cluster(vec![manager("m1", None)])))
}

fn wanted(name: &str, retired: &str) -> pb::Node {
    pb::Node {
        id: format!("id-{name}"),
        spec: Some(pb::NodeSpec {
            desired_role: pb::NodeRole::Manager.into(),
            ..Default::default()
        }),
        status: Some(pb::NodeStatus {
            state: pb::node_status::State::Ready.into(),
            ..Default::default()
        }),
        retired_reason: retired.to_owned(),
        ..Default::default()
    }
}

#[test]
fn a_manager_that_is_wanted_and_does_not_vote_is_named() {
    let whole = || {
        let mut cluster = cluster(vec![manager("m1", None)]);
        cluster.nodes.push(wanted("m1", ""));
        cluster
    };
    says(&judged(local(), Some(Ok(whole()))), Level::Healthy, "");
    let mut outside = whole();
    outside.nodes.push(wanted("m2", ""));
    says(
        &judged(local(), Some(Ok(outside))),
        Level::Degraded,
        "id-m2 is to be a manager, and is none",
    );
    let mut retired = whole();
    retired.nodes.push(wanted("m2", "dead for 10m"));
    says(
        &judged(local(), Some(Ok(retired))),
        Level::Degraded,
        "id-m2 was given up as a manager: dead for 10m",
    );
    let mut learning = whole();
    let mut learner = manager("m2", Some(5));
    learner.voter = false;
    learning.consensus.managers.push(learner);
    learning.nodes.push(wanted("m2", ""));
    let verdict = judged(local(), Some(Ok(learning)));
    says(&verdict, Level::Degraded, "m2 (m2:4242) does not vote");
    assert_eq!(verdict.findings.len(), 1, "said once");
}

#[test]
fn a_short_certificate_is_renewed_late_and_well() {
    let mut short = local();
    // An hour, of which a fifth is left: it is renewed then at the latest.
    short.certificate_begins = 50_000 - 2_880;
    short.certificate_ends = 50_000 + 720;
    says(&judged(short.clone(), alone()), Level::Healthy, "");
    short.certificate_begins = 50_000 - 3_300;
    short.certificate_ends = 50_000 + 300;
    says(
        &judged(short.clone(), alone()),
        Level::Degraded,
        "ends in 5m",
    );
    short.certificate_ends = 49_000;
    says(&judged(short, alone()), Level::Degraded, "has ended");
}

#[test]
fn an_agent_between_sessions_makes_no_outage() {
    let mut between = local();
    between.manager_addr = String::new();
    says(
        &judged(between.clone(), alone()),
        Level::Degraded,
        "no session",
    );
    let worker = judged(between, None);
    says(&worker, Level::Unavailable, "connected to no manager");
}

#[test]
fn without_a_leader_it_says_who_is_missing() {
    let refused = || Error::refused("ask the leader", tonic::Status::unavailable("no leader"));
    let verdict = judged(local(), Some(Err(refused())));
    says(&verdict, Level::Unavailable, "2 of 3 managers must be up");
    says(&verdict, Level::Unavailable, "m2 (m2:4242), m3 (m3:4242)");
    assert!(verdict.end().is_err());
    let mut locked = local();
    locked.locked = true;
    says(&judged(locked, None), Level::Unavailable, "cluster unlock");
    let mut fenced = local();
    fenced.fenced = "the cluster was recovered without it".to_owned();
    says(
        &judged(fenced, None),
        Level::Unavailable,
        "recovered without it",
    );
}
