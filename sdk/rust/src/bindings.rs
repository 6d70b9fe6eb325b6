//! The generated bindings of the worlds `task-plugin-full` and `batch-plugin-full` in one, for components only.
//!
//! They are the one place where bindings are made: plugins reach them through the SDK's modules and through the
//! `export!` macro that `plugin!` calls. `wit-component` leaves out of a component every import its code never calls.

#![allow(clippy::all, missing_docs, unsafe_code, reason = "generated code")]

wit_bindgen::generate!({
    path: "../../wit",
    inline: "
        package keiko:sdk;

        world sdk-plugin {
            include keiko:plugin/task-plugin-full@0.1.0;
            include keiko:plugin/batch-plugin-full@0.1.0;
        }
    ",
    world: "keiko:sdk/sdk-plugin",
    generate_all,
    pub_export_macro: true,
    default_bindings_module: "keiko_sdk::bindings",
});
