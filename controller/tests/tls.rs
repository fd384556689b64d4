//! Certificates, tokens and roles, with the program's own `init` and `token`.

mod harness;

use std::path::Path;
use std::process::Command;

use api::client::{self, Target};
use api::identity::{self, Identity, IdentityError, Paths};
use api::token::{Role, Token};
use api::v1;
use harness::*;
use tonic::Code;

fn program(root: &Path, args: &[&str]) -> serde_json::Value {
    let run = Command::new(env!("CARGO_BIN_EXE_ferrovia-controller"))
        .args(args)
        .args(["-o", "json", "--root"])
        .arg(root)
        .output()
        .unwrap();
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
    serde_json::from_slice(&run.stdout).unwrap()
}

/// An initialised controller that serves, and the first operator's token.
async fn secure() -> (Lab, String) {
    let root = tempfile::tempdir().unwrap();
    let facts = program(root.path(), &["init", "--san", "ctl.example"]);
    let mut lab = Lab {
        root,
        running: None,
        plain: false,
    };
    lab.start().await;
    (lab, facts["operator_token"].as_str().unwrap().to_owned())
}

async fn connect(lab: &Lab, identity: Identity) -> tonic::transport::Channel {
    client::connect(&Target::Tls {
        url: lab.url(),
        identity,
    })
    .await
    .unwrap()
}

async fn operator(lab: &Lab) -> Client {
    let identity = Identity::load(&Paths::operator(lab.root.path())).unwrap();
    client::controller_client(connect(lab, identity).await)
}

async fn host_token(client: &mut Client, host: &str) -> String {
    let request = v1::CreateTokenRequest {
        subject: Some(v1::create_token_request::Subject::Host(host.into())),
        valid_seconds: 60,
    };
    client
        .create_token(request)
        .await
        .unwrap()
        .into_inner()
        .token
}

#[track_caller]
fn join_refused(outcome: Result<Identity, IdentityError>, expected: Code) {
    match outcome {
        Err(IdentityError::Refused { code, message, .. }) => {
            assert_eq!(code, expected, "{message}")
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_host_joins_once_and_syncs_as_itself_only() {
    let (lab, _) = secure().await;
    let mut op = operator(&lab).await;
    let info = op.get_info(v1::Empty {}).await.unwrap().into_inner();
    assert!(!info.plain);
    let token = host_token(&mut op, "h1").await;
    op.create_host(host("h2")).await.unwrap();
    let store = tempfile::tempdir().unwrap();
    let paths = Paths::agent(store.path());
    let identity = identity::join(&lab.url(), &token, &paths).await.unwrap();
    assert_eq!(Identity::load(&paths).unwrap(), identity);

    // The token is used up.
    let elsewhere = Paths::in_dir(store.path().join("elsewhere"));
    join_refused(
        identity::join(&lab.url(), &token, &elsewhere).await,
        Code::Unauthenticated,
    );
    assert!(!elsewhere.dir.exists());

    let mut agent = Agent::connect(
        connect(&lab, identity.clone()).await,
        hello("h1", "192.0.2.1", 1500),
    )
    .await
    .unwrap();
    agent.step().await.unwrap();
    let mut liar = Agent::connect(
        connect(&lab, identity.clone()).await,
        hello("h2", "192.0.2.2", 1500),
    )
    .await
    .unwrap();
    refused(
        liar.step().await,
        Code::PermissionDenied,
        &["host h1", "'h2'"],
    );
    let mut c = client::controller_client(connect(&lab, identity.clone()).await);
    refused(
        c.list_hosts(v1::ListRequest::default()).await,
        Code::PermissionDenied,
        &["host h1", "operator's"],
    );
    refused(
        c.create_token(v1::CreateTokenRequest::default()).await,
        Code::PermissionDenied,
        &["h1"],
    );

    // A renamed host keeps its agent; a deleted one does not, even when another gets its name.
    let rename = v1::UpdateHostRequest {
        r#ref: "h1".into(),
        name: Some("new".into()),
        ..Default::default()
    };
    op.update_host(rename).await.unwrap();
    let mut agent = Agent::connect(
        connect(&lab, identity.clone()).await,
        hello("h1", "192.0.2.1", 1500),
    )
    .await
    .unwrap();
    agent.step().await.unwrap();
    op.delete_host(delete("new", 0)).await.unwrap();
    assert_eq!(agent.step().await.unwrap_err().code(), Code::NotFound);
    op.create_host(host("h1")).await.unwrap();
    let mut ghost = Agent::connect(
        connect(&lab, identity).await,
        hello("h1", "192.0.2.1", 1500),
    )
    .await
    .unwrap();
    refused(
        ghost.step().await,
        Code::PermissionDenied,
        &["h1", "deleted"],
    );
}

#[tokio::test]
async fn without_a_certificate_nothing_but_join_is_answered() {
    let (lab, _) = secure().await;
    let ca_pem = Identity::load(&Paths::server(lab.root.path()))
        .unwrap()
        .ca_pem;
    let channel = client::connect(&Target::TlsAnonymous {
        url: lab.url(),
        ca_pem,
    })
    .await
    .unwrap();
    let mut c = client::controller_client(channel.clone());
    refused(
        c.get_info(v1::Empty {}).await,
        Code::Unauthenticated,
        &["join"],
    );
    refused(
        c.create_host(host("h1")).await,
        Code::Unauthenticated,
        &["join"],
    );
    let agent = Agent::connect(channel.clone(), hello("h1", "", 0)).await;
    assert_eq!(agent.err().unwrap().code(), Code::Unauthenticated);
    let mut join = v1::join_client::JoinClient::new(channel);
    let request = v1::JoinRequest {
        token: "rubbish".into(),
        csr_pem: String::new(),
    };
    refused(
        join.join(request.clone()).await,
        Code::Unauthenticated,
        &["frv1."],
    );
    // Until it asks too often.
    let mut codes = Vec::new();
    for _ in 0..40 {
        codes.push(join.join(request.clone()).await.unwrap_err().code());
    }
    assert!(codes.contains(&Code::ResourceExhausted), "{codes:?}");
    let huge = v1::JoinRequest {
        token: "x".repeat(100_000),
        csr_pem: String::new(),
    };
    assert_eq!(join.join(huge).await.unwrap_err().code(), Code::OutOfRange);
}

#[tokio::test]
async fn wrong_tokens_buy_nothing_and_a_bad_request_does_not_cost_the_token() {
    let (lab, first) = secure().await;
    let folder = tempfile::tempdir().unwrap();
    let paths = Paths::in_dir(folder.path().join("x"));
    let good = Token::decode(&first).unwrap();
    let forged = Token {
        secret: "A".repeat(43),
        ..good.clone()
    };
    join_refused(
        identity::join(&lab.url(), &forged.encode(), &paths).await,
        Code::Unauthenticated,
    );
    let other_ca = controller::pki::Ca::load_or_make(folder.path(), "other")
        .unwrap()
        .0;
    let wrong_ca = Token {
        ca_pem: other_ca.pem().into(),
        ..good.clone()
    };
    let outcome = identity::join(&lab.url(), &wrong_ca.encode(), &paths).await;
    assert!(
        matches!(outcome, Err(IdentityError::Connect(_))),
        "{outcome:?}"
    );
    let channel = client::connect(&Target::TlsAnonymous {
        url: lab.url(),
        ca_pem: good.ca_pem.clone(),
    })
    .await
    .unwrap();
    let bad = v1::JoinRequest {
        token: first.clone(),
        csr_pem: "no request".into(),
    };
    refused(
        v1::join_client::JoinClient::new(channel).join(bad).await,
        Code::InvalidArgument,
        &["request"],
    );
    // What the token's text claims beyond the secret counts for nothing: it stays an operator's.
    let claims = Token {
        role: Role::Host,
        name: "h7".into(),
        expires: i64::MAX,
        ..good
    };
    let identity = identity::join(&lab.url(), &claims.encode(), &paths)
        .await
        .unwrap();
    let mut c = client::controller_client(connect(&lab, identity).await);
    c.list_hosts(v1::ListRequest::default()).await.unwrap();
    assert!(
        lab.running().store().read().tokens().next().is_none(),
        "used up"
    );
}

#[tokio::test]
async fn a_token_that_is_over_buys_nothing() {
    let (lab, _) = secure().await;
    let ca = controller::pki::Ca::load(lab.root.path()).unwrap();
    let store = lab.running().store();
    let made = controller::service::make_token(store, &ca, Role::Host, "h1".into(), 1)
        .await
        .unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(2100)).await;
    let paths = Paths::in_dir(lab.root.path().join("x"));
    join_refused(
        identity::join(&lab.url(), &made.encode(), &paths).await,
        Code::Unauthenticated,
    );
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_refused() {
    let (lab, _) = secure().await;
    let (other, _) = secure().await;
    let stranger = Identity::load(&Paths::operator(other.root.path())).unwrap();
    let own = Identity::load(&Paths::operator(lab.root.path())).unwrap();
    let mixed = Identity {
        ca_pem: own.ca_pem,
        ..stranger
    };
    let refused = match client::connect(&Target::Tls {
        url: lab.url(),
        identity: mixed,
    })
    .await
    {
        Err(_) => true,
        // TLS 1.3 tells the client only with the first call.
        Ok(channel) => client::controller_client(channel)
            .get_info(v1::Empty {})
            .await
            .is_err(),
    };
    assert!(refused);
}

#[tokio::test]
async fn init_again_keeps_everything_and_token_asks_the_running_controller() {
    let (lab, _) = secure().await;
    let root = lab.root.path();
    let before = Identity::load(&Paths::operator(root)).unwrap();
    let again = program(root, &["init"]);
    assert_eq!(
        (&again["ca"], &again["server"], &again["operator"]),
        (&"kept".into(), &"kept".into(), &"kept".into())
    );
    assert!(again["operator_token"].is_null());
    assert_eq!(Identity::load(&Paths::operator(root)).unwrap(), before);
    // The store is ours, so the program must ask.
    let url = lab.url();
    let folder = root.to_path_buf();
    let facts = tokio::task::spawn_blocking(move || {
        program(&folder, &["token", "--host", "h5", "--controller", &url])
    })
    .await
    .unwrap();
    assert_eq!(facts["role"], "host");
    let mut op = operator(&lab).await;
    op.get_host(by_ref("h5")).await.unwrap();
    let paths = Paths::in_dir(root.join("h5"));
    identity::join(&lab.url(), facts["token"].as_str().unwrap(), &paths)
        .await
        .unwrap();
}
