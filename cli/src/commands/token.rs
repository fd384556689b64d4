//! `ferrovia token` and `ferrovia login`.

use crate::args::{Global, Token};
use crate::connect::chain;
use crate::failure::Failure;
use crate::output::{Format, json, print};
use api::identity;
use api::v1;
use api::v1::create_token_request::Subject;

pub async fn run(global: &Global, command: Token) -> Result<(), Failure> {
    let Token::Create {
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
    identity::join(&url, token, &place)
        .await
        .map_err(|error| match &error {
            identity::IdentityError::Refused { message, code, .. } => {
                Failure::from(tonic::Status::new(*code, message.clone()))
            }
            identity::IdentityError::Connect(_) => Failure::unreachable(chain(&error)),
            _ => Failure::other(chain(&error)),
        })?;
    std::fs::write(place.dir.join("controller"), format!("{url}\n"))?;
    global.output.said(&format!(
        "Logged in to {url}; the certificate is in {}.",
        place.dir.display()
    ))
}
