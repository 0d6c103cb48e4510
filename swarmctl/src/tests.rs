//! Whole command lines over a manager in memory: what is printed, and how it ends.

mod fake;

use std::sync::{Arc, Mutex};

use expect_test::{ExpectFile, expect_file};
use swarm_proto::pb;
use tonic::transport::Channel;

use crate::{Environment, ExitCode, Stream, StreamKind, SystemClock, Terminal};
use fake::{FakeClock, Shared, State, node, serve};

/// A manager and the clock of those who talk to it.
struct Shell {
    state: Shared,
    channel: Channel,
    clock: Arc<FakeClock>,
}

impl Shell {
    async fn new() -> Self {
        let nodes = vec![
            node("1", "manager-1", pb::NodeRole::Manager),
            node("2", "worker-1", pb::NodeRole::Worker),
        ];
        let tokens = pb::JoinTokens {
            worker: "SWMTKN-1-root-worker".to_owned(),
            manager: "SWMTKN-1-root-manager".to_owned(),
        };
        let cluster = pb::Cluster {
            id: format!("{:0>25}", "c1"),
            spec: Some(pb::ClusterSpec {
                annotations: Some(pb::Annotations {
                    name: "default".to_owned(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            root_ca: Some(pb::RootCa {
                join_tokens: Some(tokens),
                ..Default::default()
            }),
            ..Default::default()
        };
        let state = Arc::new(Mutex::new(State {
            nodes,
            cluster,
            ..Default::default()
        }));
        let channel = serve(state.clone()).await;
        Self {
            state,
            channel,
            clock: Arc::default(),
        }
    }

    /// Runs one command line, split at spaces; `_` in a word stands for a space.
    async fn run(&self, line: &str) -> (String, String, ExitCode) {
        let (mut terminal, stdout, stderr) = Terminal::captured();
        let code = crate::run(words(line), self.environment(), &mut terminal).await;
        (stdout.take(), stderr.take(), code)
    }

    fn environment(&self) -> Environment {
        Environment::over(self.channel.clone(), self.clock.clone())
    }

    /// Runs command lines and compares all that they print.
    async fn check(&self, lines: &[&str], want: ExpectFile) {
        let mut transcript = String::new();
        for line in lines {
            let (stdout, stderr, code) = self.run(line).await;
            transcript.push_str(&format!("$ {line}\n{stdout}"));
            transcript.extend(stderr.lines().map(|line| format!("! {line}\n")));
            if code != ExitCode::Ok {
                transcript.push_str(&format!("[{}]\n", code.code()));
            }
        }
        want.assert_eq(&transcript);
    }
}

fn words(line: &str) -> Vec<std::ffi::OsString> {
    line.split(' ')
        .map(|word| word.replace('_', " ").into())
        .collect()
}

#[tokio::test]
async fn a_missing_socket_is_named_with_the_way_out() {
    let (mut terminal, _, stderr) = Terminal::captured();
    let environment = Environment {
        variables: [("SWARM_SOCKET".to_owned(), "/nowhere/swarmd.sock".to_owned())].into(),
        clock: Arc::new(SystemClock),
        connector: crate::Connector::Socket,
        interrupt: Box::pin(std::future::pending()),
        secret: crate::Secret::OfProcess,
        answer_timeout: None,
    };
    let code = crate::run(words("swarmctl node ls"), environment, &mut terminal).await;
    assert_eq!(code, ExitCode::Unreachable);
    assert_eq!(
        stderr.take(),
        "swarmctl: can't reach swarmd at /nowhere/swarmd.sock: no such socket; \
         is swarmd running? use -s PATH or set SWARM_SOCKET\n"
    );
}

#[tokio::test]
async fn nodes() {
    let shell = Shell::new().await;
    shell
        .check(
            &[
                "swarmctl node ls",
                "swarmctl node ls -q --filter role=worker",
                "swarmctl node drain worker-1",
                "swarmctl node drain worker-1 nobody",
                "swarmctl node update worker-1 --label-add disk=ssd --availability active",
                "swarmctl node update worker-1 --label-rm rack",
                "swarmctl node inspect worker-1",
                "swarmctl node inspect self --format {{.Description.Hostname}}",
                "swarmctl node ls --filter role=boss",
                "swarmctl node leave",
                "swarmctl node leave --force",
            ],
            expect_file!["tests/nodes.txt"],
        )
        .await;
}

#[tokio::test]
async fn credentials_that_are_missing_are_missed() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("config.json"), "{}").unwrap();
    let of = directory.path().to_string_lossy().into_owned();
    let shell = Shell::new().await;
    let create = "swarmctl service create --name web --image reg.test/a --detach";
    for (flag, warned) in [("", false), (" --with-registry-auth", true)] {
        let (mut terminal, _, stderr) = Terminal::captured();
        let mut environment = shell.environment();
        let directory = ("DOCKER_CONFIG".to_owned(), of.clone());
        environment.variables.extend([directory]);
        let line = words(&format!("{create}{flag}"));
        crate::run(line, environment, &mut terminal).await;
        let said = stderr.take();
        let told = said.contains(&format!("{of}/config.json has no credentials for reg.test"));
        assert_eq!(told, warned, "{said}");
    }
}

#[tokio::test]
async fn life_of_a_service() {
    let shell = Shell::new().await;
    shell
        .check(
            &[
                "swarmctl service create --name web --image nginx --replicas 2",
                "swarmctl service create --name web --image nginx",
                "swarmctl service ls",
                "swarmctl task ls",
                "swarmctl -n task ls -q",
                "swarmctl service scale web=3",
                "swarmctl service update web --env-add A=1 --constraint-add node.role==worker",
                "swarmctl service update web --env A=1",
                "swarmctl service inspect web",
                "swarmctl service rollback web",
                "swarmctl service ps web",
                "swarmctl task inspect web.1",
                "swarmctl service rm web nothing",
                "swarmctl service ls --format json",
            ],
            expect_file!["tests/life_of_a_service.txt"],
        )
        .await;
}

#[tokio::test]
async fn services_that_can_not_converge() {
    let shell = Shell::new().await;
    shell
        .check(
            &[
                "swarmctl service create --name bad --image broken",
                "swarmctl service create --name big --image stuck --replicas 3 --timeout 2s",
                "swarmctl service create --name off --image stuck --detach",
                "swarmctl service create --name mute --image stuck --quiet --timeout 1s",
                "swarmctl task why big.2",
                "swarmctl service ps bad",
            ],
            expect_file!["tests/not_converged.txt"],
        )
        .await;
}

#[tokio::test]
async fn all_that_is_wrong_is_said_at_once_and_nothing_is_sent() {
    let shell = Shell::new().await;
    shell
        .check(
            &[
                "swarmctl service create --replicas -1 --publish 80:http --mount type=disk,target=/x \
                 --constraint node.colour==red --restart-delay 5 --memory-limit 1q --mode cluster \
                 --update-order random --env =x",
                "swarmctl service create --name we.b --image NGINX --timeout soon",
                "swarmctl service update web --replicas -3 --mount-add x --env-rm A=1",
                "swarmctl service scale web=-1 api",
                "swarmctl node ls --format {{.ID",
                "swarmctl task ls --filter colour=red",
                "swarmctl cluster update --certexpiry 90d",
                "swarmctl cluster update",
                "swarmctl node update worker-1",
            ],
            expect_file!["tests/wrong_input.txt"],
        )
        .await;
    assert_eq!(shell.state.lock().unwrap().writes, Vec::<String>::new());
}

#[tokio::test]
async fn clusters_and_tokens() {
    let shell = Shell::new().await;
    shell
        .check(
            &[
                "swarmctl cluster ls",
                "swarmctl cluster join-token worker",
                "swarmctl cluster join-token worker --rotate -q",
                "swarmctl cluster update default --taskhistory 7 --certexpiry 720h",
                "swarmctl cluster inspect",
                "swarmctl version",
            ],
            expect_file!["tests/cluster.txt"],
        )
        .await;
}

#[tokio::test]
async fn a_lost_race_is_run_again() {
    let shell = Shell::new().await;
    shell
        .run("swarmctl service create --name web --image nginx")
        .await;
    shell.state.lock().unwrap().races = 2;
    let (_, _, code) = shell.run("swarmctl service scale web=4 --detach").await;
    assert_eq!(code, ExitCode::Ok);
    let state = shell.state.lock().unwrap();
    assert_eq!(
        state
            .writes
            .iter()
            .filter(|write| write.starts_with("update"))
            .count(),
        3
    );
}

#[tokio::test]
async fn a_swarmd_that_ends_before_it_answers_is_unreachable() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("swarmd.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let ends = async {
        while let Ok((connection, _)) = listener.accept().await {
            drop(connection);
        }
    };
    let (mut terminal, _, stderr) = Terminal::captured();
    let environment = Environment {
        variables: [("SWARM_SOCKET".to_owned(), socket.display().to_string())].into(),
        clock: Arc::new(SystemClock),
        connector: crate::Connector::Socket,
        interrupt: Box::pin(std::future::pending()),
        secret: crate::Secret::OfProcess,
        answer_timeout: None,
    };
    let run = crate::run(words("swarmctl node ls"), environment, &mut terminal);
    let code = tokio::select! {
        code = run => code,
        () = ends => unreachable!("the listener ended"),
    };
    let stderr = stderr.take();
    assert_eq!(code, ExitCode::Unreachable, "{stderr}");
    assert!(stderr.contains("is it running?"), "{stderr}");
}

#[tokio::test]
async fn a_manager_that_is_away_for_a_moment_ends_no_wait() {
    let shell = Shell::new().await;
    shell.state.lock().unwrap().away = 3;
    let (_, stderr, code) = shell
        .run("swarmctl service create --name web --image nginx")
        .await;
    assert_eq!(code, ExitCode::Ok, "{stderr}");
    assert_eq!(stderr.matches("still trying").count(), 1, "{stderr}");
    shell.state.lock().unwrap().away = u32::MAX;
    let (_, stderr, code) = shell.run("swarmctl service scale web=2").await;
    assert_eq!(code, ExitCode::Unreachable, "{stderr}");
}

#[tokio::test]
async fn unlocking_gives_the_key_and_says_why_not() {
    let shell = Shell::new().await;
    let unlock = async |key: &str| {
        let (mut terminal, stdout, stderr) = Terminal::captured();
        let environment = Environment {
            secret: crate::Secret::Given(key.to_owned().into()),
            ..shell.environment()
        };
        let line = words("swarmctl cluster unlock");
        let code = crate::run(line, environment, &mut terminal).await;
        (stdout.take(), stderr.take(), code)
    };
    let (_, stderr, code) = unlock("SWMKEY-1-right").await;
    assert_eq!(code, ExitCode::Refused);
    assert_eq!(stderr, "swarmctl: unlock: this manager is not locked\n");
    shell.state.lock().unwrap().locked = true;
    let (_, stderr, code) = unlock("SWMKEY-1-wrong").await;
    assert_eq!(code, ExitCode::Refused);
    assert_eq!(
        stderr,
        "swarmctl: unlock: this key does not unlock this manager\n"
    );
    // With the newline that comes with a file.
    let (stdout, stderr, code) = unlock("SWMKEY-1-right\n").await;
    assert_eq!(code, ExitCode::Ok, "{stderr}");
    assert_eq!(stdout, "this manager is unlocked, and starts\n");
    let (stdout, _, _) = shell.run("swarmctl version").await;
    assert!(stdout.contains(", locked)"), "{stdout}");
}

#[tokio::test]
async fn an_interrupt_leaves_the_service_and_says_so() {
    let shell = Shell::new().await;
    let (mut terminal, stdout, stderr) = Terminal::captured();
    let environment = Environment {
        interrupt: Box::pin(std::future::ready(())),
        ..shell.environment()
    };
    let line = words("swarmctl service create --name web --image stuck");
    let code = crate::run(line, environment, &mut terminal).await;
    assert_eq!(code.code(), 130);
    assert!(stdout.take().starts_with('s'));
    assert!(stderr.take().ends_with(
        "swarmctl: interrupted; service web goes on, `swarmctl service ps web` shows how far it is\n"
    ));
    assert_eq!(shell.state.lock().unwrap().services.len(), 1);
}

#[tokio::test]
async fn a_terminal_gets_colours_and_a_frame_that_is_redrawn() {
    let shell = Shell::new().await;
    let run = async |line: &str, variables: &[(&str, &str)]| {
        let (_, stdout, stderr) = Terminal::captured();
        let kind = StreamKind::Terminal {
            columns: 80,
            rows: 24,
        };
        let mut terminal = Terminal {
            stdout: Stream::new(stdout.clone(), kind),
            stderr: Stream::new(stderr.clone(), kind),
        };
        let variables = variables
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let environment = Environment {
            variables,
            ..shell.environment()
        };
        crate::run(words(line), environment, &mut terminal).await;
        (stdout.take(), stderr.take())
    };
    let (_, frames) = run("swarmctl service create --name web --image nginx", &[]).await;
    let task = "  web.1: \u{1b}[32mRUNNING\u{1b}[0m";
    assert!(frames.contains("[####################] web: 1/1 running"));
    assert!(frames.contains(task), "{frames:?}");
    let redrawn = frames.matches("\u{1b}[1A").count();
    assert!(redrawn >= 2, "two lines, drawn over: {frames:?}");
    assert!(frames.ends_with("web: converged\n"), "{frames:?}");
    assert!(
        run("swarmctl node ls", &[])
            .await
            .0
            .contains("mREADY\u{1b}[")
    );
    assert!(
        !run("swarmctl node ls", &[("NO_COLOR", "1")])
            .await
            .0
            .contains('\u{1b}')
    );
}

#[tokio::test]
async fn help_has_examples_and_exit_codes_and_completions_are_scripts() {
    let shell = Shell::new().await;
    let (help, _, code) = shell.run("swarmctl --help").await;
    assert_eq!(code, ExitCode::Ok);
    assert!(
        help.contains("Exit codes:") && help.contains("swarmctl task why web.3"),
        "{help}"
    );
    let (help, _, _) = shell.run("swarmctl service create --help").await;
    assert!(
        help.contains("--name web --image nginx --replicas 5"),
        "{help}"
    );
    for name in ["bash", "zsh", "fish"] {
        let (script, _, _) = shell.run(&format!("swarmctl completion {name}")).await;
        assert!(
            script.contains("swarmctl") && script.len() > 1_000,
            "{name}"
        );
    }
    let (_, error, code) = shell.run("swarmctl frobnicate").await;
    assert_eq!(code, ExitCode::Usage);
    assert!(error.contains("unrecognized subcommand"), "{error}");
}

#[tokio::test]
async fn a_backup_is_whole_and_private_or_not_there() {
    use std::os::unix::fs::PermissionsExt as _;
    let shell = Shell::new().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.backup");
    let line = format!("swarmctl cluster backup {}", file.display());
    // The fake manager ends early as long as it has no service.
    let (_, told, code) = shell.run(&line).await;
    assert!(told.contains("ended early, after 10 bytes"), "{told}");
    assert_eq!(code, ExitCode::Refused);
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");

    let create = "swarmctl service create --detach --name web --image nginx";
    assert_eq!(shell.run(create).await.2, ExitCode::Ok);
    let (out, told, code) = shell.run(&line).await;
    assert_eq!((out.as_str(), code), ("", ExitCode::Ok), "{told}");
    assert!(told.contains("log entry 7: 2 nodes"), "{told}");
    assert!(told.contains("CA key"), "{told}");
    assert_eq!(std::fs::read(&file).unwrap(), b"0123456789");
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let (_, told, code) = shell.run(&line).await;
    assert_eq!(code, ExitCode::Local);
    assert!(
        told.contains("exists; name another file, or say --force"),
        "{told}"
    );
    let (_, told, code) = shell.run(&format!("{line} --force")).await;
    assert_eq!(code, ExitCode::Ok, "{told}");
    let (out, _, _) = shell.run("swarmctl cluster backup -").await;
    assert_eq!(out, "0123456789");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}
