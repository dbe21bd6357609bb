//! The live dashboard in a terminal.

pub mod app;
mod history;
pub mod view;
