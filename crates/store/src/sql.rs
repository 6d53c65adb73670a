//! One statement for two databases: the SQL is written once, in the dialect
//! that SQLite and Postgres share, and is bound, run and read by whichever the
//! connection is to. What they do not share is here and nowhere else.

use std::sync::Arc;

use dormouse_vault::{Vault, is_sealed};
use sqlx::postgres::{PgArguments, PgRow, Postgres};
use sqlx::sqlite::{Sqlite, SqliteArguments, SqliteRow};
use sqlx::{Arguments as _, AssertSqlSafe, Decode, Encode, Row as _, Type};

use crate::db::{Db, Pool, Transaction, Tx};
use crate::error::{Result, StoreError};

/// What can stand behind a placeholder.
pub(crate) trait Value:
    for<'q> Encode<'q, Sqlite> + Type<Sqlite> + for<'q> Encode<'q, Postgres> + Type<Postgres> + Send
{
}

impl<T> Value for T where
    T: for<'q> Encode<'q, Sqlite> + Type<Sqlite> + for<'q> Encode<'q, Postgres> + Type<Postgres> + Send
{
}

/// What can be read from a column.
pub(crate) trait Column:
    for<'r> Decode<'r, Sqlite> + Type<Sqlite> + for<'r> Decode<'r, Postgres> + Type<Postgres>
{
}

impl<T> Column for T where
    T: for<'r> Decode<'r, Sqlite> + Type<Sqlite> + for<'r> Decode<'r, Postgres> + Type<Postgres>
{
}

/// A row of either database, and what opens its sealed columns.
#[derive(Debug)]
pub(crate) struct Row {
    of: RowOf,
    vault: Option<Arc<Vault>>,
}

#[derive(Debug)]
enum RowOf {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

impl Row {
    /// The row as one of `table`, whose columns have `prefix` before their
    /// names.
    pub(crate) fn of(&self, table: &'static str, prefix: &'static str) -> Reader<'_> {
        Reader { row: self, table, prefix }
    }

    /// A column by its place.
    pub(crate) fn at<T: Column>(&self, index: usize, table: &'static str, column: &'static str) -> Result<T> {
        let read = match &self.of {
            RowOf::Sqlite(row) => row.try_get(index),
            RowOf::Postgres(row) => row.try_get(index),
        };
        read.map_err(|_| StoreError::Corrupt { table, column })
    }
}

/// Reads the columns of one table from a row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'r> {
    row: &'r Row,
    table: &'static str,
    prefix: &'static str,
}

impl Reader<'_> {
    /// A column. `NULL` needs an `Option`.
    pub(crate) fn get<T: Column>(&self, column: &'static str) -> Result<T> {
        let (place, prefixed);
        let name = if self.prefix.is_empty() {
            column
        } else {
            prefixed = format!("{}{column}", self.prefix);
            place = prefixed.as_str();
            place
        };
        let read = match &self.row.of {
            RowOf::Sqlite(row) => row.try_get(name),
            RowOf::Postgres(row) => row.try_get(name),
        };
        read.map_err(|_| self.corrupt(column))
    }

    /// A text that [`Sql::bind_secret`] wrote. One from before there was a key is read
    /// as it is.
    pub(crate) fn secret(&self, column: &'static str) -> Result<String> {
        let text = self.get::<String>(column)?;
        if !is_sealed(&text) {
            return Ok(text);
        }
        let sealed = || StoreError::Sealed { table: self.table, column };
        let vault = self.row.vault.as_ref().ok_or_else(sealed)?;
        vault.open(&purpose(self.table, column), &text).map_err(|_| sealed())
    }

    /// A number that a narrower type holds.
    pub(crate) fn number<T: TryFrom<i64>>(&self, column: &'static str) -> Result<T> {
        self.get::<i64>(column)?.try_into().map_err(|_| self.corrupt(column))
    }

    /// [`Reader::number`], or `None` for `NULL`.
    pub(crate) fn optional_number<T: TryFrom<i64>>(&self, column: &'static str) -> Result<Option<T>> {
        let number = self.get::<Option<i64>>(column)?;
        number.map(|number| number.try_into().map_err(|_| self.corrupt(column))).transpose()
    }

    /// JSON in a text column.
    pub(crate) fn json<T: serde::de::DeserializeOwned>(&self, column: &'static str) -> Result<T> {
        serde_json::from_str(&self.get::<String>(column)?).map_err(|_| self.corrupt(column))
    }

    pub(crate) fn corrupt(&self, column: &'static str) -> StoreError {
        StoreError::Corrupt { table: self.table, column }
    }
}

/// `columns` of the table that a query calls `alias`, each under its name with
/// `prefix` before it, for a `SELECT` of several tables.
pub(crate) fn prefixed(alias: &str, prefix: &str, columns: &[&str]) -> String {
    let columns: Vec<String> =
        columns.iter().map(|column| format!("{alias}.{column} AS {prefix}{column}")).collect();
    columns.join(", ")
}

/// `$1, $2, …` for `count` placeholders.
pub(crate) fn placeholders(count: usize) -> String {
    (1..=count).map(|n| format!("${n}")).collect::<Vec<_>>().join(", ")
}

#[derive(Debug)]
enum Arguments {
    Sqlite(SqliteArguments),
    Postgres(PgArguments),
}

enum Target<'t> {
    Transaction(&'t mut Transaction),
    /// A write transaction of this statement alone.
    Alone(&'t Db),
    Readers(&'t Db),
}

/// A statement that is being put together.
pub(crate) struct Sql<'t> {
    target: Target<'t>,
    operation: String,
    text: String,
    arguments: Arguments,
    /// The first value that could not be bound.
    unbound: Option<sqlx::Error>,
    vault: Option<Arc<Vault>>,
}

/// What a sealed text is for: it opens in its own column only.
fn purpose(table: &str, column: &str) -> String {
    format!("{table}.{column}")
}

impl Tx {
    /// A statement of this transaction; `operation` says what it does on what.
    pub(crate) fn sql(&mut self, operation: impl Into<String>, text: impl Into<String>) -> Sql<'_> {
        let arguments = match &self.inner {
            Transaction::Sqlite(_) => Arguments::Sqlite(SqliteArguments::default()),
            Transaction::Postgres(_) => Arguments::Postgres(PgArguments::default()),
        };
        let vault = self.vault.clone();
        let target = Target::Transaction(&mut self.inner);
        Sql { target, operation: operation.into(), text: text.into(), arguments, unbound: None, vault }
    }

    /// What a `SELECT` ends with whose rows nobody else may change before this
    /// transaction is over. SQLite has one writer at a time anyway.
    pub(crate) fn locking(&self) -> &'static str {
        match &self.inner {
            Transaction::Sqlite(_) => "",
            Transaction::Postgres(_) => " FOR UPDATE",
        }
    }

    /// [`Tx::locking`], passing over rows that somebody else has.
    pub(crate) fn locking_free(&self) -> &'static str {
        match &self.inner {
            Transaction::Sqlite(_) => "",
            Transaction::Postgres(_) => " FOR UPDATE SKIP LOCKED",
        }
    }
}

impl Tx {
    /// Has no other transaction count what this owner uses before this one is over.
    /// SQLite has one writer at a time anyway.
    pub(crate) async fn lock_owner(&mut self, owner: &str) -> Result<()> {
        if let Transaction::Sqlite(_) = &self.inner {
            return Ok(());
        }
        let locked = self
            .sql(
                format!("wait for {owner}"),
                "SELECT 1 AS one FROM pg_advisory_xact_lock(hashtextextended($1, 0))",
            )
            .bind(owner)
            .fetch_all()
            .await;
        locked.map(drop)
    }
}

impl Db {
    /// A query outside of any transaction; it sees what is committed.
    pub(crate) fn sql(&self, operation: impl Into<String>, text: impl Into<String>) -> Sql<'_> {
        self.count_read();
        self.statement(Target::Readers(self), operation.into(), text.into())
    }

    /// A statement that is a write transaction by itself: it is committed when it
    /// answers. Postgres is told so in one trip.
    pub(crate) fn change(&self, operation: impl Into<String>, text: impl Into<String>) -> Sql<'_> {
        self.statement(Target::Alone(self), operation.into(), text.into())
    }

    fn statement<'t>(&self, target: Target<'t>, operation: String, text: String) -> Sql<'t> {
        let arguments = match self.pool() {
            Pool::Sqlite { .. } => Arguments::Sqlite(SqliteArguments::default()),
            Pool::Postgres(_) => Arguments::Postgres(PgArguments::default()),
        };
        Sql { target, operation, text, arguments, unbound: None, vault: self.vault.clone() }
    }
}

/// Runs a query by one of its methods on whichever connection it is for.
macro_rules! run {
    ($sql:expr, $method:ident) => {{
        let Sql { target, operation, text, arguments, unbound, vault: _ } = $sql;
        let text = AssertSqlSafe(text);
        let ran = match (unbound, target, arguments) {
            (Some(error), _, _) => Err(error),
            (None, Target::Transaction(Transaction::Sqlite(tx)), Arguments::Sqlite(arguments)) => {
                sqlx::query_with(text, arguments).$method(&mut **tx).await.map(Either::Sqlite)
            }
            (None, Target::Transaction(Transaction::Postgres(tx)), Arguments::Postgres(arguments)) => {
                sqlx::query_with(text, arguments).$method(&mut **tx).await.map(Either::Postgres)
            }
            (None, Target::Alone(db), Arguments::Postgres(arguments))
                if let Pool::Postgres(pool) = db.pool() =>
            {
                db.count_write();
                sqlx::query_with(text, arguments).$method(pool).await.map(Either::Postgres)
            }
            (None, Target::Alone(db), Arguments::Sqlite(arguments)) => {
                let mut tx = db.write().await?;
                let ran = match &mut tx.inner {
                    Transaction::Sqlite(inner) => {
                        sqlx::query_with(text, arguments).$method(&mut **inner).await.map(Either::Sqlite)
                    }
                    Transaction::Postgres(_) => Err(another_database()),
                };
                if ran.is_ok() {
                    tx.commit(&operation).await?;
                }
                ran
            }
            (None, Target::Readers(db), Arguments::Sqlite(arguments))
                if let Pool::Sqlite { readers, .. } = db.pool() =>
            {
                let _hold = db.hold(&operation).await;
                sqlx::query_with(text, arguments).$method(readers).await.map(Either::Sqlite)
            }
            (None, Target::Readers(db), Arguments::Postgres(arguments))
                if let Pool::Postgres(pool) = db.pool() =>
            {
                sqlx::query_with(text, arguments).$method(pool).await.map(Either::Postgres)
            }
            // The arguments are made for the target.
            (None, _, _) => Err(another_database()),
        };
        ran.map_err(StoreError::database(operation))
    }};
}

fn another_database() -> sqlx::Error {
    sqlx::Error::InvalidArgument("of another database".to_owned())
}

enum Either<S, P> {
    Sqlite(S),
    Postgres(P),
}

impl Sql<'_> {
    /// Puts a value behind the next placeholder.
    pub(crate) fn bind<T: Value>(mut self, value: T) -> Self {
        let bound = match &mut self.arguments {
            Arguments::Sqlite(arguments) => arguments.add(value),
            Arguments::Postgres(arguments) => arguments.add(value),
        };
        if let Err(error) = bound {
            self.unbound.get_or_insert(sqlx::Error::Encode(error));
        }
        self
    }

    /// [`Sql::bind`] of a text that is for `table.column` and is sealed there, where
    /// the database has a vault.
    pub(crate) fn bind_secret(mut self, table: &str, column: &str, text: &str) -> Self {
        let sealed = match &self.vault {
            None => Ok(text.to_owned()),
            Some(vault) => vault.seal(&purpose(table, column), text),
        };
        match sealed {
            Ok(text) => self.bind(text),
            Err(error) => {
                self.unbound.get_or_insert(sqlx::Error::Encode(Box::new(error)));
                self
            }
        }
    }

    /// Runs it; how many rows it changed.
    pub(crate) async fn execute(self) -> Result<u64> {
        Ok(match run!(self, execute)? {
            Either::Sqlite(done) => done.rows_affected(),
            Either::Postgres(done) => done.rows_affected(),
        })
    }

    pub(crate) async fn fetch_all(self) -> Result<Vec<Row>> {
        let vault = self.vault.clone();
        let row = |of| Row { of, vault: vault.clone() };
        Ok(match run!(self, fetch_all)? {
            Either::Sqlite(rows) => rows.into_iter().map(RowOf::Sqlite).map(row).collect(),
            Either::Postgres(rows) => rows.into_iter().map(RowOf::Postgres).map(row).collect(),
        })
    }

    pub(crate) async fn fetch_optional(self) -> Result<Option<Row>> {
        let vault = self.vault.clone();
        let of = match run!(self, fetch_optional)? {
            Either::Sqlite(row) => row.map(RowOf::Sqlite),
            Either::Postgres(row) => row.map(RowOf::Postgres),
        };
        Ok(of.map(|of| Row { of, vault }))
    }

    /// The rows, each read by `read`.
    pub(crate) async fn all<T>(self, read: impl Fn(&Row) -> Result<T>) -> Result<Vec<T>> {
        self.fetch_all().await?.iter().map(read).collect()
    }

    /// The row, if there is one, read by `read`.
    pub(crate) async fn one<T>(self, read: impl Fn(&Row) -> Result<T>) -> Result<Option<T>> {
        self.fetch_optional().await?.as_ref().map(read).transpose()
    }

    /// Whether there is a row.
    pub(crate) async fn exists(self) -> Result<bool> {
        Ok(self.fetch_optional().await?.is_some())
    }

    /// The number that the only row's only column holds.
    pub(crate) async fn count(self) -> Result<i64> {
        let row = self.fetch_optional().await?;
        row.map_or(Ok(0), |row| row.at(0, "count", "count"))
    }
}
