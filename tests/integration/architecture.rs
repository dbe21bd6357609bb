//! The layering of `src/`: which top-level modules use which, and that no ring comes of it.
//!
//! A module's imports are read from its source text: every path that begins with `crate::`, whether
//! in a `use` (single, or in nested groups) or in the code, and every chain of `super::` that
//! reaches the crate's root. Test code is left out, because tests may use any module.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs,
    path::{Path, PathBuf},
};

/// Files that hold only test code, by name.
const TEST_FILES: [&str; 4] = [
    "tests.rs",
    "testing.rs",
    "properties.rs",
    "interleavings.rs",
];

/// Modules that know nothing of gRPC: they could serve another protocol unchanged.
const WITHOUT_GRPC: [&str; 11] = [
    "answer",
    "cache",
    "engine",
    "image",
    "model",
    "offline",
    "quantization",
    "registry",
    "scheduler",
    "state",
    "teaching",
];

#[test]
fn no_top_level_module_uses_itself_through_others() {
    let sources = sources();
    let graph = ModuleGraph::new(&sources);
    assert!(graph.edges() > 20, "the imports of src/ were not found");

    if let Some(ring) = graph.shortest_ring() {
        panic!(
            "modules use each other in a ring:\n{}",
            graph.describe(&ring)
        );
    }
}

#[test]
fn the_core_of_the_server_does_not_use_grpc_types() {
    let sources = sources();
    let uses_tonic = |source: &&SourceFile| {
        let mut pairs = source.tokens.windows(2);
        pairs.any(|pair| pair[0].starts_with("tonic") && pair[1] == "::")
    };

    for module in WITHOUT_GRPC {
        let exists = sources.iter().any(|source| source.module == module);
        assert!(exists, "there is no module {module} any more");
    }
    let found: Vec<String> = sources
        .iter()
        .filter(|source| WITHOUT_GRPC.contains(&source.module.as_str()))
        .filter(uses_tonic)
        .map(|source| source.path.display().to_string())
        .collect();
    assert!(found.is_empty(), "these files use tonic: {found:?}");

    let elsewhere = sources.iter().filter(uses_tonic).count();
    assert!(elsewhere > 5, "the uses of tonic in src/ were not found");
}

/// The binding of TensorRT is experimental: what would have to be replaced is in one place.
#[test]
fn only_one_folder_calls_the_binding_of_tensorrt() {
    let callers: BTreeSet<PathBuf> = sources()
        .iter()
        .filter(|source| {
            let mut tokens = source.tokens.iter();
            tokens.any(|token| token == "trtx" || token == "trtx_sys" || token == "cxx")
        })
        .map(|source| source.path.parent().unwrap().to_owned())
        .collect();
    let expected = PathBuf::from("engine/tensorrt/enabled/binding");
    assert_eq!(callers, BTreeSet::from([expected]));
}

/// One Rust file below `src/`.
struct SourceFile {
    /// The top-level module that it belongs to.
    module: String,
    /// How many modules deep it lies: 1 for the root file of a top-level module.
    depth: usize,
    path: PathBuf,
    /// Its code without comments, literals and test items.
    tokens: Vec<String>,
}

impl SourceFile {
    /// Reads `text` as the file at `path`, relative to `src/`; `None` for test files and for the
    /// crate's root files.
    fn new(path: &Path, text: &str) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let parts: Vec<&str> = path.iter().filter_map(|part| part.to_str()).collect();
        let is_root = parts == ["lib.rs"] || parts == ["main.rs"];
        if is_root || TEST_FILES.contains(&name) {
            return None;
        }

        let depth = if name == "mod.rs" {
            parts.len() - 1
        } else {
            parts.len()
        };
        Some(Self {
            module: parts[0].trim_end_matches(".rs").to_owned(),
            depth,
            path: path.to_owned(),
            tokens: without_test_items(&tokens(text)),
        })
    }

    /// The first names after the crate's root, of all paths in this file that begin there.
    fn names_in_crate(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        let mut index = 0;
        while index < self.tokens.len() {
            match path_to_root(&self.tokens[index..], self.depth) {
                Some(length) => {
                    index += length;
                    add_first_names(&self.tokens[index..], &mut names);
                }
                None => index += 1,
            }
        }
        names
    }
}

/// The number of tokens of `crate::`, or of as many `super::` as lead from a module of this depth
/// to the crate's root, at the start of `tokens`.
fn path_to_root(tokens: &[String], depth: usize) -> Option<usize> {
    let starts_with = |prefix: &[&str]| {
        tokens.len() >= prefix.len() && tokens.iter().zip(prefix).all(|(a, b)| a == b)
    };
    if starts_with(&["crate", "::"]) {
        return Some(2);
    }

    let supers = ["super", "::"].repeat(depth);
    starts_with(&supers).then_some(supers.len())
}

/// Adds the name at the start of `tokens`, or the first name of each path of a group in braces.
fn add_first_names(tokens: &[String], names: &mut BTreeSet<String>) {
    if tokens.first().is_none_or(|token| token != "{") {
        names.extend(tokens.first().cloned());
        return;
    }

    let mut nesting = 0;
    for pair in tokens.windows(2) {
        match pair[0].as_str() {
            "{" => nesting += 1,
            "}" => nesting -= 1,
            _ => {}
        }
        if nesting == 0 {
            return;
        }
        let begins_path = nesting == 1 && (pair[0] == "{" || pair[0] == ",");
        if begins_path {
            names.insert(pair[1].clone());
        }
    }
}

/// Splits Rust source into identifiers, `::`, and single characters; comments, strings, character
/// literals and white space are dropped.
fn tokens(text: &str) -> Vec<String> {
    let text: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let mut index = 0;

    while index < text.len() {
        let rest = &text[index..];
        let length = match rest {
            ['/', '/', ..] => length_until(rest, 2, "\n"),
            ['/', '*', ..] => block_comment_length(rest),
            ['"', ..] => string_length(rest),
            ['r', '"' | '#', ..] if raw_string_length(rest).is_some() => {
                raw_string_length(rest).unwrap_or(1)
            }
            ['b', 'r', '"' | '#', ..] if raw_string_length(&rest[1..]).is_some() => {
                1 + raw_string_length(&rest[1..]).unwrap_or(1)
            }
            ['\'', '\\', _, ..] => length_until(rest, 3, "'"),
            ['\'', _, '\'', ..] => 3,
            [':', ':', ..] => {
                tokens.push("::".to_owned());
                2
            }
            [first, ..] if first.is_alphanumeric() || *first == '_' => {
                let is_part = |c: &&char| c.is_alphanumeric() || **c == '_';
                let word: String = rest.iter().take_while(is_part).collect();
                tokens.push(word.clone());
                word.chars().count()
            }
            [first, ..] => {
                if !first.is_whitespace() {
                    tokens.push(first.to_string());
                }
                1
            }
            [] => 1,
        };
        index += length;
    }
    tokens
}

/// The length up to and including the first `end` at or after `from`.
fn length_until(text: &[char], from: usize, end: &str) -> usize {
    let end: Vec<char> = end.chars().collect();
    (from..text.len())
        .find(|&index| text[index..].starts_with(&end))
        .map_or(text.len(), |index| index + end.len())
}

/// The length of a block comment, which may contain others.
fn block_comment_length(text: &[char]) -> usize {
    let mut nesting = 0;
    let mut index = 0;
    while index < text.len() {
        match &text[index..] {
            ['/', '*', ..] => {
                nesting += 1;
                index += 2;
            }
            ['*', '/', ..] => {
                nesting -= 1;
                index += 2;
                if nesting == 0 {
                    return index;
                }
            }
            _ => index += 1,
        }
    }
    index
}

/// The length of a string literal with escapes, quotes included.
fn string_length(text: &[char]) -> usize {
    let mut index = 1;
    while index < text.len() {
        match text[index] {
            '\\' => index += 2,
            '"' => return index + 1,
            _ => index += 1,
        }
    }
    index
}

/// The length of a raw string literal such as `r#"..."#`; `None` for a raw identifier.
fn raw_string_length(text: &[char]) -> Option<usize> {
    let hashes = text[1..].iter().take_while(|&&c| c == '#').count();
    if text.get(1 + hashes) != Some(&'"') {
        return None;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    Some(length_until(text, 2 + hashes, &end))
}

/// Drops every item with the attribute `#[cfg(test)]` or `#[cfg(all(test, ..))]`.
fn without_test_items(tokens: &[String]) -> Vec<String> {
    let mut kept = Vec::new();
    let mut index = 0;
    while index < tokens.len() {
        if is_test_attribute(&tokens[index..]) {
            index += item_length(&tokens[index..]);
        } else {
            kept.push(tokens[index].clone());
            index += 1;
        }
    }
    kept
}

fn is_test_attribute(tokens: &[String]) -> bool {
    [
        &["#", "[", "cfg", "(", "test", ")", "]"][..],
        &["#", "[", "cfg", "(", "all", "(", "test", ","],
    ]
    .iter()
    .any(|start| tokens.len() >= start.len() && tokens.iter().zip(*start).all(|(a, b)| a == b))
}

/// The number of tokens of an item with its attributes: up to its `;`, or to the end of its block.
fn item_length(tokens: &[String]) -> usize {
    let is_use = tokens
        .iter()
        .find(|token| ["use", "mod", "fn", "impl", "struct"].contains(&token.as_str()))
        .is_some_and(|token| token == "use");

    let mut nesting = 0;
    for (index, token) in tokens.iter().enumerate() {
        match token.as_str() {
            "{" | "(" | "[" => nesting += 1,
            "}" | ")" | "]" => nesting -= 1,
            _ => {}
        }
        let ends = token == ";" || (token == "}" && !is_use);
        if nesting == 0 && ends {
            return index + 1;
        }
    }
    tokens.len()
}

/// Every Rust file of `src/` that is not test code.
fn sources() -> Vec<SourceFile> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    rust_files(&root)
        .iter()
        .filter_map(|path| {
            let text = fs::read_to_string(path).unwrap();
            SourceFile::new(path.strip_prefix(&root).unwrap(), &text)
        })
        .collect()
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// For each top-level module, those that it uses, and the files in which it does.
struct ModuleGraph(BTreeMap<String, BTreeMap<String, BTreeSet<PathBuf>>>);

impl ModuleGraph {
    fn new(sources: &[SourceFile]) -> Self {
        let modules: BTreeSet<&str> = sources.iter().map(|file| file.module.as_str()).collect();

        let mut graph: BTreeMap<String, BTreeMap<String, BTreeSet<PathBuf>>> = BTreeMap::new();
        for source in sources {
            let used = graph.entry(source.module.clone()).or_default();
            for name in source.names_in_crate() {
                if name != source.module && modules.contains(name.as_str()) {
                    used.entry(name).or_default().insert(source.path.clone());
                }
            }
        }
        Self(graph)
    }

    fn edges(&self) -> usize {
        self.0.values().map(BTreeMap::len).sum()
    }

    /// The shortest ring of modules, such as `[a, b]` where `a` uses `b` and `b` uses `a`.
    fn shortest_ring(&self) -> Option<Vec<String>> {
        self.0
            .keys()
            .filter_map(|start| self.ring_from(start))
            .min_by_key(Vec::len)
    }

    /// The shortest way from a module back to itself, by a breadth-first search.
    fn ring_from(&self, start: &str) -> Option<Vec<String>> {
        let mut seen = BTreeSet::new();
        let mut ways = VecDeque::from([vec![start.to_owned()]]);
        while let Some(way) = ways.pop_front() {
            let used = &self.0[way.last()?];
            if used.contains_key(start) {
                return Some(way);
            }
            for next in used.keys() {
                if seen.insert(next) {
                    let mut longer = way.clone();
                    longer.push(next.clone());
                    ways.push_back(longer);
                }
            }
        }
        None
    }

    /// One line for each step of a ring, with the files that take it.
    fn describe(&self, ring: &[String]) -> String {
        let followers = ring.iter().cycle().skip(1);
        let steps = ring.iter().zip(followers).map(|(from, to)| {
            let files = self.0[from][to].iter();
            let files: Vec<String> = files
                .map(|path| format!("src/{}", path.display()))
                .collect();
            format!("  {from} uses {to} in {}", files.join(", "))
        });
        steps.collect::<Vec<_>>().join("\n")
    }
}

/// The graph of made-up files, each given by its path and its text.
fn graph_of(files: &[(&str, &str)]) -> ModuleGraph {
    let sources: Vec<SourceFile> = files
        .iter()
        .filter_map(|(path, text)| SourceFile::new(Path::new(path), text))
        .collect();
    ModuleGraph::new(&sources)
}

#[test]
fn a_ring_is_found_and_its_files_are_named() {
    let graph = graph_of(&[
        ("lib.rs", "mod a; mod b; mod c;"),
        ("a.rs", "use crate::b::Thing;"),
        ("b/mod.rs", "mod inner;"),
        ("b/inner.rs", "use crate::{c::{self, Deep}, d};"),
        ("c.rs", "fn f() -> u8 { crate::a::g() }"),
        ("d.rs", ""),
    ]);

    let ring = graph.shortest_ring().expect("a uses b uses c uses a");
    assert_eq!(ring, ["a", "b", "c"]);
    assert_eq!(
        graph.describe(&ring),
        "  a uses b in src/a.rs\n  b uses c in src/b/inner.rs\n  c uses a in src/c.rs"
    );
}

#[test]
fn a_ring_by_super_is_found() {
    let graph = graph_of(&[
        ("a.rs", "use super::b;"),
        ("b/mod.rs", "mod inner;"),
        ("b/inner.rs", "use super::super::a; use super::c;"),
        ("c.rs", "use crate::a;"),
    ]);
    assert_eq!(graph.shortest_ring().expect("a uses b uses a"), ["a", "b"]);
    assert!(!graph.0["b"].contains_key("c"), "`super::c` is `b::c`");
}

#[test]
fn a_chain_is_not_a_ring() {
    let graph = graph_of(&[
        ("main.rs", "use crate::a;"),
        ("a.rs", "use crate::{b, c::{b::x, a as y}};"),
        ("b/mod.rs", "use crate::{b::inner::T, c};"),
        ("b/inner.rs", "pub(in crate::b) struct T;"),
        ("c.rs", "use std::a; use self::{a, b};"),
    ]);
    assert_eq!(graph.shortest_ring(), None);
    assert_eq!(graph.edges(), 3);
}

#[test]
fn tests_comments_and_strings_use_nothing() {
    let graph = graph_of(&[
        ("a.rs", "use crate::b;"),
        (
            "b.rs",
            r##"
            //! crate::a
            /* crate::a /* nested */ crate::a */
            const QUOTES: (char, char, &str) = ('"', '\'', "\" crate::a");
            const RAW: &str = r#"" crate::a"#;
            fn lifetime<'a>(_: &'a str) {}
            #[cfg(test)]
            use crate::{a, c};
            #[cfg(test)]
            mod tests { use crate::a; fn f() { if true {} } }
            #[cfg(all(test, unix))]
            mod more { use crate::a; }
            "##,
        ),
        ("b/tests.rs", "use crate::a;"),
    ]);
    assert_eq!(graph.shortest_ring(), None);
    assert_eq!(graph.edges(), 1);
}

#[test]
fn code_after_a_test_item_counts() {
    let graph = graph_of(&[
        ("a.rs", "#[cfg(test)] mod tests { fn f() {} } use crate::b;"),
        ("b.rs", "#[cfg(test)] mod tests; use crate::a;"),
    ]);
    assert_eq!(graph.shortest_ring().expect("a uses b uses a"), ["a", "b"]);
}
