//! No queue at all: two rows, one after the other, each its own transaction. What waits for the disk twice can be no
//! quicker.

use anyhow::{Context, Result, bail};
use sqlx::{Connection, Executor, PgConnection};

use crate::measure::{Plan, Ran};

const TABLE: &str =
    "CREATE TABLE two_commits (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, number bigint NOT NULL)";

pub async fn run(plan: &Plan) -> Result<()> {
    let Plan::Rate { per_second, seconds } = *plan else { bail!("commits are counted one by one: --rate") };
    let url = std::env::var("DATABASE_URL").context("DATABASE_URL")?;
    let mut connection = PgConnection::connect(&url).await?;
    connection.execute(TABLE).await?;
    let ran = Ran::default();
    let submit = async |number: u64| {
        for _ in 0..2 {
            let insert = sqlx::query("INSERT INTO two_commits (number) VALUES ($1)").bind(number as i64);
            insert.execute(&mut connection).await?;
        }
        ran.note(number);
        Ok(())
    };
    ran.at_rate(per_second, seconds, submit).await
}
