//! Where Keiko keeps its tasks, plugins and components. The only crate that names sqlx.
//!
//! [`sqlite`] is the embedded store: files in one folder, one process. What is stored as JSON, whatever the
//! engine, has its formats in `format`; how writes become few transactions is in `transaction`.

mod format;
pub mod sqlite;
mod transaction;
