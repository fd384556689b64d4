//! The store: redb for durability, [`State`] for reading.
//!
//! One thread writes. It takes all requests that are waiting, plans and applies them one after the other to
//! its own state, commits all their changes in one transaction (with fsync), publishes the changes, and only
//! then answers. So an answer means "on disk", and a thousand requests at once cost a handful of fsyncs.

use std::os::unix::fs::PermissionsExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use crate::compile;
use crate::live::{Live, lock};
use crate::refusal::Refusal;
use crate::rows::{BadRow, Row};
use crate::state::{Change, State};

const META: TableDefinition<'_, &str, u128> = TableDefinition::new("meta");
const HOSTS: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("hosts");
const NETWORKS: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("networks");
const PORTS: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("ports");
const TOKENS: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("tokens");

/// The layout of the tables above.
const SCHEMA: u128 = 1;
/// Requests in one transaction, at most.
const BATCH: usize = 1024;
/// Requests that may wait; more wait in their own tasks.
const QUEUE: usize = 4096;

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("The store '{}' is in use by another controller; stop that one, or ask it", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Made by a later version.
    #[error("The store '{}' has layout {found}, and this version knows {SCHEMA}; use the version that wrote it", path.display())]
    Schema {
        /// The file.
        path: PathBuf,
        /// The layout found.
        found: u128,
    },
    /// A row is damaged.
    #[error("The store '{}' is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which row.
        #[source]
        source: BadRow,
    },
    /// Anything else.
    #[error("The store '{}' cannot be opened; check its permissions, the space of its file system, and whether it is a store", path.display())]
    Storage {
        /// The file.
        path: PathBuf,
        /// What redb or the system said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A request's changes, as its plan collects them.
#[derive(Debug, Default)]
pub struct Plan {
    changes: Vec<Change>,
}

impl Plan {
    /// What was added, in order.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Adds a change; it takes effect when the plan succeeds.
    pub fn push(&mut self, change: Change) {
        self.changes.push(change);
    }
}

type Answer = Box<dyn FnOnce(Result<(), Refusal>) + Send>;
type Job = Box<dyn FnOnce(&State) -> (Vec<Change>, Answer) + Send>;

/// The store. Dropping it finishes what waits and closes the file.
#[derive(Debug)]
pub struct Store {
    jobs: Option<mpsc::Sender<Job>>,
    published: Arc<Published>,
    writer: Option<std::thread::JoinHandle<()>>,
}

/// What readers see.
#[derive(Debug, Default)]
struct Published {
    state: RwLock<State>,
    live: Mutex<Live>,
}

impl Store {
    /// Opens the store, or makes it.
    ///
    /// # Errors
    /// [`OpenError`]; the file is left as it is.
    pub fn open(path: &Path) -> Result<Store, OpenError> {
        let storage = |source: redb::Error| OpenError::Storage {
            path: path.into(),
            source: source.into(),
        };
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|source| OpenError::Storage {
                path: path.into(),
                source: source.into(),
            })?;
        }
        let db = match Database::create(path) {
            Ok(db) => db,
            Err(redb::DatabaseError::DatabaseAlreadyOpen) => {
                return Err(OpenError::InUse { path: path.into() });
            }
            Err(error) => return Err(storage(error.into())),
        };
        // Tokens' hashes and the whole topology are in it.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(
            |source| OpenError::Storage {
                path: path.into(),
                source: source.into(),
            },
        )?;
        let schema = prepare(&db).map_err(storage)?;
        if schema != SCHEMA {
            return Err(OpenError::Schema {
                path: path.into(),
                found: schema,
            });
        }
        let state = load(&db)
            .map_err(storage)?
            .map_err(|source| OpenError::Damaged {
                path: path.into(),
                source,
            })?;
        let published = Arc::new(Published {
            state: RwLock::new(state.clone()),
            live: Mutex::default(),
        });
        let (jobs, queue) = mpsc::channel(QUEUE);
        let writer = Writer {
            db,
            work: state,
            published: published.clone(),
        };
        let writer = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || writer.run(queue))
            .map_err(|source| OpenError::Storage {
                path: path.into(),
                source: source.into(),
            })?;
        Ok(Store {
            jobs: Some(jobs),
            published,
            writer: Some(writer),
        })
    }

    /// What is committed. Do not hold it across an await.
    pub fn read(&self) -> RwLockReadGuard<'_, State> {
        self.published
            .state
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The agents. Where both are needed, lock this after [`Store::read`].
    pub fn live(&self) -> std::sync::MutexGuard<'_, Live> {
        lock(&self.published.live)
    }

    /// Plans and, when the plan succeeds, makes the changes durable and visible before it returns.
    ///
    /// # Errors
    /// The plan's refusal, or an internal one when the disk failed. Nothing was changed then.
    pub async fn write<T, F>(&self, plan: F) -> Result<T, Refusal>
    where
        T: Send + 'static,
        F: FnOnce(&State, &mut Plan) -> Result<T, Refusal> + Send + 'static,
    {
        let gone =
            || Refusal::unavailable("The controller's store has stopped; restart the controller");
        let (sender, answer) = oneshot::channel();
        let job: Job = Box::new(move |state| {
            let mut changes = Plan::default();
            let outcome = catch_unwind(AssertUnwindSafe(|| plan(state, &mut changes)))
                .unwrap_or_else(|_| {
                    Err(Refusal::internal(
                        "The controller failed on this request; report it with its log",
                    ))
                });
            let changes = if outcome.is_ok() {
                changes.changes
            } else {
                Vec::new()
            };
            // Nobody waits any more when the caller went away; the change stands all the same.
            let answer =
                move |committed: Result<(), Refusal>| drop(sender.send(committed.and(outcome)));
            (changes, Box::new(answer))
        });
        self.jobs
            .as_ref()
            .ok_or_else(gone)?
            .send(job)
            .await
            .map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

/// Makes the tables of a new store; says the layout.
fn prepare(db: &Database) -> Result<u128, redb::Error> {
    let txn = db.begin_write()?;
    let schema;
    {
        let mut meta = txn.open_table(META)?;
        let found = meta.get("schema")?.map(|value| value.value());
        schema = found.unwrap_or(SCHEMA);
        if found.is_none() {
            meta.insert("schema", SCHEMA)?;
            meta.insert("store_id", Uuid::new_v4().as_u128())?;
            meta.insert("revision", 0)?;
        }
        for table in [HOSTS, NETWORKS, PORTS, TOKENS] {
            txn.open_table(table)?;
        }
    }
    if schema == SCHEMA {
        txn.commit()?;
    } else {
        txn.abort()?;
    }
    Ok(schema)
}

fn load(db: &Database) -> Result<Result<State, BadRow>, redb::Error> {
    let txn = db.begin_read()?;
    let meta = txn.open_table(META)?;
    let number = |key: &str| -> Result<u128, redb::Error> {
        Ok(meta
            .get(key)?
            .map(|value| value.value())
            .unwrap_or_default())
    };
    let mut state = State::default();
    state.store_id = Uuid::from_u128(number("store_id")?);
    state.revision = u64::try_from(number("revision")?).unwrap_or(u64::MAX);
    macro_rules! each {
        ($table:ident, $put:ident) => {
            for row in txn.open_table($table)?.iter()? {
                let (key, bytes) = row?;
                match Row::from_row(key.value(), bytes.value()) {
                    Ok(record) => state.apply(&Change::$put(Arc::new(record))),
                    Err(bad) => return Ok(Err(bad)),
                }
            }
        };
    }
    each!(HOSTS, PutHost);
    each!(NETWORKS, PutNetwork);
    each!(PORTS, PutPort);
    each!(TOKENS, PutToken);
    Ok(Ok(state))
}

/// The thread that writes.
struct Writer {
    db: Database,
    work: State,
    published: Arc<Published>,
}

impl Writer {
    fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        while let Some(first) = queue.blocking_recv() {
            let mut next = Some(first);
            let (mut changes, mut answers, mut taken) = (Vec::new(), Vec::new(), 0);
            while let Some(job) = next {
                let (own, answer) = job(&self.work);
                if !own.is_empty() {
                    self.work.revision += 1;
                    own.iter().for_each(|change| self.work.apply(change));
                    changes.extend(own);
                }
                answers.push(answer);
                taken += 1;
                next = if taken < BATCH {
                    queue.try_recv().ok()
                } else {
                    None
                };
            }
            let committed = if changes.is_empty() {
                Ok(())
            } else {
                self.commit(&changes)
            };
            for answer in answers {
                answer(committed.clone());
            }
        }
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), Refusal> {
        if let Err(error) = self.save(changes) {
            tracing::error!(%error, "The store cannot be written; check the space and health of its file system, then restart the controller");
            self.work = self
                .published
                .state
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            return Err(Refusal::internal(
                "The controller's store cannot be written, so nothing was changed; check the space of its file system, then restart the controller",
            ));
        }
        let mut state = self
            .published
            .state
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let mut live = lock(&self.published.live);
        for change in changes {
            let before = compile::touched(&state, change);
            // A port that moves is forgotten by its session, once the old host's agent is told.
            if let Change::DeletePort(id) = change
                && let Some(host) = state.port(*id).and_then(|old| old.host)
            {
                live.forget_port(host, *id);
            }
            state.apply(change);
            for (host, what) in before.into_iter().chain(compile::touched(&state, change)) {
                live.touch(host, what);
            }
            if let Change::DeleteHost(id) = change {
                live.forget_host(*id);
            }
        }
        state.revision = self.work.revision;
        Ok(())
    }

    fn save(&self, changes: &[Change]) -> Result<(), redb::Error> {
        // Durability::Immediate is redb's default: commit returns after fsync.
        let txn = self.db.begin_write()?;
        {
            txn.open_table(META)?
                .insert("revision", u128::from(self.work.revision))?;
            let mut hosts = txn.open_table(HOSTS)?;
            let mut networks = txn.open_table(NETWORKS)?;
            let mut ports = txn.open_table(PORTS)?;
            let mut tokens = txn.open_table(TOKENS)?;
            for change in changes {
                match change {
                    Change::PutHost(host) => {
                        drop(hosts.insert(host.id.as_u128(), &*host.to_row())?)
                    }
                    Change::DeleteHost(id) => drop(hosts.remove(id.as_u128())?),
                    Change::PutNetwork(network) => {
                        drop(networks.insert(network.id.as_u128(), &*network.to_row())?)
                    }
                    Change::DeleteNetwork(id) => drop(networks.remove(id.as_u128())?),
                    Change::PutPort(port) => {
                        drop(ports.insert(port.id.as_u128(), &*port.to_row())?)
                    }
                    Change::DeletePort(id) => drop(ports.remove(id.as_u128())?),
                    Change::PutToken(token) => drop(tokens.insert(token.key(), &*token.to_row())?),
                    Change::DeleteToken(key) => drop(tokens.remove(*key)?),
                }
            }
        }
        txn.commit()?;
        Ok(())
    }
}
