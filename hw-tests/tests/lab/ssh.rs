//! A host over ssh: a real sshd of our own on the loopback, with keys of its own.

use crate::broken::{BROKEN, judge};
use crate::{expect, run};
use hw_tests::command;
use hw_tests::lab::inventory::{self, Kind};
use hw_tests::lab::results::Status;
use hw_tests::lab::target::Target;
use hw_tests::process::Daemon;
use hw_tests::run::Run;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// An sshd that knows one key.
struct Sshd {
    key: PathBuf,
    known: PathBuf,
    port: u16,
    _daemon: Daemon,
    _run: Run,
}

impl Sshd {
    fn start() -> Sshd {
        let run = Run::start().unwrap();
        let dir = run.subdir("sshd").unwrap();
        for name in ["host", "user"] {
            let file = dir.join(name);
            let words = [
                "ssh-keygen",
                "-q",
                "-t",
                "ed25519",
                "-N",
                "",
                "-f",
                file.to_str().unwrap(),
            ];
            command::words(&words).unwrap();
        }
        let port = free_port();
        let here = dir.display();
        // A umask of the tester's may have made the folder open to all, which StrictModes refuses.
        let config = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {here}/host\nAuthorizedKeysFile {here}/user.pub\n\
             StrictModes no\nPermitRootLogin yes\nPasswordAuthentication no\nUsePAM no\nPidFile none\n\
             PrintMotd no\n"
        );
        fs::write(dir.join("config"), config).unwrap();
        let known = dir.join("known");
        let host = fs::read_to_string(dir.join("host.pub")).unwrap();
        fs::write(&known, format!("[127.0.0.1]:{port} {host}")).unwrap();
        // Where sshd's unprivileged part lives; the service makes it, and no service runs here.
        fs::create_dir_all("/run/sshd").unwrap();
        let mut sshd = Command::new("/usr/sbin/sshd");
        sshd.args(["-D", "-e", "-f"]).arg(dir.join("config"));
        let daemon = Daemon::start(&run, "sshd", &mut sshd).unwrap();
        command::wait_for("sshd's port", Duration::from_secs(20), || {
            daemon.check()?;
            Ok(TcpStream::connect(("127.0.0.1", port))?)
        })
        .unwrap();
        Sshd {
            key: dir.join("user"),
            known,
            port,
            _daemon: daemon,
            _run: run,
        }
    }

    fn inventory(&self, more: &str) -> String {
        format!(
            "[[target]]\nname = 'rack'\nkind = 'ssh'\naddress = '127.0.0.1'\nport = {}\nkey = '{}'\n\
             ssh_options = ['UserKnownHostsFile={}']\n{more}\n",
            self.port,
            self.key.display(),
            self.known.display()
        )
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

#[test]
fn on_a_host_over_ssh_everything_ends_as_a_row_and_nothing_is_left() {
    let sshd = Sshd::start();
    let report = run(&sshd.inventory("programs = '/usr/bin'"), &BROKEN);
    judge(&report);
    assert_eq!(report.targets[0].kind, "ssh");
}

#[test]
fn files_and_programs_get_there_and_back() {
    let sshd = Sshd::start();
    let dir = tempfile::Builder::new().prefix("fvl").tempdir().unwrap();
    let inventory = inventory::parse(&sshd.inventory(""), Path::new("x")).unwrap();
    let spec = &inventory.targets[0];
    let Kind::Ssh(ssh) = &spec.kind else { panic!() };
    assert_eq!(ssh.programs, inventory::Programs::Copy);
    let target = Target::open(spec, dir.path()).unwrap();
    let limit = Duration::from_secs(30);
    let (from, to, back) = (
        dir.path().join("from"),
        format!("{}/it's here", target.scratch()),
        dir.path().join("back"),
    );
    let bytes: Vec<u8> = (0..100_000u32).map(|n| (n * 7 % 256) as u8).collect();
    fs::write(&from, &bytes).unwrap();
    target.put_file(&from, &to, limit).unwrap();
    target.get_file(&to, &back, limit).unwrap();
    assert_eq!(fs::read(&back).unwrap(), bytes);
    let error = target
        .get_file("/no/such/file", &back, limit)
        .unwrap_err()
        .to_string();
    assert!(error.contains("No such file"), "{error}");
    let strange = ["printf", "%s|", "a b", "'", "$HOME", "\n", "ü"];
    let done = target.exec(&strange, limit).unwrap();
    assert_eq!(done.stdout, "a b|'|$HOME|\n|ü|");
    let done = target.exec(&["sh", "-c", "exit 255"], limit).unwrap();
    assert_eq!(
        done.code, 255,
        "ssh's own code is not taken for the command's"
    );
}

#[test]
fn a_refused_connection_is_an_error_row() {
    let inventory = format!(
        "[[target]]\nname = 'gone'\nkind = 'ssh'\naddress = '127.0.0.1'\nport = {}\n",
        free_port()
    );
    let report = run(&inventory, &BROKEN);
    expect(
        &report,
        "ready",
        Status::Error,
        "cannot be reached over ssh: ",
    );
    expect(&report, "ready", Status::Error, "Connection refused");
    expect(&report, "passes", Status::Error, "Not run");
}

#[test]
fn a_host_that_never_answers_is_an_error_row_within_its_limit() {
    // A port that takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let inventory = format!(
        "[[target]]\nname = 'mute'\nkind = 'ssh'\naddress = '127.0.0.1'\nport = {}\nlimits = {{ ready_s = 2 }}\n",
        silent.local_addr().unwrap().port()
    );
    let report = run(&inventory, &BROKEN);
    expect(&report, "ready", Status::Error, "");
    let took = report.targets[0].duration_s;
    assert!(took < 60.0, "{took} s");
}
