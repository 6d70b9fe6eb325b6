//! What is asked of the caches of a life, and what is made of the answers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use keiko_core::cache::{CacheKey, Lifetime, Namespace, Tag, Wish};
use keiko_runtime::cache::{Computed, FillGuard, Filling, Found, Patience, Stored};
use tokio::time::{sleep, timeout};

use super::hosts::{Hosts, Living};
use super::model::{Change, How, Kind, Model, Name, Reader};
use super::off::Off;
use crate::random::Random;

/// Keys of each tenant.
const KEYS: u64 = 4;
/// Tags that entries may have.
const TAGS: u64 = 2;
/// How long somebody waits for a right.
const FILL_PATIENCE: Duration = Duration::from_secs(6);
const PATIENCE: Patience = Patience {
    soft: Duration::from_millis(100),
    hard: Duration::from_secs(4),
    throttle: Duration::from_secs(1),
};
/// Longer than a right lasts that is not prolonged, in milliseconds.
const LONG_MS: u64 = 13_000;

/// One that asks.
pub struct Client {
    pub hosts: Arc<Hosts>,
    pub random: Random,
}

/// A call to a host.
struct Call {
    hosts: Arc<Hosts>,
    living: Arc<Living>,
    reader: Reader,
}

impl Call {
    fn begin(hosts: &Arc<Hosts>, living: Arc<Living>) -> Call {
        let now_ms = hosts.now_ms();
        let reader = Reader { life: living.life, clear_ms: living.clear_since(now_ms), began_ms: now_ms };
        Call { hosts: Arc::clone(hosts), living, reader }
    }

    fn key(&self, name: Name) -> CacheKey {
        let owner = if self.hosts.off == Some(Off::TenantInKey) { 0 } else { name.0 };
        CacheKey::new(&self.hosts.tenants[owner], &namespace(), &format!("k{}", name.1)).expect("a short key")
    }

    fn tell(&self, what: std::fmt::Arguments<'_>) {
        self.hosts.story.tell(format_args!("host {}: {what}", self.living.life));
    }

    /// A change of a key begins.
    fn change(&self, kind: Kind, name: Name, random: &mut Random) -> (u64, Wish) {
        let mut change = Change::new(kind, name.0, Some(name.1), self.key(name), self.reader);
        // The knowledge that there is no value is kept only for a time that is said.
        let is_said = random.percent(70) || kind == Kind::Absent;
        let lifetime_ms = is_said.then(|| random.among(200, 15_000));
        let stale_ms = if random.percent(40) { random.among(500, 8_000) } else { 0 };
        let tags: Vec<u64> = (0..TAGS).filter(|_| random.percent(30)).collect();
        let eager = random.percent(10).then_some(0.5);
        let lifetime = lifetime_ms.and_then(Lifetime::of_ms);
        let tagged = tags.iter().map(|at| tag(*at)).collect();
        let wish = Wish { lifetime, absent: lifetime, stale_ms, eager, tags: tagged };
        (change.lifetime_ms, change.stale_ms, change.tags) = (lifetime_ms, stale_ms, tags);
        (self.hosts.model.lock().begin(change), wish)
    }

    /// A change was made; whoever asked for it is told.
    fn acked(&self, id: u64) {
        let now_ms = self.hosts.now_ms();
        let unrepeated = self.living.cache.figures().unrepeated;
        let clear_ms = self.living.clear_since(now_ms);
        let mut model = self.hosts.model.lock();
        let lost_ms = model.changes.get(&id).and_then(|change| self.hosts.lost_ms(&change.stored));
        model.acked(id, unrepeated, clear_ms, lost_ms, now_ms);
    }

    /// Whether the answer reaches whoever asked.
    fn answered(&self, what: &str, patience: Duration) -> bool {
        let lives = self.living.process.lives();
        if lives {
            let now_ms = self.hosts.now_ms();
            let clear_ms = self.living.clear_since(now_ms);
            let patience_ms = patience.as_millis() as i64;
            self.hosts.model.lock().answered(what, self.reader, patience_ms, clear_ms, now_ms);
        }
        lives
    }

    fn read(&self, name: Name, how: How, value: Option<&[u8]>) {
        self.tell(format_args!("{name:?} has {:?}", value.map(String::from_utf8_lossy)));
        self.hosts.model.lock().read(name, self.reader, how, value);
    }

    fn found(&self, name: Name, found: &Found) {
        match found {
            Found::Value(value) => self.read(name, How::Found, Some(value)),
            Found::Absent => self.read(name, How::Found, None),
            Found::Nothing(why) => self.tell(format_args!("{name:?} has nothing: {}", why.as_str())),
        }
    }

    fn asked(&self, id: u64) {
        let now_ms = self.hosts.now_ms();
        let clear_ms = self.living.clear_since(now_ms);
        self.hosts.model.lock().asked(id, self.reader, clear_ms, now_ms);
    }

    fn waited(&self, name: Name) {
        let now_ms = self.hosts.now_ms();
        let clear_ms = self.living.clear_since(now_ms);
        self.hosts.model.lock().waited(name, self.reader, clear_ms, now_ms);
    }

    fn computes(&self, id: u64, name: Name) {
        self.tell(format_args!("{name:?} is computed as {id}"));
        let clear = |life| self.hosts.clear_since(life);
        self.hosts.model.lock().computes(id, name, self.reader, self.hosts.now_ms(), &clear);
    }

    fn computed(&self, id: u64) {
        let now_ms = self.hosts.now_ms();
        let well = self.living.clear_since(now_ms) <= self.reader.began_ms;
        self.hosts.model.lock().computed(id, well, now_ms);
    }
}

impl Client {
    /// Asks for one thing after the other until the end.
    pub async fn work(mut self, end_ms: i64) {
        while self.hosts.now_ms() < end_ms {
            let pause_ms = if self.random.percent(30) { 0 } else { self.random.among(1, 300) };
            sleep(Duration::from_millis(pause_ms)).await;
            let Some(living) = self.hosts.any(&mut self.random) else { continue };
            let call = Call::begin(&self.hosts, living);
            let name = (self.random.place(2), self.random.among(0, KEYS - 1));
            match self.random.among(0, 99) {
                0..=29 => self.get(&call, name).await,
                30..=34 => self.get_many(&call, name.0).await,
                35..=54 => self.set(&call, name).await,
                55..=59 => self.remove(&call, name).await,
                60..=63 => self.expire(&call, name).await,
                64..=66 => self.remove_tag(&call, name.0).await,
                67..=68 => self.clear(&call, name.0).await,
                69..=83 => self.fill(&call, name).await,
                _ => self.get_or_compute(call, name).await,
            }
        }
    }

    async fn get(&mut self, call: &Call, name: Name) {
        let key = call.key(name);
        if self.random.percent(20) {
            if let Some(value) = call.living.cache.peek(&key) {
                call.read(name, How::Found, Some(&value));
            }
            return;
        }
        let found = call.living.cache.get(&key).await;
        if call.answered("get", Duration::ZERO) {
            call.found(name, &found);
        }
    }

    async fn get_many(&mut self, call: &Call, tenant: usize) {
        let keys: Vec<CacheKey> = (0..KEYS).map(|key| call.key((tenant, key))).collect();
        let found = call.living.cache.get_many(&keys).await;
        if call.answered("get_many", Duration::ZERO) {
            (0..).zip(&found).for_each(|(key, found)| call.found((tenant, key), found));
        }
    }

    async fn set(&mut self, call: &Call, name: Name) {
        let (id, wish) = call.change(Kind::Value, name, &mut self.random);
        call.tell(format_args!("sets {name:?} to {id}, {wish:?}"));
        call.living.cache.set(&call.key(name), text(name, id), &wish).await;
        if call.answered("set", Duration::ZERO) {
            call.acked(id);
        }
    }

    async fn remove(&mut self, call: &Call, name: Name) {
        let (id, _) = call.change(Kind::Remove, name, &mut self.random);
        call.tell(format_args!("removes {name:?} by {id}"));
        call.living.cache.remove(&call.key(name)).await;
        if call.answered("remove", Duration::ZERO) {
            call.acked(id);
        }
    }

    async fn expire(&mut self, call: &Call, name: Name) {
        let (id, _) = call.change(Kind::Expire, name, &mut self.random);
        call.tell(format_args!("expires {name:?} by {id}"));
        let was_there = call.living.cache.expire(&call.key(name)).await;
        if !was_there {
            call.hosts.model.lock().unmade(id);
        } else if call.answered("expire", Duration::ZERO) {
            call.acked(id);
        }
    }

    async fn remove_tag(&mut self, call: &Call, tenant: usize) {
        let at = self.random.among(0, TAGS - 1);
        let owner = &call.hosts.tenants[tenant];
        let stored = CacheKey::marker_of(owner, &namespace(), &tag(at));
        let change = Change::new(Kind::Tag(at), tenant, None, stored, call.reader);
        let id = call.hosts.model.lock().begin(change);
        call.tell(format_args!("removes tag {at} of tenant {tenant} by {id}"));
        call.living.cache.remove_tag(owner, &namespace(), &tag(at)).await;
        if call.answered("remove_tag", Duration::ZERO) {
            call.acked(id);
        }
    }

    async fn clear(&mut self, call: &Call, tenant: usize) {
        let owner = &call.hosts.tenants[tenant];
        let change = Change::new(Kind::Clear, tenant, None, CacheKey::cleared(owner), call.reader);
        let id = call.hosts.model.lock().begin(change);
        call.tell(format_args!("clears tenant {tenant} by {id}"));
        call.living.cache.clear(owner).await;
        if call.answered("clear", Duration::ZERO) {
            call.acked(id);
        }
    }

    fn work_ms(&mut self) -> u64 {
        match self.random.among(0, 9) {
            0 => LONG_MS,
            1..=3 => self.random.among(300, 3_000),
            _ => self.random.among(0, 200),
        }
    }

    async fn fill(&mut self, call: &Call, name: Name) {
        let (id, wish) = call.change(Kind::Value, name, &mut self.random);
        let key = call.key(name);
        call.hosts.model.lock().asks(id, name, call.reader);
        let filling = timeout(FILL_PATIENCE, call.living.cache.fill(&key)).await;
        call.asked(id);
        if !call.answered("fill", FILL_PATIENCE) {
            return call.hosts.model.lock().unmade(id);
        }
        match filling {
            Err(_) => call.hosts.model.lock().unmade(id),
            Ok(Filling::Hit(value)) => {
                call.hosts.model.lock().unmade(id);
                call.read(name, How::Computed, Some(&value));
                call.waited(name);
            }
            Ok(Filling::Fill(guard)) => {
                call.waited(name);
                call.computes(id, name);
                self.complete(call, name, (id, wish), guard).await;
            }
        }
    }

    async fn complete(&mut self, call: &Call, name: Name, (id, wish): (u64, Wish), guard: FillGuard) {
        sleep(Duration::from_millis(self.work_ms())).await;
        if !call.living.process.lives() {
            return;
        }
        call.computed(id);
        if self.random.percent(25) {
            call.tell(format_args!("gives up {id}"));
            return drop(guard);
        }
        let stored = guard.complete(text(name, id), &wish).await;
        if !call.living.process.lives() {
            return;
        }
        call.tell(format_args!("completes {id}: {stored:?}"));
        match stored {
            Ok(Stored::Kept) => {
                let clear = |life| call.hosts.clear_since(life);
                call.hosts.model.lock().kept(id, call.hosts.now_ms(), &clear);
                call.acked(id);
            }
            Ok(Stored::TooLarge) => call.hosts.model.lock().violated(format!("{id} is too large")),
            Err(_) => call.hosts.model.lock().fenced(id),
        }
    }

    async fn get_or_compute(&mut self, call: Call, name: Name) {
        let outcome = self.random.among(0, 9);
        let kind = if outcome == 0 { Kind::Absent } else { Kind::Value };
        let (id, wish) = call.change(kind, name, &mut self.random);
        let work_ms = self.work_ms();
        let call = Arc::new(call);
        let compute = {
            let call = Arc::clone(&call);
            move || {
                async move {
                    call.living.process.go_on().await;
                    call.computes(id, name);
                    sleep(Duration::from_millis(work_ms)).await;
                    call.living.process.go_on().await;
                    call.computed(id);
                    if outcome <= 2 && outcome > 0 {
                        let until_ms = call.hosts.now_ms() + PATIENCE.throttle.as_millis() as i64;
                        call.hosts.model.lock().throttled(call.living.life, name, until_ms);
                        return Err("it cannot be computed");
                    }
                    Ok(Computed { value: (kind == Kind::Value).then(|| text(name, id)), wish: None })
                }
                .boxed()
            }
        };
        let key = call.key(name);
        call.hosts.model.lock().asks(id, name, call.reader);
        let answer = call.living.cache.get_or_compute(&key, &wish, PATIENCE, compute).await;
        call.asked(id);
        if !call.answered("get_or_compute", PATIENCE.hard) {
            return;
        }
        let Ok(value) = answer else {
            return call.tell(format_args!("{name:?} is not computed: {answer:?}"));
        };
        let is_mine = value.as_ref() == Some(&text(name, id));
        if is_mine && call.hosts.model.lock().is_alone(id) {
            call.acked(id);
        }
        call.read(name, How::Computed, value.as_deref());
        call.waited(name);
    }
}

/// Every host is asked for every key: none has what is older than what it should have, and all have the same.
pub async fn ask_all(hosts: &Arc<Hosts>) {
    for name in (0..2).flat_map(|tenant| (0..KEYS).map(move |key| (tenant, key))) {
        let mut all = Vec::new();
        for living in hosts.all() {
            let call = Call::begin(hosts, living);
            let found = call.living.cache.get(&call.key(name)).await;
            call.found(name, &found);
            if let Found::Value(value) = found {
                all.push(value);
            }
        }
        let mut model = hosts.model.lock();
        if model.is_settled(name) && all.windows(2).any(|pair| pair[0] != pair[1]) {
            model.violated(format!("hosts do not agree on {name:?} in the end: {all:?}"));
        }
    }
}

fn text(name: Name, id: u64) -> Bytes {
    Model::text(name, id).into()
}

fn tag(at: u64) -> Tag {
    Tag::given(&format!("t{at}")).expect("a short tag")
}

fn namespace() -> Namespace {
    Namespace::shared(&"films".parse().expect("a name of letters"))
}
