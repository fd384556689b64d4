//! The key, certificate and CA that a program keeps on disk, and how it gets them.
//!
//! Everything lies under `<root>/var/lib/ferrovia/pki/`: `agent/`, `operator/`, and on a controller `ca/` and
//! `server/`, each a folder with `key.pem`, `cert.pem` and `ca.pem`. A folder appears whole or not at all: it
//! is written beside its place and renamed. The private key never leaves the machine that made it, unless an
//! operator copies it.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::client::{self, ConnectError, Target};
use crate::token::{Token, TokenError};
use crate::v1;

/// Where the key, certificate and CA of one identity are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// The folder of the three files.
    pub dir: PathBuf,
    /// The private key, PKCS#8 PEM, mode 0600.
    pub key: PathBuf,
    /// The certificate, PEM.
    pub cert: PathBuf,
    /// The CA that the other side must come from, PEM.
    pub ca: PathBuf,
}

impl Paths {
    /// The files in a folder.
    pub fn in_dir(dir: impl Into<PathBuf>) -> Paths {
        let dir = dir.into();
        Paths {
            key: dir.join("key.pem"),
            cert: dir.join("cert.pem"),
            ca: dir.join("ca.pem"),
            dir,
        }
    }

    /// A host agent's identity.
    pub fn agent(root: &Path) -> Paths {
        Paths::in_dir(pki_dir(root).join("agent"))
    }

    /// The operator's identity on this machine: what the CLI uses, and what `ferrovia-controller init` makes.
    pub fn operator(root: &Path) -> Paths {
        Paths::in_dir(pki_dir(root).join("operator"))
    }

    /// The operator's identity of one user, `~/.config/ferrovia/operator`; looked at when [`Paths::operator`]
    /// is not there or not readable. `None` without a home.
    pub fn operator_of_user() -> Option<Paths> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let config = set("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(set("HOME")?).join(".config")))?;
        Some(Paths::in_dir(config.join("ferrovia/operator")))
    }

    /// The controller's own identity.
    pub fn server(root: &Path) -> Paths {
        Paths::in_dir(pki_dir(root).join("server"))
    }

    /// The controller's CA.
    pub fn ca(root: &Path) -> Paths {
        Paths::in_dir(pki_dir(root).join("ca"))
    }

    /// Whether an identity is there (whole, as folders appear whole).
    pub fn exist(&self) -> bool {
        self.cert.exists() && self.key.exists() && self.ca.exists()
    }
}

/// The folder of all identities.
pub fn pki_dir(root: &Path) -> PathBuf {
    root.join("var/lib/ferrovia/pki")
}

/// Who we are, and whom we trust. All PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// Our private key.
    pub key_pem: String,
    /// Our certificate.
    pub cert_pem: String,
    /// The CA that the other side must come from.
    pub ca_pem: String,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key must not end in a log.
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

/// Why an identity could not be had.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read.
    #[error("The file '{}' cannot be read; join with a token first, or check its permissions", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file or folder cannot be written.
    #[error("'{}' cannot be written; check the permissions and the space of its file system", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// An identity is there and must not be overwritten.
    #[error("'{}' already holds an identity; remove the folder to join anew", path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// The token cannot be read.
    #[error("The join token cannot be used")]
    Token(#[from] TokenError),
    /// A key or a signing request could not be made.
    #[error("No key or certificate request could be made for '{name}'")]
    Request {
        /// The name in the token.
        name: String,
        /// What the cryptography library said.
        #[source]
        source: rcgen::Error,
    },
    /// The controller cannot be reached.
    #[error("The controller cannot be reached to join")]
    Connect(#[from] ConnectError),
    /// The controller said no.
    #[error("The controller at '{url}' refused to let '{name}' join: {message}")]
    Refused {
        /// The controller's URL.
        url: String,
        /// The name in the token.
        name: String,
        /// The controller's sentence.
        message: String,
        /// The gRPC status code.
        code: tonic::Code,
    },
}

impl Identity {
    /// Reads the three files.
    ///
    /// # Errors
    /// [`IdentityError::Read`] with the first file that cannot be read.
    pub fn load(paths: &Paths) -> Result<Identity, IdentityError> {
        let read = |path: &Path| {
            fs::read_to_string(path).map_err(|source| IdentityError::Read {
                path: path.into(),
                source,
            })
        };
        Ok(Identity {
            key_pem: read(&paths.key)?,
            cert_pem: read(&paths.cert)?,
            ca_pem: read(&paths.ca)?,
        })
    }

    /// Writes the three files, 0600 in a folder of 0700, all or nothing.
    ///
    /// # Errors
    /// [`IdentityError::Exists`] when the folder already holds an identity, which stays as it is.
    pub fn store(&self, paths: &Paths) -> Result<(), IdentityError> {
        store_dir(
            &paths.dir,
            &[
                ("key.pem", &self.key_pem),
                ("cert.pem", &self.cert_pem),
                ("ca.pem", &self.ca_pem),
            ],
        )
    }
}

/// Makes a folder with files that only the owner may read; it appears whole or not at all. An empty folder in
/// its place is replaced, any other is left alone.
///
/// # Errors
/// [`IdentityError::Exists`] when something is there, [`IdentityError::Write`] when the system says no.
pub fn store_dir(dir: &Path, files: &[(&str, &str)]) -> Result<(), IdentityError> {
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| IdentityError::Write { path, source }
    };
    let parent = dir.parent().unwrap_or(Path::new("/"));
    // 0755: an operator who is not root may have a folder of their own in it.
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(parent)
        .map_err(failed(parent))?;
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let new = parent.join(format!(".{name}.new.{}", std::process::id()));
    // What a killed process with our id left.
    match fs::remove_dir_all(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&new)(error)),
        _ => {}
    }
    let written = write_files(&new, files).and_then(|()| match fs::rename(&new, dir) {
        Err(error) if occupied(&error) => Err(IdentityError::Exists { path: dir.into() }),
        other => other.map_err(failed(dir)),
    });
    if written.is_err() {
        let _ = fs::remove_dir_all(&new);
        return written;
    }
    File::open(parent)
        .and_then(|parent| parent.sync_all())
        .map_err(failed(parent))
}

/// rename(2) says either when the target folder is not empty.
fn occupied(error: &io::Error) -> bool {
    use nix::errno::Errno;
    error
        .raw_os_error()
        .is_some_and(|code| [Errno::ENOTEMPTY, Errno::EEXIST].contains(&Errno::from_raw(code)))
}

fn write_files(dir: &Path, files: &[(&str, &str)]) -> Result<(), IdentityError> {
    let failed = |path: &Path, source| IdentityError::Write {
        path: path.into(),
        source,
    };
    DirBuilder::new()
        .mode(0o700)
        .create(dir)
        .map_err(|source| failed(dir, source))?;
    for (name, text) in files {
        let path = dir.join(name);
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| {
                file.write_all(text.as_bytes())
                    .and_then(|()| file.sync_all())
            })
            .map_err(|source| failed(&path, source))?;
    }
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|source| failed(dir, source))
}

/// Buys a certificate with a token: makes a key, asks the controller at `url` (`https://`), and stores all
/// three files in `paths`. Only the CA inside the token is trusted.
///
/// # Errors
/// [`IdentityError`]; nothing is stored then. A token works once: after a failure of the last step (writing
/// the files) a new one is needed.
pub async fn join(url: &str, token: &str, paths: &Paths) -> Result<Identity, IdentityError> {
    if paths.exist() {
        return Err(IdentityError::Exists {
            path: paths.dir.clone(),
        });
    }
    let text = token.trim();
    let token = Token::decode(text)?;
    let request = |source| IdentityError::Request {
        name: token.name.clone(),
        source,
    };
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(request)?;
    let mut params = rcgen::CertificateParams::new(Vec::new()).map_err(request)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, token.name.as_str());
    let csr_pem = params
        .serialize_request(&key)
        .and_then(|csr| csr.pem())
        .map_err(request)?;

    let target = Target::TlsAnonymous {
        url: url.into(),
        ca_pem: token.ca_pem.clone(),
    };
    let channel = client::connect(&target).await?;
    let answer = v1::join_client::JoinClient::new(channel)
        .join(v1::JoinRequest {
            token: text.into(),
            csr_pem,
        })
        .await
        .map_err(|status| IdentityError::Refused {
            url: url.into(),
            name: token.name.clone(),
            message: status.message().into(),
            code: status.code(),
        })?
        .into_inner();
    let identity = Identity {
        key_pem: key.serialize_pem(),
        cert_pem: answer.certificate_pem,
        ca_pem: token.ca_pem.clone(),
    };
    identity.store(paths)?;
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn identity(text: &str) -> Identity {
        Identity {
            key_pem: format!("{text} key"),
            cert_pem: format!("{text} cert"),
            ca_pem: format!("{text} ca"),
        }
    }

    #[test]
    fn an_identity_is_stored_for_its_owner_only_and_never_overwritten() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::agent(root.path());
        assert!(!paths.exist());
        identity("first").store(&paths).unwrap();
        assert!(paths.exist());
        assert_eq!(
            fs::metadata(&paths.key).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(
            fs::metadata(&paths.dir).unwrap().permissions().mode() & 0o777,
            0o700
        );
        assert!(matches!(
            identity("second").store(&paths),
            Err(IdentityError::Exists { .. })
        ));
        assert_eq!(Identity::load(&paths).unwrap(), identity("first"));
        let left = fs::read_dir(pki_dir(root.path())).unwrap().count();
        assert_eq!(left, 1, "no temporary folder is left");
    }

    #[test]
    fn a_missing_identity_names_the_file() {
        let error = Identity::load(&Paths::operator(Path::new("/nonexistent"))).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("/nonexistent/var/lib/ferrovia/pki/operator/key.pem"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn joining_with_rubbish_stores_nothing() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::agent(root.path());
        let error = join("https://127.0.0.1:1", "rubbish", &paths)
            .await
            .unwrap_err();
        assert!(matches!(error, IdentityError::Token(TokenError::NotAToken)));
        assert!(!paths.dir.exists());
    }
}
