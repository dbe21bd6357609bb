//! The README and the pages in `docs/`: their commands and Python examples are run as they are
//! written, their flags exist, and the targets of their links do.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::common::{Server, python, resnet18, tritonclient};

/// The most lines of the README: it is read in five minutes.
const MAX_README_LINES: usize = 200;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A Markdown file of the project.
struct Page {
    path: PathBuf,
    text: String,
}

impl Page {
    fn read(path: impl AsRef<Path>) -> Self {
        let path = root().join(path);
        let text =
            fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { path, text }
    }

    fn readme() -> Self {
        Self::read("README.md")
    }

    /// The README, then the pages in `docs/` by name.
    fn guide() -> Vec<Self> {
        let mut docs: Vec<PathBuf> = fs::read_dir(root().join("docs"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
            .collect();
        docs.sort();

        let mut pages = vec![Self::readme()];
        pages.extend(docs.into_iter().map(Self::read));
        pages
    }

    /// Every page whose links are checked.
    fn all() -> Vec<Self> {
        let mut pages = Self::guide();
        pages.extend(
            [
                "CHANGELOG.md",
                "CONTRIBUTING.md",
                "deploy/README.md",
                "models/README.md",
                "clients/python/README.md",
                "tests/data/README.md",
            ]
            .map(Self::read),
        );
        pages
    }

    /// The fenced blocks of one language.
    fn blocks(&self, language: &str) -> Vec<&str> {
        self.text
            .split("```")
            .skip(1)
            .step_by(2)
            .filter_map(|block| block.strip_prefix(language)?.strip_prefix('\n'))
            .collect()
    }

    /// The text outside fenced blocks.
    fn prose(&self) -> String {
        self.text.split("```").step_by(2).collect()
    }

    /// The targets of `[text](target)` and `![text](target)`.
    fn links(&self) -> Vec<String> {
        self.prose()
            .split("](")
            .skip(1)
            .map(|rest| rest.split(')').next().unwrap().to_owned())
            .collect()
    }

    /// The anchors that GitHub gives the headings.
    fn anchors(&self) -> BTreeSet<String> {
        self.prose()
            .lines()
            .filter(|line| line.starts_with('#'))
            .map(|line| {
                line.trim_start_matches('#')
                    .trim()
                    .to_lowercase()
                    .chars()
                    .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
                    .map(|c| if c == ' ' { '-' } else { c })
                    .collect()
            })
            .collect()
    }
}

/// Runs a line in the project's folder against `server`, with the program and the test's Python in
/// the path.
fn run(server: &Server, line: &str) -> String {
    let program = Path::new(env!("CARGO_BIN_EXE_resnet18")).parent().unwrap();
    let path = std::env::join_paths(
        [program.to_owned(), root().join(".venv/bin")]
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
        .current_dir(root())
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
fn commands_do_what_the_pages_say() {
    let server = Server::start(&[]);
    let pages = Page::guide();
    let mut ran = 0;
    for line in pages
        .iter()
        .flat_map(|page| page.blocks("sh"))
        .flat_map(str::lines)
    {
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
                if line.contains("/v1/") || line.contains("/v2/") {
                    let names = ["\"cat\"", ":cat\""];
                    assert!(names.iter().any(|name| output.contains(name)), "{output}");
                } else if line.contains("classify") {
                    assert!(
                        output.contains("cat ") && output.contains("grand piano "),
                        "{output}"
                    );
                }
                ran += 1;
            }
            other => panic!("this test does not know how to run `{other}`"),
        }
    }
    assert!(ran >= 4, "only {ran} commands were run");
}

/// The file and the most probable class of each photo that `resnet18 classify` printed.
fn top_classes(output: &str) -> Vec<(&str, &str, f64)> {
    let lines: Vec<&str> = output.lines().collect();
    lines
        .windows(2)
        .filter(|pair| !pair[0].starts_with(' ') && pair[1].starts_with("  "))
        .map(|pair| {
            let (class, _) = pair[1].split_once('%').expect("a class has a probability");
            let (label, probability) = class.trim().rsplit_once(' ').unwrap();
            (pair[0], label.trim(), probability.parse().unwrap())
        })
        .collect()
}

#[test]
fn the_sample_is_what_classify_prints() {
    let readme = Page::readme();
    let samples = readme.blocks("text");
    let expected = top_classes(samples.first().expect("the README shows a sample"));
    assert_eq!(expected.len(), 2, "{samples:?}");

    let server = Server::start(&[]);
    let files: Vec<&str> = expected.iter().map(|(file, ..)| *file).collect();
    let output = run(&server, &format!("resnet18 classify {}", files.join(" ")));
    let printed = top_classes(&output);
    for (expected, printed) in expected.iter().zip(&printed) {
        assert_eq!((expected.0, expected.1), (printed.0, printed.1), "{output}");
        // Engines and precisions differ a little.
        assert!((expected.2 - printed.2).abs() < 2.0, "{output}");
    }
    assert_eq!(expected.len(), printed.len(), "{output}");
}

#[test]
fn the_python_examples_run() {
    if python().is_none() {
        return;
    }
    let server = Server::start(&[]);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().display().to_string();
    run(
        &server,
        &format!(
            "python -m grpc_tools.protoc -Iproto --python_out={out} --grpc_python_out={out} \
             resnet18/v1/classifier.proto && cp clients/python/resnet18/*.py {out}/resnet18"
        ),
    );
    let mut pages = Page::guide();
    pages.push(Page::read("clients/python/README.md"));
    let examples: Vec<&str> = pages
        .iter()
        .flat_map(|page| page.blocks("python"))
        .collect();
    let [in_readme, code, triton, in_client] = examples[..] else {
        panic!("four Python examples")
    };
    // Python finds what lies beside the script.
    let script = folder.path().join("example.py");
    let run_code = |code: &str| {
        let code = code.replace("127.0.0.1:8001", &server.grpc);
        std::fs::write(
            &script,
            code.replace("\"cat.jpg\"", "\"tests/data/cat.jpg\""),
        )
        .unwrap();
        run(&server, &format!("python {}", script.display()))
    };

    for code in [in_readme, in_client] {
        let output = run_code(code);
        assert!(output.lines().next().unwrap().contains("cat"), "{output}");
    }
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
fn the_flags_in_the_table_exist() {
    let output = resnet18().args(["serve", "--help"]).output().unwrap();
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    let page = Page::read("docs/operations.md");
    let table = page
        .text
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
        let is_there = [' ', '\n']
            .iter()
            .any(|end| help.contains(&format!("{flag}{end}")));
        assert!(is_there, "{flag} is not in --help");
    }
}

#[test]
fn the_flags_in_the_text_exist() {
    let mut help = String::new();
    for subcommand in [
        "serve", "classify", "stream", "load", "top", "import", "train", "evaluate", "quantize",
        "teach",
    ] {
        let output = resnet18().args([subcommand, "--help"]).output().unwrap();
        help.push_str(&String::from_utf8_lossy(&output.stdout));
    }
    for page in Page::all() {
        let prose = page.prose();
        let code = prose.split('`').skip(1).step_by(2);
        let flags = code
            .filter(|code| code.starts_with("--"))
            .map(|code| code.split(['=', ' ']).next().unwrap());
        for flag in flags {
            assert!(
                help.contains(&format!("{flag} ")) || help.contains(&format!("{flag}\n")),
                "{}: there is no {flag}",
                page.path.display()
            );
        }
    }
}

#[test]
fn links_lead_somewhere() {
    let mut followed = 0;
    for page in Page::all() {
        for link in page.links() {
            if link.starts_with("http://") || link.starts_with("https://") {
                continue;
            }
            let (file, anchor) = match link.split_once('#') {
                Some((file, anchor)) => (file, Some(anchor)),
                None => (link.as_str(), None),
            };
            let target = if file.is_empty() {
                page.path.clone()
            } else {
                page.path.with_file_name(file)
            };
            assert!(target.exists(), "{}: {link}", page.path.display());
            if let Some(anchor) = anchor {
                assert!(
                    Page::read(&target).anchors().contains(anchor),
                    "{}: there is no such heading: {link}",
                    page.path.display()
                );
            }
            followed += 1;
        }
    }
    assert!(followed >= 40, "{followed}");
}

/// Paths in the code's description, such as `grpc/transport/accept.rs` or `tests/`.
#[test]
fn the_files_that_the_architecture_names_exist() {
    let mut found = 0;
    for page in ["docs/architecture.md", "CONTRIBUTING.md"].map(Page::read) {
        let prose = page.prose();
        let is_path = |code: &&str| {
            (code.contains('/') || code.ends_with(".rs"))
                && code
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || matches!(c, '/' | '.' | '_' | '-'))
        };
        for path in prose.split('`').skip(1).step_by(2).filter(is_path) {
            let exists = [root().join("src").join(path), root().join(path)]
                .iter()
                .any(|path| path.exists());
            assert!(exists, "{}: {path}", page.path.display());
            found += 1;
        }
    }
    assert!(found >= 30, "{found}");
}

#[test]
fn the_readme_is_short_and_leads_to_every_page() {
    let readme = Page::readme();
    let lines = readme.text.lines().count();
    assert!(lines <= MAX_README_LINES, "{lines} lines");

    let linked: BTreeSet<PathBuf> = readme
        .links()
        .iter()
        .map(|link| root().join(link))
        .collect();
    for page in Page::all().iter().skip(1) {
        assert!(linked.contains(&page.path), "{}", page.path.display());
    }
}
