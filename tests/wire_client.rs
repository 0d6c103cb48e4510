//! A client made from the table of SwarmKit's wire alone drives a manager over its control socket.
//!
//! Nothing of our model or generated code is used for what goes over the wire: messages are built,
//! encoded and decoded here, by the rows of `proto/tests/swarmkit-v1.tsv`. So what passes is
//! understood by any client of SwarmKit's API.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod wire_client {
    pub(super) mod client;
    pub(super) mod message;
    pub(super) mod table;
}

use std::path::Path;
use std::time::Duration;

use clap::Parser as _;
use tokio_util::sync::CancellationToken;

use wire_client::client::Client;
use wire_client::message::{Message, Value};
use wire_client::table::Table;

/// How long a manager may take to come up, and a service to run.
const LIMIT: Duration = Duration::from_secs(60);

/// A manager in this process, with simulated containers.
struct Manager {
    directory: tempfile::TempDir,
    stop: CancellationToken,
    running: tokio::task::JoinSet<()>,
}

impl Manager {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name).display().to_string();
        let cli = swarmd::config::Cli::parse_from([
            "swarmd",
            "--executor",
            "simulated",
            "--state-dir",
            &at("state"),
            "--listen-control-api",
            &at("control.sock"),
            "--listen-remote-api",
            "127.0.0.1:0",
            "--hostname",
            "wire",
        ]);
        let config = cli.config().unwrap_or_else(|errors| panic!("{errors:?}"));
        let stop = CancellationToken::new();
        let cancel = stop.clone();
        let mut running = tokio::task::JoinSet::new();
        running.spawn(async move {
            swarmd::node::run(config, cancel)
                .await
                .unwrap_or_else(|error| panic!("the manager ended: {error}"));
        });
        Self {
            directory,
            stop,
            running,
        }
    }

    /// A connection, once the socket is there and the manager leads.
    fn client(&mut self) -> Client {
        let socket = self.directory.path().join("control.sock");
        eventually("a manager that is ready", async || {
            if let Some(ended) = self.running.try_join_next() {
                panic!("the manager ended: {ended:?}");
            }
            let client = leads(&socket).await;
            client.ok_or_else(|| "it does not lead".to_owned())
        })
    }

    async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.running.join_next().await {
            ended.unwrap();
        }
    }
}

/// The client sees the manager only by asking, as it would another process.
fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let runtime = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| {
        harness::lab::eventually(what, LIMIT, || runtime.block_on(look()))
    })
}

async fn leads(socket: &Path) -> Option<Client> {
    let mut client = Client::connect(socket).await?;
    let nodes = client.call("Control", "ListNodes", vec![]).await.ok()?;
    (!nodes.list("nodes").is_empty()).then_some(client)
}

fn text(value: &str) -> Value {
    Value::Text(value.to_owned())
}

fn service(image: &str, replicas: u64) -> Value {
    Value::message(vec![
        (
            "annotations",
            Value::message(vec![
                ("name", text("web")),
                (
                    "labels",
                    Value::Map([("tier".to_owned(), "front".to_owned())].into()),
                ),
            ]),
        ),
        (
            "task",
            Value::message(vec![(
                "container",
                Value::message(vec![
                    ("image", text(image)),
                    ("env", Value::List(vec![text("A=1"), text("B=2")])),
                    (
                        "stop_grace_period",
                        Value::message(vec![("seconds", Value::Number(3))]),
                    ),
                ]),
            )]),
        ),
        (
            "replicated",
            Value::message(vec![("replicas", Value::Number(replicas))]),
        ),
        (
            "update",
            Value::message(vec![
                ("parallelism", Value::Number(1)),
                ("max_failure_ratio", Value::Float(0.25)),
            ]),
        ),
    ])
}

/// Asks until the service has so many running tasks of this image.
fn until_running(client: &mut Client, id: &str, (image, count): (&str, usize)) {
    eventually(&format!("{count} running tasks of {image}"), async || {
        let filters = Value::message(vec![("service_ids", Value::List(vec![text(id)]))]);
        let answer = client
            .call("Control", "ListTasks", vec![("filters", filters)])
            .await
            .unwrap();
        let running = answer.list("tasks").iter().filter(|task| {
            let task = task.as_message();
            let container = task.get("spec").get("container");
            task.get("status").enumerator("state") == "RUNNING"
                && task.enumerator("desired_state") == "RUNNING"
                && container.text("image") == image
        });
        match running.count() {
            running if running == count => Ok(()),
            running => Err(format!("{running} run")),
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::too_many_lines, reason = "the life of one service, in order")]
async fn a_client_of_the_table_creates_lists_updates_and_removes_a_service() {
    let mut manager = Manager::start();
    let mut client = manager.client();

    let created = client
        .call(
            "Control",
            "CreateService",
            vec![("spec", service("web:1", 2))],
        )
        .await
        .unwrap();
    let created = created.get("service");
    let id = created.text("id");
    assert_eq!(id.len(), 25, "{id}");
    let spec = created.get("spec");
    assert_eq!(spec.get("annotations").text("name"), "web");
    assert_eq!(spec.get("annotations").map("labels")["tier"], "front");
    assert_eq!(spec.get("replicated").number("replicas"), 2);
    assert_eq!(spec.get("update").float("max_failure_ratio"), 0.25);
    until_running(&mut client, &id, ("web:1", 2));

    let again = client
        .call(
            "Control",
            "CreateService",
            vec![("spec", service("web:1", 2))],
        )
        .await
        .unwrap_err();
    assert_eq!(again.code(), tonic::Code::AlreadyExists, "{again}");

    let filters = Value::message(vec![("names", Value::List(vec![text("web")]))]);
    let listed = client
        .call("Control", "ListServices", vec![("filters", filters)])
        .await
        .unwrap();
    let [listed] = listed.list("services") else {
        panic!("{listed:?}");
    };
    assert_eq!(listed.as_message().text("id"), id);

    let read = client
        .call("Control", "GetService", vec![("service_id", text(&id))])
        .await
        .unwrap();
    let version = read
        .get("service")
        .get("meta")
        .get("version")
        .number("index");
    let update = |version: u64| {
        vec![
            ("service_id", text(&id)),
            (
                "service_version",
                Value::message(vec![("index", Value::Number(version))]),
            ),
            ("spec", service("web:2", 3)),
        ]
    };
    let stale = client
        .call("Control", "UpdateService", update(version - 1))
        .await;
    assert!(stale.unwrap_err().message().contains("out of sequence"));
    let updated = client
        .call("Control", "UpdateService", update(version))
        .await
        .unwrap();
    let updated = updated.get("service");
    let container = updated.get("spec").get("task").get("container");
    assert_eq!(container.text("image"), "web:2");
    assert_eq!(
        updated
            .get("previous_spec")
            .get("replicated")
            .number("replicas"),
        2
    );
    until_running(&mut client, &id, ("web:2", 3));

    client
        .call("Control", "RemoveService", vec![("service_id", text(&id))])
        .await
        .unwrap();
    let gone = client
        .call("Control", "GetService", vec![("service_id", text(&id))])
        .await
        .unwrap_err();
    assert_eq!(gone.code(), tonic::Code::NotFound, "{gone}");
    drop(client);
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_of_the_table_is_answered() {
    let mut manager = Manager::start();
    let mut client = manager.client();
    let table = Table::read();
    for method in table.methods("Control") {
        let answer = client.call("Control", &method, vec![]).await;
        let code = answer.map_or_else(|status| status.code(), |_| tonic::Code::Ok);
        let answered = matches!(
            code,
            tonic::Code::Ok
                | tonic::Code::InvalidArgument
                | tonic::Code::NotFound
                | tonic::Code::Unimplemented
        );
        assert!(answered, "{method}: {code:?}");
    }
    drop(client);
    manager.stop().await;
}

#[test]
fn what_is_encoded_by_the_table_can_be_decoded_by_it() {
    let table = Table::read();
    let Value::Message(fields) = service("web:1", 7) else {
        panic!("a message");
    };
    let encoded = table.encode("ServiceSpec", &fields);
    let decoded: Message = table.decode("ServiceSpec", &encoded);
    assert_eq!(decoded.get("replicated").number("replicas"), 7);
    assert_eq!(table.encode("ServiceSpec", &decoded.fields), encoded);
}
