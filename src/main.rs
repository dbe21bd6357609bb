//! The `resnet18` program.

fn main() {}
