//! What a tenant's processors may gather, and processors of the host's own, as its configuration declares them.

use std::collections::BTreeMap;

use keiko_core::ProcessorName;
use keiko_core::batch::Wish;
use keiko_core::batch::settings::BatchPolicy;
use keiko_core::limit::{
    BATCH_AGE_MS, BATCH_AGE_MS_MAX, BATCH_BYTES, BATCH_BYTES_MAX, BATCH_IN_FLIGHT, BATCH_IN_FLIGHT_MAX,
    BATCH_ITEMS, BATCH_ITEMS_MAX, KIB, MIB, PROCESSORS_MAX,
};
use serde_json::Value;

use super::super::origin::Origin;
use super::super::written::{ProcessorWritten, TenantWritten};
use super::Checker;

/// The one thing that the host does with items by itself.
const ROWS: &str = "rows";

impl Checker {
    /// What the tenant's limits say of batches; no tenant has more memory than the host gives to all.
    pub(super) fn batches(&mut self, path: &str, tenant: &TenantWritten, memory_bytes: u64) -> BatchPolicy {
        let path = format!("{path}.limits");
        let most = BatchPolicy::default();
        let mut one = |name: &'static str, default: u64, max: u64| {
            self.within(&format!("{path}.{name}"), tenant.limits.get(name), default, 1, max)
        };
        let memory_mib = memory_bytes / MIB;
        let policy = BatchPolicy {
            items_max: one("batch_items_max", most.items_max, BATCH_ITEMS_MAX),
            bytes_max: one("batch_kib_max", most.bytes_max / KIB, BATCH_BYTES_MAX / KIB).saturating_mul(KIB),
            age_ms_max: one("batch_age_ms_max", most.age_ms_max, BATCH_AGE_MS_MAX),
            in_flight_max: one("batch_in_flight_max", most.in_flight_max, BATCH_IN_FLIGHT_MAX),
            waiting_items_max: one("waiting_items_max", most.waiting_items_max, 1_000_000_000),
            waiting_bytes_max: one("waiting_mib_max", most.waiting_bytes_max / MIB, 1 << 20)
                .saturating_mul(MIB),
            memory_bytes_max: one(
                "batch_memory_mib_max",
                (most.memory_bytes_max / MIB).min(memory_mib),
                memory_mib,
            )
            .saturating_mul(MIB),
            adaptive: most.adaptive,
        };
        let (adaptive, origin) = match &tenant.batch_adaptive {
            Some(set) => (set.value, set.origin.clone()),
            None => (most.adaptive, Origin::Default),
        };
        self.effective(&format!("{path}.batch_adaptive"), Value::from(adaptive), origin);
        BatchPolicy { adaptive, ..policy }
    }

    pub(super) fn processors(&mut self, path: &str, tenant: &TenantWritten) -> BTreeMap<ProcessorName, Wish> {
        if tenant.processors.len() > PROCESSORS_MAX {
            let text = format!("{} processors exceed the limit of {PROCESSORS_MAX}", tenant.processors.len());
            self.mistake(format!("{path}.processors"), Origin::Default, text);
        }
        let mut checked = BTreeMap::new();
        for (name, written) in &tenant.processors {
            let path = format!("{path}.processors.{name}");
            let wish = self.processor(&path, written);
            match name.parse::<ProcessorName>() {
                Ok(name) => {
                    checked.insert(name, wish);
                }
                Err(error) => self.mistake(path, written.origin.clone(), error.to_string()),
            }
        }
        checked
    }

    fn processor(&mut self, path: &str, written: &ProcessorWritten) -> Wish {
        let keep = written.keep.as_ref();
        if keep.is_none_or(|keep| keep.value != ROWS) {
            let origin = keep.map_or(&written.origin, |keep| &keep.origin).clone();
            let text = format!("says what the host does with items; there is: `{ROWS}`");
            self.mistake(format!("{path}.keep"), origin, text);
        }
        self.effective(&format!("{path}.keep"), Value::from(ROWS), written.origin.clone());
        let mut number = |name: &'static str, default: u64, max: u64| {
            let set = written.numbers.get(name);
            self.within(&format!("{path}.{name}"), set, default, 1, max)
        };
        let wish = Wish {
            items: Some(number("items", BATCH_ITEMS, BATCH_ITEMS_MAX)),
            kib: Some(number("kib", BATCH_BYTES / KIB, BATCH_BYTES_MAX / KIB)),
            age_ms: Some(number("age_ms", BATCH_AGE_MS, BATCH_AGE_MS_MAX)),
            in_flight: Some(number("in_flight", BATCH_IN_FLIGHT, BATCH_IN_FLIGHT_MAX)),
            ..Wish::default()
        };
        let (ordered, origin) = match &written.ordered {
            Some(set) => (set.value, set.origin.clone()),
            None => (false, Origin::Default),
        };
        self.effective(&format!("{path}.ordered"), Value::from(ordered), origin);
        Wish { ordered, ..wish }
    }
}
