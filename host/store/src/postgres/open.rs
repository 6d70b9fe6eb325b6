//! Opening the store: is the server there, new enough, and ours to use? Every refusal says what to do.

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection, Row};
use tokio::time::timeout;

use super::migrate::{self, MigrateError};
use super::options::{PostgresOptions, server};

/// The oldest server, as it numbers itself: 14.
const VERSION_MIN: u32 = 140_000;

/// Whether this user is a member of both roles.
const HAS_ROLES: &str = "SELECT count(*) = 2 FROM pg_roles WHERE rolname IN ('keiko_system', 'keiko_tenant')
    AND pg_has_role(current_user, oid, 'MEMBER')";

/// Why a store did not open. No message holds a password.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL is none.
    #[error("the database's URL cannot be read: it is postgres://user:password@host:port/database")]
    Url,
    /// Nobody answers there.
    #[error("the database {server} cannot be reached")]
    Unreachable {
        /// Host, port and database.
        server: String,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// The server does not let this user in, or has no such database.
    #[error("the database {server} refuses the connection")]
    Denied {
        /// Host, port and database.
        server: String,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// The server is too old.
    #[error("the database {server} is PostgreSQL {version}; Keiko needs 14 or newer")]
    TooOld {
        /// Host, port and database.
        server: String,
        /// Its version.
        version: String,
    },
    /// A newer Keiko has written to it.
    #[error("the database {server} was written by a newer version of Keiko: {detail}")]
    Newer {
        /// Host, port and database.
        server: String,
        /// What this binary does not know.
        detail: String,
    },
    /// The two roles are not there and this user may not make or take them.
    #[error(
        "the user {user} may not make or take the roles that keep tenants apart in {server}; a superuser has to run: \
         CREATE ROLE keiko_system NOLOGIN; CREATE ROLE keiko_tenant NOLOGIN; \
         GRANT keiko_system, keiko_tenant TO \"{user}\""
    )]
    Roles {
        /// Host, port and database.
        server: String,
        /// Who connects.
        user: String,
        /// What the server said.
        #[source]
        source: sqlx::Error,
    },
    /// Anything else.
    #[error("the database {server} cannot be opened")]
    Database {
        /// Host, port and database.
        server: String,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// Another host has been bringing it to its schema for too long.
    #[error("the database {server} cannot be opened: {detail}")]
    Locked {
        /// Host, port and database.
        server: String,
        /// For how long.
        detail: String,
    },
}

/// Looks at the server and brings its database to this binary's schema.
pub(crate) async fn prepare(options: &PostgresOptions) -> Result<(), OpenError> {
    let connect = options.owner()?;
    let named = Named::of(options, &connect);
    let mut connection = match timeout(options.acquire_timeout, connect.connect()).await {
        Ok(connected) => connected.map_err(|error| named.refused(error))?,
        Err(_) => return Err(named.refused(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))),
    };
    check_version(&connection, &named)?;
    if let Err(error) = migrate::migrate(&mut connection).await {
        let has_roles = sqlx::query(HAS_ROLES).fetch_one(&mut connection).await;
        let has_roles = has_roles.is_ok_and(|row| row.try_get(0).unwrap_or(false));
        return Err(named.migration(error, has_roles));
    }
    connection.close().await.map_err(|error| named.refused(error))
}

fn check_version(connection: &PgConnection, named: &Named) -> Result<(), OpenError> {
    let number = connection.server_version_num().unwrap_or_default();
    if number < VERSION_MIN {
        let version = format!("{}.{}", number / 10_000, number % 10_000);
        return Err(OpenError::TooOld { server: named.server.clone(), version });
    }
    Ok(())
}

/// What errors name.
pub(crate) struct Named {
    server: String,
    user: String,
}

impl Named {
    pub(crate) fn of(options: &PostgresOptions, connect: &PgConnectOptions) -> Named {
        let server = server(&options.url).unwrap_or_default();
        Named { server, user: connect.get_username().to_owned() }
    }

    /// Why a connection was not made.
    pub(crate) fn refused(&self, source: sqlx::Error) -> OpenError {
        let server = self.server.clone();
        match &source {
            sqlx::Error::Io(_) | sqlx::Error::Tls(_) => OpenError::Unreachable { server, source },
            sqlx::Error::Database(database) => match database.code().as_deref().unwrap_or_default() {
                // The role at the start of a connection: not there, or not for this user.
                "42501" | "22023" => OpenError::Roles { server, user: self.user.clone(), source },
                "3D000" => OpenError::Denied { server, source },
                code if code.starts_with("28") => OpenError::Denied { server, source },
                code if code.starts_with("57P") || code == "53300" => {
                    OpenError::Unreachable { server, source }
                }
                _ => OpenError::Database { server, source },
            },
            _ => OpenError::Database { server, source },
        }
    }

    fn migration(&self, error: MigrateError, has_roles: bool) -> OpenError {
        let server = self.server.clone();
        match error {
            MigrateError::Unknown { .. } => OpenError::Newer { server, detail: error.to_string() },
            MigrateError::Locked => OpenError::Locked { server, detail: error.to_string() },
            MigrateError::Database(source) if has_roles => OpenError::Database { server, source },
            MigrateError::Database(source) => self.refused(source),
        }
    }
}
