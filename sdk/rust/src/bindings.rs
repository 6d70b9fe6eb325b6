//! The generated bindings of the world `task-plugin-full`, for components only.
//!
//! They are the one place where bindings are made: plugins reach them through the SDK's modules and through the
//! `export!` macro that `plugin!` calls. `wit-component` leaves out of a component every import its code never calls.

#![allow(clippy::all, missing_docs, unsafe_code, reason = "generated code")]

wit_bindgen::generate!({
    path: "../../wit",
    world: "keiko:plugin/task-plugin-full",
    generate_all,
    pub_export_macro: true,
    default_bindings_module: "keiko_sdk::bindings",
});
