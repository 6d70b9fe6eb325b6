//! From the name of a host to a connection.
//!
//! A name is looked up once for each connection. [`Checked`] is made of what was found, by the one function that looks at every
//! address of it, and is the only thing that can be connected to.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use url::Host;

use super::Error;
use super::place::{Place, Trust};

/// How long the look-up of a name may take, and how long a connection with its handshake.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// How long one address may take of that, when there are others.
const ADDRESS_TIME: Duration = Duration::from_secs(2);

/// Addresses of a host, each of which it may have.
#[derive(Debug, PartialEq, Eq)]
struct Checked(Vec<SocketAddr>);

/// A connection to a host, at an address that was looked at.
pub(super) async fn reach(place: &Place) -> Result<TcpStream, Error> {
    let found = match &place.host {
        Host::Ipv4(address) => vec![(*address, place.port).into()],
        Host::Ipv6(address) => vec![(*address, place.port).into()],
        Host::Domain(name) => look_up(place, name).await?,
    };
    connect(place, check(place, found)?).await
}

async fn look_up(place: &Place, name: &str) -> Result<Vec<SocketAddr>, Error> {
    let failed = |what: String| Error::failed(&place.to_string(), what);
    let found = timeout(CONNECT_TIME, tokio::net::lookup_host((name, place.port))).await;
    let found = found.map_err(|_| failed("was not found in time".to_owned()))?;
    Ok(found.map_err(|error| failed(format!("was not found: {error}")))?.collect())
}

/// Refuses a host that has one address it may not have: whoever names it decides which of them comes first.
fn check(place: &Place, found: Vec<SocketAddr>) -> Result<Checked, Error> {
    match found.iter().find(|address| !place.may_have(address.ip())) {
        Some(address) => Err(Error::Address { host: place.to_string(), address: address.ip() }),
        None => Ok(Checked(found)),
    }
}

async fn connect(place: &Place, Checked(addresses): Checked) -> Result<TcpStream, Error> {
    let mut last = "has no address".to_owned();
    let one = if addresses.len() == 1 { CONNECT_TIME } else { ADDRESS_TIME };
    let all = async {
        for address in addresses {
            match timeout(one, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Some(stream),
                Ok(Err(error)) => last = format!("cannot be reached: {error}"),
                Err(_) => "did not answer in time".clone_into(&mut last),
            }
        }
        None
    };
    let connected = timeout(CONNECT_TIME, all).await.unwrap_or_default();
    connected.ok_or_else(|| Error::failed(&place.to_string(), last))
}

/// Goes on with a connection under TLS, when the host is who it is said to be.
pub(super) async fn encrypt(
    place: &Place,
    trust: &Trust,
    stream: TcpStream,
) -> Result<TlsStream<TcpStream>, Error> {
    let failed = |what: String| Error::failed(&place.to_string(), what);
    let name = match &place.host {
        Host::Domain(name) => {
            ServerName::try_from(name.clone()).map_err(|error| failed(error.to_string()))?
        }
        Host::Ipv4(address) => ServerName::from(std::net::IpAddr::from(*address)),
        Host::Ipv6(address) => ServerName::from(std::net::IpAddr::from(*address)),
    };
    let handshake = TlsConnector::from(trust.0.clone()).connect(name, stream);
    let done = timeout(CONNECT_TIME, handshake).await;
    let done = done.map_err(|_| failed("did not agree on a key in time".to_owned()))?;
    done.map_err(|error| failed(format!("cannot be believed: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(listed: &[&str]) -> Place {
        let addresses = listed.iter().map(|listed| listed.parse().unwrap()).collect();
        Place { addresses, ..Place::named("registry.example", None).unwrap() }
    }

    fn found(addresses: &[&str]) -> Vec<SocketAddr> {
        addresses.iter().map(|address| (address.parse::<std::net::IpAddr>().unwrap(), 80).into()).collect()
    }

    #[test]
    fn every_address_of_a_host_is_looked_at() {
        let listed = ["10.1.0.0/16", "fd00:1::/32", "127.0.0.1/32"];
        for (addresses, refused) in [
            (&["140.82.112.34"][..], None),
            (&["140.82.112.34", "2606:4700::1111"], None),
            (&["10.1.2.3", "fd00:1::5", "127.0.0.1", "::ffff:10.1.2.3", "140.82.112.34"], None),
            (&["140.82.112.34", "10.2.0.1"], Some("10.2.0.1")),
            (&["10.0.255.255"], Some("10.0.255.255")),
            (&["127.0.0.2"], Some("127.0.0.2")),
            (&["::1"], Some("::1")),
            (&["::ffff:127.0.0.2"], Some("::ffff:127.0.0.2")),
            (&["169.254.169.254"], Some("169.254.169.254")),
            (&["64:ff9b::10.9.9.9"], Some("64:ff9b::a09:909")),
        ] {
            match (check(&place(&listed), found(addresses)), refused) {
                (Ok(checked), None) => assert_eq!(checked, Checked(found(addresses))),
                (Err(Error::Address { address, .. }), Some(refused)) => {
                    assert_eq!(address, refused.parse::<std::net::IpAddr>().unwrap());
                }
                (answer, _) => panic!("{addresses:?}: {answer:?}"),
            }
        }
        assert!(check(&place(&[]), found(&["127.0.0.1"])).is_err(), "nothing is listed by itself");
    }

    #[tokio::test]
    async fn a_host_without_an_address_is_not_reached() {
        let error = connect(&place(&[]), Checked(Vec::new())).await.unwrap_err();
        assert_eq!(error.to_string(), "`registry.example` has no address");
    }
}
