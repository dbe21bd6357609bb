//! The `resnet18` program; everything it does is in [`resnet18_server::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    resnet18_server::cli::main()
}
