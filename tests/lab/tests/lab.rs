//! The lab itself, on real containerd and registry: what it builds works, and goes without a trace.
//!
//! Needs root and the web server's static binary (`make image`), named by WEB_BIN.

use std::net::TcpStream;
use std::time::Duration;

use lab::lab::available;
use lab::{Lab, eventually, http, sweep};

/// How long a container may take to start or end.
const LIMIT: Duration = Duration::from_secs(30);

fn get(address: &str, path: &str) -> Result<String, String> {
    let address = address
        .parse()
        .map_err(|error| format!("{address}: {error}"))?;
    http::get(address, path)
        .map(|(_, text)| text)
        .map_err(|error| error.to_string())
}

#[test]
fn containerd_runs_the_example_image_on_a_host_and_nothing_is_left() {
    if !available("the lab's own test on containerd") {
        return;
    }
    let site;
    {
        let mut lab = Lab::new().unwrap();
        site = lab.site.clone();
        let host = lab.host("n1").unwrap();
        let image = lab.push_web().unwrap();
        let netns = format!("network:{}", host.netns_path().display());
        let ctr = |arguments: &[&str]| lab.containerd.ctr(&host.namespace, arguments);
        ctr(&["images", "pull", "--plain-http", &image]).unwrap();
        ctr(&[
            "run",
            "-d",
            "--with-ns",
            &netns,
            "--env",
            "TASK=web.1",
            &image,
            "c1",
        ])
        .unwrap();
        let address = format!("{}:8080", host.address);
        let text = eventually("answer of the web server", LIMIT, || get(&address, "/"));
        assert!(
            text.contains("task: web.1\n") && text.contains("client: "),
            "{text}"
        );
        assert_eq!(get(&address, "/bytes?n=100000").unwrap().len(), 100_000);
        assert!(lab.held(&host).unwrap().len() >= 3, "{:?}", lab.held(&host));

        // It is PID 1 of its container, and handles SIGTERM all the same.
        ctr(&["tasks", "kill", "-s", "SIGTERM", "c1"]).unwrap();
        eventually("end of the web server", LIMIT, || {
            let listed = ctr(&["tasks", "ls"]).map_err(|error| error.to_string())?;
            if listed.contains("STOPPED") {
                Ok(())
            } else {
                Err(listed)
            }
        });
        let ended = ctr(&["tasks", "delete", "c1"]);
        assert!(ended.is_ok(), "exit code 0 was expected: {ended:?}");

        // Left running, for the sweep to find.
        ctr(&["run", "-d", "--with-ns", &netns, &image, "c2"]).unwrap();
        host.cut().unwrap();
        assert!(
            TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_millis(300))
                .is_err()
        );
        host.mend().unwrap();
        eventually("answer after the cable is mended", LIMIT, || {
            get(&address, "/health")
        });
        assert!(!sweep::left(&site).unwrap().is_empty());
    }
    assert_eq!(sweep::left(&site).unwrap(), Vec::<String>::new());
}

#[test]
fn containerd_registry_serves_https_with_the_lab_s_own_ca() {
    if !available("the lab's own test of the registry") {
        return;
    }
    let mut lab = Lab::new().unwrap();
    lab.push_web().unwrap();
    lab.registry.start_https().unwrap();
    let host = lab.host("n1").unwrap();
    let image = format!("{}/example/web:1", lab.registry.https());
    let directory = lab.site.run().join("hosts");
    let certificates = directory.join(lab.registry.https());
    std::fs::create_dir_all(&certificates).unwrap();
    let text = format!(
        "server = \"https://{}\"\n[host.\"https://{0}\"]\n  ca = \"{}\"\n",
        lab.registry.https(),
        lab.registry.ca_certificate().display()
    );
    std::fs::write(certificates.join("hosts.toml"), text).unwrap();
    let directory = directory.to_string_lossy().into_owned();
    lab.containerd
        .ctr(
            &host.namespace,
            &["images", "pull", "--hosts-dir", &directory, &image],
        )
        .unwrap();
}
