//! ONNX's own tests of the operators, run on every engine through the rewriting of the serving
//! graph: what an engine computes wrongly has to be rewritten or refused.
//!
//! `tests/python/node_tests.py` writes the tests. An engine may crash on one, so each engine runs
//! them in processes of its own: this test program, started again with [`WORKER`].

use std::{
    collections::{BTreeMap, HashMap},
    env, fmt,
    fs::{self, File},
    io::Write,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use bytes::Bytes;

use super::{EngineKind, embedded, onnxruntime, openvino};
use crate::{
    model::{
        decode,
        onnx::{ModelProto, TensorProto, tensor_proto::DataType},
        rewritten_bytes,
    },
    testing::skipped,
};

/// Makes the test program a worker: the engine, the folder of tests and how many to leave out.
const WORKER: &str = "RESNET18_CONFORMANCE_WORKER";
/// Writes the table instead of comparing it.
const UPDATE: &str = "RESNET18_CONFORMANCE_UPDATE";
/// A folder that gets the outcome of every test.
const KEEP: &str = "RESNET18_CONFORMANCE_KEEP";
/// The committed result.
const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operators.md");
const ENGINES: [EngineKind; 3] = [
    EngineKind::OpenVino,
    EngineKind::OnnxRuntime,
    EngineKind::Embedded,
];

/// Sorts before the operators.
const TOTAL: &str = "**all**";
const INTRODUCTION: &str = "\
# Operators

How many of ONNX's own tests of the operators each engine computes rightly, after the rewriting that
[models.md](models.md#what-is-rewritten) describes. What an engine does not compute rightly it refuses when
the model is loaded; no test has a wrong answer. *several* are networks of several operators.

`RESNET18_CONFORMANCE_UPDATE=1 cargo test --lib conformance` writes this page.

| operator | tests | openvino | onnxruntime | embedded |
|---|--:|--:|--:|--:|
";

/// What an engine made of a test.
#[derive(Clone, Debug, PartialEq)]
enum Outcome {
    Right,
    Refused(String),
    Wrong(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Right => f.write_str("right"),
            Self::Refused(reason) => write!(f, "refused\t{}", one_line(reason)),
            Self::Wrong(detail) => write!(f, "wrong\t{}", one_line(detail)),
        }
    }
}

fn one_line(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(400).collect()
}

/// A tensor of numbers of any type.
#[derive(Clone, Debug)]
pub(super) struct Numbers {
    pub(super) elem: DataType,
    pub(super) shape: Vec<usize>,
    /// Little-endian.
    pub(super) raw: Vec<u8>,
}

impl Numbers {
    fn of(tensor: &TensorProto) -> Self {
        Self {
            elem: DataType::try_from(tensor.data_type()).unwrap(),
            shape: tensor.dims.iter().map(|&dim| dim as usize).collect(),
            raw: tensor.raw_data().to_vec(),
        }
    }

    pub(super) fn values(&self) -> Vec<f64> {
        fn each<const N: usize>(raw: &[u8], read: impl Fn([u8; N]) -> f64) -> Vec<f64> {
            raw.as_chunks().0.iter().map(|bytes| read(*bytes)).collect()
        }
        match self.elem {
            DataType::Float => each(&self.raw, |b| f32::from_le_bytes(b).into()),
            DataType::Double => each(&self.raw, f64::from_le_bytes),
            DataType::Int32 => each(&self.raw, |b| i32::from_le_bytes(b).into()),
            DataType::Int64 => each(&self.raw, |b| i64::from_le_bytes(b) as f64),
            DataType::Uint8 | DataType::Bool => each(&self.raw, |[b]| b.into()),
            DataType::Int8 => each(&self.raw, |[b]| f64::from(b as i8)),
            other => panic!("{} is not fed", other.as_str_name()),
        }
    }
}

/// One of ONNX's tests.
struct Case {
    operator: String,
    onnx: Bytes,
    /// By the names of the model's inputs.
    inputs: Vec<(String, Numbers)>,
    /// By the names of the model's outputs.
    outputs: Vec<(String, Numbers)>,
    relative: f64,
    absolute: f64,
    /// How far 8-bit integers may be off.
    steps: f64,
}

impl Case {
    fn read(folder: &Path, name: &str) -> Self {
        let read = |extension: &str| -> Bytes {
            fs::read(folder.join(format!("{name}.{extension}")))
                .unwrap()
                .into()
        };
        let onnx = read("onnx");
        let model = decode(&onnx).unwrap_or_default();
        let data: ModelProto = prost::Message::decode(read("data")).unwrap();
        let graph = model.graph.unwrap_or_default();
        let tensors = data.graph.unwrap_or_default().initializer;
        let named = |prefix: &str, values: &[crate::model::onnx::ValueInfoProto]| {
            let tensors = tensors
                .iter()
                .filter(|tensor| tensor.name().starts_with(prefix));
            values
                .iter()
                .zip(tensors)
                .map(|(value, tensor)| (value.name().to_owned(), Numbers::of(tensor)))
                .collect()
        };
        let property = |key: &str| {
            let mut properties = data.metadata_props.iter();
            let found = properties.find(|property| property.key() == key);
            found.unwrap().value().to_owned()
        };
        Self {
            operator: property("operator"),
            inputs: named("in_", &graph.input),
            outputs: named("out_", &graph.output),
            relative: property("rtol").parse().unwrap(),
            absolute: property("atol").parse().unwrap(),
            steps: property("steps").parse().unwrap(),
            onnx,
        }
    }

    fn run(&self, engine: EngineKind) -> Outcome {
        let mut model = match decode(&self.onnx) {
            Ok(model) => model,
            Err(error) => return Outcome::Refused(error.to_string()),
        };
        let onnx = match rewritten_bytes(&mut model) {
            Ok(onnx) => onnx,
            Err(error) => return Outcome::Refused(error.to_string()),
        };
        let names: Vec<&str> = self.outputs.iter().map(|(name, _)| name.as_str()).collect();
        let answers = catch_unwind(AssertUnwindSafe(|| match engine {
            EngineKind::OpenVino => openvino::conformance::run(&model, &onnx, &self.inputs, &names),
            EngineKind::OnnxRuntime => {
                onnxruntime::conformance::run(&model, &onnx, &self.inputs, &names)
            }
            _ => embedded::conformance::run(&model, onnx, &self.inputs, &names),
        }));
        match answers {
            Ok(Ok(answers)) => self.compare(&answers),
            Ok(Err(reason)) => Outcome::Refused(reason),
            Err(_) => Outcome::Wrong("the engine panicked".into()),
        }
    }

    fn compare(&self, answers: &[Numbers]) -> Outcome {
        for ((name, expected), found) in self.outputs.iter().zip(answers) {
            if expected.shape != found.shape {
                return Outcome::Wrong(format!(
                    "{name} has the shape {:?} instead of {:?}",
                    found.shape, expected.shape
                ));
            }
            let steps = match expected.elem {
                DataType::Uint8 | DataType::Int8 => self.steps,
                _ => 0.0,
            };
            for (expected, found) in expected.values().into_iter().zip(found.values()) {
                let allowed = self.absolute.max(steps) + self.relative * expected.abs();
                let same = expected == found
                    || expected.is_nan() && found.is_nan()
                    || (expected - found).abs() <= allowed;
                if !same {
                    return Outcome::Wrong(format!("{name} has {found} instead of {expected}"));
                }
            }
        }
        Outcome::Right
    }
}

/// The names of the tests in the folder.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .filter_map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            name.strip_suffix(".onnx").map(str::to_owned)
        })
        .collect();
    names.sort();
    names
}

/// Not a test by itself: what the other one starts, which runs the tests of one engine until the
/// end or a crash.
#[test]
#[ignore = "a child process, started by operators_are_computed_rightly_or_refused"]
fn worker() {
    let arguments = env::var(WORKER).expect("the engine, the folder and the first test");
    let [engine, folder, skip] = arguments.split('|').collect::<Vec<_>>()[..] else {
        panic!("{arguments}");
    };
    let (engine, folder) = (
        ENGINES
            .into_iter()
            .find(|kind| kind.name() == engine)
            .unwrap(),
        Path::new(folder),
    );
    let mut log = File::options()
        .append(true)
        .create(true)
        .open(folder.join(format!("{engine}.log")))
        .unwrap();
    for name in names(folder).iter().skip(skip.parse().unwrap()) {
        write!(log, "{name}\t").unwrap();
        let outcome = Case::read(folder, name).run(engine);
        writeln!(log, "{outcome}").unwrap();
    }
}

/// Runs all tests on one engine.
fn run_all(engine: EngineKind, folder: &Path) -> BTreeMap<String, Outcome> {
    let names = names(folder);
    let log = folder.join(format!("{engine}.log"));
    let mut outcomes = BTreeMap::new();
    while outcomes.len() < names.len() {
        let arguments = format!("{engine}|{}|{}", folder.display(), outcomes.len());
        Command::new(env::current_exe().unwrap())
            .args(["--exact", "--ignored", "engine::conformance::worker"])
            .env(WORKER, arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();

        let text = fs::read_to_string(&log).unwrap_or_default();
        if text.is_empty() {
            panic!("the worker of the {engine} engine does not start");
        }
        for line in text.lines() {
            let mut words = line.split('\t');
            let name = words.next().unwrap().to_owned();
            let outcome = match (words.next(), words.next()) {
                (Some("right"), _) => Outcome::Right,
                (Some("refused"), reason) => Outcome::Refused(reason.unwrap_or_default().into()),
                (Some("wrong"), detail) => Outcome::Wrong(detail.unwrap_or_default().into()),
                _ => Outcome::Wrong("the engine crashed".into()),
            };
            outcomes.insert(name, outcome);
        }
        if !text.ends_with('\n') {
            File::options()
                .append(true)
                .open(&log)
                .unwrap()
                .write_all(b"wrong\tthe engine crashed\n")
                .unwrap();
        }
    }
    outcomes
}

/// Python with ONNX's tests.
pub(super) fn python() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python");
    let import = Command::new(&path).args(["-c", "import onnx"]).output();
    if import.is_ok_and(|output| output.status.success()) {
        return Some(path);
    }
    skipped("there is no Python with onnx; `make test-env` sets it up");
    None
}

fn is_available(engine: &EngineKind) -> bool {
    let available = match engine {
        EngineKind::OpenVino => openvino::conformance::available(),
        EngineKind::OnnxRuntime => onnxruntime::conformance::available(),
        _ => true,
    };
    if !available {
        skipped(&format!("there is no {engine}; `make {engine}` fetches it"));
    }
    available
}

#[test]
fn operators_are_computed_rightly_or_refused() {
    let Some(python) = python() else { return };
    let engines: Vec<EngineKind> = ENGINES.into_iter().filter(is_available).collect();
    let folder = tempfile::tempdir().unwrap();
    let cases = &folder.path().join("cases");
    let written = Command::new(python)
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/python/node_tests.py"
        ))
        .arg(cases)
        .status()
        .unwrap();
    assert!(written.success());

    let outcomes: HashMap<EngineKind, BTreeMap<String, Outcome>> = std::thread::scope(|scope| {
        let threads: Vec<_> = engines
            .iter()
            .map(|&engine| (engine, scope.spawn(move || run_all(engine, cases))))
            .collect();
        threads
            .into_iter()
            .map(|(engine, thread)| (engine, thread.join().unwrap()))
            .collect()
    });

    let mut wrong = Vec::new();
    for &engine in &engines {
        for (name, outcome) in &outcomes[&engine] {
            if let Outcome::Wrong(detail) = outcome {
                wrong.push(format!("{engine}: {name}: {detail}"));
            }
        }
    }
    if let Some(kept) = env::var_os(KEEP) {
        for &engine in &engines {
            let name = format!("{engine}.log");
            fs::copy(cases.join(&name), Path::new(&kept).join(&name)).unwrap();
        }
    }
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    if engines.len() < ENGINES.len() {
        return;
    }

    let table = table(cases, &outcomes);
    if env::var_os(UPDATE).is_some() {
        fs::write(TABLE, table).unwrap();
    } else {
        let committed = fs::read_to_string(TABLE).unwrap_or_default();
        assert!(
            is_same_result(&counts(&committed), &counts(&table)),
            "docs/operators.md is not up to date; {UPDATE}=1 writes it. It would be:\n{table}"
        );
    }
}

/// The numbers of the table, by operator.
fn counts(table: &str) -> BTreeMap<&str, Vec<usize>> {
    let rows = table.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| ")?.split(" | ");
        let operator = cells.next()?;
        let numbers = cells.map(|cell| cell.trim_end_matches(" |").parse());
        Some((operator, numbers.collect::<Result<_, _>>().ok()?))
    });
    rows.collect()
}

/// Whether two tables say the same, but for one test in a hundred: the engines choose their kernels
/// by processor, and some tests allow no other rounding than the reference's.
fn is_same_result(a: &BTreeMap<&str, Vec<usize>>, b: &BTreeMap<&str, Vec<usize>>) -> bool {
    let tests = |table: &BTreeMap<&str, Vec<usize>>| -> Vec<(String, usize)> {
        let rows = table.iter();
        rows.map(|(operator, row)| (operator.to_string(), row[0]))
            .collect()
    };
    if tests(a) != tests(b) || !a.contains_key(TOTAL) {
        return false;
    }
    let differences = a.iter().filter(|(operator, _)| **operator != TOTAL);
    let differences: usize = differences
        .flat_map(|(operator, row)| row.iter().zip(&b[operator]))
        .map(|(a, b)| a.abs_diff(*b))
        .sum();
    differences * 100 <= a[TOTAL][0]
}

#[test]
fn tables_of_other_numbers_are_told_apart() {
    let table = |tests: usize, openvino: usize| {
        format!(
            "{INTRODUCTION}| {TOTAL} | {tests} | {openvino} | 0 |\n| Abs | {tests} | {openvino} | 0 |\n"
        )
    };
    let (a, near, far, other) = (
        table(200, 90),
        table(200, 92),
        table(200, 93),
        table(201, 90),
    );
    assert!(is_same_result(&counts(&a), &counts(&near)));
    assert!(!is_same_result(&counts(&a), &counts(&far)));
    assert!(!is_same_result(&counts(&a), &counts(&other)));
    assert!(!is_same_result(&counts(""), &counts("")));
}

/// The committed table: for each operator how many tests there are, and how many of them each
/// engine computes.
fn table(folder: &Path, outcomes: &HashMap<EngineKind, BTreeMap<String, Outcome>>) -> String {
    let mut rows: BTreeMap<String, [usize; 1 + ENGINES.len()]> = BTreeMap::new();
    for name in names(folder) {
        let case = Case::read(folder, &name);
        let right = ENGINES.map(|engine| outcomes[&engine][&name] == Outcome::Right);
        for row in [case.operator.as_str(), TOTAL] {
            let [tests, counts @ ..] = rows.entry(row.to_owned()).or_default();
            *tests += 1;
            for (count, right) in counts.iter_mut().zip(right) {
                *count += usize::from(right);
            }
        }
    }
    let mut text = INTRODUCTION.to_owned();
    for (operator, numbers) in rows {
        let cells = numbers.map(|number| number.to_string());
        text += &format!("| {operator} | {} |\n", cells.join(" | "));
    }
    text
}
