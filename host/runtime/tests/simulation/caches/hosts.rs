//! The hosts of a life: their caches, their clocks, and the harm that is done to them.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use keiko_core::TenantId;
use keiko_core::cache::{CacheKey, Installation, Times};
use keiko_core::catalog::Tenant;
use keiko_core::port::{Backplane, CacheLevel};
use keiko_runtime::cache::{Cache, CacheOptions, CacheParts, Loops};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::levels::{Process, Server, Trouble, Way};
use super::model::Model;
use super::off::Off;
use super::planes::{Ear, Plane};
use crate::clock::HostClock;
use crate::random::Random;
use crate::story::Story;

/// The tenants of every life.
const TENANTS: [&str; 2] = ["ada", "bob"];
/// The levels behind memory.
const LEVELS: [&str; 2] = ["redis", "database"];
/// How long entries are fresh on each level when nobody says it: short, so that lives see their ends.
pub const TIMES: Times = Times { memory_ms: 3_000, redis_ms: 6_000, database_ms: 12_000 };
/// Time between two looks at all hosts, in milliseconds.
const LOOK_MS: u64 = 100;
/// How far a clock that jumps is from the time, at most.
pub const SKEW_MAX_MS: u64 = 100;

/// A host while its process lives.
pub struct Living {
    /// Its number among all that ever lived.
    pub life: u64,
    pub place: usize,
    pub cache: Cache,
    pub process: Arc<Process>,
    troubles: [Arc<Mutex<Trouble>>; 2],
    loops: Mutex<Option<Loops>>,
    /// When it was last seen that a level was away, or rested, or might have been.
    clear_since_ms: AtomicI64,
}

impl Living {
    /// Since when this host reaches all levels.
    pub fn clear_since(&self, now_ms: i64) -> i64 {
        let troubled = self.troubles.iter().any(|trouble| trouble.lock().is_harm());
        if troubled || !self.cache.resting().is_empty() {
            // It may end at any time before the next look.
            self.clear_since_ms.store(now_ms + LOOK_MS as i64, Ordering::Relaxed);
            return i64::MAX;
        }
        self.clear_since_ms.load(Ordering::Relaxed)
    }
}

/// A place for a host.
struct Place {
    living: Mutex<Option<Arc<Living>>>,
    shift_ms: Arc<AtomicI64>,
    troubles: [Arc<Mutex<Trouble>>; 2],
    /// When a line was last cut or an outage of one ended.
    lines_clear_ms: Arc<AtomicI64>,
}

/// All of them.
pub struct Hosts {
    pub model: Mutex<Model>,
    pub story: Arc<Story>,
    pub tenants: Vec<Tenant>,
    pub servers: [Arc<Server>; 2],
    pub off: Option<Off>,
    installation: Installation,
    planes: Vec<Arc<Plane>>,
    places: Vec<Place>,
    random: Mutex<Random>,
    start: Instant,
    skew_ms: u64,
    lives: AtomicU64,
    pub ends: AtomicU64,
}

impl Hosts {
    pub fn begin(random: &mut Random, story: Arc<Story>, off: Option<Off>) -> Arc<Hosts> {
        let installation: Installation = "test".parse().expect("a name of letters");
        let places = random.among(2, 3) as usize;
        let skew_ms = if random.percent(50) { SKEW_MAX_MS } else { 0 };
        let tenant = |(at, name): (usize, &str)| Tenant {
            id: TenantId(at as i64 + 1),
            name: name.parse().expect("a name of letters"),
        };
        let hosts = Arc::new(Hosts {
            model: Mutex::new(Model::new(skew_ms as i64, Arc::clone(&story))),
            story,
            tenants: TENANTS.into_iter().enumerate().map(tenant).collect(),
            servers: [true, false].map(|ends| Server::new(&installation, ends, off)),
            off,
            planes: (0..2).map(|_| Plane::new(places, random.split())).collect(),
            places: (0..places).map(|_| Place::new(random, skew_ms)).collect(),
            random: Mutex::new(random.split()),
            start: Instant::now(),
            skew_ms,
            lives: AtomicU64::new(0),
            ends: AtomicU64::new(0),
            installation,
        });
        (0..places).for_each(|place| hosts.start(place));
        hosts
    }

    /// Milliseconds since this life began.
    pub fn now_ms(&self) -> i64 {
        self.start.elapsed().as_millis() as i64
    }

    /// The host that lives at a place that is drawn.
    pub fn any(&self, random: &mut Random) -> Option<Arc<Living>> {
        self.places[random.place(self.places.len())].living.lock().clone()
    }

    pub fn all(&self) -> Vec<Arc<Living>> {
        self.places.iter().filter_map(|place| place.living.lock().clone()).collect()
    }

    #[allow(clippy::disallowed_methods, reason = "a line is connected beside its host")]
    fn start(&self, place: usize) {
        let at = &self.places[place];
        let process = Process::begin();
        let way = |level: usize| -> Arc<dyn CacheLevel> {
            Arc::new(Way {
                server: Arc::clone(&self.servers[level]),
                process: Arc::clone(&process),
                trouble: Arc::clone(&at.troubles[level]),
                random: Mutex::new(self.random.lock().split()),
            })
        };
        let ear = |plane: &Arc<Plane>| -> Arc<dyn Backplane> {
            Arc::new(Ear { plane: Arc::clone(plane), place, process: Arc::clone(&process) })
        };
        let parts = CacheParts {
            installation: self.installation.clone(),
            redis: Some(way(0)),
            database: Some(way(1)),
            backplanes: self.planes.iter().map(ear).collect(),
            shared: true,
            clock: Arc::new(HostClock { start: self.start, shift_ms: Arc::clone(&at.shift_ms) }),
        };
        let options = CacheOptions { jitter: false, times: TIMES, ..CacheOptions::default() };
        let cache = Cache::new(parts, options);
        for plane in &self.planes {
            tokio::spawn(Arc::clone(plane).connect(place, Arc::clone(&process)));
        }
        let life = self.lives.fetch_add(1, Ordering::Relaxed);
        self.story.tell(format_args!("host {life} begins at place {place}"));
        let loops = Mutex::new(Some(cache.start(self.tenants.clone())));
        let clear_since_ms = AtomicI64::new(self.now_ms());
        let troubles = at.troubles.clone();
        let living = Living { life, place, cache, process, troubles, loops, clear_since_ms };
        *at.living.lock() = Some(Arc::new(living));
    }

    async fn restart(&self, place: usize, after_ms: u64) {
        let Some(living) = self.places[place].living.lock().take() else { return };
        self.story.tell(format_args!("host {} is killed", living.life));
        living.process.kill();
        living.loops.lock().take();
        self.ends.fetch_add(1, Ordering::Relaxed);
        self.model.lock().died(living.life, self.now_ms());
        sleep(Duration::from_millis(after_ms)).await;
        self.start(place);
    }

    async fn trouble(&self, place: usize, level: usize, trouble: Trouble, lasts_ms: u64) {
        let at = &self.places[place];
        if *at.troubles[level].lock() != Trouble::None {
            return;
        }
        self.story.tell(format_args!("{} of place {place}: {trouble:?} for {lasts_ms} ms", LEVELS[level]));
        at.set_trouble(level, trouble, self.now_ms());
        sleep(Duration::from_millis(lasts_ms)).await;
        at.set_trouble(level, Trouble::None, self.now_ms());
    }

    /// Redis forgets everything, or has garbage or other keys' envelopes.
    fn spoil(&self, random: &mut Random) {
        let redis = &self.servers[0].level;
        match random.among(0, 2) {
            0 => redis.flush(),
            1 => redis.spoil(b"\x01garbage"),
            _ => redis.mix_up(),
        }
        self.story.tell(format_args!("redis is spoilt"));
        self.model.lock().spoilt(self.now_ms());
    }

    async fn cut(&self, place: usize, plane: usize, lasts_ms: u64) {
        self.story.tell(format_args!("line {plane} of place {place} is cut for {lasts_ms} ms"));
        let clear = &self.places[place].lines_clear_ms;
        clear.store(i64::MAX, Ordering::Relaxed);
        Arc::clone(&self.planes[plane]).cut(place, lasts_ms).await;
        clear.store(self.now_ms(), Ordering::Relaxed);
    }

    fn jump(&self, place: usize, random: &mut Random) {
        let shift_ms = shift(random, self.skew_ms);
        self.places[place].shift_ms.store(shift_ms, Ordering::Relaxed);
    }

    /// Does harm until the end, one thing at a time.
    pub async fn harm(&self, mut random: Random, end_ms: i64) {
        while self.now_ms() < end_ms {
            sleep(Duration::from_millis(random.among(100, 2_500))).await;
            let place = random.place(self.places.len());
            let lasts_ms = random.among(50, 4_000);
            match random.among(0, 99) {
                0..=9 => self.restart(place, lasts_ms / 4).await,
                10..=17 => self.spoil(&mut random),
                18..=22 => self.jump(place, &mut random),
                23..=49 => self.cut(place, random.place(2), lasts_ms).await,
                // Longer than a lease lasts.
                50..=54 => {
                    let both = (
                        self.trouble(place, 0, Trouble::Hangs, 13_000),
                        self.trouble(place, 1, Trouble::Hangs, 13_000),
                    );
                    tokio::join!(both.0, both.1);
                }
                _ => {
                    let trouble = match random.among(0, 9) {
                        0..=2 => Trouble::Down,
                        3..=4 => Trouble::Unanswered,
                        5 => Trouble::Hangs,
                        6 => Trouble::Loses,
                        7 => Trouble::Slow,
                        _ => Trouble::Late,
                    };
                    self.trouble(place, random.place(2), trouble, lasts_ms).await;
                }
            }
        }
    }

    /// When something of a key was last taken and lost by a level.
    pub fn lost_ms(&self, key: &CacheKey) -> Option<i64> {
        self.servers.iter().filter_map(|server| server.lost_ms(key)).max()
    }

    /// Since when a host that lives reaches all levels, by its number.
    pub fn clear_since(&self, life: u64) -> i64 {
        let all = self.all();
        let living = all.iter().find(|living| living.life == life);
        living.map_or(i64::MAX, |living| living.clear_since(self.now_ms()))
    }

    /// Looks at all hosts now and again: what they have to repeat, and whether they do.
    pub async fn watch(&self) {
        loop {
            self.look();
            sleep(Duration::from_millis(LOOK_MS)).await;
        }
    }

    pub fn look(&self) {
        let now_ms = self.now_ms();
        for living in self.all() {
            let clear = living.clear_since(now_ms);
            let lines = self.places[living.place].lines_clear_ms.load(Ordering::Relaxed);
            let unrepeated = living.cache.figures().unrepeated;
            let lost_ms = |key: &CacheKey| self.lost_ms(key);
            self.model.lock().looked(living.life, unrepeated, (clear, lines), &lost_ms, now_ms);
        }
    }
}

impl Place {
    fn new(random: &mut Random, skew_ms: u64) -> Place {
        Place {
            living: Mutex::default(),
            shift_ms: Arc::new(AtomicI64::new(shift(random, skew_ms))),
            troubles: Default::default(),
            lines_clear_ms: Arc::default(),
        }
    }

    fn set_trouble(&self, level: usize, trouble: Trouble, now_ms: i64) {
        let before = std::mem::replace(&mut *self.troubles[level].lock(), trouble);
        if let Some(living) = &*self.living.lock()
            && (before.is_harm() || trouble.is_harm())
        {
            living.clear_since_ms.store(now_ms, Ordering::Relaxed);
        }
    }
}

fn shift(random: &mut Random, skew_ms: u64) -> i64 {
    random.among(0, 2 * skew_ms) as i64 - skew_ms as i64
}
