//! `ferrovia token` and `ferrovia login`.

use crate::args::{self, Global};
use crate::connect::chain;
use crate::failure::Failure;
use crate::output::{Format, json, print};
use api::identity;
use api::token::{Role, Token};
use api::v1;
use api::v1::create_token_request::Subject;

pub async fn run(global: &Global, command: args::Token) -> Result<(), Failure> {
    let args::Token::Create {
        host,
        operator,
        valid,
    } = command;
    let subject = host
        .map(Subject::Host)
        .or_else(|| operator.map(Subject::Operator));
    let request = v1::CreateTokenRequest {
        subject,
        valid_seconds: valid,
    };
    let token = global
        .controller()
        .await?
        .create_token(request)
        .await?
        .into_inner()
        .token;
    match global.output {
        Format::Json => json(&serde_json::json!({ "token": token })),
        Format::Table => print(&token),
    }
}

pub async fn login(global: &Global, token: &str) -> Result<(), Failure> {
    let url = global.controller_url();
    let place = global.login_place()?;
    // Looked at first: a host's token would be used up for a certificate that is no good here.
    let role = Token::decode(token)
        .map_err(|error| Failure::denied(chain(&error)))?
        .role;
    if role != Role::Operator {
        return Err(Failure::usage(
            "The token is for a host's agent; ask for one made with `ferrovia token create --operator NAME`",
        ));
    }
    identity::join(&url, token, &place)
        .await
        .map_err(|error| match &error {
            identity::IdentityError::Refused { message, code, .. } => {
                Failure::from(tonic::Status::new(*code, message.clone()))
            }
            identity::IdentityError::Connect(_) => Failure::unreachable(chain(&error)),
            identity::IdentityError::Exists { .. } => Failure::taken(chain(&error)),
            _ => Failure::other(chain(&error)),
        })?;
    std::fs::write(place.dir.join("controller"), format!("{url}\n"))?;
    global.output.said(&format!(
        "Logged in to {url}; the certificate is in {}.",
        place.dir.display()
    ))
}
