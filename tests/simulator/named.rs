//! Enums whose values have names.

/// Declares an enum with a name for each value.
macro_rules! named {
    ($(#[$about:meta])* $type:ident { $($(#[$doc:meta])* $value:ident = $name:literal,)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $type { $($(#[$doc])* $value),* }

        impl $type {
            pub const ALL: &[Self] = &[$(Self::$value),*];

            pub fn name(self) -> &'static str {
                match self { $(Self::$value => $name),* }
            }
        }
    };
}
