//! The CA and what it signs. ECDSA on P-256 throughout.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use api::identity::{Identity, IdentityError, Paths};
use api::token::Role;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

/// Certificates are not renewed by themselves yet, so they last.
const LEAF_DAYS: i64 = 10 * 365;
const CA_DAYS: i64 = 30 * 365;

/// Why a certificate could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file is missing or not writable.
    #[error("The controller's keys cannot be used")]
    Files(#[from] IdentityError),
    /// A text that cannot be in a certificate.
    #[error(
        "'{name}' cannot be a name in the controller's certificate; use a host name or an IP address"
    )]
    BadName {
        /// The name.
        name: String,
    },
    /// The cryptography library refused.
    #[error("No certificate could be made for '{name}'")]
    Sign {
        /// Whose.
        name: String,
        /// What it said.
        #[source]
        source: rcgen::Error,
    },
    /// A request to sign is not one.
    #[error("The certificate request is not valid; join again with a new key")]
    BadRequest(#[source] rcgen::Error),
    /// The CA's own files are damaged.
    #[error(
        "The CA in '{dir}' is damaged; restore it from a backup, or remove the folder and initialise anew"
    )]
    Damaged {
        /// Its folder.
        dir: String,
        /// What the library said.
        #[source]
        source: rcgen::Error,
    },
}

/// The certificate authority, ready to sign.
pub struct Ca {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca").finish_non_exhaustive()
    }
}

/// What a certificate is for.
#[derive(Clone, Copy, Debug)]
pub enum Subject<'a> {
    /// The controller: it serves under these names and addresses.
    Server(&'a str, &'a [String]),
    /// An operator.
    Operator(&'a str),
    /// A host's agent.
    Host(&'a str, Uuid),
}

impl Subject<'_> {
    /// The subject that a token buys.
    pub fn of(role: Role, name: &str, host: Option<Uuid>) -> Subject<'_> {
        match (role, host) {
            (Role::Host, Some(id)) => Subject::Host(name, id),
            // A host's token always has an id; without one it buys a certificate for no host.
            (Role::Host, None) => Subject::Host(name, Uuid::nil()),
            (Role::Operator, _) => Subject::Operator(name),
        }
    }
}

fn signing(name: &str) -> impl Fn(rcgen::Error) -> PkiError {
    move |source| PkiError::Sign {
        name: name.into(),
        source,
    }
}

fn params(name: &str, organisation: &str, days: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
        .distinguished_name
        .push(DnType::OrganizationName, organisation);
    let now = OffsetDateTime::now_utc();
    // Clocks of hosts may be behind.
    params.not_before = now - Duration::hours(24);
    params.not_after = now + Duration::days(days);
    params
}

impl Ca {
    /// Reads the CA, or makes it. Returns whether it was made.
    ///
    /// # Errors
    /// [`PkiError`]; an existing CA is never changed.
    pub fn load_or_make(root: &Path, name: &str) -> Result<(Ca, bool), PkiError> {
        let paths = Paths::ca(root);
        if paths.dir.exists() {
            return Ok((Ca::load(root)?, false));
        }
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(signing(name))?;
        let mut params = params(&format!("{name} CA"), "ferrovia", CA_DAYS);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).map_err(signing(name))?.pem();
        Identity {
            key_pem: key.serialize_pem(),
            cert_pem: pem.clone(),
            ca_pem: pem,
        }
        .store(&paths)?;
        Ok((Ca::load(root)?, true))
    }

    /// Reads the CA.
    ///
    /// # Errors
    /// [`PkiError`] when it is not there or damaged.
    pub fn load(root: &Path) -> Result<Ca, PkiError> {
        let paths = Paths::ca(root);
        let files = Identity::load(&paths)?;
        let damaged = |source| PkiError::Damaged {
            dir: paths.dir.display().to_string(),
            source,
        };
        let key = KeyPair::from_pem(&files.key_pem).map_err(damaged)?;
        let issuer = Issuer::from_ca_cert_pem(&files.cert_pem, key).map_err(damaged)?;
        Ok(Ca {
            pem: files.cert_pem,
            issuer,
        })
    }

    /// The CA's certificate.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Makes a key and a certificate for it, for use on this machine.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn issue(&self, subject: Subject<'_>) -> Result<Identity, PkiError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(signing("a key"))?;
        let cert_pem = self.sign(subject, &key)?;
        Ok(Identity {
            key_pem: key.serialize_pem(),
            cert_pem,
            ca_pem: self.pem.clone(),
        })
    }

    /// Signs the key in a request that came from elsewhere. Everything else in the request is ignored: the
    /// token decides what the certificate says.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn sign_request(
        &self,
        subject: Subject<'_>,
        request: &SigningRequest,
    ) -> Result<String, PkiError> {
        self.sign(subject, &request.0.public_key)
    }

    fn sign(&self, subject: Subject<'_>, key: &impl PublicKeyData) -> Result<String, PkiError> {
        let uri = |uri: String| {
            uri.as_str()
                .try_into()
                .map(SanType::URI)
                .map_err(|source| PkiError::Sign {
                    name: uri.clone(),
                    source,
                })
        };
        let (name, organisation, names, usage) = match subject {
            Subject::Server(name, names) => {
                let names = names
                    .iter()
                    .map(|name| server_name(name))
                    .collect::<Result<_, _>>()?;
                (
                    name,
                    "ferrovia controller",
                    names,
                    ExtendedKeyUsagePurpose::ServerAuth,
                )
            }
            Subject::Operator(name) => {
                let names = vec![uri(format!("ferrovia:operator/{name}"))?];
                (
                    name,
                    "ferrovia operator",
                    names,
                    ExtendedKeyUsagePurpose::ClientAuth,
                )
            }
            Subject::Host(name, id) => {
                let names = vec![
                    uri(format!("ferrovia:host/{name}"))?,
                    uri(format!("ferrovia:host-id/{id}"))?,
                ];
                (
                    name,
                    "ferrovia host",
                    names,
                    ExtendedKeyUsagePurpose::ClientAuth,
                )
            }
        };
        let mut params = params(name, organisation, LEAF_DAYS);
        params.is_ca = IsCa::ExplicitNoCa;
        params.subject_alt_names = names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        Ok(params
            .signed_by(key, &self.issuer)
            .map_err(signing(name))?
            .pem())
    }
}

/// A request to sign whose own signature was checked: its maker has the key.
pub struct SigningRequest(CertificateSigningRequestParams);

impl SigningRequest {
    /// Reads and checks it.
    ///
    /// # Errors
    /// [`PkiError::BadRequest`].
    pub fn from_pem(pem: &str) -> Result<SigningRequest, PkiError> {
        CertificateSigningRequestParams::from_pem(pem)
            .map(SigningRequest)
            .map_err(PkiError::BadRequest)
    }
}

/// The names that the controller's certificate always has, and those asked for, each once.
///
/// # Errors
/// [`PkiError::BadName`].
pub fn server_names(name: &str, more: &[String]) -> Result<Vec<String>, PkiError> {
    let mut names = vec![
        "localhost".to_owned(),
        Ipv4Addr::LOCALHOST.to_string(),
        Ipv6Addr::LOCALHOST.to_string(),
        name.to_owned(),
    ];
    // A host name that cannot be in a certificate is left out; it can still be reached by the others.
    let hostname = nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok());
    names.extend(hostname.filter(|name| server_name(name).is_ok()));
    names.extend(more.iter().cloned());
    let mut seen = std::collections::HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
        .iter()
        .try_for_each(|name| server_name(name).map(drop))?;
    Ok(names)
}

fn server_name(name: &str) -> Result<SanType, PkiError> {
    let bad = || PkiError::BadName { name: name.into() };
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() > 253 || !name.split('.').all(label) {
        return Err(bad());
    }
    name.try_into().map(SanType::DnsName).map_err(|_| bad())
}
