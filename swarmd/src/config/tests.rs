//! The settings: sources, defaults, and every mistake at once.

use clap::Parser as _;

use super::*;

fn config(args: &[&str]) -> Result<Config, ConfigErrors> {
    let args = std::iter::once("swarmd").chain(args.iter().copied());
    Cli::try_parse_from(args).unwrap().config()
}

fn token() -> String {
    let root = crate::ca::RootDigest::of(b"a root certificate");
    JoinToken::generate(root).unwrap().reveal().to_string()
}

#[test]
fn lines_from_tutorials_work_as_typed() {
    let manager = config(&["--listen-remote-api", "0.0.0.0:4242"]).unwrap();
    assert_eq!(manager.listen_remote_api.port(), 4242);
    assert!(manager.join.is_none());
    let token = token();
    let worker = config(&["--join-addr", "10.0.0.1:4242", "--join-token", &token]).unwrap();
    assert_eq!(worker.join.unwrap().addrs, ["10.0.0.1:4242"]);
    let line = [
        "-d",
        "./node-1",
        "--listen-control-api",
        "./node-1/swarm.sock",
        "--hostname",
        "node-1",
    ];
    let node = config(&line).unwrap();
    assert_eq!(node.state_dir, PathBuf::from("./node-1"));
    assert_eq!(
        node.listen_control_api,
        PathBuf::from("./node-1/swarm.sock")
    );
    assert_eq!(node.hostname.as_deref(), Some("node-1"));
}

#[test]
fn defaults_are_swarmkits() {
    let config = config(&[]).unwrap();
    assert_eq!(config.state_dir, PathBuf::from("/var/lib/swarmd"));
    assert_eq!(config.listen_remote_api.to_string(), "0.0.0.0:4242");
    assert_eq!(
        config.listen_control_api,
        PathBuf::from("/var/run/swarmd.sock")
    );
    assert_eq!((config.heartbeat_ticks, config.election_ticks), (1, 10));
    assert_eq!(config.log_level, "info");
    assert_eq!(config.executor, ExecutorKind::Containerd);
}

#[test]
fn every_mistake_is_reported_at_once() {
    let wrong = [
        ("--listen-remote-api", "nowhere"),
        ("--executor", "docker"),
        ("--availability", "lazy"),
        ("--hostname", "no spaces please"),
        ("--engine-addr", "tcp://10.0.0.1:2375"),
        ("--join-addr", "10.0.0.1"),
        ("--join-token", "SWMTKN-1-short"),
        ("--generic-node-resources", "gpu"),
        ("--heartbeat-tick", "-1"),
        ("--log-level", "loud"),
        ("--log-format", "xml"),
        ("--engine-label", "novalue"),
        ("--registry-ca", "/nonexistent/ca.pem"),
        ("--insecure-registry", "http://registry"),
        ("--config", "/nonexistent/swarmd.yaml"),
        ("--unlock-key", "SWMKEY-1-x"),
    ];
    let args: Vec<String> = wrong
        .iter()
        .map(|(flag, value)| format!("{flag}={value}"))
        .collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let errors = config(&args).unwrap_err();
    for (flag, _) in wrong {
        assert!(
            errors.0.iter().any(|e| e.starts_with(flag)),
            "{flag} in:\n{errors}"
        );
    }
    assert!(
        !errors.to_string().contains("SWMTKN-1-short"),
        "a token is a secret:\n{errors}"
    );
}

#[test]
fn flags_go_before_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("swarmd.yaml");
    std::fs::write(
        &path,
        "hostname: from-file\nexecutor: none\nengine-label: [a=b]\n",
    )
    .unwrap();
    let path = path.to_str().unwrap();
    let merged = config(&["--config", path, "--hostname", "from-flag"]).unwrap();
    assert_eq!(merged.hostname.as_deref(), Some("from-flag"));
    assert_eq!(merged.executor, ExecutorKind::None);
    assert_eq!(merged.engine_labels["a"], "b");
}

#[test]
fn a_file_with_a_key_nobody_knows_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("swarmd.yaml");
    std::fs::write(&path, "hostnam: typo\n").unwrap();
    let error = config(&["--config", path.to_str().unwrap()])
        .unwrap_err()
        .to_string();
    assert!(error.contains("hostnam"), "{error}");
    let missing = config(&["--config", "/nonexistent/swarmd.yaml"])
        .unwrap_err()
        .to_string();
    assert!(missing.contains("/nonexistent/swarmd.yaml"), "{missing}");
}

#[test]
fn a_files_error_shows_no_line_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("swarmd.yaml");
    for text in [
        "join-token: SWMTKN-1-very-secret\nhostname: [a]\n",
        "join-token: [SWMTKN-1-very-secret]\n",
        "join-token: {SWMTKN-1-very-secret\n",
    ] {
        std::fs::write(&path, text).unwrap();
        let error = config(&["--config", path.to_str().unwrap()]).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("swarmd.yaml"), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }
}

#[test]
fn a_token_that_is_given_replaces_the_files_in_either_form() {
    let dir = tempfile::tempdir().unwrap();
    let (path, file) = (dir.path().join("swarmd.yaml"), dir.path().join("token"));
    std::fs::write(&path, "join-addr: m:4242\njoin-token-file: /nonexistent\n").unwrap();
    std::fs::write(&file, token()).unwrap();
    let path = path.to_str().unwrap();
    let joined = config(&["--config", path, "--join-token", &token()]).unwrap();
    assert!(joined.join.is_some());
    let joined = config(&[
        "--config",
        path,
        "--join-token-file",
        file.to_str().unwrap(),
    ]);
    assert!(joined.unwrap().join.is_some());
}

#[test]
fn a_token_can_come_from_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    std::fs::write(&path, format!("{}\n", token())).unwrap();
    let path = path.to_str().unwrap();
    let joined = config(&["--join-addr", "m:4242", "--join-token-file", path]).unwrap();
    assert!(joined.join.is_some());
    let alone = config(&["--join-token-file", path])
        .unwrap_err()
        .to_string();
    assert!(alone.contains("--join-addr"), "{alone}");
}

#[test]
fn a_cluster_starts_anew_only_when_told() {
    let force = |args: &[&str]| config(args).unwrap().force_new_cluster;
    let (plain, ends) = (ForceNewCluster { ends: None }, Epoch::FIRST.next(0xab));
    let named = ForceNewCluster { ends: Some(ends) };
    assert_eq!(force(&[]), None);
    assert_eq!(force(&["--force-new-cluster"]), Some(plain));
    let flag = format!("--force-new-cluster={ends}");
    assert_eq!(force(&[&flag]), Some(named));
    assert_eq!(force(&["--force-new-cluster=false"]), None);
    let refused = config(&["--force-new-cluster=yes"]);
    let refused = refused.unwrap_err().to_string();
    assert!(
        refused.contains("no epoch") && refused.contains("leave the value out"),
        "{refused}"
    );
    // In a file it may be a flag, a number or a text.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("swarmd.yml");
    let first = ForceNewCluster {
        ends: Some(Epoch::FIRST),
    };
    for (text, expected) in [
        ("true", Some(plain)),
        ("false", None),
        ("1", Some(first)),
        ("2-00000000000000ab", Some(named)),
    ] {
        std::fs::write(&file, format!("force-new-cluster: {text}\n")).unwrap();
        assert_eq!(
            force(&["--config", file.to_str().unwrap()]),
            expected,
            "{text}"
        );
    }
}

#[test]
fn a_mirrors_password_is_refused_and_not_shown() {
    for mirror in [
        "https://ann:secret@mirror.test",
        "quay.io=https://:secret@mirror.test",
        "ann:secret@mirror.test",
        "https://ann:secret/x@mirror.test",
    ] {
        let error = config(&["--registry-mirror", mirror]).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("mirror.test"), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }
}

#[test]
fn external_cas_are_read_with_their_roots() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let root = crate::ca::testing::TestCa::new(1).root;
    std::fs::write(path("root.pem"), root.cert_pem()).unwrap();
    std::fs::write(path("two.pem"), root.cert_pem().repeat(2)).unwrap();
    let good = [
        "--external-ca=protocol=cfssl,url=https://10.0.0.1:8888/sign,label=x".to_owned(),
        format!(
            "--external-ca=protocol=cfssl,url=https://ca/,cacert={}",
            path("root.pem")
        ),
    ];
    let read = config(&good.each_ref().map(String::as_str))
        .unwrap()
        .external_cas;
    assert_eq!(read.len(), 2);
    assert_eq!(read[0].options["label"], "x");
    assert!(read[0].ca_cert.is_empty());
    assert_eq!(read[1].ca_cert, root.cert_pem().as_bytes());

    let bad = [
        "--external-ca=protocol=acme,secret=hush".to_owned(),
        "--external-ca=protocol=cfssl,url=https://ca/,cacert=/nonexistent".to_owned(),
        format!(
            "--external-ca=protocol=cfssl,url=https://ca/,cacert={}",
            path("two.pem")
        ),
    ];
    let told = config(&bad.each_ref().map(String::as_str)).unwrap_err();
    for (told, part) in told
        .0
        .iter()
        .zip(["acme", "no url", "be read", "2 certificates"])
    {
        assert!(told.starts_with("--external-ca: "), "{told}");
        assert!(told.contains(part), "{told}");
    }
    assert_eq!(told.0.len(), 4, "{told}");
    assert!(!told.to_string().contains("hush"), "{told}");
    let many = vec![good[0].as_str(); 9];
    let told = config(&many).unwrap_err().to_string();
    assert!(told.contains("at most 8"), "{told}");
}
