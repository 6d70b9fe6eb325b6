//! Compiling in a child process: the uploaded bytes meet the compiler only there.
//!
//! The child is a program that the operator named, started with a bare environment, fed on stdin and read from stdout,
//! both bounded, for a bounded time, and killed when nobody waits for it any more. A compile bomb therefore costs
//! this process a pipe.

mod child;

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use keiko_core::code::Code;
use keiko_core::limit::{ARTIFACT_BYTES_MAX, COMPILE_ADDRESS_SPACE_BYTES, COMPILE_CPU_SECONDS, LimitFact};
use keiko_core::port::InstallError;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;

use crate::artifact::Made;
pub use child::{ChildLimits, compile_child, compile_child_within};
use child::{Problem, ProblemKind};

/// Longest wall clock of a child: three times its CPU time, for machines that are busy.
const WALL: Duration = Duration::from_secs(3 * COMPILE_CPU_SECONDS);
/// Children at once, however many processors there are: each may take 1.5 GiB.
const CHILDREN_MAX: usize = 4;
/// Bytes of a child's stderr that are read.
const STDERR_BYTES_MAX: u64 = 64 << 10;

const SIGABRT: i32 = 6;
const SIGKILL: i32 = 9;
const SIGSEGV: i32 = 11;
const SIGXCPU: i32 = 24;

/// How to start the compile child.
#[derive(Clone, Debug)]
pub struct Compiler {
    /// The program: the host's own, or `keiko-compile`.
    pub program: PathBuf,
    /// Its arguments: the host's hidden subcommand.
    pub arguments: Vec<OsString>,
}

/// Starts children, a few at once.
#[derive(Debug)]
pub(crate) struct Compilers {
    compiler: Compiler,
    slots: Semaphore,
    threads: usize,
}

/// What a child left behind.
struct Left {
    status: ExitStatus,
    artifact: Vec<u8>,
    stderr: Vec<u8>,
}

impl Compilers {
    pub(crate) fn new(compiler: Compiler) -> Compilers {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let children = processors.min(CHILDREN_MAX);
        Compilers { compiler, slots: Semaphore::new(children), threads: processors.min(CHILDREN_MAX) }
    }

    /// Compiles a component, waiting for a free place first; with the milliseconds that it took.
    pub(crate) async fn compile(&self, component: Bytes) -> Result<(Made, u64), InstallError> {
        let _slot = self.slots.acquire().await.map_err(|_| internal("the host no longer compiles"))?;
        let began = Instant::now();
        let made = self.compile_now(component).await;
        let compile_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        made.map(|made| (made, compile_ms)).map_err(|error| InstallError { compile_ms, ..error })
    }

    async fn compile_now(&self, component: Bytes) -> Result<Made, InstallError> {
        let child = self.spawn().map_err(|error| {
            tracing::error!(error = %error, "the compiler cannot be started");
            internal("the compiler cannot be started")
        })?;
        let left = tokio::time::timeout(WALL, attend(child, component)).await;
        let left = left.map_err(|_| at_limit("compile_wall_seconds", WALL.as_secs(), None))?;
        judge(left.map_err(|error| internal(format!("the compiler was lost: {error}")))?)
    }

    /// The crate's named place for processes.
    fn spawn(&self) -> std::io::Result<Child> {
        Command::new(&self.compiler.program)
            .args(&self.compiler.arguments)
            // No secret of the host's environment reaches the compiler. Threads and arenas are bounded because
            // each takes a piece of the address space.
            .env_clear()
            .env("RAYON_NUM_THREADS", self.threads.to_string())
            .env("MALLOC_ARENA_MAX", "2")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
    }
}

/// Feeds and reads a child until it ends.
async fn attend(mut child: Child, component: Bytes) -> std::io::Result<Left> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async move {
        if let Some(mut stdin) = stdin {
            // A child that ends early closes the pipe; how it ended says why.
            let _ = stdin.write_all(&component).await;
        }
    };
    // One byte more than allowed tells an artifact that is too large; the child then writes into a closed pipe.
    let artifact = read(stdout, ARTIFACT_BYTES_MAX + 1);
    let ((), artifact, stderr) = tokio::join!(feed, artifact, read(stderr, STDERR_BYTES_MAX));
    let status = child.wait().await?;
    Ok(Left { status, artifact: artifact?, stderr: stderr? })
}

async fn read(from: Option<impl AsyncRead + Unpin>, bytes_max: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        from.take(bytes_max).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

/// Classifies how a child ended.
fn judge(left: Left) -> Result<Made, InstallError> {
    let bytes = left.artifact.len() as u64;
    if bytes > ARTIFACT_BYTES_MAX {
        return Err(at_limit("artifact_bytes", ARTIFACT_BYTES_MAX, Some(bytes)));
    }
    if left.status.success() {
        return Ok(Made::from_child(left.artifact));
    }
    match left.status.signal() {
        // The kernel's own killer is a memory limit too, but whose is not known: the CPU limit is the likelier.
        Some(SIGXCPU | SIGKILL) => return Err(at_limit("compile_cpu_seconds", COMPILE_CPU_SECONDS, None)),
        // Rust aborts when memory cannot be had or a stack overflows.
        Some(SIGABRT | SIGSEGV) => return Err(out_of_memory()),
        _ => {}
    }
    match serde_json::from_slice::<Problem>(&left.stderr) {
        Ok(Problem { kind: ProblemKind::Invalid, message }) => {
            Err(InstallError::new(Code::ComponentInvalid, message))
        }
        Ok(Problem { kind: ProblemKind::Memory, .. }) => Err(out_of_memory()),
        Ok(Problem { kind: ProblemKind::TooLarge, message }) => {
            Err(InstallError::new(Code::CompileLimit, message))
        }
        Ok(Problem { kind: ProblemKind::Internal, message }) => Err(internal(message)),
        Err(_) => {
            let stderr = String::from_utf8_lossy(&left.stderr);
            tracing::error!(error = ?stderr, "the compiler ended without saying why");
            Err(internal(format!("the compiler ended without saying why: {}", left.status)))
        }
    }
}

fn out_of_memory() -> InstallError {
    at_limit("compile_memory_bytes", COMPILE_ADDRESS_SPACE_BYTES, None)
}

fn at_limit(name: &str, limit: u64, asked: Option<u64>) -> InstallError {
    let fact = LimitFact::of_host(name, limit, asked);
    let message = format!("compiling the component goes over a limit: {fact}");
    InstallError { limit: Some(fact), ..InstallError::new(Code::CompileLimit, message) }
}

/// A refusal that is our own fault.
pub(crate) fn internal(message: impl Into<String>) -> InstallError {
    InstallError::new(Code::Internal, message)
}
