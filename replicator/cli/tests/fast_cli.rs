//! The built command as a script sees it: exit statuses, what is on standard output, and a role
//! played by the test.

use redoubt_control::status::{PointKind, PointState, PointStatus, RoleStatus};
use redoubt_control::{
    DifferentRange, ExitStatus, Handler, Marked, Peer, PointSelector, Request, Responder, Response,
    Role, RuntimeDirectory, Server, UtcTime, VerifyReport,
};
use redoubt_log::Name;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

const POINT: &str = "6f2b8f0e-6d3f-4a9e-9c55-0d2c1f8a7b11";

fn redoubt(directory: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_redoubt"));
    command.arg("--runtime-dir").arg(directory).args(words).env_remove("REDOUBT_LOG");
    command
}

fn out(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("UTF-8")
}

fn error(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("UTF-8")
}

/// Answers as a role would that holds one machine without disks.
struct Play {
    role: Role,
    asked: Mutex<Vec<Request>>,
}

impl Play {
    fn answer(&self, request: &Request) -> Response {
        let point = POINT.parse().expect("a UUID");
        match request {
            Request::Status => Response::Status {
                status: RoleStatus { role: self.role, machines: vec![], placements: vec![] },
            },
            Request::Mark { label: Some(label), .. } if label == "late" => Response::Failed {
                status: ExitStatus::TimedOut,
                message: "not durable in time".into(),
            },
            Request::Mark { label, .. } => {
                let lacking = match label.as_deref() {
                    Some("partial") => vec!["db".parse().expect("a name")],
                    _ => Vec::new(),
                };
                let proven = label.as_deref() != Some("unproven");
                Response::Marked { marked: Marked { point, lacking, proven } }
            }
            Request::Points { .. } => Response::Points {
                points: vec![PointStatus {
                    id: point,
                    taken_at: UtcTime::from_nanoseconds(1_700_000_000_000_000_000),
                    kind: PointKind::CrashConsistent,
                    label: Some("a\x1bb".into()),
                    sequence: 7,
                    disks: vec!["sda".parse().expect("a name")],
                    complete: true,
                    proven: true,
                    harmed_disks: vec!["sdb".parse().expect("a name")],
                    state: PointState::Applied,
                    suspect: Some("verify-difference: at\x1b".into()),
                }],
            },
            Request::CopyOut { .. } => Response::CopiedOut { point, bytes: 4096 },
            Request::Verify { disk, .. } => {
                let disk = disk.clone().expect("a disk is named");
                Response::Verified { report: Box::new(verified(disk)) }
            }
            Request::Pause { .. }
            | Request::Resume { .. }
            | Request::Unprotect { .. }
            | Request::Place { .. } => Response::Told { message: "as you\x1b wish".into() },
        }
    }
}

/// What comes of a verify of a disk that is named after it.
fn verified(disk: Name) -> VerifyReport {
    let (differing_bytes, not_compared_bytes) = match disk.as_str() {
        "equal" => (0, 0),
        "differs" => (512, 4096),
        _ => (0, 4096),
    };
    let range = DifferentRange { disk, offset: 4096, length: 512 };
    VerifyReport {
        machine: "web-01".parse().expect("a name"),
        equal: differing_bytes + not_compared_bytes == 0,
        compared_bytes: 1 << 20,
        not_compared_bytes,
        discarded_bytes: 0,
        differing_bytes,
        differences: if differing_bytes > 0 { vec![range] } else { Vec::new() },
        unlisted_differences: 0,
        point: None,
        hindrance: None,
    }
}

impl Handler for Play {
    fn handle(&self, _: Peer, request: Request, responder: &mut dyn Responder) {
        if matches!(request, Request::CopyOut { .. } | Request::Verify { .. }) {
            let step = Response::Progress { done_bytes: 1, total_bytes: 2 };
            responder.send(&step).expect("the command listens");
        }
        let answer = self.answer(&request);
        self.asked.lock().expect("no test panicked").push(request);
        responder.send(&answer).expect("the command listens");
    }
}

struct Site {
    base: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        Self { base: tempfile::tempdir().expect("a directory") }
    }

    fn play(&self, role: Role) -> (Arc<Play>, Server) {
        let play = Arc::new(Play { role, asked: Mutex::default() });
        let directory = RuntimeDirectory::new(self.base.path());
        let server = Server::start(&directory, role, Arc::clone(&play) as Arc<dyn Handler>);
        (play, server.expect("a socket"))
    }

    fn command(&self, words: &[&str]) -> Command {
        redoubt(self.base.path(), words)
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("the command was built")
    }
}

#[test]
fn no_role_is_exit_status_5() {
    let site = Site::new();
    let copy = ["copy-out", "--disk", "sda", "--to", "x"];
    for words in [&["status"][..], &["mark"], &["points"], &copy, &["status", "--side", "agent"]] {
        let output = site.run(words);
        assert_eq!(output.status.code(), Some(5), "{words:?}: {}", error(&output));
        assert_eq!(out(&output), "");
        assert!(error(&output).contains("is it running") || error(&output).contains("running?"));
    }
}

#[test]
fn a_wrong_command_line_is_exit_status_2() {
    let site = Site::new();
    for words in [
        &["frobnicate"][..],
        &[],
        &["mark", "--timeout", "60"],
        &["points", "--machine", "A/B"],
        &["copy-out", "--disk", "sda"],
        &["copy-out", "--disk", "sda", "--to", "x", "--point", "newest"],
        &["place", "--machine", "web-01", "--disk", "sda"],
        &["unprotect", "--disk", "../x"],
        &["status", "--side", "both"],
        &["verify", "--log", "xml"],
        #[cfg(feature = "agent")]
        &["agent", "--check", "--detach"],
        #[cfg(feature = "agent")]
        &["agent", "--json"],
        #[cfg(feature = "agent")]
        &["agent", "--token", "x", "--token-file", "y"],
        #[cfg(feature = "agent")]
        &["agent", "--disk", "sda"],
        #[cfg(feature = "target")]
        &["invite", "--data", "x", "--config", "y"],
        #[cfg(feature = "target")]
        &["master-target", "--listen", "127.0.0.1:0", "--point-interval", "0s"],
        #[cfg(feature = "target")]
        &["master-target", "--listen", "127.0.0.1:0", "--keep", "0s"],
        #[cfg(feature = "target")]
        &["invite", "--expires", "0s"],
    ] {
        let output = site.run(words);
        assert_eq!((output.status.code(), out(&output)), (Some(2), ""), "{words:?}");
    }
    assert_eq!(site.run(&["--help"]).status.code(), Some(0));
}

#[test]
fn the_usage_asks_for_nothing_that_may_be_left_out() {
    let site = Site::new();
    for words in [&["copy-out", "--disk", "sda"][..], &["copy-out", "--help"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_redoubt"));
        command.args(words).env("REDOUBT_RUNTIME_DIR", site.base.path());
        let output = command.output().expect("it runs");
        let shown = format!("{}{}", out(&output), error(&output));
        let usage = shown.lines().find(|line| line.starts_with("Usage: ")).expect("a usage");
        assert!(usage.contains("--to <FILE>") && !usage.contains("runtime-dir"), "{usage}");
    }
}

#[cfg(feature = "target")]
#[test]
fn a_wrong_configuration_is_exit_status_2_with_its_line() {
    let site = Site::new();
    let path = site.base.path().join("target.toml");
    std::fs::write(&path, "listen = \"127.0.0.1:0\"\nkeeep = \"1h\"\n").expect("a file");
    let output = site.run(&["master-target", "--config", path.to_str().expect("UTF-8")]);
    assert_eq!(output.status.code(), Some(2));
    assert!(error(&output).contains("target.toml, line 2: unknown field `keeep`"));
    let wildcard = site.run(&["master-target", "--listen", "0.0.0.0:0"]);
    assert_eq!(wildcard.status.code(), Some(2));
}

#[test]
fn mark_prints_the_id_alone() {
    let site = Site::new();
    let (target, _server) = site.play(Role::Target);
    let output = site.run(&["mark", "--label", "x", "--timeout", "5s", "--machine", "web-01"]);
    assert_eq!((output.status.code(), out(&output)), (Some(0), &*format!("{POINT}\n")));
    assert_eq!(
        *target.asked.lock().expect("no panic"),
        [Request::Mark {
            machine: Some("web-01".parse().expect("a name")),
            label: Some("x".into()),
            timeout: "5s".parse().expect("a time"),
            applied: false,
        }]
    );
}

#[test]
fn a_point_that_lacks_a_disk_or_is_not_proven_is_told_on_standard_error_and_by_the_status() {
    let site = Site::new();
    let (_target, _server) = site.play(Role::Target);
    for (label, why) in [("partial", "lacks db"), ("unproven", "not proven")] {
        let output = site.run(&["mark", "--label", label]);
        assert_eq!((output.status.code(), out(&output)), (Some(3), &*format!("{POINT}\n")));
        let told = error(&output);
        assert!(told.contains(why) && told.lines().count() == 1, "{told}");
    }
    let output = site.run(&["mark", "--label", "partial", "--json"]);
    let json = format!("{{\"point\":\"{POINT}\",\"lacking\":[\"db\"],\"proven\":true}}\n");
    assert_eq!((output.status.code(), out(&output)), (Some(3), &*json));
}

#[test]
fn a_late_mark_is_exit_status_4() {
    let site = Site::new();
    let (_target, _server) = site.play(Role::Target);
    let output = site.run(&["mark", "--label", "late"]);
    assert_eq!((output.status.code(), out(&output)), (Some(4), ""));
    assert_eq!(error(&output), "redoubt: not durable in time\n");
}

#[test]
fn status_shows_both_roles_and_acting_prefers_the_target() {
    let site = Site::new();
    let (agent, _agent_server) = site.play(Role::Agent);
    let (target, _target_server) = site.play(Role::Target);
    let output = site.run(&["status", "--json"]);
    let lines: Vec<&str> = out(&output).lines().collect();
    assert_eq!(
        lines,
        [
            r#"{"role":"agent","machines":[],"placements":[]}"#,
            r#"{"role":"target","machines":[],"placements":[]}"#
        ]
    );
    assert_eq!(site.run(&["mark"]).status.code(), Some(0));
    assert_eq!(site.run(&["mark", "--side", "agent"]).status.code(), Some(0));
    let marks = |play: &Play| {
        let asked = play.asked.lock().expect("no panic");
        asked.iter().filter(|request| matches!(request, Request::Mark { .. })).count()
    };
    assert_eq!((marks(&agent), marks(&target)), (1, 1));
}

#[test]
fn points_are_an_array_and_a_table_without_control_characters() {
    let site = Site::new();
    let (_target, _server) = site.play(Role::Target);
    let output = site.run(&["points", "--json"]);
    let points: Vec<PointStatus> = serde_json::from_str(out(&output)).expect("an array of points");
    assert_eq!(points[0].id.to_string(), POINT);
    let table = site.run(&["points"]);
    let lines: Vec<&str> = out(&table).lines().collect();
    assert!(lines[1].contains("suspect") && lines[1].ends_with("a?b"), "{lines:?}");
    assert_eq!(lines[2..], ["suspect: verify-difference: at?"]);
}

#[test]
fn copy_out_gives_the_role_an_absolute_path() {
    let site = Site::new();
    let (target, _server) = site.play(Role::Target);
    let output = site.run(&["copy-out", "--disk", "sda", "--to", "x.img", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", error(&output));
    let result: serde_json::Value = serde_json::from_str(out(&output)).expect("JSON");
    assert_eq!((&result["point"], &result["bytes"]), (&POINT.into(), &4096.into()));
    let asked = target.asked.lock().expect("no panic");
    let [Request::CopyOut { to, point, force, .. }] = asked.as_slice() else { panic!("{asked:?}") };
    assert!(to.is_absolute() && to.ends_with("x.img"));
    assert_eq!((*point, *force), (PointSelector::Latest, false));
}

#[test]
fn only_a_verify_that_compared_all_and_found_nothing_is_exit_status_0() {
    let site = Site::new();
    let (_target, _server) = site.play(Role::Target);
    for (disk, status) in [("equal", 0), ("differs", 3), ("hot", 4)] {
        let output = site.run(&["verify", "--disk", disk, "--json"]);
        assert_eq!(output.status.code(), Some(status), "{disk}: {}", error(&output));
        let report: VerifyReport = serde_json::from_str(out(&output)).expect("JSON");
        assert_eq!(report, verified(disk.parse().expect("a name")));
        let text = site.run(&["verify", "--disk", disk]);
        assert_eq!(text.status.code(), Some(status));
        assert_eq!(out(&text).contains("web-01: equal"), status == 0, "{}", out(&text));
    }
}

#[test]
fn a_closed_pipe_changes_no_answer() {
    let site = Site::new();
    let (_target, _server) = site.play(Role::Target);
    for (words, status) in [
        (&["points"][..], 0),
        (&["status", "--watch"], 0),
        (&["verify", "--disk", "differs"], 3),
        (&["verify", "--disk", "hot", "--json"], 4),
    ] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = site.command(words).stdout(writer).output().expect("it runs");
        assert_eq!(output.status.code(), Some(status), "{words:?}: {}", error(&output));
        assert_eq!(error(&output), "");
    }
}

#[test]
fn a_result_that_cannot_be_written_is_a_failure() {
    let site = Site::new();
    let (_target, _server) = site.play(Role::Target);
    let full = std::fs::File::options().write(true).open("/dev/full").expect("it is there");
    let output = site.command(&["points"]).stdout(full).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(error(&output).starts_with("redoubt: standard output cannot be written: "));
}

#[test]
fn a_role_that_goes_away_is_a_failure() {
    let site = Site::new();
    let socket = std::os::unix::net::UnixListener::bind(site.base.path().join("target.sock"));
    let socket = socket.expect("a socket");
    let gone = std::thread::spawn(move || {
        // The first connection only asks whether a role is there.
        for _ in 0..2 {
            drop(socket.accept().expect("a connection"));
        }
    });
    let output = site.run(&["mark"]);
    gone.join().expect("it ended");
    assert_eq!((output.status.code(), out(&output)), (Some(1), ""), "{}", error(&output));
}

#[test]
fn orders_go_to_their_role_and_print_what_they_mean() {
    let site = Site::new();
    let (agent, _agent_server) = site.play(Role::Agent);
    let (target, _target_server) = site.play(Role::Target);
    let web: redoubt_log::Name = "web-01".parse().expect("a name");
    let unprotect =
        |machine, disk, delete_replica| Request::Unprotect { machine, disk, delete_replica };
    let orders: [(&Play, &[&str], Request); 5] = [
        (&*target, &["pause"], Request::Pause { machine: None }),
        (
            &*agent,
            &["resume", "--side", "agent", "--machine", "web-01"],
            Request::Resume { machine: Some(web.clone()) },
        ),
        (
            &*agent,
            &["unprotect", "--side", "agent", "--disk", "web-01"],
            unprotect(None, Some(web.clone()), false),
        ),
        (
            &*target,
            &["unprotect", "--machine", "web-01", "--delete-replica"],
            unprotect(Some(web.clone()), None, true),
        ),
        (
            &*target,
            &["place", "--machine", "web-01", "--disk", "web-01", "--on", "/dev/vg0/x"],
            Request::Place { machine: web.clone(), disk: web, on: "/dev/vg0/x".into() },
        ),
    ];
    for (play, words, request) in orders {
        let output = site.run(words);
        assert_eq!(output.status.code(), Some(0), "{words:?}: {}", error(&output));
        assert_eq!(out(&output), "as you? wish\n");
        assert_eq!(play.asked.lock().expect("no panic").pop(), Some(request));
    }
}

#[test]
fn a_log_in_json_is_json() {
    let site = Site::new();
    let output = site.run(&["--log", "json", "status"]);
    assert_eq!(output.status.code(), Some(5));
    let line: serde_json::Value = serde_json::from_str(error(&output)).expect("one JSON object");
    assert_eq!(line["level"], "ERROR");
}

#[cfg(feature = "target")]
#[test]
fn a_file_has_a_word_on_the_log_and_the_flag_beats_it() {
    let site = Site::new();
    let path = site.base.path().join("target.toml");
    // With a wildcard it ends before it starts.
    std::fs::write(&path, "log = \"json\"\nlisten = \"0.0.0.0:0\"\n").expect("a file");
    let path = path.to_str().expect("UTF-8");
    let output = site.run(&["master-target", "--config", path]);
    assert_eq!(output.status.code(), Some(2));
    let line: serde_json::Value = serde_json::from_str(error(&output)).expect("one JSON object");
    assert!(line["message"].as_str().is_some_and(|text| text.contains("--advertise")), "{line}");
    let output = site.run(&["master-target", "--config", path, "--log", "text"]);
    assert!(error(&output).starts_with("redoubt: agents cannot connect"), "{}", error(&output));
    std::fs::write(path, "log = \"xml\"\n").expect("a file");
    let output = site.run(&["--log", "json", "master-target", "--config", path]);
    let line: serde_json::Value = serde_json::from_str(error(&output)).expect("one JSON object");
    assert!(line["message"].as_str().is_some_and(|text| text.contains("line 1: ")), "{line}");
}

/// What the commands are called, as the help lists them.
fn commands(site: &Site) -> Vec<String> {
    let help = site.run(&["--help"]);
    let listed = out(&help).lines().skip_while(|line| *line != "Commands:").skip(1);
    let names = listed.map_while(|line| line.split_whitespace().next().map(str::to_owned));
    names.filter(|name| name != "help").collect()
}

#[test]
fn every_command_has_a_manual_page() {
    let site = Site::new();
    let pages = site.base.path().join("man1");
    let output = site.run(&["manual", "--to", pages.to_str().expect("UTF-8")]);
    assert_eq!((output.status.code(), out(&output)), (Some(0), ""), "{}", error(&output));
    let names = commands(&site);
    for name in &names {
        let page = std::fs::read_to_string(pages.join(format!("redoubt-{name}.1")));
        let page = page.expect(name).replace("\\-", "-");
        assert!(page.contains(&format!("redoubt {name}")), "{name} shows itself");
    }
    let pages: Vec<_> = std::fs::read_dir(&pages).expect("a directory").collect();
    assert_eq!(pages.len(), names.len() + 1);
    for page in pages {
        // What `man` runs; it is silent where it understands everything.
        let page = page.expect("an entry").path();
        let mut groff = Command::new("groff");
        groff.args(["-man", "-Tutf8", "-ww", "-rHY=0"]).arg(&page);
        let shown = groff.output().expect("groff is there: apt-get install groff-base");
        assert!(shown.status.success() && error(&shown).is_empty(), "{page:?}: {}", error(&shown));
        assert!(out(&shown).contains("REDOUBT") || out(&shown).contains("redoubt"), "{page:?}");
    }
}

#[test]
fn every_shell_learns_every_command() {
    let site = Site::new();
    let names = commands(&site);
    assert!(names.len() > 10);
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = site.run(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0), "{shell}: {}", error(&output));
        for word in names.iter().map(String::as_str).chain(["runtime-dir", "delete-replica"]) {
            assert!(out(&output).contains(word), "{shell} knows {word}");
        }
    }
}

#[test]
fn without_a_word_the_help_is_shown() {
    let site = Site::new();
    let output = Command::new(env!("CARGO_BIN_EXE_redoubt")).output().expect("it runs");
    assert_eq!((output.status.code(), out(&output)), (Some(2), ""));
    for name in commands(&site) {
        assert!(error(&output).contains(&format!("  {name} ")), "{name}");
    }
}

#[test]
fn a_shell_understands_its_completions() {
    let site = Site::new();
    let script = site.base.path().join("redoubt.bash");
    let output = site.run(&["completions", "bash"]);
    std::fs::write(&script, &output.stdout).expect("a file");
    let words = "COMP_WORDS=(redoubt sta) COMP_CWORD=1; _redoubt redoubt sta redoubt; \
        echo \"${COMPREPLY[@]}\"";
    let source = format!("source {}; {words}", script.display());
    let completed = Command::new("bash").args(["-c", &source]).output().expect("bash is there");
    assert_eq!(out(&completed).trim(), "status", "{}", error(&completed));
}
