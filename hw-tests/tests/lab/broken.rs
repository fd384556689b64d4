//! A suite whose tests do everything wrong, and what becomes of it on this machine.

use crate::{expect, row, run};
use hw_tests::command;
use hw_tests::lab::context::Context;
use hw_tests::lab::results::Status;
use hw_tests::lab::suite::{Outcome, Stop, Suite, Test, check, same};
use hw_tests::lab::{Need, Unit};
use std::time::Duration;

/// Every way in which a test can go wrong, and between them some that must not suffer from it.
pub const BROKEN: Suite = Suite {
    name: "broken",
    about: "Everything that can go wrong",
    tests: &[
        Test::new("passes", "a command runs", passes),
        Test::new("fails", "what is wrong is said", fails),
        Test::new("panics", "a panic is a failure", |_| {
            panic!("out of cheese")
        }),
        Test::new("hangs", "a command without an end is ended", hangs).limit(2),
        Test::new("skips", "what cannot be shown is said", |_| {
            Err(Stop::skip("no such NIC"))
        }),
        Test::new(
            "needs_hardware",
            "an emulated NIC is not taken for a real one",
            passes,
        )
        .needs(&[Need::PciPfs(60)]),
        Test::new("leaks", "what a test leaves is found and taken away", leaks),
        Test::new(
            "spawns",
            "a program goes on, is killed, and its end is known",
            spawns,
        ),
        Test::new("passes_again", "nothing of all that is left", passes_again),
        Test::new("loops", "a test without an end is left", loops).limit(1),
        Test::new(
            "too_late",
            "nothing runs on a target that was given up",
            passes,
        ),
    ],
};

fn passes(lab: &Context) -> Outcome {
    let done = lab.shell("echo \"$0 says <b>\"; exit 3")?;
    same("the exit code", done.code, 3)?;
    lab.measure("answer_ms", lab.timed("true")?, Unit::Milliseconds);
    check(done.stdout.contains("says <b>"), done.stdout)
}

fn fails(lab: &Context) -> Outcome {
    lab.ok(&["sh", "-c", "echo the axle is broken >&2; exit 9"])?;
    Ok(())
}

fn hangs(lab: &Context) -> Outcome {
    lab.exec(&["sleep", "1000"])?;
    Ok(())
}

fn leaks(lab: &Context) -> Outcome {
    lab.ok(&["ip", "netns", "add", &lab.named("left")])?;
    let (left, right) = (lab.named("left"), lab.named("right"));
    lab.ok(&[
        "ip", "link", "add", &left, "type", "veth", "peer", "name", &right,
    ])?;
    lab.shell_ok("sleep 1000 > /dev/null 2>&1 &")?;
    Ok(())
}

fn spawns(lab: &Context) -> Outcome {
    let killed = lab.spawn("a sleeper", &["sh", "-c", "echo awake; exec sleep 1000"])?;
    lab.wait_for("its first word", Duration::from_secs(20), || {
        Ok(killed.log()?.contains("awake").then_some(()))
    })?;
    same("the exit code", killed.code()?, None)?;
    killed.kill()?;
    same("the exit code", killed.code()?, Some(137))?;
    let ended = lab.spawn("a short one", &["sh", "-c", "exit 5"])?;
    same("the exit code", ended.wait(Duration::from_secs(20))?, 5)
}

fn passes_again(lab: &Context) -> Outcome {
    let left = lab.shell("ip netns list | grep fvlab-; ip -brief link | grep fvlab-")?;
    same("what is left", left.stdout.as_str(), "")?;
    let scratch = lab.scratch();
    lab.shell_ok(&format!("test -d {scratch} && touch {scratch}/mine"))?;
    Ok(())
}

fn loops(_: &Context) -> Outcome {
    std::thread::sleep(Duration::from_secs(3600));
    Ok(())
}

/// What must be in the report of [`BROKEN`], whatever the target is.
pub fn judge(report: &hw_tests::lab::results::Report) {
    use Status::{Error, Failed, Passed, Skipped};
    expect(report, "ready", Passed, "");
    expect(report, "passes", Passed, "");
    expect(report, "fails", Failed, "exit code 9: the axle is broken");
    expect(report, "panics", Failed, "out of cheese");
    expect(
        report,
        "hangs",
        Error,
        "`sleep 1000` did not end within 2 s",
    );
    expect(report, "skips", Skipped, "no such NIC");
    expect(report, "needs_hardware", Skipped, "It needs 60 SR-IOV NICs");
    expect(report, "leaks", Failed, "namespace: fvlab-left is there");
    let changes = row(report, "leaks").changes.join("\n");
    for what in ["link: fvlab-left is there (veth)", "(sleep)"] {
        assert!(changes.contains(what), "{what} is not in {changes}");
    }
    expect(report, "spawns", Passed, "");
    expect(report, "passes_again", Passed, "");
    expect(
        report,
        "loops",
        Error,
        "did not end within 1 s and was left",
    );
    assert!(
        row(report, "fails").log.contains("$ sh -c"),
        "the log has the commands"
    );
    assert!(
        row(report, "fails").state.contains("$ ip"),
        "a failure comes with the state"
    );
    assert_eq!(row(report, "passes").measures[0].name, "answer_ms");
}

#[test]
fn on_this_machine_everything_ends_as_a_row_and_nothing_is_left() {
    let report = run("[[target]]\nname = 'here'\nkind = 'local'\n", &BROKEN);
    judge(&report);
    expect(
        &report,
        "too_late",
        Status::Error,
        "Not run: the target was given up",
    );
    let left = command::words(&["ip", "netns", "list"]).unwrap();
    assert!(!left.contains("fvlab-"), "{left}");
    let here = std::process::id();
    let scratch: Vec<_> = std::fs::read_dir("/var/tmp")
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(&format!("ferrovia-lab-{here}-")))
        .collect();
    assert!(scratch.is_empty(), "{scratch:?}");
}

#[test]
fn a_nic_that_is_not_there_is_an_error_that_names_it() {
    let report = run(
        "[[target]]\nname = 'here'\nkind = 'local'\nnics = ['0000:ff:1f.7']\n",
        &BROKEN,
    );
    expect(
        &report,
        "ready",
        Status::Error,
        "The NIC 0000:ff:1f.7 of the inventory is not on the target",
    );
    expect(
        &report,
        "passes",
        Status::Error,
        "Not run: the target could not be used",
    );
}

#[test]
fn a_target_s_own_limit_ends_what_is_left_of_it() {
    let inventory = "[[target]]\nname = 'here'\nkind = 'local'\nlimits = { target_s = 8 }\n";
    const SLOW: Suite = Suite {
        name: "slow",
        about: "Longer than its target may take",
        tests: &[
            Test::new("first", "takes all", |lab| {
                lab.exec(&["sleep", "30"])?;
                Ok(())
            }),
            Test::new("second", "has no time left", |_| Ok(())),
        ],
    };
    let report = run(inventory, &SLOW);
    expect(&report, "first", Status::Error, "did not end within");
    expect(
        &report,
        "second",
        Status::Error,
        "Not run: the target's time is used up",
    );
    assert!(
        report.targets[0]
            .error
            .as_ref()
            .unwrap()
            .contains("8 s is used up")
    );
}
