//! `ledgerctl cluster status`: the nodes, and whether every slot has an owner and all its copies.

mod picture;
mod watching;

pub(super) use watching::watch;

use self::picture::look;
use crate::{args::Connection, output::Output};

pub(super) async fn run(connection: &Connection, output: &Output) -> anyhow::Result<()> {
    let picture = look(connection, &connection.client()?).await?;
    output.result(&picture.object(), || picture.text())?;
    picture.trouble().map_or(Ok(()), Err)
}
