//! Hosts that components may be fetched from, as the configuration lists them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use keiko_core::TenantName;
use serde_json::Value;

use super::super::TenantConfig;
use super::super::origin::Origin;
use super::super::suggest::nearest;
use super::super::written::{Set, SourceWritten};
use super::Checker;
use crate::source::{Login, Place, Trust};

/// Hosts that are listed.
pub(super) const SOURCES_MAX: usize = 1_000;
/// Addresses, or ranges of them, that are listed for one of them.
pub(super) const ADDRESSES_MAX: usize = 100;

impl Checker {
    pub(super) fn sources(
        &mut self,
        sources: BTreeMap<String, SourceWritten>,
        tenants: &[TenantConfig],
    ) -> Vec<Place> {
        if sources.len() > SOURCES_MAX {
            let text = format!("{} sources exceed the limit of {SOURCES_MAX}", sources.len());
            self.mistake("sources", Origin::Default, text);
        }
        let mut public = None;
        let mut seen = BTreeSet::new();
        let mut checked = Vec::with_capacity(sources.len());
        for (name, written) in sources {
            let path = format!("sources.\"{name}\"");
            let http = written.http.as_ref().is_some_and(|http| http.value);
            let trust = match &written.ca_file {
                Some(file) => self.trust(&format!("{path}.ca_file"), file, http),
                None => (!http).then(|| public.get_or_insert_with(Trust::public).clone()),
            };
            // A file that cannot be used is a mistake already, and no reason to take the host for one without TLS.
            let trust = trust.or_else(|| (!http).then(|| public.get_or_insert_with(Trust::public).clone()));
            let Some(mut place) = Place::named(&name, trust) else {
                let text = format!(
                    "`{name}` is no host as it is looked up, such as ghcr.io or registry.example:5000"
                );
                self.mistake(path, written.origin, text);
                continue;
            };
            if !seen.insert((place.host.to_string(), place.port)) {
                self.mistake(&path, written.origin.clone(), "the host is listed twice");
            }
            let origin = written.http.as_ref().map_or(&written.origin, |http| &http.origin).clone();
            self.effective(&format!("{path}.http"), Value::from(http), origin);
            place.tenants = self.askers(&format!("{path}.tenants"), written.tenants.as_ref(), tenants);
            place.addresses = self.addresses(&format!("{path}.addresses"), written.addresses.as_ref());
            place.login = self.login(&path, &written);
            checked.push(place);
        }
        checked
    }

    fn trust(&mut self, path: &str, file: &Set<String>, http: bool) -> Option<Trust> {
        if http {
            self.mistake(path, file.origin.clone(), "is of no use: the host is asked by http");
            return None;
        }
        // As every file that a file names, it is relative to that.
        let from = match &file.origin {
            Origin::File { path, .. } => path.parent().unwrap_or(Path::new("")).to_owned(),
            _ => Path::new("").to_owned(),
        };
        match Trust::of_file(&from.join(&file.value)) {
            Ok(trust) => {
                self.effective(path, Value::from(file.value.as_str()), file.origin.clone());
                Some(trust)
            }
            Err(text) => {
                self.mistake(path, file.origin.clone(), text);
                None
            }
        }
    }

    fn askers(
        &mut self,
        path: &str,
        written: Option<&Set<Vec<Set<String>>>>,
        tenants: &[TenantConfig],
    ) -> Option<Vec<TenantName>> {
        let written = written?;
        let known: Vec<&str> = tenants.iter().map(|tenant| tenant.options.name.as_str()).collect();
        let mut askers = Vec::new();
        for (at, name) in written.value.iter().enumerate() {
            match tenants.iter().find(|tenant| tenant.options.name.as_str() == name.value) {
                Some(tenant) => askers.push(tenant.options.name.clone()),
                None => {
                    let near = nearest(&name.value, &known);
                    let hint = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
                    let text = format!("there is no tenant `{}`{hint}", name.value);
                    self.mistake(format!("{path}[{at}]"), name.origin.clone(), text);
                }
            }
        }
        let shown: Vec<&str> = askers.iter().map(TenantName::as_str).collect();
        self.effective(path, Value::from(shown), written.origin.clone());
        Some(askers)
    }

    fn addresses(&mut self, path: &str, written: Option<&Set<Vec<Set<String>>>>) -> Vec<IpNet> {
        let Some(written) = written else { return Vec::new() };
        if written.value.len() > ADDRESSES_MAX {
            let text = format!("{} addresses exceed the limit of {ADDRESSES_MAX}", written.value.len());
            self.mistake(path, written.origin.clone(), text);
        }
        let mut addresses = Vec::new();
        for (at, text) in written.value.iter().enumerate() {
            let one = text.value.parse::<IpAddr>().map(|address| IpNet::from(address.to_canonical()));
            match one.or_else(|_| text.value.parse::<IpNet>()) {
                Ok(range) => addresses.push(range),
                Err(_) => {
                    let what = format!(
                        "`{}` is no address and no range, such as 10.1.2.3 or 10.0.0.0/8",
                        text.value
                    );
                    self.mistake(format!("{path}[{at}]"), text.origin.clone(), what);
                }
            }
        }
        let shown: Vec<String> = addresses.iter().map(IpNet::to_string).collect();
        self.effective(path, Value::from(shown), written.origin.clone());
        addresses
    }

    fn login(&mut self, path: &str, written: &SourceWritten) -> Option<Login> {
        let (user, password) = match (&written.user, &written.password) {
            (None, None) => return None,
            (Some(user), Some(password)) => (user, password),
            (Some(one), None) | (None, Some(one)) => {
                self.mistake(path, one.origin.clone(), "a login is a `user` and a `password`");
                return None;
            }
        };
        if user.value.contains(':') || user.value.chars().any(char::is_control) {
            self.mistake(
                format!("{path}.user"),
                user.origin.clone(),
                "a user has no `:` and no control character",
            );
        }
        self.effective(&format!("{path}.user"), Value::from(user.value.as_str()), user.origin.clone());
        // That it is set is shown, and not what it is.
        self.effective(&format!("{path}.password"), Value::Null, password.origin.clone());
        Some(Login { user: user.value.clone(), password: password.value.clone() })
    }
}
