//! An engine of wasmtime for each profile, with what is linked for its guests.
//!
//! The concurrent profile's is made when the first component comes that needs it and may have it: most hosts never reserve
//! its pool, and never tick its epoch.

use std::sync::OnceLock;

use keiko_core::port::InstallError;
use keiko_core::profile::Profile;
use parking_lot::Mutex;
use wasmtime::component::Linker;

use crate::artifact::Settings;
use crate::compile::internal;
use crate::config::{self, Purpose};
use crate::places::Places;
use crate::state::State;
use crate::{epoch, import};

/// What components of one profile are loaded into.
pub(crate) struct Machine {
    pub(crate) engine: wasmtime::Engine,
    pub(crate) linker: Linker<State>,
}

impl Machine {
    fn new(running_max: usize, profile: Profile) -> Result<Machine, InstallError> {
        let engine = config::engine(Purpose::Serve { running_max }, profile).map_err(no_engine)?;
        let linker = import::linker(&engine).map_err(|error| internal(format!("no linker: {error:#}")))?;
        Ok(Machine { engine, linker })
    }
}

/// The machines of a host.
pub(crate) struct Machines {
    running_max: usize,
    strict: Machine,
    strict_settings: Settings,
    concurrent: OnceLock<Machine>,
    /// Known without its machine, so that an artifact can be found before it is made.
    concurrent_settings: OnceLock<Settings>,
    /// Held by who makes the concurrent one: of two, one would be thrown away with all that it reserved.
    making: Mutex<()>,
}

impl Machines {
    pub(crate) fn new(running_max: usize) -> Result<Machines, InstallError> {
        let strict = Machine::new(running_max, Profile::Strict)?;
        let strict_settings = Settings::of(&strict.engine);
        let (concurrent, concurrent_settings) = (OnceLock::new(), OnceLock::new());
        let making = Mutex::default();
        Ok(Machines { running_max, strict, strict_settings, concurrent, concurrent_settings, making })
    }

    /// The strict profile's, which is always there.
    pub(crate) fn strict(&self) -> &Machine {
        &self.strict
    }

    /// A profile's machine. The first call for the concurrent one makes it, which takes as long as reserving a pool.
    pub(crate) fn of(&self, profile: Profile) -> Result<&Machine, InstallError> {
        if profile == Profile::Strict {
            return Ok(&self.strict);
        }
        if let Some(machine) = self.concurrent.get() {
            return Ok(machine);
        }
        let _making = self.making.lock();
        if let Some(machine) = self.concurrent.get() {
            return Ok(machine);
        }
        let machine = Machine::new(self.running_max, profile)?;
        epoch::start(&machine.engine, || {})
            .map_err(|error| internal(format!("no epoch thread: {error}")))?;
        tracing::info!("the engine of the concurrent profile was made");
        Ok(self.concurrent.get_or_init(|| machine))
    }

    /// What artifacts of a profile are made under.
    pub(crate) fn settings(&self, profile: Profile) -> Result<&Settings, InstallError> {
        if profile == Profile::Strict {
            return Ok(&self.strict_settings);
        }
        if let Some(settings) = self.concurrent_settings.get() {
            return Ok(settings);
        }
        let engine = config::engine(Purpose::Compile, profile).map_err(no_engine)?;
        Ok(self.concurrent_settings.get_or_init(|| Settings::of(&engine)))
    }

    /// What a profile's pool holds.
    pub(crate) fn places(&self, profile: Profile) -> Places {
        let machine = match profile {
            Profile::Strict => Some(&self.strict),
            Profile::Concurrent => self.concurrent.get(),
        };
        let pool = machine.and_then(|machine| machine.engine.pooling_allocator_metrics());
        pool.map_or(Places::none(profile), |pool| Places::of(profile, &pool))
    }

    /// Whether the concurrent profile's was made.
    pub(crate) fn is_concurrent(&self) -> bool {
        self.concurrent.get().is_some()
    }
}

fn no_engine(error: wasmtime::Error) -> InstallError {
    internal(format!("no engine: {error:#}"))
}
