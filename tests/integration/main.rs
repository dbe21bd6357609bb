//! The program and the library from outside: a real server process, real clients, real files.
//!
//! One binary, with a module for each subject, since linking dominates the time of small ones.

#[path = "../common/mod.rs"]
mod common;

mod cli;
mod client;
mod deploy;
mod golden;
mod grpc;
mod import;
mod licences;
mod metrics;
mod models;
mod observability;
mod oip;
mod python;
mod quantization;
mod readme;
mod replicas;
mod security;
mod telemetry;
#[cfg(all(feature = "tensorrt", not(feature = "tensorrt-enterprise")))]
mod tensorrt;
mod top;
mod training;
mod web;
