//! A host that may be asked for components, as the operator lists it: `[sources."HOST[:PORT]"]`.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::HeaderValue;
use ipnet::IpNet;
use keiko_core::TenantName;
use keiko_core::address::is_public;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};
use url::{Host, Url};

/// A host, and how it may be asked.
#[derive(Clone, Debug)]
pub struct Place {
    pub(crate) host: Host,
    pub(crate) port: u16,
    /// Whether the port has to be written.
    pub(crate) is_port_named: bool,
    /// Whose certificates are believed; nothing is encrypted without.
    pub(crate) trust: Option<Trust>,
    /// Who may ask it; everybody when nobody is named.
    pub(crate) tenants: Option<Vec<TenantName>>,
    /// Addresses that it may have beside public ones.
    pub(crate) addresses: Vec<IpNet>,
    pub(crate) login: Option<Login>,
}

/// A user and a password, which nothing shows.
#[derive(Clone)]
pub(crate) struct Login {
    pub(crate) user: String,
    pub(crate) password: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").finish_non_exhaustive()
    }
}

/// Whose certificates are believed.
#[derive(Clone)]
pub(crate) struct Trust(pub(super) Arc<ClientConfig>);

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust").finish_non_exhaustive()
    }
}

impl Trust {
    /// Those that browsers believe.
    pub(crate) fn public() -> Trust {
        Trust::of(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() })
    }

    /// Those of a file alone.
    pub(crate) fn of_file(path: &Path) -> Result<Trust, String> {
        let unusable = |error: &dyn fmt::Display| format!("{} cannot be used: {error}", path.display());
        let mut roots = RootCertStore::empty();
        let found = CertificateDer::pem_file_iter(path).map_err(|error| unusable(&error))?;
        for certificate in found {
            let added = roots.add(certificate.map_err(|error| unusable(&error))?);
            added.map_err(|error| unusable(&error))?;
        }
        if roots.is_empty() {
            return Err(unusable(&"it has no certificate"));
        }
        Ok(Trust::of(roots))
    }

    fn of(roots: RootCertStore) -> Trust {
        let config = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider has ciphers of every version");
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Trust(Arc::new(config))
    }
}

impl Place {
    /// A host as it stands in a URL, asked over TLS.
    pub(crate) fn named(name: &str, trust: Option<Trust>) -> Option<Place> {
        let scheme = if trust.is_some() { "https" } else { "http" };
        let url = Url::parse(&format!("{scheme}://{name}/")).ok()?;
        let host = url.host()?.to_owned();
        // Only what is written as it is looked up, one by one.
        let written = super::written(&host.to_string(), url.port());
        let whole = url.as_str() == format!("{scheme}://{written}/");
        let same = written == name || format!("{host}:{}", url.port_or_known_default()?) == name;
        let port = url.port_or_known_default()?;
        (whole && same && !name.contains('*')).then_some(Place {
            is_port_named: url.port().is_some(),
            host,
            port,
            trust,
            tenants: None,
            addresses: Vec::new(),
            login: None,
        })
    }

    pub(super) fn scheme(&self) -> &'static str {
        if self.trust.is_some() { "https" } else { "http" }
    }

    /// Whether a tenant may ask.
    pub(super) fn serves(&self, tenant: &TenantName) -> bool {
        self.tenants.as_ref().is_none_or(|tenants| tenants.contains(tenant))
    }

    /// Whether it may have this address.
    pub(super) fn may_have(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        is_public(address) || self.addresses.iter().any(|listed| listed.contains(&address))
    }

    /// What its login is sent as.
    pub(super) fn basic(&self) -> Option<HeaderValue> {
        let Login { user, password } = self.login.as_ref()?;
        let mut value =
            HeaderValue::try_from(format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&super::written(&self.host.to_string(), self.is_port_named.then_some(self.port)))
    }
}
