//! The client subcommands against a scripted server on the loopback interface.

mod classify;
mod fake_server;
mod load;
mod stream;
