//! Logging in, certificates, and controllers that are not there.

mod support;

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;

use api::token::Role;
use serde_json::json;
use support::Lab;

#[tokio::test(flavor = "multi_thread")]
async fn a_token_buys_a_certificate_once() {
    let lab = Lab::tls().await;
    lab.refused(
        &["host", "list"],
        6,
        &["needs a certificate", "ferrovia login"],
    );
    let token = lab.token(Role::Operator, "alice").await;
    let login = lab.run(&["login", "--token", &token]);
    assert_eq!((login.code, login.err.as_str()), (0, ""));
    let key = std::fs::metadata(lab.identity().join("key.pem")).unwrap();
    assert_eq!(key.permissions().mode() & 0o777, 0o600);
    assert_eq!(lab.json(&["host", "list"]), json!([]));
    assert_eq!(lab.json(&["host", "create", "h1"])["name"], "h1");

    lab.refused(
        &["login", "--token", &token],
        4,
        &["already holds an identity"],
    );
    let other = lab.home().join("other");
    let other = other.to_str().unwrap();
    lab.refused(
        &["login", "--identity", other, "--token", &token],
        6,
        &["used already"],
    );
    assert!(
        !lab.home().join("other").exists(),
        "nothing is left of a login that failed"
    );

    // Tokens come from the command as well.
    let made = lab.json(&["token", "create", "--operator", "bob", "--valid", "60"]);
    let made = made["token"].as_str().unwrap();
    assert_eq!(
        lab.run(&["login", "--identity", other, "--token", made])
            .code,
        0
    );
    assert_eq!(
        lab.json(&["host", "list", "--identity", other])[0]["name"],
        "h1"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_wrong_buys_nothing() {
    let lab = Lab::tls().await;
    lab.refused(&["login", "--token", "rubbish"], 6, &["not a join token"]);
    lab.refused(&["login", "--token", "frv1.AAAA"], 6, &["damaged"]);
    let host = lab.token(Role::Host, "h1").await;
    lab.refused(
        &["login", "--token", &host],
        2,
        &["host's agent", "--operator"],
    );
    assert!(!lab.identity().exists());
    // The host's token is still good: nothing was asked of the controller.
    let paths = api::identity::Paths::in_dir(lab.home().join("h1"));
    api::identity::join(&lab.url(), &host, &paths)
        .await
        .unwrap();
    // A host's certificate is not an operator's.
    let dir = lab.home().join("h1");
    lab.refused(
        &["host", "list", "--identity", dir.to_str().unwrap()],
        6,
        &["h1", "operator's"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_is_not_there_is_exit_code_5() {
    let plain = Lab::plain().await;
    let tls = Lab::tls().await;
    let nobody = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let mixed = tls.url().replace("https", "http");
    for (url, code, said) in [
        (nobody.as_str(), 5, "No connection to"),
        (mixed.as_str(), 5, "https://"),
        ("http://192.0.2.1:6640", 2, "unencrypted"),
        ("ctl:6640", 2, "is not a URL"),
        ("banana", 2, "is not a URL"),
    ] {
        let run = plain.run_at(url, &["host", "list"]);
        assert_eq!(run.code, code, "{url}: {run:?}");
        assert!(run.err.contains(said), "{url}: {}", run.err);
        assert_eq!(run.err.trim_end().lines().count(), 1, "{}", run.err);
    }
    let agent = plain.run(&["status"]);
    assert_eq!(agent.code, 5);
    assert!(
        agent.err.contains("run/ferrovia/agent.sock"),
        "{}",
        agent.err
    );
}
