//! The program itself: exit codes, what it prints, baselines, and Ctrl-C.

use hw_tests::command;
use hw_tests::lab::results::{self, Report, Status};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const LAB: &str = env!("CARGO_BIN_EXE_ferrovia-lab");
const HERE: &str = "[[target]]\nname = 'here'\nkind = 'local'\n";

/// Runs the program in `dir` and gives exit code, output and error output.
fn lab(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(LAB);
    command
        .args(args)
        .current_dir(dir)
        .env_remove("FERROVIA_LAB_INVENTORY");
    let done = command::run(&mut command, Duration::from_secs(120)).unwrap();
    (done.status.code().unwrap_or(-1), done.stdout, done.stderr)
}

fn folder(inventory: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("lab.toml"), inventory).unwrap();
    dir
}

#[test]
fn what_is_asked_for_wrongly_ends_with_2_and_says_what_is_known() {
    let dir = folder(HERE);
    for (args, words) in [
        (
            &["run", "--suite", "smok"][..],
            "There is no suite \"smok\"; known are smoke, sriov",
        ),
        (
            &["run", "--target", "rack"],
            "There is no target \"rack\" in the inventory; it has here",
        ),
        (&["run", "--test", "x*"], "No test matches \"x*\""),
        (
            &["run", "--inventory", "none.toml"],
            "none.toml cannot be read",
        ),
        (
            &["run", "--baseline", "lab.toml"],
            "is no JSON report of ferrovia-lab",
        ),
        (&["run", "--threshold", "much"], "it is not a number"),
        (&["compare", "lab.toml", "lab.toml"], "is no JSON report"),
    ] {
        let (code, _, said) = lab(dir.path(), args);
        assert!(
            code == 2 && said.contains(words),
            "{args:?}: {code}, {said}"
        );
    }
    fs::write(
        dir.path().join("lab.toml"),
        "[[target]]\nname = 'x'\nkind = 'sh'\n",
    )
    .unwrap();
    let (code, _, said) = lab(dir.path(), &["check"]);
    assert!(
        code == 2 && said.contains("lab.toml:3:8: \"sh\" is not known for kind"),
        "{said}"
    );
}

#[test]
fn lists_are_for_people_and_for_scripts() {
    let dir = folder(&format!(
        "{HERE}[[target]]\nname = 'igb'\nkind = 'emulated'\nflavour = 'igb'\n"
    ));
    let (code, table, _) = lab(dir.path(), &["list", "-i", "lab.toml"]);
    assert!(
        code == 0 && table.contains("vfs_come_and_go") && table.contains("IGB"),
        "{table}"
    );
    let (code, json, _) = lab(dir.path(), &["list", "-i", "lab.toml", "-o", "json"]);
    let rows: serde_json::Value = serde_json::from_str(&json).unwrap();
    let row = rows
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["name"] == "vfs_come_and_go")
        .unwrap();
    assert_eq!(
        (code, &row["targets"][1]["fits"]),
        (0, &serde_json::Value::Bool(true))
    );
    let (code, json, said) = lab(dir.path(), &["check", "-o", "json"]);
    assert!(code == 0 && json.contains("\"igb\""), "{said}");
    let (code, script, _) = lab(dir.path(), &["completion", "bash"]);
    assert!(code == 0 && script.contains("ferrovia-lab"), "{script}");
}

#[test]
fn a_run_writes_four_reports_and_a_baseline_finds_what_got_worse() {
    let dir = folder(HERE);
    let args = [
        "run",
        "--suite",
        "smoke",
        "--test",
        "smoke/answers",
        "--out",
        "today",
    ];
    let (code, said, progress) = lab(dir.path(), &args);
    assert_eq!(code, 0, "{said}{progress}");
    assert!(progress.contains("ok    here/smoke/answers"), "{progress}");
    for name in ["index.html", "results.json", "junit.xml", "results.ktap"] {
        assert!(dir.path().join("today").join(name).exists(), "{name}");
    }
    let today = dir.path().join("today/results.json");
    let before = changed(&today, |report| {
        let mut gone = report.targets[0].tests[1].clone();
        gone.name = "was_there".into();
        report.targets[0].tests.push(gone);
    });
    fs::write(dir.path().join("old.json"), before).unwrap();
    let (code, said, _) = lab(dir.path(), &["compare", "old.json", "today/results.json"]);
    let words = "worse:  here/smoke/was_there: passed before, and is not there any more";
    assert!(code == 1 && said.contains(words), "{said}");

    let slow = changed(&today, |report| {
        report.targets[0].tests[0].measures[0].value *= 3.0
    });
    let bad = changed(&today, |report| {
        report.targets[0].tests[1].status = Status::Skipped
    });
    fs::write(dir.path().join("slow.json"), slow).unwrap();
    fs::write(dir.path().join("bad.json"), bad).unwrap();
    let (code, said, _) = lab(dir.path(), &["compare", "today/results.json", "slow.json"]);
    assert!(
        code == 1 && said.contains("worse:  here/lab/ready: ready_ms was"),
        "{said}"
    );
    let (code, _, _) = lab(
        dir.path(),
        &[
            "compare",
            "today/results.json",
            "slow.json",
            "--threshold",
            "500",
        ],
    );
    assert_eq!(code, 0);
    let (code, said, _) = lab(
        dir.path(),
        &["compare", "today/results.json", "bad.json", "-o", "json"],
    );
    assert!(
        code == 1 && said.contains("passed before, now skipped"),
        "{said}"
    );
    let with_baseline = [
        &args[..],
        &["--baseline", "bad.json", "--threshold", "10000"],
    ]
    .concat();
    let (code, said, _) = lab(dir.path(), &with_baseline);
    assert!(
        code == 0 && said.contains("better: here/smoke/answers"),
        "{said}"
    );
}

fn changed(path: &Path, change: impl FnOnce(&mut Report)) -> String {
    let mut report = results::load(path).unwrap();
    change(&mut report);
    serde_json::to_string(&report).unwrap()
}

#[test]
fn ctrl_c_ends_an_emulated_machine_and_the_reports_say_so() {
    let dir = folder("[[target]]\nname = 'igb'\nkind = 'emulated'\nflavour = 'igb'\n");
    let mut command = Command::new(LAB);
    command
        .args(["run", "--out", "out"])
        .current_dir(dir.path());
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let qemu = command::wait_for("the machine's QEMU", Duration::from_secs(60), || {
        let list = command::words(&["ps", "-o", "pid=,comm=", "--ppid", &child.id().to_string()])?;
        let line = list.lines().find(|line| line.contains("qemu-system"));
        let pid = line.and_then(|line| line.split_whitespace().next()?.parse::<i32>().ok());
        pid.ok_or_else(|| anyhow::anyhow!("{list}"))
    })
    .unwrap();
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(
        kill(Pid::from_raw(qemu), None).is_err(),
        "QEMU is still there"
    );
    let report = results::load(&dir.path().join("out/results.json")).unwrap();
    assert!(report.interrupted);
}
