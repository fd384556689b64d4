//! Getting hold of the controller and of the agent.

use crate::args::Global;
use crate::failure::Failure;
use api::client::{self, ConnectError, Target};
use api::identity::{Identity, Paths};
use api::v1::agent_client::AgentClient;
use api::v1::controller_client::ControllerClient;
use api::v1::sriov_client::SriovClient;
use api::v1::xvio_client::XvioClient;
use std::path::PathBuf;
use tonic::transport::Channel;

/// Where the controller is when nobody says.
const DEFAULT_CONTROLLER: &str = "https://127.0.0.1:6640";

impl Global {
    /// The controller's URL: the option, the environment, what `login` kept, or the loopback default.
    pub fn controller_url(&self) -> String {
        let remembered = || {
            let dirs = self.identity_places().into_iter();
            dirs.filter_map(|paths| std::fs::read_to_string(paths.dir.join("controller")).ok())
                .map(|url| url.trim().to_owned())
                .next()
        };
        self.controller
            .clone()
            .or_else(remembered)
            .unwrap_or_else(|| DEFAULT_CONTROLLER.to_owned())
    }

    fn identity_places(&self) -> Vec<Paths> {
        match &self.identity {
            Some(dir) => vec![Paths::in_dir(dir)],
            None => [Some(Paths::operator(&self.root)), Paths::operator_of_user()]
                .into_iter()
                .flatten()
                .collect(),
        }
    }

    /// A client of the controller.
    pub async fn controller(&self) -> Result<ControllerClient<Channel>, Failure> {
        let url = self.controller_url();
        let identity = self
            .identity_places()
            .iter()
            .find(|paths| paths.exist())
            .map(Identity::load)
            .transpose()
            .map_err(|error| Failure::other(chain(&error)))?;
        let target = Target::controller(&url, identity, false).map_err(|error| match error {
            ConnectError::NoIdentity { .. } => Failure::denied(format!(
                "\"{url}\" needs a certificate and there is none here; `ferrovia login --controller {url} --token …` gets one"
            )),
            _ => Failure::usage(chain(&error)),
        })?;
        let channel = client::connect(&target).await.map_err(|error| match error {
            ConnectError::PlainNotLoopback { .. } => Failure::usage(format!(
                "\"{url}\" would send everything unencrypted to another machine; use https://, or run this on the controller's machine"
            )),
            ConnectError::BadIdentity { .. } => Failure::denied(chain(&error)),
            _ => Failure::unreachable(chain(&error)),
        })?;
        Ok(client::controller_client(channel))
    }

    /// The agent's socket.
    pub fn agent_socket(&self) -> PathBuf {
        self.agent
            .clone()
            .unwrap_or_else(|| self.root.join("run/ferrovia/agent.sock"))
    }

    /// A client of this host's agent.
    pub async fn agent(&self) -> Result<AgentClient<Channel>, Failure> {
        let channel = client::connect(&Target::Unix(self.agent_socket()))
            .await
            .map_err(|error| Failure::unreachable(chain(&error)))?;
        Ok(client::agent_client(channel))
    }

    /// A client of the NICs of this host's agent.
    pub async fn nics(&self) -> Result<SriovClient<Channel>, Failure> {
        let channel = client::connect(&Target::Unix(self.agent_socket()))
            .await
            .map_err(|error| Failure::unreachable(chain(&error)))?;
        Ok(client::nic_client(channel))
    }

    /// A client of the relays of this host's agent.
    pub async fn relays(&self) -> Result<XvioClient<Channel>, Failure> {
        let channel = client::connect(&Target::Unix(self.agent_socket()))
            .await
            .map_err(|error| Failure::unreachable(chain(&error)))?;
        Ok(client::relay_client(channel))
    }

    /// The same as [`Global::nics`], or nothing where no agent is there: what can be read without one is shown without one.
    pub async fn nics_if_any(&self) -> Result<Option<SriovClient<Channel>>, Failure> {
        if self.agent.is_none() && !self.agent_socket().exists() {
            return Ok(None);
        }
        match self.nics().await {
            Ok(client) => Ok(Some(client)),
            // Whoever names a socket wants to hear that nobody answers there.
            Err(failure) if self.agent.is_some() => Err(failure),
            Err(_) => Ok(None),
        }
    }

    /// Where `login` puts the identity.
    pub fn login_place(&self) -> Result<Paths, Failure> {
        match &self.identity {
            Some(dir) => Ok(Paths::in_dir(dir)),
            None => Paths::operator_of_user().ok_or_else(|| {
                Failure::usage(
                    "There is no home folder to keep the certificate in; give --identity DIR",
                )
            }),
        }
    }
}

/// The error and its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let next_text = next.to_string();
        if !text.contains(&next_text) {
            text.push_str(": ");
            text.push_str(&next_text);
        }
        cause = next.source();
    }
    text
}
