//! `keiko:config`.

use keiko_core::outcome::Taint;
use keiko_core::policy::Capability;

use crate::bindings::keiko::config::config::{Error, Host};
use crate::gate::{Call, Verdict};
use crate::state::State;

const GET: Call =
    Call { name: "keiko:config/config.get", capability: Some(Capability::Config), taint: Taint::CONFIG };
const GET_ALL: Call = Call { name: "keiko:config/config.get-all", ..GET };

impl Host for State {
    fn get(&mut self, key: String) -> wasmtime::Result<Result<Option<String>, Error>> {
        if self.gate.pass(&GET, key.len())? == Verdict::Denied {
            return Ok(Err(Error::Denied));
        }
        let value = self.settings.get(&key).cloned();
        self.gate.charge_bytes(value.as_ref().map_or(0, String::len));
        Ok(Ok(value))
    }

    fn get_all(&mut self) -> wasmtime::Result<Result<Vec<(String, String)>, Error>> {
        if self.gate.pass(&GET_ALL, 0)? == Verdict::Denied {
            return Ok(Err(Error::Denied));
        }
        let all: Vec<_> = self.settings.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        self.gate.charge_bytes(all.iter().map(|(key, value)| key.len() + value.len()).sum());
        Ok(Ok(all))
    }
}
