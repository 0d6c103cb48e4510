//! The control API over an in-memory store.

use std::collections::BTreeMap;
use std::sync::Arc;

use swarm_proto::id::NodeId;
use swarm_proto::pb;
use swarm_proto::pb::control_server::Control as _;
use swarm_proto::pb::watch_server::Watch as _;
use swarm_proto::reference::Reference;
use swarm_proto::time::Timestamp;
use tokio_stream::StreamExt as _;
use tonic::{Code, Request};

use super::ControlApi;
use super::testing::NoManagers;
use crate::clock::Clock;
use crate::manager::store::testing::{node, spec};
use crate::manager::store::{Change, Cluster, Meta};
use crate::manager::writer::Store;

fn api() -> (ControlApi, Store) {
    let store = Store::in_memory();
    let (clock, _) = Clock::manual(Timestamp::from_millis(1_800_000_000_000));
    (
        ControlApi::new(store.clone(), clock, Arc::new(NoManagers)),
        store,
    )
}

async fn seed(store: &Store, change: Change) {
    let written = store.write(Timestamp(1), vec![change]).await.unwrap();
    written.results[0].clone().unwrap();
}

fn to_create(spec: pb::ServiceSpec) -> Request<pb::CreateServiceRequest> {
    Request::new(pb::CreateServiceRequest {
        spec: Some(spec),
        ..Default::default()
    })
}

fn create(name: u8, template: u8) -> Request<pb::CreateServiceRequest> {
    let spec = spec(name, template, 2).wire.as_ref().clone();
    to_create(spec)
}

async fn created(api: &ControlApi, name: u8) -> pb::Service {
    api.create_service(create(name, 1))
        .await
        .unwrap()
        .into_inner()
        .service
        .unwrap()
}

#[tokio::test]
async fn a_service_is_created_read_updated_rolled_back_and_removed() {
    let (api, _) = api();
    let service = created(&api, 1).await;
    let version = service.meta.as_ref().unwrap().version;
    let update = |version, template: u8, rollback| {
        Request::new(pb::UpdateServiceRequest {
            service_id: service.id.clone(),
            service_version: version,
            spec: Some(spec(1, template, 2).wire.as_ref().clone()),
            rollback,
            ..Default::default()
        })
    };
    let previous = i32::from(pb::update_service_request::Rollback::Previous);
    let nothing = api.update_service(update(version, 9, previous)).await;
    let nothing = nothing.unwrap_err();
    assert!(
        nothing.message().contains("does not have a previous spec"),
        "{nothing}"
    );
    let updated = api
        .update_service(update(version, 2, 0))
        .await
        .unwrap()
        .into_inner();
    let updated = updated.service.unwrap();
    assert_eq!(updated.previous_spec, service.spec);
    let stale = api.update_service(update(version, 3, 0)).await.unwrap_err();
    assert_eq!(stale.code(), Code::FailedPrecondition);
    assert!(stale.message().contains("out of sequence"), "{stale}");

    let request = update(updated.meta.unwrap().version, 9, previous);
    let back = api
        .update_service(request)
        .await
        .unwrap()
        .into_inner()
        .service
        .unwrap();
    assert_eq!(back.spec, service.spec);
    assert_eq!(back.previous_spec, updated.spec, "the way forward is kept");

    let remove = pb::RemoveServiceRequest {
        service_id: service.id.clone(),
    };
    api.remove_service(Request::new(remove.clone()))
        .await
        .unwrap();
    let gone = api.remove_service(Request::new(remove)).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
}

#[tokio::test]
async fn a_taken_name_is_refused_without_regard_to_case() {
    let (api, _) = api();
    created(&api, 1).await;
    let taken = api.create_service(create(1, 2)).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists);
    assert!(
        taken
            .message()
            .contains("name conflicts with an existing object"),
        "{taken}"
    );
}

#[tokio::test]
async fn what_is_not_valid_or_not_served_is_refused_by_name() {
    let (api, _) = api();
    let missing = Request::new(pb::CreateServiceRequest {
        spec: None,
        ..Default::default()
    });
    let missing = api.create_service(missing).await.unwrap_err();
    assert_eq!(missing.code(), Code::InvalidArgument);

    let mut global = spec(1, 1, 1).wire.as_ref().clone();
    global.mode = Some(pb::service_spec::Mode::Global(pb::GlobalService {}));
    let request = to_create(global);
    let refused = api.create_service(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    assert!(refused.message().contains("mode global"), "{refused}");

    let mut large = spec(1, 1, 1).wire.as_ref().clone();
    let labels = &mut large.annotations.as_mut().unwrap().labels;
    labels.insert("x".to_owned(), "y".repeat(3 << 19));
    let request = to_create(large);
    let refused = api.create_service(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("1.5 MiB"), "{refused}");

    let mut several = spec(1, 1, 1).wire.as_ref().clone();
    let task = several.task.as_mut().unwrap();
    if let Some(pb::task_spec::Runtime::Container(container)) = &mut task.runtime {
        container.set_isolation(pb::container_spec::Isolation::Hyperv);
        container.hosts = vec!["host-gateway a".to_owned()];
    }
    task.log_driver = Some(pb::Driver {
        name: "syslog".to_owned(),
        ..Default::default()
    });
    let told = |spec: pb::ServiceSpec| {
        let request = to_create(spec);
        let api = api.clone();
        async move { api.create_service(request).await.unwrap_err() }
    };
    let fields = [
        "task.container.isolation: ",
        "task.container.hosts[0]: ",
        "task.log_driver.name: ",
    ];
    let refused = told(several.clone()).await;
    assert_eq!(refused.code(), Code::Unimplemented);
    assert!(
        fields.iter().all(|field| refused.message().contains(field)),
        "{refused}"
    );
    several.annotations.get_or_insert_default().name = "not a name".to_owned();
    let refused = told(several).await;
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(
        fields.iter().all(|field| refused.message().contains(field)),
        "{refused}"
    );
    assert!(refused.message().contains("name: "), "{refused}");

    let mut many = spec(1, 1, 1).wire.as_ref().clone();
    let replicas = 1_000_000;
    many.mode = Some(pb::service_spec::Mode::Replicated(pb::ReplicatedService {
        replicas,
    }));
    let request = to_create(many);
    let refused = api.create_service(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(
        refused.message().contains("200000"),
        "names the limit: {refused}"
    );
}

#[tokio::test]
async fn lists_are_filtered_within_kinds_by_any_and_across_kinds_by_all() {
    let (api, _) = api();
    let (a, b) = (created(&api, 1).await, created(&api, 2).await);
    let list = |filters: pb::list_services_request::Filters| {
        let api = api.clone();
        async move {
            let request = Request::new(pb::ListServicesRequest {
                filters: Some(filters),
            });
            let services = api
                .list_services(request)
                .await
                .unwrap()
                .into_inner()
                .services;
            services.into_iter().map(|s| s.id).collect::<Vec<_>>()
        }
    };
    let mut all = vec![a.id.clone(), b.id.clone()];
    all.sort();
    assert_eq!(
        list(pb::list_services_request::Filters::default()).await,
        all
    );
    let by_name = pb::list_services_request::Filters {
        names: vec!["S1".to_owned(), "none".to_owned()],
        ..Default::default()
    };
    assert_eq!(list(by_name).await, vec![a.id.clone()]);
    let by_both = pb::list_services_request::Filters {
        name_prefixes: vec!["s".to_owned()],
        id_prefixes: vec![b.id[..5].to_owned()],
        ..Default::default()
    };
    assert_eq!(list(by_both).await, vec![b.id.clone()]);
    let by_label = pb::list_services_request::Filters {
        labels: BTreeMap::from([("absent".to_owned(), String::new())]),
        ..Default::default()
    };
    assert!(list(by_label).await.is_empty());
}

#[tokio::test]
async fn a_node_is_updated_and_removed_with_its_rules() {
    let (api, store) = api();
    seed(&store, Change::CreateNode(Arc::new(node(1)))).await;
    let id = NodeId::from_raw(1).to_string();
    let get = pb::GetNodeRequest {
        node_id: id.clone(),
    };
    let found = api
        .get_node(Request::new(get))
        .await
        .unwrap()
        .into_inner()
        .node
        .unwrap();
    let mut spec = found.spec.unwrap();
    spec.availability = pb::node_spec::Availability::Drain.into();
    let update = pb::UpdateNodeRequest {
        force: false,
        node_id: id.clone(),
        node_version: found.meta.unwrap().version,
        spec: Some(spec.clone()),
    };
    let drained = api
        .update_node(Request::new(update.clone()))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        drained.node.unwrap().spec.unwrap().availability,
        spec.availability
    );

    spec.availability = 77;
    let unknown = pb::UpdateNodeRequest {
        force: false,
        spec: Some(spec),
        ..update
    };
    let unknown = api.update_node(Request::new(unknown)).await.unwrap_err();
    assert_eq!(unknown.code(), Code::InvalidArgument);

    let remove = |force| {
        Request::new(pb::RemoveNodeRequest {
            node_id: id.clone(),
            force,
        })
    };
    let ready = api.remove_node(remove(false)).await.unwrap_err();
    assert_eq!(ready.code(), Code::FailedPrecondition);
    api.remove_node(remove(true)).await.unwrap();
    assert_eq!(
        api.remove_node(remove(true)).await.unwrap_err().code(),
        Code::NotFound
    );
}

#[tokio::test]
async fn join_tokens_rotate_each_by_itself_and_reads_hide_the_key() {
    let (api, store) = api();
    let root = crate::ca::RootCa::generate(Timestamp::from_millis(1_800_000_000_000)).unwrap();
    let token = || {
        crate::ca::JoinToken::generate(root.digest())
            .unwrap()
            .reveal()
            .to_string()
    };
    let annotations = pb::Annotations {
        name: "default".to_owned(),
        ..Default::default()
    };
    let cluster = Cluster {
        id: swarm_proto::id::ClusterId::from_raw(5),
        meta: Meta::default(),
        spec: pb::ClusterSpec {
            annotations: Some(annotations),
            ..Default::default()
        },
        root_ca: pb::RootCa {
            ca_cert: root.cert_pem().as_bytes().to_vec(),
            ca_key: root.key_pem().as_bytes().to_vec(),
            join_tokens: Some(pb::JoinTokens {
                worker: token(),
                manager: token(),
            }),
            ..Default::default()
        },
        blacklist: BTreeMap::new(),
        unlock_keys: Vec::new(),
        managers: std::collections::BTreeMap::new(),
    };
    seed(&store, Change::CreateCluster(Arc::new(cluster))).await;
    let list = Request::new(pb::ListClustersRequest::default());
    let before = api
        .list_clusters(list)
        .await
        .unwrap()
        .into_inner()
        .clusters
        .remove(0);
    let root_ca = before.root_ca.clone().unwrap();
    assert!(
        root_ca.ca_key.is_empty(),
        "the CA key stays with the managers"
    );
    let update = pb::UpdateClusterRequest {
        cluster_id: before.id.clone(),
        cluster_version: before.meta.unwrap().version,
        spec: before.spec.clone(),
        rotation: Some(pb::KeyRotation {
            worker_join_token: true,
            ..Default::default()
        }),
    };
    let after = api
        .update_cluster(Request::new(update))
        .await
        .unwrap()
        .into_inner();
    let (old, new) = (
        root_ca.join_tokens.unwrap(),
        after.cluster.unwrap().root_ca.unwrap().join_tokens.unwrap(),
    );
    assert_ne!(old.worker, new.worker);
    assert_eq!(old.manager, new.manager);
    assert!(
        !store.view().cluster.unwrap().root_ca.ca_key.is_empty(),
        "an update keeps the key"
    );
}

#[tokio::test]
async fn a_watch_says_it_is_ready_then_tells_every_change_once() {
    let (api, _) = api();
    let entry = pb::watch_request::WatchEntry {
        kind: "service".to_owned(),
        action: 0,
        filters: Vec::new(),
    };
    let request = pb::WatchRequest {
        entries: vec![entry],
        include_old_object: true,
        ..Default::default()
    };
    let mut stream = api.watch(Request::new(request)).await.unwrap().into_inner();
    let ready = stream.next().await.unwrap().unwrap();
    assert!(ready.events.is_empty());
    let service = created(&api, 1).await;
    let message = stream.next().await.unwrap().unwrap();
    assert_eq!(message.events.len(), 1);
    assert_eq!(
        message.events[0].action,
        i32::from(pb::WatchActionKind::WatchActionCreate)
    );
    let remove = pb::RemoveServiceRequest {
        service_id: service.id,
    };
    api.remove_service(Request::new(remove)).await.unwrap();
    let message = stream.next().await.unwrap().unwrap();
    assert_eq!(
        message.events[0].action,
        i32::from(pb::WatchActionKind::WatchActionRemove)
    );
}

#[tokio::test]
async fn a_large_commit_is_told_in_messages_that_clients_take() {
    use crate::manager::store::NewTask;
    use swarm_proto::id::{ServiceId, TaskId};
    use swarm_proto::task_state::TaskState;
    use swarm_proto::time::Timestamp;

    let (api, store) = api();
    let service = created(&api, 1).await;
    let filter = pb::SelectBy {
        by: Some(pb::select_by::By::ServiceId(service.id.clone())),
    };
    let entry = pb::watch_request::WatchEntry {
        kind: "task".to_owned(),
        action: i32::from(pb::WatchActionKind::WatchActionCreate),
        filters: vec![filter],
    };
    let request = pb::WatchRequest {
        entries: vec![entry],
        ..Default::default()
    };
    let mut stream = api.watch(Request::new(request)).await.unwrap().into_inner();
    let before = stream.next().await.unwrap().unwrap().version.unwrap();

    const TASKS: u64 = 20_000;
    let id: ServiceId = service.id.parse().unwrap();
    let task = |slot: u64| NewTask {
        id: TaskId::from_raw(u128::from(slot)),
        slot,
        desired: TaskState::Running,
        node: None,
        generic: [].into(),
        start_at: Timestamp::ZERO,
        after: None,
    };
    let create = Change::CreateTasks {
        service: id,
        spec_version: service.spec_version.unwrap().index,
        tasks: (1..=TASKS).map(task).collect(),
    };
    let written = store.write(Timestamp(1), vec![create]).await.unwrap();
    let (mut told, mut messages) = (0, 0);
    while told < TASKS {
        let message = stream.next().await.unwrap().unwrap();
        assert!(prost::Message::encoded_len(&message) < 4 << 20);
        told += message.events.len() as u64;
        messages += 1;
        let version = message.version.unwrap().index;
        let last = told == TASKS;
        let expected = if last { written.version } else { before.index };
        assert_eq!(version, expected, "resuming misses nothing");
    }
    assert!(messages > 1);
}

#[tokio::test]
async fn a_watch_of_an_unknown_kind_is_refused() {
    let (api, _) = api();
    let entry = |kind: &str| pb::WatchRequest {
        entries: vec![pb::watch_request::WatchEntry {
            kind: kind.to_owned(),
            action: 0,
            filters: Vec::new(),
        }],
        ..Default::default()
    };
    let refused = api.watch(Request::new(entry("potato"))).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let later = api.watch(Request::new(entry("volume"))).await.unwrap_err();
    assert_eq!(later.code(), Code::Unimplemented);
}

#[tokio::test]
async fn ids_that_are_none_name_nothing() {
    let (api, _) = api();
    let request = Request::new(pb::GetTaskRequest {
        task_id: "x".to_owned(),
    });
    assert_eq!(
        api.get_task(request).await.unwrap_err().code(),
        Code::NotFound
    );
    let filters = pb::list_tasks_request::Filters {
        service_ids: vec!["no id".to_owned()],
        ..Default::default()
    };
    let request = Request::new(pb::ListTasksRequest {
        filters: Some(filters),
    });
    assert!(
        api.list_tasks(request)
            .await
            .unwrap()
            .into_inner()
            .tasks
            .is_empty()
    );
}

/// Knows one digest, or none.
#[derive(Debug)]
struct OneDigest(Result<String, String>);

#[tonic::async_trait]
impl crate::manager::controlapi::ImageResolver for OneDigest {
    async fn digest(&self, _: &Reference, _: &str) -> Result<String, String> {
        self.0.clone()
    }
}

fn container(service: &pb::Service) -> pb::ContainerSpec {
    let task = service.spec.clone().unwrap().task.unwrap();
    match task.runtime.unwrap() {
        pb::task_spec::Runtime::Container(container) => container,
        other @ (pb::task_spec::Runtime::Attachment(_) | pb::task_spec::Runtime::Generic(_)) => {
            panic!("{other:?}")
        }
    }
}

#[tokio::test]
async fn a_tag_is_resolved_where_the_request_asks_for_it() {
    let digest = format!("sha256:{}", "a".repeat(64));
    let (api, _) = api();
    let knows = api
        .clone()
        .resolving(Arc::new(OneDigest(Ok(digest.clone()))));
    let mut request = create(1, 1).into_inner();
    request.resolve_image = true;
    let answer = knows.create_service(Request::new(request.clone())).await;
    let answer = answer.unwrap().into_inner();
    let image = container(&answer.service.unwrap()).image;
    assert!(image.ends_with(&format!("@{digest}")), "{image}");
    assert!(answer.warnings.is_empty());

    // A client of SwarmKit does not ask.
    let answer = knows.create_service(create(2, 1)).await.unwrap();
    let image = container(&answer.into_inner().service.unwrap()).image;
    assert!(!image.contains('@'), "{image}");

    // No answer is no reason to refuse.
    let away = Err("registry r: connection refused".to_owned());
    let away = api.resolving(Arc::new(OneDigest(away)));
    let mut request = create(3, 1).into_inner();
    request.resolve_image = true;
    let answer = away.create_service(Request::new(request)).await;
    let answer = answer.unwrap().into_inner();
    assert!(!container(&answer.service.unwrap()).image.contains('@'));
    assert!(
        answer.warnings[0].contains("registry r: connection refused"),
        "{:?}",
        answer.warnings
    );
}

#[tokio::test]
async fn registry_credentials_are_stored_and_not_told() {
    let (api, store) = api();
    let mut request = create(1, 1).into_inner();
    let task = request.spec.as_mut().unwrap().task.as_mut().unwrap();
    let Some(pb::task_spec::Runtime::Container(wanted)) = &mut task.runtime else {
        panic!("no container")
    };
    wanted.pull_options = Some(pb::container_spec::PullOptions {
        registry_auth: "secret".to_owned(),
    });
    let answer = api.create_service(Request::new(request)).await.unwrap();
    let service = answer.into_inner().service.unwrap();
    assert_eq!(container(&service).pull_options, None);
    let get = pb::GetServiceRequest {
        service_id: service.id.clone(),
        ..Default::default()
    };
    let told = api.get_service(Request::new(get)).await.unwrap();
    assert_eq!(
        container(&told.into_inner().service.unwrap()).pull_options,
        None
    );
    // What comes back without them keeps them.
    let mut spec = service.spec.clone().unwrap();
    spec.annotations.as_mut().unwrap().labels = [("a".to_owned(), "b".to_owned())].into();
    let update = pb::UpdateServiceRequest {
        service_id: service.id.clone(),
        service_version: service.meta.unwrap().version,
        spec: Some(spec),
        ..Default::default()
    };
    api.update_service(Request::new(update)).await.unwrap();
    let view = store.view();
    let stored = view.services.values().next().unwrap();
    let stored = stored.spec.wire.task.clone().unwrap().runtime;
    let Some(pb::task_spec::Runtime::Container(stored)) = stored else {
        panic!("no container")
    };
    assert_eq!(stored.pull_options.unwrap().registry_auth, "secret");
}
