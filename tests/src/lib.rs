//! What tests and benchmarks share: a world outside of sandboxes.

pub mod outside;
