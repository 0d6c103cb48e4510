//! A cluster under test: swarmd processes on the hosts of a lab, and questions to it in swarmctl's words.
//!
//! Everything panics with what it saw instead: a helper's failure is the test's.
#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "fails the test that uses it"
)]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lab::node::{Options, REMOTE_API_PORT};
use lab::{Lab, Node, Output, eventually, http};

/// How long a cluster may take to do what it was told.
pub const LIMIT: Duration = Duration::from_secs(60);

/// A manager called n1 and workers called n2, n3, …
#[derive(Debug)]
pub struct Cluster {
    // The nodes are dropped, that is killed, before the lab is swept.
    nodes: BTreeMap<String, Node>,
    /// Where it runs.
    pub lab: Lab,
    /// The example image in the lab's registry.
    pub image: String,
}

/// A task, as `task ls` shows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Task {
    /// Position among the service's tasks.
    pub slot: String,
    /// Id.
    pub id: String,
    /// Host name of its node; empty before it has one.
    pub node: String,
    /// Lower case: `running`.
    pub state: String,
    /// Lower case: `running`.
    pub desired: String,
    /// The container's id; empty before it has one.
    pub container: String,
    /// What went wrong, or why it is not placed.
    pub error: String,
}

const TASK_FORMAT: &str =
    "{{.Slot}}|{{.ID}}|{{.Node}}|{{.State}}|{{.DesiredState}}|{{.ContainerID}}|{{.Error}}";

impl Cluster {
    /// A manager on n1 and so many workers, all READY.
    #[track_caller]
    pub fn start(workers: usize) -> Self {
        let mut cluster = Self::found(|lab| lab.options());
        for number in 0..workers {
            cluster.add_worker(&format!("n{}", number + 2));
        }
        cluster.wait_ready(workers + 1);
        cluster
    }

    /// A manager on n1 with these options.
    #[track_caller]
    pub fn found(options: impl FnOnce(&mut Lab) -> Options) -> Self {
        let mut lab = Lab::new().unwrap_or_else(|error| panic!("{}", error.chain()));
        let image = lab
            .push_web()
            .unwrap_or_else(|error| panic!("{}", error.chain()));
        let options = options(&mut lab);
        let manager = lab.node_with("n1", options).unwrap();
        let mut cluster = Self {
            lab,
            image,
            nodes: BTreeMap::from([("n1".to_owned(), manager)]),
        };
        cluster.node_mut("n1").wait_ready().unwrap();
        cluster
    }

    /// Starts a worker; returns before it has joined.
    #[track_caller]
    pub fn add_worker(&mut self, name: &str) {
        let join = Some((self.join_address(), self.token("worker")));
        let node = self.lab.node(name, join).unwrap();
        self.nodes.insert(name.to_owned(), node);
    }

    /// Starts a manager; returns before it has joined.
    #[track_caller]
    pub fn add_manager(&mut self, name: &str) {
        let join = Some((self.join_address(), self.token("manager")));
        let node = self.lab.node(name, join).unwrap();
        self.nodes.insert(name.to_owned(), node);
    }

    /// Starts a node with these options; returns before it has joined.
    #[track_caller]
    pub fn add_node(&mut self, name: &str, options: Options) {
        let node = self.lab.node_with(name, options).unwrap();
        self.nodes.insert(name.to_owned(), node);
    }

    /// Asks a port of a host over HTTP, from this machine; returns the body of a good answer.
    pub fn get(&self, name: &str, port: u16, path: &str) -> Result<String, String> {
        let address = SocketAddr::new(IpAddr::V4(self.node(name).host.address), port);
        match http::get(address, path) {
            Ok((200, text)) => Ok(text),
            Ok((status, text)) => Err(format!("{status} {text}")),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Starts a swarmd that is no member, with these options in place of the usual ones.
    #[track_caller]
    pub fn outsider(&mut self, name: &str, options: Options) -> Node {
        self.lab.node_with(name, options).unwrap()
    }

    /// Where workers join.
    pub fn join_address(&self) -> String {
        format!("{}:{REMOTE_API_PORT}", self.node("n1").host.address)
    }

    /// The join token of a role.
    #[track_caller]
    pub fn token(&self, role: &str) -> String {
        self.ctl(&["cluster", "join-token", "--quiet", role]).ok()
    }

    /// The node of that name.
    #[track_caller]
    pub fn node(&self, name: &str) -> &Node {
        self.nodes
            .get(name)
            .unwrap_or_else(|| panic!("no node {name}"))
    }

    /// The node of that name, to stop or start it.
    #[track_caller]
    pub fn node_mut(&mut self, name: &str) -> &mut Node {
        self.nodes
            .get_mut(name)
            .unwrap_or_else(|| panic!("no node {name}"))
    }

    /// Names of all nodes.
    pub fn names(&self) -> Vec<String> {
        self.nodes.keys().cloned().collect()
    }

    /// Runs swarmctl against the manager.
    #[track_caller]
    pub fn ctl(&self, arguments: &[&str]) -> Output {
        self.node("n1").ctl(arguments).unwrap()
    }

    /// Waits until exactly so many nodes are READY.
    #[track_caller]
    pub fn wait_ready(&self, count: usize) {
        eventually(&format!("{count} nodes READY"), LIMIT, || {
            let shown = self.ctl(&["node", "ls", "--format", "{{.Name}} {{.Status}}"]);
            let ready = shown
                .stdout
                .lines()
                .filter(|line| line.to_lowercase().ends_with(" ready"))
                .count();
            if ready == count {
                Ok(())
            } else {
                Err(format!("{}{}", shown.stdout, shown.stderr))
            }
        });
    }

    /// Creates a service of the example image and waits until it has converged.
    #[track_caller]
    pub fn create_web(&self, name: &str, replicas: usize, more: &[&str]) -> String {
        let replicas = replicas.to_string();
        let arguments = [
            "--replicas",
            &replicas,
            "--env",
            "TASK={{.Task.Name}}",
            "--env",
            "NODE={{.Node.Hostname}}",
        ];
        self.create(name, &self.image, &[&arguments[..], more].concat())
    }

    /// Creates a service.
    #[track_caller]
    pub fn create(&self, name: &str, image: &str, more: &[&str]) -> String {
        let arguments = ["service", "create", "--name", name, "--image", image];
        self.ctl(&[&arguments[..], more].concat()).ok()
    }

    /// Every task of a service, ended ones too, in the order of slots.
    #[track_caller]
    pub fn all_tasks(&self, service: &str) -> Vec<Task> {
        self.list_tasks(service)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    fn list_tasks(&self, service: &str) -> Result<Vec<Task>, String> {
        let filter = format!("service={service}");
        let shown = self.ctl(&[
            "task",
            "ls",
            "--all",
            "--no-trunc",
            "--filter",
            &filter,
            "--format",
            TASK_FORMAT,
        ]);
        if shown.code != 0 {
            return Err(shown.stderr);
        }
        let mut tasks: Vec<Task> = shown.stdout.lines().map(parse_task).collect();
        tasks.sort();
        Ok(tasks)
    }

    /// Running tasks of a service that are meant to run.
    #[track_caller]
    pub fn running(&self, service: &str) -> Vec<Task> {
        self.all_tasks(service)
            .into_iter()
            .filter(is_running)
            .collect()
    }

    /// Waits until exactly so many tasks run and no other is meant to; returns them.
    #[track_caller]
    pub fn wait_running(&self, service: &str, count: usize, limit: Duration) -> Vec<Task> {
        eventually(
            &format!("{count} running tasks of {service}"),
            limit,
            || {
                let tasks = self.list_tasks(service)?;
                let wanted = tasks
                    .iter()
                    .filter(|task| task.desired == "running")
                    .count();
                let running: Vec<Task> = tasks
                    .iter()
                    .filter(|task| is_running(task))
                    .cloned()
                    .collect();
                if running.len() == count && wanted == count {
                    Ok(running)
                } else {
                    Err(format!("{tasks:#?}"))
                }
            },
        )
    }

    /// Waits until containerd holds nothing of any host.
    #[track_caller]
    pub fn wait_nothing_held(&self) {
        for name in self.names() {
            self.wait_held_at_most(&name, 0);
        }
    }

    /// Waits until containerd holds at most so many things of a host.
    #[track_caller]
    pub fn wait_held_at_most(&self, name: &str, count: usize) {
        eventually(
            &format!("at most {count} things in containerd for {name}"),
            LIMIT,
            || {
                let held = self
                    .lab
                    .held(&self.node(name).host)
                    .map_err(|error| error.to_string())?;
                if held.len() <= count {
                    Ok(())
                } else {
                    Err(held.join(", "))
                }
            },
        );
    }

    /// Containers of a host with a running process, as containerd has them, with their process ids.
    #[track_caller]
    pub fn containers(&self, name: &str) -> BTreeMap<String, String> {
        let listed = self
            .lab
            .containerd
            .ctr(&self.node(name).host.namespace, &["tasks", "ls"])
            .unwrap();
        listed
            .lines()
            .filter(|line| line.trim_end().ends_with("RUNNING"))
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                Some((words.next()?.to_owned(), words.next()?.to_owned()))
            })
            .collect()
    }
}

fn is_running(task: &Task) -> bool {
    task.state == "running" && task.desired == "running"
}

fn parse_task(line: &str) -> Task {
    let mut fields = line.splitn(7, '|').map(str::to_owned);
    let mut field = || fields.next().unwrap_or_default();
    Task {
        slot: field(),
        id: field(),
        node: field(),
        state: field().to_lowercase(),
        desired: field().to_lowercase(),
        container: field(),
        error: field(),
    }
}
