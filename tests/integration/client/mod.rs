//! The client subcommands against a scripted server on the loopback interface.

#[cfg(target_os = "linux")]
mod camera;
mod classify;
mod fake_server;
mod load;
mod stream;
