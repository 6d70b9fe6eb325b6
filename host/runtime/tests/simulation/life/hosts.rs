//! The hosts of a life, and the harm that is done to them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use keiko_core::policy::TenantPolicy;
use keiko_core::port::{BatchRecords, Records};
use keiko_core::slot::Concurrency;
use keiko_core::{TenantId, TenantName};
use keiko_runtime::cache::CacheParts;
use keiko_runtime::{Handle, Options, Parts, Runtime, TenantOptions};
use keiko_store::memory::{Faults, MemoryStore};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::guest::{Guests, Process, Runs, Stall};
use super::safeguard::Safeguard;
use crate::clock::{HostClock, NOW_MS};
use crate::random::{Random, jitter};
use crate::story::Story;

/// The tenants of every life.
const TENANTS: [&str; 2] = ["ada", "bob"];
const MANIFEST: &str = "[plugin]\nname = \"script\"\nversion = \"1\"\n[[kind]]\nname = \"run\"\n\
    [[processor]]\nname = \"sink\"\nitems = 3\nage-ms = 500\n";
/// A host that does not start tries again after this.
const AGAIN: Duration = Duration::from_millis(500);
/// Between two looks for quiet.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A host that drains is gone by then, whatever its store does.
const DRAIN_MAX: Duration = Duration::from_secs(45);
/// A healthy host is left alone for so long before it must not lose a lease any more.
const SETTLED: Duration = Duration::from_secs(65);

/// A host while its process lives.
struct Living {
    runtime: Runtime,
    handle: Handle,
    store: MemoryStore,
    process: Arc<Process>,
}

/// A place for a host.
struct Place {
    /// Locked while a host starts.
    living: tokio::sync::Mutex<Option<Living>>,
    /// The way to the store of the host that lives or starts here.
    store: Mutex<Option<MemoryStore>>,
    /// Whether the process here stands still.
    stalled: Arc<Stall>,
    awake_since: Arc<Mutex<Instant>>,
    /// Kept over restarts: it is the machine's.
    shift_ms: Arc<AtomicI64>,
    faults: Mutex<Faults>,
    /// Whether no host will live here any more.
    doomed: AtomicBool,
    journal: PathBuf,
}

/// All of them.
pub struct Hosts {
    places: Vec<Place>,
    /// The store, as the judge has it: nothing goes wrong there.
    pub store: MemoryStore,
    pub tenants: Vec<TenantId>,
    pub story: Arc<Story>,
    pub runs: Arc<Runs>,
    policy: TenantPolicy,
    off: Option<Safeguard>,
    start: Instant,
    ends: AtomicU64,
    /// Grows when harm begins and when it ends.
    harms: AtomicU64,
    processes: AtomicU64,
    crash: mpsc::UnboundedSender<usize>,
    /// Journals of running attempts; gone with the life.
    _folder: tempfile::TempDir,
}

/// What a life is made of.
pub struct World {
    pub story: Arc<Story>,
    pub runs: Arc<Runs>,
    pub off: Option<Safeguard>,
    /// Takes down who runs at a place.
    pub crash: mpsc::UnboundedSender<usize>,
}

impl Hosts {
    /// Starts one to three hosts on one store.
    pub async fn start(random: &mut Random, world: World) -> Hosts {
        let World { story, runs, off, crash } = world;
        let mutation = off.and_then(Safeguard::mutation);
        let store = mutation.map_or_else(MemoryStore::new, MemoryStore::broken);
        let mut policy = TenantPolicy { queue_max: random.among(20, 60), ..TenantPolicy::default() };
        policy.default.wall_ms = 60_000;
        policy.running_max = random.among(1, 8) as usize;
        if random.percent(50) {
            let max = Some(random.among(2, 6) as u32);
            let plugin = "script".parse().expect("a name");
            policy.concurrency.insert((plugin, None), Concurrency { max, per_key: None });
        }
        policy.running_max_total = random.percent(30).then(|| random.among(2, 6) as u32);
        let folder = tempfile::tempdir().expect("a folder");
        let count = random.among(1, 3);
        let place = |number| Place {
            living: tokio::sync::Mutex::new(None),
            store: Mutex::new(None),
            stalled: Arc::default(),
            awake_since: Arc::new(Mutex::new(Instant::now())),
            shift_ms: Arc::new(AtomicI64::new(random.among(0, 80) as i64 - 40)),
            faults: Mutex::default(),
            doomed: AtomicBool::new(false),
            journal: folder.path().join(format!("{number}")),
        };
        let places: Vec<Place> = (0..count).map(place).collect();
        places.iter().for_each(|place| std::fs::create_dir(&place.journal).expect("a new folder"));
        let mut hosts = Hosts {
            places,
            store,
            tenants: Vec::new(),
            story,
            runs,
            policy,
            off,
            start: Instant::now(),
            ends: AtomicU64::new(0),
            harms: AtomicU64::new(0),
            processes: AtomicU64::new(0),
            crash,
            _folder: folder,
        };
        for number in 0..hosts.places.len() {
            hosts.restart(number).await;
        }
        let names = TENANTS.map(|name| name.parse::<TenantName>().expect("a name"));
        let handle = hosts.handle(&mut Random::new(0)).expect("it has just started");
        hosts.tenants = names.iter().filter_map(|name| handle.tenant(name)).collect();
        hosts
    }

    /// The time as the hosts have it: that of a lone one may have jumped, those of others differ by little.
    pub fn now_ms(&self) -> i64 {
        let shift_ms =
            if let [place] = &self.places[..] { place.shift_ms.load(Ordering::Relaxed) } else { 0 };
        NOW_MS + self.start.elapsed().as_millis() as i64 + shift_ms
    }

    /// Whether no clock jumps: that of a lone host may.
    pub fn clocks_agree(&self) -> bool {
        self.places.len() > 1
    }

    /// Starts the host of a place, however long that takes.
    async fn restart(&self, number: usize) {
        let place = &self.places[number];
        let mut living = place.living.lock().await;
        while living.is_none() && !place.doomed.load(Ordering::Relaxed) {
            *living = self.try_start(number).await;
            if living.is_none() {
                sleep(AGAIN).await;
            }
        }
        self.harmed();
    }

    async fn try_start(&self, number: usize) -> Option<Living> {
        let place = &self.places[number];
        let store = self.store.another_host();
        {
            let mut faults = place.faults.lock();
            store.set_faults(*faults);
            // Counted faults are those of one process, or no other could ever start.
            (faults.fail_next, faults.lose_next) = (0, 0);
        }
        *place.store.lock() = Some(store.clone());
        let process = Arc::new(Process {
            number: self.processes.fetch_add(1, Ordering::Relaxed) + 1,
            place: number,
            stalled: Arc::clone(&place.stalled),
            awake_since: Arc::clone(&place.awake_since),
            dead: AtomicBool::new(false),
        });
        let clock = Arc::new(HostClock { start: self.start, shift_ms: Arc::clone(&place.shift_ms) });
        let parts = self.parts(&store, &process, clock);
        let tenant = |name: &str| TenantOptions {
            name: name.parse().expect("a name"),
            policy: self.policy.clone(),
            settings: BTreeMap::new(),
            processors: BTreeMap::new(),
        };
        let started = Runtime::start(parts, self.options(place), TENANTS.map(tenant).into()).await;
        let failed = |error| self.story.tell(format_args!("no host starts at place {number}: {error}"));
        let (runtime, handle) = started.map_err(failed).ok()?;
        self.story.tell(format_args!("host {} runs at place {number}", process.number));
        for name in TENANTS {
            let tenant = handle.tenant(&name.parse().expect("a name"))?;
            // A host that cannot install has what another one installed.
            let _ = handle.install(tenant, Bytes::from_static(MANIFEST.as_bytes()), None).await;
        }
        Some(Living { runtime, handle, store, process })
    }

    fn parts(&self, store: &MemoryStore, process: &Arc<Process>, clock: Arc<HostClock>) -> Parts {
        let guests = Guests {
            process: Arc::clone(process),
            runs: Arc::clone(&self.runs),
            story: Arc::clone(&self.story),
            crash: self.crash.clone(),
        };
        let shared = Arc::new(store.clone());
        Parts {
            tasks: shared.clone(),
            records: shared.clone(),
            catalog: shared.clone(),
            canaries: shared.clone(),
            components: shared.clone(),
            agents: shared.clone(),
            history: shared.clone(),
            batches: shared.clone(),
            batch_records: shared.clone(),
            cache: CacheParts {
                installation: "simulation".parse().expect("a name"),
                redis: None,
                database: None,
                backplanes: Vec::new(),
                shared: false,
                clock: clock.clone(),
            },
            usage: shared.clone(),
            schedules: shared.clone(),
            signals: shared,
            runner: Arc::new(guests),
            clock,
        }
    }

    fn options(&self, place: &Place) -> Options {
        let mut options = Options {
            workers: 2,
            // Polls take real time, which must not decide anything here.
            short: Duration::from_secs(3_600),
            running_max: 8,
            local_queue_max: 12,
            drain: Duration::from_secs(2),
            in_place: true,
            random: jitter,
            journal_dir: Some(place.journal.clone()),
            ..Options::default()
        };
        if let Some(off) = self.off {
            off.take_from(&mut options);
        }
        options
    }

    /// The way to some host that lives.
    pub fn handle(&self, random: &mut Random) -> Option<Handle> {
        self.process(random).map(|(_, handle)| handle)
    }

    /// The same, with the number of its process.
    pub fn process(&self, random: &mut Random) -> Option<(u64, Handle)> {
        let living = self.places[random.place(self.places.len())].living.try_lock().ok()?;
        living.as_ref().map(|living| (living.process.number, living.handle.clone()))
    }

    /// The name of a tenant.
    pub fn name(&self, tenant: TenantId) -> TenantName {
        let place = self.tenants.iter().position(|id| *id == tenant).expect("a tenant of this life");
        TENANTS[place].parse().expect("a name")
    }

    /// Another number than before when any host was harmed since, or recovered.
    pub fn harms(&self) -> u64 {
        self.harms.load(Ordering::Relaxed)
    }

    fn harmed(&self) {
        self.harms.fetch_add(1, Ordering::Relaxed);
    }

    /// Does harm until then.
    pub async fn harm(&self, mut random: Random, end: Instant) {
        while Instant::now() < end {
            sleep(Duration::from_millis(random.among(100, 6_000))).await;
            self.look_for_orphans();
            let number = random.place(self.places.len());
            match random.among(0, 12) {
                0..=1 => self.kill(number, random.among(0, 40_000)).await,
                2 => self.drain(number).await,
                3..=5 => self.stall(number, random.among(1_000, 70_000)).await,
                6 => self.fault(number, &mut random, |faults, _| faults.down = true).await,
                7 => {
                    let fail = |faults: &mut Faults, random: &mut Random| {
                        faults.fail_next = random.among(1, 5) as u32;
                    };
                    self.fault(number, &mut random, fail).await;
                }
                8..=9 => {
                    let lose = |faults: &mut Faults, random: &mut Random| {
                        faults.lose_next = random.among(1, 3) as u32;
                    };
                    self.fault(number, &mut random, lose).await;
                }
                10 => self.fault(number, &mut random, |faults, _| faults.loses_news = true).await,
                11 => self.hang(number, random.among(1_000, 60_000)).await,
                _ => self.jump(number, &mut random),
            }
        }
    }

    /// Whoever closes gives back what it holds: nothing is leased under a holder that is gone.
    fn look_for_orphans(&self) {
        for id in self.store.orphans() {
            self.runs.violates(format!("I-12: {id} is leased by a host that gave everything back"));
        }
    }

    /// Moves the clock of a lone host. Hosts of one database agree on its time, which the store in memory does not have.
    fn jump(&self, number: usize, random: &mut Random) {
        if let [place] = &self.places[..] {
            let by_ms = random.among(0, 120_000) as i64 - 60_000;
            self.story.tell(format_args!("the clock of place {number} jumps by {by_ms} ms"));
            place.shift_ms.fetch_add(by_ms, Ordering::Relaxed);
            self.harmed();
        }
    }

    /// Ends a process without a word, and starts another one after a while.
    pub async fn kill(&self, number: usize, wait_ms: u64) {
        let killed = self.places[number].living.lock().await.take();
        if let Some(living) = killed {
            self.end(living, "is killed");
        }
        sleep(Duration::from_millis(wait_ms)).await;
        self.restart(number).await;
    }

    fn end(&self, living: Living, how: &str) {
        let Living { runtime, store, process, .. } = living;
        self.story.tell(format_args!("host {} {how}", process.number));
        process.dead.store(true, Ordering::Relaxed);
        self.runs.lost(&process);
        store.close();
        drop(runtime);
        self.harmed();
        self.ends.fetch_add(1, Ordering::Relaxed);
    }

    async fn drain(&self, number: usize) {
        // Held, so that no other process runs here until this one is gone.
        let mut living = self.places[number].living.lock().await;
        if let Some(Living { runtime, store, process, .. }) = living.take() {
            let began = Instant::now();
            self.harmed();
            let report = runtime.drain().await;
            self.look_for_orphans();
            // What did not stop by then is left as a crash leaves it.
            self.runs.lost(&process);
            process.dead.store(true, Ordering::Relaxed);
            store.close();
            self.story.tell(format_args!("host {} has drained: {report:?}", process.number));
            self.ends.fetch_add(1, Ordering::Relaxed);
            if began.elapsed() > DRAIN_MAX {
                let text = format!("C-2: host {} took {:?} to drain", process.number, began.elapsed());
                self.runs.violates(text);
            }
        }
        drop(living);
        self.restart(number).await;
    }

    /// Stops a process for a while, its guests and everything it asks of the store.
    async fn stall(&self, number: usize, for_ms: u64) {
        self.set_stalled(number, true);
        sleep(Duration::from_millis(for_ms)).await;
        self.set_stalled(number, false);
    }

    /// Lets the store answer nobody here for a while, whose process goes on.
    async fn hang(&self, number: usize, for_ms: u64) {
        self.story.tell(format_args!("the store of place {number} does not answer"));
        self.change_faults(number, |faults| faults.stalled = true);
        sleep(Duration::from_millis(for_ms)).await;
        self.story.tell(format_args!("the store of place {number} answers"));
        let stalled = self.places[number].stalled.stands();
        self.change_faults(number, |faults| faults.stalled = stalled);
    }

    fn set_stalled(&self, number: usize, stalled: bool) {
        let place = &self.places[number];
        if place.stalled.stands() == stalled {
            return;
        }
        self.story.tell(format_args!("place {number} {}", if stalled { "stands still" } else { "goes on" }));
        *place.awake_since.lock() = Instant::now();
        self.change_faults(number, |faults| faults.stalled = stalled);
        place.stalled.set(stalled);
    }

    fn change_faults(&self, number: usize, change: impl FnOnce(&mut Faults)) {
        let place = &self.places[number];
        let mut faults = place.faults.lock();
        change(&mut faults);
        self.harmed();
        if let Some(store) = &*place.store.lock() {
            store.set_faults(*faults);
        }
    }

    async fn fault(&self, number: usize, random: &mut Random, change: impl Fn(&mut Faults, &mut Random)) {
        let mut wanted = Faults { slow: random.among(0, 2) as u32, ..Faults::default() };
        change(&mut wanted, random);
        self.story.tell(format_args!("the store of place {number}: {wanted:?}"));
        self.change_faults(number, |faults| *faults = Faults { stalled: faults.stalled, ..wanted });
        if wanted.down || wanted.loses_news {
            sleep(Duration::from_millis(random.among(500, 45_000))).await;
            self.story.tell(format_args!("the store of place {number} works"));
            self.change_faults(number, |faults| {
                *faults = Faults { stalled: faults.stalled, ..Faults::default() };
            });
        }
    }

    /// Takes all harm away, except that news may be lost for ever and that hosts may have died for good, all but one.
    /// `last_words` is given every host that dies.
    pub async fn heal(&self, random: &mut Random, last_words: impl AsyncFn(&Handle, &mut Random) -> bool) {
        let (survivor, loses_news) = (random.place(self.places.len()), random.percent(50));
        self.story.tell(format_args!("harm ends; news get lost: {loses_news}"));
        for number in 0..self.places.len() {
            self.set_stalled(number, false);
            self.change_faults(number, |faults| *faults = Faults { loses_news, ..Faults::default() });
        }
        for number in 0..self.places.len() {
            let dies = number != survivor && random.percent(60);
            self.restart(number).await;
            if !dies {
                continue;
            }
            self.places[number].doomed.store(true, Ordering::Relaxed);
            let mut living = self.places[number].living.lock().await;
            if let Some(doomed) = living.take() {
                last_words(&doomed.handle, random).await;
                // Nothing ran since the answer: nobody else knows of it.
                self.end(doomed, "dies for good");
            }
        }
    }

    /// Waits until no task is live and no item waits, and no host holds any; says whether that came. A host that
    /// nothing happens to loses no lease.
    pub async fn quiet(&self, at_most: Duration) -> bool {
        let began = Instant::now();
        let mut lost: BTreeMap<u64, u64> = BTreeMap::new();
        while began.elapsed() < at_most {
            sleep(LOOK_EVERY).await;
            let mut held = 0;
            for place in &self.places {
                let living = place.living.lock().await;
                let Some(living) = &*living else { continue };
                let figures = living.handle.figures();
                held += figures.running + figures.waiting;
                let number = living.process.number;
                let before = *lost.entry(number).or_insert(figures.leases_lost);
                if began.elapsed() > SETTLED && figures.leases_lost > before {
                    self.runs
                        .violates(format!("H-1: host {number} lost its lease, and nothing happened to it"));
                }
                lost.insert(number, figures.leases_lost);
            }
            let live = self.store.live().await.unwrap_or_default().values().sum::<u64>();
            let waiting: u64 =
                self.store.waiting().await.unwrap_or_default().iter().map(|(_, one)| one.items).sum();
            if live == 0 && held == 0 && waiting == 0 {
                return true;
            }
        }
        false
    }

    /// Drains every host; what they still held.
    pub async fn close(&self) -> Vec<String> {
        let mut left = Vec::new();
        for (number, place) in self.places.iter().enumerate() {
            place.doomed.store(true, Ordering::Relaxed);
            let Some(living) = place.living.lock().await.take() else { continue };
            let report = living.runtime.drain().await;
            let figures = living.handle.figures();
            if report.handed_back > 0 || figures.running > 0 || figures.waiting > 0 {
                left.push(format!("I-12: place {number} holds something at the end: {report:?} {figures:?}"));
            }
        }
        left
    }

    pub fn ends(&self) -> u64 {
        self.ends.load(Ordering::Relaxed)
    }
}
