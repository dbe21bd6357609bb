//! What the README says is what happens: its commands and its Python are run as they stand.

use std::{path::Path, process::Command};

use crate::common::{Server, python, tritonclient};

const README: &str = include_str!("../../README.md");

/// The fenced blocks of one language.
fn blocks(language: &str) -> Vec<&'static str> {
    let parts: Vec<&str> = README.split("```").collect();
    let fenced = parts.iter().skip(1).step_by(2);
    fenced
        .filter_map(|block| block.strip_prefix(language)?.strip_prefix('\n'))
        .collect()
}

/// Runs a line in the project's folder against `server`, with the program and the test's Python in
/// the path.
fn run(server: &Server, line: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = Path::new(env!("CARGO_BIN_EXE_resnet18")).parent().unwrap();
    let path = std::env::join_paths(
        [program.to_owned(), root.join(".venv/bin")]
            .into_iter()
            .chain(std::env::split_paths(&std::env::var("PATH").unwrap())),
    );
    let output = Command::new("sh")
        .args([
            "-c",
            &line
                .replace("127.0.0.1:8001", &server.grpc)
                .replace("127.0.0.1:8002", &server.http.to_string()),
        ])
        .current_dir(root)
        .env("PATH", path.unwrap())
        .env("RESNET18_SERVER", server.url())
        .output()
        .unwrap();
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{line}\n{stdout}{stderr}");
    stdout.into_owned()
}

#[test]
fn its_commands_do_what_it_says() {
    let server = Server::start(&[]);
    let mut ran = 0;
    for line in blocks("sh").iter().flat_map(|block| block.lines()) {
        match line.split(' ').next().unwrap() {
            "make" => {
                let target = line.split(' ').nth(1).unwrap();
                assert!(
                    include_str!("../../Makefile").contains(&format!("\n{target}:")),
                    "there is no `{line}`"
                );
            }
            "cargo" => assert_eq!(line, "cargo install --path . --locked"),
            "python" if python().is_none() => {}
            "python" => {
                let folder = tempfile::tempdir().unwrap();
                let out = folder.path().display().to_string();
                run(
                    &server,
                    &line.replace("python_out=.", &format!("python_out={out}")),
                );
                assert!(
                    folder
                        .path()
                        .join("resnet18/v1/classifier_pb2_grpc.py")
                        .exists()
                );
                ran += 1;
            }
            "resnet18" | "curl" => {
                let output = run(&server, line);
                if line.contains("classify") {
                    assert!(
                        output.contains("cat ") && output.contains("grand piano "),
                        "{output}"
                    );
                }
                ran += 1;
            }
            other => panic!("nothing here can test `{other}`"),
        }
    }
    assert!(ran >= 4, "{ran}");
}

#[test]
fn its_python_runs() {
    if python().is_none() {
        return;
    }
    let server = Server::start(&[]);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().display().to_string();
    run(
        &server,
        &format!(
            "python -m grpc_tools.protoc -Iproto --python_out={out} --grpc_python_out={out} resnet18/v1/classifier.proto"
        ),
    );
    let script = folder.path().join("example.py");
    let [code, triton] = blocks("python")[..] else {
        panic!("two Python examples")
    };
    let run_code = |code: &str| {
        std::fs::write(&script, code.replace("127.0.0.1:8001", &server.grpc)).unwrap();
        run(&server, &format!("python {}", script.display()))
    };
    let output = run_code(code);
    assert!(output.lines().next().unwrap().contains("cat"), "{output}");
    assert!(
        output.lines().last().unwrap().starts_with("9 cat"),
        "{output}"
    );
    if tritonclient().is_some() {
        let output = run_code(triton);
        assert!(
            output.lines().count() == 3 && output.lines().next().unwrap().ends_with(":cat"),
            "{output}"
        );
    }
}

#[test]
fn its_flags_exist() {
    let output = crate::common::resnet18()
        .args(["serve", "--help"])
        .output()
        .unwrap();
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    let table = README
        .split("## Flags")
        .nth(1)
        .unwrap()
        .split("\n## ")
        .next()
        .unwrap();
    let flags: Vec<&str> = table
        .split('`')
        .filter(|word| word.starts_with("--"))
        .collect();
    assert!(flags.len() >= 10);
    for flag in flags {
        assert!(
            help.contains(&format!("{flag} ")),
            "{flag} is not in --help"
        );
    }
}
