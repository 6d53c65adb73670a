//! Why a call to the database failed.

/// Result of a store call.
pub type Result<T> = std::result::Result<T, StoreError>;

/// Why a store call failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A row with this key exists already.
    #[error("{0} exists already")]
    Conflict(String),
    /// Its owner may not have so much.
    #[error(transparent)]
    Quota(dormouse_types::QuotaExceeded),
    /// A row holds what this version cannot read.
    #[error("unreadable {column} in {table}")]
    Corrupt {
        /// Table.
        table: &'static str,
        /// Column.
        column: &'static str,
    },
    /// A text was sealed with another key than this server has.
    #[error("{column} in {table} is sealed with another secret key than this server has")]
    Sealed {
        /// Table.
        table: &'static str,
        /// Column.
        column: &'static str,
    },
    /// The database was sealed with another key.
    #[error(
        "this database was sealed with another secret key: give the server the one it had \
         (DORMOUSE_SECRET_KEY, or secret.key in its data directory)"
    )]
    OtherKey,
    /// The address of the database is none.
    #[error("{0:?} is not the address of a database: postgres://USER@HOST/NAME, or sqlite:PATH")]
    Address(String),
    /// The schema could not be brought up to date.
    #[error("bring the database's schema up to date")]
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

    /// A broken unique key as a conflict over `subject`; other errors as they
    /// are.
    pub(crate) fn unique(self, subject: impl Into<String>) -> Self {
        match &self {
            Self::Database { source: sqlx::Error::Database(error), .. } if error.is_unique_violation() => {
                Self::Conflict(subject.into())
            }
            _ => self,
        }
    }
}
