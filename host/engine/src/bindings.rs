//! The one generated module: every interface of this host's world, with the types that imports and exports share.

#![allow(missing_docs, reason = "generated from wit/, where every item is documented")]

wasmtime::component::bindgen!({
    path: "../../wit",
    inline: "
        package keiko:host;

        world task-host {
            include keiko:plugin/task-plugin-full@0.1.0;
        }
    ",
    world: "keiko:host/task-host",
    imports: {
        // Only what waits is async: a host call that does not is cheaper without a future.
        "keiko:agents/agents.load": async | trappable,
        "keiko:agents/agents.list-agents": async | trappable,
        "keiko:agents/agents.set-statuses": async | trappable,
        "keiko:cache/cache.[method]fill.complete": async | trappable,
        "keiko:cache/cache.get": async | trappable,
        "keiko:cache/cache.get-many": async | trappable,
        "keiko:cache/cache.get-or-fill": async | trappable,
        "keiko:cache/cache.remove": async | trappable,
        "keiko:cache/cache.remove-tag": async | trappable,
        "keiko:cache/cache.set": async | trappable,
        "keiko:history/history.user-tasks": async | trappable,
        "keiko:history/history.summarize": async | trappable,
        "keiko:tasks/tasks.submit": async | trappable,
        "keiko:tasks/tasks.submit-many": async | trappable,
        "keiko:tasks/tasks.submit-joined": async | trappable,
        "keiko:tasks/tasks.submit-with": async | trappable,
        "keiko:tasks/tasks.submit-joined-with": async | trappable,
        "keiko:batch/batch.add": async | trappable,
        default: trappable,
    },
    exports: { default: async },
    with: { "keiko:cache/cache.fill": crate::import::cache::Fill },
});

/// What a batch plugin exports. It imports what a task plugin does, by the same linker.
pub(crate) mod batch {
    wasmtime::component::bindgen!({
        path: "../../wit",
        inline: "
            package keiko:host;

            world batch-host {
                export keiko:plugin/batch@0.1.0;
            }
        ",
        world: "keiko:host/batch-host",
        exports: { default: async },
    });
}
