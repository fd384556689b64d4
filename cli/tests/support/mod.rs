//! A real controller in this process, and the real `ferrovia` command under it.
#![allow(dead_code, reason = "each test program uses its own part of it")]

use std::path::{Path, PathBuf};
use std::process::Command;

use api::client::{self, Target};
use api::identity::Paths;
use api::token::Role;
use api::v1;
use api::v1::controller_client::ControllerClient;
use controller::pki::{Ca, Subject, server_names};
use controller::server::{Options, Running};
use controller::service::make_token;
use tempfile::TempDir;
use tonic::transport::Channel;

/// A controller, with a folder for itself and one for the person who types.
pub struct Lab {
    pub running: Running,
    root: TempDir,
    home: TempDir,
    plain: bool,
}

/// What a command printed, and its exit code.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Lab {
    pub async fn plain() -> Lab {
        Lab::start(true).await
    }

    /// With a CA and a server certificate, and nobody logged in.
    pub async fn tls() -> Lab {
        Lab::start(false).await
    }

    async fn start(plain: bool) -> Lab {
        let root = tempfile::tempdir().unwrap();
        if !plain {
            let (ca, _) = Ca::load_or_make(root.path(), "ctl").unwrap();
            let names = server_names("ctl", &[]).unwrap();
            let own = ca.issue(Subject::Server("ctl", &names)).unwrap();
            own.store(&Paths::server(root.path())).unwrap();
        }
        let options = Options {
            root: root.path().into(),
            listen: "127.0.0.1:0".parse().unwrap(),
            plain,
            plain_anywhere: false,
        };
        Lab {
            running: Running::start(&options).await.unwrap(),
            root,
            home: tempfile::tempdir().unwrap(),
            plain,
        }
    }

    pub fn url(&self) -> String {
        let scheme = if self.plain { "http" } else { "https" };
        format!("{scheme}://{}", self.running.address())
    }

    pub fn home(&self) -> &Path {
        self.home.path()
    }

    pub async fn token(&self, role: Role, name: &str) -> String {
        let ca = Ca::load(self.root.path()).unwrap();
        make_token(self.running.store(), &ca, role, name.into(), 60)
            .await
            .unwrap()
            .encode()
    }

    /// A client beside the command; plain only.
    pub async fn client(&self) -> ControllerClient<Channel> {
        let target = Target::controller(&self.url(), None, false).unwrap();
        client::controller_client(client::connect(&target).await.unwrap())
    }

    /// Runs `ferrovia` with these words.
    pub fn run(&self, words: &[&str]) -> Run {
        self.run_at(&self.url(), words)
    }

    /// Runs it under another controller's URL.
    pub fn run_at(&self, url: &str, words: &[&str]) -> Run {
        let done = Command::new(env!("CARGO_BIN_EXE_ferrovia"))
            .arg("--root")
            .arg(self.home.path().join("root"))
            .args(words)
            .env_clear()
            .env("HOME", self.home.path())
            // A `virsh` of the test's own, if it made one, before this machine's.
            .env(
                "PATH",
                format!("{}/bin:/usr/bin:/bin", self.home.path().display()),
            )
            .env("FERROVIA_CONTROLLER", url)
            .output()
            .unwrap();
        Run {
            code: done.status.code().expect("an exit code"),
            out: String::from_utf8(done.stdout).unwrap(),
            err: String::from_utf8(done.stderr).unwrap(),
        }
    }

    /// Runs it, which must succeed, and reads its JSON.
    #[track_caller]
    pub fn json(&self, words: &[&str]) -> serde_json::Value {
        let run = self.run(&[words, &["-o", "json"]].concat());
        assert_eq!((run.code, run.err.as_str()), (0, ""), "{words:?}");
        serde_json::from_str(&run.out).unwrap()
    }

    /// Runs it, which must fail with this code and one sentence that has these words, and change nothing.
    #[track_caller]
    pub fn refused(&self, words: &[&str], code: i32, said: &[&str]) {
        let before = self.running.store().read().revision;
        let run = self.run(words);
        assert_eq!(run.code, code, "{words:?}: {run:?}");
        assert_eq!(run.out, "", "{words:?}");
        assert!(
            run.err.starts_with("error: ") && run.err.trim_end().lines().count() == 1,
            "{words:?}: {}",
            run.err
        );
        for word in said {
            assert!(run.err.contains(word), "{words:?}: {}", run.err);
        }
        assert_eq!(self.running.store().read().revision, before, "{words:?}");
    }

    pub fn identity(&self) -> PathBuf {
        self.home.path().join(".config/ferrovia/operator")
    }
}

/// An agent that says of every port that it is ready.
pub async fn agent(lab: &Lab, host: &str) -> tokio::task::JoinHandle<()> {
    let (outbox, messages) = tokio::sync::mpsc::channel(16);
    let say = |message| v1::AgentMessage {
        message: Some(message),
    };
    let hello = v1::AgentHello {
        host: host.into(),
        ..Default::default()
    };
    let hello = say(v1::agent_message::Message::Hello(hello));
    outbox.send(hello).await.unwrap();
    let target = Target::controller(&lab.url(), None, false).unwrap();
    let mut inbox = client::sync_client(client::connect(&target).await.unwrap())
        .sync(tokio_stream::wrappers::ReceiverStream::new(messages))
        .await
        .unwrap()
        .into_inner();
    tokio::spawn(async move {
        while let Ok(Some(message)) = inbox.message().await {
            let Some(v1::controller_message::Message::Desired(step)) = message.message else {
                continue;
            };
            let ports = step.upserts.iter().filter_map(|resource| {
                Some(v1::PortReport {
                    port: resource.key.strip_prefix("port/")?.into(),
                    status: Some(v1::PortStatus {
                        state: v1::PortState::Ready.into(),
                        socket: "/run/ferrovia/vhost/x.sock".into(),
                        vf: "0000:3b:02.1".into(),
                        vlan: 42,
                        ..Default::default()
                    }),
                })
            });
            let status = v1::AgentStatus {
                ports: ports.collect(),
            };
            let version = step.version;
            let _ = outbox
                .send(say(v1::agent_message::Message::Status(status)))
                .await;
            let applied = v1::agent_message::Message::Applied(v1::Applied { version });
            let _ = outbox.send(say(applied)).await;
        }
    })
}
