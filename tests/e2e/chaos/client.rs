//! A client of all three managers that remembers what it was told.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use harness::lab::eventually;
use rand::RngExt as _;
use rand::rngs::StdRng;
use swarm_proto::pb;
use swarm_proto::pb::control_client::ControlClient;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// How long the client waits for an answer before it asks another manager.
const PATIENCE: Duration = Duration::from_secs(3);
/// Time after which an unaltered cluster has answered.
const LIMIT: Duration = Duration::from_secs(60);
/// Most services at a time, and replicas of one.
const SERVICES: usize = 6;
const REPLICAS: u64 = 4;
const LABEL: &str = "count";

/// What the client has seen.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) acknowledged: u64,
    pub(super) checked: u64,
    pub(super) lost: u64,
    pub(super) violations: Vec<String>,
    /// Errors by code.
    pub(super) codes: BTreeMap<String, u64>,
}

impl Tally {
    pub(super) fn errors(&self) -> u64 {
        self.codes.values().sum()
    }
}

/// What a service may be like, as far as the client knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Content {
    replicas: u64,
    count: u64,
}

/// A service that the client has created, or may have.
#[derive(Debug)]
struct Known {
    id: String,
    /// What was acknowledged last, and what was asked for since without an answer.
    possible: Vec<Content>,
    /// Its removal was asked for.
    removing: bool,
}

impl Known {
    /// What was seen stands: it does not go back to what was before. False where that can't be.
    fn learn(&mut self, found: Option<&Content>) -> bool {
        let Some(content) = found else {
            return self.removing;
        };
        let at = self
            .possible
            .iter()
            .position(|possible| possible == content);
        match at {
            // Each change names the version it was made from: what was asked for before can't happen any more.
            Some(at) => self.possible.drain(..at),
            None => return false,
        };
        true
    }
}

pub(super) struct Client {
    runtime: Runtime,
    managers: [PathBuf; 3],
    open: BTreeMap<usize, ControlClient<Channel>>,
    image: String,
    random: StdRng,
    services: BTreeMap<String, Known>,
    /// Removed for good.
    gone: Vec<String>,
    /// Asked for without an answer: they may be there, or come about for some seconds yet.
    unsure: Vec<String>,
    number: u64,
    tally: Tally,
}

impl Client {
    pub(super) fn new(managers: [PathBuf; 3], image: String, random: StdRng) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        Self {
            runtime,
            managers,
            open: BTreeMap::new(),
            image,
            random,
            services: BTreeMap::new(),
            gone: Vec::new(),
            unsure: Vec::new(),
            number: 0,
            tally: Tally::default(),
        }
    }

    /// Works until told that it is over.
    pub(super) fn run(mut self, over: &AtomicBool) -> (Self, Tally) {
        while !over.load(Ordering::Relaxed) {
            self.step();
        }
        let tally = std::mem::take(&mut self.tally);
        (self, tally)
    }

    /// Services as they are now, with their replicas: all are known for sure once [`Self::check_all`] has returned.
    pub(super) fn services(&self) -> impl Iterator<Item = (&str, usize)> {
        let services = self.services.iter();
        services.map(|(name, known)| {
            let content = known.possible.last().unwrap();
            (name.as_str(), usize::try_from(content.replicas).unwrap())
        })
    }

    /// Asks for everything once more; nothing is under way any longer.
    pub(super) fn check_all(&mut self) {
        let names: Vec<String> = self.services.keys().cloned().collect();
        for name in names {
            let found = eventually("an answer", LIMIT, || {
                let found = self.look(&name);
                found.map_err(|status| status.to_string())
            });
            let known = self.services.get_mut(&name).unwrap();
            match found {
                Some(content) => {
                    assert!(
                        known.possible.contains(&content),
                        "{name}: {content:?}, {known:?}"
                    );
                    known.possible = vec![content];
                }
                None => {
                    assert!(known.removing, "{name} is gone: {known:?}");
                    self.services.remove(&name);
                }
            }
        }
        for name in std::mem::take(&mut self.unsure) {
            let found = eventually("an answer", LIMIT, || {
                self.find(&name).map_err(|status| status.to_string())
            });
            if let Some(service) = found {
                eventually("its removal", LIMIT, || {
                    self.remove_by(&service.id)
                        .map_err(|status| status.to_string())
                });
            }
        }
        for name in std::mem::take(&mut self.gone) {
            let found = eventually("an answer", LIMIT, || {
                self.find(&name).map_err(|status| status.to_string())
            });
            assert!(
                found.is_none(),
                "{name} was removed, and is there: {found:?}"
            );
        }
    }

    fn step(&mut self) {
        let names: Vec<String> = self.services.keys().cloned().collect();
        let name = match names.len() {
            0 => None,
            count => names.get(self.random.random_range(0..count)).cloned(),
        };
        let what = self.random.random_range(0..20_u32);
        let done = match (what, name) {
            (_, None) => self.create(),
            (0, Some(_)) if names.len() < SERVICES => self.create(),
            (0 | 1, Some(name)) => self.remove(&name),
            (2, Some(name)) => {
                let replicas = self.random.random_range(0..=REPLICAS);
                self.change(&name, |content| content.replicas = replicas)
            }
            (3..=6, Some(name)) => {
                self.number += 1;
                let number = self.number;
                self.change(&name, |content| content.count = number)
            }
            (_, Some(name)) => self.check(&name),
        };
        if let Err(status) = done {
            *self
                .tally
                .codes
                .entry(format!("{:?}", status.code()))
                .or_default() += 1;
        }
    }

    fn create(&mut self) -> Result<(), Status> {
        self.number += 1;
        let name = format!("s{}", self.number);
        let content = Content {
            replicas: self.random.random_range(0..=REPLICAS),
            count: self.number,
        };
        let request = pb::CreateServiceRequest {
            spec: Some(spec(&name, &self.image, content)),
            ..Default::default()
        };
        let created = self.ask(move |mut client| {
            let request = request.clone();
            async move { client.create_service(request).await }
        });
        match created {
            Ok(answer) => {
                let id = answer.service.unwrap_or_default().id;
                let known = Known {
                    id,
                    possible: vec![content],
                    removing: false,
                };
                self.services.insert(name, known);
                self.tally.acknowledged += 1;
                Ok(())
            }
            Err(status) => {
                self.unsure.push(name);
                Err(status)
            }
        }
    }

    fn change(&mut self, name: &str, change: impl Fn(&mut Content)) -> Result<(), Status> {
        if self.services.get(name).is_none_or(|known| known.removing) {
            return self.remove(name);
        }
        let Some(found) = self.find(name)? else {
            self.violation(format!("{name} is gone, and was acknowledged"));
            self.services.remove(name);
            return Ok(());
        };
        let mut content = content(&found);
        let known = self.services.get_mut(name).unwrap();
        if !known.learn(Some(&content)) {
            let text = format!("{name} is {content:?}, and known to be {known:?}");
            self.violation(text);
        }
        change(&mut content);
        let request = pb::UpdateServiceRequest {
            service_id: found.id.clone(),
            service_version: found.meta.and_then(|meta| meta.version),
            spec: Some(spec(name, &self.image, content)),
            ..Default::default()
        };
        let changed = self.ask(move |mut client| {
            let request = request.clone();
            async move { client.update_service(request).await }
        });
        let known = self.services.get_mut(name).unwrap();
        match changed {
            // What was asked for before named an older version: it can't happen any more.
            Ok(_) => {
                known.possible = vec![content];
                self.tally.acknowledged += 1;
                Ok(())
            }
            Err(status) if refused(&status) => Err(status),
            Err(status) => {
                known.possible.push(content);
                Err(status)
            }
        }
    }

    fn remove(&mut self, name: &str) -> Result<(), Status> {
        let known = self.services.get_mut(name).unwrap();
        known.removing = true;
        let id = known.id.clone();
        self.remove_by(&id)?;
        self.services.remove(name);
        self.gone.push(name.to_owned());
        Ok(())
    }

    fn remove_by(&mut self, id: &str) -> Result<(), Status> {
        let removed = self.ask(move |mut client| {
            let request = pb::RemoveServiceRequest {
                service_id: id.to_owned(),
            };
            async move { client.remove_service(request).await }
        });
        match removed {
            Ok(_) => {
                self.tally.acknowledged += 1;
                Ok(())
            }
            // An earlier try did it, without an answer.
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(status),
        }
    }

    fn check(&mut self, name: &str) -> Result<(), Status> {
        let found = self.look(name)?;
        self.tally.checked += 1;
        let known = self.services.get_mut(name).unwrap();
        if !known.learn(found.as_ref()) {
            let text = format!("{name} is {found:?}, and known to be {known:?}");
            self.violation(text);
        } else if found.is_none() {
            self.services.remove(name);
            self.gone.push(name.to_owned());
        }
        Ok(())
    }

    fn violation(&mut self, text: String) {
        self.tally.lost += 1;
        self.tally.violations.push(text);
    }

    fn look(&mut self, name: &str) -> Result<Option<Content>, Status> {
        Ok(self.find(name)?.as_ref().map(content))
    }

    fn find(&mut self, name: &str) -> Result<Option<pb::Service>, Status> {
        let filters = pb::list_services_request::Filters {
            names: vec![name.to_owned()],
            ..Default::default()
        };
        let listed = self.ask(move |mut client| {
            let request = pb::ListServicesRequest {
                filters: Some(filters.clone()),
            };
            async move { client.list_services(request).await }
        })?;
        Ok(listed.services.into_iter().next())
    }

    /// Asks one of the managers, once.
    fn ask<A, F>(&mut self, request: impl Fn(ControlClient<Channel>) -> F) -> Result<A, Status>
    where
        F: Future<Output = Result<tonic::Response<A>, Status>>,
    {
        let at = self.random.random_range(0..self.managers.len());
        let socket = self.managers.get(at).unwrap();
        let known = self.open.remove(&at);
        let (answer, client) = self.runtime.block_on(async {
            let client = match known {
                Some(client) => client,
                None => match connect(socket).await {
                    Ok(client) => client,
                    Err(status) => return (Err(status), None),
                },
            };
            let answer = tokio::time::timeout(PATIENCE, request(client.clone())).await;
            match answer {
                Ok(answer) => (answer.map(tonic::Response::into_inner), Some(client)),
                Err(_) => (Err(Status::deadline_exceeded("no answer")), None),
            }
        });
        if let Some(client) = client {
            self.open.insert(at, client);
        }
        answer
    }
}

async fn connect(socket: &std::path::Path) -> Result<ControlClient<Channel>, Status> {
    let address = format!("unix://{}", socket.display());
    let endpoint = Endpoint::from_shared(address).unwrap();
    let channel = tokio::time::timeout(PATIENCE, endpoint.connect()).await;
    match channel {
        Ok(Ok(channel)) => Ok(ControlClient::new(channel)),
        Ok(Err(error)) => Err(Status::unavailable(error.to_string())),
        Err(_) => Err(Status::deadline_exceeded("no connection")),
    }
}

/// Nothing was changed, for sure.
fn refused(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::InvalidArgument | Code::FailedPrecondition | Code::NotFound | Code::AlreadyExists
    )
}

fn content(service: &pb::Service) -> Content {
    let spec = service.spec.clone().unwrap_or_default();
    let labels = spec.annotations.unwrap_or_default().labels;
    let replicas = match spec.mode {
        Some(pb::service_spec::Mode::Replicated(replicated)) => replicated.replicas,
        Some(_) | None => 0,
    };
    Content {
        replicas,
        count: labels.get(LABEL).and_then(|n| n.parse().ok()).unwrap_or(0),
    }
}

fn spec(name: &str, image: &str, content: Content) -> pb::ServiceSpec {
    let container = pb::ContainerSpec {
        image: image.to_owned(),
        stop_grace_period: Some(prost_types::Duration {
            seconds: 2,
            nanos: 0,
        }),
        ..Default::default()
    };
    let task = pb::TaskSpec {
        runtime: Some(pb::task_spec::Runtime::Container(container)),
        restart: Some(pb::RestartPolicy {
            delay: Some(prost_types::Duration {
                seconds: 0,
                nanos: 100_000_000,
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let replicated = pb::ReplicatedService {
        replicas: content.replicas,
    };
    pb::ServiceSpec {
        annotations: Some(pb::Annotations {
            name: name.to_owned(),
            labels: [(LABEL.to_owned(), content.count.to_string())].into(),
            ..Default::default()
        }),
        task: Some(task),
        mode: Some(pb::service_spec::Mode::Replicated(replicated)),
        ..Default::default()
    }
}
