//! Integration tests: a real server process, real clients and real files.
//!
//! They form one binary with a module for each subject, because linking many small binaries takes
//! longer than running them. Tests of all modules run beside each other; see `common::exclusive`.

#[path = "../common/mod.rs"]
mod common;

mod architecture;
mod binary;
mod cli;
mod client;
mod deploy;
mod files;
mod formats;
mod golden;
#[cfg(unix)]
mod gpu_choice;
mod grpc;
mod heads;
mod hub;
mod import;
mod metrics;
mod models;
mod node;
mod observability;
mod oip;
mod outputs;
mod preprocessing;
mod python;
mod quantization;
mod readme;
mod replicas;
mod rest;
mod security;
mod teach_page;
mod teaching;
mod teaching_unknown;
mod teaching_video;
mod telemetry;
#[cfg(all(feature = "tensorrt", not(feature = "tensorrt-enterprise")))]
mod tensorrt;
mod top;
mod training;
mod web;
