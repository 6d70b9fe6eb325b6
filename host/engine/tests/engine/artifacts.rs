//! Artifacts: kept, believed only with the right MAC, and made again otherwise.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use keiko_core::Code;
use keiko_core::Digest;
use keiko_core::limit::COMPONENT_BYTES_MAX;
use keiko_core::outcome::Outcome;
use keiko_core::port::{Components, Runner};
use keiko_core::profile::Profiles;
use keiko_core::stop::StopReason;
use keiko_engine::{Compiler, Engine, EngineOptions};

use crate::guest::{TASKS, guest};
use crate::host::{Kept, Port, Run, block_on, completed, engine, key};

struct Folder {
    dir: tempfile::TempDir,
    components: Arc<Kept>,
    digest: Digest,
}

/// A folder with the artifact of one component, whose bytes are kept.
fn folder() -> Folder {
    let dir = tempfile::tempdir().unwrap();
    let components = Arc::<Kept>::default();
    let engine = engine(dir.path(), key('a'), components.clone(), &[]);
    let bytes = Bytes::from(guest("(call $done)").bytes());
    let digest = block_on(async {
        let compiled = engine.compile(bytes.clone(), COMPONENT_BYTES_MAX, Profiles::STRICT).await.unwrap();
        components.put(compiled.digest, bytes, 0).await.unwrap();
        compiled.digest
    });
    Folder { dir, components, digest }
}

impl Folder {
    fn engine(&self, digit: char) -> Engine {
        engine(self.dir.path(), key(digit), self.components.clone(), &[])
    }

    fn artifact(&self) -> PathBuf {
        let mut files = files(self.dir.path());
        assert_eq!(files.len(), 1, "{files:?}");
        files.remove(0)
    }

    /// Loads and runs with a new engine, and returns how many artifacts it refused.
    fn refused(&self, digit: char) -> u64 {
        let engine = self.engine(digit);
        let run = Run::of(guest("(call $done)"));
        block_on(async {
            engine.load(self.digest, Profiles::STRICT).await.unwrap();
            let report = engine.run(run.attempt(self.digest), run.port.clone(), run.stop.clone()).await;
            assert_eq!(completed(&report), "null");
        });
        engine.counts().artifacts_refused
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn an_artifact_is_loaded_and_not_made_again() {
    let folder = folder();
    let before = fs::metadata(folder.artifact()).unwrap().modified().unwrap();
    assert_eq!(folder.refused('a'), 0);
    assert_eq!(fs::metadata(folder.artifact()).unwrap().modified().unwrap(), before);
}

#[test]
fn an_artifact_that_cannot_be_believed_is_made_again() {
    let folder = folder();
    let good = fs::read(folder.artifact()).unwrap();
    let check = |what: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        fs::write(folder.artifact(), bytes).unwrap();
        assert_eq!(folder.refused('a'), 1, "{what}");
        assert_eq!(fs::read(folder.artifact()).unwrap()[..16], good[..16], "{what}");
        assert_eq!(folder.refused('a'), 0, "{what}: what was made again is good");
    };
    check("altered at its end", &|bytes| *bytes.last_mut().unwrap() ^= 1);
    check("altered in its MAC", &|bytes| bytes[20] ^= 1);
    check("altered in its format", &|bytes| bytes[15] = b'2');
    check("cut in half", &|bytes| bytes.truncate(bytes.len() / 2));
    check("cut in its header", &|bytes| bytes.truncate(47));
    check("empty", &Vec::clear);
    check("grown", &|bytes| bytes.push(0));
}

#[test]
fn an_artifact_of_another_cluster_is_made_again() {
    let folder = folder();
    assert_eq!(folder.refused('b'), 1);
    assert_eq!(folder.refused('b'), 0);
    assert_eq!(folder.refused('a'), 1);
}

#[test]
fn what_another_build_left_is_removed_and_counted_and_nothing_else() {
    let folder = folder();
    let good = folder.artifact();
    let name = good.file_name().unwrap().to_str().unwrap().to_owned();
    let (digest, _) = name.split_once('-').unwrap();
    let at = |name: &str| folder.dir.path().join(name);
    let stale =
        [format!("{digest}-0123456789abcdef.cwasm"), format!("{}-0123456789abcdef.cwasm", "0".repeat(64))];
    let others = ["notes.txt".to_owned(), format!("{digest}.cwasm"), format!("{digest}-short.cwasm")];
    for name in stale.iter().chain(&others) {
        fs::copy(&good, at(name)).unwrap();
    }
    assert_eq!(folder.refused('a'), 2);
    assert!(stale.iter().all(|name| !at(name).exists()));
    assert!(others.iter().all(|name| at(name).exists()), "they are not ours to remove");
    assert!(good.exists());
    assert_eq!(folder.refused('a'), 0);
}

#[test]
fn an_artifact_under_the_name_of_another_is_made_again() {
    let folder = folder();
    let other = Bytes::from(guest("(call $digit (i32.const 7))").bytes());
    let engine = folder.engine('a');
    let name = folder.artifact();
    let compiled = block_on(engine.compile(other, COMPONENT_BYTES_MAX, Profiles::STRICT)).unwrap();
    let of_other = files(folder.dir.path()).into_iter().find(|file| *file != name).unwrap();
    assert!(of_other.to_string_lossy().contains(&compiled.digest.hex()));
    fs::rename(of_other, name).unwrap();
    assert_eq!(folder.refused('a'), 1);
}

/// A host of the database that these components are in, which can compile nothing.
fn other_host(components: &Arc<Kept>, digit: char) -> (Engine, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (without_compiler(dir.path(), components, digit), dir)
}

fn without_compiler(dir: &Path, components: &Arc<Kept>, digit: char) -> Engine {
    let options = EngineOptions {
        artifacts_dir: dir.to_owned(),
        cluster_key: key(digit),
        compiler: Compiler { program: "/bin/false".into(), arguments: Vec::new() },
        running_max: 1,
    };
    Engine::new(options, components.clone()).unwrap()
}

#[test]
fn what_one_host_has_compiled_another_one_runs_without_a_compiler() {
    let folder = folder();
    let first = folder.engine('a');
    block_on(first.load(folder.digest, Profiles::STRICT)).unwrap();
    // It was compiled for an upload, and is handed on when that has become a plugin.
    let (other, dir) = other_host(&folder.components, 'a');
    assert!(block_on(other.load(folder.digest, Profiles::STRICT)).is_err());
    let bytes = Bytes::from(guest("(call $digit (i32.const 7))").bytes());
    let digest = block_on(async {
        let compiled = first.compile(bytes.clone(), COMPONENT_BYTES_MAX, Profiles::STRICT).await.unwrap();
        folder.components.put(compiled.digest, bytes, 0).await.unwrap();
        first.share(compiled.digest).await;
        compiled.digest
    });
    assert_eq!(folder.components.alter(|_| {}), 1);
    let run = Run::of(guest(""));
    block_on(async {
        other.load(digest, Profiles::STRICT).await.unwrap();
        let report = other.run(run.attempt(digest), run.port.clone(), run.stop.clone()).await;
        assert_eq!(completed(&report), "7");
    });
    assert_eq!((other.counts().artifacts_received, other.counts().artifacts_refused), (1, 0));
    // The next start has it in its folder.
    folder.components.alter(Vec::clear);
    let again = without_compiler(dir.path(), &folder.components, 'a');
    block_on(again.load(digest, Profiles::STRICT)).unwrap();
    assert_eq!((again.counts().artifacts_received, again.counts().artifacts_refused), (0, 0));
}

#[test]
fn machine_code_of_another_host_is_believed_no_more_than_a_file() {
    let folder = folder();
    fs::remove_file(folder.artifact()).unwrap();
    // Without an upload it is handed on at once: the component is kept.
    let first = folder.engine('a');
    block_on(first.load(folder.digest, Profiles::STRICT)).unwrap();
    assert_eq!(folder.components.alter(|bytes| *bytes.last_mut().unwrap() ^= 1), 1);
    let (other, dir) = other_host(&folder.components, 'a');
    assert!(block_on(other.load(folder.digest, Profiles::STRICT)).is_err(), "nobody compiles it here");
    assert_eq!((other.counts().artifacts_refused, files(dir.path()).len()), (1, 0));
    let changes: [fn(&mut Vec<u8>); 3] =
        [|bytes| bytes.truncate(100), Vec::clear, |bytes| bytes.extend([0; 100])];
    for change in changes {
        folder.components.alter(change);
        let (other, dir) = other_host(&folder.components, 'a');
        assert!(block_on(other.load(folder.digest, Profiles::STRICT)).is_err());
        assert_eq!((other.counts().artifacts_refused, files(dir.path()).len()), (1, 0));
    }
    // One that can compile goes on, and mends what is there.
    let dir = tempfile::tempdir().unwrap();
    let compiles = engine(dir.path(), key('a'), folder.components.clone(), &[]);
    block_on(compiles.load(folder.digest, Profiles::STRICT)).unwrap();
    let (other, _dir) = other_host(&folder.components, 'a');
    block_on(other.load(folder.digest, Profiles::STRICT)).unwrap();
    // With another key there is nothing to find.
    let (stranger, _dir) = other_host(&folder.components, 'b');
    assert!(block_on(stranger.load(folder.digest, Profiles::STRICT)).is_err());
    assert_eq!((stranger.counts().artifacts_received, stranger.counts().artifacts_refused), (0, 0));
}

#[test]
fn a_component_that_is_not_kept_cannot_be_loaded() {
    let folder = folder();
    let unknown = Digest([1; 32]);
    let load = |digest| block_on(folder.engine('b').load(digest, Profiles::STRICT)).unwrap_err().code;
    assert_eq!(load(unknown), Code::Integrity);
    block_on(folder.components.put(unknown, Bytes::from_static(b"other bytes"), 0)).unwrap();
    assert_eq!(load(unknown), Code::Integrity);
}

#[test]
fn artifacts_of_components_that_are_not_kept_go_when_they_are_old() {
    let folder = folder();
    let engine = folder.engine('a');
    block_on(engine.load(folder.digest, Profiles::STRICT)).unwrap();
    let written = fs::metadata(folder.artifact()).unwrap().modified().unwrap();
    let written_ms = written.duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
    let left = |kept: &[Digest], before_ms| {
        block_on(engine.forget(kept, before_ms));
        files(folder.dir.path()).len()
    };
    fs::write(folder.dir.path().join("notes.txt"), "somebody else's").unwrap();
    assert_eq!(left(&[folder.digest], written_ms + 1_000), 2);
    assert_eq!(left(&[], written_ms), 2);
    assert_eq!(left(&[Digest([1; 32])], i64::MIN), 2);
    assert_eq!(left(&[Digest([1; 32])], written_ms + 1), 1);
    // What is loaded does not need its file.
    let run = Run::of(guest("(call $done)"));
    let attempt = engine.run(run.attempt(folder.digest), run.port.clone(), run.stop);
    assert!(matches!(block_on(attempt).outcome, Outcome::Completed(_)));
}

#[test]
fn an_engine_forgets_what_it_is_told_to() {
    let folder = folder();
    let engine = folder.engine('a');
    let run = Run::of(guest("(call $done)"));
    let ran = |engine: &Engine| {
        block_on(engine.run(run.attempt(folder.digest), run.port.clone(), run.stop.clone())).outcome
    };
    block_on(engine.load(folder.digest, Profiles::STRICT)).unwrap();
    engine.retain(&[folder.digest], &[]);
    assert_eq!(engine.counts().loaded, 1);
    assert!(matches!(ran(&engine), Outcome::Completed(_)));
    engine.retain(&[], &[]);
    assert_eq!((engine.counts().loaded, engine.counts().held), (0, 0));
    // An attempt whose version was swapped out before it began keeps to it, and leaves nothing behind.
    assert!(matches!(ran(&engine), Outcome::Completed(_)));
    assert_eq!((engine.counts().loaded, engine.counts().held), (0, 0));
    block_on(engine.load(folder.digest, Profiles::STRICT)).unwrap();
    assert_eq!(engine.counts().loaded, 1);
}

#[test]
fn swaps_leave_nothing_in_memory() {
    let folder = folder();
    let engine = folder.engine('a');
    let bytes = guest("(drop (i32.const 1)) (call $done)").bytes().into();
    let other = block_on(engine.compile(bytes, COMPONENT_BYTES_MAX, Profiles::STRICT)).unwrap().digest;
    block_on(async {
        for _ in 0..500 {
            for digest in [folder.digest, other] {
                engine.load(digest, Profiles::STRICT).await.unwrap();
                engine.retain(&[digest], &[]);
                assert_eq!((engine.counts().loaded, engine.counts().held), (1, 1));
            }
        }
    });
}

#[test]
fn an_attempt_keeps_its_component_until_it_ends() {
    let waits = guest("(call $submit-many (i32.const 4096) (i32.const 0) (i32.const 2048)) (call $done)");
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path(), key('a'), Arc::<Kept>::default(), &[]);
    let run = Run::of(waits.with(TASKS)).port(Port { never_answers: true, ..Port::default() });
    let report = block_on(async {
        let bytes = run.guest.bytes().into();
        let digest = engine.compile(bytes, COMPONENT_BYTES_MAX, Profiles::STRICT).await.unwrap().digest;
        let swap = async {
            run.port.reserving.notified().await;
            engine.retain(&[], &[]);
            assert_eq!(engine.counts().loaded, 0);
            run.stop.set(StopReason::Drained);
        };
        tokio::join!(engine.run(run.attempt(digest), run.port.clone(), run.stop.clone()), swap).0
    });
    assert_eq!(report.outcome, Outcome::Stopped(StopReason::Drained));
}

#[test]
fn drafts_of_a_host_that_was_killed_are_removed() {
    let folder = folder();
    let draft = folder.dir.path().join("0123456789ab-1-0.new");
    fs::write(&draft, b"half").unwrap();
    assert_eq!(folder.refused('a'), 0);
    assert!(!draft.exists());
}

#[test]
fn a_folder_can_be_written_by_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let folder = folder();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o077;
    assert_eq!(mode(&folder.artifact()), 0);
    let fresh = folder.dir.path().join("fresh");
    engine(&fresh, key('a'), Arc::<Kept>::default(), &[]);
    assert_eq!(mode(&fresh), 0);
}
