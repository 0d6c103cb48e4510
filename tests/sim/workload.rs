//! What operators and fate do to a cluster, and the calm after it.

use std::sync::Arc;
use std::time::Duration;

use swarm_proto::id::{NodeId, ServiceId, TaskId};
use swarm_proto::pb;
use swarm_proto::pb::node_spec::Availability;
use swarm_proto::time::Timestamp;
use swarmd::manager::store::{Change, Node, Service};

use super::host::Host;
use super::invariants;
use super::specs::{self, ZONES};
use super::world::{Due, Faults, World};

/// Services at a time.
const SERVICES_MAX: usize = 4;
/// Nodes at a time.
const NODES_MAX: usize = 8;
/// Nodes at the least.
const NODES_MIN: usize = 3;

/// Something that is done to the cluster.
type Operation = fn(&mut World);

/// All operations, with how often it is, compared with the others.
const OPERATIONS: [(u64, Operation); 24] = [
    (10, create_service),
    (8, update_service),
    (8, scale_service),
    (2, rollback_service),
    (3, remove_service),
    (4, remove_task),
    (4, drain),
    (5, activate),
    (1, pause),
    (4, relabel),
    (3, add_node),
    (2, remove_node),
    (6, kill_daemon),
    (8, start_daemon),
    (2, power_cut),
    (5, cut_off),
    (6, reconnect),
    (2, stop_runtime),
    (4, start_runtime),
    (3, change_leader),
    (1, keep_history),
    (2, resize_node),
    (5, kill_container),
    (4, weather),
];

impl World {
    /// A small cluster whose nodes have just been switched on.
    pub fn found(&mut self) {
        self.commit(
            "api",
            self.now,
            vec![Change::CreateCluster(Arc::new(specs::cluster()))],
        );
        self.lead(0);
        let nodes = NODES_MIN as u64 + self.random.below(4);
        for _ in 0..nodes {
            add_node(self);
        }
        for _ in 0..2 {
            create_service(self);
        }
        weather(self);
    }

    /// Does something, and lets time pass.
    pub fn step(&mut self) {
        let total = OPERATIONS.iter().map(|(weight, _)| weight).sum();
        let mut at = self.random.below(total);
        for (weight, operation) in OPERATIONS {
            if at < weight {
                operation(self);
                break;
            }
            at -= weight;
        }
        let time = if self.random.per_mille(300) {
            self.random.millis(0, 50)
        } else {
            self.random.millis(50, 4_000)
        };
        self.run_for(time);
    }

    /// All faults end: nodes are up, reachable and in use, and services ask for what there is.
    pub fn calm_down(&mut self) {
        self.say("calm".to_owned());
        self.faults = Faults::default();
        if self.leader.is_none() {
            self.at(self.now, Due::Lead(self.terms));
        }
        let nodes: Vec<NodeId> = self.hosts.keys().copied().collect();
        for id in nodes {
            let known = self.log.state.nodes.contains_key(&id);
            if !known {
                self.kill_daemon(id);
                self.hosts.remove(&id);
                continue;
            }
            if let Some(host) = self.hosts.get_mut(&id) {
                host.cut_off = false;
                host.description = specs::full_size(host.description.clone());
            }
            self.set_runtime(id, false);
            self.kill_daemon(id);
            self.start_daemon(id);
        }
        // Containers that were to end by themselves have done so.
        self.run_for(Duration::from_secs(60));
        let nodes: Vec<Arc<Node>> = self.log.state.nodes.values().cloned().collect();
        for node in nodes {
            if node.availability != Availability::Active {
                set_availability(self, &node, Availability::Active);
            }
        }
        let services = invariants::service_ids(&self.log.state);
        for (number, id) in (0..).zip(services) {
            let Some(service) = self.log.state.services.get(&id).cloned() else {
                continue;
            };
            let spec = service.spec.wire.as_ref().clone();
            let spec = specs::calmed(&self.log.state, spec, number);
            update(self, &service, spec);
        }
    }
}

fn a_service(world: &mut World) -> Option<Arc<Service>> {
    let services = invariants::service_ids(&world.log.state);
    let id = world.random.any(services)?;
    world.log.state.services.get(&id).cloned()
}

fn a_node(world: &mut World, fits: impl Fn(&Node) -> bool) -> Option<Arc<Node>> {
    let nodes = world.log.state.nodes.values();
    let nodes: Vec<Arc<Node>> = nodes.filter(|node| fits(node)).cloned().collect();
    world.random.any(nodes)
}

fn a_host(world: &mut World, fits: impl Fn(&Host) -> bool) -> Option<NodeId> {
    let hosts = world.hosts.values().filter(|host| fits(host));
    let hosts: Vec<NodeId> = hosts.map(|host| host.id).collect();
    world.random.any(hosts)
}

fn create_service(world: &mut World) {
    let services = invariants::service_ids(&world.log.state);
    if services.len() >= SERVICES_MAX {
        return;
    }
    let name = format!("s{}", world.random.below(6));
    let spec = specs::parsed(specs::service(&mut world.random, &name));
    let id = ServiceId::from_raw(world.random.id());
    world.write(vec![Change::CreateService { id, spec }]);
}

fn update(world: &mut World, service: &Service, spec: pb::ServiceSpec) {
    // Now and then by somebody who read it too long ago.
    let stale = world.random.per_mille(20) && world.faults.exiting > 0;
    let change = Change::UpdateService {
        id: service.id,
        expected: service.meta.version - u64::from(stale),
        spec: specs::parsed(spec),
    };
    world.write(vec![change]);
}

fn update_service(world: &mut World) {
    let Some(service) = a_service(world) else {
        return;
    };
    let mut spec = specs::service(&mut world.random, &service.spec.name);
    spec.mode.clone_from(&service.spec.wire.mode);
    update(world, &service, spec);
}

fn scale_service(world: &mut World) {
    let Some(service) = a_service(world) else {
        return;
    };
    let mut spec = service.spec.wire.as_ref().clone();
    spec.mode = Some(specs::replicated(world.random.below(13)));
    update(world, &service, spec);
}

fn rollback_service(world: &mut World) {
    let Some(service) = a_service(world) else {
        return;
    };
    world.write(vec![Change::RollbackService {
        id: service.id,
        expected: service.meta.version,
        message: "manually requested rollback".to_owned(),
        swap: true,
    }]);
}

fn remove_service(world: &mut World) {
    let Some(service) = a_service(world) else {
        return;
    };
    world.write(vec![Change::RemoveService { id: service.id }]);
}

fn remove_task(world: &mut World) {
    let tasks: Vec<TaskId> = world.log.state.tasks.keys().copied().collect();
    let Some(task) = world.random.any(tasks) else {
        return;
    };
    world.write(vec![Change::DeleteTasks { tasks: vec![task] }]);
}

fn set_availability(world: &mut World, node: &Node, availability: Availability) {
    change_node(world, node, node.annotations.clone(), availability);
}

fn change_node(
    world: &mut World,
    node: &Node,
    annotations: pb::Annotations,
    availability: Availability,
) {
    world.write(vec![Change::UpdateNode {
        id: node.id,
        expected: node.meta.version,
        annotations,
        desired_role: node.desired_role,
        membership: node.membership,
        availability,
        addresses: Vec::new(),
        give_up: Vec::new(),
    }]);
}

fn drain(world: &mut World) {
    if let Some(node) = a_node(world, |node| node.availability == Availability::Active) {
        set_availability(world, &node, Availability::Drain);
    }
}

fn activate(world: &mut World) {
    if let Some(node) = a_node(world, |node| node.availability != Availability::Active) {
        set_availability(world, &node, Availability::Active);
    }
}

fn pause(world: &mut World) {
    if let Some(node) = a_node(world, |node| node.availability == Availability::Active) {
        set_availability(world, &node, Availability::Pause);
    }
}

fn relabel(world: &mut World) {
    if let Some(node) = a_node(world, |_| true) {
        let annotations = specs::annotations(world.random.pick(&ZONES));
        change_node(world, &node, annotations, node.availability);
    }
}

fn add_node(world: &mut World) {
    if world.hosts.len() >= NODES_MAX || world.leader.is_none() {
        return;
    }
    let id = NodeId::from_raw(world.random.id());
    let zone = world.random.pick(&ZONES);
    let name = format!("n{}", world.number());
    let description = specs::description(&mut world.random, &name);
    world.hosts.insert(id, Host::new(id, &name, description));
    world.write(vec![Change::CreateNode(Arc::new(specs::node(id, zone)))]);
    world.start_daemon(id);
}

fn remove_node(world: &mut World) {
    if world.log.state.nodes.len() <= NODES_MIN {
        return;
    }
    let Some(node) = a_node(world, |_| true) else {
        return;
    };
    world.write(vec![Change::RemoveNode {
        id: node.id,
        force: true,
        refused_until: Timestamp::MAX,
    }]);
}

fn kill_daemon(world: &mut World) {
    if let Some(id) = a_host(world, Host::is_up) {
        world.kill_daemon(id);
    }
}

fn start_daemon(world: &mut World) {
    if let Some(id) = a_host(world, |host| !host.is_up()) {
        if world.random.per_mille(50) {
            world.lose_disk(id);
        }
        world.start_daemon(id);
    }
}

fn power_cut(world: &mut World) {
    if let Some(id) = a_host(world, |_| true) {
        world.power_cut(id);
    }
}

fn cut_off(world: &mut World) {
    set_cut_off(world, true);
}

fn reconnect(world: &mut World) {
    set_cut_off(world, false);
}

fn set_cut_off(world: &mut World, cut_off: bool) {
    let Some(id) = a_host(world, |host| host.cut_off != cut_off) else {
        return;
    };
    world.say(format!("{id} cut off: {cut_off}"));
    if let Some(host) = world.hosts.get_mut(&id) {
        host.cut_off = cut_off;
    }
}

fn stop_runtime(world: &mut World) {
    if let Some(id) = a_host(world, |host| !host.runtime_away) {
        world.set_runtime(id, true);
    }
}

fn start_runtime(world: &mut World) {
    if let Some(id) = a_host(world, |host| host.runtime_away) {
        world.set_runtime(id, false);
    }
}

fn change_leader(world: &mut World) {
    world.end_term();
}

fn keep_history(world: &mut World) {
    let Some(cluster) = world.log.state.cluster.clone() else {
        return;
    };
    let mut cluster = cluster.as_ref().clone();
    let orchestration = cluster.spec.orchestration.get_or_insert_default();
    orchestration.task_history_retention_limit = world.random.pick(&[0, 1, 2, 5]);
    world.write(vec![Change::UpdateCluster(Arc::new(cluster))]);
}

fn resize_node(world: &mut World) {
    let Some(id) = a_host(world, |_| true) else {
        return;
    };
    if let Some(host) = world.hosts.get(&id) {
        let description = host.description.clone();
        let description = specs::resized(&mut world.random, description);
        if let Some(host) = world.hosts.get_mut(&id) {
            host.description = description;
        }
    }
    // It says so when it registers again.
    world.kill_daemon(id);
    world.start_daemon(id);
}

fn kill_container(world: &mut World) {
    let running = world.hosts.values();
    let running: Vec<(NodeId, TaskId)> = running
        .flat_map(|host| host.running().map(|task| (host.id, task)))
        .collect();
    if let Some((node, task)) = world.random.any(running) {
        world.kill_container(node, task);
    }
}

fn weather(world: &mut World) {
    let fair = world.random.per_mille(500);
    let random = &mut world.random;
    let mut up_to = |most: u64| if fair { 0 } else { random.below(most) };
    world.faults = Faults {
        lost: up_to(60),
        doubled: up_to(60),
        late: up_to(150),
        reordered: up_to(30),
        failing: up_to(200),
        temporary: up_to(150),
        exiting: up_to(400),
    };
}
