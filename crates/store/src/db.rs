//! Connections, transactions and the error type.
//!
//! One writer and a few readers over a write-ahead log. Every write
//! transaction is `BEGIN IMMEDIATE`: a deferred one that reads first fails
//! under load instead of waiting.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

use crate::room::Room;

/// A write transaction.
pub type Tx<'a> = sqlx::Transaction<'a, sqlx::Sqlite>;

/// Why a store call failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A row with this key exists already.
    #[error("{0} exists already")]
    Conflict(String),
    /// A row holds what this version cannot read.
    #[error("unreadable {column} in {table}")]
    Corrupt {
        /// Table.
        table: &'static str,
        /// Column.
        column: &'static str,
    },
    /// The schema could not be brought up to date.
    #[error("migrate the database")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// The database failed.
    #[error("{operation}")]
    Database {
        /// What was done, on what.
        operation: String,
        /// The driver's error.
        #[source]
        source: sqlx::Error,
    },
}

impl StoreError {
    pub(crate) fn database(operation: impl Into<String>) -> impl FnOnce(sqlx::Error) -> Self {
        let operation = operation.into();
        move |source| Self::Database { operation, source }
    }

    /// Like [`StoreError::database`], with a broken unique key as a conflict
    /// over `subject`.
    pub(crate) fn unique(
        operation: impl Into<String>,
        subject: impl Into<String>,
    ) -> impl FnOnce(sqlx::Error) -> Self {
        let (operation, subject) = (operation.into(), subject.into());
        move |source| match source.as_database_error() {
            Some(error) if error.is_unique_violation() => Self::Conflict(subject),
            _ => Self::Database { operation, source },
        }
    }
}

/// The database.
#[derive(Debug, Clone)]
pub struct Db {
    writer: SqlitePool,
    pub(crate) readers: SqlitePool,
    wal: PathBuf,
    room: Arc<Room>,
}

impl Db {
    /// Opens (and makes, and migrates) the SQLite database at `path`.
    ///
    /// # Errors
    /// [`StoreError`] when the file cannot be opened or is newer than this
    /// build.
    pub async fn open(path: &Path) -> crate::Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // Commits survive the death of this process. Where a commit must
            // survive the death of the host, `sync` follows it.
            .synchronous(SqliteSynchronous::Normal)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(10));
        let open = |error| StoreError::database(format!("open {}", path.display()))(error);
        let writer =
            SqlitePoolOptions::new().max_connections(1).connect_with(options.clone()).await.map_err(open)?;
        sqlx::migrate!("migrations/sqlite").run(&writer).await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(4)
            .connect_with(options.read_only(true))
            .await
            .map_err(open)?;
        let wal = PathBuf::from(format!("{}-wal", path.display()));
        let room = Room::new(path, wal.clone()).map_err(|error| open(sqlx::Error::Io(error)))?;
        Ok(Self { writer, readers, wal, room: Arc::new(room) })
    }

    /// Takes room on the disk for what is written later, where it has not got
    /// it yet; whether it has it then. Blocks for as long as the disk does.
    ///
    /// # Errors
    /// What the file system says, a full disk aside.
    pub fn keep_room(&self) -> std::io::Result<bool> {
        self.room.keep()
    }

    /// Begins a write transaction; dropped without commit it changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Database`] when the writer is not to be had in time.
    pub async fn write(&self) -> crate::Result<Tx<'static>> {
        const BEGIN: &str = "BEGIN IMMEDIATE";
        let begun = match self.writer.begin_with(BEGIN).await {
            // On a full disk SQLite rolls back by itself ("Automatic rollback",
            // its documentation of transactions), and the driver, whose own
            // rollback fails then, takes the transaction for open for ever.
            Err(sqlx::Error::InvalidSavePointStatement) => {
                self.replace_writer().await?;
                self.writer.begin_with(BEGIN).await
            }
            begun => begun,
        };
        begun.map_err(StoreError::database("begin a write transaction"))
    }

    async fn replace_writer(&self) -> crate::Result<()> {
        let replace = "replace the writing connection";
        let writer = self.writer.acquire().await.map_err(StoreError::database(replace))?;
        writer.close().await.map_err(StoreError::database(replace))
    }

    /// Returns once everything committed so far survives the death of the
    /// host.
    ///
    /// # Errors
    /// The error of `fdatasync(2)` on the write-ahead log.
    pub async fn sync(&self) -> std::io::Result<()> {
        let wal = self.wal.clone();
        let synced = tokio::task::spawn_blocking(move || std::fs::File::open(wal)?.sync_data());
        synced.await.map_err(std::io::Error::other)?
    }

    /// [`Db::sync`] after what nobody may have forgotten when the host is back,
    /// such as the end of a key.
    pub(crate) async fn last(&self, operation: &'static str) -> crate::Result<()> {
        self.sync().await.map_err(|error| StoreError::database(operation)(error.into()))
    }

    /// Asks the database something, to see whether it answers.
    ///
    /// # Errors
    /// [`StoreError::Database`] when it does not.
    pub async fn ping(&self) -> crate::Result<()> {
        let answered = sqlx::query("SELECT 1").execute(&self.readers).await;
        answered.map(drop).map_err(StoreError::database("ping"))
    }

    /// Ends all connections.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

/// Commits `tx`.
pub(crate) async fn commit(tx: Tx<'_>, operation: &str) -> crate::Result<()> {
    tx.commit().await.map_err(StoreError::database(operation))
}

/// Reads a typed value out of a text column.
pub(crate) fn typed<T: std::str::FromStr>(
    value: &str,
    table: &'static str,
    column: &'static str,
) -> crate::Result<T> {
    value.parse().map_err(|_| StoreError::Corrupt { table, column })
}

/// Reads JSON out of a text column.
pub(crate) fn json<T: serde::de::DeserializeOwned>(
    value: &str,
    table: &'static str,
    column: &'static str,
) -> crate::Result<T> {
    serde_json::from_str(value).map_err(|_| StoreError::Corrupt { table, column })
}
