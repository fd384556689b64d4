//! Join tokens: one line of text that lets a new machine or operator get a certificate, once.
//!
//! A token carries the CA's certificate, so that the client knows whom to trust before it has anything else,
//! and a secret of which the controller keeps only a hash. Text form: `frv1.` and the base64url of a JSON
//! object, without padding.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

/// What every token starts with.
pub const PREFIX: &str = "frv1.";
/// Longer text is not decoded. A token with an ECDSA CA has about 1,200 bytes.
pub const MAX_LEN: usize = 32 * 1024;

/// What the certificate that a token buys is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A host's agent.
    Host,
    /// A person or program that uses the controller's API.
    Operator,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Host => "host",
            Role::Operator => "operator",
        })
    }
}

/// A join token, decoded.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// The secret, base64url of 32 random bytes.
    pub secret: String,
    /// The CA that the controller's certificate must come from, PEM.
    pub ca_pem: String,
    /// What the certificate will be good for.
    pub role: Role,
    /// The name that the certificate will carry: the host's or the operator's.
    pub name: String,
    /// When the token stops working, seconds since the epoch.
    pub expires: i64,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The secret must not end in a log.
        f.debug_struct("Token")
            .field("role", &self.role)
            .field("name", &self.name)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// Why a text is not a token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It does not start with `frv1.`, or is absurdly long.
    #[error(
        "The text is not a join token, which starts with `frv1.`; make one with `ferrovia-controller token`"
    )]
    NotAToken,
    /// It starts like a token, but was damaged on its way.
    #[error("The join token is damaged; copy it again, whole and on one line")]
    Damaged(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Token {
    /// The text form.
    pub fn encode(&self) -> String {
        // A struct of strings and numbers always has a JSON form.
        let json = serde_json::to_vec(self).unwrap_or_default();
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(json))
    }

    /// Reads the text form; white space around it is allowed, as it comes from files.
    ///
    /// # Errors
    /// [`TokenError`] when it is not a token. Nothing is said about whether the controller takes it.
    pub fn decode(text: &str) -> Result<Token, TokenError> {
        let text = text.trim();
        let body = text.strip_prefix(PREFIX).ok_or(TokenError::NotAToken)?;
        if text.len() > MAX_LEN {
            return Err(TokenError::NotAToken);
        }
        let json = URL_SAFE_NO_PAD
            .decode(body)
            .map_err(|error| TokenError::Damaged(error.into()))?;
        serde_json::from_slice(&json).map_err(|error| TokenError::Damaged(error.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        Token {
            secret: "s3cret".into(),
            ca_pem: "PEM".into(),
            role: Role::Host,
            name: "h1".into(),
            expires: 12,
        }
    }

    #[test]
    fn a_token_survives_its_text_form() {
        let text = token().encode();
        assert!(text.starts_with("frv1."));
        assert_eq!(Token::decode(&format!(" {text}\n")).unwrap(), token());
    }

    #[test]
    fn damaged_text_is_an_error_and_not_a_panic() {
        let text = token().encode();
        assert!(matches!(Token::decode("hello"), Err(TokenError::NotAToken)));
        for cut in 0..text.len() {
            assert!(Token::decode(&text[..cut]).is_err(), "cut at {cut}");
        }
        assert!(Token::decode(&format!("frv1.{}", "A".repeat(MAX_LEN))).is_err());
    }

    #[test]
    fn the_secret_is_not_in_the_debug_form() {
        assert!(!format!("{:?}", token()).contains("s3cret"));
    }
}
