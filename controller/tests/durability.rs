//! The real program, killed with -9 in the middle of 1,000 creations, loses nothing that it acknowledged.

mod harness;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use api::client::{self, Target};
use api::v1;
use harness::{Client, network, port};

/// Killed when dropped.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn run(root: &Path) -> (Program, Client) {
    let mut program = Program(
        Command::new(env!("CARGO_BIN_EXE_ferrovia-controller"))
            .args([
                "run",
                "--plain",
                "--listen",
                "127.0.0.1:0",
                "-o",
                "json",
                "--root",
            ])
            .arg(root)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let mut line = String::new();
    BufReader::new(program.0.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let facts: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(facts["mode"], "plain");
    let url = format!("http://{}", facts["listen"].as_str().unwrap());
    let channel = client::connect(&Target::Plain {
        url,
        anywhere: false,
    })
    .await
    .unwrap();
    (program, client::controller_client(channel))
}

async fn all_ports(client: &mut Client) -> BTreeMap<String, v1::Port> {
    let mut ports = BTreeMap::new();
    let mut request = v1::ListPortsRequest {
        page_size: 1000,
        ..Default::default()
    };
    loop {
        let page = client
            .list_ports(request.clone())
            .await
            .unwrap()
            .into_inner();
        ports.extend(page.ports.into_iter().map(|port| (port.name.clone(), port)));
        if page.next_page_token.is_empty() {
            return ports;
        }
        request.page_token = page.next_page_token;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_the_middle_of_a_thousand_creations_it_loses_none_acknowledged() {
    let root = tempfile::tempdir().unwrap();
    let (mut program, mut client) = run(root.path()).await;
    client
        .create_network(network("blue", &["10.0.0.0/16", "2001:db8::/64"]))
        .await
        .unwrap();
    let done = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..20)
        .map(|task| {
            let (mut client, done) = (client.clone(), done.clone());
            tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                for number in 0..50 {
                    match client
                        .create_port(port(&format!("p{task}-{number}"), "blue", ""))
                        .await
                    {
                        Ok(port) => acknowledged.push(port.into_inner()),
                        Err(_) => break,
                    }
                    done.fetch_add(1, Ordering::SeqCst);
                }
                acknowledged
            })
        })
        .collect();
    while done.load(Ordering::SeqCst) < 300 {
        tokio::task::yield_now().await;
    }
    // SIGKILL.
    program.0.kill().unwrap();
    program.0.wait().unwrap();
    let mut acknowledged = Vec::new();
    for task in tasks {
        acknowledged.extend(task.await.unwrap());
    }
    assert!(
        (300..1000).contains(&acknowledged.len()),
        "killed too late: {}",
        acknowledged.len()
    );

    let (_program, mut client) = run(root.path()).await;
    let stored = all_ports(&mut client).await;
    println!(
        "{} acknowledged, {} stored",
        acknowledged.len(),
        stored.len()
    );
    for port in &acknowledged {
        let stored = stored
            .get(&port.name)
            .unwrap_or_else(|| panic!("{} was lost", port.name));
        assert_eq!(
            (&stored.id, &stored.mac, &stored.addresses, stored.revision),
            (&port.id, &port.mac, &port.addresses, port.revision)
        );
    }
    // And what it makes now collides with nothing.
    let new = client
        .create_port(port("new", "blue", ""))
        .await
        .unwrap()
        .into_inner();
    assert!(stored.values().all(
        |port| port.mac != new.mac && port.addresses.iter().all(|a| !new.addresses.contains(a))
    ));
}

#[test]
fn a_second_controller_on_the_same_store_says_so() {
    let root = tempfile::tempdir().unwrap();
    let store =
        controller::store::Store::open(&controller::server::store_path(root.path())).unwrap();
    let second = Command::new(env!("CARGO_BIN_EXE_ferrovia-controller"))
        .args(["run", "--plain", "--listen", "127.0.0.1:0", "--root"])
        .arg(root.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(3), "{text}");
    assert!(text.contains("in use by another controller"), "{text}");
    drop(store);
}

#[test]
fn wrong_configuration_and_usage_touch_nothing() {
    let root = tempfile::tempdir().unwrap();
    let program = |args: &[&str]| {
        let run = Command::new(env!("CARGO_BIN_EXE_ferrovia-controller"))
            .args(args)
            .arg("--root")
            .arg(root.path())
            .output()
            .unwrap();
        (
            run.status.code(),
            String::from_utf8_lossy(&run.stderr).into_owned(),
        )
    };
    let (code, text) = program(&["run", "--plain", "--listen", "0.0.0.0:0"]);
    assert!(
        code == Some(2) && text.contains("--plain-anywhere"),
        "{code:?} {text}"
    );
    let (code, text) = program(&["run", "--listen", "127.0.0.1:0"]);
    assert!(
        code == Some(2) && text.contains("ferrovia-controller init"),
        "{code:?} {text}"
    );
    let (code, _) = program(&["token"]);
    assert_eq!(code, Some(2));
    let (code, text) = program(&["token", "--host", "h1"]);
    assert!(
        code == Some(2) && text.contains("ferrovia-controller init"),
        "{code:?} {text}"
    );
    let (code, text) = program(&["init", "--san", "no name"]);
    assert!(
        code == Some(2) && text.contains("'no name'"),
        "{code:?} {text}"
    );
    std::fs::create_dir_all(root.path().join("etc/ferrovia")).unwrap();
    std::fs::write(
        root.path().join("etc/ferrovia/controller.toml"),
        "plain = true\nlisten 5\n",
    )
    .unwrap();
    let (code, text) = program(&["run"]);
    assert!(
        code == Some(2) && text.contains("controller.toml:2: "),
        "{code:?} {text}"
    );
    assert!(!root.path().join("var").exists(), "nothing was touched");
}

#[test]
fn a_closed_standard_output_is_an_error_and_no_panic() {
    let root = tempfile::tempdir().unwrap();
    let full = std::fs::File::options()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let run = Command::new(env!("CARGO_BIN_EXE_ferrovia-controller"))
        .args(["init", "--root"])
        .arg(root.path())
        .stdout(full)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(1), "{text}");
    assert!(
        text.contains("standard output") && !text.contains("panicked"),
        "{text}"
    );
}
