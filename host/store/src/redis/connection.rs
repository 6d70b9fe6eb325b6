//! The way to Redis: one server, or the nodes of a cluster.
//!
//! - Nothing is connected before something is asked, and what was lost is connected again by itself.
//! - A command that met a lost connection is sent once more, on the new one: all of ours may be done twice.
//! - In a cluster each key is asked for by itself, at the node that has it; a walk goes from one master to the next.

use std::time::Duration;

use ::redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig};
use ::redis::cluster::{ClusterClient, ClusterConfig};
use ::redis::cluster_async::ClusterConnection;
use ::redis::cluster_routing::{RoutingInfo, SingleNodeRoutingInfo};
use ::redis::{
    Client, Cmd, ConnectionInfo, FromRedisValue, IntoConnectionInfo, Pipeline, ProtocolVersion, RedisError,
    RedisFuture, RedisResult, Value,
};
use futures::FutureExt;
use futures::future::join_all;

use super::OpenError;

/// Longest wait for a connection.
pub(super) const CONNECT: Duration = Duration::from_secs(1);
/// Longest wait for an answer.
pub(super) const ANSWER: Duration = Duration::from_secs(1);
/// Commands that wait to be written to one connection.
const WAITING_MAX: usize = 1_024;
/// Times that a cluster may send a command on to another node, or lose it.
const REDIRECTS_MAX: u32 = 3;
/// What the URL of a cluster begins with; more nodes than one are separated by commas.
const CLUSTER: &str = "redis+cluster://";

/// Where Redis is: the server, or nodes of the cluster.
#[derive(Clone)]
pub(super) struct Nodes {
    nodes: Vec<ConnectionInfo>,
    is_cluster: bool,
}

impl Nodes {
    /// Reads a URL: `redis://user:password@host:port/database`, or `redis+cluster://user:password@host:port,host:port`.
    pub(super) fn parse(url: &str) -> Result<Nodes, OpenError> {
        let urls: Vec<String> = match url.strip_prefix(CLUSTER) {
            None => vec![url.to_owned()],
            Some(rest) => {
                let (secret, hosts) = rest
                    .rsplit_once('@')
                    .map_or(("", rest), |(_, hosts)| rest.split_at(rest.len() - hosts.len()));
                let hosts = hosts.strip_suffix('/').unwrap_or(hosts);
                hosts.split(',').map(|host| format!("redis://{secret}{host}")).collect()
            }
        };
        let is_cluster = url.starts_with(CLUSTER);
        let nodes = urls.iter().map(|url| url.as_str().into_connection_info());
        let nodes = nodes.collect::<RedisResult<Vec<_>>>().map_err(|_| OpenError::Url)?;
        // A cluster has one database.
        if is_cluster && nodes.iter().any(|node| node.redis_settings().db() != 0) {
            return Err(OpenError::Url);
        }
        Ok(Nodes { nodes, is_cluster })
    }

    /// A client of each node, for a connection of its own. A cluster hands messages on, so that one node is enough.
    pub(super) fn clients(&self) -> Result<Vec<Client>, OpenError> {
        let clients = self.nodes.iter().map(|node| Client::open(node.clone()));
        clients.collect::<RedisResult<_>>().map_err(OpenError::Client)
    }
}

/// A connection; clones share it.
#[derive(Clone)]
pub(super) enum Connection {
    Server(ConnectionManager),
    Cluster(ClusterConnection),
}

/// A node of a cluster that has keys, or the only server.
pub(super) type Master = Option<(String, u16)>;

impl Connection {
    /// A connection that is made when it is first used.
    pub(super) fn open(nodes: &Nodes) -> Result<Connection, OpenError> {
        let connection = if nodes.is_cluster {
            let client = ClusterClient::builder(nodes.nodes.clone())
                .use_protocol(ProtocolVersion::RESP3)
                .retries(REDIRECTS_MAX)
                .build()
                .map_err(OpenError::Client)?;
            let config = ClusterConfig::new().set_connection_timeout(CONNECT).set_response_timeout(ANSWER);
            Connection::Cluster(client.get_pending_async_connection_with_config(config))
        } else {
            let [node] = &nodes.nodes[..] else { return Err(OpenError::Url) };
            let settings = node.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
            let client =
                Client::open(node.clone().set_redis_settings(settings)).map_err(OpenError::Client)?;
            let config = ConnectionManagerConfig::new()
                .set_connection_timeout(Some(CONNECT))
                .set_response_timeout(Some(ANSWER))
                .set_number_of_retries(1)
                .set_pipeline_buffer_size(WAITING_MAX);
            Connection::Server(
                ConnectionManager::new_lazy_with_config(client, config).map_err(OpenError::Client)?,
            )
        };
        Ok(connection)
    }

    /// Sends one command for each key, all at once; the answers are in the order of the keys.
    pub(super) async fn each<T>(&self, command: &str, keys: &[String]) -> RedisResult<Vec<RedisResult<T>>>
    where
        T: FromRedisValue,
    {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        if matches!(self, Connection::Cluster(_)) {
            let ask = |key: &String| {
                let (mut connection, mut cmd) = (self.clone(), ::redis::cmd(command));
                cmd.arg(key);
                async move { cmd.query_async(&mut connection).await }
            };
            return Ok(join_all(keys.iter().map(ask)).await);
        }
        let mut pipe = Pipeline::with_capacity(keys.len());
        for key in keys {
            pipe.cmd(command).arg(key);
        }
        pipe.ignore_errors().query_async(&mut self.clone()).await
    }

    /// What is under each key, if it is a text, in the order of the keys.
    pub(super) async fn texts(&self, keys: &[String]) -> RedisResult<Vec<Option<Vec<u8>>>> {
        if matches!(self, Connection::Cluster(_)) {
            return self.each("GET", keys).await?.into_iter().map(text).collect();
        }
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        ::redis::cmd("MGET").arg(keys).query_async(&mut self.clone()).await
    }

    /// Whoever has keys: each of them must be walked over.
    pub(super) async fn masters(&mut self) -> RedisResult<Vec<Master>> {
        let Connection::Cluster(_) = self else { return Ok(vec![None]) };
        let text: String = ::redis::cmd("CLUSTER").arg("NODES").query_async(self).await?;
        Ok(text.lines().filter_map(master).map(Some).collect())
    }

    /// Asks one master.
    pub(super) async fn ask<T: FromRedisValue>(&mut self, master: &Master, cmd: Cmd) -> RedisResult<T> {
        match (self, master) {
            (Connection::Cluster(connection), Some((host, port))) => {
                let node = SingleNodeRoutingInfo::ByAddress { host: host.clone(), port: *port };
                let value = connection.route_command(cmd, RoutingInfo::SingleNode(node)).await?;
                Ok(::redis::from_redis_value(value)?)
            }
            (connection, _) => cmd.query_async(connection).await,
        }
    }
}

/// What else than a text is there counts as nothing, as it does for `MGET`.
fn text(answer: RedisResult<Option<Vec<u8>>>) -> RedisResult<Option<Vec<u8>>> {
    match answer {
        Err(error) if error.code() == Some("WRONGTYPE") => Ok(None),
        answer => answer,
    }
}

/// The address of a line of `CLUSTER NODES`, when it is a master that serves: id, `address:port@bus[,name]`, flags.
fn master(line: &str) -> Option<(String, u16)> {
    let mut words = line.split(' ');
    let (address, flags) = (words.nth(1)?, words.next()?);
    let flags: Vec<&str> = flags.split(',').collect();
    if !flags.contains(&"master") || flags.iter().any(|flag| matches!(*flag, "fail" | "noaddr" | "handshake"))
    {
        return None;
    }
    let (host, port) = address.split('@').next()?.rsplit_once(':')?;
    Some((host.to_owned(), port.parse().ok()?))
}

/// Whether the connection went away under a command, so that it may never have arrived.
fn is_lost(error: &RedisError) -> bool {
    error.is_connection_dropped() && !error.is_timeout() && !error.is_connection_refusal()
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        let connection = match self {
            // Sends lost commands again by itself.
            Connection::Cluster(connection) => return connection.req_packed_command(cmd),
            Connection::Server(connection) => connection,
        };
        async move {
            match connection.req_packed_command(cmd).await {
                Err(error) if is_lost(&error) => connection.req_packed_command(cmd).await,
                answer => answer,
            }
        }
        .boxed()
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        let connection = match self {
            Connection::Cluster(connection) => {
                return connection.req_packed_commands(pipeline, offset, count);
            }
            Connection::Server(connection) => connection,
        };
        async move {
            match connection.req_packed_commands(pipeline, offset, count).await {
                Err(error) if is_lost(&error) => {
                    connection.req_packed_commands(pipeline, offset, count).await
                }
                answer => answer,
            }
        }
        .boxed()
    }

    fn get_db(&self) -> i64 {
        match self {
            Connection::Server(connection) => connection.get_db(),
            Connection::Cluster(connection) => connection.get_db(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_a_server_or_the_nodes_of_a_cluster() {
        let addresses = |url: &str| {
            let nodes = Nodes::parse(url).unwrap_or_else(|_| panic!("{url}"));
            let shown: Vec<String> = nodes.nodes.iter().map(|node| node.addr().to_string()).collect();
            (nodes.is_cluster, shown)
        };
        assert_eq!(addresses("redis://:p%40ss@h:1/2"), (false, vec!["h:1".to_owned()]));
        let both = vec!["a:1".to_owned(), "b:6379".to_owned()];
        assert_eq!(addresses("redis+cluster://u:p%2Css@a:1,b"), (true, both.clone()));
        assert_eq!(addresses("redis+cluster://a:1,b/"), (true, both));
        for url in ["redis+cluster://a:1,", "redis+cluster://", "redis+cluster://a/1", "a:1"] {
            assert!(Nodes::parse(url).is_err(), "{url}");
        }
    }

    #[test]
    fn only_masters_that_serve_have_keys() {
        let check = |line: &str, expected: Option<(&str, u16)>| {
            let expected = expected.map(|(host, port)| (host.to_owned(), port));
            assert_eq!(master(line), expected, "{line}");
        };
        check("0a 127.0.0.1:7000@17000 myself,master - 0 1 1 connected 0-5460", Some(("127.0.0.1", 7000)));
        check("0a 127.0.0.1:7000@17000,name master - 0 1 1 connected", Some(("127.0.0.1", 7000)));
        check("0a ::1:7001@17001 master - 0 1 1 connected 5461-10922", Some(("::1", 7001)));
        check("0b 127.0.0.1:7003@17003 slave 0a 0 1 1 connected", None);
        check("0c 127.0.0.1:7004@17004 master,fail - 0 1 1 disconnected", None);
        check("0d :0@0 master,noaddr - 0 1 1 disconnected", None);
        check("", None);
    }
}
