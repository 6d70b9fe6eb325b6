//! What of a component needs the concurrent profile, found in its sections without compiling or validating them.
//!
//! It is looked for among the canonical functions: whoever has a task, a waitable, a stream or a future has it through
//! one of them, and every toolchain that supports them declares some. Types are not read: they may be nested in each other as
//! deep as an upload is long, and reading one takes stack for each level. A component that does nothing with concurrency but
//! name it in a type is refused by the compiler, which says so.

use wasmparser::{CanonicalFunction, CanonicalOption, Parser, Payload};

use keiko_core::profile::Profile;

/// What in this part of a component needs the concurrent profile, for people.
pub(crate) fn concurrency(payload: &Payload<'_>) -> Option<&'static str> {
    let Payload::ComponentCanonicalSection(functions) = payload else { return None };
    functions.clone().into_iter().map_while(Result::ok).find_map(|function| of_function(&function))
}

/// The profile that a whole component needs.
pub(crate) fn profile(component: &[u8]) -> Profile {
    let payloads = Parser::new(0).parse_all(component).map_while(Result::ok);
    profile_for(payloads.into_iter().find_map(|payload| concurrency(&payload)))
}

/// The profile of a component that has this, or nothing, to do with concurrency.
pub(crate) fn profile_for(concurrency: Option<&'static str>) -> Profile {
    if concurrency.is_some() { Profile::Concurrent } else { Profile::Strict }
}

fn of_function(function: &CanonicalFunction) -> Option<&'static str> {
    use CanonicalFunction as F;
    Some(match function {
        F::Lift { options, .. } | F::Lower { options, .. } => {
            let is_async = |option: &CanonicalOption| {
                matches!(option, CanonicalOption::Async | CanonicalOption::Callback(_))
            };
            return options
                .iter()
                .any(is_async)
                .then_some("it has functions that are lifted or lowered async");
        }
        // Shared memory and its threads, which neither profile has.
        F::ThreadSpawnRef { .. } | F::ThreadSpawnIndirect { .. } | F::ThreadAvailableParallelism => {
            return None;
        }
        F::ResourceNew { .. } | F::ResourceDrop { .. } | F::ResourceRep { .. } => return None,
        F::StreamNew { .. }
        | F::StreamRead { .. }
        | F::StreamWrite { .. }
        | F::StreamCancelRead { .. }
        | F::StreamCancelWrite { .. }
        | F::StreamDropReadable { .. }
        | F::StreamDropWritable { .. } => "it has streams",
        F::FutureNew { .. }
        | F::FutureRead { .. }
        | F::FutureWrite { .. }
        | F::FutureCancelRead { .. }
        | F::FutureCancelWrite { .. }
        | F::FutureDropReadable { .. }
        | F::FutureDropWritable { .. } => "it has futures",
        F::ErrorContextNew { .. } | F::ErrorContextDebugMessage { .. } | F::ErrorContextDrop => {
            "it has error contexts"
        }
        F::WaitableSetNew
        | F::WaitableSetWait { .. }
        | F::WaitableSetPoll { .. }
        | F::WaitableSetDrop
        | F::WaitableJoin => "it has sets of waitables",
        // Tasks with what belongs to them: contexts, subtasks, threads, backpressure.
        _ => "it has tasks of its own",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: &str, expected: Option<&str>) {
        let bytes = wat::parse_str(format!("(component {body})")).unwrap();
        let payloads = Parser::new(0).parse_all(&bytes).map(Result::unwrap);
        let found = payloads.into_iter().find_map(|payload| concurrency(&payload));
        assert_eq!(found, expected, "{body}");
        let needs = if expected.is_some() { Profile::Concurrent } else { Profile::Strict };
        assert_eq!(profile(&bytes), needs, "{body}");
    }

    #[test]
    fn what_needs_concurrency_is_found_at_every_depth() {
        let module = "(core module $m (func (export \"f\")) (func (export \"a\") (result i32) (i32.const 0))
            (func (export \"c\") (param i32 i32 i32) (result i32) (i32.const 0))) (core instance $i (instantiate $m))";
        check("", None);
        check(&format!("{module} (func (canon lift (core func $i \"f\")))"), None);
        check("(type $r (resource (rep i32))) (core func (canon resource.drop $r))", None);
        let lifted = "(func async (canon lift (core func $i \"a\") async (callback (core func $i \"c\"))))";
        check(&format!("{module} {lifted}"), Some("it has functions that are lifted or lowered async"));
        let lowered = "(import \"f\" (func $f)) (core func (canon lower (func $f) async))";
        check(lowered, Some("it has functions that are lifted or lowered async"));
        for (body, expected) in [
            ("(core func (canon waitable-set.new))", "it has sets of waitables"),
            ("(type $s (stream u8)) (core func (canon stream.new $s))", "it has streams"),
            ("(type $s (future u8)) (core func (canon future.new $s))", "it has futures"),
            ("(core func (canon context.get i32 0))", "it has tasks of its own"),
            ("(core func (canon task.cancel))", "it has tasks of its own"),
            ("(core func (canon subtask.drop))", "it has tasks of its own"),
        ] {
            check(body, Some(expected));
            check(&format!("(component (component {body}))"), Some(expected));
        }
    }

    #[test]
    fn types_nested_without_end_take_no_stack() {
        // One type section, in which each type is a component type that declares the next.
        let mut section = vec![1];
        section.extend([0x41, 0x01, 0x01].repeat(500_000));
        section.extend([0x41, 0x00]);
        let mut bytes = b"\0asm\x0d\0\x01\0".to_vec();
        bytes.push(7);
        let mut length = section.len();
        while length >= 0x80 {
            bytes.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        bytes.push(length as u8);
        bytes.extend(section);
        assert_eq!(profile(&bytes), Profile::Strict);
    }
}
