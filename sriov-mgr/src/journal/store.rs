//! Ledger and file together: a change is on disk before whoever brought it goes on.
//!
//! Threads that bring records while a sync is under way wait for the next one, which takes all of theirs at
//! once. The first error is the last thing that happens: afterwards nobody knows what is on disk, so
//! nothing more is announced, and hence nothing more done, before a new start has read it.

use super::crash::CrashPoints;
use super::record::Record;
use super::{JournalError, Ledger, file};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The file is replaced by its state when it is longer than this, bytes.
const LONG: u64 = 1 << 20;

/// The journal of one folder.
pub(crate) struct Store {
    dir: PathBuf,
    /// Locked before `disk`.
    ledger: Mutex<Ledger>,
    disk: Mutex<Disk>,
    synced: Condvar,
    crash: CrashPoints,
    /// The lock of the folder goes when it is dropped.
    _lock: File,
}

struct Disk {
    file: File,
    /// Bytes in the file.
    size: u64,
    /// Number of the next line.
    next: u64,
    waiting: Vec<Record>,
    /// Records ever brought.
    brought: u64,
    /// Of these, how many are on disk.
    durable: u64,
    syncing: bool,
    dead: Option<JournalError>,
}

impl Store {
    /// Locks `dir` and reads what is in it.
    pub(crate) fn open(dir: &Path, crash: CrashPoints) -> Result<Store, JournalError> {
        fs::create_dir_all(dir).map_err(|error| io("Making", dir, error))?;
        let path = dir.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|error| io("Opening", &path, error))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => JournalError::Locked {
                dir: dir.to_owned(),
            },
            TryLockError::Error(error) => io("Locking", &path, error),
        })?;
        let path = dir.join("journal");
        let ledger = match fs::read(&path) {
            Ok(content) => file::read(&content, &path)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ledger::default(),
            Err(error) => return Err(io("Reading", &path, error)),
        };
        let (file, size) = replace(dir, &ledger)?;
        Ok(Store {
            dir: dir.to_owned(),
            ledger: Mutex::new(ledger),
            disk: Mutex::new(Disk {
                file,
                size,
                next: 2,
                waiting: Vec::new(),
                brought: 0,
                durable: 0,
                syncing: false,
                dead: None,
            }),
            synced: Condvar::new(),
            crash,
            _lock: lock,
        })
    }

    /// Looks at the state.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&Ledger) -> T) -> T {
        look(&self.ledger())
    }

    /// Writes `record` down; it is on disk when this returns.
    pub(crate) fn write(&self, record: Record) -> Result<(), JournalError> {
        self.decide(|_| Ok::<_, JournalError>((Some(record), ())))
    }

    /// Decides on the state, with nobody else deciding, and writes the decision down, if there is one; it is
    /// on disk when this returns.
    pub(crate) fn decide<T, E: From<JournalError>>(
        &self,
        decide: impl FnOnce(&Ledger) -> Result<(Option<Record>, T), E>,
    ) -> Result<T, E> {
        let mut ledger = self.ledger();
        let (record, value) = decide(&ledger)?;
        let Some(record) = record else {
            return Ok(value);
        };
        let mut disk = self.disk();
        if let Some(dead) = &disk.dead {
            return Err(dead.clone().into());
        }
        ledger.apply(&record);
        disk.waiting.push(record);
        disk.brought += 1;
        let mine = disk.brought;
        if disk.size > LONG && !disk.syncing {
            let done = self.compact(&ledger, &mut disk);
            drop((ledger, disk));
            return done.map(|()| value).map_err(E::from);
        }
        drop(ledger);
        self.sync(disk, mine)?;
        Ok(value)
    }

    fn sync<'a>(&'a self, mut disk: MutexGuard<'a, Disk>, mine: u64) -> Result<(), JournalError> {
        loop {
            if disk.durable >= mine {
                return Ok(());
            }
            if let Some(dead) = &disk.dead {
                return Err(dead.clone());
            }
            if disk.syncing {
                let waited = self.synced.wait(disk);
                disk = waited.unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            disk.syncing = true;
            let records = std::mem::take(&mut disk.waiting);
            let (number, upto) = (disk.next, disk.brought);
            let written = disk.file.try_clone().map_err(|e| e.to_string());
            drop(disk);
            let written = written.and_then(|file| append(&file, number, &records));
            disk = self.disk();
            disk.syncing = false;
            match written {
                Ok(bytes) => {
                    disk.size += bytes;
                    disk.next += 1;
                    disk.durable = upto;
                }
                Err(why) => disk.dead = Some(self.dead(why)),
            }
            self.synced.notify_all();
            if disk.dead.is_none() {
                drop(disk);
                self.crash.pass(records.len() as u64);
                disk = self.disk();
            }
        }
    }

    /// Replaces the file by the state, which has in it what waits.
    fn compact(&self, ledger: &Ledger, disk: &mut Disk) -> Result<(), JournalError> {
        match replace(&self.dir, ledger) {
            Ok((file, size)) => {
                disk.file = file;
                disk.size = size;
                disk.next = 2;
                disk.waiting.clear();
                disk.durable = disk.brought;
                self.synced.notify_all();
                Ok(())
            }
            Err(error) => {
                disk.dead = Some(error.clone());
                self.synced.notify_all();
                Err(error)
            }
        }
    }

    fn dead(&self, why: String) -> JournalError {
        JournalError::Io {
            what: "Writing",
            path: self.dir.join("journal"),
            why,
        }
    }

    /// The state is whole at every moment at which a thread can die.
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn append(mut file: &File, number: u64, records: &[Record]) -> Result<u64, String> {
    let line = file::line(number, records)?;
    file.write_all(line.as_bytes())
        .and_then(|()| file.sync_data())
        .map_err(|error| error.to_string())?;
    Ok(line.len() as u64)
}

/// Writes a new file with the whole state in it, and puts it in the place of the old one.
fn replace(dir: &Path, ledger: &Ledger) -> Result<(File, u64), JournalError> {
    let (new, path) = (dir.join("journal.new"), dir.join("journal"));
    let record = Record::Whole {
        ledger: Box::new(ledger.clone()),
    };
    let line = file::line(1, &[record]).map_err(|why| JournalError::Io {
        what: "Writing",
        path: new.clone(),
        why,
    })?;
    let content = format!("{}{line}", file::header());
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(dir)?.sync_all()?;
        Ok(file)
    };
    let file = write().map_err(|error| io("Writing", &new, error))?;
    Ok((file, content.len() as u64))
}

fn io(what: &'static str, path: &Path, error: std::io::Error) -> JournalError {
    JournalError::Io {
        what,
        path: path.to_owned(),
        why: error.to_string(),
    }
}
