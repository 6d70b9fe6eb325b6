//! What runs in the compile child: limits first, then the component from stdin, then the artifact to stdout.
//!
//! Limits bind the whole process, threads of the compiler included. When the address space is used up the process
//! aborts or reports it, when the CPU time is used up the kernel ends it; the parent tells them apart.

use std::any::Any;
use std::io::{self, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use keiko_core::limit::{COMPILE_ADDRESS_SPACE_BYTES, COMPILE_CPU_SECONDS, COMPONENT_BYTES_CEILING};
use rustix::process::{Resource, Rlimit, nice, setrlimit};
use serde::{Deserialize, Serialize};

use crate::adapt;
use crate::config::{self, Purpose};
use crate::{need, section};

/// How much the child steps back behind the guests that run beside it.
const NICENESS: i32 = 10;

/// What a compile child may use.
#[derive(Clone, Copy, Debug)]
pub struct ChildLimits {
    /// Bytes of address space.
    pub address_space_bytes: u64,
    /// Seconds of CPU time, all threads together.
    pub cpu_seconds: u64,
}

impl Default for ChildLimits {
    fn default() -> ChildLimits {
        ChildLimits { address_space_bytes: COMPILE_ADDRESS_SPACE_BYTES, cpu_seconds: COMPILE_CPU_SECONDS }
    }
}

/// Why there is no artifact, as the child tells its parent.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Problem {
    pub(super) kind: ProblemKind,
    pub(super) message: String,
}

/// What kind of trouble it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ProblemKind {
    /// The component is not valid, or uses what this host has switched off.
    Invalid,
    /// The address space is used up.
    Memory,
    /// The compiler's own bounds.
    TooLarge,
    /// A fault of ours.
    Internal,
}

/// What the hidden subcommand of the host runs.
pub fn compile_child() -> ExitCode {
    compile_child_within(ChildLimits::default())
}

/// The same under other limits.
pub fn compile_child_within(limits: ChildLimits) -> ExitCode {
    match compile(limits) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            let text = serde_json::to_vec(&problem).unwrap_or_default();
            // Nobody listens any more when this fails.
            let _ = io::stderr().write_all(&text);
            ExitCode::FAILURE
        }
    }
}

fn compile(limits: ChildLimits) -> Result<(), Problem> {
    confine(limits).map_err(|error| internal(format!("the limits cannot be set: {error}")))?;
    let mut component = Vec::new();
    let mut stdin = io::stdin().lock().take(COMPONENT_BYTES_CEILING + 1);
    stdin.read_to_end(&mut component).map_err(|error| internal(format!("no component: {error}")))?;
    // The same rule as in the parent, which asked the policy before: nothing else needs to be handed over.
    let profile = need::profile(&component);
    let engine = config::engine(Purpose::Compile, profile).map_err(|error| internal(format!("{error:#}")))?;
    let component =
        adapt::component(&component).map_err(|message| Problem { kind: ProblemKind::Invalid, message })?;
    // Where the compiler has no error for what it cannot do, it panics; what it says then is told like any other reason.
    std::panic::set_hook(Box::new(|_| {}));
    let compiled = catch_unwind(AssertUnwindSafe(|| engine.precompile_component(&component)));
    let artifact =
        compiled.map_err(|panic| given_up(&*panic))?.map_err(|error| problem(&error, &component))?;
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(&artifact).and_then(|()| stdout.flush());
    written.map_err(|error| internal(format!("the artifact cannot be handed over: {error}")))
}

fn given_up(panic: &(dyn Any + Send)) -> Problem {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref().copied()).unwrap_or("it does not say why");
    let text = text.lines().next().unwrap_or_default();
    let message = format!("the component does not compile: the compiler gave up: {text}");
    Problem { kind: ProblemKind::Invalid, message }
}

fn confine(limits: ChildLimits) -> rustix::io::Result<()> {
    let at_most = |number| Rlimit { current: Some(number), maximum: Some(number) };
    setrlimit(Resource::Core, at_most(0))?;
    // The soft limit ends the process with SIGXCPU, the hard one would be SIGKILL.
    let cpu = Rlimit { current: Some(limits.cpu_seconds), maximum: Some(limits.cpu_seconds + 1) };
    setrlimit(Resource::Cpu, cpu)?;
    setrlimit(Resource::As, at_most(limits.address_space_bytes))?;
    nice(NICENESS).map(drop)
}

/// Whatever the compiler refuses, it refuses because of the component; only limits are told apart, by the words that
/// the operating system and Cranelift use for them.
fn problem(error: &wasmtime::Error, component: &[u8]) -> Problem {
    let mut message = format!("{error:#}");
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    let kind = if says(&["Cannot allocate memory", "os error 12", "out of memory"]) {
        ProblemKind::Memory
    } else if says(&["mplementation limit", "too large"]) {
        ProblemKind::TooLarge
    } else {
        ProblemKind::Invalid
    };
    if let Some(section) = offset(&message).and_then(|offset| section::at(component, offset)) {
        message = format!("{message}, {section}");
    }
    Problem { kind, message: format!("the component does not compile: {message}") }
}

/// The place that a message of the validator names: in hexadecimal digits, or in others where a function's body is at fault.
fn offset(message: &str) -> Option<usize> {
    let (_, rest) = message.rsplit_once("at offset ")?;
    let digits =
        |text: &str, radix: u32| text.chars().take_while(|digit| digit.is_digit(radix)).collect::<String>();
    match rest.strip_prefix("0x") {
        Some(rest) => usize::from_str_radix(&digits(rest, 16), 16).ok(),
        None => digits(rest, 10).parse().ok(),
    }
}

fn internal(message: String) -> Problem {
    Problem { kind: ProblemKind::Internal, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_that_the_validator_names_is_told_with_its_section() {
        let check = |body: &str, section: &str| {
            let component = wat::parse_str(format!("(component {body})")).unwrap();
            let engine = config::engine(Purpose::Compile, need::profile(&component)).unwrap();
            let error = engine.precompile_component(&component).expect_err("it is not valid");
            let Problem { kind, message } = problem(&error, &component);
            assert_eq!(kind, ProblemKind::Invalid);
            assert!(message.ends_with(&format!(", in the {section}")), "{message}");
        };
        let module = "section of the core module at byte 10";
        check("(core module (func (result i32) nop))", &format!("code {module}"));
        check(r#"(core module (export "f" (func 7)))"#, &format!("export {module}"));
        check("(core instance (instantiate 7))", "core instance section");
    }

    #[test]
    fn what_the_compiler_gives_up_is_refused_with_its_reason() {
        let says = |panic: Box<dyn Any + Send>| {
            let Problem { kind, message } = given_up(&*panic);
            assert_eq!(kind, ProblemKind::Invalid);
            message.strip_prefix("the component does not compile: the compiler gave up: ").unwrap().to_owned()
        };
        assert_eq!(says(Box::new("not yet implemented: values")), "not yet implemented: values");
        assert_eq!(says(Box::new("of two lines,\nthe first".to_owned())), "of two lines,");
        assert_eq!(says(Box::new(7)), "it does not say why");
    }
}
