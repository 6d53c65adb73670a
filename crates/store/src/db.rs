//! Connections and transactions.
//!
//! SQLite: one writer and a few readers over a write-ahead log. Every write
//! transaction is `BEGIN IMMEDIATE`: a deferred one that reads first fails
//! under load instead of waiting. Postgres: one pool, `READ COMMITTED`. Where a
//! transaction reads what it then changes, it locks those rows
//! ([`Tx::locking`]), always in the order sandbox, runs, snapshots, so that two
//! of them never wait for each other.

use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dormouse_vault::Vault;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, PgConnection, PgPool, SqlitePool};

use crate::error::{Result, StoreError};
use crate::pace::{Hold, Pace};
use crate::room::Room;

/// Connections to Postgres: more than the work of one server keeps busy, and
/// few enough for several servers below the default `max_connections` of 100.
const POSTGRES_CONNECTIONS: u32 = 16;

/// How long a call waits for a connection or for the writer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where a database is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A file of this server's own.
    Sqlite(PathBuf),
    /// A Postgres, 15 or newer, that several servers may share.
    Postgres(Box<PostgresAddress>),
}

/// A `postgres://` URL. It may hold a password, so it is not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresAddress(String);

impl std::fmt::Debug for PostgresAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PostgresAddress")
    }
}

impl std::str::FromStr for Address {
    type Err = StoreError;

    /// `postgres://…` (or `postgresql://…`), or `sqlite:PATH`.
    fn from_str(text: &str) -> Result<Self> {
        // The text of an address that is none may hold a password too.
        let scheme = || text.split(':').next().unwrap_or_default().to_owned();
        match text.split_once(':') {
            Some(("sqlite", path)) if !path.is_empty() => {
                Ok(Self::Sqlite(PathBuf::from(path.strip_prefix("//").unwrap_or(path))))
            }
            Some(("postgres" | "postgresql", _)) => match PgConnectOptions::from_str(text) {
                Ok(_) => Ok(Self::Postgres(Box::new(PostgresAddress(text.to_owned())))),
                Err(_) => Err(StoreError::Address(format!("{}:…", scheme()))),
            },
            _ => Err(StoreError::Address(format!("{}:…", scheme()))),
        }
    }
}

#[derive(Debug)]
pub(crate) enum Pool {
    Sqlite { writer: SqlitePool, readers: SqlitePool, log: PathBuf, room: Room },
    Postgres(PgPool),
}

/// How often the database was asked since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// Queries outside of transactions.
    pub reads: u64,
    /// Write transactions that were begun.
    pub writes: u64,
}

#[derive(Debug, Default)]
struct Counters {
    reads: AtomicU64,
    writes: AtomicU64,
}

/// The database.
#[derive(Debug, Clone)]
pub struct Db {
    pool: Arc<Pool>,
    counters: Arc<Counters>,
    pace: Option<Arc<dyn Pace>>,
    pub(crate) vault: Option<Arc<Vault>>,
}

/// A write transaction; dropped without [`Tx::commit`] it changes nothing.
#[derive(Debug)]
pub struct Tx {
    pub(crate) inner: Transaction,
    pub(crate) vault: Option<Arc<Vault>>,
    // Dropped last.
    _hold: Option<Hold>,
}

#[derive(Debug)]
pub(crate) enum Transaction {
    Sqlite(sqlx::Transaction<'static, sqlx::Sqlite>),
    Postgres(sqlx::Transaction<'static, sqlx::Postgres>),
}

impl Db {
    /// Opens the database at `address` and brings its schema up to date; a
    /// SQLite file is made where there is none.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot be reached, or is newer than this build.
    pub async fn open(address: &Address) -> Result<Self> {
        let pool = match address {
            Address::Sqlite(path) => open_sqlite(path).await?,
            Address::Postgres(address) => open_postgres(address).await?,
        };
        Ok(Self { pool: Arc::new(pool), counters: Arc::default(), pace: None, vault: None })
    }

    /// [`Db::open`] of a SQLite file.
    ///
    /// # Errors
    /// Those of [`Db::open`].
    pub async fn open_file(path: &Path) -> Result<Self> {
        Self::open(&Address::Sqlite(path.to_owned())).await
    }

    /// Seals what is secret in it with this key, which is the database's from now on.
    ///
    /// # Errors
    /// [`StoreError::OtherKey`] for a database that has another.
    pub async fn sealed_by(self, vault: Arc<Vault>) -> Result<Self> {
        let failed = |_| StoreError::OtherKey;
        let id = vault.id().map_err(failed)?;
        let known = self.sql("read the id of the secret key", "SELECT id FROM secret_key");
        match known.one(|row| row.of("secret_key", "").get::<String>("id")).await? {
            Some(known) if known != id => return Err(StoreError::OtherKey),
            Some(_) => {}
            None => {
                let insert = self.change("record the secret key", "INSERT INTO secret_key (id) VALUES ($1)");
                insert.bind(id).execute().await?;
            }
        }
        Ok(Self { vault: Some(vault), ..self })
    }

    /// In the hands of a simulation, or of whoever tries what a death in the middle of
    /// something leaves.
    #[must_use]
    pub fn paced(self, pace: Arc<dyn Pace>) -> Self {
        Self { pace: Some(pace), ..self }
    }

    pub(crate) async fn hold(&self, what: &str) -> Option<Hold> {
        match &self.pace {
            Some(pace) => Some(pace.turn(what).await),
            None => None,
        }
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(crate) fn count_read(&self) {
        self.counters.reads.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_write(&self) {
        self.counters.writes.fetch_add(1, Ordering::Relaxed);
    }

    /// How often it was asked so far.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        Traffic {
            reads: self.counters.reads.load(Ordering::Relaxed),
            writes: self.counters.writes.load(Ordering::Relaxed),
        }
    }

    /// Whether other servers may use it at the same time.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        matches!(*self.pool, Pool::Postgres(_)) || self.pace.as_ref().is_some_and(|pace| pace.is_shared())
    }

    /// Takes room on the disk for what is written later, where it has not got
    /// it yet; whether it has it then. Blocks for as long as the disk does. A
    /// Postgres looks after its own disk.
    ///
    /// # Errors
    /// What the file system says, a full disk aside.
    pub fn keep_room(&self) -> std::io::Result<bool> {
        match &*self.pool {
            Pool::Sqlite { room, .. } => room.keep(),
            Pool::Postgres(_) => Ok(true),
        }
    }

    /// Begins a write transaction.
    ///
    /// # Errors
    /// [`StoreError::Database`] when the writer is not to be had in time.
    pub async fn write(&self) -> Result<Tx> {
        const BEGIN: &str = "BEGIN IMMEDIATE";
        let hold = self.hold("write").await;
        self.count_write();
        let failed = StoreError::database("begin a write transaction");
        let begun = match &*self.pool {
            Pool::Sqlite { writer, .. } => match writer.begin_with(BEGIN).await {
                // On a full disk SQLite rolls back by itself ("Automatic
                // rollback", its documentation of transactions), and the driver,
                // whose own rollback fails then, takes the transaction for open
                // for ever.
                Err(sqlx::Error::InvalidSavePointStatement) => {
                    replace(writer).await?;
                    writer.begin_with(BEGIN).await.map(Transaction::Sqlite)
                }
                begun => begun.map(Transaction::Sqlite),
            },
            Pool::Postgres(pool) => pool.begin_with("BEGIN").await.map(Transaction::Postgres),
        };
        begun.map(|inner| Tx { vault: self.vault.clone(), inner, _hold: hold }).map_err(failed)
    }

    /// Returns once everything committed so far survives the death of the
    /// host. Postgres does not answer a commit before that
    /// (`synchronous_commit`).
    ///
    /// # Errors
    /// The error of `fdatasync(2)` on the write-ahead log.
    pub async fn sync(&self) -> std::io::Result<()> {
        let Pool::Sqlite { log, .. } = &*self.pool else { return Ok(()) };
        let (log, _hold) = (log.clone(), self.hold("sync").await);
        let synced = tokio::task::spawn_blocking(move || std::fs::File::open(log)?.sync_data());
        synced.await.map_err(std::io::Error::other)?
    }

    /// [`Db::sync`] after what nobody may have forgotten when the host is back,
    /// such as the end of a key.
    pub(crate) async fn last(&self, operation: &'static str) -> Result<()> {
        self.sync().await.map_err(|error| StoreError::database(operation)(error.into()))
    }

    /// Asks the database something, to see whether it answers.
    ///
    /// # Errors
    /// [`StoreError::Database`] when it does not.
    pub async fn ping(&self) -> Result<()> {
        self.sql("ping", "SELECT 1").exists().await.map(drop)
    }

    /// Ends all connections.
    pub async fn close(&self) {
        match &*self.pool {
            Pool::Sqlite { readers, writer, .. } => {
                readers.close().await;
                writer.close().await;
            }
            Pool::Postgres(pool) => pool.close().await,
        }
    }
}

impl Tx {
    /// Makes it so.
    pub(crate) async fn commit(self, operation: &str) -> Result<()> {
        let committed = match self.inner {
            Transaction::Sqlite(tx) => tx.commit().await,
            Transaction::Postgres(tx) => tx.commit().await,
        };
        committed.map_err(StoreError::database(operation))
    }
}

async fn open_sqlite(path: &Path) -> Result<Pool> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // Commits survive the death of this process. Where a commit must
        // survive the death of the host, `sync` follows it.
        .synchronous(SqliteSynchronous::Normal)
        .foreign_keys(true)
        .busy_timeout(PATIENCE);
    let open = |error| StoreError::database(format!("open {}", path.display()))(error);
    let writer =
        SqlitePoolOptions::new().max_connections(1).connect_with(options.clone()).await.map_err(open)?;
    sqlx::migrate!("migrations/sqlite").run(&writer).await?;
    let readers = SqlitePoolOptions::new().max_connections(4).connect_with(options.read_only(true)).await;
    let readers = readers.map_err(open)?;
    let log = PathBuf::from(format!("{}-wal", path.display()));
    let room = Room::new(path, log.clone()).map_err(|error| open(sqlx::Error::Io(error)))?;
    Ok(Pool::Sqlite { writer, readers, log, room })
}

/// Postgres waits for ever for a server that lost power in a transaction, and so
/// would everybody who wants the rows that it locked.
const LIMITS: &str = "SET statement_timeout = '30s'; SET lock_timeout = '10s';
    SET idle_in_transaction_session_timeout = '30s'; SET tcp_keepalives_idle = '15s';
    SET tcp_keepalives_interval = '5s'; SET tcp_keepalives_count = 3; SET tcp_user_timeout = '30s'";

async fn open_postgres(address: &PostgresAddress) -> Result<Pool> {
    let operation = "connect to the Postgres database";
    let options = PgConnectOptions::from_str(&address.0).map_err(StoreError::database(operation))?;
    // What is slow is told by the server's own log.
    let options = options.application_name("dormouse").disable_statement_logging();
    // Under an advisory lock: two servers may start at once. It may take its time.
    let mut alone = PgConnection::connect_with(&options).await.map_err(StoreError::database(operation))?;
    sqlx::migrate!("migrations/postgres").run(&mut alone).await?;
    alone.close().await.map_err(StoreError::database(operation))?;
    let pool = PgPoolOptions::new()
        .max_connections(POSTGRES_CONNECTIONS)
        .acquire_timeout(PATIENCE)
        .after_connect(|connection, _| Box::pin(async move { connection.execute(LIMITS).await.map(drop) }))
        .connect_with(options)
        .await
        .map_err(StoreError::database(operation))?;
    Ok(Pool::Postgres(pool))
}

async fn replace(writer: &SqlitePool) -> Result<()> {
    let operation = "replace the writing connection";
    let writer = writer.acquire().await.map_err(StoreError::database(operation))?;
    writer.close().await.map_err(StoreError::database(operation))
}

#[cfg(test)]
mod tests {
    use dormouse_types::{AccountId, Timestamp};

    use super::{Db, Transaction};
    use crate::AccountRow;

    fn account() -> AccountRow {
        let (id, name) = (AccountId::generate(), "Ada".to_owned());
        AccountRow { id, name, email: None, created_at: Timestamp(1) }
    }

    /// A write that runs into a full disk harms itself only.
    #[tokio::test]
    async fn writes_go_on_after_a_full_disk() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open_file(&dir.path().join("dormouse.db")).await.unwrap();
        db.insert_account(&account()).await.unwrap();
        let mut tx = db.write().await.unwrap();
        let Transaction::Sqlite(inner) = &mut tx.inner else { panic!("another database") };
        // Has SQLite roll back by itself, as a full disk does.
        let again = "INSERT OR ROLLBACK INTO accounts SELECT * FROM accounts";
        sqlx::query(again).execute(&mut **inner).await.unwrap_err();
        drop(tx);
        db.insert_account(&account()).await.unwrap();
        db.insert_account(&account()).await.unwrap();
        assert!(db.keep_room().unwrap());
        for file in ["dormouse.db", "dormouse.db-wal"] {
            use std::os::unix::fs::MetadataExt as _;
            let found = std::fs::metadata(dir.path().join(file)).unwrap();
            assert!(found.blocks() * 512 >= found.len() + (8 << 20), "{file} has no room");
        }
        db.insert_account(&account()).await.unwrap();
    }
}
