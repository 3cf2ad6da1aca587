//! What all policies have in common.

/// Whether a policy refuses, or says only what it would have refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// It refuses.
    #[default]
    Enforce,
    /// It counts and marks what it would have refused, and lets it pass.
    Shadow,
}

impl Mode {
    /// The word in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Mode::Enforce => "enforce",
            Mode::Shadow => "shadow",
        }
    }
}
