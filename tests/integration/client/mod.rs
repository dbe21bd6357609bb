//! The client subcommands against a server on the loopback whose answers are known.

mod classify;
mod fake_server;
mod load;
mod stream;
