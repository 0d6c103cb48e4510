//! Networks on containerd: published ports, the node's own network, a node in a namespace.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use agent_runtime::executor::{Controller, Observed, TaskOrder};
use swarm_proto::pb;

use crate::containerd::{container, finish};
use crate::lab::{self, Lab, Node};
use crate::suite::{Subject as _, running};

pub(crate) async fn run(lab: &Lab) {
    publishes_ports(lab).await;
    connects_what_was_made_but_not_connected(lab).await;
    gives_back_the_ports_of_what_vanished(lab).await;
    keeps_the_nodes_loopback_to_itself(lab).await;
    shares_the_nodes_network(lab).await;
    lives_in_a_network_namespace(lab).await;
}

fn port(target: u32, published: u32) -> pb::PortConfig {
    pb::PortConfig {
        name: "web".to_owned(),
        target_port: target,
        published_port: published,
        publish_mode: pb::port_config::PublishMode::Host.into(),
        ..Default::default()
    }
}

/// A port that nothing on this machine has.
fn free_port() -> u32 {
    let held = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    held.local_addr().unwrap().port().into()
}

/// A web server that answers with its host name.
fn server(node: &Node, id: &str, ports: Vec<pb::PortConfig>) -> TaskOrder {
    let script =
        "mkdir /www; hostname > /www/name; trap 'exit 0' TERM; httpd -f -h /www -p 80 & wait";
    let mut order = node.sh(id, script);
    Arc::make_mut(&mut order.task).endpoint = Some(pb::Endpoint {
        ports,
        ..Default::default()
    });
    order
}

/// Gives the container a network of the node's own: `bridge` or `host`.
fn attach(order: &mut TaskOrder, network: &str) {
    let spec = Arc::make_mut(&mut order.task).spec.as_mut().unwrap();
    spec.networks = vec![pb::NetworkAttachmentConfig {
        target: network.to_owned(),
        ..Default::default()
    }];
}

fn ask(address: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    stream.write_all(b"GET /name HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.lines().last().unwrap_or_default().to_owned())
}

async fn published(task: &mut Box<dyn Controller>) -> u32 {
    let Observed::Running(handle) = task.observe().await.unwrap() else {
        panic!("not running")
    };
    assert_eq!(handle.ports[0].name, "web");
    handle.ports[0].published_port
}

/// The port is taken: by another task, by a process.
async fn names_who_has_the_port(node: &Node, one: u32) {
    let executor = node.executor().await;
    let mut third = executor
        .controller(server(node, "third", vec![port(80, one)]))
        .await
        .unwrap();
    third.prepare().await.unwrap();
    let error = third.start().await.unwrap_err().to_string();
    assert!(error.contains("by another task"), "{error}");
    third.remove().await.unwrap();
    let held = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let taken = u32::from(held.local_addr().unwrap().port());
    let mut third = executor
        .controller(server(node, "third", vec![port(80, taken)]))
        .await
        .unwrap();
    third.prepare().await.unwrap();
    let error = third.start().await.unwrap_err().to_string();
    assert!(error.contains("by a process"), "{error}");
    third.remove().await.unwrap();
}

async fn publishes_ports(lab: &Lab) {
    let node = lab.subject("ports");
    let executor = node.executor().await;
    let mut first = running(
        &executor,
        server(&node, "server-one-long-name", vec![port(80, 0)]),
    )
    .await;
    let one = published(&mut first).await;
    let two = free_port();
    let mut second = running(
        &executor,
        server(&node, "other-server-name", vec![port(80, two)]),
    )
    .await;
    assert_eq!(published(&mut second).await, two);
    let mut addresses = vec!["127.0.0.1".to_owned()];
    let probe = UdpSocket::bind("0.0.0.0:0").unwrap();
    if probe.connect("192.0.2.1:9").is_ok() {
        addresses.push(probe.local_addr().unwrap().ip().to_string());
    }
    for address in &addresses {
        lab::until("first answers", || {
            ask(&format!("{address}:{one}")).is_ok_and(|name| name == "server-one-l")
        });
        lab::until("second answers", || {
            ask(&format!("{address}:{two}")).is_ok_and(|name| name == "other-server")
        });
    }
    // From container to container, by the node's address.
    if let Some(address) = addresses.get(1) {
        let mut order = node.sh(
            "client",
            &format!("printf 'GET /name HTTP/1.0\r\n\r\n' | nc -w 5 {address} {one} | tail -n 1"),
        );
        attach(&mut order, "bridge");
        let (exit, text) = finish(&node, order).await;
        assert_eq!((exit.code, text.trim()), (0, "server-one-l"));
    }
    names_who_has_the_port(&node, one).await;
    // A new executor knows ports and addresses again, and takes them back.
    drop((first, second, executor));
    let executor = node.executor().await;
    assert_eq!(ask(&format!("127.0.0.1:{one}")).unwrap(), "server-one-l");
    let order = server(&node, "server-one-long-name", vec![port(80, 0)]);
    let mut first = executor.controller(order).await.unwrap();
    assert_eq!(published(&mut first).await, one);
    first.shutdown().await.unwrap();
    assert!(ask(&format!("127.0.0.1:{one}")).is_err());
    assert_eq!(ask(&format!("127.0.0.1:{two}")).unwrap(), "other-server");
    first.remove().await.unwrap();
    executor.purge().await.unwrap();
}

/// swarmd ended after a container's process was made, and before its links were.
async fn connects_what_was_made_but_not_connected(lab: &Lab) {
    let node = lab.subject("ports");
    let order = || server(&node, "unconnected", vec![port(80, 0)]);
    let mut task = node.executor().await.controller(order()).await.unwrap();
    task.prepare().await.unwrap();
    drop(task);
    for link in node.links() {
        lab::run(Command::new("ip").args(["link", "del", &link]));
    }
    let executor = node.executor().await;
    let mut task = running(&executor, order()).await;
    let at = format!("127.0.0.1:{}", published(&mut task).await);
    lab::until("it answers", || {
        ask(&at).is_ok_and(|name| name == "unconnected")
    });
    // Again with everything in place, as when only the record of READY is missing.
    let order = || server(&node, "connected", vec![port(80, 0)]);
    let mut task = executor.controller(order()).await.unwrap();
    task.prepare().await.unwrap();
    let mut task = running(&executor, order()).await;
    let at = format!("127.0.0.1:{}", published(&mut task).await);
    lab::until("it answers", || {
        ask(&at).is_ok_and(|name| name == "connected")
    });
    executor.purge().await.unwrap();
}

/// Removed behind swarmd's back, or lost with a restart of the host: the port is free again.
async fn gives_back_the_ports_of_what_vanished(lab: &Lab) {
    let node = lab.subject("ports");
    let one = free_port();
    let executor = node.executor().await;
    let vanishes = |id: &str| lab.ctr(&node, &["task", "rm", "--force", id]);
    let mut first = running(&executor, server(&node, "first", vec![port(80, one)])).await;
    vanishes("first");
    assert_eq!(first.observe().await.unwrap(), Observed::Absent);
    let second = running(&executor, server(&node, "second", vec![port(80, one)])).await;
    vanishes("second");
    // To this one it is news from the start.
    drop((first, second, executor));
    let executor = node.executor().await;
    let mut third = running(&executor, server(&node, "third", vec![port(80, one)])).await;
    lab::until("third answers", || {
        ask(&format!("127.0.0.1:{one}")).is_ok_and(|name| name == "third")
    });
    vanishes("third");
    third.shutdown().await.unwrap();
    let fourth = running(&executor, server(&node, "fourth", vec![port(80, one)])).await;
    lab::until("fourth answers", || {
        ask(&format!("127.0.0.1:{one}")).is_ok_and(|name| name == "fourth")
    });
    third.remove().await.unwrap();
    for id in ["first", "second"] {
        executor.discard(id).await.unwrap();
    }
    assert_eq!(
        ask(&format!("127.0.0.1:{one}")).unwrap(),
        "fourth",
        "who is gone takes no port from who is there"
    );
    drop(fourth);
    executor.purge().await.unwrap();
}

/// The node's bridge routes loopback addresses, so a container that may set routes sends to them.
async fn keeps_the_nodes_loopback_to_itself(lab: &Lab) {
    let node = lab.subject("ports");
    let local = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = local.local_addr().unwrap().port();
    let script = format!(
        "set -- $(ip route | grep default); ip addr flush dev lo; ip route add 127.0.0.1/32 via $3 && \
         echo routed; busybox timeout 5 nc -w 2 127.0.0.1 {at} < /dev/null; true"
    );
    let mut order = node.sh("intruder", &script);
    let spec = container(&mut order);
    spec.capability_add = vec!["NET_ADMIN".to_owned()];
    let routes = "net.ipv4.conf.all.route_localnet".to_owned();
    spec.sysctls.insert(routes, "1".to_owned());
    attach(&mut order, "bridge");
    let (_, text) = finish(&node, order).await;
    assert_eq!(text, "routed\n");
    local.set_nonblocking(true).unwrap();
    let error = local.accept().expect_err("nobody came in");
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    node.executor().await.purge().await.unwrap();
}

async fn shares_the_nodes_network(lab: &Lab) {
    let node = lab.subject("stale");
    let mut order = node.sh("own", "ls /sys/class/net");
    attach(&mut order, "host");
    let (exit, text) = finish(&node, order).await;
    assert_eq!(exit.code, 0);
    let own = fs::read_dir("/sys/class/net").unwrap().flatten();
    for link in own.map(|link| link.file_name().into_string().unwrap()) {
        // Bridges and pairs of other tests come and go.
        let steady = link == "lo" || link.starts_with("eth");
        assert!(
            !steady || text.lines().any(|line| line == link),
            "{link}: {text}"
        );
    }
    node.executor().await.purge().await.unwrap();
}

async fn lives_in_a_network_namespace(lab: &Lab) {
    let name = lab.netns();
    lab::run(Command::new("ip").args(["netns", "add", &name]));
    let inside = |program: &str, args: &[&str]| {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{name}"))
            .arg(program)
            .args(args);
        lab::run(&mut command)
    };
    inside("ip", &["link", "set", "lo", "up"]);
    let mut node = lab.subject("hostnet");
    node.config.node_netns = Some(format!("/run/netns/{name}").into());
    let executor = node.executor().await;
    let mut order = server(&node, "shared", vec![port(80, 80)]);
    attach(&mut order, "host");
    let mut shared = running(&executor, order).await;
    assert_eq!(published(&mut shared).await, 80);
    let mut bridged = running(&executor, server(&node, "bridged", vec![port(80, 8080)])).await;
    assert_eq!(published(&mut bridged).await, 8080);
    // In the network of the node also its name.
    for (port, host) in [(80, "node"), (8080, "bridged")] {
        lab::until("answers inside", || {
            let ask =
                format!("printf 'GET /name HTTP/1.0\r\n\r\n' | busybox nc -w 3 127.0.0.1 {port}");
            let mut command = Command::new("nsenter");
            command
                .arg(format!("--net=/run/netns/{name}"))
                .args(["sh", "-c", &ask]);
            let output = command.output().unwrap();
            String::from_utf8_lossy(&output.stdout).lines().last() == Some(host)
        });
    }
    assert!(
        ask("127.0.0.1:8080").is_err(),
        "the node's ports are its namespace's"
    );
    executor.purge().await.unwrap();
    assert_eq!(inside("nft", &["list", "tables"]), "");
    assert_eq!(
        inside("ip", &["-o", "link"]).lines().count(),
        1,
        "only lo is left"
    );
    lab::run(Command::new("ip").args(["netns", "del", &name]));
}
