//! Makes an enum of a list of broken promises, with all of them by name.

macro_rules! mutations {
    ($($name:ident: $doc:literal;)+) => {
        /// One broken promise.
        #[doc(hidden)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Mutation { $(#[doc = $doc] $name,)+ }

        impl Mutation {
            /// Every one.
            pub const ALL: &'static [Mutation] = &[$(Mutation::$name,)+];
        }
    };
}

pub(super) use mutations;
